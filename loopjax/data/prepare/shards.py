"""One piece of input to its token shards: the work of one worker of `loopjax prepare`.

    DIR/train/00012.arrayrecord     records of `RECORD_TOKENS` token ids
    DIR/heldout/00012.arrayrecord   if the piece has held-out documents
    DIR/unfinished/00012.json       its part of the manifest, written last

Every document ends with the tokenizer's end-of-document token. Imports no JAX, so workers start
fast.
"""

import contextlib
import dataclasses
import hashlib
import os
import pathlib

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from loopjax.data import token_shards, tokenizers
from loopjax.data.prepare import fetch, readers
from loopjax.errors import UserError, first_line
from loopjax.files import write_json

RECORD_TOKENS = 2048
UNFINISHED = "unfinished"
BATCH_DOCUMENTS = 256  # tokenized together, at most
BATCH_BYTES = 2**22
WRITE_TOKENS = 64 * RECORD_TOKENS  # collected before they are written


@dataclasses.dataclass(frozen=True)
class Task:
    """Settings shared by all pieces of a job."""

    output: pathlib.Path
    tokenizer: str  # "bytes", or the path of a tokenizer.json
    eos: str | None
    text_key: str
    text_url: str | None
    heldout: float
    named_heldout: bool  # whether the held-out documents have their own files
    max_document: int = readers.MAX_DOCUMENT  # bytes


@dataclasses.dataclass(frozen=True)
class Piece:
    """A piece of the input; its name is the file name of its shards."""

    name: str
    parts: tuple
    is_heldout: bool = False  # whether it is one of the held-out files

    @property
    def bytes(self) -> int:
        return sum(part.bytes for part in self.parts)


class ShardWriter:
    """Writes the shard of one split, full records except the last, and counts its content."""

    def __init__(self, task: Task, split: str, name: str, codec):
        self.file = f"{split}/{name}.arrayrecord"
        self.path = task.output / self.file
        self.temporary = task.output / UNFINISHED / f"{name}.{split}.{os.getpid()}.tmp"
        self.dtype = token_dtype(codec)
        self.end = np.array([codec.eos_id], self.dtype)
        self.first = self.last = b""  # records
        self.writer = None
        self.pending = []  # arrays of token ids that are not written yet
        self.waiting = 0  # number of tokens in them
        self.tokens = self.documents = self.text_bytes = 0

    def add(self, ids: np.ndarray, text_bytes: int) -> None:
        self.documents += 1
        self.text_bytes += text_bytes
        self.pending += [ids, self.end]
        self.waiting += len(ids) + 1
        if self.waiting >= WRITE_TOKENS:
            self._write(self.waiting // RECORD_TOKENS * RECORD_TOKENS)

    def _write(self, n: int) -> None:
        """Writes the first n waiting tokens: all of them, or a multiple of a record."""
        if self.writer is None:
            # One record per group: reading a record at random touches nothing else.
            self.writer = ArrayRecordWriter(str(self.temporary), "group_size:1,uncompressed")
        tokens = self._narrowed(np.concatenate(self.pending))
        for start in range(0, n, RECORD_TOKENS):
            record = tokens[start : start + RECORD_TOKENS].tobytes()
            self.writer.write(record)
            self.last = record
            self.first = self.first or record
        self.tokens += n
        self.pending = [tokens[n:]]
        self.waiting = len(tokens) - n

    def _narrowed(self, ids: np.ndarray) -> np.ndarray:
        """Token ids in the type of the shard, in which every one of them must fit."""
        if ids.max(initial=0) > np.iinfo(self.dtype).max:
            raise ValueError(f"the token id {ids.max()} does not fit {self.dtype}")
        return ids.astype(self.dtype)

    def finish(self) -> dict:
        """Completes the shard, if there is one, and returns the counts of the split."""
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
        ends = [hashlib.sha256(record).hexdigest() for record in (self.first, self.last)]
        shard = {
            "file": self.file, "tokens": self.tokens, "bytes": size, "sha256": digest, "ends": ends,
        }  # fmt: skip
        return counts | {"shards": [shard]}


def token_dtype(codec) -> np.dtype:
    """The narrowest type of the tokenizer's largest id."""
    return np.dtype(np.uint16 if codec.vocab_size <= 2**16 else np.uint32)


def write_piece(task: Task, piece: Piece, codec, report) -> int:
    """Writes the shards of a piece and then its part of the manifest; returns the bytes of text.

    `report(read, text)` is called with the bytes of input and of text so far.
    """
    writers = {split: ShardWriter(task, split, piece.name, codec) for split in token_shards.SPLITS}
    heldout_hashes = (
        _heldout_hashes(task.output) if task.named_heldout and not piece.is_heldout else frozenset()
    )
    own_hashes = []
    dropped = 0
    missing = 0
    text_bytes = 0
    for batch, read in _batches(documents(task, piece)):
        known = [document for document in batch if document is not None]
        missing += len(batch) - len(known)
        for document, ids in zip(known, codec.encode_batch(known), strict=True):
            data = tokenizers.utf8(document)
            text_bytes += len(data)
            digest = hashlib.sha256(data).digest()
            if digest in heldout_hashes:
                dropped += 1
                continue
            if piece.is_heldout:
                own_hashes.append(digest)
            by_hash = not task.named_heldout and token_shards.is_heldout(digest, task.heldout)
            split = "heldout" if piece.is_heldout or by_hash else "train"
            with _disk(task.output):
                writers[split].add(ids, len(data))
        report(read, text_bytes)
    with _disk(task.output):
        splits = {split: writer.finish() for split, writer in writers.items()}
        if piece.is_heldout:
            _digests_path(task.output, piece.name).write_bytes(b"".join(own_hashes))
        part = {"dropped_from_training": dropped, "missing_texts": missing, "splits": splits}
        write_json(part_path(task.output, piece), part)
    return text_bytes


@contextlib.contextmanager
def _disk(output: pathlib.Path):
    """Reports a full disk, for example, in one sentence: array_record raises RuntimeError."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise UserError(f"--output {output} cannot be written: {first_line(error)}") from None


def documents(task: Task, piece: Piece):
    """Yields (text, or None if it cannot be found, and bytes of the piece read so far)."""
    before = 0
    for part in piece.parts:
        found = part.documents(task.text_key, task.max_document)
        if task.text_url:
            found = fetch.documents(found, task.text_url, task.max_document)
        for document, read in found:
            yield document, before + read
        before += part.bytes


def _batches(documents):
    """Yields (list of documents, bytes of the piece read up to the last one)."""
    batch = []
    size = 0
    read = 0
    for document, read in documents:
        batch.append(document)
        size += len(document or "")
        if len(batch) == BATCH_DOCUMENTS or size > BATCH_BYTES:
            yield batch, read
            batch = []
            size = 0
    if batch:
        yield batch, read


def _heldout_hashes(output: pathlib.Path) -> frozenset[bytes]:
    """The hashes of the documents in the held-out files, as their pieces have written them."""
    data = b"".join(path.read_bytes() for path in (output / UNFINISHED).glob("*.sha256"))
    return frozenset(data[i : i + 32] for i in range(0, len(data), 32))


def _digests_path(output: pathlib.Path, name: str) -> pathlib.Path:
    return output / UNFINISHED / f"{name}.sha256"


def part_path(output: pathlib.Path, piece: Piece) -> pathlib.Path:
    return output / UNFINISHED / f"{piece.name}.json"
