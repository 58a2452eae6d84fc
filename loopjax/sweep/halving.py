"""Asynchronous successive halving: the worse points of a sweep are stopped early (`--halving`).

ASHA, Algorithm 2 of Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning"
(arXiv:1810.05934), with a reduction factor of 1 / keep. Each rung is a step of the training. A point
that reaches a rung stops there, unless its value is among the best floor(keep * n) of the n points
that have reached the rung so far; it is then promoted, to the next rung or to the end. A point that
stopped is promoted later if it comes to be among the best. A free device takes a point that can be
promoted, from the highest rung down, and only then one that has not begun. Nobody waits for a rung to
be complete, and who was promoted stays promoted when others turn out to be better. The first to reach
a rung are compared with few others, so the algorithm draws new points at random: here in an order
that is fixed by their names, since the points of a grid often go from bad to good.

All points keep their own schedule of `config.steps` steps: a stopped one is a run that was
interrupted at the rung. Everything is derived from metrics.jsonl: the values, and that a point with
a value at a later rung was promoted. A sweep that is killed therefore goes on as it would have.
(A point that was killed between two rungs is promoted again if it is still among the best.)
"""

import dataclasses
import hashlib
import math
import pathlib

from loopjax.errors import UserError
from loopjax.files import read_rows
from loopjax.sweep.logs import last_rows

