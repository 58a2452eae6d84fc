"""One piece of input to its token shards: the work of one process of `loopjax prepare`.

    DIR/train/00012.arrayrecord     records of `RECORD_TOKENS` token ids
    DIR/heldout/00012.arrayrecord   where the piece has held-out documents
    DIR/unfinished/00012.json       its part of the manifest, written last

A document ends with the tokenizer's end-of-document token. Imports no JAX: processes start fast.
"""

import contextlib
import dataclasses
import hashlib
import os
import pathlib

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from loopjax.data import token_shards, tokenizers
from loopjax.data.prepare import fetch
from loopjax.errors import UserError, first_line
from loopjax.files import write_json

RECORD_TOKENS = 2048
UNFINISHED = "unfinished"
BATCH_DOCUMENTS, BATCH_BYTES = 256, 2**22
WRITE_TOKENS = 64 * RECORD_TOKENS  # so many are joined to one array at a time


@dataclasses.dataclass(frozen=True)
class Task:
    """What holds for every piece of a job."""

    output: pathlib.Path
    tokenizer: str  # "bytes", or the path of a tokenizer.json
    eos: str | None
    text_key: str
    text_url: str | None
    heldout: float
    named_heldout: bool  # the held-out documents are in files of their own


@dataclasses.dataclass(frozen=True)
class Piece:
    name: str
    parts: tuple
    is_heldout: bool = False  # of the held-out files

    @property
    def bytes(self) -> int:
        return sum(part.bytes for part in self.parts)


class ShardWriter:
    """Writes the shard of one split, full records but the last, and counts what went in."""

    def __init__(self, task: Task, split: str, name: str, codec):
        self.file = f"{split}/{name}.arrayrecord"
        self.path = task.output / self.file
        self.temporary = task.output / UNFINISHED / f"{name}.{split}.{os.getpid()}.tmp"
        self.dtype = token_dtype(codec)
        self.end = np.array([codec.eos_id], self.dtype)
        self.writer, self.pending, self.waiting = None, [], 0
        self.tokens = self.documents = self.text_bytes = 0

    def add(self, ids: np.ndarray, text_bytes: int) -> None:
        self.documents += 1
        self.text_bytes += text_bytes
        self.pending += [ids, self.end]
        self.waiting += len(ids) + 1
        if self.waiting >= WRITE_TOKENS:
            self._write(self.waiting // RECORD_TOKENS * RECORD_TOKENS)

    def _write(self, n: int) -> None:
        """Writes the first n of the tokens that wait: all of them, or full records."""
        if self.writer is None:
            # One record a group: reading one record at random touches nothing else.
            self.writer = ArrayRecordWriter(str(self.temporary), "group_size:1,uncompressed")
        tokens = np.concatenate(self.pending, dtype=self.dtype, casting="unsafe")
        for start in range(0, n, RECORD_TOKENS):
            self.writer.write(tokens[start : start + RECORD_TOKENS].tobytes())
        self.tokens += n
        self.pending, self.waiting = [tokens[n:]], len(tokens) - n

    def finish(self) -> dict:
        """The split's counts; the shard, if there is one, is whole and at its place."""
        if self.waiting:
            self._write(self.waiting)
        counts = {"documents": self.documents, "tokens": self.tokens, "text_bytes": self.text_bytes}
        if self.writer is None:
            return counts | {"shards": []}
        self.writer.close()
        with open(self.temporary, "rb+") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        self.path.parent.mkdir(exist_ok=True)
        os.replace(self.temporary, self.path)
        size = self.path.stat().st_size
        shard = {"file": self.file, "tokens": self.tokens, "bytes": size, "sha256": digest}
        return counts | {"shards": [shard]}


def token_dtype(codec) -> np.dtype:
    return np.dtype(np.uint16 if codec.vocab_size <= 2**16 else np.uint32)


def write_piece(task: Task, piece: Piece, codec, report) -> int:
    """Writes the shards of a piece and then its part of the manifest; returns the bytes of text.

    `report(read, taken)` is told the bytes of input read and of text taken in so far.
    """
    writers = {split: ShardWriter(task, split, piece.name, codec) for split in token_shards.SPLITS}
    listed = _listed(task.output) if task.named_heldout and not piece.is_heldout else frozenset()
    own, dropped, missing, taken = [], 0, 0, 0
    for batch, read in _batches(_documents(task, piece)):
        known = [document for document in batch if document is not None]
        missing += len(batch) - len(known)
        for document, ids in zip(known, codec.encode_batch(known), strict=True):
            data = tokenizers.utf8(document)
            taken += len(data)
            digest = hashlib.sha256(data).digest()
            if digest in listed:
                dropped += 1
                continue
            own += [digest] if piece.is_heldout else []
            by_hash = not task.named_heldout and token_shards.is_heldout(digest, task.heldout)
            split = "heldout" if piece.is_heldout or by_hash else "train"
            with _disk(task.output):
                writers[split].add(ids, len(data))
        report(read, taken)
    with _disk(task.output):
        splits = {split: writer.finish() for split, writer in writers.items()}
        if piece.is_heldout:
            _digests_path(task.output, piece.name).write_bytes(b"".join(own))
        part = {"dropped_from_training": dropped, "missing_texts": missing, "splits": splits}
        write_json(part_path(task.output, piece), part)
    return taken


@contextlib.contextmanager
def _disk(output: pathlib.Path):
    """A full disk, say, in one sentence: array_record tells it by a RuntimeError."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise UserError(f"--output {output} cannot be written: {first_line(error)}") from None


def _documents(task: Task, piece: Piece):
    """Yields (text, bytes of the piece read so far); the text is None where there is none."""
    before = 0
    for part in piece.parts:
        documents = part.documents(task.text_key)
        if task.text_url:
            documents = fetch.documents(documents, task.text_url)
        for document, read in documents:
            yield document, before + read
        before += part.bytes


def _batches(documents):
    """Lists of documents, with what was read in the end."""
    batch, size, read = [], 0, 0
    for document, read in documents:
        batch.append(document)
        size += len(document or "")
        if len(batch) == BATCH_DOCUMENTS or size > BATCH_BYTES:
            yield batch, read
            batch, size = [], 0
    if batch:
        yield batch, read


def _listed(output: pathlib.Path) -> frozenset[bytes]:
    """The hashes of the documents of the held-out files, which their pieces have left."""
    data = b"".join(path.read_bytes() for path in (output / UNFINISHED).glob("*.sha256"))
    return frozenset(data[i : i + 32] for i in range(0, len(data), 32))


def _digests_path(output: pathlib.Path, name: str) -> pathlib.Path:
    return output / UNFINISHED / f"{name}.sha256"


def part_path(output: pathlib.Path, piece: Piece) -> pathlib.Path:
    return output / UNFINISHED / f"{piece.name}.json"
