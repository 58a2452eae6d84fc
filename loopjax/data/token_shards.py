"""Sources of running text: token streams cut into windows of `seq_len`."""

import concurrent.futures
import contextlib
import hashlib
import itertools
import json
import pathlib
import re
import resource
import sysconfig

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource

from loopjax import files, paths
from loopjax.data import remote_shards, tokenizers
from loopjax.data.source import Source
from loopjax.errors import UserError, first_line

SPLITS = ("train", "heldout")
MANIFEST = "manifest.json"
FORMAT = 1
DTYPES = ("uint16", "uint32")
READERS = 16  # threads that look at the shards at the start
REPAIR = "restore the directory from a copy, or prepare the data again"


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
        self.directory = directory = paths.of(directory)
        manifest = read_manifest(directory)
        self.eos = manifest["eos"]
        shards = manifest["splits"][split]["shards"]
        self.record_tokens = manifest["record_tokens"]
        self.dtype = np.dtype(manifest["dtype"])
        self.tokenizer = manifest["tokenizer"]
        self.add_bos = False if self.eos else None
        self.vocab_size = manifest["vocab_size"]
        check_tokenizer(directory, self.tokenizer)
        self.paths = [directory / shard["file"] for shard in shards]
        sizes = files.sizes(directory / split)
        for path, shard in zip(self.paths, shards, strict=True):
            size = sizes.get(path.name)
            if size is None:
                raise UserError(f"shard {path} is missing")
            if size != shard["bytes"]:
                raise UserError(f"shard {path} has {size} bytes, but {shard['bytes']} were written")
        super().__init__([shard["tokens"] for shard in shards], seq_len, f"{directory} ({split})")
        records = [-(-shard["tokens"] // self.record_tokens) for shard in shards]
        self.first_record = [0, *itertools.accumulate(records)]
        if paths.is_remote(directory):
            width = self.dtype.itemsize
            self.remote = [
                remote_shards.Records(path, shard["tokens"] * width, self.record_tokens * width)
                for path, shard in zip(self.paths, shards, strict=True)
            ]
        else:
            self.remote = None
            self.records = _open_records(self.paths)
            if len(self.records) != self.first_record[-1]:
                raise UserError(
                    f"{directory} ({split}) has {len(self.records)} records, but its manifest lists "
                    f"{self.first_record[-1]}"
                )
        with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
            largest = list(pool.map(self._check_ends, range(len(shards)), shards))
        if "sha256" not in manifest:
            # Manifests without a hash took the number of tokens of a tokenizer for its largest id.
            self.vocab_size = max(self.vocab_size, *largest)
        self.fingerprint = {
            "tokenizer": self.tokenizer,
            "sha256": [shard["sha256"] for shard in shards],
        }

    def _check_ends(self, number: int, shard: dict) -> int:
        """Reads the first and the last record of a shard; returns the largest id in them + 1.

        Raises UserError if they are not those that were written: their lengths follow from the
        manifest, and a newer one has their hashes.
        """
        first, stop = self.first_record[number : number + 2]
        rest = shard["tokens"] - (stop - first - 1) * self.record_tokens
        lengths = (self.record_tokens if stop - first > 1 else rest, rest)
        largest = 0
        for end, record in enumerate((0, stop - first - 1)):
            data = self._records(number, record, record + 1)
            where = f"the {('first', 'last')[end]} record of shard {self.paths[number]}"
            size = lengths[end] * self.dtype.itemsize
            if len(data) != size:
                raise UserError(
                    f"{where} has {len(data)} bytes, but its manifest says {size} ({lengths[end]} "
                    f"tokens, {self.dtype}); {REPAIR}"
                )
            if "ends" in shard and hashlib.sha256(data).hexdigest() != shard["ends"][end]:
                raise UserError(f"{where} is not the one that was written; {REPAIR}")
            largest = max(largest, int(np.frombuffer(data, self.dtype).max()) + 1)
        return largest

    def read(self, shard: int, start: int, stop: int) -> np.ndarray:
        # Every record of a shard is full, except its last.
        begin = start // self.record_tokens
        end = -(-stop // self.record_tokens)
        data = self._records(shard, begin, end)
        offset = start - begin * self.record_tokens
        return np.frombuffer(data, self.dtype)[offset : offset + stop - start]

    def _records(self, shard: int, begin: int, end: int) -> bytes:
        """The records [begin, end) of a shard, joined."""
        first = self.first_record[shard]
        with _as_user_error(self.paths[shard]):
            if self.remote:
                return self.remote[shard].read(begin, end)
            return b"".join(self.records[first + r] for r in range(begin, end))

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
    """The manifest of a prepared directory; raises UserError if it is missing or damaged.

    A manifest of an earlier version has no "sha256" of its own and no "ends" of its shards.
    """
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
    for name, value, valid, kind in _fields(manifest):
        if value is _MISSING:
            raise UserError(f"{path} has no field {name!r}: it was not written by loopjax prepare")
        if not valid(value):
            shown = f"{value!r:.40}"
            raise UserError(f"{path}: field {name!r} is {shown}, but must be {kind}; {REPAIR}")
    if manifest.get("sha256", digest := _manifest_hash(manifest)) != digest:
        raise UserError(f"{path} is not as loopjax prepare wrote it (its hash differs); {REPAIR}")
    return manifest


def write_manifest(directory: pathlib.Path, manifest: dict) -> dict:
    """Writes a manifest with its own hash, and returns it."""
    manifest = {**manifest, "sha256": _manifest_hash(manifest)}
    files.write_json(directory / MANIFEST, manifest)
    return manifest


def _manifest_hash(manifest: dict) -> str:
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


_MISSING = object()


def _fields(manifest: dict):
    """Yields (name, value, whether a value is valid, what is valid) for the fields that are read.

    In an order in which a field may be looked into once it was found valid.
    """

    def field(name, within, valid, kind):
        return name, within.get(name.rpartition(".")[2], _MISSING), valid, kind

    def number(least):
        return (
            lambda v: type(v) is int and least <= v < 2**62,
            f"a whole number of at least {least}",
        )

    text = (lambda v: isinstance(v, str), "a text")
    an_object = (lambda v: isinstance(v, dict), "an object")
    yield field("tokenizer", manifest, *text)
    yield field("vocab_size", manifest, *number(1))
    yield field("eos", manifest, *text)
    yield field("dtype", manifest, lambda v: v in DTYPES, f"one of {', '.join(DTYPES)}")
    yield field("record_tokens", manifest, *number(1))
    yield field("splits", manifest, *an_object)
    for split in SPLITS:
        name = f"splits.{split}"
        yield field(name, manifest["splits"], *an_object)
        counts = manifest["splits"][split]
        for key in ("documents", "tokens", "text_bytes"):
            yield field(f"{name}.{key}", counts, *number(0))
        yield field(f"{name}.shards", counts, lambda v: isinstance(v, list), "a list")
        seen = set()

        def new(file, own=re.compile(rf"{split}/[^/]+"), seen=seen):
            return own.fullmatch(file) and file not in seen

        for i, shard in enumerate(counts["shards"]):
            name = f"splits.{split}.shards[{i}]"
            yield name, shard, *an_object
            yield field(f"{name}.file", shard, *text)
            yield f"{name}.file", shard["file"], new, f"a file of {split}/ that no other shard has"
            seen.add(shard["file"])
            yield field(f"{name}.tokens", shard, *number(1))
            yield field(f"{name}.bytes", shard, *number(1))
            yield field(f"{name}.sha256", shard, *text)
            if "ends" in shard:
                yield f"{name}.ends", shard["ends"], _two_texts, "a list of two texts"
        total = sum(shard["tokens"] for shard in counts["shards"])
        name = f"splits.{split}.tokens"
        yield name, counts["tokens"], lambda v, n=total: v == n, f"{total}, the sum of its shards"


def _two_texts(value) -> bool:
    return (
        isinstance(value, list) and len(value) == 2 and all(isinstance(text, str) for text in value)
    )


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
