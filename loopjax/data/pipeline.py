"""The training and evaluation streams: which example is where, as a pure function of the step.

Row r of the batch of step t is example number i = t B + r of the run. `Mixing` maps i to a source
and a position in it, grain reads it. Nothing here has state, so hosts, threads and restarts cannot
change what is seen; a process reads only the rows that its devices hold.
"""

import functools
import pathlib
import zlib

import grain
import numpy as np

from loopjax.data import pairs, synthetic, token_shards, tokenizers
from loopjax.errors import UserError

BLOCK = 10_000  # examples over which the mixture is exact: weights of four decimals are kept


def open_sources(config, names, split: str, tokenizer: str = "") -> dict:
    """The sources of a mixture by name: built-in ones, else what lies in `config.data_dir`.

    `tokenizer` (as `tokenizers.load` takes it) reads pairs and synthetic text where no prepared
    source settles that; bytes by default.
    """
    sources, folder = {}, pathlib.Path(config.data_dir or ".")
    for name in names:
        if (folder / name / token_shards.MANIFEST).is_file():
            sources[name] = token_shards.TokenShards(folder / name, split, config.seq_len)
        elif name == "stdlib":
            sources[name] = token_shards.StandardLibrary(split, config.seq_len)
    codec = functools.cache(functools.partial(_codec, folder, dict(sources), tokenizer))
    for name in names:
        if name not in sources:
            made = synthetic.open_synthetic(name, split, config.seq_len, config.seed, codec)
            made = made or pairs.open_pairs(name, split, folder, config.seq_len, config.seed, codec)
            if made is None:
                where = f"in config.data_dir={config.data_dir!r}" if config.data_dir else "known"
                raise UserError(
                    f"config.mixture: no source {name!r} is {where}; built-in are stdlib, "
                    f"{synthetic.NAMES}; others are folders of config.data_dir made by "
                    "loopjax prepare, or its files NAME.jsonl of prompts and completions"
                )
            sources[name] = made
    _check_vocabulary(config, sources)
    return {name: sources[name] for name in names}


def _codec(folder: pathlib.Path, sources: dict, tokenizer: str):
    """The tokenizer of the prepared sources, for the other text beside them; else the given one."""
    for name, source in sources.items():
        path = folder / name / tokenizers.FILE
        if source.tokenizer != tokenizers.ByteTokenizer.name and path.is_file():
            eos = token_shards.read_manifest(folder / name)["eos"]
            return tokenizers.FileTokenizer(path, eos)
    return tokenizers.load(tokenizer or tokenizers.ByteTokenizer.name)


def _check_vocabulary(config, sources: dict) -> None:
    names = {source.tokenizer: name for name, source in sources.items()}
    if len(names) > 1:
        pairs = "; ".join(f"{name}: {tokenizer}" for tokenizer, name in names.items())
        raise UserError(f"config.mixture joins sources of different tokenizers ({pairs})")
    for name, source in sources.items():
        if source.vocab_size > config.model.vocab_size:
            raise UserError(
                f"config.model.vocab_size={config.model.vocab_size} is smaller than the "
                f"{source.vocab_size} tokens of source {name!r}"
            )


@functools.lru_cache(maxsize=8)
def _block(seed: int, phase: int, number: int, counts: tuple[int, ...]):
    """Source of each of the BLOCK examples of a block, and how often it came before in it."""
    labels = np.repeat(np.arange(len(counts)), counts)
    key = np.array([seed % 2**64, phase << 40 | number], np.uint64)
    raw = np.random.Philox(key=key).random_raw(BLOCK)
    labels = labels[np.argsort(raw, kind="stable")]
    ranks = np.zeros(BLOCK, np.int64)
    for source in range(len(counts)):
        here = labels == source
        ranks[here] = np.arange(here.sum())
    return labels, ranks


class Mixing:
    """Example number -> (source, position in it), for a curriculum of mixtures.

    Within a phase every block of 10,000 examples holds each source in its exact proportion
    (largest remainder), in an order drawn from the seed. A source goes on where the phase before
    left it.
    """

    def __init__(self, phases, names: list[str], batch_size: int, seed: int):
        self.seed, self.starts, self.counts, self.bases = seed, [], [], []
        base = np.zeros(len(names), np.int64)
        for number, (start, mixture) in enumerate(phases):
            if self.starts:
                base = base + self._consumed(number - 1, start * batch_size - self.starts[-1])
            self.starts.append(start * batch_size)
            self.counts.append(_proportions([mixture.get(name, 0.0) for name in names]))
            self.bases.append(base)

    def _consumed(self, phase: int, n: int) -> np.ndarray:
        """How many of the first n examples of a phase came from each source."""
        blocks, rest = divmod(n, BLOCK)
        labels, _ = _block(self.seed, phase, blocks, self.counts[phase])
        partial = np.bincount(labels[:rest], minlength=len(self.counts[phase]))
        return blocks * np.array(self.counts[phase]) + partial

    def __getitem__(self, i: int) -> tuple[int, int]:
        phase = int(np.searchsorted(self.starts, i, side="right")) - 1
        number, offset = divmod(i - self.starts[phase], BLOCK)
        labels, ranks = _block(self.seed, phase, number, self.counts[phase])
        source = int(labels[offset])
        before = int(self.bases[phase][source]) + number * self.counts[phase][source]
        return source, before + int(ranks[offset])


