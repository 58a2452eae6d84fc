"""Table 1, Figures 1 and 10: standard, looped and grown models against what they cost."""

import experiment
import numpy as np
import summary
from claims import NATS, Claim, effect
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
    rows, points, measured = [], {}, {}
    for role, directories in models.items():
        results = [run_result(run) for run in directories]
        nll = [summary.heldout_nll(study.scale, result) for result in results]
        evaluations = [study.evaluate(run) for run in directories]
        primitives = [summary.mean_accuracy(one) for one in evaluations]
        first = results[0]
        points[role] = (first, nll, primitives)
        measured[role] = (np.array(nll), summary.values(evaluations))
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
    finding = f"LIDAS takes {share:.1%} of the standard model's training FLOPs."
    data = {
        "tasks": study.scale.tasks,
        "costs": {role: _costs(point[0]) for role, point in points.items()},
        "nll": {role: point[1] for role, point in points.items()},
        "reasoning": {role: point[2] for role, point in points.items()},
    }
    blocked = summary.undecidable({r: v for r, (_, v) in measured.items()}, study.scale.tasks)
    return experiment.Outcome(finding, _claims(measured, blocked), heads, rows, data)


def _claims(measured: dict, blocked: str) -> list[Claim]:
    """Of {role: (NLL [seeds], scores [seeds, items])}; `blocked` is about the scores."""

    def more(role: str, other: str):
        return effect(measured[role][1] - measured[other][1])

    def lower(role: str, other: str):
        return effect(measured[other][0] - measured[role][0])

    return [
        Claim("LIDAS solves more reasoning items than the standard model",
              "+13.4 points", more("lidas", "standard"), 0.03, blocked=blocked),
        Claim("The loss of LIDAS is not higher than the standard model's",
              "0.00 nats", lower("lidas", "standard"), -0.02, unit=NATS),
        Claim("A loop of one block has a lower loss than the block run once",
              "0.17 nats", lower("loop", "one block"), 0.02, unit=NATS),
        Claim("A loop of one block solves more reasoning items than the block run once",
              "+17.3 points", more("loop", "one block"), 0.03, blocked=blocked),
        Claim("The standard model has a lower loss than the loop at equal inference FLOPs",
              "0.16 nats", lower("standard", "loop"), 0.02, unit=NATS),
    ]  # fmt: skip


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
