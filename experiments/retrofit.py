"""Figures 9 and 17 to 19: more repetitions of the retrofitted block at inference."""

import statistics

import experiment
import summary

from loopjax.depth import DepthPlan
from loopjax.plots import figure

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
    rows, curves, first = [], {}, {}
    for (role, how), directories in runs(study).items():
        passes = [1 + (how == "retrofit") + more for more in MORE]
        plans = [str(_plan(before, block, n, after)) for n in passes]
        evaluations = [study.evaluate(run, depths=plans, name="repeated") for run in directories]
        by_plan = [[summary.mean_accuracy(each, plan) for each in evaluations] for plan in plans]
        curves[f"{role}, {how}"] = [statistics.fmean(values) for values in by_plan]
        first[f"{role}, {how}"] = [b - a for a, b in zip(*by_plan[:2], strict=True)]
        rows.append((role, how, *map(summary.percent, by_plan)))
    heads = ("model", "adaptation", *(f"{n} more" for n in MORE))
    by_model = ", ".join(f"{name} {summary.points(gain)}" for name, gain in first.items())
    first = {name: statistics.fmean(gain) for name, gain in first.items()}
    finding = (
        f"Gain of the first additional pass of layers {before} to {before + block - 1} in mean "
        f"reasoning accuracy, in points: {by_model}. {summary.noise(study.scale)}"
    )
    kept = first["lidas, retrofit"] > -0.02
    without = first["lidas, as it is"]
    unadapted = without > max(first["standard, as it is"] + 0.02, 0)
    verdict = summary.verdict([kept, unadapted])
    if solved := summary.ceiling(values[0] for values in curves.values()):
        verdict = summary.INCONCLUSIVE
        finding = f"{finding} {solved}"
    return experiment.Outcome(finding, verdict, heads, rows, {"retrofit": _figure(curves)})


def _block(plan: str) -> tuple[int, int, int]:
    """(layers before, in and after the block that a plan like 4-2x2-6 loops)."""
    first, loop, last = DepthPlan.parse(plan).segments
    return first.layers, loop.layers, last.layers


def _plan(before: int, block: int, passes: int, after: int):
    return DepthPlan.of([(before, 1), (block, passes), (after, 1)])


def _figure(curves: dict):
    fig = figure.new(7, 3.6)
    axis, lines = fig.subplots(), {}
    for name, color in figure.colors(curves).items():
        style = "--" if "as it is" in name else ":" if "cooldown" in name else "-"
        (lines[name],) = axis.plot(MORE, curves[name], "o", linestyle=style, color=color)
    figure.plain(axis)
    axis.set_xticks(MORE)
    axis.set_xlabel("additional passes at inference", color=figure.INK, fontsize=9)
    axis.set_ylabel("reasoning accuracy", color=figure.INK, fontsize=9)
    figure.legend(fig, lines)
    return fig


if __name__ == "__main__":
    experiment.main(__file__)
