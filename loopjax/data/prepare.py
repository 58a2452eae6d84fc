"""`loopjax prepare`: text files to token shards.

    DIR/manifest.json             counts, hashes, tokenizer; written last
    DIR/tokenizer.json            a copy of the tokenizer file, if there was one
    DIR/train/00000.arrayrecord   records of `record_tokens` token ids
    DIR/heldout/00000.arrayrecord

A document ends with the tokenizer's end-of-document token. Whether it is held out is decided by
the hash of its text, or by a list of held-out files; a document of those files that also occurs
in the input is left out of training.
"""

import gzip
import hashlib
import json
import pathlib
import shutil
import sys
import time

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from loopjax.data import text, tokenizers
from loopjax.errors import UserError

RECORD_TOKENS = 2048
SHARD_TOKENS = 2**27
TEXT_PIECE = 2**16  # characters; a longer plain-text file is cut into documents of this size
BATCH_DOCUMENTS = 256


def read_documents(path: pathlib.Path, key: str = "text"):
    """The documents of a .jsonl (field `key`) or plain text file, gzipped or not."""
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
            name = path.name.removesuffix(".gz")
            yield from (_json_lines if name.endswith(".jsonl") else _pieces)(path, file, key)
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"input {path} is not readable: {error}") from None


def _json_lines(path, file, key):
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            document = json.loads(line)[key]
        except (ValueError, KeyError, TypeError):
            document = None
        if not isinstance(document, str):
            raise UserError(
                f"input {path}, line {number}: no JSON object with a text field {key!r}"
            )
        yield document


def _pieces(path, file, key):
    """A plain text file as documents, cut at line ends where it is long."""
    lines, size = [], 0
    for line in file:
        lines.append(line)
        size += len(line)
        if size >= TEXT_PIECE:
            yield "".join(lines)
            lines, size = [], 0
    if lines:
        yield "".join(lines)


class SplitWriter:
    """Writes one split: fills shards of full records and counts what went in."""

    def __init__(self, root: pathlib.Path, split: str, dtype, shard_tokens: int):
        self.root, self.split, self.dtype = root, split, np.dtype(dtype)
        self.shard_tokens = shard_tokens
        self.documents = self.text_bytes = 0
        self.shards: list[dict] = []
        self.writer, self.buffer, self.written = None, [], 0

    def add(self, document: str, ids: list[int]) -> None:
        self.documents += 1
        self.text_bytes += len(document.encode("utf-8", errors="replace"))
        self.buffer += ids
        while len(self.buffer) >= RECORD_TOKENS:
            self._write(self.buffer[:RECORD_TOKENS])
            del self.buffer[:RECORD_TOKENS]

    def _write(self, ids: list[int]) -> None:
        if self.writer is None:
            name = f"{self.split}/{len(self.shards):05d}.arrayrecord"
            (self.root / self.split).mkdir(exist_ok=True)
            self.shards.append({"file": name})
            # One record a group: reading one record at random touches nothing else.
            self.writer = ArrayRecordWriter(str(self.root / name), "group_size:1,uncompressed")
        self.writer.write(np.array(ids, self.dtype).tobytes())
        self.written += len(ids)
        if self.written >= self.shard_tokens or len(ids) < RECORD_TOKENS:
            self._close_shard()

    def _close_shard(self) -> None:
        self.writer.close()
        path = self.root / self.shards[-1]["file"]
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = path.stat().st_size
        self.shards[-1] |= {"tokens": self.written, "bytes": size, "sha256": digest}
        self.writer, self.written = None, 0

    def finish(self) -> dict:
        if self.buffer:
            self._write(self.buffer)
        if self.writer is not None:
            self._close_shard()
        tokens = sum(shard["tokens"] for shard in self.shards)
        counts = {"documents": self.documents, "tokens": tokens, "text_bytes": self.text_bytes}
        return {**counts, "shards": self.shards}


