"""Results of diagnostics on disk: NAME.json, and NAME.npz for long arrays.

`about` is everything needed to repeat a result (model, prompts, settings). A stored result is
reused if its `about` is the same; what depends on the machine (versions, seconds) is beside it.

The parts computed so far of an unfinished diagnostic are in NAME.partial.npz.
"""

import dataclasses
import json
import pathlib
import time
import typing
from collections.abc import Callable, Iterable

import numpy as np

from loopjax import json_shapes, paths
from loopjax.checkpoint import versions
from loopjax.errors import UserError
from loopjax.files import read_arrays, write_arrays, write_json
from loopjax.progress import Progress
from loopjax.results import schema

SHORT = 1024  # numbers that a JSON file holds as text
EVERY = 10.0  # seconds between two writes of unfinished parts


class Parts:
    """The parts of a diagnostic (one per prompt, say), cached so that a stopped one resumes."""

    def __init__(self, path, about: dict, text: str = "", name: str = ""):
        """The parts of one diagnostic.

        Args:
          path: the cache file.
          about: what the parts belong to, machine included; a cache of something else is replaced.
          text: label of the progress line; empty for no progress line.
          name: the diagnostic's name, for error messages.
        """
        self.path = paths.of(path)
        self.about = _plain(about)
        self.text = text
        self.name = name or self.path.name.partition(".")[0]
        self.begun = time.monotonic()
        self.earlier = 0.0

    @property
    def seconds(self) -> float:
        """Seconds since this object was created, plus those of the calls that were resumed."""
        return self.earlier + time.monotonic() - self.begun

    def each(self, compute: Callable, cases: Iterable) -> list[dict[str, np.ndarray]]:
        """`compute` of each case, like `map`, except for the cached ones; in order.

        Every part is a dict of arrays, with the same names and shapes for all cases; anything else
        raises ValueError. The cache is written every 10 seconds, and when something interrupts.
        """
        cases = list(cases)
        about = {**self.about, "parts": len(cases)}
        parts = self._read(about)
        with Progress(len(cases), self.text, done=len(parts)) as progress:
            written = time.monotonic()
            try:
                for case in cases[len(parts) :]:
                    part = compute(case)
                    self._check(part, parts)
                    parts.append(part)
                    progress.update()
                    if time.monotonic() - written > EVERY:
                        self._write(about, parts)
                        written = time.monotonic()
            finally:
                if parts:
                    self._write(about, parts)
        return parts

    def remove(self) -> None:
        """Removes the cache: the result is written, or to be computed again."""
        self.path.unlink(missing_ok=True)

    def _check(self, part, parts: list[dict]) -> None:
        shapes = _shapes(part)
        expected = (
            f"diagnostic {self.name}: the computation of a case must return a dict of arrays, with "
            "the same names and shapes for every case"
        )
        if not shapes:
            raise ValueError(f"{expected}; case {len(parts)} returned {part!r:.80}")
        if parts and shapes != (first := _shapes(parts[0])):
            raise ValueError(f"{expected}; case {len(parts)} has {shapes}, case 0 has {first}")

    def _read(self, about: dict) -> list[dict[str, np.ndarray]]:
        try:
            arrays = read_arrays(self.path)
            stored = schema.without_header(json.loads(str(arrays.pop("about"))))
            seconds = stored.pop("seconds")
        except (OSError, ValueError, KeyError):
            return []
        if stored != about:
            return []
        self.earlier = seconds
        columns = zip(*arrays.values(), strict=True)
        return [dict(zip(arrays, column, strict=True)) for column in columns]

    def _write(self, about: dict, parts: list[dict[str, np.ndarray]]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        arrays = {name: np.stack([part[name] for part in parts]) for name in parts[0]}
        header = schema.header("partial")
        text = json.dumps({**header, **about, "seconds": self.seconds})
        write_arrays(self.path, {"about": np.array(text), **arrays})


def _shapes(part) -> dict | None:
    """{name: shape} of a dict of arrays; None for anything else."""
    if not isinstance(part, dict):
        return None
    try:
        arrays = {name: np.asarray(array) for name, array in part.items()}
    except ValueError:  # lists of unequal lengths
        return None
    if any(array.dtype == object for array in arrays.values()):
        return None
    return {name: array.shape for name, array in arrays.items()}


def save(
    directory, file: str, about: dict, result, seconds: float, diagnostic: str
) -> pathlib.Path:
    """Writes a diagnostic's result (a dataclass of arrays and numbers); returns its JSON file."""
    directory = paths.of(directory)
    directory.mkdir(parents=True, exist_ok=True)
    header = schema.header("diagnostic") | {"diagnostic": diagnostic}
    fields, arrays = dataclasses.asdict(result), {}
    for key, value in fields.items():
        if isinstance(value, np.ndarray) and value.size > SHORT:
            arrays[key] = value
            fields[key] = f"{file}.npz"
    path = directory / f"{file}.json"
    if arrays:
        texts = {"header": json.dumps(header), "about": json.dumps(_plain(about))}
        texts = {key: np.array(text) for key, text in texts.items()}
        write_arrays(directory / f"{file}.npz", {**texts, **arrays})
    content = {"about": about, "versions": versions(), "seconds": seconds, "result": _plain(fields)}
    write_json(path, {**header, **content})
    return path


def load(directory, file: str, diagnostic: str, kind: type, about: dict | None = None):
    """The stored result of a diagnostic, or None if there is none, or one `about` something else.

    Args:
      kind: the dataclass of the result.

    Raises UserError for a file of a newer version of loopjax.
    """
    path = paths.of(directory) / f"{file}.json"
    try:
        content = json.loads(path.read_text())
        identity = schema.identify(path, content)
    except schema.Unreadable as error:
        if isinstance(content, dict) and "schema" in content:
            raise UserError(f"{path}: {error}") from None
        return None
    except (OSError, ValueError, RecursionError):
        return None
    try:
        if identity.get("diagnostic") != diagnostic:
            return None
        if about is not None and content["about"] != _plain(about):
            return None
        return restore(path, content, kind)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def restore(path: pathlib.Path, content: dict, kind: type):
    """The result in a diagnostic's file as its dataclass; its types say which fields are arrays.

    Raises KeyError, TypeError, ValueError or OSError if the file and the dataclass do not fit.
    """
    fields = dict(content["result"])
    for key, hint in typing.get_type_hints(kind).items():
        if key not in fields or fields[key] is None:
            continue
        if np.ndarray in (hint, *typing.get_args(hint)):
            stored = fields[key]
            named = isinstance(stored, str)
            fields[key] = _array(path, content, key) if named else np.array(stored)
            if fields[key].dtype.kind not in "biuf":
                raise ValueError(f"{key} is not an array of numbers")
        elif hint in (int, float):
            json_shapes.check(fields[key], json_shapes.number, key)
        elif typing.get_origin(hint) is tuple:
            fields[key] = tuple(fields[key])
    return kind(**fields)


def _array(path: pathlib.Path, content: dict, key: str) -> np.ndarray:
    """An array of the .npz file beside a JSON file, which its `result` names."""
    arrays = read_arrays(path.parent / content["result"][key])
    # A process killed between the two writes has replaced only one of the files.
    if json.loads(str(arrays["about"])) != content["about"]:
        raise ValueError(f"{path} and {content['result'][key]} are of different results")
    return arrays[key]


def _plain(value):
    """The value as JSON returns it."""
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return value
