"""When training data are known, and when the rule is: standard, looped and grown models."""

import math

import experiment
import summary
import synthetic_tasks
from claims import Claim, effect

from loopjax.depth import DepthPlan
from loopjax.plots import figure, spread
from loopjax.plots.roles import looks
from loopjax.run_record import metrics_of
from loopjax.run_record import spread as in_words

TITLE = "Two phases: training data first, the rule later (2504.12700, Power et al. 2022)"
PAPER = (
    "Networks first fit the training data and go on to compress what they have learned long after the "
    "training error is zero; on modular addition (Power et al. 2022) the held-out accuracy rises up to a "
    "thousand times later than that of the training data. How the two times depend on loops and growth "
    "is not reported."
)
PLANS = {
    "mini": ("2", "1x2", "2,lidas"),
    "paper": ("paper,2", "paper,1x2", "paper,2,lidas"),
}
KNOWN = 0.99  # accuracy from which on data count as known


def runs(study) -> dict:
    config = "configs/two_phase.py:"
    return synthetic_tasks.models(study, config, PLANS[study.name], study.scale.seeds)


def first_step(rows: list[dict], column: str, accuracy: float = KNOWN) -> int | None:
    """The first evaluated step with an accuracy; None if it is not reached."""
    return next((row["step"] for row in rows if row.get(column, -1.0) >= accuracy), None)


def clock(rows: list[dict]) -> dict:
    """The two times of a run.

    Args:
      rows: rows of metrics.jsonl.

    Returns {"train": first step at which the training data are known, "heldout": the same of held-out
    data, "ratio": the second over the first}; None where a step is not reached.
    """
    train, heldout = (first_step(rows, f"{split}/accuracy") for split in ("train", "eval"))
    return {"train": train, "heldout": heldout, "ratio": heldout and train and heldout / train}


def outcome(study) -> experiment.Outcome:
    rows, clocks, curves = [], {}, {}
    for plan, directories in runs(study).items():
        logs = [metrics_of(run) for run in directories]
        evaluated = [[row for row in log if "train/accuracy" in row] for log in logs]
        clocks[plan] = [clock(log) for log in evaluated]
        last = [log[-1]["eval/accuracy"] for log in evaluated]
        stack = DepthPlan.parse(evaluated[0][-1]["plan"])
        rows.append(
            (
                plan,
                f"{stack.n_unique}/{stack.n_effective}",
                *(_steps([one[name] for one in clocks[plan]]) for name in ("train", "heldout")),
                _steps([one["ratio"] for one in clocks[plan]], 1),
                summary.percent(last),
            )
        )
        curves[plan] = {
            "steps": [row["step"] for row in evaluated[0]],
            "train": [[row["train/accuracy"] for row in log] for log in evaluated],
            "heldout": [[row["eval/accuracy"] for row in log] for log in evaluated],
        }
    heads = (
        "plan", "unique/executed", "training data known (step)", "held-out known (step)", "ratio",
        "held-out accuracy at the end",
    )  # fmt: skip
    found, claims = _finding(clocks)
    return experiment.Outcome(found, claims, heads, rows, {"clocks": clocks, "curves": curves})


def _steps(values: list, digits: int = 0) -> str:
    """Mean and deviation over the seeds that get there, and how many those are if not all."""
    known = [value for value in values if value is not None]
    if not known:
        return "not reached"
    few = f" ({len(known)} of {len(values)})" if len(known) < len(values) else ""
    return in_words(known, digits) + few


def _finding(clocks: dict) -> tuple[str, list[Claim]]:
    """(sentences, claims): whether the rule comes at least twice as late, by plan."""
    parts = []
    for plan, ones in clocks.items():
        train, heldout, ratio = (
            _steps([one[name] for one in ones], digits)
            for name, digits in (("train", 0), ("heldout", 0), ("ratio", 1))
        )
        parts.append(f"{plan}: {train}, {heldout}, {ratio}")
    text = (
        f"Steps to {KNOWN:.0%} on the training data, to {KNOWN:.0%} on held-out data, and their ratio: "
        f"{'; '.join(parts)}; {summary.seeds(len(ones))}. Scaled down: width 64, a small modulus."
    )
    return text, [_later(plan, ones) for plan, ones in clocks.items()]


def _later(plan: str, ones: list[dict]) -> Claim:
    """The claim about one plan; seeds that do not get there leave the ratio unknown."""
    known = [one["ratio"] for one in ones if one["ratio"]]
    blocked = ""
    if len(known) < len(ones):
        what = "held-out data" if all(one["train"] for one in ones) else "training data"
        blocked = (
            f"{len(ones) - len(known)} of {len(ones)} seeds do not know their {what} at the end."
        )
    return Claim(
        f"{synthetic_tasks.label_of(plan)}: held-out data are known at least twice as late (log2 of the "
        "ratio)", "up to 1000 times", effect([math.log2(ratio) for ratio in known] or [0.0]), 1.0,
        blocked=blocked, unit="",
    )  # fmt: skip


def figures(data: dict) -> dict:
    """Accuracy on training data and on held-out data against the step."""
    fig, axes = figure.grid(2, 2, 4.0, 2.9, 0.3)
    plans = list(data["curves"])
    labels = {plan: synthetic_tasks.label_of(plan) for plan in plans}
    deepest = max(DepthPlan.parse(synthetic_tasks.plan_of(plan)).n_effective for plan in plans)
    kinds = {labels[plan]: synthetic_tasks.kind_of_variant(plan, deepest) for plan in plans}
    chosen, lines, seeds = looks(kinds), {}, []
    for axis, (split, title) in zip(
        axes, (("train", "training data"), ("heldout", "held-out data")), strict=True
    ):
        for plan, curve in data["curves"].items():
            spreads = [spread.of(values) for values in zip(*curve[split], strict=True)]
            seeds += [one.n for one in spreads]
            label = labels[plan]
            lines[label] = figure.curve(
                axis, curve["steps"], [one.mean for one in spreads], label, chosen[label],
                ends=spread.ends(spreads), markersize=4,
            )  # fmt: skip
        axis.set_xscale("log")
        figure.plain(axis)
        figure.shares(axis, 0.0, 1.0)
        figure.title(axis, title)
        figure.labels(axis, "training steps", "accuracy" if split == "train" else "")
    figure.legend(fig, lines, spread.note(seeds))
    return {"two_phase": fig}


if __name__ == "__main__":
    experiment.main(__file__)
