"""Numbers with their uncertainty, and the words for a difference of two of them.

A sentence of the page is made from the numbers that its figure shows, and says whether a difference
is beyond its 95% interval: over seeds by Student's t (Welch 1947), over the items of an evaluation
by standard errors. Without either, a difference is said to have no interval.
"""

import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping

Z = 1.959964  # of the normal distribution, for 95%
MINUS = "\N{MINUS SIGN}"
MOST = 8  # models that a sentence names


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number.

    Attributes:
      value: the mean over `n` seeds, or the value of one run.
      error: its standard error; None if unknown.
      n: number of seeds.
      items: number of items of its evaluation; None if it is not over items or unknown.
    """

    value: float
    error: float | None = None
    n: int = 1
    items: int | None = None

    @property
    def half(self) -> float | None:
        """Half of the 95% interval; None if unknown."""
        if self.error is None:
            return None
        return (_t(self.n - 1) if self.n > 1 else Z) * self.error


def over(values: Iterable[float], errors: Iterable[float | None] = (), items=None) -> Estimate:
    """The estimate of runs that differ in their seed; with a single one, by its own standard error.

    The interval of a mean is at least the one that the standard errors of its runs give: few seeds
    that agree by accident do not make an evaluation of few items exact.
    """
    values, errors = list(values), list(errors)
    if len(values) == 1:
        return Estimate(values[0], errors[0] if errors else None, 1, items)
    error = statistics.stdev(values) / math.sqrt(len(values))
    if errors and None not in errors:
        of_items = math.sqrt(sum(e**2 for e in errors)) / len(errors)
        error = max(error, Z / _t(len(values) - 1) * of_items)
    return Estimate(statistics.fmean(values), error, len(values), items)


@dataclasses.dataclass(frozen=True)
class Difference:
    """value = one - other; half of its 95% interval, None if unknown."""

    value: float
    half: float | None

    @property
    def beyond(self) -> bool | None:
        """Whether the interval leaves out 0; None if there is no interval."""
        return None if self.half is None else abs(self.value) > self.half


def difference(one: Estimate, other: Estimate) -> Difference:
    """The difference of two independent estimates.

    If one is a mean over seeds and the other a single run, there is no interval: how far a single
    run is from the mean of its seeds is not known.
    """
    value = one.value - other.value
    if one.error is None or other.error is None or (one.n > 1) != (other.n > 1):
        return Difference(value, None)
    squares = [e.error**2 for e in (one, other)]
    spread = math.sqrt(sum(squares))
    if one.n == 1 or not spread:
        return Difference(value, Z * spread)
    freedom = spread**4 / sum(
        square**2 / (e.n - 1) for square, e in zip(squares, (one, other), strict=True)
    )
    return Difference(value, _t(freedom) * spread)


def _t(freedom: float) -> float:
    from scipy import stats

    return float(stats.t.ppf(0.975, freedom))


@dataclasses.dataclass(frozen=True)
class Measure:
    """How values of a quantity, and differences of them, are written.

    Attributes:
      form: format of a value.
      scale, digits, unit: of a difference.
    """

    form: str
    scale: float = 1.0
    digits: int = 3
    unit: str = ""

    def amount(self, gap: float) -> str:
        """ "3.4 points", without its sign."""
        return f"{abs(self.scale * gap):.{self.digits}f}{self.unit}"

    def span(self, gap: Difference) -> str:
        """ "-1.2 to 3.4": the 95% interval of a difference, without its unit."""
        ends = (self.scale * (gap.value + side * gap.half) for side in (-1, 1))
        return " to ".join(f"{end:.{self.digits}f}".replace("-", MINUS) for end in ends)


NLL = Measure(".3f")
SHARE = Measure(".1%", 100, 1, " points")
LAYERS = Measure(".2f", digits=2, unit=" layers")


def in_words(estimate: Estimate, measure: Measure) -> str:
    """ "2.148 ± 0.020 (3 seeds)": with half of the 95% interval, if it is known."""
    text = format(estimate.value, measure.form)
    if estimate.half is not None:
        text += f" ± {format(estimate.half, measure.form)}"
    if estimate.n > 1:
        return f"{text} ({estimate.n} seeds)"
    return f"{text} ({estimate.items:,} items)" if estimate.items else text


def listed(values: Mapping[str, Estimate], measure: Measure) -> str:
    """ "loop 2.192, standard 2.148 ± 0.020 (3 seeds)"; the first ones, if there are many."""
    parts = [f"{label} {in_words(value, measure)}" for label, value in values.items()]
    more = len(parts) - MOST
    return ", ".join(parts[:MOST]) + (f" and {more} more" if more > 0 else "")


def compared(
    values: Mapping[str, Estimate], reference: str, measure: Measure, words=("higher", "lower")
) -> str:
    """Sentences on how estimates differ from that of a reference; "" if there are no others.

    Args:
      values: {label: estimate}, of the reference too.
      words: for a difference above and below 0.
    """
    sure, unsure, unknown = [], [], []
    for label, estimate in values.items():
        if label == reference:
            continue
        gap = difference(estimate, values[reference])
        amount = measure.amount(gap.value)
        word = words[0] if gap.value > 0 else words[1]
        if gap.beyond:
            sure.append(f"{label} is {amount} {word} (95% interval {measure.span(gap)})")
        elif gap.beyond is False:
            unsure.append(f"{label} ({measure.span(gap)})")
        else:
            level = amount == measure.amount(0)
            unknown.append(f"{label} is level" if level else f"{label} is {amount} {word}")
    sentences = []
    if sure:
        sentences.append(f"Compared with {reference}, {series(sure)}.")
    if unsure:
        sentences.append(
            f"No difference from {reference} is shown for {series(unsure)}; in brackets the 95% "
            f"interval of the difference{measure.unit and f' in{measure.unit}'}, which includes 0."
        )
    if unknown:
        sentences.append(
            f"Compared with {reference}, {series(unknown)}; there is no interval for "
            f"{'this difference' if len(unknown) == 1 else 'these differences'}, as "
            f"{_why(values.values())}."
        )
    return " ".join(sentences)


def _why(values: Iterable[Estimate]) -> str:
    """Why a difference has no interval."""
    if max(estimate.n for estimate in values) > 1:
        return "not every model has several seeds"
    return "each model is one run: other seeds may give another order"


def series(parts: list[str]) -> str:
    """ "a, b and c"; the first ones, if there are many."""
    if len(parts) > MOST:
        return f"{', '.join(parts[:MOST])} and {len(parts) - MOST} more"
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
