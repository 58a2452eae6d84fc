"""Instances of synthetic tasks: drawn on demand, split without overlap, one row each.

An instance is a pure function of (seed, split, index). Whether it may be used for training or is
held out is decided by a hash of its content, so the two never overlap, whatever the index.
"""

import zlib

import numpy as np

LENGTH = 2**31 - 1  # of a source that never repeats
HELDOUT_EVERY = 16  # one instance in 16 is held out


def instance_rng(seed: int, split: str, index: int, attempt: int) -> np.random.Generator:
    """A generator of its own for every instance; the stream of Philox is stable across releases."""
    lane = {"train": 0, "heldout": 1}[split]
    # As uint64: of a list with a number beyond int64, NumPy makes floats, which lose the attempt.
    key = np.array([(seed % 2**32) << 32 | lane << 24 | attempt, index], np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def draw(make, split: str, seed: int, index: int):
    """The first instance of `make(rng)` that lies in the split; `make` may give None to redraw.

    `make` returns (content as bytes, instance).
    """
    for attempt in range(2**20):
        made = make(instance_rng(seed, split, index, attempt))
        if made and (zlib.crc32(made[0]) % HELDOUT_EVERY == 0) == (split == "heldout"):
            return made[1]
    raise RuntimeError("no instance found; the generator gives too few different ones")


class Instances:
    """A source that never ends: rows {"inputs", "targets"}, int32 [T], -1 where there is no target.

    A subclass says its `tokenizer` and `vocab_size` and defines `make(rng)`, as `draw` takes it.
    `task` is what the fingerprint says of it.
    """

    finite = False

    def __init__(self, split: str, seq_len: int, seed: int, **task):
        self.split, self.seq_len, self.seed = split, seq_len, seed
        self.fingerprint = {**task, "seed": seed}

    def __len__(self) -> int:
        return LENGTH

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return draw(self.make, self.split, self.seed, index)


def question(prompt, answer, seq_len: int, padding: int) -> dict[str, np.ndarray]:
    """A row of T tokens, a prompt and its answer, padded on the right; the answer is the target."""
    stop = len(prompt) + len(answer)
    tokens = np.full(seq_len + 1, padding, np.int32)
    tokens[: len(prompt)], tokens[len(prompt) : stop] = prompt, answer
    targets = np.full(seq_len, -1, np.int32)
    targets[len(prompt) - 1 : stop - 1] = answer
    return {"inputs": tokens[:-1], "targets": targets}
