"""Figures 9 and 17 to 19: more repetitions of the retrofitted block at inference."""

import experiment
import summary
from claims import Claim, effect

from loopjax.data.floors import mean_floors
from loopjax.depth import DepthPlan
from loopjax.plots import figure, spread

TITLE = "More repetitions after a retrofit (Figures 9 and 17 to 19)"
PAPER = (
    "After a cooldown with the block looped once more, further repetitions at inference keep or raise "
    "the accuracy on primitives for one or two more passes; without adaptation the standard model "
    "loses at once, while the grown model gains without any."
)
ROLES = ("standard", "lidas")
MORE = range(5)


def runs(study) -> dict:
    """Directories by (role, adaptation), one per seed."""
    return {
        (role, how): directories
        for role in ROLES
        for how, directories in (
            ("as it is", study.models(role)),
            ("cooldown", study.cooldowns(role)),
            ("retrofit", study.cooldowns(role, study.scale.retrofits[role][0])),
        )
    }


def outcome(study) -> experiment.Outcome:
    before, block, after = _block(study.scale.retrofits["lidas"][0])
    rows, curves, first, plain = [], {}, {}, {}
    for (role, how), directories in runs(study).items():
        passes = [1 + (how == "retrofit") + more for more in MORE]
        plans = [str(_plan(before, block, n, after)) for n in passes]
        evaluations = [study.evaluate(run, depths=plans, name="repeated") for run in directories]
        by_plan = [[summary.mean_accuracy(each, plan) for each in evaluations] for plan in plans]
        curves[f"{role}, {how}"] = by_plan
        none, one = (summary.values(evaluations, plan) for plan in plans[:2])
        plain[f"{role}, {how}"] = none
        first[role, how] = one - none
        rows.append((role, how, *map(summary.percent, by_plan)))
    heads = ("model", "adaptation", *(f"{n} more" for n in MORE))
    by_model = ", ".join(
        f"{role}, {how} {effect(gain).text()}" for (role, how), gain in first.items()
    )
    finding = (
        f"Change by the first additional pass of layers {before} to {before + block - 1} in mean "
        f"reasoning accuracy: {by_model}."
    )
    blocked = summary.undecidable(plain, study.scale.tasks)
    claims = [
        Claim("After the retrofit LIDAS keeps its accuracy with one more pass", "kept or raised",
              effect(first["lidas", "retrofit"]), -0.02, blocked=blocked),
        Claim("Without adaptation LIDAS gains from one more pass", "gains",
              effect(first["lidas", "as it is"]), 0.02, blocked=blocked),
        Claim("Without adaptation the standard model loses by one more pass", "loses",
              effect(-first["standard", "as it is"]), 0.02, blocked=blocked),
    ]  # fmt: skip
    data = {
        "tasks": study.scale.tasks, "layers": [before, before + block - 1], "curves": curves,
    }  # fmt: skip
    return experiment.Outcome(finding, claims, heads, rows, data)


def _block(plan: str) -> tuple[int, int, int]:
    """(layers before, in and after the block that a plan like 4-2x2-6 loops)."""
    first, loop, last = DepthPlan.parse(plan).segments
    return first.layers, loop.layers, last.layers


def _plan(before: int, block: int, passes: int, after: int):
    return DepthPlan.of([(before, 1), (block, passes), (after, 1)])


def figures(data: dict) -> dict:
    """Mean reasoning accuracy against the number of additional passes."""
    fig = figure.new(5.8, 3.6)
    axis, lines, seeds = fig.subplots(), {}, []
    curves = {name.removesuffix(", as it is"): values for name, values in data["curves"].items()}
    looks, shifts = figure.looks(curves), figure.shifts(curves)
    for name, values in curves.items():
        spreads = list(map(spread.of, values))
        seeds += [one.n for one in spreads]
        about = {"ends": spread.ends(spreads), "shift": shifts[name]}
        means = [one.mean for one in spreads]
        lines[name] = figure.curve(axis, range(len(means)), means, name, looks[name], **about)
    figure.plain(axis)
    figure.ticks(axis, range(len(means)))
    first, last = data["layers"]
    figure.title(axis, f"more passes of layers {first}-{last}")
    figure.labels(axis, "additional passes at inference", "reasoning accuracy")
    lines |= figure.skill(axis, mean_floors(data["tasks"]))
    figure.legend(fig, lines, spread.note(seeds))
    return {"retrofit": fig}


if __name__ == "__main__":
    experiment.main(__file__)
