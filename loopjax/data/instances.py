"""Instances of synthetic tasks: drawn on demand, split without overlap, one row each.

An instance is a pure function of (seed, split, index). Whether it may be used for training or is
held out is decided by a hash of its content, so the splits never overlap, whatever the index.
"""

import zlib

import numpy as np

from loopjax.data.source import Source
from loopjax.errors import UserError

LENGTH = 2**31 - 1  # examples of a source that never repeats
HELDOUT_EVERY = 16  # one instance in 16 is held out
TRIES = 20  # draws for each different instance of a limited source


def instance_rng(seed: int, split: str, index: int, attempt: int) -> np.random.Generator:
    """The random generator of one instance; Philox streams are stable across NumPy releases."""
    lane = {"train": 0, "heldout": 1}[split]
    # uint64, because NumPy turns a list with a number beyond int64 into floats, losing the attempt.
    key = np.array([(seed % 2**32) << 32 | lane << 24 | attempt, index], np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def draw(make, split: str, seed: int, index: int):
    """The first instance drawn by `make(rng)` that belongs to the split.

    `make` returns (content as bytes, instance), or None to draw again.
    """
    for attempt in range(2**20):
        drawn = make(instance_rng(seed, split, index, attempt))
        if drawn and (zlib.crc32(drawn[0]) % HELDOUT_EVERY == 0) == (split == "heldout"):
            return drawn[1]
    raise RuntimeError(f"no {split} instance: the generator draws too few different instances")


class Instances(Source):
    """A source that never ends: a new instance for every index.

    A subclass sets `tokenizer` and `vocab_size` and defines `make(rng)`, as `draw` takes it, which
    returns an example. The fingerprint consists of the fields `task` and the seed.
    """

    finite = False

    def __init__(self, split: str, seq_len: int, seed: int, **task):
        self.split = split
        self.seq_len = seq_len
        self.seed = seed
        self.fingerprint = {**task, "seed": seed}

    def __len__(self) -> int:
        return LENGTH

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return draw(self.make, self.split, self.seed, index)


class Limited(Source):
    """The first n different training instances of a task, read in epochs.

    The held-out split of the task is not limited.

    Args:
      source: the training split of a task.
      n: number of instances.
      name: name of the source, for messages.
    """

    def __init__(self, source: Instances, n: int, name: str):
        self.source = source
        self.tokenizer, self.vocab_size = source.tokenizer, source.vocab_size
        self.one_answer = source.one_answer
        self.fingerprint = {**source.fingerprint, "instances": n}
        self.numbers = self._different(n)
        if len(self.numbers) < n:
            raise UserError(
                f"config.mixture: {name} asks for more than the {len(self.numbers)} different "
                "instances that were found"
            )

    def _different(self, n: int) -> list[int]:
        """Numbers of the first n different instances; fewer where new ones have become rare."""
        seen, numbers = set(), []
        for number in range(max(1000, TRIES * n)):
            content = self.source[number]["inputs"].tobytes()
            if content not in seen:
                seen.add(content)
                numbers.append(number)
            if len(numbers) == n:
                break
        return numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self.source[self.numbers[index]]


def question(prompt, answer, seq_len: int, padding: int) -> dict[str, np.ndarray]:
    """An example of a prompt and its answer, padded on the right; only the answer is a target."""
    stop = len(prompt) + len(answer)
    tokens = np.full(seq_len + 1, padding, np.int32)
    tokens[: len(prompt)] = prompt
    tokens[len(prompt) : stop] = answer
    targets = np.full(seq_len, -1, np.int32)
    targets[len(prompt) - 1 : stop - 1] = answer
    return {"inputs": tokens[:-1], "targets": targets}
