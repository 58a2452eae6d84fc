"""Effects with intervals over seeds and items, and verdicts by a rule that is fixed before the runs.

    more = effect(grown - standard)      # [seeds, items]: the same seeds and items of both
    Claim("LIDAS solves more", "+13.4", more, 0.03).verdict

An interval has two sources of noise: other seeds, and other items, which all seeds share. Both are
resampled (Owen 2007, "The pigeonhole bootstrap"), S - 1 of S seeds, so that the variance between few seeds is
not underestimated; the interval is the mean ± t(S - 1) of the resampled deviation, at 95%.
"""

import dataclasses
import math

import numpy as np

from loopjax import intervals

REPRODUCED, PARTLY, NOT_REPRODUCED = "reproduced", "partly", "not reproduced"
UNDECIDED = "undecided"
VERDICTS = (REPRODUCED, PARTLY, NOT_REPRODUCED, UNDECIDED)

POINTS, NATS = "points", "nats"  # percentage points; any other unit is shown as it is
RESAMPLES = 2000
MOST_SEEDS = 1000  # more are not proposed


@dataclasses.dataclass(frozen=True)
class Effect:
    """A difference between models, or between two uses of one model.

    Attributes:
      mean: over seeds and items.
      half: half the width of its 95% interval; infinite for a single seed.
      seeds: number of seeds.
      items: number of items; 0 where only one value per seed is known.
      seed_deviation: standard deviation between seeds, without the noise of the items.
      item_deviation: standard error from the items, which more seeds do not reduce.
    """

    mean: float
    half: float
    seeds: int
    items: int
    seed_deviation: float
    item_deviation: float

    @property
    def low(self) -> float:
        return self.mean - self.half

    @property
    def high(self) -> float:
        return self.mean + self.half

    def half_with(self, seeds: int) -> float:
        """Half the width of the interval with another number of seeds, all else equal."""
        if seeds < 2:
            return math.inf
        variance = self.seed_deviation**2 / seeds + self.item_deviation**2
        return intervals.student_t(seeds - 1) * math.sqrt(variance)

    def text(self, unit: str = POINTS) -> str:
        """ "+3.1 [+1.0, +5.2] points": shares in percentage points, all else as it is."""
        mean, low, high = (_number(value, unit) for value in (self.mean, self.low, self.high))
        interval = f"[{low}, {high}]" if math.isfinite(self.half) else "[one seed]"
        return f"{mean} {interval} {unit}".rstrip()


def _number(value: float, unit: str) -> str:
    return f"{100 * value:+.1f}" if unit == POINTS else f"{value:+.3f}"


def effect(differences) -> Effect:
    """The effect of differences [seeds, items], or [seeds], with its interval.

    Raises:
      ValueError: no seed, no item, or a value that is not finite.
    """
    values = np.asarray(differences, float)
    if values.ndim == 1:
        values = values[:, None]
    if values.ndim != 2 or not values.size or not np.isfinite(values).all():
        raise ValueError(
            f"differences must be finite, [seeds, items] or [seeds], not {values.shape}"
        )
    seeds, items = values.shape
    mean = float(values.mean())
    by_items = _deviation(values, seeds=False) if items > 1 else 0.0
    if seeds == 1:
        return Effect(mean, math.inf, 1, items if items > 1 else 0, 0.0, by_items)
    whole = _deviation(values, seeds=True)
    return Effect(
        mean,
        intervals.student_t(seeds - 1) * whole,
        seeds,
        items if items > 1 else 0,
        math.sqrt(seeds * max(whole**2 - by_items**2, 0.0)),
        by_items,
    )


def _deviation(values: np.ndarray, *, seeds: bool) -> float:
    """Standard deviation of the mean over resampled items, and over resampled seeds if asked for."""
    rng = np.random.default_rng(0)
    n_seeds, n_items = values.shape
    by_seed = np.full((RESAMPLES, n_seeds), 1 / n_seeds)
    if seeds:
        by_seed = rng.multinomial(n_seeds - 1, by_seed[0], RESAMPLES) / (n_seeds - 1)
    if n_items == 1:
        return float((by_seed @ values[:, 0]).std(ddof=1))
    by_item = rng.multinomial(n_items, np.full(n_items, 1 / n_items), RESAMPLES) / n_items
    return float(((by_seed @ values) * by_item).sum(axis=1).std(ddof=1))


@dataclasses.dataclass(frozen=True)
class Claim:
    """A sentence of a paper that an effect decides.

    Attributes:
      text: the sentence.
      paper: the papers' number, as text.
      effect: positive where the sentence is true.
      least: the smallest effect that counts. Negative for a sentence that says "not less": it is true
        above this.
      blocked: a sentence that says why it cannot be decided, whatever the effect; "" if it can.
      unit: of the effect; shares are shown in percentage points.
    """

    text: str
    paper: str
    effect: Effect
    least: float
    blocked: str = ""
    unit: str = POINTS

    @property
    def verdict(self) -> str:
        """Reproduced: the interval is above 0, or above a negative `least`, and does not exclude
        `least`. Partly: above 0, but less than `least`. Not reproduced: `least` is excluded.
        Undecided: the interval holds both, or the claim is blocked.
        """
        if self.blocked:
            return UNDECIDED
        if self.effect.low > min(0.0, self.least):
            return REPRODUCED if self.effect.high >= self.least else PARTLY
        return NOT_REPRODUCED if self.effect.high < self.least else UNDECIDED

    @property
    def seeds_needed(self) -> int | None:
        """Seeds that would decide an undecided claim if the mean stays; None where none would."""
        mean = self.effect.mean
        room = max(mean - min(0.0, self.least), self.least - mean)
        numbers = range(2, MOST_SEEDS + 1)
        return next((n for n in numbers if self.effect.half_with(n) < room), None)

    @property
    def reason(self) -> str:
        """Why it is undecided, as a sentence; "" otherwise."""
        if self.verdict != UNDECIDED or self.blocked:
            return self.blocked
        if self.effect.seeds < 2:
            return "One seed has no interval."
        if n := self.seeds_needed:
            more = f"about {n} seeds"
        elif self.effect.item_deviation:
            more = "more items, not more seeds,"
        else:
            more = f"over {MOST_SEEDS:,} seeds"
        return f"The interval holds both no effect and the one looked for; {more} would decide."

    def row(self) -> dict:
        """The claim as JSON, for docs/results.md."""
        return {
            "claim": self.text,
            "paper": self.paper,
            "here": self.effect.text(self.unit),
            "looked for": "above " * (self.least < 0)
            + f"{_number(self.least, self.unit)} {self.unit}".rstrip(),
            "seeds": self.effect.seeds,
            "verdict": self.verdict,
            "reason": self.reason,
        }


def missing(control: Effect, what: str) -> str:
    """For `Claim.blocked`: a sentence if an effect that a claim needs is not above 0, else ""."""
    if control.low > 0:
        return ""
    return f"Not decidable here: {what} has {control.text()}."


def together(claims: list[Claim]) -> str:
    """The verdict on an experiment: that of its claims where they agree, partly where one holds."""
    found = {claim.verdict for claim in claims}
    if len(found) == 1:
        return found.pop()
    return PARTLY if found & {REPRODUCED, PARTLY} else UNDECIDED
