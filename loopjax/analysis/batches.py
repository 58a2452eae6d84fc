"""Prompts as padded rows, and how many rows of a computation fit into memory."""

from collections.abc import Iterator, Sequence

import jax
import numpy as np

from loopjax.evals.language_model import LanguageModel
from loopjax.evals.score import bucket, default_batch_tokens

HOST_BYTES = 2**31  # of activations at a time where a device does not tell its memory


def padded(prompt: Sequence[int]) -> np.ndarray:
    """int32 [1, T] with zeros behind the prompt, T one of a few lengths; they change nothing."""
    row = np.zeros((1, bucket(len(prompt))), np.int32)
    row[0, : len(prompt)] = prompt
    return row


def rows_at_once(lm: LanguageModel, T: int, bytes_per_row: int, most: int, cost) -> int:
    """How many rows of T tokens to compute at once, over all devices; at least 2.

    Of the numbers that fit into memory and keep the devices busy (no more than `most`) it is the one
    whose `cost(rows)`, the work of all batches, is least. It depends on nothing that was computed
    before, so that a computation that goes on makes the batches that it would have made.
    """
    parts = lm.batch_parts
    busy = default_batch_tokens(lm) // 2 // parts // T
    rows = min(max(1, busy), max(1, _free(lm) // bytes_per_row), -(-most // parts))
    least = 1 if parts > 1 else 2
    sizes = range(max(least, rows // 2), max(least, rows) + 1)
    return parts * min(sizes, key=lambda rows: cost(parts * rows))


def _free(lm: LanguageModel) -> int:
    """Bytes of a device for rows: half of what the parameters leave, where it tells its memory."""
    device = lm.mesh.devices.flat[0]
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if limit is None:
        return HOST_BYTES
    shards = [s for leaf in jax.tree.leaves(lm.params) for s in leaf.addressable_shards]
    return (limit - sum(s.data.nbytes for s in shards if s.device == device)) // 2


def chunks(n: int, size: int) -> Iterator[np.ndarray]:
    """0 .. n - 1 in arrays of `size`; the last one is filled up with its last number."""
    for start in range(0, n, size):
        yield np.minimum(np.arange(start, start + size), n - 1)
