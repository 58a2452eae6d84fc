"""Means and standard deviations over seeds, as figures draw them."""

from typing import NamedTuple

import numpy as np

from loopjax.run_record import mean_and_deviation


class Spread(NamedTuple):
    """Mean and sample standard deviation (None of a single value) of n values."""

    mean: float
    deviation: float | None = None
    n: int = 1


def of(values) -> Spread:
    """The spread of a number, a list of numbers, a Spread, or its fields as a dict."""
    if isinstance(values, Spread):
        return values
    if isinstance(values, dict):
        return Spread(**values)
    values = [*np.atleast_1d(np.asarray(values, float))]
    return Spread(*mean_and_deviation(list(map(float, values))), len(values))


def ends(spreads) -> tuple[list[float], list[float]] | None:
    """(lower, upper) ends of mean ± deviation of several spreads; None if none has a deviation."""
    if all(one.deviation is None for one in spreads):
        return None
    low, high = ([s.mean + sign * (s.deviation or 0) for s in spreads] for sign in (-1, 1))
    return low, high


def several(result) -> list:
    """The results of the seeds of a model: a list, or one result as a list."""
    return (
        list(result)
        if isinstance(result, list | tuple) and not hasattr(result, "_fields")
        else [result]
    )


def arrays(results: list, name: str) -> list[Spread]:
    """The spread of each element of an array attribute over the results of several seeds."""
    values = np.stack([np.asarray(getattr(result, name), float) for result in results])
    return [of(column) for column in values.T]


def note(counts, one: str = "one model of each", bars: bool = True) -> str:
    """What marks and intervals are, for the legend.

    Args:
      counts: number of seeds of each model.
      one: what to say if each model has a single seed.
      bars: whether deviations are drawn.
    """
    counts = list(counts)
    most = max(counts, default=1)
    if most == 1:
        return one
    number = f"{most} seeds" if min(counts) == most else f"up to {most} seeds"
    return f"means of {number}" + "; bars: ± one standard deviation" * bars
