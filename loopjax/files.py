"""Reading and writing the small files of the project: text, JSON, JSON lines, arrays.

Writes are atomic: a reader sees the old file or the new one, never a partial file.
"""

import contextlib
import gzip
import io
import json
import os
import pathlib
import zipfile
import zlib

import numpy as np

from loopjax.errors import UserError, first_line, require

LONGEST_LINE = 2**26  # bytes
BUFFER = 2**20  # bytes; lines are often longer than Python's default buffer


def write_text(path, text: str) -> None:
    """Replaces a text file."""
    with replaced(path) as temporary:
        temporary.write_text(text)


def write_json(path, value) -> None:
    """Replaces a JSON file."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_arrays(path, arrays: dict) -> None:
    """Replaces a compressed .npz file."""
    with replaced(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)


@contextlib.contextmanager
def replaced(path):
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


def lines(path):
    """Yields (number from 1, bytes without the line end) of a text file, also if it is packed.

    A byte order mark is left out. Raises UserError, with the line, for a file that cannot be read
    and for a line of more than 64 MiB.
    """
    path, number = pathlib.Path(path), 0
    try:
        with open(path, "rb") as raw:
            file = unpacked(raw, packing(raw.peek(4)), path)
            while line := file.readline(LONGEST_LINE + 1):
                number += 1
                if len(line) > LONGEST_LINE:
                    raise UserError(f"{path} line {number} is longer than 64 MiB")
                line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                yield number, line.rstrip(b"\r\n")
    except (OSError, EOFError, zlib.error) as error:
        place = f" line {number + 1}" if number else ""
        raise UserError(f"{path}{place} cannot be read: {first_line(error)}") from error


def packing(head: bytes) -> str:
    """ "gzip", "zstd" or "", by the first bytes of a file, whatever its name."""
    if head.startswith(b"\x1f\x8b"):
        return "gzip"
    skippable = head[1:4] == b"\x2a\x4d\x18" and head[0] >> 4 == 5
    return "zstd" if head.startswith(b"\x28\xb5\x2f\xfd") or skippable else ""


def unpacked(raw, packing: str, path):
    """The content of an open file, with a `readline` that unpacks no more than it is asked for."""
    if packing == "gzip":
        return gzip.GzipFile(fileobj=raw)
    if packing == "zstd":
        arrow = require("pyarrow", "data", f"reading {path}")
        return io.BufferedReader(arrow.CompressedInputStream(raw, "zstd"), BUFFER)
    return raw


def read_arrays(path) -> dict[str, np.ndarray]:
    """The arrays in an .npz file; raises ValueError if it is damaged, OSError if it is missing."""
    try:
        with open(path, "rb") as file, np.load(file) as arrays:
            return dict(arrays)
    except (EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged") from error
