"""Results of diagnostics on disk: NAME.json, and NAME.npz for what is long.

`about` is everything that is needed to repeat a result (model, prompts, settings). A result is
reused where it says the same; what depends on the machine (versions, seconds) stands beside it.
"""

import dataclasses
import json
import pathlib
import typing

import numpy as np

from loopjax.checkpoint import versions
from loopjax.log import write_json

FORMAT = 1
SHORT = 1024  # numbers that a JSON file holds as text


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
        np.savez_compressed(directory / f"{name}.npz", **arrays)
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
                with np.load(directory / f"{name}.npz") as arrays:
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
