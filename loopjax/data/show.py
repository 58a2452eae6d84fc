"""`loopjax data`: a table of counts, and samples of the text, of prepared data."""

import hashlib
import pathlib
import sys

import numpy as np

from loopjax.data import token_shards, tokenizers
from loopjax.data.prepare import job, shards
from loopjax.errors import UserError
from loopjax.text_table import aligned

SPLITS = token_shards.SPLITS
MOST_SAMPLES = 10_000
SAMPLE_TOKENS = 512  # at most, of one document
SAMPLE_LINES = 6
SAMPLE_COLUMNS = 96
READ_RECORDS = 512  # at a time, to verify the token ids
COLUMNS = (
    "source", "split", "documents", "tokens", "text_bytes", "bytes_per_token", "shards",
    "tokenizer", "dtype",
)  # fmt: skip


def look(directory, split: str, n_samples: int, seed: int) -> dict:
    """Rows of counts, the unfinished sources, and decoded samples of a split.

    `directory` is a prepared source or a folder of several; raises UserError if it is neither.
    """
    if n_samples > MOST_SAMPLES:
        raise UserError(f"--samples {n_samples} must be at most {MOST_SAMPLES}")
    rows = []
    unfinished = {}
    samples = {}
    for source in _sources(directory):
        if not (source / token_shards.MANIFEST).is_file():
            unfinished[source.name] = job.how_far(source)
            continue
        manifest = token_shards.read_manifest(source)
        rows += [_row(source.name, manifest, name) for name in SPLITS]
        if n_samples and manifest["splits"][split]["tokens"] > 1:
            samples[source.name] = _samples(source, manifest, split, n_samples, seed)
    return {"rows": rows, "unfinished": unfinished, "split": split, "samples": samples}


def _sources(directory) -> list[pathlib.Path]:
    directory = pathlib.Path(directory).resolve()
    inside = sorted(directory.iterdir()) if directory.is_dir() else []
    sources = [path for path in (directory, *inside) if _is_source(path)]
    if not sources:
        raise UserError(f"{directory} has no data written by loopjax prepare")
    return sources


def _is_source(path: pathlib.Path) -> bool:
    return (path / token_shards.MANIFEST).is_file() or (path / shards.UNFINISHED).is_dir()


def _row(source: str, manifest: dict, split: str) -> dict:
    counts = manifest["splits"][split]
    values = (
        source, split, counts["documents"], counts["tokens"], counts["text_bytes"],
        counts["text_bytes"] / counts["tokens"] if counts["tokens"] else None,
        len(counts["shards"]), manifest["tokenizer"], manifest["dtype"],
    )  # fmt: skip
    return dict(zip(COLUMNS, values, strict=True))


def _samples(source, manifest: dict, split: str, n: int, seed: int) -> list[str]:
    """Starts of documents; the rest of a document where none starts near the drawn position."""
    eos = manifest["eos"]
    codec = tokenizers.ByteTokenizer()
    if eos:
        codec = tokenizers.FileTokenizer(source / tokenizers.FILE, eos)
    shards_of_split = manifest["splits"][split]["shards"]
    lengths = np.array([shard["tokens"] for shard in shards_of_split])
    tokens = token_shards.TokenShards(source, split, 1)
    rng = np.random.default_rng(seed)
    samples = []
    for place in rng.integers(lengths.sum(), size=n):
        shard = int(np.searchsorted(np.cumsum(lengths), place, side="right"))
        start = int(place - lengths[:shard].sum())
        window = tokens.read(shard, start, min(start + 2 * SAMPLE_TOKENS, int(lengths[shard])))
        ends = np.flatnonzero(window == codec.eos_id)
        begin = int(ends[0]) + 1 if len(ends) and ends[0] + 1 < len(window) else 0
        document = window[begin : begin + SAMPLE_TOKENS]
        end = np.flatnonzero(document == codec.eos_id)
        samples.append(codec.decode(document[: end[0]] if len(end) else document))
    return samples


