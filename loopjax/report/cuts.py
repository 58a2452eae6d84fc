"""How many prompts of an evaluation did not fit the context, and were cut on the left.

A cut prompt lacks its beginning: its instruction, or its first examples.
"""

from collections.abc import Iterable, Iterator

from loopjax.report.collect import Collection
from loopjax.report.estimates import series


def finding(models: Collection, kinds: Iterable[str]) -> str:
    """Which prompts of evaluations were cut, by task and model; "" if no result says."""
    every = [
        (label, task, evaluated)
        for kind in kinds
        for of in models.conditions(kind)
        for label, result in models.results(kind, of).items()
        for task, evaluated in _evaluated(kind, result)
        if "truncated" in evaluated
    ]
    if not every:
        return ""
    most: dict[tuple[str, str], str] = {}  # of each task and model: its evaluation with most cuts
    for label, task, evaluated in sorted(every, key=lambda one: one[2]["truncated"]):
        if evaluated["truncated"]:
            most[task, label] = _count(evaluated)
    if not most:
        return "All prompts fit the context; none was cut."
    parts = []
    for task in dict.fromkeys(task for _, task, _ in every):
        labels: dict[str, list[str]] = {}
        for (of, label), count in most.items():
            if of == task:
                labels.setdefault(count, []).append(label)
        evaluated = {label for label, of, _ in every if of == task}
        texts = [
            f"{count} for {'each model' if len(names) == len(evaluated) > 1 else series(names)}"
            for count, names in labels.items()
        ]
        if texts:
            parts.append(f"{task} ({'; '.join(texts)})")
    unit = "Prompts" if all("items_truncated" in one for *_, one in every) else "Requests"
    return (
        f"{unit} that did not fit the context, and lost their beginning: {series(parts)}. Scores of a "
        "task with cut prompts are not those of the whole prompts."
    )


def _count(evaluated: dict) -> str:
    """The number of prompts that were cut and of all; of requests in older results."""
    if "items_truncated" in evaluated:
        return f"{evaluated['items_truncated']:,} of {evaluated['n_samples']:,}"
    return f"{evaluated['truncated']:,}"


def _evaluated(kind: str, result: dict) -> Iterator[tuple[str, dict]]:
    """(task, its evaluation) of each evaluation in a result."""
    if kind == "eval":
        yield from result["tasks"].items()
    elif kind == "icl":
        for task, curve in result["curves"].items():
            yield from ((task, row) for row in curve["rows"])
    else:
        yield from result["unmodified"].items()
        for row in result["rows"]:
            yield from row["tasks"].items()
