"""A step of growth: the layers are gathered by an order, then the new ones are changed if asked.

Whether a layer is new is read off the order: of several copies of an old layer all but the first
are. A new way to change them is a function and a row of `TRANSFORMS`.
"""

import jax
import jax.numpy as jnp
import numpy as np

from loopjax import optim, surgery

# The matrices that write into the residual stream.
OUTPUTS = ("output", "down")


def new_layers(order) -> np.ndarray:
    """Which layers of the grown stack are copies of one before them; bool [U]."""
    return np.array([layer in order[:i] for i, layer in enumerate(order)])


def zero_output(params, new_U, key, noise: float):
    """New layers add nothing to the residual stream: the grown model computes what it did before.

    The zeroed matrices receive gradients at once; the others follow (cf. Net2Net, Chen et al. 2016;
    bert2BERT, Chen et al. 2022).
    """

    def zeroed(path, leaf):
        if not (surgery.on_stack(path) and path[-1].key in OUTPUTS):
            return leaf
        return jnp.where(_along(new_U, leaf), 0.0, leaf)

    return jax.tree_util.tree_map_with_path(zeroed, params)


def add_noise(params, new_U, key, noise: float):
    """Normal noise on the matrices of new layers, `noise` times the RMS of each, so that copies part."""

    def noisy(path, leaf):
        if not (surgery.on_stack(path) and leaf.ndim == 3):
            return leaf
        # By name: the draws of a matrix depend on no other.
        own = jax.random.fold_in(key, sum(map(ord, path[-1].key)))
        rms_U11 = jnp.sqrt(jnp.mean(jnp.square(leaf), axis=(1, 2), keepdims=True))
        moved = leaf + noise * rms_U11 * jax.random.normal(own, leaf.shape, leaf.dtype)
        return jnp.where(_along(new_U, leaf), moved, leaf)

    return jax.tree_util.tree_map_with_path(noisy, params)


def _along(new_U, leaf):
    return jnp.reshape(new_U, (-1,) + (1,) * (leaf.ndim - 1))


TRANSFORMS = {"zero_output": zero_output, "noise": add_noise}
MOMENTS = ("copy", "reset")


def grow(state, phase, optimizer, seed: int):
    """The train state that a phase of growth starts from, on the devices; `state` is used up.

    Args:
      phase: a `curriculum.Phase` with an order.
      optimizer: of the run; moments are those of the copied layers, or with `phase.moments` "reset"
        all start at zero again, while the learning rate continues its schedule.
      seed: of the run; noise depends on it and on the phase's first step alone.
    """
    state = surgery.grow(state, phase.order, donate=True)
    if not phase.transform and phase.moments == "copy":
        return state
    key = jax.random.fold_in(jax.random.key(seed), phase.start)
    new_U = new_layers(phase.order)

    def changed(state):
        params, opt_state = state.params, state.opt_state
        if phase.transform:
            params = TRANSFORMS[phase.transform](params, new_U, key, phase.noise)
        if phase.moments == "reset":
            opt_state = optim.reset(optimizer, params, opt_state)
        return state.replace(params=params, opt_state=opt_state)

    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    return jax.jit(changed, out_shardings=shardings, donate_argnums=0)(state)
