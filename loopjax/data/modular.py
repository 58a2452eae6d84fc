"""Addition modulo p, the task on which grokking was first seen (Power et al. 2022, 2201.02177): `a b =`, then c.

There are p^2 instances, of which one in 16 is held out, by a hash of its content. To train on a fixed
set, limit the number of instances: `mod_addition_59:1500`.
"""

from loopjax.data.instances import Instances, question
from loopjax.errors import UserError

MODULI = range(8, 1001)


class ModularAddition(Instances):
    """`mod_addition_<p>`: a + b modulo p, one token per number; the answer is the only target."""

    def __init__(self, p: int, split: str, seq_len: int, seed: int):
        if p not in MODULI:
            raise UserError(f"source mod_addition_{p}: the modulus must lie within 8..1000")
        if seq_len < 3:
            raise UserError(
                f"config.seq_len={seq_len} is too short for mod_addition_{p}, which takes 3 tokens"
            )
        self.p = p
        self.vocab_size = p + 2
        self.tokenizer = f"modulo {p}"
        super().__init__(split, seq_len, seed, task="mod_addition", version=1, p=p)

    def make(self, rng):
        numbers = rng.integers(0, self.p, 2)
        equals, padding = self.p, self.p + 1
        prompt = [*numbers.tolist(), equals]
        return numbers.tobytes(), question(prompt, [numbers.sum() % self.p], self.seq_len, padding)
