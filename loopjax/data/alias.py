"""Chains of variables as text, "b=3;q=b;x=q;": what a variable stands for, d references deep.

Unlike p-hop induction, a row does not say how many steps to take: its chains do. So a model that has been
trained on chains of depth d can be asked about deeper ones in rows of the same length and form.
"""

import numpy as np

from loopjax.data.instances import Instances
from loopjax.data.items import Item
from loopjax.data.tokenizers import ByteTokenizer
from loopjax.errors import UserError

NAMES = np.frombuffer(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", np.uint8)
DIGITS = np.frombuffer(b"0123456789", np.uint8)
MOST = 12  # deepest chain
STATEMENT = 4  # bytes of "b=a;"
EVALUATED = 32  # statements of an evaluation item


class Alias(Instances):
    """`alias_<d>`: chains of depth 1..d, "NAME=DIGIT;" and then "NAME=NAME;", in a random order.

    In training the target at the right-hand side of every reference is the digit that it stands for, which
    the input does not contain there. Held-out rows end in a reference of depth d, which alone is scored.
    """

    tokenizer = ByteTokenizer.name
    vocab_size = ByteTokenizer.vocab_size

    def __init__(self, depth: int, split: str, seq_len: int, seed: int):
        if not 1 <= depth <= MOST:
            raise UserError(f"source alias_{depth}: the depth must lie within 1..{MOST}")
        least = STATEMENT * (depth + 1)
        if seq_len < least:
            raise UserError(
                f"config.seq_len={seq_len} is too short for alias_{depth}, which takes {least} tokens"
            )
        self.depth = depth
        super().__init__(split, seq_len, seed, task="alias", version=1, depth=depth)

    def make(self, rng):
        n = min(self.seq_len // STATEMENT, len(NAMES))
        text, values, depths = statements(rng, self.depth, n)
        inputs = np.full(self.seq_len, ord("\n"), np.int32)
        inputs[: len(text)] = text
        scored = np.arange(n) == n - 1 if self.split == "heldout" else depths > 0
        targets = np.full((n, STATEMENT), -1, np.int32)
        targets[scored, 2] = values[scored]
        targets = np.pad(targets.ravel(), (0, self.seq_len - len(text)), constant_values=-1)
        return text.tobytes(), {"inputs": inputs, "targets": targets}


def statements(rng: np.random.Generator, depth: int, n: int):
    """(text [4 n] uint8, the digit that each statement stands for [n] as bytes, depths [n]).

    Args:
      depth: depth of the last statement, and the largest.
      n: number of statements, at least depth + 1, each with a new name.
    """
    lengths = [depth + 1]
    while (left := n - sum(lengths)) > 0:
        lengths.append(min(int(rng.integers(2, depth + 2)), left))  # the last one may be shorter
    digits = np.concatenate([rng.permutation(DIGITS) for _ in range(-(-len(lengths) // 10))])
    names = rng.permutation(NAMES)[:n]
    # Statement i belongs to the chain order[i]; the last one to the chain of full depth.
    order = np.append(rng.permutation(np.repeat(np.arange(len(lengths)), lengths)[1:]), 0)
    values, depths = digits[order], np.empty(n, int)
    text = np.empty((n, STATEMENT), np.uint8)
    text[:] = np.frombuffer(b"_=_;", np.uint8)
    text[:, 0] = names
    for chain in range(len(lengths)):
        (at,) = np.nonzero(order == chain)
        depths[at] = np.arange(len(at))
        text[at, 2] = [digits[chain], *names[at[:-1]]]
    return text.ravel(), values, depths


def alias_item(rng: np.random.Generator, depth: int) -> Item:
    """A text that ends in a reference of a depth; the answer is the digit that it stands for."""
    text, values, _ = statements(rng, depth, EVALUATED)
    options = tuple(map(chr, DIGITS.tolist()))
    return Item(text[:-1].tobytes().decode(), chr(values[-1]), options, space="")
