"""Reasoning primitives: copying and variable assignment, as multiple choice.

Each task has 1000 items drawn from a seed. They are on the held-out side of `instances.draw`, so no
training source contains any of them, whatever its seed; the five shots are drawn from the other
side. The options are those in the prompt, in its order. The prediction is the option with the
largest log-probability of " " + option (acc), or the largest per character (acc_norm). Chance is
10% for copying and 20% for variable assignment.
"""

import functools

from loopjax.data import registry
from loopjax.data.items import Item

ITEMS = 1000
SEED = 0


@functools.cache
def items(primitive: str, split: str, seed: int, count: int = ITEMS) -> list[Item]:
    """The first `count` distinct items of a split; `primitive` is the name of its data source."""
    return registry.items(primitive, split, seed, count)


def dataset(primitive: str, primitives_seed: int = SEED, **_) -> dict:
    """The splits of a task; the harness passes the task's dataset_kwargs and metadata."""
    import datasets

    def split(name: str):
        rows = [
            {"prompt": i.prompt, "options": list(i.options), "gold": i.options.index(i.answer)}
            for i in items(primitive, name, primitives_seed)
        ]
        return datasets.Dataset.from_list(rows)

    return {"train": split("train"), "test": split("heldout")}
