"""Choosing one of many interventions by some items of the tasks, and measuring it on the others.

The best of N on the items that chose it is above what it is on new items, the more so the larger N
is. So it is measured on items that took no part in the choice, against the unmodified model on the same
items: the mean difference per item, with its 95% interval by Student's t.
"""

import itertools
import random
from typing import NamedTuple

from loopjax import intervals
from loopjax.errors import UserError

SEED = 123


class Split(NamedTuple):
    """Indices of the items of a task, ascending; None for all of them."""

    dev: list[int] | None
    test: list[int] | None


def split(name: str, task, limit: int | None, dev: int | None) -> Split:
    """`dev` items drawn from the first `limit`, and the others; (None, None) without `dev`.

    Raises UserError if there are no others.
    """
    if not dev:
        return Split(None, None)
    n = sum(1 for _ in itertools.islice(task.eval_docs, limit))
    if dev > n - 2:
        raise UserError(
            f"--dev {dev} must leave at least 2 items of task {name}, which has {n}"
            + (f" within --limit {limit}" if limit else "")
        )
    chosen = set(random.Random(SEED).sample(range(n), dev))
    return Split(sorted(chosen), [i for i in range(n) if i not in chosen])


def change(row: dict, unmodified: dict) -> float:
    """Mean over tasks of the change of accuracy."""
    tasks = row["tasks"]
    changes = [tasks[name]["accuracy"] - unmodified[name]["accuracy"] for name in tasks]
    return sum(changes) / len(changes)


def best(rows: list[dict], unmodified: dict) -> dict:
    """The row with the largest mean change of accuracy; the first of equal ones."""
    return max(rows, key=lambda row: change(row, unmodified))


def held_out(result: dict, row: dict, text: str) -> dict:
    """The part of the result about the chosen intervention, made if it is not there."""
    return result.setdefault(
        "choice",
        {
            "intervention": text,
            "row": result["rows"].index(row),
            "tried": len(result["rows"]),
            "dev_change": change(row, result["unmodified"]),
            "unmodified": {},
            "chosen": {},
        },
    )


def compare(choice: dict) -> None:
    """Adds "difference" to a choice: {task: mean, ends of the interval, number of items}."""
    choice["difference"] = {}
    for task, chosen in choice["chosen"].items():
        plain = choice["unmodified"][task]["values"]
        differences = [a - b for a, b in zip(chosen["values"], plain, strict=True)]
        mean = intervals.mean_of(differences)
        choice["difference"][task] = {
            "mean": mean.mean,
            "low": mean.low,
            "high": mean.high,
            "n": mean.n,
            "unmodified": sum(plain) / len(plain),
            "chosen": sum(chosen["values"]) / len(plain),
        }


def sentences(choice: dict) -> list[str]:
    """What was chosen, and its accuracy on the other items of each task."""
    lines = [
        f"best of {choice['tried']} on the items to choose by: {choice['intervention']} "
        f"({choice['dev_change']:+.4f})"
    ]
    for task, found in choice["difference"].items():
        lines.append(
            f"{task}, {found['n']} other items: {found['unmodified']:.4f} unmodified, "
            f"{found['chosen']:.4f} chosen, {found['mean']:+.4f} "
            f"(95% {found['low']:+.4f} to {found['high']:+.4f})"
        )
    return lines
