"""Sources of running text: token streams cut into windows of `seq_len`."""

import contextlib
import hashlib
import itertools
import pathlib
import resource
import sysconfig

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource

from loopjax import files
from loopjax.data import tokenizers
from loopjax.data.source import Source
from loopjax.errors import UserError, first_line

SPLITS = ("train", "heldout")
MANIFEST = "manifest.json"
FORMAT = 1
MANIFEST_KEYS = ("tokenizer", "vocab_size", "eos", "dtype", "record_tokens", "splits")


def is_heldout(digest: bytes, fraction: float) -> bool:
    """Whether the document of this hash belongs to the held-out split.

    Only the content decides, so a document and its exact duplicates are in the same split.
    """
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


class Windows(Source):
    """Windows of T + 1 tokens, T apart, of token streams ("shards") that are never joined.

    Subclasses set `fingerprint` and define `read(shard, start, stop)`, which returns the tokens of
    positions [start, stop) of a shard.
    """

    def __init__(self, shard_tokens: list[int], seq_len: int, where: str):
        self.seq_len = seq_len
        windows = [max(0, n - 1) // seq_len for n in shard_tokens]
        self.first = np.concatenate([[0], np.cumsum(windows)])
        if not self.first[-1]:
            raise UserError(
                f"{where} has no sequence of config.seq_len={seq_len} tokens: its longest "
                f"stream has {max(shard_tokens, default=0)}"
            )

    def __len__(self) -> int:
        return int(self.first[-1])

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        shard = int(np.searchsorted(self.first, i, side="right")) - 1
        start = (i - int(self.first[shard])) * self.seq_len
        tokens = self.read(shard, start, start + self.seq_len + 1).astype(np.int32)
        return {"inputs": tokens[:-1], "targets": tokens[1:]}

    def read(self, shard: int, start: int, stop: int) -> np.ndarray:
        raise NotImplementedError


class TokenShards(Windows):
    """One split of a directory written by `loopjax prepare`."""

    def __init__(self, directory, split: str, seq_len: int):
        self.directory = directory = pathlib.Path(directory)
        manifest = read_manifest(directory)
        self.eos = manifest["eos"]
        shards = manifest["splits"][split]["shards"]
        self.record_tokens = manifest["record_tokens"]
        self.dtype = np.dtype(manifest["dtype"])
        self.tokenizer = manifest["tokenizer"]
        self.vocab_size = manifest["vocab_size"]
        check_tokenizer(directory, self.tokenizer)
        self.paths = [directory / shard["file"] for shard in shards]
        for path, shard in zip(self.paths, shards, strict=True):
            if not path.is_file():
                raise UserError(f"shard {path} is missing")
            size = path.stat().st_size
            if size != shard["bytes"]:
                raise UserError(f"shard {path} has {size} bytes, but {shard['bytes']} were written")
        super().__init__([shard["tokens"] for shard in shards], seq_len, f"{directory} ({split})")
        records = [-(-shard["tokens"] // self.record_tokens) for shard in shards]
        self.first_record = [0, *itertools.accumulate(records)]
        self.records = _open_records(self.paths)
        if len(self.records) != self.first_record[-1]:
            raise UserError(
                f"{directory} ({split}) has {len(self.records)} records, but its manifest lists "
                f"{self.first_record[-1]}"
            )
        self.fingerprint = {
            "tokenizer": self.tokenizer,
            "sha256": [shard["sha256"] for shard in shards],
        }

    def read(self, shard: int, start: int, stop: int) -> np.ndarray:
        # Every record of a shard is full, except its last.
        begin = start // self.record_tokens
        end = -(-stop // self.record_tokens)
        first = self.first_record[shard]
        with _as_user_error(self.paths[shard]):
            data = b"".join(self.records[first + r] for r in range(begin, end))
        offset = start - begin * self.record_tokens
        return np.frombuffer(data, self.dtype)[offset : offset + stop - start]

    def copy_tokenizer(self, directory: pathlib.Path) -> bool:
        if self.eos:  # bytes have no tokenizer file
            tokenizers.copy(self.directory, directory, self.eos)
        return bool(self.eos)


def _open_records(paths: list[pathlib.Path]) -> ArrayRecordDataSource:
    # A shard stays open once it was read, and the usual limit is lower than the system allows.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if len(paths) > soft // 4:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        return ArrayRecordDataSource([str(path) for path in paths])
    except RuntimeError:
        for path in paths:  # find the damaged one
            with _as_user_error(path):
                ArrayRecordDataSource([str(path)])
        raise


@contextlib.contextmanager
def _as_user_error(path: pathlib.Path):
    """Names the shard whose bytes array_record cannot read."""
    try:
        yield
    except (RuntimeError, ValueError, IndexError) as error:
        message = f"shard {path} is damaged or not a shard: {first_line(error)}"
        raise UserError(message) from None


def read_manifest(directory: pathlib.Path) -> dict:
    """The manifest of a prepared directory; raises UserError if it is missing or damaged."""
    path = directory / MANIFEST
    if not path.is_file():
        raise UserError(
            f"{directory} is not a prepared data directory: it has no {MANIFEST} (loopjax prepare "
            "writes it last)"
        )
    manifest = files.read_json(path)
    version = manifest.get("format") if isinstance(manifest, dict) else None
    if version != FORMAT:
        raise UserError(f"{path} has format {version}, this version reads {FORMAT}")
    missing = [key for key in MANIFEST_KEYS if key not in manifest]
    if missing:
        raise UserError(
            f"{path} has no field {missing[0]!r}: it was not written by loopjax prepare"
        )
    return manifest


def check_tokenizer(directory: pathlib.Path, name: str) -> None:
    """Raises UserError if the tokenizer file is not the one that the shards were made with."""
    path = directory / tokenizers.FILE
    if (
        name != tokenizers.ByteTokenizer.name
        and path.is_file()
        and tokenizers.name_of(path) != name
    ):
        raise UserError(
            f"{path} is not the tokenizer that the shards beside it were made with ({name})"
        )


class StandardLibrary(Windows):
    """The source text of the running Python's standard library, in bytes: needs no download."""

    heldout_fraction = 0.05
    _left_out = ("site-packages", "dist-packages", "test", "tests", "idlelib", "__pycache__")

    def __init__(self, split: str, seq_len: int):
        root = pathlib.Path(sysconfig.get_paths()["stdlib"])
        stream = bytearray()
        ends = []
        for path in sorted(root.rglob("*.py")):
            if set(path.relative_to(root).parts) & {*self._left_out}:
                continue
            text = path.read_bytes()
            digest = hashlib.sha256(text).digest()
            if is_heldout(digest, self.heldout_fraction) == (split == "heldout"):
                stream += text
                ends.append(len(stream))
        # One more token after each file: the end of the document.
        data = np.frombuffer(bytes(stream), np.uint8).astype(np.uint16)
        self.tokens = np.insert(data, ends, tokenizers.ByteTokenizer.eos_id)
        super().__init__([len(self.tokens)], seq_len, f"the standard library in {root} ({split})")
        self.fingerprint = {"sha256": hashlib.sha256(self.tokens.tobytes()).hexdigest()}

    def read(self, shard: int, start: int, stop: int) -> np.ndarray:
        return self.tokens[start:stop]
