"""Sums over the elements of an array, read in blocks and added in float64."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from loopjax.weights.stored import Array, columns


@dataclasses.dataclass
class Sums:
    """Sums over the finite elements of an array, for each layer of its stack ([L]), or whole ([1]).

    Attributes:
      squares: sums of squares.
      bad: number of elements that are NaN or infinite.
      neighbors: inner products of layers i and i + 1, [L - 1].
      largest: largest absolute value.
    """

    squares: np.ndarray
    bad: np.ndarray
    neighbors: np.ndarray
    largest: float = 0.0


def is_summed(array: Array) -> bool:
    """Whether norms make sense: numbers, but no keys of random generators and no single values."""
    number = jnp.issubdtype(array.dtype, jnp.number)
    return number and array.size > 1 and not array.kind.startswith("random")


def parts(axis: int | None, *blocks: np.ndarray):
    """Yields blocks as [layers, n] ([1, n] for None), in parts that fit into a processor's cache.

    The blocks differ at most in the number of layers. None of them is copied as a whole.
    """
    if not axis:
        yield from columns(*(b.reshape(1 if axis is None else len(b), -1) for b in blocks))
        return
    turned = [np.moveaxis(block, axis, 0) for block in blocks]
    step = max(1, 2**18 * turned[0].shape[1] // max(1, turned[0].size))
    for start in range(0, turned[0].shape[1], step):
        yield tuple(view[:, start : start + step].reshape(len(view), -1) for view in turned)


def wide(part: np.ndarray) -> np.ndarray:
    """A part in a type in which NumPy computes: float32 for narrow floats, else float64."""
    if part.dtype == np.float32:
        return part
    narrow = jnp.issubdtype(part.dtype, jnp.floating) and part.dtype.itemsize < 4
    if jnp.issubdtype(part.dtype, jnp.complexfloating):
        return np.abs(part)
    return part.astype(np.float32 if narrow else np.float64)


def measure(array: Array, axis: int | None, *, neighbors: bool, progress=None) -> Sums | None:
    """The sums of an array by layer, in one pass; None for what has no norm."""
    if not is_summed(array):
        return None
    layers = 1 if axis is None else array.shape[axis]
    sums = Sums(np.zeros(layers), np.zeros(layers, int), np.zeros(max(0, layers - 1)))
    for block in array.pieces(array.blocks(axis)):
        for (part,) in parts(axis, block):
            part = wide(part)
            finite = np.isfinite(part)
            if not finite.all():
                sums.bad += (~finite).sum(axis=1)
                part = np.where(finite, part, 0)
            sums.squares += np.einsum("ln,ln->l", part, part, dtype=np.float64)
            sums.largest = max(sums.largest, float(np.abs(part).max(initial=0)))
            if neighbors and layers > 1:
                sums.neighbors += np.einsum("ln,ln->l", part[:-1], part[1:], dtype=np.float64)
        if progress:
            progress.update(block.nbytes)
    return sums


def inner(a: Array, b: Array, progress=None) -> float:
    """The inner product of two arrays of one shape, over elements that are finite in both."""
    total = 0.0
    cuts = a.blocks()
    for x, y in zip(a.pieces(cuts), b.pieces(cuts), strict=True):
        for part, other in parts(None, x, y):
            product = wide(part) * wide(other).astype(np.float64)
            total += float(product[np.isfinite(product)].sum())
        if progress:
            progress.update(x.nbytes)
    return total


def value_of(array: Array):
    """The value of an array of one element, as JSON has it; raises as `Array.read` does."""
    value = array.read().ravel()[0]
    if jnp.issubdtype(array.dtype, jnp.bool_):
        return bool(value)
    return int(value) if jnp.issubdtype(array.dtype, jnp.integer) else float(value)
