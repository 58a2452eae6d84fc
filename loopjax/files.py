"""Reading and writing the small files of the project: text, JSON, JSON lines, arrays.

Writes are atomic: a reader sees the old file or the new one, never a partial file. A path may be an
object of a bucket (`paths.of`), which is written as a whole.
"""

import contextlib
import gzip
import io
import json
import os
import pathlib
import tempfile
import threading
import time
import zipfile
import zlib

import numpy as np

from loopjax import paths
from loopjax.errors import UserError, first_line, require

LONGEST_LINE = 2**26  # bytes
BUFFER = 2**20  # bytes; lines are often longer than Python's default buffer
UPLOAD_EVERY_S = 60.0  # between two uploads of a file that grows
UPLOAD_SHARE = 0.05  # of the time that uploads may take at most


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
    """A temporary file beside a path, which replaces it at the end; removed if that fails.

    That of an object is on this machine, and uploaded at the end.
    """
    path = paths.of(path)
    if paths.is_remote(path):
        with tempfile.TemporaryDirectory() as folder:
            temporary = pathlib.Path(folder) / f"{path.name}.tmp"
            yield temporary
            path.upload(temporary)
        return
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
    path = paths.of(path)
    try:
        return json.loads(path.read_bytes()) if path.is_file() else None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {_malformed(error)}") from error


def read_rows(path) -> list[dict]:
    """The rows of a JSON lines file; stops at a line truncated by a crash."""
    path = paths.of(path)
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
    path, number = paths.of(path), 0
    try:
        with opened(path) as raw:
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
        with opened(path) as file, np.load(file) as arrays:
            return dict(arrays)
    except (EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged") from error


def opened(path):
    """A file open for reading bytes; an object is read as a whole."""
    path = paths.of(path)
    if paths.is_remote(path):
        return io.BufferedReader(io.BytesIO(path.read_bytes()))
    return open(path, "rb")


def sizes(directory) -> dict[str, int]:
    """{name: bytes} of the files that are directly in a directory; {} if there is none."""
    directory = paths.of(directory)
    try:
        if paths.is_remote(directory):
            return {k: size for k, size in directory.contents().items() if size is not None}
        return {file.name: file.stat().st_size for file in os.scandir(directory) if file.is_file()}
    except (FileNotFoundError, NotADirectoryError):
        return {}


def size(path) -> int | None:
    """Bytes of a file; None if there is none."""
    path = paths.of(path)
    if paths.is_remote(path):
        return path.size()
    return path.stat().st_size if path.is_file() else None


def can_be_seen(path) -> bool:
    """Whether a path exists and its storage answers: one that a file names may be of elsewhere."""
    try:
        return paths.of(path).exists()
    except OSError:
        return False


def read_range(path, start: int, stop: int) -> bytes:
    """The bytes of positions [start, stop) of a file; fewer where it ends before."""
    path = paths.of(path)
    if paths.is_remote(path):
        return path.read_range(start, stop)
    with open(path, "rb") as file:
        file.seek(start)
        return file.read(stop - start)


def walk(directory):
    """Yields (path, names of its folders, names of its files) as `os.walk`, of any storage."""
    directory = paths.of(directory)
    if not paths.is_remote(directory):
        for folder, below, names in os.walk(directory):
            yield pathlib.Path(folder), below, names
    elif directory.is_dir():
        yield from directory.walk()


def appended(path):
    """A file open for appending lines of text; a local one has each line when it is written.

    An object has those before the last `settle`, and later ones sooner or later.
    """
    path = paths.of(path)
    return Growing(path) if paths.is_remote(path) else open(path, "a", buffering=1)


def settle(file) -> None:
    """Returns when all that was written to a file of `appended` outlasts this process."""
    if isinstance(file, Growing):
        file.upload()


class Growing:
    """An object that grows: written again as a whole, since nothing can be appended to one.

    It is uploaded by a thread at most every UPLOAD_EVERY_S, and so rarely that uploads take at most
    UPLOAD_SHARE of the time, and by `upload` and `close` at once.

    Raises UserError, from `upload` and `close` only, when it cannot be written.
    """

    def __init__(self, path):
        self.path = path
        self._content = bytearray(path.read_bytes() if path.is_file() else b"")
        self._uploaded = len(self._content)
        self._due = time.monotonic() + UPLOAD_EVERY_S
        self._one_at_a_time = threading.Lock()
        self._thread: threading.Thread | None = None

    def write(self, data: str | bytes) -> None:
        self._content += data if isinstance(data, bytes) else data.encode()
        busy = self._thread is not None and self._thread.is_alive()
        if time.monotonic() >= self._due and not busy:
            self._thread = threading.Thread(target=self._try, daemon=True)
            self._thread.start()

    def upload(self) -> None:
        """Writes the object, unless it is as long as that already."""
        with self._one_at_a_time:
            content = bytes(self._content)
            if len(content) == self._uploaded:
                return
            begun = time.monotonic()
            try:
                self.path.write_bytes(content)
            except OSError as error:
                raise UserError(
                    f"{self.path} cannot be written ({error.strerror}); rerun the same command to "
                    "resume"
                ) from error
            now = time.monotonic()
            self._uploaded = len(content)
            self._due = now + max(UPLOAD_EVERY_S, (now - begun) / UPLOAD_SHARE)

    def _try(self) -> None:
        with contextlib.suppress(UserError):  # `upload` before the next checkpoint reports it
            self.upload()
        self._due = max(self._due, time.monotonic() + UPLOAD_EVERY_S)

    def close(self) -> None:
        self.upload()
