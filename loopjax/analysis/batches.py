"""Prompts as padded rows, and how many rows of a computation fit into memory."""

from collections.abc import Iterator, Sequence

import numpy as np

from loopjax.evals.language_model import LanguageModel
from loopjax.evals.score import bucket

HOST_BYTES = 2**31  # of activations at a time where a device does not tell its memory


def padded(prompt: Sequence[int]) -> np.ndarray:
    """int32 [1, T] with zeros behind the prompt, T one of a few lengths; they change nothing."""
    row = np.zeros((1, bucket(len(prompt))), np.int32)
    row[0, : len(prompt)] = prompt
    return row


def rows_that_fit(lm: LanguageModel, bytes_per_row: int, wanted: int) -> int:
    """How many rows to compute at once, a multiple of the parts that the devices cut a batch into.

    Half of what is free on a device is for activations; the rest is for what a program needs
    beside them.
    """
    stats = lm.mesh.devices.flat[0].memory_stats() or {}
    free = (stats["bytes_limit"] - stats["bytes_in_use"]) // 2 if "bytes_limit" in stats else None
    parts = lm.batch_parts
    most = parts * max(1, (free or HOST_BYTES) // max(1, bytes_per_row))
    return min(most, parts * bucket(-(-wanted // parts), least=1))


def chunks(n: int, size: int) -> Iterator[np.ndarray]:
    """0 .. n - 1 in arrays of `size`; the last one is filled up with its last number."""
    for start in range(0, n, size):
        yield np.minimum(np.arange(start, start + size), n - 1)
