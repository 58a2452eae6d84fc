"""Accuracies and their spread over seeds as text, and the verdict on a claim."""

import statistics

from loopjax.run_record import score, spread

REPRODUCED, PARTLY, NOT_REPRODUCED = "reproduced", "partly", "not reproduced"
INCONCLUSIVE = "inconclusive"
VERDICTS = (REPRODUCED, PARTLY, NOT_REPRODUCED, INCONCLUSIVE)


def verdict(claims) -> str:
    """Reproduced if all claims hold, not reproduced if none does, else partly."""
    claims = list(claims)
    if all(claims):
        return REPRODUCED
    return PARTLY if any(claims) else NOT_REPRODUCED


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


def noise(scale) -> str:
    """A sentence with the sampling error of one model's mean accuracy."""
    n_items, n_tasks = scale.limit or 1000, len(scale.tasks)
    error = 100 * (0.25 / n_items / n_tasks) ** 0.5
    return (
        f"The standard error of one model's mean over {n_tasks} x {n_items} items is at most "
        f"{error:.1f} points."
    )


def ceiling(accuracies) -> str:
    """A sentence if accuracies are too high for a gain to be visible, else nothing."""
    mean = statistics.fmean(accuracies)
    return f"The tasks are solved already ({mean:.1%}), so no gain can show." if mean > 0.97 else ""


def floor(above_chance) -> str:
    """A sentence if no model has learned the tasks, else nothing."""
    best = max(above_chance)
    if best > 0.05:
        return ""
    return f"No model has learned the tasks (at most {100 * best:+.1f} points above chance)."
