"""A growth step: layers are gathered by an order, then the new ones are optionally transformed.

Which layers are new follows from the order: all copies of an old layer except the first. To add a
transform, write a function and add it to `TRANSFORMS`.
"""

import zlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from loopjax import model, optim, surgery

# The matrices that write into the residual stream.
OUTPUTS = ("output", "down", "output_lora_b", "down_lora_b")


def new_layers(order) -> np.ndarray:
    """Whether each layer of the grown stack is a copy of an earlier one; bool [U]."""
    return np.array([layer in order[:i] for i, layer in enumerate(order)])


def zero_output(params, new_U, key, noise: float, cfg):
    """Zeroes the output matrices of new layers, so that the grown model computes the same function.

    The zeroed matrices receive gradients from the first step on, the other matrices of these layers
    once those are nonzero (cf. Net2Net, Chen et al. 2016; bert2BERT, Chen et al. 2022).
    """

    def zeroed(path, leaf):
        if not (surgery.on_stack(path) and path[-1].key in OUTPUTS):
            return leaf
        return jnp.where(_along(new_U, leaf), 0.0, leaf)

    return jax.tree_util.tree_map_with_path(zeroed, params)


def add_noise(params, new_U, key, noise: float, cfg):
    """Adds normal noise, `noise` times the RMS of each matrix, so that copied layers differ."""

    def noisy(path, leaf):
        if not (surgery.on_stack(path) and leaf.ndim == 3):
            return leaf
        # Keyed by name: the noise of a matrix does not depend on which others exist.
        own = jax.random.fold_in(key, zlib.crc32(path[-1].key.encode()))
        rms_U11 = jnp.sqrt(jnp.mean(jnp.square(leaf), axis=(1, 2), keepdims=True))
        moved = leaf + noise * rms_U11 * jax.random.normal(own, leaf.shape, leaf.dtype)
        return jnp.where(_along(new_U, leaf), moved, leaf)

    return jax.tree_util.tree_map_with_path(noisy, params)


def initialize(params, new_U, key, noise: float, cfg):
    """Initializes new layers afresh, as those of a new model with this key.

    Random layers instead of copies: one-shot growth from one layer (2511.04981).
    """
    fresh = nn.meta.unbox(model.init_params(cfg, len(new_U), key))["layers"]
    layers = jax.tree.map(
        lambda leaf, new: jnp.where(_along(new_U, leaf), new, leaf), params["layers"], fresh
    )
    return {**params, "layers": layers}


def _along(new_U, leaf):
    return jnp.reshape(new_U, (-1,) + (1,) * (leaf.ndim - 1))


TRANSFORMS = {"zero_output": zero_output, "noise": add_noise, "random": initialize}
MOMENTS = ("copy", "zero", "reset")


def grow(state, phase, optimizer, seed: int, cfg):
    """The train state at the start of a growth phase, computed on the devices; `state` is donated.

    Args:
      phase: a `curriculum.Phase` with an order.
      optimizer: optimizer of the run. Moments are copied with their layers; `phase.moments` "zero"
        then sets those of new layers to zero, "reset" all of them and the count of their updates. The
        learning rate continues its schedule.
      seed: seed of the run; noise and fresh layers depend only on it and on the first step of the
        phase.
      cfg: architecture.
    """
    return compiled(state, phase, optimizer, seed, cfg)(state)


def compiled(shapes, phase, optimizer, seed: int, cfg):
    """The function that grows states of these shapes and shardings as `grow` does, compiled."""
    surgery.compile_growth(shapes, phase.order)
    change = None
    if phase.transform or phase.moments != "copy":
        change = _change(surgery.grown_shapes(shapes, phase.order), phase, optimizer, seed, cfg)

    def grown(state):
        state = surgery.grow(state, phase.order, donate=True)
        return state if change is None else change(state)

    return grown


def _change(shapes, phase, optimizer, seed: int, cfg):
    """The compiled change of a grown state: a transform of its new layers, moments set to zero."""
    new_U = new_layers(phase.order)

    def transformed(params):
        key = jax.random.fold_in(jax.random.key(seed), phase.start)
        return TRANSFORMS[phase.transform](params, new_U, key, phase.noise, cfg)

    def changed(state):
        if phase.transform:
            # The same change of the average, so that its new layers begin as those of the model.
            average = None if state.ema is None else transformed(state.ema)
            state = state.replace(params=transformed(state.params), ema=average)
        if phase.moments == "zero":
            moments = surgery.map_stack(
                lambda leaf: jnp.where(_along(new_U, leaf), jnp.zeros_like(leaf), leaf),
                state.opt_state,
            )
            state = state.replace(opt_state=moments)
        if phase.moments == "reset":
            moments = optim.reset(optimizer, state.params, state.opt_state)
            state = state.replace(opt_state=moments)
        return state

    shardings = jax.tree.map(lambda leaf: leaf.sharding, shapes)
    return jax.jit(changed, out_shardings=shardings, donate_argnums=0).lower(shapes).compile()
