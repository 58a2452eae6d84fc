"""Table 1, Figures 1 and 10: standard, looped and grown models against what they cost."""

import experiment
import summary
from study import run_result

from loopjax.data.floors import mean_floors
from loopjax.depth import DepthPlan
from loopjax.plots import figure, spread
from loopjax.plots.runs import draw_trade_off
from loopjax.run_record import spread as in_words

TITLE = "Standard, looped and grown models against their cost (Table 1, Figures 1 and 10)"
PAPER = (
    "At 24 executed layers of 1.7B, growth reaches the standard model's NLL with 78% of its training "
    "FLOPs and more on the reasoning primitives (LIDAS 48.0%, standard 34.6%). At equal parameters a "
    "loop beats the standard model in NLL (4x6: 2.12, standard 4: 2.29) and on primitives; at equal "
    "inference FLOPs it is behind in NLL."
)


def runs(study) -> dict:
    """Directories by role, one per seed."""
    return {role: study.models(role) for role in study.scale.rows}


def outcome(study) -> experiment.Outcome:
    models = runs(study)
    rows, points = [], {}
    for role, directories in models.items():
        results = [run_result(run) for run in directories]
        nll = [_nll(study, result) for result in results]
        primitives = [summary.mean_accuracy(study.evaluate(run)) for run in directories]
        first = results[0]
        points[role] = (first, nll, primitives)
        rows.append(
            (
                f"{role} ({first['plan']})",
                f"{first['unique_layers']}/{first['effective_layers']}",
                f"{first['parameters']:,}",
                f"{first['training_flops']:.3g}",
                len(results),
                in_words(nll, 3),
                summary.percent(primitives),
            )
        )
    heads = (
        "model",
        "unique/executed layers",
        "parameters",
        "training FLOPs",
        "seeds",
        "NLL (text)",
        "reasoning",
    )
    standard, lidas = points["standard"], points["lidas"]
    share = lidas[0]["training_flops"] / standard[0]["training_flops"]
    gap = _mean(lidas[1]) - _mean(standard[1])
    gain = _mean(lidas[2]) - _mean(standard[2])
    loop, block, deep = (_mean(points[role][1]) for role in ("loop", "one block", "standard"))
    finding = (
        f"LIDAS takes {share:.1%} of the standard model's training FLOPs; its NLL differs by "
        f"{gap:+.3f} nats ({in_words(lidas[1], 3)}, standard {in_words(standard[1], 3)}), its reasoning "
        f"accuracy by {100 * gain:+.1f} points. One block of layers has an NLL of {block:.3f}, the "
        f"same block looped {loop:.3f}, the standard model {deep:.3f}."
    )
    reasoning = {role: _mean(point[2]) for role, point in points.items()}
    claims = (
        share < 0.85 and gap < 0.03,  # growth: the loss,
        share < 0.85 and gain > 0.02,  # and more reasoning
        deep < loop < block,  # a loop, against its block run once
        reasoning["loop"] > reasoning["one block"] + 0.02,
    )
    verdict = summary.verdict(claims)
    data = {
        "tasks": study.scale.tasks,
        "costs": {role: _costs(point[0]) for role, point in points.items()},
        "nll": {role: point[1] for role, point in points.items()},
        "reasoning": {role: point[2] for role, point in points.items()},
    }
    return experiment.Outcome(finding, verdict, heads, rows, data)


def _nll(study, result: dict) -> float:
    return result["heldout"][f"{study.scale.text}/nll" if study.scale.text else "nll"]


def _mean(values) -> float:
    return sum(values) / len(values)


def _costs(result: dict) -> dict:
    return {
        "unique layers": result["unique_layers"],
        "executed layers": DepthPlan.parse(result["plan"]).n_effective,
        "training FLOPs": result["training_flops"],
    }


def figures(data: dict) -> dict:
    """NLL and reasoning accuracy, each against three costs."""
    names = list(next(iter(data["costs"].values())))
    fig, axes = figure.grid(2 * len(names), len(names), 2.9, 2.6, 0.5)
    metrics = (("nll", "NLL (nats per byte)"), ("reasoning", "reasoning accuracy"))
    lines, seeds = {}, [spread.of(values).n for values in data["nll"].values()]
    for k, axis in enumerate(axes):
        name, (metric, ylabel) = names[k % len(names)], metrics[k // len(names)]
        costs = {role: by_name[name] for role, by_name in data["costs"].items()}
        floor = mean_floors(data["tasks"]) if metric == "reasoning" else None
        lines |= draw_trade_off(axis, data[metric], costs, ylabel, floor=floor)
        if name == "training FLOPs":
            figure.amounts(axis)
        else:
            figure.ticks(axis, map(int, costs.values()))
        figure.labels(axis, name, ylabel if k % len(names) == 0 else "")
    figure.legend(fig, lines, spread.note(seeds))
    return {"tradeoffs": fig}


if __name__ == "__main__":
    experiment.main(__file__)
