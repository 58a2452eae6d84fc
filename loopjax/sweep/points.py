"""The points of a sweep: what `sweep(add)` of a config file asks for, checked before any starts.

    def sweep(add):
        for variant in ("standard", "loop"):
            for seed in (0, 1, 2):
                add(arg=variant, seed=seed)

`add(**fields)`, or `add({"model.d_model": 64})` for fields with a dot, names the fields of the
config that a point changes; `arg` is what `get_config` of the file is called with, `name` the name
of the run. The command line of a point is that of a single run.
"""

import dataclasses
import functools
import json
import pathlib
import re
import runpy
import shlex
import sys
from collections.abc import Callable

from absl import flags as absl_flags
from ml_collections import ConfigDict

from loopjax import config as config_lib
from loopjax import run
from loopjax.config_flags import parse
from loopjax.errors import UserError, first_line
from loopjax.files import write_json

FILE = "sweep.json"
RESERVED = ("slurm",)  # what else lies in the directory of a sweep
LONGEST_NAME = 120


@dataclasses.dataclass(frozen=True)
class Point:
    """One run of a sweep.

    Attributes:
      name: of the run, and of its directory.
      overrides: the config fields that it sets.
      workdir: directory of the run.
      command: what trains it, as arguments.
      config: with nothing left open.
    """

    name: str
    overrides: dict
    workdir: pathlib.Path
    command: list[str]
    config: ConfigDict

    @property
    def log(self) -> pathlib.Path:
        """What training it said."""
        return self.workdir / "train.log"

    def result(self) -> dict | None:
        """What `result.json` says; None before the run is finished."""
        return read_json(self.workdir / "result.json")


