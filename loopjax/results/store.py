"""Results of diagnostics on disk: NAME.json, and NAME.npz for what is long.

`about` is everything that is needed to repeat a result (model, prompts, settings). A result is
reused where it says the same; what depends on the machine (versions, seconds) stands beside it.

What an unfinished diagnostic has found so far is NAME.partial.npz.
"""

import dataclasses
import json
import pathlib
import time
import typing
from collections.abc import Callable, Iterable

import numpy as np

from loopjax.checkpoint import versions
from loopjax.files import read_arrays, write_arrays, write_json
from loopjax.progress import Progress

FORMAT = 1
SHORT = 1024  # numbers that a JSON file holds as text
EVERY = 10.0  # seconds between two writes of what is unfinished


class Parts:
    """What a diagnostic finds part by part (prompt by prompt), kept so that it can go on."""

    def __init__(self, path, about: dict, text: str = ""):
        """The parts of one diagnostic.

        Args:
          path: of its file.
          about: what they are parts of, machine included; a file of something else is replaced.
          text: what the progress bar says; empty for none.
        """
        self.path, self.about, self.text = pathlib.Path(path), _plain(about), text
        self.begun, self.earlier = time.monotonic(), 0.0

    @property
    def seconds(self) -> float:
        """Since it was made, and of the calls before that it goes on from."""
        return self.earlier + time.monotonic() - self.begun

    def each(self, compute: Callable, cases: Iterable) -> list[dict[str, np.ndarray]]:
        """`compute` of each case, as `map` has it, less what the file holds; in order.

        All parts are arrays by the same names and of the same shapes. The file is written every 10
        seconds, and when something stops it.
        """
        cases = list(cases)
        about = {**self.about, "parts": len(cases)}
        found = self._read(about)
        with Progress(len(cases), self.text, done=len(found)) as shown:
            written = time.monotonic()
            try:
                for case in cases[len(found) :]:
                    found.append(compute(case))
                    shown.update()
                    if time.monotonic() - written > EVERY:
                        self._write(about, found)
                        written = time.monotonic()
            finally:
                if found:
                    self._write(about, found)
        return found

    def remove(self) -> None:
        """Removes the file: the result is written, or wanted anew."""
        self.path.unlink(missing_ok=True)

    def _read(self, about: dict) -> list[dict[str, np.ndarray]]:
        try:
            arrays = read_arrays(self.path)
            said = json.loads(str(arrays.pop("about")))
            seconds = said.pop("seconds")
        except (OSError, ValueError, KeyError):
            return []
        if said != about:
            return []
        self.earlier = seconds
        columns = zip(*arrays.values(), strict=True)
        return [dict(zip(arrays, column, strict=True)) for column in columns]

    def _write(self, about: dict, found: list[dict[str, np.ndarray]]) -> None:
        arrays = {name: np.stack([part[name] for part in found]) for name in found[0]}
        said = json.dumps({**about, "seconds": self.seconds})
        write_arrays(self.path, {"about": np.array(said), **arrays})


def save(directory, name: str, about: dict, result, seconds: float) -> pathlib.Path:
    """Writes a result (a dataclass of arrays and numbers); returns the path of its JSON file."""
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    fields, arrays = dataclasses.asdict(result), {}
    for key, value in fields.items():
        if isinstance(value, np.ndarray) and value.size > SHORT:
            arrays[key], fields[key] = value, f"{name}.npz"
    path = directory / f"{name}.json"
    if arrays:
        said = np.array(json.dumps(_plain(about)))
        write_arrays(directory / f"{name}.npz", {"about": said, **arrays})
    kind = type(result).__name__
    write_json(path, {"format": FORMAT, "kind": kind, "about": about, "versions": versions(),
                      "seconds": seconds, "result": _plain(fields)})  # fmt: skip
    return path


def load(directory, name: str, kind: type, about: dict | None = None):
    """The saved result of this kind, or None where there is none, or one that is `about` something else."""
    directory = pathlib.Path(directory)
    try:
        found = json.loads((directory / f"{name}.json").read_text())
        if found["format"] != FORMAT or found["kind"] != kind.__name__:
            return None
        if about is not None and found["about"] != _plain(about):
            return None
        fields = dict(found["result"])
        for key, hint in typing.get_type_hints(kind).items():
            if fields[key] == f"{name}.npz":
                arrays = read_arrays(directory / f"{name}.npz")
                # A process that was killed in between has written one of the two files.
                if json.loads(str(arrays["about"])) != found["about"]:
                    return None
                fields[key] = arrays[key]
            elif "ndarray" in str(hint) and fields[key] is not None:
                fields[key] = np.array(fields[key])
        return kind(**fields)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _plain(value):
    """As JSON gives it back."""
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return value
