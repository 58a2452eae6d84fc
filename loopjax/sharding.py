"""Mesh, logical axis rules and the sharding of a train state.

Every parameter and the larger activations carry logical axis names (`model.py`); `config.mesh`
sets the number of devices of each mesh axis and the mesh axes of each logical axis:

    data     batch only: parameters are replicated over it
    fsdp     batch, and the rows of every matrix (ZeRO-3)
    tensor   heads, FFN width and vocabulary

`parameter_spec` says which dimension of a matrix that is, `sharded_weights.py` what travels.
"""

import math

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from loopjax.errors import UserError

MESH_AXES = ("data", "fsdp", "tensor")
LOGICAL_AXES = (
    "batch", "seq", "activation", "vocab", "embed", "heads", "kv_heads", "head_size", "mlp",
    "norm", "layers",
)  # fmt: skip


def mesh_shape(config_mesh, n_devices: int) -> tuple[int, ...]:
    """Devices per mesh axis; one size may be -1: all remaining devices."""
    sizes = {axis: config_mesh[axis] for axis in MESH_AXES}
    text = ", ".join(f"{k}={v}" for k, v in sizes.items())
    free = [axis for axis, size in sizes.items() if size == -1]
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if len(free) > 1 or any(size < 1 for size in sizes.values() if size != -1):
        raise UserError(f"config.mesh ({text}): sizes must be positive, except that one may be -1")
    if free:
        sizes[free[0]] = n_devices // fixed
    if math.prod(sizes.values()) != n_devices:
        size = f"requires a multiple of {fixed} devices" if free else f"multiplies to {fixed}"
        raise UserError(f"config.mesh ({text}) {size}, but {n_devices} devices are available")
    return tuple(sizes.values())


