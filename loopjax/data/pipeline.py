"""The training and evaluation streams: the examples of a batch as a pure function of the step.

Row r of the batch of step t is example number i = t B + r of the run. `Mixing` maps i to a source
and a position in it, and grain reads it. Nothing here has state, so hosts, threads and restarts
cannot change the data; a process reads only the rows that its devices hold.
"""

import dataclasses
import functools
import itertools
import math
import pathlib
import zlib

import grain
import numpy as np

from loopjax import curriculum, paths
from loopjax.data import pairs, registry, token_shards, tokenizers
from loopjax.data.source import Source, as_packed
from loopjax.errors import UserError
from loopjax.mixture_update import History

BLOCK = 10_000  # examples over which the mixture is exact: enough for weights of four decimals


def open_sources(
    config, names, split: str, tokenizer: str = "", add_bos: bool | None = None
) -> dict:
    """The sources of a mixture by name: prepared ones of `config.data_dir`, built-in ones, pairs.

    `tokenizer` and `add_bos` (as `tokenizers.load` takes them) are for pairs and text tasks if the
    mixture has no prepared source, whose tokenizer they would use; bytes by default.
    """
    folder = paths.location(config.data_dir or ".", "config.data_dir")
    # Prepared sources first: their tokenizer is the one of all other text in the mixture.
    sources = {
        name: token_shards.TokenShards(folder / name, split, config.seq_len)
        for name in names
        if (folder / name / token_shards.MANIFEST).is_file()
    }
    codec = functools.cache(functools.partial(_codec, folder, dict(sources), tokenizer, add_bos))
    for name in names:
        if name not in sources:
            sources[name] = _open_source(config, name, split, folder, codec)
    _check_vocabulary(config, sources)
    for name, source in sources.items():
        source.name, source.limit = name, config.model.vocab_size
    return {name: sources[name] for name in names}


def _open_source(config, name: str, split: str, folder: pathlib.Path, codec) -> Source:
    """A built-in source, or one of prompts and completions."""
    source = registry.open_source(name, split, config.seq_len, config.seed, codec)
    if source is None:
        source = pairs.open_pairs(name, split, folder, config.seq_len, config.seed, codec)
    if source is None:
        raise UserError(
            f"config.mixture: unknown source {name!r}; allowed are {registry.names()}, and in "
            f"config.data_dir={config.data_dir!r} folders written by loopjax prepare and files "
            "NAME.jsonl of prompts and completions"
        )
    return source


def _codec(folder: pathlib.Path, sources: dict[str, Source], tokenizer: str, add_bos: bool | None):
    """The tokenizer of the prepared sources, else the given one."""
    for name, source in sources.items():
        path = folder / name / tokenizers.FILE
        if source.tokenizer != tokenizers.ByteTokenizer.name and path.is_file():
            eos = token_shards.read_manifest(folder / name)["eos"]
            return tokenizers.FileTokenizer(path, eos, add_bos=source.add_bos)
    return tokenizers.load(tokenizer or tokenizers.ByteTokenizer.name, add_bos=add_bos)


def _check_vocabulary(config, sources: dict) -> None:
    names = {source.tokenizer: name for name, source in sources.items()}
    if len(names) > 1:
        listed = "; ".join(f"{name}: {tokenizer}" for tokenizer, name in names.items())
        raise UserError(f"config.mixture has sources of different tokenizers ({listed})")
    for name, source in sources.items():
        if source.vocab_size > config.model.vocab_size:
            raise UserError(
                f"config.model.vocab_size={config.model.vocab_size} is smaller than the "
                f"{source.vocab_size} tokens of source {name!r}"
            )


@functools.lru_cache(maxsize=8)
def _block(seed: int, phase: int, number: int, counts: tuple[int, ...]):
    """(source of each example of a block, its rank among the examples of that source)."""
    labels = np.repeat(np.arange(len(counts)), counts)
    key = np.array([seed % 2**64, phase << 40 | number], np.uint64)
    raw = np.random.Philox(key=key).random_raw(BLOCK)
    labels = labels[np.argsort(raw, kind="stable")]
    ranks = np.zeros(BLOCK, np.int64)
    for source in range(len(counts)):
        here = labels == source
        ranks[here] = np.arange(here.sum())
    return labels, ranks


