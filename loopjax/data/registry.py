"""The built-in data sources by name. A new one is one file with its class and one row of `TASKS`.

The row makes the name known to `config.mixture`, to the messages that list the built-in sources,
and, if it has an `item`, to fine-tuning mixtures ("NAME:500") and `evals.primitives`.
"""

import dataclasses
import re
from collections.abc import Callable

from loopjax.data import items as items_lib
from loopjax.data.addition import Addition
from loopjax.data.hops import Chain, HopText, PHop, Sanford, hop_item
from loopjax.data.igsm import IGSM
from loopjax.data.instances import Limited
from loopjax.data.items import Item, Items
from loopjax.data.modular import ModularAddition
from loopjax.data.source import Source
from loopjax.data.text_tasks import copying, variable_assignment
from loopjax.data.token_shards import StandardLibrary
from loopjax.data.trail import Trail, code_item, trail_item


@dataclasses.dataclass(frozen=True)
class Task:
    """A row of the registry; at least one of `source` and `item` is given.

    Attributes:
      names: the names as messages show them.
      pattern: regular expression of the names. Its groups are the arguments of `source` and
        `item`; digits are passed as int.
      source: `source(*arguments, split=, seq_len=, seed=)` makes the Source. By default rows of
        items, as many as fit.
      item: `item(rng, *arguments)` makes a question as text.
    """

    names: str
    pattern: str
    source: Callable[..., Source] | None = None
    item: Callable[..., Item] | None = None


def _standard_library(split: str, seq_len: int, seed: int) -> Source:
    return StandardLibrary(split, seq_len)  # a text: no draws, no seed


TASKS = (
    Task("stdlib", "stdlib", _standard_library),
    Task("p_hop_<1..32>", r"p_hop_(\d+)", PHop),
    Task("hop_text_<1..9>", r"hop_text_([1-9])", HopText, hop_item),
    Task("hops_<1..32>x<letters>", r"hops_(\d+)x(\d+)", Chain),
    Task("trail_<1..16>", r"trail_(\d+)", Trail, trail_item),
    Task("trail_code_<1..16>", r"trail_code_([1-9]|1[0-6])", item=code_item),
    Task("sanford_<0..16>", r"sanford_(\d+)", Sanford),
    Task("addition_<2..32>", r"addition_(\d+)", Addition),
    Task("mod_addition_<p>", r"mod_addition_(\d+)", ModularAddition),
    Task("igsm_<1..21>", r"igsm_(\d+)", IGSM),
    Task("copying_<random|real>", r"copying_(random|real)", item=copying),
    Task(
        "var_assign_<basic|math|code>_<0..4>",
        r"var_assign_(basic|math|code)_([0-4])",
        item=variable_assignment,
    ),
)


def names() -> str:
    """The names of all built-in sources, for messages."""
    return ", ".join(task.names for task in TASKS)


def find(name: str) -> tuple[Task, list] | None:
    """The row of a name and the arguments in the name; None for an unknown name."""
    for task in TASKS:
        if match := re.fullmatch(task.pattern, name):
            return task, [int(part) if part.isdigit() else part for part in match.groups()]
    return None


def limited(name: str) -> tuple[str, int]:
    """("sanford_2", 500) of "sanford_2:500"; (name, 0) of any other source.

    Text tasks with a number are pairs (`data.pairs`), packed without the text in between.
    """
    task, _, number = name.partition(":")
    row = find(task)
    if not re.fullmatch(r"[1-9]\d{0,8}", number) or row is None or row[0].item:
        return name, 0
    made = row[0].source
    return (task, int(number)) if isinstance(made, type) else (name, 0)


def open_source(name: str, split: str, seq_len: int, seed: int, codec) -> Source | None:
    """The built-in source of this name, or None; `codec()` returns the tokenizer of text tasks.

    "sanford_2:500" is a training set of 500 instances of a synthetic task.
    """
    name, n = limited(name)
    row = find(name)
    if row is None:
        return None
    task, arguments = row
    if n:
        source = task.source(*arguments, split=split, seq_len=seq_len, seed=seed)
        return source if split == "heldout" else Limited(source, n, f"{name}:{n}")
    if task.source:
        return task.source(*arguments, split=split, seq_len=seq_len, seed=seed)
    return Items(name, _maker(name), split, seq_len, seed, codec())


def has_items(name: str) -> bool:
    """Whether `items` knows the name."""
    row = find(name)
    return row is not None and row[0].item is not None


def items(name: str, split: str, seed: int, count: int) -> list[Item]:
    """The first `count` different items of a text task in a split."""
    return items_lib.distinct(_maker(name), split, seed, count)


def _maker(name: str) -> Callable[..., Item]:
    """`make(rng)` of a text task."""
    task, arguments = find(name)
    return lambda rng: task.item(rng, *arguments)
