"""Reading and writing the small files of the project: text, JSON, JSON lines, arrays.

Writes are atomic: a reader sees the old file or the new one, never a partial file.
"""

import json
import os
import pathlib
import zipfile
import zlib

import numpy as np

from loopjax.errors import UserError


def write_text(path, text: str) -> None:
    """Replaces a text file."""
    path = pathlib.Path(path)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def write_json(path, value) -> None:
    """Replaces a JSON file."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_arrays(path, arrays: dict) -> None:
    """Replaces a compressed .npz file."""
    path = pathlib.Path(path)
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)
    os.replace(temporary, path)


def read_json(path):
    """The value in a JSON file, None if the file does not exist; UserError if it is damaged."""
    path = pathlib.Path(path)
    try:
        return json.loads(path.read_text()) if path.is_file() else None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def read_rows(path) -> list[dict]:
    """The rows of a JSON lines file; stops at a line truncated by a crash."""
    path = pathlib.Path(path)
    rows = []
    if path.is_file():
        for line in path.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                break
    return rows


def read_arrays(path) -> dict[str, np.ndarray]:
    """The arrays in an .npz file; raises ValueError if it is damaged, OSError if it is missing."""
    try:
        with open(path, "rb") as file, np.load(file) as arrays:
            return dict(arrays)
    except (EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged") from error
