"""The spectral norm of the Jacobian of a repetition, by power iteration: `config.losses.jacobian`.

A loop whose repetition contracts near its state converges when it is repeated more often than in training;
the penalty is zero once the largest singular value sigma of the Jacobian is at most `jacobian_most`.
"""

import dataclasses

import jax
import jax.numpy as jnp

from loopjax import model
from loopjax.depth import DepthPlan
from loopjax.losses import Losses


def penalty(segments, x_BTD, cfg, plan, placement, added: Losses, seed: int, step) -> jax.Array:
    """The mean over rows of max(0, sigma - `jacobian_most`), float32 []; see `spectral_norm`.

    The Jacobian is that of one more repetition of the plan's loop at a state, which is a constant here:
    the gradient is that of the repetition's weights.

    Args:
      x_BTD: the residual stream after the last repetition.
      seed, step: of the run, and updates done: they determine the direction in which the iteration starts.
    """
    # The gradient of a gradient: fused attention has none, and recomputing would be nested.
    cfg = dataclasses.replace(cfg, attention="chunks", remat="none")
    x_BTD = jax.lax.stop_gradient(x_BTD)
    key = jax.random.fold_in(jax.random.key(seed), 0x6A61636F)  # a stream of its own
    start_BTD = jax.random.normal(jax.random.fold_in(key, step), x_BTD.shape)

    def repetition(segments, x32_BTD):
        x_BTD = x32_BTD.astype(cfg.dtype)
        return one_repetition(segments, x_BTD, cfg, plan, placement).astype(jnp.float32)

    x32_BTD = x_BTD.astype(jnp.float32)
    sigma_B = spectral_norm(repetition, segments, x32_BTD, start_BTD, added.jacobian_steps)
    return jnp.mean(jnp.maximum(sigma_B - added.jacobian_most, 0.0))


def one_repetition(segments, x_BTD, cfg, plan: DepthPlan, placement=None):
    """The loop of a plan once more on a residual stream, [B, T, D]; `segments` as `cut_segments`."""
    loop = next(i for i, s in enumerate(plan.segments) if s.repeats > 1)

    def run(module, x_BTD, placement):
        positions = jnp.arange(x_BTD.shape[1]) if placement is None else placement.positions_BT
        context = model.context_of(cfg, positions, x_BTD, placement)
        return module.run_segment(loop, x_BTD, context)

    once = DepthPlan(tuple(dataclasses.replace(s, repeats=1) for s in plan.segments))
    variables = {"params": segments}
    return model.Transformer(cfg, once).apply(variables, x_BTD, placement, method=run)


def spectral_norm(function, params, x, start, steps: int) -> jax.Array:
    """The largest singular value of J = d function(params, x) / d x for every row, [B].

    With v_0 the start and v_{i+1} = J^T J v_i / ||J^T J v_i||, it is ||J v|| for the v after `steps`
    iterations: a lower bound that grows with them. v is a constant of its gradient, which is exact at
    convergence (the value is stationary in v).

    Products J v are transposed gradients, since functions with gradients of their own (products with
    sharded weights) have no forward mode.

    Args:
      function: (params, x [B, ...]) -> [B, ...], each row by itself.
      start: like x, not 0.
    """
    axes = tuple(range(1, x.ndim))

    def unit(v):
        return v / jnp.sqrt(jnp.sum(jnp.square(v), axis=axes, keepdims=True) + 1e-30)

    def forward(params, v):
        """J v: the gradient of u -> J^T u, which is linear, in the direction v."""
        out, pull = jax.vjp(lambda x: function(params, x), x)
        _, push = jax.vjp(lambda u: pull(u)[0], jnp.zeros_like(out))
        return push(v)[0]

    fixed = jax.lax.stop_gradient(params)
    _, pull = jax.vjp(lambda x: function(fixed, x), x)

    def iterate(_, v):
        return unit(pull(forward(fixed, v))[0])

    v = jax.lax.stop_gradient(jax.lax.fori_loop(0, steps, iterate, unit(start)))
    return jnp.sqrt(jnp.sum(jnp.square(forward(params, v)), axis=axes) + 1e-30)
