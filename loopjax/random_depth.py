"""Laws of a random number of repetitions: `config.loop.repeats`.

    uniform:LEAST:MOST      every number from LEAST to MOST alike
    huginn:MEAN[:SIGMA]     tau ~ N(log MEAN - SIGMA^2 / 2, SIGMA), r ~ Poisson(e^tau) + 1; SIGMA 0.5 by
                            default. The mean is MEAN + 1 (Geiping et al. 2025, section 3)
    lognormal:MEAN:SIGMA    tau as above, r is e^tau rounded, at least 1

The last two are capped: what exceeds `config.loop.most` counts as that many. A law is a table of
probabilities; a draw looks up 32 random bits in its cumulative sums. The same numbers are therefore drawn
on every platform, and the expected cost follows from the table that is drawn from.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

MOST = 10_000  # repetitions
LAWS = ("uniform:LEAST:MOST", "huginn:MEAN[:SIGMA]", "lognormal:MEAN:SIGMA")
_BITS = 2.0**32
_STREAM = 0x72657073  # draws of repetitions share no key with other uses of the seed


@dataclasses.dataclass(frozen=True)
class Law:
    """The law of the number of repetitions r of an update.

    Attributes:
      text: as in `config.loop.repeats`.
      most: the cap; 0 for none.
    """

    text: str
    most: int = 0

    def __post_init__(self):
        self._numbers()

    @property
    def is_capped(self) -> bool:
        """Whether the law has a cap other than that of its own numbers."""
        return not self.text.startswith("uniform")

    def _numbers(self) -> tuple[str, tuple[float, ...]]:
        """(name, its numbers); raises ValueError if the text is not a law."""
        name, *parts = self.text.split(":")
        try:
            numbers = tuple(map(float, parts))
        except ValueError:
            numbers = ()
        if not all(0 < x <= MOST for x in numbers):
            numbers = ()
        whole = all(x == int(x) for x in numbers)
        if name == "uniform" and len(numbers) == 2 and whole and numbers[0] <= numbers[1]:
            return name, numbers
        if name == "huginn" and len(numbers) in (1, 2):
            return name, (*numbers, 0.5)[:2]
        if name == "lognormal" and len(numbers) == 2:
            return name, numbers
        raise ValueError(
            f"{self.text!r} must be empty or one of {', '.join(LAWS)}, with positive numbers of at "
            f"most {MOST:,}, like uniform:2:8 or huginn:8"
        )

    @functools.cached_property
    def probabilities(self) -> np.ndarray:
        """The probability of r = 0, 1, ..., float64; that of 0 is 0."""
        name, numbers = self._numbers()
        if name == "uniform":
            least, most = map(int, numbers)
            return np.where(np.arange(most + 1) < least, 0.0, 1.0 / (most - least + 1))
        mean, sigma = numbers
        center = math.log(mean) - sigma**2 / 2
        table = {"huginn": _poisson, "lognormal": _rounded}[name](center, sigma)
        most = self.most or MOST
        if len(table) > most + 1:
            table = np.append(table[:most], table[most:].sum())
        return table / table.sum()

    @property
    def largest(self) -> int:
        """The largest number that is drawn."""
        return len(self.probabilities) - 1

    def expected(self, function) -> float:
        """The mean of a function of r."""
        return sum(float(p) * function(r) for r, p in enumerate(self.probabilities) if p)

    def draw(self, seed: int, step) -> jax.Array:
        """The number of repetitions of an update, int32 []; depends on (seed, step) alone.

        Args:
          seed: seed of the run.
          step: updates done before, int32 []; may be traced.
        """
        key = jax.random.key(seed, impl="threefry2x32")
        key = jax.random.fold_in(jax.random.fold_in(key, _STREAM), step)
        bits = jax.random.bits(key, (), jnp.uint32)
        ends = np.rint(np.cumsum(self.probabilities)[:-1] * _BITS).clip(0, _BITS - 1)
        return jnp.searchsorted(jnp.asarray(ends.astype(np.uint32)), bits, side="right").astype(
            jnp.int32
        )


def _normal_cdf(z):
    return 0.5 * (1.0 + np.vectorize(math.erf)(z / math.sqrt(2.0)))


def _poisson(center: float, sigma: float) -> np.ndarray:
    """Probabilities of Poisson(e^tau) + 1, tau ~ N(center, sigma), up to a tail below 2^-32."""
    width = np.linspace(-8.0, 8.0, 801)
    weights = np.exp(-(width**2) / 2)
    rates = np.exp(np.minimum(center + sigma * width, math.log(2 * MOST)))
    longest = int(min(MOST, rates[-200] + 12 * math.sqrt(rates[-200]) + 40))
    n = np.arange(longest)
    logs = np.array([math.lgamma(i + 1) for i in n])
    terms = np.exp(n[None] * np.log(rates)[:, None] - rates[:, None] - logs)
    return _cut(np.append(0.0, weights @ terms / weights.sum()))


def _rounded(center: float, sigma: float) -> np.ndarray:
    """Probabilities of max(1, round(e^tau)), tau ~ N(center, sigma), up to a tail below 2^-32."""
    longest = int(min(MOST, math.exp(min(center + 7 * sigma, math.log(MOST))) + 2))
    below = _normal_cdf((np.log(np.arange(1, longest + 1) + 0.5) - center) / sigma)
    return _cut(np.append(0.0, np.diff(below, prepend=0.0)))


def _cut(table: np.ndarray) -> np.ndarray:
    """Without the tail that 32 bits cannot draw."""
    tail = np.cumsum(table[::-1])[::-1] + (1.0 - table.sum())
    return table[: max(2, int(np.sum(tail > 1.0 / _BITS)))]
