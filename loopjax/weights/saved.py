"""A checkpoint on disk, read in blocks: needs no config and no mesh, never loads a whole array.

`meta` lists the arrays, Orbax's files say how they were sharded, TensorStore reads parts of them.
Every block that is read enters the checksum of its array.
"""

import dataclasses
import math
import pathlib

import numpy as np

from loopjax.checkpoint_files import array, item_of, locate, open_arrays, read_meta, reading
from loopjax.weights import layout, stored
from loopjax.weights.item import shardings_of
from loopjax.weights.stored import Sharding


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A saved array.

    Attributes:
      name: path of the array, "params/layers/query".
      shape, dtype: shape and type of the array.
      chunk: shape of the stored chunks.
      spec: mesh axes of each array axis when it was saved; None if it was on one device.
      mesh: devices per mesh axis when it was saved.
      checksum: sum of the bits, modulo 2^32.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    chunk: tuple[int, ...]
    spec: tuple | None
    mesh: dict[str, int]
    checksum: int

    @property
    def stacked(self) -> bool:
        return "layers" in self.name.split("/")

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.size * np.dtype(self.dtype).itemsize

    def blocks(self) -> list[tuple[slice, ...]]:
        """Slices that cover the array: whole along the layers axis, aligned to chunks elsewhere."""
        return stored.blocks(self.shape, self.chunk, 0 if self.stacked else None)


@dataclasses.dataclass(frozen=True)
class Saved:
    """A checkpoint: path, metadata, time of completion (seconds since 1970, None if unknown), arrays by name."""

    path: pathlib.Path
    meta: dict
    written: float | None
    leaves: dict[str, Leaf]

    def params(self) -> dict[str, Leaf]:
        """{"layers/query": leaf, ...}."""
        return self._below("params")

    def average(self) -> dict[str, Leaf]:
        """The moving average of the parameters by their names; UserError if there is none."""
        item_of(self.path, self.meta, ema=True)
        return self._below("ema")

    def moments(self, kind: str) -> dict[str, Leaf]:
        """The optimizer's first ("mu") or second ("nu") moments, by the names of the parameters.

        Those that it has: Lion, and Muon for matrices, have no second one; none is there where no run
        made the checkpoint.
        """
        return self._below(kind)

    def updates(self) -> int:
        """Updates that the optimizer has counted; 0 for parameters that come without one."""
        if not self.moments("mu"):
            return 0
        state = next(name.split("/mu/")[0] for name in self.leaves if "/mu/" in name)
        return int(next(self.read(self.leaves[f"{state}/count"])))

    def _below(self, key: str) -> dict[str, Leaf]:
        split = {name: name.split("/") for name in self.leaves}
        return {
            "/".join(parts[parts.index(key) + 1 :]): self.leaves[name]
            for name, parts in split.items()
            if key in parts
        }

    def read(self, leaf: Leaf, blocks=None, progress=None):
        """Yields the array in blocks (by default its own), which must cover it.

        The next block is read while the caller works on this one. Raises UserError if an array is
        missing or does not match its checksum.
        """
        with reading(self.path):
            store = array(self.path, leaf.name).result()
            blocks = list(leaf.blocks() if blocks is None else blocks)
            bits = 0
            following = store[blocks[0]].read()
            for k in range(len(blocks)):
                block = following.result()
                if k + 1 < len(blocks):
                    following = store[blocks[k + 1]].read()
                width = f"u{block.dtype.itemsize}"
                bits += int(np.sum(block.view(width), dtype=np.uint64))
                if progress:
                    progress.update(block.nbytes)
                yield block
            if bits % 2**32 != leaf.checksum:
                raise ValueError(f"the content of {leaf.name} is not what was saved")


def open_saved(directory, step: int | None = None) -> Saved:
    """A checkpoint of a run (DIR or DIR@STEP, as for `checkpoint.locate`), the newest by default.

    Raises UserError if there is none, if it is damaged, or if it cannot be read.
    """
    directory, step = locate(directory, step)
    path, meta = directory / str(step), read_meta(directory, step)
    with reading(path):
        stores = open_arrays(path, meta)
        shardings = _shardings(path, meta["checksums"])
        leaves = {
            name: _leaf(name, stores[name], shardings.get(name), checksum)
            for name, checksum in meta["checksums"].items()
        }
        return Saved(path, meta, _written(path), leaves)


def _written(path: pathlib.Path) -> float | None:
    """When Orbax completed the checkpoint; None if that is not recorded."""
    file = path / "_CHECKPOINT_METADATA"
    if not file.is_file():
        return None
    time = layout.read_object(file).get("commit_timestamp_nsecs")
    return time / 1e9 if isinstance(time, int) else None


def _shardings(path: pathlib.Path, names) -> dict[str, Sharding]:
    """{name: sharding} of the arrays as Orbax recorded it; those that it did not record are left out."""
    items = {name.split("/")[0] for name in names}
    return {
        f"{item}/{name.replace('.', '/')}": sharding
        for item in items
        for name, sharding in shardings_of(path / item).items()
    }


def _leaf(name: str, store, sharding: Sharding | None, checksum: int) -> Leaf:
    spec, mesh = (sharding.spec, sharding.mesh) if sharding and sharding.mesh else (None, {})
    dtype = str(store.dtype.numpy_dtype)
    chunk = tuple(store.chunk_layout.read_chunk.shape or ())
    return Leaf(name, store.shape, dtype, chunk, spec, mesh, checksum)