def _proportions(weights: list[float]) -> tuple[int, ...]:
    """Counts of BLOCK examples by largest remainder; a positive weight gets at least one."""
    shares = np.array(weights) / sum(weights) * BLOCK
    counts = np.floor(shares).astype(int)
    order = np.argsort(counts - shares, kind="stable")
    counts[order[: BLOCK - counts.sum()]] += 1
    lost = [i for i, weight in enumerate(weights) if weight > 0 and counts[i] == 0]
    for i in lost:
        counts[i] += 1
        counts[np.argmax(counts)] -= 1
    return tuple(counts.tolist())


class _Batches:
    """Step -> the rows of its batch that one process holds; random access, for grain."""

    def __init__(
        self, parents: list, mixing: Mixing, rows: np.ndarray, batch_size: int, steps: int,
        packed: bool,
    ):  # fmt: skip
        self.parents, self.mixing, self.rows = parents, mixing, rows
        self.batch_size, self.steps, self.packed = batch_size, steps, packed

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        places = [self.mixing[step * self.batch_size + row] for row in self.rows.tolist()]
        examples = [self.parents[source][position] for source, position in places]
        if self.packed:
            examples = [pairs.unpacked(example) for example in examples]
        return {key: np.stack([example[key] for example in examples]) for key in examples[0]}


class TrainStream:
    """The batches of a run, from any step on."""

    def __init__(self, config, phases, tokenizer: str = ""):
        changes = [(p.start, dict(p.mixture)) for p in phases]
        changes = [c for i, c in enumerate(changes) if i == 0 or c[1] != changes[i - 1][1]]
        names = sorted({name for _, mixture in changes for name in mixture})
        self.config, self.phases = config, phases
        self.sources = open_sources(config, names, "train", tokenizer)
        self.mixing = Mixing(changes, names, config.batch_size, config.seed)

        self.parents = [self._shuffled(name) for name in names]
        self.packed = any(isinstance(s, pairs.Pairs) for s in self.sources.values())
        self.tokenizer = next(iter(self.sources.values())).tokenizer

    def _shuffled(self, name: str):
        """A source as it is read: in an order drawn from the seed, anew in every epoch."""
        source = self.sources[name]
        if not source.finite:
            return source
        seed = zlib.crc32(f"{self.config.seed} {name}".encode())
        return grain.MapDataset.source(source).shuffle(seed=seed).repeat()

    def _batches(self, rows: np.ndarray) -> _Batches:
        # One step more than the run has, so that the batch after its last one can be probed.
        args = (self.config.batch_size, self.config.steps + 1, self.packed)
        return _Batches(self.parents, self.mixing, rows, *args)

    def batches(self, rows: np.ndarray, step: int):
        """Iterator of {"inputs", "targets"}, int32 [rows, T], from the batch of `step` on."""
        threads = self.config.data_threads
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
        dataset = grain.MapDataset.source(self._batches(rows)).to_iter_dataset(options)
        iterator = iter(dataset)
        iterator.set_state({"next_index": step})
        return iterator

    def leave_tokenizer(self, directory: pathlib.Path) -> None:
        """Copies the tokenizer of the text, so that a run can be read by itself."""
        for source in self.sources.values():
            codec = getattr(source, "codec", None)
            if isinstance(source, token_shards.TokenShards) and source.eos:
                tokenizers.copy(source.directory, directory, source.eos)
                return
            if codec and codec.path:
                tokenizers.copy(codec.path.parent, directory, codec.eos, codec.bos)
                return

    def fingerprint(self, step: int) -> dict:
        """What a checkpoint at `step` keeps to know this stream by.

        The fields that determine the data seen up to `step`, and as a probe a checksum of the
        first example after it: whatever would make the stream go on elsewhere shows there.
        """
        config = self.config
        used = {name for p in self.phases if p.start < max(step, 1) for name in p.mixture}
        row = self._batches(np.arange(1))[step]
        probe = zlib.crc32(row["inputs"].tobytes() + row["targets"].tobytes())
        return {
            "position": step,
            "seed": config.seed,
            "batch_size": config.batch_size,
            "seq_len": config.seq_len,
            "sources": {name: self.sources[name].fingerprint for name in sorted(used)},
            "probe": probe,
        }


def check_fingerprint(saved: dict, current: dict, *, probe: bool) -> None:
    """Raises UserError when a stream is not the one that a checkpoint was trained on.

    `probe` says whether the data after the checkpoint must be the same too (not when another
    future is wanted, with another mixture).
    """
    for key in (*("seed", "batch_size", "seq_len", "sources"), *(("probe",) if probe else ())):
        if saved[key] != current[key]:
            what = {
                "sources": "the content of a data source is not what it was",
                "probe": "the next example is not the one that was to come",
            }.get(key, f"config.{key}={current[key]}, it was {saved[key]}")
            raise UserError(
                f"the data would go on elsewhere than where the checkpoint left it: {what}"
            )


def heldout_batches(source, batch_size: int, n_batches: int, rows: np.ndarray):
    """The first batches of a held-out source, at most `n_batches`, the last one filled up.

    Rows beyond the end of a small source have no targets.
    """
    n = min(n_batches, -(-len(source) // batch_size))
    empty = {key: np.full_like(value, -1) for key, value in source[0].items()}
    empty["inputs"] = np.zeros_like(empty["inputs"])
    for batch in range(n):
        numbers = batch * batch_size + rows
        examples = [source[int(i)] if i < len(source) else empty for i in numbers]
        yield {key: np.stack([example[key] for example in examples]) for key in empty}
