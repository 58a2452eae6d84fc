"""`loopjax data`: what `loopjax prepare` wrote. A table of counts, and samples of the text."""

import hashlib
import pathlib
import sys

import numpy as np

from loopjax.data import token_shards, tokenizers
from loopjax.data.prepare import job, shards
from loopjax.errors import UserError
from loopjax.text_table import aligned

SPLITS = token_shards.SPLITS
SAMPLE_TOKENS = 512  # a sample is the rest of a document, at most so long
SAMPLE_LINES, SAMPLE_COLUMNS = 6, 96
COLUMNS = (
    "source", "split", "documents", "tokens", "text_bytes", "bytes_per_token", "shards",
    "tokenizer", "dtype",
)  # fmt: skip


def look(directory, split: str, n_samples: int, seed: int) -> dict:
    """Rows of counts, the unfinished sources, and decoded samples of a split.

    `directory` is a prepared source or a folder of several; raises UserError where it is neither.
    """
    rows, unfinished, samples = [], {}, {}
    for source in _sources(directory):
        if not (source / token_shards.MANIFEST).is_file():
            unfinished[source.name] = job.how_far(source)
            continue
        manifest = token_shards.read_manifest(source)
        rows += [_row(source.name, manifest, name) for name in SPLITS]
        if n_samples and manifest["splits"][split]["documents"]:
            samples[source.name] = _samples(source, manifest, split, n_samples, seed)
    return {"rows": rows, "unfinished": unfinished, "split": split, "samples": samples}


def _sources(directory) -> list[pathlib.Path]:
    directory = pathlib.Path(directory).resolve()
    inside = sorted(directory.iterdir()) if directory.is_dir() else []
    sources = [path for path in (directory, *inside) if _is_source(path)]
    if not sources:
        raise UserError(f"{directory} holds nothing that loopjax prepare wrote")
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
    """Beginnings of documents, and the rest of one where none begins near the drawn place."""
    path, eos = source / tokenizers.FILE, manifest["eos"]
    codec = tokenizers.FileTokenizer(path, eos) if eos else tokenizers.ByteTokenizer()
    shards_of_split = manifest["splits"][split]["shards"]
    lengths = np.array([shard["tokens"] for shard in shards_of_split])
    tokens = token_shards.TokenShards(source, split, 1)
    rng, samples = np.random.default_rng(seed), []
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


def as_text(shown: dict) -> str:
    """The same for a terminal."""
    lines = _table(shown["rows"]) if shown["rows"] else []
    for source, (done, pieces) in shown["unfinished"].items():
        lines.append(f"{source}: unfinished, {done} of {pieces} pieces are done")
    for source, samples in shown["samples"].items():
        for number, sample in enumerate(samples, 1):
            lines += ["", f"--- {source}, {shown['split']}, sample {number}", *_clipped(sample)]
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
    return (value or "-")[:15]  # a tokenizer's hash is known by its beginning


def _clipped(sample: str) -> list[str]:
    """The first lines, with tabs, carriage returns and other controls made visible."""
    lines = sample.split("\n")
    shown = ["".join(c if c.isprintable() else repr(c)[1:-1] for c in line) for line in lines][
        :SAMPLE_LINES
    ]
    shown = [f"{s[:SAMPLE_COLUMNS]}..." if len(s) > SAMPLE_COLUMNS else s for s in shown]
    rest = [f"... {len(lines) - SAMPLE_LINES} more lines"] if len(lines) > SAMPLE_LINES else []
    return [f"| {line}".rstrip() for line in shown + rest]


def verify(directory) -> None:
    """Hashes every shard; raises UserError that names those that are not what was written."""
    differ, n = [], 0
    for source in _sources(directory):
        if not (source / token_shards.MANIFEST).is_file():
            continue
        for split in token_shards.read_manifest(source)["splits"].values():
            for shard in split["shards"]:
                n += 1
                path = source / shard["file"]
                if not path.is_file() or _sha256(path) != shard["sha256"]:
                    differ.append(str(path))
    if differ:
        raise UserError(
            f"{len(differ)} of {n} shards are not what was written: {', '.join(differ)}"
        )
    print(f"{n} shards are what was written", file=sys.stderr)


def _sha256(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
