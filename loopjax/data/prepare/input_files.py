"""The input files of `loopjax prepare`: which there are, what each of them is, which were left out.

The content of a file decides how it is read: gzip, zstd and Parquet by their first bytes, JSON
lines by a first line that is an object. Names decide only where the content leaves it open: in a
folder, plain text is read if it is named .txt. What is left out of a folder is listed.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import re
import zlib

from loopjax import files
from loopjax.data.prepare import readers
from loopjax.errors import UserError, first_line

FORMATS = ("jsonl", "text")  # of --input-format; Parquet is never in doubt
JSON_LINES = (".jsonl", ".ndjson", ".jsonlines")
DATA_NAMES = (*JSON_LINES, ".txt", ".parquet")  # files that are never left out of a folder
PACKED_NAMES = (".gz", ".zst", ".zstd")
KINDS = {"jsonl": "JSON lines", "text": "plain text", "parquet": "Parquet"}
END = 2**16  # bytes at the start and at the end of a file that are hashed
SHOWN = 5  # names of left-out files in a message
OTHER_CONTENT = {  # first bytes -> what they mean
    b"BZh": "compressed with bzip2; gzip and zstd are read",
    b"\xfd7zXZ": "compressed with xz; gzip and zstd are read",
    b"\x04\x22\x4d\x18": "compressed with lz4; gzip and zstd are read",
    b"PK\x03\x04": "a zip archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"\xff\xfe": "UTF-16; UTF-8 is read",
    b"\xfe\xff": "UTF-16; UTF-8 is read",
}
LFS = b"version https://git-lfs.github.com/spec/"
# How JSON begins that is not an object on one line: {"..., { alone, [{, [[, ["
JSON_LIKE = re.compile(rb'(\{\s*("|$)|\[\s*([\[{"]|$))')


@dataclasses.dataclass(frozen=True)
class Input:
    """A file, how it is read, and what identifies its content."""

    path: str
    kind: str  # "jsonl", "text" or "parquet"
    packing: str  # "gzip", "zstd" or ""
    bytes: int
    modified_ns: int
    ends_sha256: str

    def describe(self) -> dict:
        fields = dataclasses.asdict(self)
        return {"file": fields.pop("path"), **fields}


@dataclasses.dataclass(frozen=True)
class Reading:
    """How inputs are looked at: the field of the text, the forced format, the longest document."""

    key: str
    format: str | None
    limit: int


class _Unfit(Exception):
    """A file that cannot be read as text, with the reason."""


class _Empty(_Unfit):
    """A file without a document."""


def find(given, reading: Reading, skip: pathlib.Path | None = None):
    """The files among `given` and those below its directories: (inputs, [(path, reason left out)]).

    Directories are sorted; links are followed, and no file is read twice. `skip` is a directory that
    is not looked into: the output.
    """
    inputs, left_out = [], []
    known = {}  # (device, inode) of a file or a directory: the path it was given as
    for path in map(pathlib.Path, given):
        if not _exists(path):
            raise UserError(f"input {path} is not a file or a directory")
        if not (path.is_file() or path.is_dir()):
            raise UserError(f"input {path} is not a regular file; write its content to one")
        if first := _seen(path, known):
            raise UserError(f"input {path} is given twice (also as {first}); give it once")
        if path.is_dir():
            inputs += _in_directory(path, reading, known, left_out, skip)
            continue
        try:
            inputs.append(_look(path, reading, in_folder=False))
        except _Empty as empty:
            left_out.append((str(path), str(empty)))
        except _Unfit as unfit:
            raise _refusal(path, unfit) from None
    return inputs, left_out


def _refusal(path: pathlib.Path, unfit: _Unfit) -> UserError:
    remedy = "; set --input-format=text if it is text" if str(unfit) == "binary" else ""
    return UserError(f"input {path} cannot be read: it is {unfit}{remedy}")


def describe(inputs) -> dict:
    return {"files": [file.describe() for file in inputs]}


def changed(before: dict, now: dict, *, times: bool = True) -> str:
    """Which of the files that two sources describe is another one; "" if none is.

    A file of an older version has only its name and its size. `times` counts a file as another one
    that was written again with the same size and ends.
    """
    before, now = before.get("files", []), now.get("files", [])
    names = [[file["file"] for file in source] for source in (before, now)]
    if names[0] != names[1]:
        only = sorted(set(names[0]) ^ set(names[1])) or names[1]
        return only[0]
    ignored = set() if times else {"modified_ns"}
    return next(
        (b["file"] for a, b in zip(before, now, strict=True)
         if any(a[key] != b.get(key) for key in a.keys() - ignored)), ""
    )  # fmt: skip


def check_unchanged(inputs: list[Input]) -> None:
    """Raises UserError if one of the files is no longer the one that was looked at."""
    for file in inputs:
        try:
            status = os.stat(file.path)
        except OSError:
            status = None
        if not status or (status.st_size, status.st_mtime_ns) != (file.bytes, file.modified_ns):
            raise UserError(
                f"input {file.path} changed while it was read; prepare it again in a new directory"
            )


def summary(inputs: list[Input], left_out) -> list[str]:
    """What there is to know before the work: a mixture of kinds, and what was left out and why."""
    lines = []
    kinds = {kind: [file.path for file in inputs if file.kind == kind] for kind in KINDS}
    kinds = {KINDS[kind]: paths for kind, paths in kinds.items() if paths}
    if len(kinds) > 1:
        lines += [f"reading {_listed(paths)} as {kind}" for kind, paths in kinds.items()]
    by_reason: dict[str, list[str]] = {}
    for path, reason in left_out:
        by_reason.setdefault(reason, []).append(path)
    return lines + [f"left out ({r}): {_listed(paths)}" for r, paths in by_reason.items()]


def _listed(paths: list[str]) -> str:
    """ "7 files (a, b, c, d, e and 2 more)"."""
    more = f" and {len(paths) - SHOWN:,} more" if len(paths) > SHOWN else ""
    count = "1 file" if len(paths) == 1 else f"{len(paths):,} files"
    return f"{count} ({', '.join(paths[:SHOWN])}{more})"


def _in_directory(
    folder: pathlib.Path, reading: Reading, known, left_out: list, skip
) -> list[Input]:
    left_out_here: list[tuple[str, str]] = []
    below = _below(folder, known, left_out_here, skip)
    found = [x for path in below if (x := _in_folder(path, reading, known, left_out_here))]
    if not found:
        more = "; ".join(["", *summary([], left_out_here)])
        raise UserError(
            f"input {folder} has no file of JSON lines, Parquet, or text named .txt (also .gz, .zst)"
            f"{more}"
        )
    left_out += left_out_here
    return found


def _below(folder: pathlib.Path, known: dict, left_out: list, skip) -> list[pathlib.Path]:
    """The files below a directory, sorted; linked directories too, each once."""

    def failed(error: OSError):
        raise UserError(f"input {error.filename} is not readable: {error.strerror}") from None

    below = []
    for where, folders, names in os.walk(folder, followlinks=True, onerror=failed):
        here = pathlib.Path(where)
        kept = []
        for name in sorted(folders):
            if skip and (here / name).resolve() == skip.resolve():
                continue
            if first := _seen(here / name, known):
                left_out.append((str(here / name), f"the same folder as {first}"))
                continue
            kept.append(name)
        folders[:] = kept
        below += [here / name for name in names]
    return sorted(below)


def _exists(path: pathlib.Path) -> bool:
    try:
        return path.exists()
    except OSError as error:  # no permission, a name too long
        raise UserError(f"input {path} is not readable: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """The message of an error without the path, which the sentence has already."""
    return getattr(error, "strerror", None) or first_line(error)


def _seen(path: pathlib.Path, known: dict) -> str | None:
    """The path by which a file or directory is known already; if it is new, it is remembered."""
    status = path.stat()
    key = (status.st_dev, status.st_ino)
    if key not in known:
        known[key] = str(path)
        return None
    return known[key]


def _in_folder(path: pathlib.Path, reading: Reading, known: dict, left_out: list) -> Input | None:
    """A file of a folder, or None if it is left out."""
    try:
        if not _exists(path):
            raise _Unfit("a broken link")
        if not path.is_file():
            raise _Unfit("not a regular file")
        if first := _seen(path, known):
            raise _Unfit(f"the same file as {first}")
        return _look(path, reading, in_folder=True)
    except _Unfit as unfit:
        left_out.append((str(path), str(unfit)))
        return None


def _look(path: pathlib.Path, reading: Reading, in_folder: bool) -> Input:
    """Opens a file to see what it is; raises _Unfit if it is not to be read, UserError if it must."""
    try:
        with open(path, "rb", files.BUFFER) as raw:
            status = os.fstat(raw.fileno())
            head = raw.read(END)
            raw.seek(max(0, status.st_size - END))
            ends = hashlib.sha256(head + raw.read(END)).hexdigest()
            raw.seek(0)
            packing = files.packing(head)
            content = files.unpacked(raw, packing, path)
            kind = _kind(path, head, content, reading, in_folder)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"input {path} is not readable: {_reason(error)}") from None
    return Input(str(path), kind, packing, status.st_size, status.st_mtime_ns, ends)


def _kind(path: pathlib.Path, head: bytes, content, reading: Reading, in_folder: bool) -> str:
    name = _suffix(path)
    if not head:
        raise _Empty("empty")
    if head.startswith(LFS):
        raise UserError(f"input {path} is a pointer of Git LFS and not the data; run git lfs pull")
    if head.startswith(b"PAR1") or name == ".parquet":
        return "parquet"
    try:
        for first, reason in OTHER_CONTENT.items():
            if head.startswith(first):
                raise _Unfit(reason)
        if reading.format == "text":
            return "text"
        line = _first_line(content, path, reading.limit)
        return reading.format or _told_by(line, name, reading.key, in_folder)
    except _Empty:
        raise
    except _Unfit as unfit:
        if in_folder and name in DATA_NAMES:
            raise _refusal(path, unfit) from None
        raise


def _told_by(line: bytes, name: str, key: str, in_folder: bool) -> str:
    """The kind of a file by its first line that is not blank."""
    if name in JSON_LINES or (name == ".json" and not in_folder):
        return "jsonl"
    value = _object(line)
    if value is not None:
        if name == ".txt":
            raise _Unfit("JSON lines by its content but text by its name; set --input-format")
        if in_folder and not isinstance(value.get(key), str):
            raise _Unfit(f"JSON without a text field {key!r} in its first line")
        return "jsonl"
    if name == ".txt":
        return "text"
    if JSON_LIKE.match(line.strip()):
        raise _Unfit("JSON, but not one object per line; set --input-format=text if it is text")
    if in_folder:
        raise _Unfit("not JSON lines, Parquet, or text named .txt")
    return "text"


def _first_line(content, path: pathlib.Path, limit: int) -> bytes:
    """The first line that is not blank; raises _Empty without content, _Unfit if it is binary."""
    start = content.read(END)
    if not start:
        raise _Empty("empty")
    if b"\0" in start and _suffix(path) not in JSON_LINES:
        raise _Unfit("binary")
    blank = 0  # bytes of blank lines
    while start and not start.strip() and blank < limit:
        blank += len(start)
        start = content.read(END)
    line, newline, _ = start.lstrip().partition(b"\n")
    if line and not newline:
        line += content.readline(limit + 1)
    if len(line) <= limit:
        return line
    if _suffix(path) in DATA_NAMES:
        raise readers.too_long(f"input {path}, line 1", "the line", limit)
    raise _Unfit(f"one line of more than {limit / 1e6:,.6g} MB; raise --max-document if it is data")


def _object(line: bytes) -> dict | None:
    try:
        value = json.loads(readers.text_of(line).removeprefix("\ufeff"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _suffix(path: pathlib.Path) -> str:
    """The suffix of a file in lower case, without its compression."""
    name = pathlib.PurePath(path.name.casefold())
    return (name.with_suffix("") if name.suffix in PACKED_NAMES else name).suffix
