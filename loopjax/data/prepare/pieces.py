"""The input of `loopjax prepare` as pieces: what one worker reads to write one shard.

A piece is a tuple of parts. The cuts depend only on the input and the size of a piece, so the
shards are the same for any number of processes. A part has a size in `bytes`, by which progress is
counted, and `documents(key, limit)` yields (text, bytes read so far); a document of more than
`limit` bytes is refused before it is read whole.
"""

import dataclasses
import itertools
import json
import zlib

from loopjax import files
from loopjax.data.prepare import parquet, readers
from loopjax.data.prepare.input_files import Input
from loopjax.errors import UserError, first_line

TEXT_DOCUMENT = 2**16  # bytes; a longer plain-text file is cut into documents of this size


def cut_files(inputs: list[Input], key: str, size: int, limit: int) -> list[tuple]:
    """Pieces of about `size` bytes: long files are cut, short ones are joined."""
    parts = [part for file in inputs for part in _parts(file, key, size, limit)]
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


def _parts(file: Input, key: str, size: int, limit: int) -> list:
    if file.kind == "parquet":
        return list(parquet.row_groups(file, key, size, limit))
    n = 1 if file.packing else -(-file.bytes // size)  # compressed files cannot be cut
    cuts = [file.bytes * i // max(n, 1) for i in range(n + 1)]
    return [
        FileRange(file.path, start, stop, file.kind, file.packing)
        for start, stop in itertools.pairwise(cuts)
    ]


@dataclasses.dataclass(frozen=True)
class FileRange:
    """The lines of a JSON lines or text file that begin in the bytes [start, stop)."""

    path: str
    start: int
    stop: int
    kind: str
    packing: str

    @property
    def bytes(self) -> int:
        return self.stop - self.start

    def documents(self, key: str, limit: int):
        try:
            with open(self.path, "rb", files.BUFFER) as raw:
                lines = self._lines(raw, limit)
                yield from self._json(lines, key) if self.kind == "jsonl" else self._text(lines)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"input {self.path} is not readable: {first_line(error)}") from None

    def _lines(self, raw, limit: int):
        """Yields (number of the line in this part, line, position in the file after it)."""
        position = self.start
        if position:
            # The line of the previous byte belongs to the part before; it may have any length.
            raw.seek(position - 1)
            while rest := raw.readline(files.BUFFER):
                position += len(rest)
                if rest.endswith(b"\n"):
                    break
            position -= 1
        content = files.unpacked(raw, self.packing, self.path)
        for number in itertools.count(1):
            if not self.packing and position >= self.stop:
                return
            line = content.readline(limit + 1)
            if not line:
                return
            if len(line) > limit:
                raise readers.too_long(self._where(number), "the line", limit)
            position = raw.tell() if self.packing else position + len(line)
            yield number, line, position

    def _where(self, number: int) -> str:
        """A line of this part, for messages; the lines before the part are counted only now."""
        before = 0
        if self.start:
            with open(self.path, "rb", files.BUFFER) as raw:
                left = self.start - 1
                while left and (block := raw.read(min(left, files.BUFFER))):
                    before += block.count(b"\n")
                    left -= len(block)
            before += 1
        return f"input {self.path}, line {before + number}"

    def _json(self, lines, key):
        for number, line, position in lines:
            if not line.strip():
                continue
            try:
                document = json.loads(readers.text_of(line).removeprefix("\ufeff"))[key]
            except UnicodeDecodeError as error:
                raise UserError(f"{self._where(number)}: not UTF-8 ({error.reason})") from None
            except RecursionError:
                raise UserError(f"{self._where(number)}: JSON nested too deeply") from None
            except (ValueError, KeyError, TypeError):
                document = None
            if not isinstance(document, str):
                raise UserError(
                    f"{self._where(number)}: not a JSON object with a text field {key!r}"
                )
            yield document, position - self.start

    def _text(self, lines):
        """Plain text as documents, cut at line ends where it is long."""
        pending = []  # lines of the current document
        size = 0
        number = 0
        position = self.start
        for number, line, position in lines:
            pending.append(line)
            size += len(line)
            if size >= TEXT_DOCUMENT:
                yield self._joined(pending, number), position - self.start
                pending = []
                size = 0
        if pending:
            yield self._joined(pending, number), position - self.start

    def _joined(self, lines: list[bytes], last: int) -> str:
        """The text of lines, of which the last has this number."""
        try:
            return readers.text_of(b"".join(lines))
        except UnicodeDecodeError as error:
            number = last - len(lines) + 1 + error.object[: error.start].count(b"\n")
            raise UserError(f"{self._where(number)}: not UTF-8 ({error.reason})") from None
