"""The optimizer's moments at growth: copied with the layers, reset, and a new warm-up."""

import itertools
import math
import statistics

import experiment
import summary
from claims import NATS, Claim, effect
from study import run_result

from loopjax.plots import figure, spread
from loopjax.run_record import metrics_of
from loopjax.run_record import spread as in_words

TITLE = "Moments of the optimizer at growth (MIDAS, LIDAS, 2609.19107, 2511.04981)"
PAPER = (
    "MIDAS and LIDAS copy the moments with the layers and leave the learning rate alone; 2609.19107 copies "
    "no moments and warms the learning rate up again. Claims here: each other choice has a higher loss than "
    "copying without a warm-up."
)
ROLE = "lidas"
COPIED = "copied"
NEAR = 20  # steps before and after growth whose losses are compared


def settings(study) -> dict[str, tuple[str, ...]]:
    """{name: overrides}; the new warm-up is 4% of the steps before the cooldown."""
    rewarm = f"growth.rewarm_steps={study.scale.plateau // 25}"
    return {
        COPIED: (),
        "reset": ("growth.moments=reset",),
        f"{COPIED}, warm-up": (rewarm,),
    }


def runs(study) -> dict:
    """Directories by setting, one per seed."""
    return {
        name: study.changed(ROLE, name.replace(",", "").replace(" ", "-"), *overrides)
        if overrides
        else study.models(ROLE)
        for name, overrides in settings(study).items()
    }


def outcome(study) -> experiment.Outcome:
    nll, reasoning, jumps, curves, rows = {}, {}, {}, {}, []
    for name, directories in runs(study).items():
        nll[name] = [summary.heldout_nll(study.scale, run_result(run)) for run in directories]
        reasoning[name] = [summary.mean_accuracy(study.evaluate(run)) for run in directories]
        logs = [metrics_of(run) for run in directories]
        around = [_around_growth(log) for log in logs]
        jumps[name] = [
            statistics.fmean(after) - statistics.fmean(before) for before, after in around
        ]
        curves[name] = _mean_curve(around)
        words = in_words(nll[name], 3), summary.percent(reasoning[name]), in_words(jumps[name], 3)
        rows.append((name, *words))
    heads = (
        "moments at growth", "NLL (nats per byte)", "reasoning",
        f"loss in the {NEAR} steps after growth less before",
    )  # fmt: skip
    others = [name for name in nll if name != COPIED]
    gaps = {name: [a - b for a, b in zip(nll[name], nll[COPIED], strict=True)] for name in others}
    n_seeds = len(nll[COPIED])
    finding = (
        "NLL less that with copied moments, paired by seed: "
        + ", ".join(f"{name} {in_words(gap, 3)}" for name, gap in gaps.items())
        + f"; {n_seeds} seed{'s' * (n_seeds > 1)}. Loss in the {NEAR} steps after growth less that before, "
        + f"mean over the growth steps: {', '.join(f'{n} {in_words(j, 3)}' for n, j in jumps.items())}. "
        + "Scaled down."
    )
    claims = [
        Claim(f"Moments {name}: a higher loss than copied ones without a warm-up", "not compared",
              effect(gap), 0.01, unit=NATS)
        for name, gap in gaps.items()
    ]  # fmt: skip
    data = {"nll": nll, "reasoning": reasoning, "curves": curves}
    return experiment.Outcome(finding, claims, heads, rows, data)


def _around_growth(log: list[dict]) -> tuple[list[float], list[float]]:
    """Training losses before and after growth: by distance in steps, means over the growth steps."""
    losses = {row["step"]: row["loss"] for row in log if "loss" in row}
    plans = {row["step"]: row["plan"] for row in log if "plan" in row}
    steps = sorted(plans)
    grown = [b for a, b in itertools.pairwise(steps) if plans[a] != plans[b]]
    # A growth step that is too near to another one or to the end has no such window.
    windows = [
        [losses[step + k] for k in range(-NEAR, NEAR)]
        for step in grown
        if all(step + k in losses for k in range(-NEAR, NEAR))
    ]
    if not windows:
        return [math.nan], [math.nan]  # not known
    means = [statistics.fmean(column) for column in zip(*windows, strict=True)]
    return means[:NEAR], means[NEAR:]


def _mean_curve(around: list) -> list[float]:
    """Mean over the seeds of the losses around growth, less the mean before it."""
    seeds = [[v - statistics.fmean(before) for v in before + after] for before, after in around]
    return [statistics.fmean(column) for column in zip(*seeds, strict=True)]


def figures(data: dict) -> dict:
    """The held-out losses, and the training loss around growth."""
    fig, axes = figure.grid(2, 2, 4.0, 2.9, 0.4)
    looks, lines, seeds = figure.looks(data["nll"]), {}, []
    for k, (name, values) in enumerate(data["nll"].items()):
        one = spread.of(values)
        seeds.append(one.n)
        about = {"ends": spread.ends([one])}
        lines[name] = figure.curve(axes[0], [k], [one.mean], name, looks[name], **about)
        curve = data["curves"][name]
        half = len(curve) // 2
        style = {"color": looks[name].color, "linewidth": 1.2}
        figure.own(axes[1].plot(range(-half, len(curve) - half), curve, **style)[0], name)
    figure.ticks(axes[0], range(len(data["nll"])), [""] * len(data["nll"]))
    axes[1].axvline(0, color=figure.FAINT, linestyle=":", linewidth=1, zorder=0)
    for axis in axes:
        figure.plain(axis)
    figure.labels(axes[0], "", "NLL (nats per byte)")
    figure.labels(axes[1], "steps after growth", "training loss, less that before")
    figure.legend(fig, lines, spread.note(seeds))
    return {"growth_moments": fig}


if __name__ == "__main__":
    experiment.main(__file__)
