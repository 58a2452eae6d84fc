"""Products with parameters that are sharded over the devices of the batch (ZeRO-3).

A mesh axis that shards both the batch and a parameter (`fsdp`) cannot shard their product. Each use of
such a parameter therefore gathers it, and its gradient is summed over the devices and scattered:

    forward pass     all-gather of the compute type (bfloat16: 2 bytes a number)
    backward pass    the same again, since a gathered copy is not kept, and a reduce-scatter of float32

(Rajbhandari et al. 2020, ZeRO stage 3.) The sum over the devices is in float32 because each addition
in bfloat16 would round away all but 8 bits. Over mesh axes that shard the batch alone (`data`), the
scattered part of the gradient is summed by an all-reduce, also in float32: where `data` connects
slices, only a device's own part crosses between them.

Both are written out as collectives (`jax.shard_map`), since the transpose of a sharding constraint sums
the whole gradient on every device and cuts it afterwards: twice the bytes.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from loopjax import kernels
from loopjax.sharding import MESH_AXES, axes_of, batch_axes, parameter_spec


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the parts of a parameter are, for the functions that use it.

    Attributes:
      spec: mesh axes of each dimension of the parameter.
      used: the same without the axes of the batch: the sharding that products need.
      rows: mesh axes of the batch and time dimensions of its inputs and outputs.
    """

    spec: PartitionSpec
    used: PartitionSpec
    rows: tuple

    def gather(self, part):
        """Inside `jax.shard_map`: the part of the parameter that a product needs."""
        for dim, axis, groups in reversed(self._steps()):
            part = jax.lax.all_gather(part, axis, axis=dim, tiled=True, axis_index_groups=groups)
        return part

    def sum(self, gradient):
        """Inside `jax.shard_map`: this device's part of the sum of all devices' gradients."""
        steps = self._steps()
        for dim, axis, groups in steps:
            gradient = jax.lax.psum_scatter(
                gradient, axis, scatter_dimension=dim, tiled=True, axis_index_groups=groups
            )
        left = {axis for axes in self.rows for axis in axes} - {axis for _, axis, _ in steps}
        left = tuple(axis for axis in MESH_AXES if axis in left)
        return jax.lax.psum(gradient, left) if left else gradient

    def _steps(self) -> list[tuple]:
        """(dimension, mesh axis, groups of devices) of each reduce-scatter, in order."""
        return [
            (dim, axis, groups)
            for dim, (own, used) in enumerate(zip(self.spec, self.used, strict=True))
            for axis in axes_of(own)
            if axis not in axes_of(used)
            for groups in device_groups(jax.lax.axis_size(axis), kernels.platform())
        ]


# Sizes of the groups of two successive reduce-scatters over a mesh axis, by its number of devices. Over a
# whole slice of two or three dimensions at once, the TPU compiler sums whole arrays instead, which
# sends twice the bytes; these it keeps, and they send as many bytes as one would.
_TPU_STEPS = {
    8: (2, 4), 16: (2, 8), 32: (8, 4), 64: (8, 8), 128: (16, 8), 256: (16, 16), 512: (32, 16),
}  # fmt: skip


@functools.cache
def device_groups(n: int, platform: str) -> list:
    """The groups of successive reduce-scatters over a mesh axis of `n` devices; None for all at once.

    Two steps are over the columns and then over the rows of a grid of the devices.
    """
    if platform != "tpu" or n not in _TPU_STEPS:
        return [None]
    rows, columns = _TPU_STEPS[n]
    grid = [[row * columns + column for column in range(columns)] for row in range(rows)]
    return [[list(column) for column in zip(*grid, strict=True)], grid]


def layout(names, shape) -> Layout | None:
    """The layout of a parameter with logical axis names on the mesh of the context.

    None where no mesh axis of more than one device shards the batch: there, products with it need
    no collectives, or only those that the compiler adds by itself.
    """
    where = on_mesh(names, shape)
    return where if where and any(where.rows) else None


def on_mesh(names, shape) -> Layout | None:
    """The layout of a parameter; None without a mesh of several devices, and in `jax.shard_map`."""
    mesh, rules = jax.sharding.get_abstract_mesh(), nn.get_logical_axis_rules()
    if mesh.empty or mesh.size == 1 or not rules or AxisType.Manual in mesh.axis_types:
        return None
    return _layout(tuple(names), tuple(shape), mesh, tuple(rules))