def prepare(
    inputs,
    output,
    tokenizer: str = "bytes",
    *,
    heldout: float = 0.01,
    heldout_inputs=(),
    text_key: str = "text",
    eos: str | None = None,
    shard_tokens: int = SHARD_TOKENS,
) -> dict:
    """Writes the token shards of text files and returns the manifest.

    Args:
      inputs: .jsonl, .txt or any text files, each may be gzipped.
      output: a directory that does not exist yet or is empty.
      tokenizer: "bytes" or the path of a tokenizer.json.
      heldout: fraction of documents held out, by hash; not used with `heldout_inputs`.
      heldout_inputs: files whose documents are the held-out split.
      text_key: the field of JSON lines that holds the text.
      eos: the end-of-document token, where the tokenizer's is not one of the usual names.
      shard_tokens: tokens after which a new shard begins.
    """
    paths, held_paths = (_existing(files) for files in (inputs, heldout_inputs))
    if not 0 <= heldout < 1:
        raise UserError(f"--heldout={heldout} must be a fraction of at least 0 and below 1")
    codec = tokenizers.load(tokenizer, eos)
    output = pathlib.Path(output)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {output} cannot be made: {error.strerror}") from None
    if any(output.iterdir()):
        raise UserError(f"--output {output} is not empty; give a new directory")
    dtype = np.uint16 if codec.vocab_size <= 2**16 else np.uint32
    writers = {split: SplitWriter(output, split, dtype, shard_tokens) for split in text.SPLITS}
    try:
        dropped = _write_all(paths, held_paths, text_key, codec, heldout, writers)
        splits = {split: writer.finish() for split, writer in writers.items()}
        _check_not_empty(splits, heldout, held_paths)
    except BaseException:
        shutil.rmtree(output, ignore_errors=True)
        raise
    if tokenizer != "bytes":
        shutil.copyfile(tokenizer, output / "tokenizer.json")
    manifest = {
        "format": text.FORMAT,
        "tokenizer": codec.name,
        "vocab_size": codec.vocab_size,
        "eos": eos or (codec.tokenizer.id_to_token(codec.eos_id) if tokenizer != "bytes" else ""),
        "dtype": np.dtype(dtype).name,
        "record_tokens": RECORD_TOKENS,
        "inputs": [{"file": path.name, "bytes": path.stat().st_size} for path in paths],
        "heldout": [path.name for path in held_paths] or heldout,
        "dropped_from_training": dropped,
        "splits": splits,
    }
    (output / text.MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


def _existing(files) -> list[pathlib.Path]:
    paths = [pathlib.Path(file) for file in files]
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise UserError(f"input {missing[0]} is not a file")
    return paths


def _write_all(paths, held_paths, text_key, codec, heldout, writers) -> int:
    """Reads, splits, encodes and writes everything; returns how many documents were dropped."""
    digests: set[bytes] = set()
    progress = _Progress(paths + held_paths)
    for path in held_paths:
        for batch in _batches(read_documents(path, text_key)):
            digests.update(_digest(document) for document in batch)
            _encode_into(writers["heldout"], codec, batch)
            progress.add(path, batch)
    dropped = 0
    for path in paths:
        for batch in _batches(read_documents(path, text_key)):
            kept = [d for d in batch if _digest(d) not in digests]
            dropped += len(batch) - len(kept)
            held = [not held_paths and text.is_heldout(_digest(d), heldout) for d in kept]
            for split, wanted in (("train", False), ("heldout", True)):
                chosen = [d for d, h in zip(kept, held, strict=True) if h is wanted]
                _encode_into(writers[split], codec, chosen)
            progress.add(path, batch)
    progress.end()
    return dropped


def _digest(document: str) -> bytes:
    return hashlib.sha256(document.encode("utf-8", errors="replace")).digest()


def _encode_into(writer: SplitWriter, codec, documents: list[str]) -> None:
    for document, ids in zip(documents, codec.encode_batch(documents), strict=True):
        writer.add(document, [*ids, codec.eos_id])


def _batches(documents):
    batch = []
    for document in documents:
        batch.append(document)
        if len(batch) == BATCH_DOCUMENTS:
            yield batch
            batch = []
    if batch:
        yield batch


def _check_not_empty(splits: dict, heldout: float, held_paths) -> None:
    if not splits["train"]["documents"]:
        raise UserError("the inputs hold no document to train on")
    if (heldout or held_paths) and not splits["heldout"]["documents"]:
        raise UserError(
            f"no document fell into the held-out split ({splits['train']['documents']} documents "
            f"at --heldout={heldout}): raise the fraction, or name files by --heldout-input"
        )


class _Progress:
    """A line a few seconds apart: file, megabytes of text done, speed."""

    def __init__(self, paths):
        self.n_files, self.begun, self.said = len(paths), time.monotonic(), time.monotonic()
        self.done, self.files = 0, []

    def add(self, path, batch) -> None:
        self.done += sum(map(len, batch))
        if path not in self.files:
            self.files.append(path)
        if time.monotonic() - self.said > 5:
            self._say(path.name)

    def end(self) -> None:
        self._say("done")

    def _say(self, what: str) -> None:
        self.said = time.monotonic()
        speed = self.done / 1e6 / max(self.said - self.begun, 1e-9)
        files = f"file {len(self.files)}/{self.n_files}"
        print(f"{files}  {self.done / 1e6:.1f} MB  {speed:.1f} MB/s  {what}", file=sys.stderr)
