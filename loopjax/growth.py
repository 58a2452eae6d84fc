"""A growth step: layers are gathered by an order, then the new ones are optionally transformed.

Which layers are new follows from the order: all copies of an old layer except the first. To add a
transform, write a function and add it to `TRANSFORMS`.
"""

import zlib

import jax
import jax.numpy as jnp
import numpy as np

from loopjax import optim, surgery

# The matrices that write into the residual stream.
OUTPUTS = ("output", "down")


def new_layers(order) -> np.ndarray:
    """Whether each layer of the grown stack is a copy of an earlier one; bool [U]."""
    return np.array([layer in order[:i] for i, layer in enumerate(order)])


def zero_output(params, new_U, key, noise: float):
    """Zeroes the output matrices of new layers, so that the grown model computes the same function.

    The zeroed matrices receive gradients from the first step on, the other matrices of these layers
    once those are nonzero (cf. Net2Net, Chen et al. 2016; bert2BERT, Chen et al. 2022).
    """

    def zeroed(path, leaf):
        if not (surgery.on_stack(path) and path[-1].key in OUTPUTS):
            return leaf
        return jnp.where(_along(new_U, leaf), 0.0, leaf)

    return jax.tree_util.tree_map_with_path(zeroed, params)


def add_noise(params, new_U, key, noise: float):
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


def _along(new_U, leaf):
    return jnp.reshape(new_U, (-1,) + (1,) * (leaf.ndim - 1))


TRANSFORMS = {"zero_output": zero_output, "noise": add_noise}
MOMENTS = ("copy", "reset")


def grow(state, phase, optimizer, seed: int):
    """The train state at the start of a growth phase, computed on the devices; `state` is donated.

    Args:
      phase: a `curriculum.Phase` with an order.
      optimizer: optimizer of the run. Moments are copied with their layers, or all set to zero if
        `phase.moments` is "reset"; the learning rate continues its schedule either way.
      seed: seed of the run; the noise depends only on it and on the first step of the phase.
    """
    return compiled(state, phase, optimizer, seed)(state)


def compiled(shapes, phase, optimizer, seed: int):
    """The function that grows states of these shapes and shardings as `grow` does, compiled."""
    surgery.compile_growth(shapes, phase.order)
    change = None
    if phase.transform or phase.moments == "reset":
        change = _change(surgery.grown_shapes(shapes, phase.order), phase, optimizer, seed)

    def grown(state):
        state = surgery.grow(state, phase.order, donate=True)
        return state if change is None else change(state)

    return grown


def _change(shapes, phase, optimizer, seed: int):
    """The compiled change of a grown state: a transform of its new layers, a reset of moments."""
    new_U = new_layers(phase.order)

    def changed(state):
        params, opt_state = state.params, state.opt_state
        if phase.transform:
            key = jax.random.fold_in(jax.random.key(seed), phase.start)
            params = TRANSFORMS[phase.transform](params, new_U, key, phase.noise)
        if phase.moments == "reset":
            opt_state = optim.reset(optimizer, params, opt_state)
        return state.replace(params=params, opt_state=opt_state)

    shardings = jax.tree.map(lambda leaf: leaf.sharding, shapes)
    return jax.jit(changed, out_shardings=shardings, donate_argnums=0).lower(shapes).compile()