METRICS = ("eval/nll", "loss")
USAGE = "write --halving steps=100,300 keep=0.5 metric=eval/nll"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What `--halving` says.

    Attributes:
      steps: step of each rung, ascending.
      keep: share of the points of a rung that goes on.
      metric: "eval/nll", the held-out evaluation at that step, or "loss", the mean training loss of
        the last tenth of the steps before it; lower is better.
    """

    steps: tuple[int, ...]
    keep: float = 0.5
    metric: str = "eval/nll"


def parse(texts: list[str]) -> Settings:
    """The settings of "KEY=VALUE" texts; raises UserError."""
    given = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or key not in ("steps", "keep", "metric") or key in given:
            raise UserError(f"--halving {text!r} must be one of steps=, keep=, metric=; {USAGE}")
        given[key] = value
    parts = given.get("steps", "").split(",")
    # Digits of other scripts and underscores are no numbers here.
    steps = [
        int(part) if part.isascii() and part.isdigit() and len(part) < 12 else 0 for part in parts
    ]
    if min(steps) < 1 or sorted(set(steps)) != steps:
        raise UserError(
            f"--halving steps={given.get('steps', '')} must be ascending steps; {USAGE}"
        )
    try:
        keep = float(given.get("keep", 0.5))
    except ValueError:
        keep = math.nan
    if not 0 < keep < 1:
        raise UserError(f"--halving keep={given['keep']} must be a share between 0 and 1")
    metric = given.get("metric", METRICS[0])
    if metric not in METRICS:
        raise UserError(f"--halving metric={metric} must be one of {', '.join(METRICS)}")
    return Settings(tuple(steps), keep, metric)


def check(settings: Settings, points) -> None:
    """Raises UserError for rungs that a point does not reach or has no value at, or that leave none."""
    for point in points:
        config, last = point.config, settings.steps[-1]
        start = f"--halving: point {point.name} "
        if last >= config.steps:
            raise UserError(f"{start}ends at step {config.steps}, before or at the rung {last}")
        every = config.eval_every if config.eval_batches else 0
        if settings.metric != "loss" and (not every or any(s % every for s in settings.steps)):
            raise UserError(
                f"{start}is not evaluated at all of the steps {', '.join(map(str, settings.steps))} "
                f"(config.eval_every={every}); set config.eval_every, or metric=loss"
            )
        if config.init_from and config.init == "state":
            raise UserError(
                f"{start}branches from {config.init_from}; rungs compare runs that start at step 0"
            )
    left = len(points)
    for step in settings.steps:
        left = count(left, settings.keep)
        if not left:
            raise UserError(
                f"--halving: keep={settings.keep} leaves none of {len(points)} points after the rung "
                f"{step}; use a larger keep or fewer rungs"
            )


def count(n: int, keep: float) -> int:
    """How many of n points of a rung go on."""
    return math.floor(keep * n + 1e-9)  # 0.29 * 100 is below 29


def at_random(names: list[str]) -> list[str]:
    """The names in an order that has nothing to do with that of the sweep, always the same."""
    return sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())


def best(values: dict[str, float], keep: float) -> list[str]:
    """The names of the best share of a rung, the best first; NaN is worst, the first of equals better."""
    ranked = ranking(values)
    return ranked[: count(len(ranked), keep)]


def ranking(values: dict[str, float]) -> list[str]:
    """All names of a rung, the best first."""
    return sorted(values, key=lambda name: math.inf if math.isnan(values[name]) else values[name])


def values_at(workdir: pathlib.Path, settings: Settings) -> dict[int, float]:
    """{rung: value} of a run for the rungs that it has reached, from metrics.jsonl."""
    rows = last_rows(workdir)
    if not rows or rows[-1]["step"] < settings.steps[0]:
        return {}
    column = {
        row["step"]: row[settings.metric]
        for row in read_rows(workdir / "metrics.jsonl")
        if isinstance(row, dict) and isinstance(row.get(settings.metric), float)
    }
    found = {}
    for step in settings.steps:
        if step in column:
            first = step if settings.metric != "loss" else step - step // 10
            window = [column[s] for s in range(first, step + 1) if s in column]
            found[step] = sum(window) / len(window)
    return found


class Halving:
    """The state of the rungs.

    Attributes:
      values: {step of a rung: {point: value}} of the points that have reached it.
      promoted: {step of a rung: points that went on from there}.
    """

    def __init__(self, settings: Settings):
        self.settings = settings
        self.values: dict[int, dict[str, float]] = {step: {} for step in settings.steps}
        self.promoted: dict[int, set[str]] = {step: set() for step in settings.steps}

    def read(self, point) -> None:
        """Takes the values of a point from its log."""
        name, steps = point.name, self.settings.steps
        awaited = next(
            (s for s in steps if name not in self.values[s] and name not in self.promoted[s]), None
        )
        rows = last_rows(point.workdir) if awaited is not None else []
        if rows and rows[-1]["step"] >= awaited:
            for step, value in values_at(point.workdir, self.settings).items():
                self.reach(name, step, value)

    def reach(self, name: str, step: int, value: float) -> None:
        """A point has reached a rung, and so was promoted from all rungs before."""
        self.values[step].setdefault(name, value)
        for before in self.settings.steps:
            if before < step:
                self.promoted[before].add(name)

    def rung(self, name: str) -> int | None:
        """The next rung of a point, or the one where it stands; None on the way to the end."""
        return next((s for s in self.settings.steps if name not in self.promoted[s]), None)

    def stands(self, name: str) -> bool:
        """Whether a point stands at a rung: it has reached it, and is not promoted."""
        rung = self.rung(name)
        return rung is not None and name in self.values[rung]

    def can_go_on(self, name: str) -> bool:
        """Whether a point may train: it does not stand at a rung, or is among its best."""
        return not self.stands(name) or name in best(
            self.values[self.rung(name)], self.settings.keep
        )

    def promote(self, name: str) -> None:
        """A point that stands at a rung goes on."""
        if self.stands(name):
            self.promoted[self.rung(name)].add(name)

    def order(self, names: list[str], begun: set[str]) -> list[str]:
        """The points that may train, in the order in which a free device takes them.

        First those that are between two rungs (interrupted), then those that can be promoted, from
        the highest rung down, then those that have not begun.
        """
        free = [name for name in names if self.can_go_on(name)]
        standing = [name for name in free if self.stands(name)]
        standing.sort(key=lambda name: ranking(self.values[self.rung(name)]).index(name))
        standing.sort(key=self.rung, reverse=True)
        others = [name for name in free if not self.stands(name)]
        between = [n for n in others if n in begun or n in self.promoted[self.settings.steps[0]]]
        return [*between, *standing, *(n for n in others if n not in between)]

    def standing(self, name: str) -> dict:
        """Where a stopped point stands: "step", "metric", "value", "rank" (from 1) and "of"."""
        rung = self.rung(name)
        values = self.values[rung]
        return {
            "step": rung, "metric": self.settings.metric, "value": values[name],
            "rank": ranking(values).index(name) + 1, "of": len(values),
        }  # fmt: skip
