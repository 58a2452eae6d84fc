"""The points of a sweep, as `sweep(add)` of a config file adds them, checked before any starts.

    def sweep(add):
        for variant in ("standard", "loop"):
            for seed in (0, 1, 2):
                add(arg=variant, seed=seed)

`add(**fields)`, or `add({"model.d_model": 64})` for fields with a dot, sets fields of the config;
`arg` is the argument of the file's `get_config`, `name` the name of the run (by default the changed
fields). It returns a reference to the point, for points that branch from it:
`add(name="math", init_from=base.at(850))` (`loopjax.sweep.branches`). The command line of a point is
that of a single run.
"""

import dataclasses
import functools
import pathlib
import re
import runpy
import shlex
import sys
from collections.abc import Callable

from absl import flags as absl_flags
from ml_collections import ConfigDict

from loopjax import config as config_lib
from loopjax import config_saved, run
from loopjax.config_flags import parse, raised_inside
from loopjax.errors import UserError, first_line
from loopjax.files import write_json
from loopjax.sweep import branches, names
from loopjax.sweep.branches import Reference
from loopjax.sweep.directory import FILE, LOG, read_if_complete


@dataclasses.dataclass(frozen=True)
class Point:
    """One run of a sweep.

    Attributes:
      name: name of the run and of its directory.
      overrides: config fields that the point sets.
      workdir: directory of the run.
      command: command that trains it, as a list of arguments.
      config: the resolved config.
      base: the point of the sweep that it branches from, and the step.
      arg: argument of the file's `get_config`; None if the point does not set it.
      label: short name, such as "lr=0.001 seed=0".
    """

    name: str
    overrides: dict
    workdir: pathlib.Path
    command: list[str]
    config: ConfigDict
    base: Reference | None = None
    arg: str | None = None
    label: str = ""

    @property
    def log(self) -> pathlib.Path:
        """The file that the output of its training is appended to."""
        return self.workdir / LOG

    def result(self) -> dict | None:
        """The content of result.json; None before the run is finished."""
        return read_if_complete(self.workdir / "result.json")


def points(config: str, overrides: list[str], directory) -> list[Point]:
    """The points of a sweep in the order in which they were added.

    Args:
      config: FILE or FILE:ARG, as for `loopjax train`; ARG applies to points without `arg`.
      overrides: "--config.key=value" for all points.
      directory: directory of the sweep; each point gets a directory in it.

    Raises UserError, with the point's name, for everything that can be checked without a device and
    without data: unknown fields, invalid values, a directory of another run.
    """
    path, _, default_arg = config.partition(":")
    directory = pathlib.Path(directory)
    calls = _added(path, directory)
    if not calls:
        raise UserError(f"sweep(add) in {path} adds no point")
    found = []
    for added in calls.values():
        if added.arg is not None and default_arg:
            raise UserError(f"--config={config} contradicts the sweep, whose points set arg")
        found.append(_point(path, added, default_arg, overrides, directory))
    labels = names.labels([(a.name, a.arg, None if a.named else a.fields) for a in calls.values()])
    found = [
        dataclasses.replace(
            point, base=_base(point, calls[point.name], directory, calls), label=labels[point.name]
        )
        for point in found
    ]
    branches.check(found)
    for point in found:
        _check_directory(point)
    return found


def _base(point: Point, added: "_Added", directory: pathlib.Path, all_names) -> Reference | None:
    """The other point that the `init_from` of a point names, if it names one."""
    base = added.fields.get(branches.FIELD)
    if isinstance(base, Reference):
        return base
    return branches.base_in(point.config.init_from, directory, all_names)


def write(directory, config: str, sweep: list[Point]) -> None:
    """Writes sweep.json: the points with their overrides and commands (`directory.Entry`)."""
    directory = pathlib.Path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        rows = [
            {
                "name": p.name, "overrides": p.overrides, "command": shlex.join(p.command),
                "steps": p.config.steps, "waits_for": str(p.base or ""), "arg": p.arg or "",
                "label": p.label,
            }
            for p in sweep
        ]  # fmt: skip
        write_json(directory / FILE, {"config": config, "points": rows})
    except OSError as error:
        raise UserError(f"--workdir {directory} cannot be written: {error.strerror}") from None


@dataclasses.dataclass(frozen=True)
class _Added:
    """The arguments of one `add`; `named` is whether the user has chosen the name."""

    arg: str | None
    name: str
    fields: dict
    named: bool


