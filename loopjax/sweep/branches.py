"""Points that branch from other points of their sweep, and the order that follows.

A point whose `config.init_from` names the directory of another point (by `point("base", 850)`, by
what `add` returned, or by its path) waits until that run is finished or, for DIR@STEP, until it has
saved that step. Points are anything with `name`, `workdir`, `config` and `base`.
"""

import dataclasses
import difflib
import os
import pathlib

from loopjax.errors import UserError
from loopjax.step_grid import due, log_steps

FIELD = "init_from"


@dataclasses.dataclass(frozen=True)
class Reference:
    """Another point of the sweep, as a value of `init_from`.

    Attributes:
      name: name of the point.
      step: step of the checkpoint; None for the newest one of the finished run.
    """

    name: str
    step: int | None = None

    def at(self, step: int) -> "Reference":
        """The checkpoint of the same point at a step."""
        return point(self.name, step)

    def __str__(self) -> str:
        return self.name if self.step is None else f"{self.name}@{self.step}"


def point(name: str, step: int | None = None) -> Reference:
    """The point of a name, which may be added later: `add(init_from=point("base", 850))`.

    `step` is that of the checkpoint to branch from; by default the newest one, when it is finished.
    """
    if not isinstance(name, str) or not name:
        raise UserError(f"point({name!r}): the name of a point must be a text")
    if step is not None and (type(step) is not int or step < 0):
        raise UserError(f"point({name!r}, {step!r}): the step must be a whole number")
    return Reference(name, step)


def path_of(reference: Reference, directory: pathlib.Path) -> str:
    """The value of `config.init_from` for a point in the directory of a sweep."""
    path = str(directory / reference.name)
    return path if reference.step is None else f"{path}@{reference.step}"


def base_in(init_from: str, directory: pathlib.Path, names) -> Reference | None:
    """The point that a value of `config.init_from` names by its path; None if it names none."""
    text, at, number = init_from.rpartition("@")
    path, step = (text, int(number)) if at and number.isdecimal() else (init_from, None)
    parts = pathlib.Path(os.path.relpath(path or ".", directory)).parts
    if not parts or parts[0] not in names or parts[1:2] not in ((), ("checkpoints",)):
        return None
    if len(parts) == 3 and parts[2].isdecimal():  # DIR/checkpoints/STEP
        step = int(parts[2])
    return Reference(parts[0], step)


def dependencies(points) -> dict[str, set[str]]:
    """{name: names of the points that it waits for}, for every point of a sweep."""
    return {p.name: {p.base.name} if p.base else set() for p in points}


def in_order(points) -> list:
    """The points in an order in which each comes after the one it branches from."""
    by_name = {p.name: p for p in points}
    ordered: dict[str, object] = {}

    def place(one) -> None:
        if one.base and one.base.name in by_name and one.base.name not in ordered:
            place(by_name[one.base.name])
        ordered.setdefault(one.name, one)

    for one in points:
        place(one)
    return list(ordered.values())


def ready(point) -> bool:
    """Whether a point can be trained: what it branches from is there, or it has begun already."""
    if point.base is None or _saved(point.workdir):
        return True
    base = point.workdir.with_name(point.base.name)
    return (base / "result.json").is_file() or point.base.step in _saved(base)


def check(points) -> None:
    """Raises UserError for a base that does not exist, a circle, and a step that is not kept."""
    by_name = {p.name: p for p in points}
    for one in points:
        if one.base and one.base.name not in by_name:
            close = difflib.get_close_matches(one.base.name, by_name, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise UserError(
                f"point {one.name}: {FIELD} names the point {one.base.name!r}, which the sweep does "
                f"not have{hint}"
            )
    for one in points:
        _check_circle(one, by_name)
    for one in points:
        if one.base and one.base.step is not None:
            _check_step(one, by_name[one.base.name])


def _check_circle(one, by_name: dict) -> None:
    path = [one.name]
    while by_name[path[-1]].base:
        path.append(by_name[path[-1]].base.name)
        if path[-1] in path[:-1]:
            circle = path[path.index(path[-1]) :]
            raise UserError(
                f"points that branch from each other in a circle: {' from '.join(circle)}"
            )


def _check_step(one, base) -> None:
    """Raises UserError if a run saves no checkpoint at the step, or removes it later."""
    step, config = one.base.step, base.config
    there = (base.workdir / "result.json").is_file() and step in _saved(base.workdir)
    if there or _saved(one.workdir) or config.patience:  # with patience, the best steps are saved
        return
    every = config.checkpoint_every
    saved = {config.steps} | (set(range(every, config.steps, every)) if every else set())
    kept = {s for s in log_steps(config.keep_per_decade, config.steps) if s < config.steps}
    saved |= kept
    start = f"point {one.name}: {FIELD} is step {step} of {base.name}, which"
    if step not in saved:
        raise UserError(
            f"{start} saves no such step (config.checkpoint_every={every}, config.steps={config.steps})"
        )
    permanent = due(step, config.keep_every) or step in kept
    later = sum(other > step for other in saved)
    if config.keep_last and later >= config.keep_last and not permanent:
        raise UserError(
            f"{start} keeps only its newest {config.keep_last} checkpoints; set config.keep_every or "
            f"config.keep_last=0 for {base.name}"
        )


def _saved(workdir: pathlib.Path) -> set[int]:
    """Steps of the complete checkpoints of a run."""
    files = (workdir / "checkpoints").glob("*/meta/metadata")
    return {int(f.parent.parent.name) for f in files if f.parent.parent.name.isdecimal()}