@functools.lru_cache(maxsize=256)
def _layout(names, shape, mesh: AbstractMesh, rules) -> Layout:
    def several(axes):
        return tuple(axis for axis in axes if mesh.shape[axis] > 1)

    of_batch = several(batch_axes(rules))
    spec = [several(axes_of(axes)) for axes in parameter_spec(names, shape, mesh, rules)]
    used = [tuple(axis for axis in axes if axis not in of_batch) for axes in spec]
    rows = [several(axes_of(dict(rules)[name])) for name in ("batch", "seq")]
    return Layout(PartitionSpec(*spec), PartitionSpec(*used), tuple(rows))


def matmul(x_BTI, kernel, names):
    """[B, T, in] x [in, out] -> [B, T, out], with a parameter in its own sharding.

    Args:
      kernel: the parameter, which is used in the type of `x_BTI`.
      names: its logical axes.
    """
    where = layout(names, kernel.shape)
    if where is None:
        return kernels.matmul(x_BTI, kernel.astype(x_BTI.dtype))
    return _matmul(x_BTI, kernel, where)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _matmul(x_BTI, kernel, where):
    return kernels.matmul(x_BTI, gathered(kernel, x_BTI.dtype, where))


def _matmul_fwd(x_BTI, kernel, where):
    return _matmul(x_BTI, kernel, where), (x_BTI, kernel)


def _matmul_bwd(where, residuals, dy_BTO):
    x_BTI, kernel = residuals
    dx_BTI = kernels.matmul(dy_BTO, gathered(kernel, x_BTI.dtype, where).T)

    def of_kernel(x_BTI, dy_BTO):
        return where.sum(kernels.weight_gradient(x_BTI, dy_BTO, jnp.float32))

    d_kernel = jax.shard_map(
        of_kernel,
        in_specs=tuple(PartitionSpec(*where.rows, axes) for axes in where.used),
        out_specs=where.spec,
        check_vma=False,
    )(x_BTI, dy_BTO)
    return dx_BTI, d_kernel.astype(kernel.dtype)


_matmul.defvjp(_matmul_fwd, _matmul_bwd)


def gathered(parameter, dtype, where: Layout):
    """The parameter in the compute type, gathered over the mesh axes of the batch."""

    def gather(part):
        return where.gather(part.astype(dtype))

    return jax.shard_map(gather, in_specs=where.spec, out_specs=where.used, check_vma=False)(
        parameter
    )


def lookup(table_VD, tokens_BT, names, dtype):
    """Rows of an embedding for tokens, [B, T, D] of `dtype`."""
    where = layout(names, table_VD.shape)
    if where is None:
        return table_VD.astype(dtype)[tokens_BT]
    return _lookup(table_VD, tokens_BT, jnp.dtype(dtype), where)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _lookup(table_VD, tokens_BT, dtype, where):
    return gathered(table_VD, dtype, where)[tokens_BT]


def _lookup_fwd(table_VD, tokens_BT, dtype, where):
    return _lookup(table_VD, tokens_BT, dtype, where), (tokens_BT, table_VD)


def _lookup_bwd(dtype, where, residuals, dx_BTD):
    tokens_BT, table_VD = residuals
    vocab, width = where.used

    def of_table(tokens_BT, dx_BTD):
        n_rows = table_VD.shape[0] // jax.lax.axis_size(axes_of(vocab))
        rows_BT = tokens_BT - n_rows * jax.lax.axis_index(axes_of(vocab))
        # Rows of other parts are dropped; a negative index would count from the end.
        rows_BT = jnp.where(rows_BT < 0, n_rows, rows_BT)
        zero = jnp.zeros((n_rows, dx_BTD.shape[-1]), jnp.float32)
        return where.sum(zero.at[rows_BT].add(dx_BTD.astype(jnp.float32), mode="drop"))

    gradient = jax.shard_map(
        of_table,
        in_specs=(PartitionSpec(*where.rows), PartitionSpec(*where.rows, width)),
        out_specs=where.spec,
        check_vma=False,
    )
    return gradient(tokens_BT, dx_BTD).astype(table_VD.dtype), None


_lookup.defvjp(_lookup_fwd, _lookup_bwd)
