"""Fixed against random numbers of repetitions in training, by repetitions at inference."""

import statistics

import experiment
import summary
from claims import NATS, Claim, effect
from study import run_result

from loopjax.data.floors import mean_floors
from loopjax.depth import DepthPlan
from loopjax.plots import figure, spread
from loopjax.run_record import spread as in_words

TITLE = "Fixed and random numbers of repetitions (2609.19107, 2502.05171)"
PAPER = (
    "A loop trained with four repetitions has its least loss at four and loses on both sides; trained "
    "with random numbers it is 0.006 nats behind at four (2.721 against 2.715) and stays there: 2.723 at "
    "eight, where the other has 2.757."
)
ROLE = "middle loop"
BOUNDARY = ("loop.norm=True", "loop.inject=after", "loop.inject_scale=0.707")
FIXED, RANDOM = "fixed", "random"


def settings(n: int) -> dict[str, tuple[str, ...]]:
    """{name: overrides} of the models; random numbers have the mean n of the fixed one."""
    law = f"loop.repeats=uniform:1:{2 * n - 1}"
    return {
        FIXED: (),
        RANDOM: (law,),
        f"{FIXED}, norm and injection": BOUNDARY,
    }


def runs(study) -> dict:
    """Directories by setting, one per seed."""
    n = _loop(study)[1]
    # Up to 2 n - 1 repetitions are kept for the backward pass, more than an A100 of 40 GB holds.
    fit = ("microbatches=2",) if study.name == "paper" else ()
    return {
        name: study.changed(ROLE, name.replace(",", "").replace(" ", "-"), *overrides, *fit)
        if overrides
        else study.models(ROLE)
        for name, overrides in settings(n).items()
    }


def outcome(study) -> experiment.Outcome:
    models = runs(study)
    plan, n = _loop(study)
    repeats = [n - 1, n, n + 1, 2 * n, 4 * n]
    plans = [str(_repeated(plan, r)) for r in repeats]
    text = study.scale.text
    nll, accuracy, rows = {}, {}, []
    for name, directories in models.items():
        found = [study.nll(run, plans)["rows"] for run in directories]
        nll[name] = [[_nll(one[k], text) for one in found] for k in range(len(plans))]
        accuracy[name] = [[_accuracy(one[k], text) for one in found] for k in range(len(plans))]
        flops = run_result(directories[0])["training_flops"]
        rows.append((name, f"{flops:.3g}", *(in_words(values, 3) for values in nll[name])))
    heads = ("repetitions in training", "training FLOPs", *(f"NLL at {r}" for r in repeats))
    at, twice = repeats.index(n), repeats.index(2 * n)
    rises = {
        name: [b - a for a, b in zip(values[at], values[twice], strict=True)]
        for name, values in nll.items()
    }
    behind = [r - f for r, f in zip(nll[RANDOM][at], nll[FIXED][at], strict=True)]
    finding = (
        f"NLL (nats per byte) at {2 * n} repetitions less that at {n}: "
        + ", ".join(f"{name} {in_words(values, 3)}" for name, values in rises.items())
        + f". At {n} repetitions {RANDOM} is {in_words(behind, 3)} behind {FIXED}. "
        + f"{len(behind)} seed{'s' * (len(behind) > 1)}. Scaled down."
    )
    claims = [
        Claim(f"A loop trained with {n} repetitions loses at {2 * n}", "0.042 nats",
              effect(rises[FIXED]), 0.01, unit=NATS),
        Claim("One trained with random numbers loses less", "0.040 nats",
              effect(summary.differences(rises[FIXED], rises[RANDOM])), 0.01, unit=NATS),
        Claim(f"At {n} repetitions it is not behind", "-0.006 nats",
              effect([-value for value in behind]), -0.02, unit=NATS),
    ]  # fmt: skip
    tasks = [name for name in found[0][0]["sources"] if name != text]
    data = {"tasks": tasks, "repeats": repeats, "trained": n, "nll": nll, "accuracy": accuracy}
    return experiment.Outcome(finding, claims, heads, rows, data)


def _loop(study) -> tuple[DepthPlan, int]:
    """(plan of the loop, its repetitions)."""
    plan = DepthPlan.parse(study.scale.rows[ROLE].partition("-")[2])
    return plan, max(segment.repeats for segment in plan.segments)


def _repeated(plan: DepthPlan, repeats: int) -> DepthPlan:
    parts = [(one.layers, repeats if one.repeats > 1 else 1) for one in plan.segments]
    return DepthPlan.of(parts)


def _nll(row: dict, text: str) -> float:
    return row["sources"][text]["nll"] if text else row["nll"]


def _accuracy(row: dict, text: str) -> float:
    """Mean accuracy on the sources that have answers."""
    others = [one["accuracy"] for name, one in row["sources"].items() if name != text]
    return statistics.fmean(others or [row["accuracy"]])


def figures(data: dict) -> dict:
    """Loss and accuracy against the number of repetitions at inference."""
    fig, axes = figure.grid(2, 2, 4.0, 2.9, 0.4)
    lines, seeds = {}, []
    looks, shifts = figure.looks(data["nll"]), figure.shifts(data["nll"])
    for axis, metric, ylabel in zip(
        axes, ("nll", "accuracy"), ("NLL (nats per byte)", "accuracy on hops"), strict=True
    ):
        for name, values in data[metric].items():
            spreads = list(map(spread.of, values))
            seeds += [one.n for one in spreads]
            means = [one.mean for one in spreads]
            about = {"ends": spread.ends(spreads), "markersize": 4, "shift": shifts[name]}
            lines[name] = figure.curve(axis, data["repeats"], means, name, looks[name], **about)
        axis.axvline(data["trained"], color=figure.FAINT, linestyle=":", linewidth=1, zorder=0)
        figure.plain(axis)
        axis.set_xscale("log")
        figure.ticks(axis, data["repeats"])
        figure.labels(axis, "repetitions at inference", ylabel)
    lines |= figure.skill(axes[1], mean_floors(data["tasks"]))
    figure.legend(fig, lines, spread.note(seeds))
    return {"random_depth": fig}


if __name__ == "__main__":
    experiment.main(__file__)
