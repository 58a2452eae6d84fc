"""The points that `loopjax sweep --retry failed` or `--retry NAME ...` trains; no others are trained."""

import difflib

from loopjax.errors import UserError
from loopjax.sweep import branches
from loopjax.sweep.directory import FAILED
from loopjax.sweep.local import trainer_of
from loopjax.sweep.points import Point
from loopjax.sweep.status import has_failed


def chosen(points: list[Point], wanted: list[str]) -> list[Point]:
    """The points to train now, in the order of the sweep.

    Args:
      points: all points of the sweep.
      wanted: names of points, or "failed" for all that failed.

    Raises UserError for a name that does not exist, for a point that is finished or being trained,
    and for one that would wait for a point that is not trained.
    """
    names = {name for name in wanted if name != FAILED}
    for name in wanted:
        if name != FAILED:
            _check(name, points)
    if FAILED in wanted:
        names |= {
            p.name
            for p in points
            if p.result() is None and trainer_of(p) is None and has_failed(p.workdir)
        }
    found = [p for p in points if p.name in names]
    running = {p.name for p in points if trainer_of(p) is not None}
    for point in found:
        if not branches.ready(point) and point.base.name not in names | running:
            raise UserError(
                f"--retry {point.name}: it waits for {point.base}, which is not finished; add "
                f"{point.base.name}"
            )
    return found


def _check(name: str, points: list[Point]) -> None:
    point = next((p for p in points if p.name == name), None)
    if point is None:
        close = difflib.get_close_matches(
            name, [FAILED, *(p.name for p in points)], n=1, cutoff=0.4
        )
        hint = f"did you mean {close[0]}?" if close else "loopjax sweep --status DIR lists them"
        raise UserError(f"--retry {name}: the sweep has no such point; {hint}")
    if point.result() is not None:
        raise UserError(
            f"--retry {name}: it is finished; to train it again, remove {point.workdir} first"
        )
    trainer = trainer_of(point)
    if trainer is not None:
        who = f" (pid {trainer['pid']} on {trainer['host']})" if trainer else ""
        raise UserError(f"--retry {name}: a process is training it{who}")
