"""How many prompts of an evaluation did not fit the context, and were cut on the left.

A cut prompt lacks its beginning: its instruction, or its first examples.
"""

from collections.abc import Iterable, Iterator

from loopjax.report.collect import Collection
from loopjax.report.estimates import series


def finding(models: Collection, kinds: Iterable[str]) -> str:
    """Which prompts of evaluations were cut, by task and model; "" if no result says."""
    cut: dict[str, dict[str, int]] = {}
    known = False
    for kind in kinds:
        for of in models.conditions(kind):
            for label, result in models.results(kind, of).items():
                for task, evaluated in _evaluated(kind, result):
                    if "truncated" in evaluated:
                        known = True
                        if evaluated["truncated"]:
                            counts = cut.setdefault(task, {})
                            counts[label] = counts.get(label, 0) + evaluated["truncated"]
    if not cut:
        return "All prompts fit the context; none was cut." if known else ""
    parts = []
    for task, counts in cut.items():
        by_count: dict[int, list[str]] = {}
        for label, count in counts.items():
            by_count.setdefault(count, []).append(label)
        texts = [f"{count:,} for {series(labels)}" for count, labels in by_count.items()]
        parts.append(f"{task} ({'; '.join(texts)})")
    return (
        f"Requests whose prompt did not fit the context, and lost its beginning: {series(parts)}. "
        "Scores of a task with cut prompts are not those of the whole prompts."
    )


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
