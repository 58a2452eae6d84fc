"""Bytes per device of a training step, from traced shapes: nothing is compiled or allocated.

The state lies in memory throughout: parameters, and twice as much of AdamW's moments. On top of
it the step peaks in one of two places:

    head     everything saved for the backward pass, and the gradient of the logits
    layers   what the layers saved, the gradients, and one layer at work (with `remat` it computes
             again what it had not saved)

What is saved is read off a trace of the loss and its `jax.vjp` at the shapes that one device
holds. Peaks of XLA differ by what it fuses and reuses; tests hold the two within 15% (float32, on
CPU devices).
"""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from loopjax import kernels, model, step
from loopjax.depth import DepthPlan
from loopjax.surgery import n_layers


@dataclasses.dataclass(frozen=True)
class StepMemory:
    """Bytes on each device.

    Attributes:
      parameters, optimizer: the state.
      gradients: of all parameters; with microbatches also their sum.
      activations: what the forward pass saves for the backward pass, logits included.
      peak: the most that is in use at one time; gradients and activations take turns in part.
    """

    parameters: int
    optimizer: int
    gradients: int
    activations: int
    peak: int


def step_memory(
    cfg, plan: DepthPlan, shape: tuple[int, int], microbatches: int, optimizer, mesh, rules
) -> StepMemory:
    """What an update takes on each device of a mesh (which may be an `AbstractMesh`).

    Args:
      cfg, plan: the model.
      shape: [B, T] of one microbatch, over all devices.
      microbatches: how many of them make an update.
    """
    state = step.abstract_state(cfg, plan.n_unique, optimizer, mesh, rules)
    parameters, moments = shard_bytes(state.params), shard_bytes(state.opt_state)
    parts = {logical: math.prod(mesh.shape[a] for a in axes or ()) for logical, axes in rules}
    local = local_config(cfg, parts)
    shape = shape[0] // parts["batch"], shape[1]
    outside, per_layer = saved_bytes(local, shape, kernels.platform())
    cut = cut_bytes(state.params, plan)
    saved = outside + per_layer * plan.n_effective + cut
    all_of_it = dataclasses.replace(local, remat="none")
    full = saved_bytes(all_of_it, shape, kernels.platform())[1]
    # A layer at work holds what the forward pass did not save of it and, about a fifth as much,
    # the gradients that pass through it; what it takes out of the saved stacks is copied.
    at_work = per_layer * plan.n_effective + max(6 * full // 5 - per_layer, full // 2) + cut
    at_work += weights_at_work(state.params, parts) + loop_bytes(state.params, plan, per_layer)
    head = 4 * math.prod(shape) * local.vocab_size
    summed = parameters if microbatches > 1 else 0
    step_peak = max(saved + head, at_work + parameters) + summed
    peak = parameters + moments + step_peak
    return StepMemory(parameters, moments, parameters + summed, saved, peak)


def weights_at_work(params, parts) -> int:
    """Weights of one layer and their gradients, cut out of the stack, and three whole matrices
    (gathered over fsdp, transposed)."""
    stack = params["layers"]
    one = shard_bytes(stack) // n_layers(params)
    largest = max(math.prod(leaf.shape[1:]) for leaf in jax.tree.leaves(stack))
    return 2 * one + 3 * 4 * largest // parts["mlp"]


def cut_bytes(params, plan: DepthPlan) -> int:
    """The copies of the stack's parts that a plan of several segments runs."""
    return shard_bytes(params["layers"]) if len(plan.segments) > 1 else 0


def loop_bytes(params, plan: DepthPlan, per_layer: int) -> int:
    """The gradient of one repetition of a block, beside the sum over all, and what that repetition
    saved, cut out of what all did."""
    one = shard_bytes(params["layers"]) // plan.n_unique
    return (one + per_layer) * max((s.layers for s in plan.segments if s.repeats > 1), default=0)


def shard_bytes(tree) -> int:
    """Bytes of a tree of `jax.ShapeDtypeStruct` on one of its devices."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def local_config(cfg: model.ModelConfig, parts: dict[str, int]) -> model.ModelConfig:
    """The part of a layer that one device computes."""
    return dataclasses.replace(
        cfg,
        vocab_size=cfg.vocab_size // parts["vocab"],
        d_ff=cfg.d_ff // parts["mlp"],
        head_dim=cfg.head_size,
        n_heads=cfg.n_heads // parts["heads"],
        n_kv_heads=cfg.n_kv_heads // parts["kv_heads"],
    )


@functools.lru_cache(maxsize=64)
def saved_bytes(cfg: model.ModelConfig, shape: tuple[int, int], platform: str) -> tuple[int, int]:
    """What the loss of a batch [B, T] saves for its gradient, in bytes, parameters not counted.

    The first number is for what lies outside the layers (embedding, head, logits), the second for
    each layer executed.
    """
    with kernels.traced_for(platform):
        two, three = (_saved(cfg, DepthPlan.of([(n, 1)]), shape) for n in (2, 3))
    return two - 2 * (three - two), three - two


def _saved(cfg: model.ModelConfig, plan: DepthPlan, shape: tuple[int, int]) -> int:
    def save(params, batch):
        def loss(params):
            return jnp.sum(step.token_losses(params, batch, cfg, plan)[0])

        return jax.vjp(loss, params)

    tokens = jax.ShapeDtypeStruct(shape, jnp.int32)
    params = jax.eval_shape(
        lambda: nn.meta.unbox(model.init_params(cfg, plan.n_unique, jax.random.key(0)))
    )
    traced = jax.make_jaxpr(save)(params, {"inputs": tokens, "targets": tokens}).jaxpr
    saved = {id(v): v.aval for v in traced.outvars}
    for v in traced.invars:
        saved.pop(id(v), None)
    return sum(a.size * a.dtype.itemsize for a in saved.values())
