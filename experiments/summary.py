"""Accuracies by seed and by item, and their spread over seeds as text."""

import statistics

import numpy as np
from claims import effect, missing

from loopjax.data.floors import mean_floors
from loopjax.run_record import score, spread

SOLVED = 0.97  # accuracy above which no gain can show
NAMED = {
    "standard": "the standard model", "lidas": "LIDAS", "midas": "MIDAS", "loop": "the loop",
    "middle loop": "the middle loop", "loop, untied": "the loop, untied",
}  # fmt: skip


def differences(above, below) -> list[float]:
    """By seed."""
    return [a - b for a, b in zip(above, below, strict=True)]


def capital(text: str) -> str:
    """With a capital first letter and the rest as it is."""
    return text[:1].upper() + text[1:]


def seeds(n: int) -> str:
    return f"{n} seed{'s' * (n > 1)}"


def chosen(result: dict) -> list[float]:
    """Changes by the chosen intervention, of each item that took no part in the choice."""
    choice = result["choice"]
    return [
        change
        for task, edited in choice["chosen"].items()
        for change in differences(edited["values"], choice["unmodified"][task]["values"])
    ]


def unmodified(result: dict) -> list[float]:
    """Scores without the chosen intervention, of the same items."""
    return [v for one in result["choice"]["unmodified"].values() for v in one["values"]]


def heldout_nll(scale, result: dict) -> float:
    """The held-out loss of a run's result.json on the text of a scale, nats per byte or token."""
    return result["heldout"][f"{scale.text}/nll" if scale.text else "nll"]


def accuracy(evaluation: dict, task: str, plan: str | None = None) -> float:
    """Accuracy on a task in the JSON of `loopjax eval`, at the given plan or the first one."""
    plans = evaluation["plans"]
    at_plan = plans[plan] if plan else next(iter(plans.values()))
    return score(at_plan["tasks"][task])["value"]


def mean_accuracy(evaluation: dict, plan: str | None = None) -> float:
    """Mean accuracy over the tasks of an evaluation."""
    tasks = next(iter(evaluation["plans"].values()))["tasks"]
    return statistics.fmean(accuracy(evaluation, task, plan) for task in tasks)


def percent(accuracies) -> str:
    """ "84.6 ± 3.9%": mean and standard deviation over seeds; one value has no deviation."""
    return f"{spread([100 * value for value in accuracies], 1)}%"


def points(gains) -> str:
    """ "+1.0 ± 3.9": differences of accuracies, in percentage points."""
    sign = "+" if statistics.fmean(gains) >= 0 else ""
    return sign + percent(gains).removesuffix("%")


def values(evaluations: list[dict], plan: str | None = None, tasks=()) -> np.ndarray:
    """Scores of every item in the JSON of `loopjax eval --by-item`, [seeds, items of all tasks]."""
    by_seed = []
    for evaluation in evaluations:
        plans = evaluation["plans"]
        found = (plans[plan] if plan else next(iter(plans.values())))["tasks"]
        by_seed.append([v for task in tasks or found for v in found[task]["values"]])
    return np.array(by_seed)


def undecidable(scores: dict[str, np.ndarray], tasks) -> str:
    """For `Claim.blocked`: a sentence if models have solved the tasks, or none does any of them, else "".

    Args:
      scores: {model: scores [seeds, items]}.
    """
    means = {name: float(np.mean(values)) for name, values in scores.items()}
    if min(means.values()) > SOLVED:
        return f"The tasks are solved already (at least {min(means.values()):.1%}), so no gain can show."
    best = max(means, key=means.__getitem__)
    floor = mean_floors(tasks)
    skill = effect(np.asarray(scores[best]) - (floor.best[1] if floor else 0.0))
    return missing(skill, f"the best model ({best}), above the best trivial rule,")
