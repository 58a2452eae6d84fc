"""The files of a sweep's directory that say what its points are and how they ended.

    DIR/sweep.json       the points: name, label, fields, command, what they wait for
    DIR/tensorboard/     the curves of each point, below its label
    DIR/NAME/ended.json  how the last process of a point ended without a result
    DIR/NAME/train.log   its command and output

Reading them needs neither the config file nor JAX, and nothing here fails on damaged files.
"""

import contextlib
import dataclasses
import pathlib

from loopjax import paths
from loopjax.errors import UserError
from loopjax.files import read_json, write_json

FILE = "sweep.json"
ENDED = "ended.json"
LOG = "train.log"
FAILED, HALVED = "failed", "halved"  # how a point ended


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """A point as sweep.json describes it; fields that an earlier version did not write are empty.

    Attributes:
      name: name of the point and of its directory.
      workdir: directory of the run.
      label: short name, such as "lr=0.001 seed=0".
      overrides: config fields that the point sets.
      steps: length of the run; 0 if unknown.
      waits_for: point that it branches from, "NAME" or "NAME@STEP".
      arg: argument of the config file's `get_config`.
    """

    name: str
    workdir: pathlib.Path
    label: str = ""
    overrides: dict = dataclasses.field(default_factory=dict)
    steps: int = 0
    waits_for: str = ""
    arg: str = ""


def read_if_complete(path: pathlib.Path) -> dict | None:
    """The value in a JSON file; None if it is missing or damaged.

    A run that is training on another machine may be writing these files at this moment, over a
    network file system: a sweep waits for it and must not stop at half a file.
    """
    try:
        return read_json(path)
    except UserError:
        return None


def entries(directory) -> list[Entry] | None:
    """The points of a sweep; None if sweep.json is missing or damaged."""
    directory = paths.of(directory)
    saved = read_if_complete(directory / FILE)
    rows = saved.get("points") if isinstance(saved, dict) else None
    if not isinstance(rows, list):
        return None
    kinds = {"label": str, "overrides": dict, "steps": int, "waits_for": str, "arg": str}
    return [
        Entry(
            name=row["name"],
            workdir=directory / row["name"],
            **{key: row[key] for key, kind in kinds.items() if isinstance(row.get(key), kind)},
        )
        for row in rows
        if isinstance(row, dict) and isinstance(row.get("name"), str)
    ]


def point_of(workdir: pathlib.Path) -> tuple[Entry | None, list[Entry]]:
    """The point that a run is and all points of its sweep; (None, []) for a run without a sweep."""
    found = entries(workdir.parent) or []
    point = next((entry for entry in found if entry.name == workdir.name and entry.label), None)
    return point, found if point else []


def ended(workdir: pathlib.Path) -> dict:
    """How the last process of a point ended without a result; {} if it is not known.

    "how" is "failed" (then with "exit_code", negative for a signal, and "reason") or "halved" (with
    "step", "metric", "value", "rank" and "of"); "failures" counts the failed processes.
    """
    saved = read_if_complete(workdir / ENDED)
    return saved if isinstance(saved, dict) else {}


def record(workdir: pathlib.Path, how: str, **facts) -> None:
    """Writes how a process of a point ended."""
    failures = _failures(workdir) + (how == FAILED)
    with contextlib.suppress(OSError):  # it only informs
        write_json(workdir / ENDED, {"how": how, **facts, "failures": failures})


def forget(workdir: pathlib.Path) -> None:
    """Removes how the last process ended, because another one starts; the count is kept."""
    failures = _failures(workdir)
    with contextlib.suppress(OSError):
        if failures:
            write_json(workdir / ENDED, {"failures": failures})
        else:
            (workdir / ENDED).unlink(missing_ok=True)


def _failures(workdir: pathlib.Path) -> int:
    count = ended(workdir).get("failures", 0)
    return count if isinstance(count, int) else 0
