"""The input of `loopjax prepare` as pieces: what one worker reads to write one shard.

A piece is a tuple of parts. The cuts depend only on the input and the size of a piece, so the
shards are the same for any number of processes. A part has a size in `bytes`, by which progress is
counted, and `documents(key)` yields (text, bytes read so far).
"""

import dataclasses
import gzip
import io
import itertools
import json
import pathlib
import zlib

from loopjax.errors import UserError, first_line, require

TEXT_DOCUMENT = 2**16  # bytes; a longer plain-text file is cut into documents of this size
BUFFER = 2**20  # bytes; lines are often longer than Python's default buffer
ROWS = 1024  # rows of Parquet files and datasets that are read at a time
PACKED = (".gz", ".zst")
JSON_LINES = (".jsonl", ".json")
IN_DIRECTORY = (".jsonl", ".txt", ".parquet")  # files that are read from a directory


def find_files(inputs) -> list[pathlib.Path]:
    """The files among the inputs, and those below the directories among them, sorted."""
    paths = []
    for given in map(pathlib.Path, inputs):
        if given.is_dir():
            below = sorted(path for path in given.rglob("*") if path.is_file())
            readable = [path for path in below if _format(path) in IN_DIRECTORY]
            if not readable:
                suffixes = ", ".join(IN_DIRECTORY)
                raise UserError(f"input {given} has no {suffixes} file (or .gz, .zst)")
            paths += readable
        elif given.is_file():
            paths.append(given)
        else:
            raise UserError(f"input {given} is not a file or a directory")
    return paths


def cut_files(paths, key: str, size: int) -> list[tuple]:
    """Pieces of about `size` bytes: long files are cut, short ones are joined."""
    parts = [part for path in paths for part in _parts(path, key, size)]
    return join(parts, size)


def join(parts, size: int) -> list[tuple]:
    """Neighboring parts joined to pieces of at most `size` bytes; a larger part stays alone."""
    pieces = []
    room = 0
    for part in parts:
        if pieces and part.bytes <= room:
            pieces[-1] += (part,)
        else:
            pieces.append((part,))
            room = size
        room -= part.bytes
    return pieces


def _format(path: pathlib.Path) -> str:
    """The suffix of a file without its compression, which decides how it is read."""
    return (path.with_suffix("") if path.suffix in PACKED else path).suffix


def _parts(path: pathlib.Path, key: str, size: int) -> list:
    if path.suffix == ".parquet":
        return list(_row_groups(path, key, size))
    length = path.stat().st_size
    n = 1 if path.suffix in PACKED else -(-length // size)  # compressed files cannot be cut
    cuts = [length * i // max(n, 1) for i in range(n + 1)]
    return [FileRange(str(path), start, stop) for start, stop in itertools.pairwise(cuts)]


@dataclasses.dataclass(frozen=True)
class FileRange:
    """The lines of a .jsonl or text file that begin in the bytes [start, stop)."""

    path: str
    start: int
    stop: int

    @property
    def bytes(self) -> int:
        return self.stop - self.start

    def documents(self, key: str):
        read = self._json if _format(pathlib.Path(self.path)) in JSON_LINES else self._text
        try:
            with open(self.path, "rb", BUFFER) as raw:
                yield from read(self._lines(raw), key)
        except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
            raise UserError(f"input {self.path} is not readable: {first_line(error)}") from None

    def _lines(self, raw):
        """Yields (line, position in the file after it)."""
        if self.path.endswith(PACKED):
            for line in _unpacked(raw, self.path):
                yield line, raw.tell()
            return
        position = self.start
        if position:
            # The line of the previous byte belongs to the part before.
            raw.seek(position - 1)
            position += len(raw.readline()) - 1
        while position < self.stop and (line := raw.readline()):
            position += len(line)
            yield line, position

    def _json(self, lines, key):
        for number, (line, position) in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                document = json.loads(line)[key]
            except (ValueError, KeyError, TypeError):
                document = None
            if not isinstance(document, str):
                raise UserError(
                    f"input {self.path}, line {self._lines_before() + number}: not a JSON object "
                    f"with a text field {key!r}"
                )
            yield document, position - self.start

    def _lines_before(self) -> int:
        """The number of lines before this part; counted only to locate an error."""
        if not self.start:
            return 0
        before = dataclasses.replace(self, start=0, stop=self.start)
        with open(self.path, "rb", BUFFER) as raw:
            return sum(1 for _ in before._lines(raw))

    def _text(self, lines, key):
        """Plain text as documents, cut at line ends where it is long."""
        pending = []  # lines of the current document
        size = 0
        position = self.start
        for line, position in lines:
            pending.append(line)
            size += len(line)
            if size >= TEXT_DOCUMENT:
                yield b"".join(pending).decode("utf-8"), position - self.start
                pending = []
                size = 0
        if pending:
            yield b"".join(pending).decode("utf-8"), position - self.start


def _unpacked(raw, path: str):
    if path.endswith(".gz"):
        return gzip.GzipFile(fileobj=raw)
    return io.BufferedReader(pyarrow(path).CompressedInputStream(raw, "zstd"), BUFFER)


def pyarrow(what):
    """The package with its reader of Parquet; raises UserError where it is not installed."""
    require("pyarrow.parquet", "data", f"reading {what}")
    return require("pyarrow", "data")


@dataclasses.dataclass(frozen=True)
class RowGroups:
    """The row groups [start, stop) of a Parquet file; `bytes` is the size of the text column."""

    path: str
    start: int
    stop: int
    bytes: int

    def documents(self, key: str):
        parquet = pyarrow(self.path).parquet
        try:
            with parquet.ParquetFile(self.path) as file:
                groups = range(self.start, self.stop)
                first = sum(file.metadata.row_group(g).num_rows for g in range(self.start))
                rows = sum(file.metadata.row_group(g).num_rows for g in groups)
                batches = file.iter_batches(ROWS, row_groups=list(groups), columns=[key])
                columns = (batch.column(0).to_pylist() for batch in batches)
                for i, document in enumerate(texts(columns, first, f"input {self.path}", key), 1):
                    yield document, self.bytes * i // rows
        except OSError as error:
            raise UserError(f"input {self.path} is not readable: {first_line(error)}") from None


def texts(columns, first: int, where: str, key: str):
    """Yields the texts of lists of values; the first value is row number `first` of `where`."""
    row = first
    for values in columns:
        for document in values:
            if not isinstance(document, str):
                raise UserError(f"{where}, row {row}: column {key!r} is not text")
            yield document
            row += 1


def check_column(columns, where: str, key: str) -> None:
    if key not in columns:
        raise UserError(
            f"{where} has no column {key!r}; set --text-key to one of {', '.join(columns)}"
        )


def _row_groups(path: pathlib.Path, key: str, size: int):
    arrow = pyarrow(path)
    try:
        with arrow.parquet.ParquetFile(path) as file:
            metadata, names = file.metadata, file.schema_arrow.names
    except (OSError, arrow.ArrowInvalid) as error:
        raise UserError(f"input {path} is not readable: {first_line(error)}") from None
    check_column(names, f"input {path}", key)
    start = total = 0
    for group in range(metadata.num_row_groups):
        columns = (metadata.row_group(group).column(c) for c in range(metadata.num_columns))
        length = sum(c.total_uncompressed_size for c in columns if c.path_in_schema == key)
        if group > start and total + length > size:
            yield RowGroups(str(path), start, group, total)
            start, total = group, 0
        total += length
    if metadata.num_row_groups:
        yield RowGroups(str(path), start, metadata.num_row_groups, total)