@functools.lru_cache(maxsize=10_000)  # weights that follow evaluations add a phase for each
def _consumed(seed: int, phase: int, counts: tuple[int, ...], n: int) -> tuple[int, ...]:
    """Number of examples of each source among the first n of a phase."""
    blocks, rest = divmod(n, BLOCK)
    labels, _ = _block(seed, phase, blocks, counts)
    partial = np.bincount(labels[:rest], minlength=len(counts))
    return tuple((blocks * np.array(counts) + partial).tolist())


class Mixing:
    """Example number -> (source, position in it), for a curriculum of mixtures.

    Within a phase every block of 10,000 examples holds each source in its exact proportion (largest
    remainder), in an order drawn from the seed. A source continues in the next phase at the
    position it had reached.
    """

    def __init__(self, phases, names: list[str], batch_size: int, seed: int):
        self.seed = seed
        self.batch_size = batch_size
        self.starts = []  # per phase: number of its first example
        self.counts = []  # per phase: examples of each source in a block
        self.bases = []  # per phase: examples of each source before it
        base = np.zeros(len(names), np.int64)
        for number, (start, mixture) in enumerate(phases):
            if self.starts:
                n = start * batch_size - self.starts[-1]
                base = base + np.array(_consumed(seed, number - 1, self.counts[-1], n))
            self.starts.append(start * batch_size)
            self.counts.append(_proportions([mixture.get(name, 0.0) for name in names]))
            self.bases.append(base)

    def same_until(self, other: "Mixing") -> float:
        """Number of the first batch that may differ between two curricula of one run."""
        mine, theirs = (list(zip(m.starts, m.counts, strict=True)) for m in (self, other))
        if mine == theirs:
            return math.inf
        pairs = itertools.zip_longest(mine, theirs, fillvalue=(math.inf, ()))
        first = next(min(a, b) for a, b in pairs if a != b)
        return first[0] / self.batch_size

    def __getitem__(self, i: int) -> tuple[int, int]:
        phase = int(np.searchsorted(self.starts, i, side="right")) - 1
        number, offset = divmod(i - self.starts[phase], BLOCK)
        labels, ranks = _block(self.seed, phase, number, self.counts[phase])
        source = int(labels[offset])
        before = int(self.bases[phase][source]) + number * self.counts[phase][source]
        return source, before + int(ranks[offset])


def _proportions(weights: list[float]) -> tuple[int, ...]:
    """Examples per source in a block, by largest remainder; a positive weight gets at least one."""
    shares = np.array(weights) / sum(weights) * BLOCK
    counts = np.floor(shares).astype(int)
    order = np.argsort(counts - shares, kind="stable")
    counts[order[: BLOCK - counts.sum()]] += 1
    missing = [i for i, weight in enumerate(weights) if weight > 0 and counts[i] == 0]
    for i in missing:
        counts[i] += 1
        counts[np.argmax(counts)] -= 1
    return tuple(counts.tolist())


@dataclasses.dataclass(eq=False)
class _Batches:
    """Step -> the rows of its batch that one process holds; random access, for grain.

    Attributes:
      sources: the sources of the mixture.
      parents: the same in reading order, as `shuffled` returns them.
      mixing: example number -> (index in parents, position).
      rows: rows of the batch that this process holds.
      batch_size: rows of the whole batch.
      steps: number of batches.
      packed: whether rows have segments and positions.
    """

    sources: list
    parents: list
    mixing: Mixing
    rows: np.ndarray
    batch_size: int
    steps: int
    packed: bool

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        places = [self.mixing[step * self.batch_size + row] for row in self.rows.tolist()]
        examples = [_known_ids(self.sources[s], self.parents[s][n]) for s, n in places]
        if self.packed:
            examples = [as_packed(example) for example in examples]
        return {key: np.stack([example[key] for example in examples]) for key in examples[0]}