def read_json(path: pathlib.Path) -> dict | None:
    """What a JSON file holds; None where there is none."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def points(config: str, overrides: list[str], directory) -> list[Point]:
    """The points of a sweep in the order in which they were added.

    Args:
      config: FILE or FILE:ARG, as for `loopjax train`; ARG is for points that name none.
      overrides: "--config.key=value" for all points.
      directory: of the sweep; each point gets a directory in it.

    Raises UserError, with the point's name, for everything that can be known without a device and
    without data: unknown fields, values that no run can have, a directory of another run.
    """
    path, _, default_arg = config.partition(":")
    found: dict[str, Point] = {}
    for asked in _asked(path):
        if asked.arg is not None and default_arg:
            raise UserError(f"--config={config} contradicts the sweep, whose points set arg")
        point = _point(path, asked, default_arg, overrides, pathlib.Path(directory))
        if point.name in found:
            raise UserError(
                f"two points of sweep(add) in {path} are named {point.name}; give each a name="
            )
        found[point.name] = point
    if not found:
        raise UserError(f"sweep(add) in {path} adds no point")
    for point in found.values():
        _check_directory(point)
    return list(found.values())


def write(directory, config: str, found: list[Point]) -> None:
    """Writes sweep.json: the points with their overrides and commands."""
    directory = pathlib.Path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        rows = [
            {"name": p.name, "overrides": p.overrides, "command": shlex.join(p.command)}
            for p in found
        ]
        write_json(directory / FILE, {"config": config, "points": rows})
    except OSError as error:
        raise UserError(f"--workdir {directory} cannot be written: {error.strerror}") from None


@dataclasses.dataclass(frozen=True)
class _Asked:
    """The arguments of one `add`."""

    arg: str | None
    name: str | None
    fields: dict


def _asked(path: str) -> list[_Asked]:
    found = []

    def add(fields=None, /, *, arg=None, name=None, **more) -> None:
        arg = None if arg is None else str(arg)
        found.append(_Asked(arg, name, {**(fields or {}), **more}))

    sweep = _load(path)
    try:
        sweep(add)
    except UserError:
        raise
    except Exception as error:  # the user's own code
        raise UserError(_told(path, "sweep(add)", error)) from error
    return found


def _load(path: str) -> Callable:
    """The function `sweep` of a config file."""
    if not pathlib.Path(path).is_file():
        raise UserError(f"--config={path} is not a file")
    try:
        sweep = runpy.run_path(path).get("sweep")
    except Exception as error:  # the user's own code
        raise UserError(_told(path, "the file", error)) from error
    if not callable(sweep):
        raise UserError(f"--config={path} defines no sweep(add)")
    return sweep


def _told(path: str, where: str, error: Exception) -> str:
    return f"--config={path}: {where} raised {type(error).__name__}: {first_line(error)}"


def _point(path, asked: _Asked, default_arg: str, overrides, directory: pathlib.Path) -> Point:
    arg = default_arg if asked.arg is None else asked.arg
    name = _default_name(asked) if asked.name is None else str(asked.name)
    _check_name(name)
    for override in overrides:
        match = re.match(r"--?(?:no)?config\.([\w.]+)", override)
        for field in asked.fields if match else ():
            if _overlap(match[1], field):
                raise UserError(
                    f"--config.{match[1]} contradicts the sweep, whose point {name} sets "
                    f"config.{field}"
                )
    own = [f"--config.{field}={_text(value)}" for field, value in asked.fields.items()]
    workdir = directory / name
    argv = [f"--config={path}" + (f":{arg}" if arg else ""), f"--workdir={workdir}"]
    argv += [*overrides, *own]
    try:
        config, _ = parse("train", "", argv, _define, required=("workdir",))
        config = run.outline(config).config
    except UserError as error:
        raise UserError(f"point {name}: {error}") from None
    command = [sys.executable, "-m", "loopjax", "train", *argv]
    plain = {field: config_value(config, field) for field in asked.fields}
    return Point(name, plain, workdir, command, config)


def _define(values) -> None:
    absl_flags.DEFINE_string("workdir", None, "directory of the run", flag_values=values)


def config_value(config: ConfigDict, field: str):
    """The value of "model.d_model", say, as JSON has it."""
    value = functools.reduce(lambda node, part: node[part], field.split("."), config)
    return value.to_dict() if isinstance(value, ConfigDict) else value


def _overlap(a: str, b: str) -> bool:
    """Whether two fields are the same, or one of them is a part of the other."""
    return f"{a}.".startswith(f"{b}.") or f"{b}.".startswith(f"{a}.")


def _text(value) -> str:
    """A value as the command line takes it."""
    value = value.item() if hasattr(value, "item") else value  # NumPy's numbers
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, ConfigDict):
        value = value.to_dict()
    return json.dumps(value) if isinstance(value, dict) else str(value)


def _default_name(asked: _Asked) -> str:
    """What was changed, in characters that every file system takes: "lidas,seed=1"."""
    parts = [asked.arg] if asked.arg else []
    for field, value in asked.fields.items():
        text = _text(value)
        if isinstance(value, dict):
            text = "+".join(f"{key}-{_text(part)}" for key, part in value.items())
        parts.append(f"{field}={text}")
    return re.sub(r"[^\w.,=+-]+", "_", ",".join(parts), flags=re.ASCII) or "default"


def _check_name(name: str) -> None:
    allowed = rf"\w[\w.,=+-]{{0,{LONGEST_NAME - 1}}}"
    if not re.fullmatch(allowed, name, re.ASCII) or name in RESERVED:
        raise UserError(
            f"{name!r} cannot be the name of a point; give it a name= of at most {LONGEST_NAME} "
            "letters, digits and . , = + - _"
        )


def _check_directory(point: Point) -> None:
    """Raises UserError when a point's directory holds another run.

    What an unfinished run may still change (its future) is left to `train`; a finished one must be
    the run that the point asks for.
    """
    saved = read_json(point.workdir / "config.json")
    if saved is None:
        return
    current = point.config.to_dict()
    problems = config_lib.contradictions(saved, current)
    if point.result() is not None:
        problems += _other_future(saved, current)
    if problems:
        raise UserError(
            f"point {point.name}: {point.workdir} holds another run: " + "; ".join(problems)
        )


def _other_future(saved: dict, current: dict) -> list[str]:
    """The fields in which a finished run is not the one that a config asks for."""
    problems, default = [], config_lib.default().to_dict()
    for name in config_lib.FUTURE_FIELDS:
        # What the run knew nothing of had the value that is the default now.
        was, asked = saved.get(name, default[name]), current[name]
        if isinstance(was, dict) and name != "mixture":
            was = default[name] | was
        if was != asked:
            problems.append(f"config.{name}={asked} (the run has {was})")
    return problems
