"""Floors of the built-in tasks: what rules that do none of the work get right.

    floors("hop_text_4").best    # ("repeat the last letter", 0.51)

Chance alone is a poor floor. In p-hop induction a letter often leads back to itself, so repeating the
last letter solves half of the four-hop items, although there are four letters. An accuracy shows that
a model does a task only as far as it is above the best of these rules.

Accuracies come from a simulation with a fixed seed on the task's own instances, or from a formula.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator

import numpy as np

from loopjax.data import registry, trail
from loopjax.data.addition import Addition
from loopjax.data.hops import ALPHABET, FIRST_LETTER, Chain, HopText, PHop, Sanford, p_hop
from loopjax.data.igsm import DIGIT, IGSM, MODULUS
from loopjax.data.instances import Instances, instance_rng
from loopjax.data.modular import ModularAddition

ITEMS = 4000  # simulated items of a task; the standard error is at most 0.8 points
# Length of the rows that are simulated, if it is not given: that of the evaluation items or the papers.
_LENGTHS = {trail.Trail: trail.EVALUATED, PHop: 33, HopText: 49, Sanford: 99, IGSM: 288}


@dataclasses.dataclass(frozen=True)
class Floors:
    """Accuracies, 0..1, of rules on one task.

    Attributes:
      chance: a uniform guess among the possible answers.
      rules: {rule: accuracy} of rules that do none of the work.
      short: {rule: accuracy} of rules that do the work in part, such as following all hops but one.
    """

    chance: float
    rules: dict[str, float] = dataclasses.field(default_factory=dict)
    short: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def best(self) -> tuple[str, float]:
        """The best rule that does none of the work, and its accuracy; at least ("chance", chance)."""
        return max({"chance": self.chance, **self.rules}.items(), key=lambda item: item[1])


@functools.cache
def floors(task: str, seq_len: int | None = None) -> Floors | None:
    """The floors of a built-in task or source; None for any other name.

    Args:
      seq_len: tokens of a row of the source, which some rules depend on a little; by default that of
        the evaluation items, or of the papers.
    """
    task, _ = registry.limited(task)
    row = registry.find(task)
    if row is None:
        return None
    if task.startswith("trail_code"):  # the digits by another name
        return floors(task.replace("_code", ""), seq_len)
    made, arguments = row[0].source, row[1]
    if made is Addition:
        return _addition(*arguments)
    if made is ModularAddition:  # every answer is as frequent as any other
        return Floors(1 / arguments[0])
    if made is trail.Trail:
        return _simulated(_trail_rules, _instances(made, arguments, seq_len), 1 / trail.DIGITS)
    if made is IGSM:
        return _simulated(_igsm_rules, _instances(IGSM, arguments, seq_len), 1 / MODULUS)
    if made in (PHop, HopText, Sanford, Chain):
        rules = functools.partial(_hop_rules, made, arguments[0])
        return _simulated(rules, _instances(made, arguments, seq_len), 1 / ALPHABET)
    if row[0].item is None:  # running text
        return None
    (item,) = registry.items(task, "heldout", 0, 1)
    chance = 1 / len(item.options)
    if not task.startswith("copying"):
        return Floors(chance)
    # The answer is one of the words that are not repeated: the five that are cannot be.
    repeated = sum(item.prompt.count(f"{word} ") > 1 for word in item.options)
    return Floors(chance, {"a word that was not repeated": 1 / (len(item.options) - repeated)})


def _instances(made: type[Instances], arguments: list, seq_len: int | None) -> Iterator[dict]:
    """ITEMS examples, scored as in the held-out split, drawn from all instances."""
    length = seq_len or _LENGTHS.get(made) or arguments[1] + 1
    source = made(*arguments, split="heldout", seq_len=length, seed=0)
    rng = instance_rng(0, "heldout", 0, 0)
    drawn = filter(None, (source.make(rng) for _ in itertools.count()))  # None: draw again
    for _, example in itertools.islice(drawn, ITEMS):
        yield example


def _simulated(rules: Callable, examples: Iterator[dict], chance: float) -> Floors:
    """Floors by counting: `rules(example)` gives {rule: right} of both kinds, and the number scored."""
    totals: tuple[dict[str, float], dict[str, float]] = ({}, {})
    scored = 0
    for example in examples:
        *found, n = rules(example)
        scored += n
        for total, right in zip(totals, found, strict=True):
            for rule, value in right.items():
                total[rule] = total.get(rule, 0.0) + value
    trivial, short = ({rule: float(v / scored) for rule, v in t.items()} for t in totals)
    return Floors(chance, trivial, short)


def _hop_rules(made: type, p: int, example: dict) -> tuple[dict, dict, int]:
    scored = example["targets"] >= 0
    first = int(scored.argmax()) if made is Chain else len(scored) - 1  # after it is padding
    letters = example["inputs"][1 : first + 1] - (FIRST_LETTER if made is HopText else 0)
    targets = example["targets"][1 : first + 1] - (FIRST_LETTER if made is HopText else 0)
    at = np.flatnonzero(scored[1 : first + 1])
    answers = targets[at]
    counts = np.cumsum(letters[:, None] == np.arange(ALPHABET), axis=0)[at]  # [scored, letters]
    most = counts == counts.max(axis=1, keepdims=True)
    trivial = {
        "repeat the last letter": np.sum(letters[at] == answers),
        "the most frequent letter": np.sum(
            most[np.arange(len(at)), answers] / most.sum(axis=1)  # ties: one of them at random
        ),
    }
    short = {
        f"{q} hop{'s' * (q > 1)} instead of {p}": np.sum(p_hop(letters, q)[at] == answers)
        for q in (p - 2, p - 1)
        if q > 0
    }
    return trivial, short, len(at)


def _trail_rules(example: dict) -> tuple[dict, dict, int]:
    at = int(example["targets"].argmax())
    text, answer = example["inputs"][: at + 1], example["targets"][at]
    digits = text[(text >= ord("0")) & (text <= ord("9"))]
    counts = np.bincount(digits, minlength=answer + 1)
    most = counts == counts.max()
    rules = {
        "repeat the last digit": digits[-1] == answer,
        "the most frequent digit": most[answer] / most.sum(),
    }
    return rules, {}, 1


def _igsm_rules(example: dict) -> tuple[dict, dict, int]:
    asked = int(example["targets"].argmax())  # the answer follows
    tokens, answer = example["inputs"][: asked + 1], example["targets"][asked] - DIGIT
    numbers = tokens[(tokens >= DIGIT) & (tokens < DIGIT + MODULUS)] - DIGIT
    counts = np.bincount(numbers, minlength=MODULUS)
    most = counts == counts.max()
    return {"the most frequent number of the text": most[answer] / most.sum()}, {}, 1


def _addition(n: int) -> Floors:
    """Of whole sums: `n` operands, each uniform in 0..999."""
    share = np.ones(1)
    for _ in range(n):
        share = np.convolve(share, np.full(1000, 1e-3))
    return Floors(1 / len(share), {"the most frequent sum": float(share.max())})


def mean_floors(tasks) -> Floors | None:
    """The floors of a mean accuracy over tasks; None if one of them is not a built-in task.

    The best rule of each task counts; it has a name of its own only if it is the same in all.
    """
    known = [floors(task) for task in tasks]
    if not known or None in known:
        return None
    names = {one.best[0] for one in known}
    name = names.pop() if len(names) == 1 else "the best trivial rules"
    mean = sum(one.best[1] for one in known) / len(known)
    return Floors(sum(one.chance for one in known) / len(known), {name: mean})
