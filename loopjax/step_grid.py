"""Grids of steps at which a run evaluates and saves, and which checkpoints it keeps."""

import dataclasses
import math


def due(step: int, every: int) -> bool:
    """Whether a step is a multiple of `every`; never for 0."""
    return every > 0 and step % every == 0


def log_spaced(step: int, per_decade: int) -> bool:
    """Whether a step is 10^(k / per_decade), rounded, for a whole k; never for 0 per decade."""
    if per_decade < 1 or step < 1:
        return False
    k = math.floor(per_decade * math.log10(step))
    return any(round(10 ** (near / per_decade)) == step for near in (k - 1, k, k + 1, k + 2))


def log_steps(per_decade: int, stop: int) -> list[int]:
    """The log-spaced steps up to `stop`, ascending."""
    if per_decade < 1:
        return []
    last = math.ceil(per_decade * math.log10(max(stop, 1)))
    steps = {round(10 ** (k / per_decade)) for k in range(last + 1)}
    return sorted(step for step in steps if step <= stop)


@dataclasses.dataclass(frozen=True)
class Kept:
    """Which checkpoints to keep: a preservation policy of Orbax.

    Attributes:
      last: number of newest checkpoints besides the permanent ones; 0 keeps all.
      every: those at multiples of this step are permanent; 0 for none.
      per_decade: those at this many log-spaced steps per factor of 10 are too; 0 for none.
    """

    last: int = 0
    every: int = 0
    per_decade: int = 0

    def should_preserve(self, checkpoints, *, context=None) -> list[bool]:
        steps = [checkpoint.step for checkpoint in checkpoints]
        if not self.last:
            return [True] * len(steps)
        permanent = {s for s in steps if due(s, self.every) or log_spaced(s, self.per_decade)}
        newest = [step for step in steps if step not in permanent][-self.last :]
        return [step in permanent or step in newest for step in steps]


KEEP_ALL = Kept()
