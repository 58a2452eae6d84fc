"""One array of a checkpoint on disk, read in pieces."""

import contextlib
import dataclasses
import math
import pathlib
import re

import numpy as np
import tensorstore as ts

from loopjax.checkpoint_files import brief, reading

BLOCK = 2**24  # elements per block: 64 MB in float32
READ_AHEAD = 2**28  # bytes


@dataclasses.dataclass(frozen=True)
class Sharding:
    """How an array was sharded when it was saved.

    Attributes:
      spec: mesh axes of each array axis (None, a name, or a tuple of names); empty on one device.
      mesh: devices per mesh axis.
    """

    spec: tuple
    mesh: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Array:
    """A saved array.

    Attributes:
      name: path, "state/params/layers/query"; unique in its checkpoint.
      item: name of its item, "" for a checkpoint without items.
      keys: keys below the item, ("params", "layers", "query"); they may hold dots and slashes.
      shape, dtype: shape, and NumPy's name of the type ("bfloat16", "float8_e4m3fn", "int4").
      chunk: shape of the stored chunks: the smallest piece that can be read.
      sharding: None if it is not recorded.
      stored: bytes on disk; None if unknown.
      kind: Orbax's name of the type that was saved: "jax.Array", "np.ndarray", "scalar", or "random
        key (threefry2x32)", whose array is the key's data.
      store: the TensorStore (or NumPy array) that holds the content.
    """

    name: str
    item: str
    keys: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    chunk: tuple[int, ...]
    sharding: Sharding | None
    stored: int | None
    kind: str
    store: object = dataclasses.field(repr=False, compare=False)
    path: pathlib.Path = dataclasses.field(repr=False, compare=False)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes in memory."""
        return self.size * np.dtype(self.dtype).itemsize

    def start_reading(self, index=...):
        """Future of a part of the array."""
        if isinstance(self.store, np.ndarray):
            promise, future = ts.Promise.new()
            promise.set_result(self.store[index])
            return future
        return self.store[index].read()

    def read(self, index=...) -> np.ndarray:
        """A part of the array, by basic indices; only the chunks that it touches are read.

        Raises Damaged if they are missing or cannot be decoded, UserError if they cannot be read.
        """
        with reading(self.path), self._named():
            return self.start_reading(index).result()

    def pieces(self, cuts=None):
        """Yields the array in pieces, by default its blocks; the next one is read meanwhile.

        A piece of more than READ_AHEAD bytes is read alone, so that only one is in memory.

        Raises as `read` does.
        """
        cuts = list(self.blocks() if cuts is None else cuts)
        following = None
        for k, cut in enumerate(cuts):
            with reading(self.path), self._named():
                piece = (following or self.start_reading(cut)).result()
                small = piece.nbytes <= READ_AHEAD and k + 1 < len(cuts)
                following = self.start_reading(cuts[k + 1]) if small else None
            yield piece
            del piece

    @contextlib.contextmanager
    def _named(self):
        try:
            yield
        except ValueError as error:
            # TensorStore's status must stay in front: `reading` decides by it what the error proves.
            status, colon, rest = brief(error).partition(": ")
            named = f"{status}: {self.name}: {rest}" if colon else f"{self.name}: {status}"
            raise ValueError(named) from error

    def blocks(self, whole: int | None = None) -> list[tuple[slice, ...]]:
        """Slices that cover the array, of about BLOCK elements, aligned to chunks.

        A block is whole along the axis `whole`. It is never smaller than a chunk.
        """
        return blocks(self.shape, self.chunk, whole)


def blocks(shape, chunk, whole: int | None = None) -> list[tuple[slice, ...]]:
    """See `Array.blocks`."""
    step = [max(1, n) for n in chunk]
    if whole is not None:
        step[whole] = shape[whole]
    for axis in reversed([axis for axis in range(len(step)) if axis != whole]):
        fitting = max(1, BLOCK // max(1, math.prod(step)))
        step[axis] = min(shape[axis], step[axis] * fitting)
    step = [max(1, n) for n in step]
    corners = np.ndindex(*(-(-n // s) for n, s in zip(shape, step, strict=True)))
    return [
        tuple(
            slice(k * s, min((k + 1) * s, n)) for k, s, n in zip(corner, step, shape, strict=True)
        )
        for corner in corners
    ]


def columns(*arrays):
    """Yields arrays [rows, n] in slices of columns that fit into a processor's cache."""
    rows, n = arrays[0].shape
    step = max(1, 2**18 // max(1, rows))
    for start in range(0, n, step):
        yield tuple(array[:, start : start + step] for array in arrays)


def reason(error: Exception, name: str) -> str:
    """What is wrong with an array, of a sentence "checkpoint ... is damaged (what is wrong)"."""
    text = re.sub(r"^checkpoint .* is damaged \((.*)\)$", r"\1", str(error))
    return text.replace(f"{name}: ", "", 1)
