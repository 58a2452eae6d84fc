"""Confidence intervals of means over few runs."""

import math
import statistics
from typing import NamedTuple

LEVEL = 0.95


class Mean(NamedTuple):
    """A mean over independent runs.

    Attributes:
      n: number of runs.
      mean: their mean; nan or inf if a value is.
      half: half the width of the 95% interval of the mean, by Student's t with n - 1 degrees of
        freedom; None for a single run and for values that are not finite.
    """

    n: int
    mean: float
    half: float | None

    @property
    def low(self) -> float:
        return self.mean - (self.half or 0.0)

    @property
    def high(self) -> float:
        return self.mean + (self.half or 0.0)


def mean_of(values: list[float]) -> Mean:
    """The mean of at least one value, and its interval."""
    n, mean = len(values), statistics.fmean(values)
    if n < 2 or not all(map(math.isfinite, values)):
        return Mean(n, mean, None)
    return Mean(n, mean, student_t(n - 1) * statistics.stdev(values) / math.sqrt(n))


def student_t(df: int, level: float = LEVEL) -> float:
    """t with P(-t < T < t) = level for Student's T with `df` >= 1 degrees of freedom.

    With a = atan(t / sqrt(df)) the probability is a finite sum of powers of cos(a), which grows
    with a (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4); a is found by bisection.
    """
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, df) < level else (low, middle)
    return math.sqrt(df) * math.tan((low + high) / 2)


def _within(angle: float, df: int) -> float:
    """P(-t < T < t) for t = sqrt(df) tan(angle)."""
    odd = df % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for k in range(1 + odd, df, 2):  # the powers df - 2, df - 4, ... of the cosine, ascending
        total += term
        term *= math.cos(angle) ** 2 * k / (k + 1)
    if odd:
        return 2 / math.pi * (angle + math.sin(angle) * total)
    return math.sin(angle) * total
