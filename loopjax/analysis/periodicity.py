"""Whether values by layer repeat with the length of a block, as one number.

Grown and looped models do similar work at the same place of each block (Kapl et al. 2025, 2026:
attention's contribution, and the layers that read what earlier tokens computed). A trend over the
whole depth is not a cycle: a moving average of one block's length is subtracted from each layer, and
the differences are averaged by the position in the block.
"""

import dataclasses

import numpy as np

from loopjax.depth import DepthPlan
from loopjax.lineage import Stage

DRAWS = 2000  # of independent values, for what is rare among them


@dataclasses.dataclass(frozen=True)
class Block:
    """`length` executed layers, the first of which is `start` (and `start` + `length`, ...)."""

    length: int
    start: int = 0


@dataclasses.dataclass(frozen=True)
class Cycle:
    """A curve without its moving average, by the position in a block.

    Attributes:
      position: mean difference from the moving average at each position of a block, [b].
      strongest: the position with the largest difference.
      contrast: difference at that position minus the mean of the other positions.
      share: share of the variance of the differences explained by the position, 0..1.
      by_chance: approximate `share` of independent values.
      rare: the `share` that independent normal values exceed in 1 of 20 cases.
      layers: n, the number of layers with a whole block around them.
    """

    position: np.ndarray
    strongest: int
    contrast: float
    share: float
    by_chance: float
    rare: float
    layers: int


def block_of(stack: list[Stage], plan: DepthPlan) -> Block | None:
    """The block of a model: what its plan repeats, else what growth added last."""
    executed = 0
    for segment in plan.segments:
        if segment.repeats > 1:
            return Block(segment.layers, executed)
        executed += segment.layers
    if len(stack) > 1:
        added = len(stack[-1].order) - len(stack[-2].order)
        return Block(added) if added > 0 else None
    return None


def starts(stack: list[Stage], plan: DepthPlan) -> list[int]:
    """The executed layers after the first at which a block begins; [] for a model without blocks."""
    block = block_of(stack, plan)
    if not block or block.length < 2:
        return []
    return [layer for layer in range(block.start, plan.n_effective, block.length) if layer]


def column_means(matrix) -> np.ndarray:
    """Mean effect on each layer of the layers before it, [E]; NaN for the first layer."""
    E = len(matrix)
    means = [np.mean(np.asarray(matrix)[:layer, layer]) for layer in range(1, E)]
    return np.array([np.nan, *means])


def without_first(values) -> np.ndarray:
    """The values, NaN for the first layer: it reads the bare embedding, and is far above all others."""
    return np.array([np.nan, *np.asarray(values, float)[1:]])


def cycle(values, block: Block) -> Cycle | None:
    """The cycle in values by executed layer, [E]; NaN values are ignored.

    None if a block has one layer, or if the layers with a whole block around them do not cover
    every position, and two more.
    """
    values = np.asarray(values, float)
    b = block.length
    half = b // 2
    # Centered on a layer: the two ends of an even block count half, so that the weights add up to b.
    window = np.full(2 * half + 1, 1 / b)
    if b % 2 == 0:
        window[[0, -1]] /= 2
    first = half + int(np.isnan(values[0]))
    inside = np.arange(first, len(values) - half)
    at = (inside - block.start) % b
    counts = np.bincount(at, minlength=b)
    if b < 2 or not counts.all() or len(inside) < b + 2:
        return None
    apart_nE = np.zeros((len(inside), len(values)))  # maps values to centered differences
    for row_E, e in zip(apart_nE, inside, strict=True):
        row_E[e] += 1
        row_E[e - half : e + half + 1] -= window
    mean_bn = (at == np.arange(b)[:, None]) / counts[:, None]
    known = np.nan_to_num(values)  # unknown values have no weight
    position = mean_bn @ apart_nE @ known
    centered_nE = apart_nE - apart_nE.mean(0)
    explained_nE = (mean_bn @ centered_nE)[at]
    total, explained = (np.sum((m @ known) ** 2) for m in (centered_nE, explained_nE))
    k = int(position.argmax())
    contrast = position[k] - np.delete(position, k).mean()
    noise = 1e-20 * np.sum(known**2)  # rounding errors of a straight line
    return Cycle(
        position, k, float(contrast), float(explained / total) if total > noise else 0.0,
        float(np.sum(explained_nE**2) / np.sum(centered_nE**2)), _rare(centered_nE, explained_nE),
        len(inside),
    )  # fmt: skip


def _rare(centered_nE, explained_nE) -> float:
    """The 95th percentile of the share of independent values, from drawn ones."""
    drawn = np.random.default_rng(0).normal(size=(centered_nE.shape[1], DRAWS))
    shares = np.sum((explained_nE @ drawn) ** 2, 0) / np.sum((centered_nE @ drawn) ** 2, 0)
    return float(np.quantile(shares, 0.95))