class TrainStream:
    """The batches of a run, starting at any step.

    Attributes:
      history: changes of the weights after evaluations; set it with `follow`.
    """

    def __init__(self, config, phases, tokenizer: str = "", add_bos: bool | None = None):
        names = sorted({name for phase in phases for name in phase.mixture})
        self.config = config
        self.phases = phases
        self.sources = open_sources(config, names, "train", tokenizer, add_bos)
        self.follow(History())
        self.parents = [shuffled(self.sources[name], f"{config.seed} {name}") for name in names]
        self.packed = any(source.packed for source in self.sources.values())
        self.tokenizer = next(iter(self.sources.values())).tokenizer

    def follow(self, history: History) -> None:
        """From now on, batches are those of a run with this history of weights."""
        mixtures = curriculum.mixtures(self.phases, history.changes)
        self.history = history
        self.mixing = Mixing(mixtures, [*self.sources], self.config.batch_size, self.config.seed)

    def _batches(self, rows: np.ndarray) -> _Batches:
        # One step more than the run has, so that `fingerprint` can read the batch after its end.
        steps = self.config.steps + 1
        size = self.config.batch_size
        sources = list(self.sources.values())
        return _Batches(sources, self.parents, self.mixing, rows, size, steps, self.packed)

    def batches(self, rows: np.ndarray, step: int):
        """Iterator of batches of examples (`data.source`), int32 [rows, T], starting at `step`.

        It goes on with another history as soon as `follow` has set one; batches that were read
        ahead are kept up to the first change that they do not know.
        """
        while True:
            mixing = self.mixing
            iterator = self._read_ahead(rows, step)
            while self.mixing is mixing or step < self.mixing.same_until(mixing):
                batch = next(iterator, None)
                if batch is None:
                    return
                yield batch
                step += 1
            iterator.close()

    def _read_ahead(self, rows: np.ndarray, step: int):
        threads = self.config.data_threads
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
        dataset = grain.MapDataset.source(self._batches(rows)).to_iter_dataset(options)
        iterator = iter(dataset)
        iterator.set_state({"next_index": step})
        return iterator

    @property
    def add_bos(self) -> bool | None:
        """As for a source; False if only some of the text starts with BOS."""
        known = {source.add_bos for source in self.sources.values()} - {None}
        return all(known) if known else None

    def leave_tokenizer(self, directory: pathlib.Path) -> None:
        """Copies the tokenizer of the text, so that a run's directory is complete."""
        for source in self.sources.values():
            if source.copy_tokenizer(directory):
                return

    def fingerprint(self, step: int) -> dict:
        """What a checkpoint at `step` records to recognize this stream.

        The fields that determine the data before `step`, and as a probe a checksum of the first
        example after it: it catches changes that no field records.
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


def _known_ids(source: Source, example: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The example, whose ids the model must know: another one has no embedding, but a NaN."""
    largest = max(int(example[key].max()) for key in ("inputs", "targets"))
    if largest >= source.limit:
        raise UserError(
            f"config.model.vocab_size={source.limit} is too small: source {source.name!r} has the "
            f"token id {largest}"
        )
    return example


def shuffled(source: Source, key: str):
    """A source in reading order: finite ones in an order drawn from the key, new in every epoch."""
    if not source.finite:
        return source
    return grain.MapDataset.source(source).shuffle(seed=zlib.crc32(key.encode())).repeat()


def check_fingerprint(saved: dict, current: dict, *, probe: bool) -> None:
    """Raises UserError if a stream is not the one that a checkpoint was trained on.

    `probe` says whether the data after the checkpoint must be the same too; a branch may continue
    with another mixture.
    """
    for key in (*("seed", "batch_size", "seq_len", "sources"), *(("probe",) if probe else ())):
        if saved[key] != current[key]:
            reason = {
                "sources": "the content of a data source has changed",
                "probe": "the next example differs from the one recorded",
            }.get(key, f"config.{key}={current[key]} was {saved[key]}")
            raise UserError(f"the data stream does not match the checkpoint: {reason}")


class Sample(Source):
    """A fixed sample of at most n examples of a source, spread evenly; the first ones if it never ends."""

    def __init__(self, source: Source, n: int):
        self.source = source
        self.size = min(n, len(source))
        self.stride = len(source) if source.finite else self.size
        self.name, self.limit = source.name, source.limit

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        return self.source[i * self.stride // self.size]


def heldout_batches(source, batch_size: int, n_batches: int, rows: np.ndarray):
    """The first batches of a held-out source, at most `n_batches`.

    Rows beyond the end of a small source have no targets.
    """
    n = min(n_batches, -(-len(source) // batch_size))
    empty = {key: np.full_like(value, -1) for key, value in source[0].items()}
    empty["inputs"] = np.zeros_like(empty["inputs"])
    for batch in range(n):
        numbers = batch * batch_size + rows
        examples = [
            _known_ids(source, source[int(i)]) if i < len(source) else empty for i in numbers
        ]
        yield {key: np.stack([example[key] for example in examples]) for key in empty}