def make_mesh(config_mesh, devices=None) -> Mesh:
    """The mesh of all available devices, or of `devices`.

    In TPU systems of several slices, which a slower network connects, one axis crosses between slices
    (`config.mesh.slice_axis`) and the others stay within them.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = mesh_shape(config_mesh, len(devices))
    axis_types = (AxisType.Auto,) * len(MESH_AXES)
    n_slices = len({getattr(d, "slice_index", 0) for d in devices if d.platform == "tpu"})
    if n_slices <= 1:
        return jax.make_mesh(shape, MESH_AXES, axis_types=axis_types, devices=devices)
    crossing = slice_axis(config_mesh)
    between = [n_slices if axis == crossing else 1 for axis in MESH_AXES]
    if shape[MESH_AXES.index(crossing)] % n_slices:
        raise UserError(
            f"config.mesh.{crossing}={shape[MESH_AXES.index(crossing)]} is not divisible by the "
            f"{n_slices} slices of these devices (config.mesh.slice_axis={crossing!r})"
        )
    within = [size // n for size, n in zip(shape, between, strict=True)]
    placed = mesh_utils.create_hybrid_device_mesh(within, between, devices)
    return Mesh(placed, MESH_AXES, axis_types=axis_types)


def slice_axis(config_mesh) -> str:
    """The mesh axis that crosses between slices; raises UserError for one that cannot."""
    axis = config_mesh.slice_axis
    if axis not in ("data", "fsdp"):
        raise UserError(f"config.mesh.slice_axis={axis!r} must be one of data, fsdp")
    return axis


def abstract_mesh(config_mesh, n_devices: int) -> AbstractMesh:
    """A mesh of devices that need not exist, for shapes and shardings."""
    shape = mesh_shape(config_mesh, n_devices)
    return AbstractMesh(shape, MESH_AXES, axis_types=(AxisType.Auto,) * 3)


def axis_rules(config_mesh) -> tuple[tuple[str, tuple[str, ...] | None], ...]:
    """Logical-to-mesh rules in the form that flax uses, from `config.mesh.rules` ("data,fsdp" or "")."""
    slice_axis(config_mesh)
    rules = []
    for logical, text in dict(config_mesh.rules).items():
        mesh_axes = tuple(part.strip() for part in text.split(",") if part.strip())
        for name, allowed in ((logical, LOGICAL_AXES), *((axis, MESH_AXES) for axis in mesh_axes)):
            if name not in allowed:
                raise UserError(
                    f"config.mesh.rules.{logical}={text!r}: {name!r} is not one of "
                    f"{', '.join(allowed)}"
                )
        if len(set(mesh_axes)) < len(mesh_axes):
            raise UserError(f"config.mesh.rules.{logical}={text!r} names a mesh axis twice")
        rules.append((logical, mesh_axes or None))
    missing = set(LOGICAL_AXES) - {logical for logical, _ in rules}
    if missing:
        raise UserError(f"config.mesh.rules has no rule for {', '.join(sorted(missing))}")
    by_name = dict(rules)
    if shared := {*(by_name["batch"] or ())} & {*(by_name["seq"] or ())}:
        raise UserError(
            f"config.mesh.rules.seq has the mesh axis {min(shared)!r}, which shards the batch already"
        )
    return tuple(rules)


def check_divisible(model_config, batch_size: int, mesh: Mesh, rules, seq_len: int = 0) -> None:
    """Raises UserError if a dimension is not divisible by the devices of its mesh axes."""
    sizes = {
        "batch": ("batch_size / config.microbatches", batch_size),
        "seq": ("seq_len", seq_len),
        "vocab": ("model.vocab_size", model_config.vocab_size),
        "embed": ("model.d_model", model_config.d_model),
        "heads": ("model.n_heads", model_config.n_heads),
        "kv_heads": ("model.n_kv_heads", model_config.n_kv_heads),
        "mlp": ("model.d_ff", model_config.d_ff),
    }
    for logical, mesh_axes in rules:
        parts = math.prod(mesh.shape[axis] for axis in mesh_axes or ())
        if logical in sizes and sizes[logical][1] % parts:
            name, size = sizes[logical]
            raise UserError(
                f"config.{name}={size} is not divisible by {parts}, the devices of mesh axes "
                f"{'+'.join(mesh_axes)}, which shard '{logical}'"
            )


def axes_of(entry) -> tuple[str, ...]:
    """The mesh axes in an entry of a PartitionSpec or a rule."""
    if entry is None:
        return ()
    return (entry,) if isinstance(entry, str) else tuple(entry)


def batch_axes(rules) -> tuple[str, ...]:
    """The mesh axes that shard the batch or the time axis."""
    return axes_of(dict(rules)["batch"]) + axes_of(dict(rules)["seq"])


def parameter_spec(names, shape, mesh, rules) -> PartitionSpec:
    """Mesh axes of each dimension of a parameter with logical axis names.

    Mesh axes that shard the batch too (`fsdp`) and the last dimension of a matrix by the rules are moved
    to its rows where those are divisible. Parts are then whole rows, which are next to each other when
    they are gathered. Parts of rows would be shorter than the 128 lanes of a TPU on many devices
    (2,048 / 64 = 32), and its compiler gathers such parts by sums of padded arrays.
    """
    of_batch = batch_axes(rules)
    spec = [axes_of(entry) for entry in nn.logical_to_mesh_axes(names, rules)]
    kept = [tuple(axis for axis in axes if axis not in of_batch) for axes in spec]
    gathered = [tuple(axis for axis in axes if axis in of_batch) for axes in spec]
    if len([name for name in names if name != "layers"]) > 1:
        rows = gathered[-2] + gathered[-1]
        if shape[-2] % math.prod(mesh.shape[axis] for axis in kept[-2] + rows) == 0:
            gathered[-2:] = rows, ()
    # The axes to gather over come last, so that what they gather is contiguous.
    return PartitionSpec(*(k + g for k, g in zip(kept, gathered, strict=True)))


def tree_sharding(abstract_boxed, mesh: Mesh, rules):
    """NamedSharding of every leaf of an abstract tree whose parameters are boxed with axis names."""

    def placed(boxed):
        return NamedSharding(mesh, parameter_spec(boxed.names, boxed.value.shape, mesh, rules))

    return jax.tree.map(placed, abstract_boxed, is_leaf=lambda x: isinstance(x, nn.Partitioned))


def batch_sharding(mesh: Mesh, rules) -> NamedSharding:
    """Sharding of [B, T] arrays of tokens."""
    return NamedSharding(mesh, PartitionSpec(dict(rules)["batch"], dict(rules)["seq"]))


def local_rows(sharding: NamedSharding, batch_size: int) -> np.ndarray:
    """Rows of the global batch that the devices of this process hold, ascending."""
    along_batch = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[:1]))
    indices = along_batch.addressable_devices_indices_map((batch_size,)).values()
    rows = [np.arange(batch_size)[index[0]] for index in indices]
    return np.unique(np.concatenate(rows))


def global_batch(local: dict, rows: np.ndarray, sharding: NamedSharding, batch_size: int) -> dict:
    """The sharded global arrays of a batch of which this process holds `rows`."""

    def make(array):
        def shard(index):
            wanted = np.arange(batch_size)[index[0]]
            return array[np.searchsorted(rows, wanted)][:, index[1]]

        shape = (batch_size, *array.shape[1:])
        return jax.make_array_from_callback(shape, sharding, shard)

    return {name: make(array) for name, array in local.items()}


def global_shapes(local: dict, sharding: NamedSharding, batch_size: int) -> dict:
    """Shapes, dtypes and shardings of what `global_batch` makes of such a batch."""

    def shape(array):
        dtype = jax.dtypes.canonicalize_dtype(array.dtype)
        return jax.ShapeDtypeStruct((batch_size, *array.shape[1:]), dtype, sharding=sharding)

    return {name: shape(array) for name, array in local.items()}