def as_text(result: dict) -> str:
    """The result of `look` for a terminal."""
    lines = _table(result["rows"]) if result["rows"] else []
    for source, (done, pieces) in result["unfinished"].items():
        lines.append(f"{source}: unfinished, {done} of {pieces} pieces are done")
    for source, samples in result["samples"].items():
        for number, sample in enumerate(samples, 1):
            lines += ["", f"--- {source}, {result['split']}, sample {number}", *_clipped(sample)]
    return "\n".join(lines)


def _table(rows: list[dict]) -> list[str]:
    heads = [name.replace("_", " ") for name in COLUMNS]
    left = sum(not isinstance(rows[0][name], (int, float)) for name in COLUMNS)
    return aligned([heads, *([_cell(row[name]) for name in COLUMNS] for row in rows)], left)


def _cell(value) -> str:
    if isinstance(value, float):
        return f"{value:.2f}"
    if isinstance(value, int):
        return f"{value:,}"
    return (value or "-")[:15]  # the start of a tokenizer's hash is enough to recognize it


def _clipped(sample: str) -> list[str]:
    """The first lines, with tabs, carriage returns and other controls made visible."""
    lines = sample.split("\n")
    clipped = []
    for line in lines[:SAMPLE_LINES]:
        visible = "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
        too_long = len(visible) > SAMPLE_COLUMNS
        clipped.append(f"{visible[:SAMPLE_COLUMNS]}..." if too_long else visible)
    if len(lines) > SAMPLE_LINES:
        clipped.append(f"... {len(lines) - SAMPLE_LINES} more lines")
    return [f"| {line}".rstrip() for line in clipped]


def verify(directory) -> None:
    """Checks all data: the hash of every manifest and shard, and every token id.

    Raises UserError that names the damaged shards. What a manifest of an earlier version does not
    allow to check is printed.
    """
    damaged = []
    n = 0
    sources = [path for path in _sources(directory) if (path / token_shards.MANIFEST).is_file()]
    manifests = {source: token_shards.read_manifest(source) for source in sources}
    for source, manifest in manifests.items():
        for split in manifest["splits"].values():
            for shard in split["shards"]:
                n += 1
                path = source / shard["file"]
                if not path.is_file() or _sha256(path) != shard["sha256"]:
                    damaged.append(str(path))
    if damaged:
        raise UserError(
            f"{len(damaged)} of {n} shards do not match their hash: {', '.join(damaged)}"
        )
    for source, manifest in manifests.items():
        for split in SPLITS:
            _check_ids(source, split, manifest)
    print(f"{n} shards match their hash", file=sys.stderr)
    for source, manifest in manifests.items():
        if "sha256" not in manifest:
            print(
                f"{source / token_shards.MANIFEST} has no hash (written by an earlier version): its "
                "counts of documents and bytes of text could not be checked",
                file=sys.stderr,
            )


def _check_ids(source: pathlib.Path, split: str, manifest: dict) -> None:
    """Raises UserError for shards that do not hold the tokens of the manifest."""
    shards_of_split = manifest["splits"][split]["shards"]
    if not any(shard["tokens"] > 1 for shard in shards_of_split):
        return
    tokens = token_shards.TokenShards(source, split, 1)
    block = READ_RECORDS * manifest["record_tokens"]
    for number, shard in enumerate(shards_of_split):
        read = largest = 0
        for start in range(0, shard["tokens"], block):
            ids = tokens.read(number, start, min(start + block, shard["tokens"]))
            read, largest = read + len(ids), max(largest, int(ids.max(initial=0)))
        if read != shard["tokens"]:
            raise UserError(
                f"shard {source / shard['file']} has {read} tokens, but its manifest says "
                f"{shard['tokens']}; {token_shards.REPAIR}"
            )
        if "sha256" in manifest and largest >= manifest["vocab_size"]:
            raise UserError(
                f"shard {source / shard['file']} has the token id {largest}, but its tokenizer has "
                f"ids below {manifest['vocab_size']}; {token_shards.REPAIR}"
            )


def _sha256(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
