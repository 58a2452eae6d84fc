"""Growth, untying and tying: one gather along the `layers` axis of any tree that has one.

A tree here is parameters, AdamW moments, gradients or a whole train state; the leaves below a
key "layers" are stacked [U, ...], all other leaves are returned unchanged (the same arrays, not copies).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from loopjax.depth import DepthPlan
from loopjax.errors import UserError
from loopjax.loop_config import BOUNDARY, LoopConfig


def on_stack(path) -> bool:
    """Whether a tree path leads to a leaf with a leading layers axis."""
    return any(getattr(key, "key", None) == "layers" for key in path)


def map_stack(fn, tree):
    """Applies `fn` to the stacked leaves of a tree; the others pass through."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: fn(leaf) if on_stack(path) else leaf, tree
    )


def updated(tree: dict, values: dict) -> dict:
    """A tree of dicts with the values of another one that has some of its leaves."""
    return {
        key: updated(leaf, values[key])
        if isinstance(values.get(key), dict)
        else values.get(key, leaf)
        for key, leaf in tree.items()
    }


def n_layers(tree) -> int:
    """U of a tree; raises ValueError when the stacked leaves disagree or there are none."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    sizes = {leaf.shape[0] for path, leaf in leaves if on_stack(path)}
    if len(sizes) != 1:
        raise ValueError(f"expected stacked leaves of one depth below 'layers', found {sizes}")
    return sizes.pop()


def _check_order(tree, order) -> tuple[int, ...]:
    order = tuple(int(i) for i in order)
    depth = n_layers(tree)
    if not order or min(order) < 0 or max(order) >= depth:
        raise ValueError(
            f"order {order} must consist of layers 0..{depth - 1} of a {depth}-layer stack"
        )
    return order


def reorder(tree, order):
    """The tree in which layer i is the old layer `order[i]`; a pure function, usable under `jit`."""
    order = _check_order(tree, order)
    return map_stack(lambda leaf: jnp.take(leaf, jnp.asarray(order), axis=0), tree)


@functools.lru_cache(maxsize=256)
def _gather(shape: tuple, dtype, sharding, length: int):
    """The compiled gather of arrays of one kind; orders of one length share a program."""
    return lower_gather(shape, dtype, sharding, length).compile()


def lower_gather(shape: tuple, dtype, sharding, length: int):
    """The program that gathers an array by an order of a length, lowered for its devices."""
    leaf = jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
    order = jax.ShapeDtypeStruct((length,), jnp.int32, sharding=_replicated(sharding))
    # mode="clip" needs no bounds check on the device; `_check_order` has checked already.
    take = functools.partial(jnp.take, axis=0, mode="clip")
    return jax.jit(take, out_shardings=sharding).lower(leaf, order)


def _replicated(sharding):
    """Where the order of a gather is, which every device of the array needs."""
    if isinstance(sharding, NamedSharding):
        return NamedSharding(sharding.mesh, PartitionSpec())
    return sharding


def _gathered(leaf, order: np.ndarray):
    """The leaf gathered by an order, in its own sharding."""
    leaf = jnp.asarray(leaf)
    gather = _gather(leaf.shape, leaf.dtype, leaf.sharding, len(order))
    return gather(leaf, jax.device_put(order, _replicated(leaf.sharding)))


def grown_shapes(state, order):
    """Shapes, dtypes and shardings of what `grow` makes of a state like `state`."""

    def grown(leaf):
        shape = (len(order), *leaf.shape[1:])
        return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=leaf.sharding)

    return map_stack(grown, state)


def compile_growth(state, order) -> None:
    """Compiles what `grow` runs for a state of these shapes and an order of this length."""

    def compile_gather(leaf):
        _gather(leaf.shape, leaf.dtype, leaf.sharding, len(order))

    map_stack(compile_gather, state)


def grow(state, order, *, donate: bool = False):
    """`reorder` on the devices: every stacked leaf is gathered and keeps its sharding.

    On a train state this copies parameters and AdamW moments by the order (Kapl et al. 2026,
    section 2); embeddings, final norm, step counter and schedule are untouched.

    Leaves are gathered one after another, so with `donate=True` (each old leaf is freed as soon
    as its copy is dispatched) the peak is the state plus one leaf. XLA's own donation cannot do
    this: it needs output buffers of the input's size.

    Args:
      state: tree with stacked leaves [U, ...].
      order: old layer index of each new layer, for example `lidas(U, block)`.
      donate: whether to free the stacked arrays of `state`; using them afterwards is an error.
    """
    order = np.array(_check_order(state, order), np.int32)

    def gathered(leaf):
        new = _gathered(leaf, order)
        if donate and isinstance(leaf, jax.Array):
            leaf.delete()
        return new

    return map_stack(gathered, state)


def fitting(params, plan: DepthPlan | str) -> DepthPlan:
    """The plan, read if it is text; raises ValueError unless it has as many layers as the tree."""
    plan = DepthPlan.parse(plan)
    _check_depth(params, plan.n_unique, f"plan {plan} has {plan.n_unique} unique layers")
    return plan


def untie(params, plan: DepthPlan | str, loop: LoopConfig = LoopConfig()):  # noqa: B008
    """The tree of E independent layers that computes what `plan` computes with U shared ones.

    Low-rank additions of repetitions and the scale of their residuals become part of the matrices.

    Args:
      params: parameters, if `loop` is given; else any tree with stacked leaves.
      loop: options of the loops. UserError if layers alone cannot compute what they do.
    """
    plan = fitting(params, plan).trainable()
    if plan.is_looped and (between := loop.options(BOUNDARY)):
        raise UserError(
            f"{between[0]} changes the residual stream between repetitions, which untied layers cannot; "
            f"plan {plan} stays a loop"
        )
    if not loop.is_active:
        return reorder(params, plan.order)
    return _merged(reorder(params, plan.order), plan, loop)


def _merged(params, plan: DepthPlan, loop: LoopConfig):
    """Untied parameters with what `loop` does in each repetition in their matrices."""
    segments = [plan.segments[place.segment] for place in plan.executed]
    looped = np.array([segment.repeats > 1 for segment in segments])
    own = np.minimum([place.iteration for place in plan.executed], loop.own - 1)
    stack = dict(params["layers"])
    for name in [name for name in stack if f"{name}_lora_a" in stack]:
        a_EIr, b_ErO = (stack.pop(f"{name}_lora_{x}")[np.arange(len(own)), own] for x in "ab")
        low_EIO = jnp.einsum("eir,ero->eio", a_EIr, b_ErO, precision=jax.lax.Precision.HIGHEST)
        stack[name] += jnp.where(looped[:, None, None], low_EIO, 0.0)
    for name in ("output", "down") if loop.residual_scale == "loops" else ():
        scale = [loop.sublayer_scale(segment.repeats, segment.layers) for segment in segments]
        stack[name] *= jnp.array(scale)[:, None, None]
    return {**params, "layers": stack}


def tie(params, plan: DepthPlan | str, loop: LoopConfig = LoopConfig()):  # noqa: B008
    """The inverse of `untie`: U shared layers, each the first of the E executed layers that use it.

    UserError with options of loops: what they add was not there before.
    """
    plan = DepthPlan.parse(plan).trainable()
    if active := loop.of_repetitions():
        raise UserError(
            f"{active[0]} is not part of untied layers, so that they cannot be tied to it"
        )
    _check_depth(params, plan.n_effective, f"plan {plan} executes {plan.n_effective} layers")
    return reorder(params, plan.first_uses)


def _check_depth(tree, expected: int, why: str) -> None:
    if n_layers(tree) != expected:
        raise ValueError(f"{why}, but the tree has {n_layers(tree)}")
