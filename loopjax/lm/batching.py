"""Prompts as padded rows, and how many rows of a computation fit into memory."""

from collections.abc import Iterator, Sequence

import jax
import numpy as np

from loopjax.lm.loaded_model import LanguageModel

# The fewest and the most of a batch on a device. A CPU is busy with few; more leave its caches.
CPU_TOKENS, TOKENS = (512, 2048), (8192, 16_384)
HOST_BYTES = 2**31  # of activations at a time where a device does not tell its memory


def bucket(n: int, least: int = 32) -> int:
    """The smallest of 32, 48, 64, 96, 128, 192, ... that holds n; with least=1 of 1, 2, 3, 4, 6, ..."""
    size = least
    while size < n:
        size = (size * 3 + 1) // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size


def default_batch_tokens(lm: LanguageModel) -> int:
    """As many tokens as keep the devices busy, and their logits and attention small."""
    cpu = lm.mesh.devices.flat[0].platform == "cpu"
    return 4096 if cpu else 16_384 * lm.batch_parts


def padded(prompt: Sequence[int]) -> np.ndarray:
    """int32 [1, T] with zeros behind the prompt, T one of a few lengths; they change nothing."""
    row = np.zeros((1, bucket(len(prompt))), np.int32)
    row[0, : len(prompt)] = prompt
    return row


def rows_at_once(lm: LanguageModel, T: int, bytes_per_row: int, most: int, cost) -> int:
    """How many rows of T tokens to compute at once, over all devices; at least 2.

    Of the numbers that keep the devices busy and fit into memory (no more than `most`) it is the one
    whose `cost(rows)`, the work of all batches, is least. It depends on nothing that was computed
    before, so that a computation that goes on makes the batches that it would have made.
    """
    parts, cpu = lm.batch_parts, lm.mesh.devices.flat[0].platform == "cpu"
    few, many = CPU_TOKENS if cpu else TOKENS
    # A row of a batch may be one that erases nothing: it must not be every second one.
    largest = min(max(5, many // T), max(1, _free(lm) // bytes_per_row), -(-most // parts))
    least = 1 if parts > 1 else 2
    sizes = range(max(least, min(few // T, largest)), max(least, largest) + 1)
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
