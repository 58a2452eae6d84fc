"""A segment of a plan: `nn.scan` over its repetitions around `nn.scan` over its layers.

Shape letters are those of `model.py`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from loopjax import loop, windows
from loopjax.depth import ExecutedLayer, Window
from loopjax.remat import POLICIES


def run(model, block, index, x_BTD, context, passes=None, every=False):
    """nn.scan over repetitions (parameters broadcast) of nn.scan over layers (scanned).

    With `every` the result is [R, B, T, D], the residual stream as if the loop ended after each
    repetition; with `passes` after each with a gradient, and 0 for those that there are not.
    """
    cfg = model.cfg
    segment = model.plan.segments[index]
    unique_L = iteration_R = None
    if "place" in block.reads:
        unique_L = jnp.arange(segment.start, segment.stop)
    is_window = isinstance(segment, Window)
    if "place" in block.reads or is_window:
        iteration_R = jnp.arange(segment.repeats)

    def layer(block, x_BTD, unique, iteration, context):
        if unique is not None:
            context = context.replace(place=ExecutedLayer(unique, index, iteration))
        return block(checkpoint_name(x_BTD, "layer_input"), context)

    if cfg.remat != "none":
        policy = POLICIES[cfg.remat]
        layer = nn.remat(layer, prevent_cse=False, policy=policy)
    stack = nn.scan(
        layer,
        variable_axes={"params": 0, "intermediates": 0, "losses": 0},
        split_rngs={"params": True},
        in_axes=(0, nn.broadcast, nn.broadcast),
        length=segment.layers,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    if segment.repeats > 1 and not is_window and (passes is not None or cfg.loop.is_active):
        return _run_loop(model, block, segment, stack, unique_L, x_BTD, context, passes, every)
    if segment.repeats > 1:
        if is_window:
            stack = windows.one_pass(stack, segment)
        if every:
            stack = _returning_each(stack)
        stack = nn.scan(
            stack,
            variable_broadcast="params",
            variable_axes={"intermediates": 0, "losses": 0},
            split_rngs={"params": False},
            in_axes=(nn.broadcast, 0, nn.broadcast),
            length=segment.repeats,
        )
    elif iteration_R is not None:
        iteration_R = iteration_R[0]
    x_BTD, each = stack(block, x_BTD, unique_L, iteration_R, context)
    return each if every else x_BTD


def _run_loop(model, block, segment, stack, unique_L, x_BTD, context, passes, every):
    """A segment that repeats, with options of `config.loop`; `stack` runs its layers once."""
    cfg = model.cfg

    def repetition(block, x_BTD, iteration, unique_L, context):
        x_BTD, context = loop.enter_repetition(x_BTD, iteration, context, cfg)
        known = loop.repetition_of(segment, iteration, cfg)
        x_BTD, _ = stack(block, x_BTD, unique_L, iteration, context.replace(repetition=known))
        x_BTD = loop.leave_repetition(x_BTD, iteration, context, cfg)
        return x_BTD, loop.leave_loop(x_BTD, context, cfg) if every else None

    if passes is None:
        repeated = nn.scan(
            repetition,
            variable_broadcast="params",
            variable_axes={"intermediates": 0, "losses": 0},
            split_rngs={"params": False},
            in_axes=(0, nn.broadcast, nn.broadcast),
            length=segment.repeats,
        )
        x_BTD, each = repeated(block, x_BTD, jnp.arange(segment.repeats), unique_L, context)
        return each if every else loop.leave_loop(x_BTD, context, cfg)
    pure = nn.apply(repetition, type(block)(cfg, parent=None), mutable=["losses"])

    def once(inputs, x_BTD, iteration):
        params, context = inputs
        (x_BTD, each), sown = pure({"params": params}, x_BTD, iteration, unique_L, context)
        return x_BTD, (sown, each)

    most = cfg.loop.law.largest if passes.count is not None else segment.repeats
    inputs = (block.variables["params"], context)
    x_BTD, (sown, each) = loop.run_passes(once, inputs, x_BTD, passes, most)
    for name, value in sums_of(sown).items():
        model.sow("losses", name, value)
    return each if every else loop.leave_loop(x_BTD, context, cfg)


def _returning_each(stack):
    """A repetition that also returns the residual stream after it."""

    def repetition(block, x_BTD, *inputs):
        x_BTD, _ = stack(block, x_BTD, *inputs)
        return x_BTD, x_BTD

    return repetition


def sums_of(sown) -> dict[str, jax.Array]:
    """{name: sum of all that was sown by that name}."""
    sums: dict[str, jax.Array] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(sown):
        name = next(key.key for key in reversed(path) if hasattr(key, "key"))
        sums[name] = sums.get(name, 0.0) + jnp.sum(leaf)
    return sums
