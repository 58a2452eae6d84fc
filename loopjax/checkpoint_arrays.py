"""The arrays of a checkpoint: read with TensorStore onto any devices, and verified.

Each process reads what its devices hold. The checksum of an array is the sum of its bits as unsigned
integers: it does not depend on the mesh, and an array with another sum is not the one that was saved.
"""

import contextlib
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from loopjax.checkpoint_files import Damaged, open_arrays, reading
from loopjax.errors import UserError


@jax.jit
def _bit_sums(tree):
    def bit_sum(leaf):
        width = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[leaf.dtype.itemsize]
        bits = jax.lax.bitcast_convert_type(leaf, width)
        return jnp.sum(bits.astype(jnp.uint32), dtype=jnp.uint32)

    return jax.tree.map(bit_sum, tree)


def checksums(tree) -> dict[str, int]:
    """Checksum of every leaf by its path."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(_bit_sums(tree))
    return {name_of(path): int(leaf) for path, leaf in leaves}


def read_arrays(path: pathlib.Path, meta: dict, abstract):
    """The arrays of a checkpoint that a tree of `jax.ShapeDtypeStruct`s with shardings asks for.

    The content is not verified.

    Raises Damaged when an array is missing or cannot be decoded, UserError when it cannot be read.
    """
    leaves, tree = jax.tree_util.tree_flatten_with_path(abstract)
    wanted = {name_of(key): leaf for key, leaf in leaves}
    with reading(path):
        stores = open_arrays(path, meta, tuple({name.split("/")[0] for name in wanted}))
        for name, leaf in wanted.items():
            if name not in stores:
                raise UserError(f"checkpoint {path} has no {name}, which this config has")
            found = (stores[name].shape, stores[name].dtype.numpy_dtype)
            if found != (leaf.shape, leaf.dtype):
                raise UserError(
                    f"checkpoint {path} has {name} as {found[1]}{list(found[0])}, this config has "
                    f"{leaf.dtype}{list(leaf.shape)}"
                )
        arrays, following = [], None
        for name, leaf in reversed(wanted.items()):
            # The files of one array are read while the one before goes to the devices.
            reads = _reads(stores[name], leaf)
            if following:
                arrays.append(_placed(*following))
            following = (leaf, reads)
        arrays.append(_placed(*following))
    return jax.tree.unflatten(tree, reversed(arrays))


def name_of(key) -> str:
    """The path of a leaf as in checkpoints, "params/layers/query"."""
    return jax.tree_util.keystr(key, simple=True, separator="/")


def _span(index) -> tuple:
    return tuple((cut.start, cut.stop) for cut in index)


def _reads(store, leaf) -> dict:
    """Futures of the parts of an array that the devices of this process hold."""
    indices = leaf.sharding.addressable_devices_indices_map(leaf.shape).values()
    return {span: store[index].read() for span, index in {_span(i): i for i in indices}.items()}


def _placed(leaf, reads: dict):
    parts = {span: future.result() for span, future in reads.items()}
    return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda i: parts[_span(i)])


def verify(path: pathlib.Path, items, saved: dict[str, int]) -> None:
    """Raises Damaged when the checksum of a leaf differs from the saved one."""
    with reading(path):
        for name, value in checksums(items).items():
            if saved.get(name) != value:
                raise ValueError(f"the content of {name} is not what was saved")


@contextlib.contextmanager
def agreed(path: pathlib.Path):
    """Makes all processes of a run agree on whether a checkpoint was read.

    An error in one process is raised there, and as one of the same kind in the others: the next
    computation needs all of them.
    """
    mine: UserError | None = None
    try:
        yield
    except UserError as error:
        mine = error
    kind = 0 if mine is None else 1 if isinstance(mine, Damaged) else 2
    kinds = multihost_utils.process_allgather(np.int32(kind)) if jax.process_count() > 1 else kind
    worst = int(np.max(kinds))
    if mine is not None and kind == worst:
        raise mine
    if worst:
        error = Damaged if worst == 1 else UserError
        word = "damaged" if worst == 1 else "unreadable"
        raise error(f"checkpoint {path} is {word} for another process of this run") from mine
