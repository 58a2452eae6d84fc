"""Padded batches of prompts, and how many rows of a computation fit into memory."""

from collections.abc import Iterator, Sequence

import jax
import numpy as np

from loopjax.lm.loaded_model import LanguageModel

# Fewest and most tokens per batch and device. Few keep a CPU busy; more do not fit its caches.
CPU_TOKENS = (512, 2048)
TOKENS = (8192, 16_384)
HOST_BYTES = 2**31  # activations at a time, if a device does not report its memory


def bucket(n: int, least: int = 32) -> int:
    """The smallest of 32, 48, 64, 96, 128, 192, ... that is at least n (1, 2, 3, 4, 6, ... for least=1)."""
    size = least
    while size < n:
        size = (size * 3 + 1) // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size


def default_batch_tokens(lm: LanguageModel) -> int:
    """Tokens per batch that keep the devices busy while logits and attention stay small."""
    cpu = lm.mesh.devices.flat[0].platform == "cpu"
    return 4096 if cpu else 16_384 * lm.batch_parts


def padded(prompt: Sequence[int]) -> np.ndarray:
    """int32 [1, T]: the prompt and padding of zeros, which has no effect; T is one of few lengths."""
    row = np.zeros((1, bucket(len(prompt))), np.int32)
    row[0, : len(prompt)] = prompt
    return row


def rows_at_once(lm: LanguageModel, T: int, bytes_per_row: int, most: int, cost) -> int:
    """How many rows of T tokens to compute at once, over all devices; at least 2.

    The result minimizes `cost(rows)`, the work of all batches, among the numbers that keep the
    devices busy and fit into memory (at most `most`). It does not depend on earlier results, so a
    resumed computation has the same batches.
    """
    parts = lm.batch_parts
    cpu = lm.mesh.devices.flat[0].platform == "cpu"
    few, many = CPU_TOKENS if cpu else TOKENS
    # One row of a batch may be a baseline that ablates nothing: small batches would waste half.
    largest = min(max(5, many // T), max(1, _free(lm) // bytes_per_row), -(-most // parts))
    least = 1 if parts > 1 else 2
    sizes = range(max(least, min(few // T, largest)), max(least, largest) + 1)
    return parts * min(sizes, key=lambda rows: cost(parts * rows))


def _free(lm: LanguageModel) -> int:
    """Bytes per device for rows: half of what is free beside the parameters, if it is known."""
    device = lm.mesh.devices.flat[0]
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if limit is None:
        return HOST_BYTES
    shards = [s for leaf in jax.tree.leaves(lm.params) for s in leaf.addressable_shards]
    return (limit - sum(s.data.nbytes for s in shards if s.device == device)) // 2


def chunks(n: int, size: int) -> Iterator[np.ndarray]:
    """0 .. n - 1 in arrays of `size`; the last array is padded with n - 1."""
    for start in range(0, n, size):
        yield np.minimum(np.arange(start, start + size), n - 1)