def _added(path: str, directory: pathlib.Path) -> dict[str, _Added]:
    """The arguments of every `add` by the name of the point, in order."""
    calls: dict[str, _Added] = {}

    def add(fields=None, /, *, arg=None, name=None, **more) -> Reference:
        arg = None if arg is None else str(arg)
        fields = {**(fields or {}), **more}
        named = name is not None
        name = str(name) if named else names.default(arg, fields, directory)
        names.check(name)
        if name in calls:
            raise UserError(
                f"two points of sweep(add) in {path} have the name {name}; set name= for each"
            )
        calls[name] = _Added(arg, name, fields, named)
        return Reference(name)

    sweep = _load(path)
    try:
        sweep(add)
    except UserError:
        raise
    except Exception as error:  # the user's own code
        raise UserError(_failure(path, "sweep(add)", error)) from error
    return calls


def _load(path: str) -> Callable:
    """The function `sweep` of a config file."""
    if not pathlib.Path(path).is_file():
        raise UserError(f"--config={path} is not a file")
    try:
        sweep = runpy.run_path(path).get("sweep")
    except Exception as error:  # the user's own code
        raise UserError(_failure(path, "the file", error)) from error
    if not callable(sweep):
        raise UserError(f"--config={path} defines no sweep(add)")
    return sweep


def _failure(path: str, where: str, error: Exception) -> str:
    inside = raised_inside(path, error)
    return inside or f"--config={path}: {where} raised {type(error).__name__}: {first_line(error)}"


def _point(path, added: _Added, default_arg: str, overrides, directory: pathlib.Path) -> Point:
    arg, name = default_arg if added.arg is None else added.arg, added.name
    for override in overrides:
        match = re.match(r"--?(?:no)?config\.([\w.]+)", override)
        for field in added.fields if match else ():
            if _overlap(match[1], field):
                raise UserError(
                    f"--config.{match[1]} contradicts the sweep, whose point {name} sets "
                    f"config.{field}"
                )
    own = [
        f"--config.{field}={names.text(_path(name, field, value, directory))}"
        for field, value in added.fields.items()
    ]
    workdir = directory / name
    argv = [f"--config={path}" + (f":{arg}" if arg else ""), f"--workdir={workdir}"]
    argv += [*overrides, *own]
    try:
        config, _ = parse("train", "", argv, _define, required=("workdir",))
        config = run.outline(config).config
    except UserError as error:
        raise UserError(f"point {name}: {error}") from None
    command = [sys.executable, "-m", "loopjax", "train", *argv]
    plain = {field: config_value(config, field) for field in added.fields}
    return Point(name, plain, workdir, command, config, arg=added.arg)


def _path(name: str, field: str, value, directory: pathlib.Path):
    """The value of a field, with the path in the place of a point."""
    if not isinstance(value, Reference):
        return value
    if field != branches.FIELD:
        raise UserError(
            f"point {name}: config.{field} cannot be a point; only {branches.FIELD} can"
        )
    return branches.path_of(value, directory)


def _define(values) -> None:
    absl_flags.DEFINE_string("workdir", None, "directory of the run", flag_values=values)


def config_value(config: ConfigDict, field: str):
    """The value of a field such as "model.d_model", as JSON stores it."""
    value = functools.reduce(lambda node, part: node[part], field.split("."), config)
    return value.to_dict() if isinstance(value, ConfigDict) else value


def _overlap(a: str, b: str) -> bool:
    """Whether two fields are the same, or one contains the other."""
    return f"{a}.".startswith(f"{b}.") or f"{b}.".startswith(f"{a}.")


def _check_directory(point: Point) -> None:
    """Raises UserError if a point's directory belongs to another run.

    Fields that an unfinished run may still change are left to `train`; a finished run must be
    exactly the run of the point.
    """
    saved = read_if_complete(point.workdir / "config.json")
    if saved is None:
        return
    current = point.config.to_dict()
    problems = config_saved.contradictions(saved, current)
    if point.result() is not None:
        problems += _other_future(saved, current)
    if problems:
        raise UserError(
            f"point {point.name}: {point.workdir} belongs to another run: " + "; ".join(problems)
        )


def _other_future(saved: dict, current: dict) -> list[str]:
    """The fields that a resumed run may change, where a finished run differs from a config."""
    problems = []
    default = config_lib.default().to_dict()
    for name in config_lib.FUTURE_FIELDS:
        # A field that did not exist when the run started has its default.
        was = saved.get(name, default[name])
        wanted = current[name]
        if isinstance(was, dict) and name != "mixture":
            was = default[name] | was
        if was != wanted:
            problems.append(f"config.{name}={wanted} (the run has {was})")
    return problems
