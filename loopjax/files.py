"""Reading and writing the small files of the project: text, JSON, JSON lines, arrays.

Writes are atomic: a reader sees the old file or the new one, never a partial file.
"""

import contextlib
import json
import os
import pathlib
import zipfile
import zlib

import numpy as np

from loopjax.errors import UserError


def write_text(path, text: str) -> None:
    """Replaces a text file."""
    with _replaced(path) as temporary:
        temporary.write_text(text)


def write_json(path, value) -> None:
    """Replaces a JSON file."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_arrays(path, arrays: dict) -> None:
    """Replaces a compressed .npz file."""
    with _replaced(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)


@contextlib.contextmanager
def _replaced(path):
    """A temporary file beside a path, which replaces it at the end; removed if that fails."""
    path = pathlib.Path(path)
    temporary = path.with_name(path.name + ".tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def parse_json(text: str | bytes, where: str):
    """The value of a JSON text; UserError "`where` is not JSON: ..." for any malformed one.

    `where` names the file, and the line of a JSON lines file ("chat.jsonl line 3").
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON: {_malformed(error)}") from error


def read_json(path):
    """The value in a JSON file, None if the file does not exist; UserError if it is damaged."""
    path = pathlib.Path(path)
    try:
        return json.loads(path.read_bytes()) if path.is_file() else None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {_malformed(error)}") from error


def read_rows(path) -> list[dict]:
    """The rows of a JSON lines file; stops at a line truncated by a crash."""
    path = pathlib.Path(path)
    rows = []
    if path.is_file():
        for line in path.read_bytes().splitlines():
            try:
                rows.append(json.loads(line))
            except (ValueError, RecursionError):
                break
    return rows


def _malformed(error: Exception) -> str:
    # The message of a RecursionError is about Python, and its limit is far above any file of use.
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)


def read_arrays(path) -> dict[str, np.ndarray]:
    """The arrays in an .npz file; raises ValueError if it is damaged, OSError if it is missing."""
    try:
        with open(path, "rb") as file, np.load(file) as arrays:
            return dict(arrays)
    except (EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged") from error
