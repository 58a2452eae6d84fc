"""The reasoning primitives: copying and variable assignment, as multiple choice.

Of each task 1000 items, drawn from a seed. They lie on the held-out side of `instances.draw`, so
that no training source, whatever its seed, holds one of them; the pool that the five solved
examples come from lies on the other side. The options are those that the prompt shows, in its
order, and the prediction is the option with the largest log-probability of " " + option (acc), or
the largest per character (acc_norm). Chance is 10% for copying, 20% for variable assignment.
"""

import functools

from loopjax.data import registry
from loopjax.data.items import Item

ITEMS = 1000
SEED = 0


@functools.cache
def items(primitive: str, split: str, seed: int, count: int = ITEMS) -> list[Item]:
    """The first `count` different items of a split; `primitive` as a data source is named."""
    return registry.items(primitive, split, seed, count)


def dataset(primitive: str, primitives_seed: int = SEED, **_) -> dict:
    """The splits of a task. The harness calls it with the task's dataset_kwargs and metadata."""
    import datasets

    def split(name: str):
        rows = [
            {"prompt": i.prompt, "options": list(i.options), "gold": i.options.index(i.answer)}
            for i in items(primitive, name, primitives_seed)
        ]
        return datasets.Dataset.from_list(rows)

    return {"train": split("train"), "test": split("heldout")}
