"""Letters that lead to digits, as text: hop back from letter to letter until a digit is reached.

    c4bcab     after the b before the last one is c, and after the c before that is 4: two hops

A hop is that of p-hop induction (`hops.py`): from a letter to the position after its last earlier occurrence.
Unlike there a row does not say how many hops to take: digits end them. So a model that was trained on up to d
hops can be asked about more, in rows of the same form.
"""

import numpy as np

from loopjax.data.instances import Instances
from loopjax.data.items import Item
from loopjax.data.tokenizers import ByteTokenizer
from loopjax.errors import UserError

LETTERS = 4
DIGITS = 10
DIGIT = 0.3  # share of digits
MOST = 16  # most hops
EVALUATED = 120  # symbols of an evaluation item; with its answer it fits rows of 128
CODE = "FAHCJBEIDG"  # of the digits in `code_item`
_SYMBOLS = np.frombuffer(b"abcd0123456789", np.uint8).astype(np.int32)


class Trail(Instances):
    """`trail_<d>`: letters and digits, no two neighbors alike; what a letter leads to in at most d hops.

    In training the target at every such letter is the digit at the end of its hops, which the input does
    not contain there. Held-out rows end in a letter of exactly d hops, which alone is scored.
    """

    tokenizer = ByteTokenizer.name
    vocab_size = ByteTokenizer.vocab_size

    def __init__(self, hops: int, split: str, seq_len: int, seed: int):
        if not 1 <= hops <= MOST:
            raise UserError(f"source trail_{hops}: the number of hops must lie within 1..{MOST}")
        least = 4 * hops + 4
        if seq_len < least:
            raise UserError(
                f"config.seq_len={seq_len} is too short for trail_{hops}, which takes {least} tokens"
            )
        self.hops = hops
        super().__init__(split, seq_len, seed, task="trail", version=1, hops=hops)

    def make(self, rng):
        drawn = trail(rng, self.seq_len, self.hops if self.split == "heldout" else 0)
        if drawn is None:
            return None
        symbols, ends, hops = drawn
        scored = (hops > 0) & (hops <= self.hops)
        if self.split == "heldout":
            scored[:-1] = False
        inputs = _SYMBOLS[symbols]
        targets = np.where(scored, _SYMBOLS[ends], -1)
        return inputs.tobytes(), {"inputs": inputs, "targets": targets}


def trail(rng: np.random.Generator, n: int, last: int = 0):
    """(symbols [n], the digit that each leads to [n], hops [n]; -1 where they end in no digit).

    Symbols are 0..3 for letters, 4..13 for digits.

    Args:
      last: hops of the last symbol; 0: any. None is returned if no letter has that many there.
    """
    digit = rng.random(n) < DIGIT
    symbols = np.where(digit, LETTERS + rng.integers(0, DIGITS, n), rng.integers(0, LETTERS, n))
    ends, hops = np.full(n, -1), np.full(n, -1)
    after: dict[int, int] = {}  # letter -> the position after its last occurrence
    for i in range(n):
        if i and symbols[i] == symbols[i - 1]:  # the next symbol of its kind
            low, size = (LETTERS, DIGITS) if digit[i] else (0, LETTERS)
            symbols[i] = low + (symbols[i] - low + 1) % size
        if last and i == n - 1:
            here = [x for x, j in after.items() if x != symbols[i - 1] and hops[j] == last - 1]
            if not here:
                return None
            symbols[i] = here[int(rng.integers(len(here)))]
        x = int(symbols[i])
        if x >= LETTERS:
            ends[i], hops[i] = x, 0
            continue
        j = after.get(x)
        if j is not None and hops[j] >= 0:
            ends[i], hops[i] = ends[j], hops[j] + 1
        after[x] = i + 1
    return symbols, ends, hops


def trail_item(rng: np.random.Generator, hops: int) -> Item:
    """A text that ends in a letter with that many hops; the answer is the digit at their end."""
    while (drawn := trail(rng, EVALUATED, hops)) is None:
        pass
    symbols, ends, _ = drawn
    text = bytes(_SYMBOLS[symbols].tolist()).decode()
    return Item(text, chr(_SYMBOLS[ends[-1]]), tuple("0123456789"), space="")


def code_item(rng: np.random.Generator, hops: int) -> Item:
    """The same with a capital letter for each digit as the answer, always the same one."""
    item = trail_item(rng, hops)
    return Item(item.prompt, CODE[int(item.answer)], tuple(sorted(CODE)), space="")
