"""n-ary addition (Saunshi et al. 2025, section 2.1): `315+120+045+824=` and then `1304`.

Operands are uniform in 0..999 and written with three digits; the sum has no steps in between, its
most significant digit first, padded with zeros to the width of the largest sum of n operands (4
digits up to n=10, then 5): all answers of one n are equally long, so no token has to end them, and
the sum is correct if all its digits are.
"""

import numpy as np

from loopjax.data.instances import Instances, question
from loopjax.errors import UserError

SYMBOLS = (*"0123456789", "+", "=", " ")
PLUS, EQUALS, PADDING = range(10, 13)
OPERANDS = range(2, 33)


class Addition(Instances):
    """`addition_<n>`: sums of n operands; only the digits of the answer are targets."""

    tokenizer = "addition"
    vocab_size = len(SYMBOLS)
    one_answer = True

    def __init__(self, n: int, split: str, seq_len: int, seed: int):
        if n not in OPERANDS:
            raise UserError(f"source addition_{n}: the number of operands must lie within 2..32")
        self.n = n
        self.width = len(str(999 * n))
        if seq_len < 4 * n + self.width - 1:
            raise UserError(
                f"config.seq_len={seq_len} is too short for addition_{n}, which takes "
                f"{4 * n + self.width - 1} tokens"
            )
        super().__init__(split, seq_len, seed, task="addition", version=1, n=n)

    def make(self, rng):
        operands = rng.integers(0, 1000, self.n)
        tokens = np.full((self.n, 4), PLUS)
        tokens[:, :3] = digits(operands, 3)
        tokens[-1, 3] = EQUALS
        row = question(tokens.ravel(), digits(operands.sum(), self.width), self.seq_len, PADDING)
        return operands.tobytes(), row


def digits(number, width: int) -> np.ndarray:
    """The decimal digits of numbers [...], most significant first. int [..., width]."""
    return np.asarray(number)[..., None] // 10 ** np.arange(width)[::-1] % 10
