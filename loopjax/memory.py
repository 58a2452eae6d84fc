"""Bytes per device of a training step, from traced shapes: nothing is compiled or allocated.

The train state is in memory throughout: the parameters and, for AdamW, moments of twice their size.
The rest of the step peaks in one of two places:

    head     everything saved for the backward pass, and the logits of a chunk of tokens
    layers   everything saved by the layers, the gradients, and the working memory of one layer
             (with `remat` including what it recomputes)

Options of `config.loop` and losses of exits save more, for the layers after a loop too, which run for every exit.

Saved bytes are read from a trace of the `jax.vjp` of the loss at the shapes of one device. The peak
of XLA differs with fusion and buffer reuse; tests require agreement within 15% (float32, on CPU
devices).
"""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from loopjax import exit_losses, head, kernels, losses, model, step
from loopjax.depth import DepthPlan, Segment
from loopjax.loop_config import LoopConfig
from loopjax.losses import Losses
from loopjax.surgery import n_layers


@dataclasses.dataclass(frozen=True)
class StepMemory:
    """Bytes per device.

    Attributes:
      parameters, optimizer: parameters; optimizer state and moving average of the parameters.
      gradients: gradients of all parameters; those of microbatches are added in place.
      activations: values saved on the device by the forward pass for the backward pass, and the
        gradients that the head computes in it.
      peak: largest total at any time; less than the sum, since activations are freed while gradients
        are computed.
    """

    parameters: int
    optimizer: int
    gradients: int
    activations: int
    peak: int


def step_memory(
    cfg, plan: DepthPlan, shape: tuple[int, int], microbatches: int, optimizer, mesh, rules,
    ema: bool = False, added: Losses = losses.NONE,
) -> StepMemory:  # fmt: skip
    """Memory of an update on each device of a mesh (which may be an `AbstractMesh`).

    Args:
      cfg, plan: the model.
      shape: [B, T] of one microbatch, over all devices.
      microbatches: number of microbatches per update.
      ema: whether the state has a moving average of the parameters.
      added: the losses of `config.losses`.
    """
    state = step.abstract_state(cfg, plan.n_unique, optimizer, mesh, rules, ema)
    parameters, moments = shard_bytes(state.params), shard_bytes((state.opt_state, state.ema))
    parts = {logical: math.prod(mesh.shape[a] for a in axes or ()) for logical, axes in rules}
    local = local_config(cfg, parts)
    shape = shape[0] // parts["batch"], shape[1]
    outside, per_layer = saved_bytes(local, shape, kernels.platform())
    cut = cut_bytes(state.params, plan)
    saved_layers = layers_saved(cfg, plan)
    more = added_bytes(local, plan, shape, kernels.platform(), added)
    saved = outside + per_layer * saved_layers + cut + more
    without_remat = dataclasses.replace(local, remat="none")
    full = saved_bytes(without_remat, shape, kernels.platform())[1]
    # Working memory of a layer: the values that the forward pass did not save, gradients of about
    # a fifth of their size, and copies of what it reads from the saved stacks.
    work = max(6 * full // 5 - per_layer, full // 2)
    at_work = per_layer * saved_layers + work + cut
    at_work += (
        more + weights_at_work(state.params, parts) + loop_bytes(state.params, plan, per_layer)
    )
    # The sum over microbatches is there from the first one on.
    summed = parameters if microbatches > 1 else 0
    step_peak = max(saved + head_bytes(local, shape) + summed, at_work + parameters)
    once = exit_work(cfg, plan, added, full, per_layer)
    if once:  # while everything is saved
        step_peak = max(step_peak, saved + once + weights_at_work(state.params, parts) + summed)
    if added.block_cosine:  # its gradient beside that of the loss
        step_peak = max(step_peak, parameters + shard_bytes(state.params["layers"]))
    peak = parameters + moments + step_peak
    return StepMemory(parameters, moments, parameters, saved, peak)


def layers_saved(cfg: model.ModelConfig, plan: DepthPlan) -> int:
    """Executed layers that save values: in a loop those of the repetitions that have a gradient."""
    return sum(s.layers * n for s, n in kept(cfg, plan).items())


def kept(cfg: model.ModelConfig, plan: DepthPlan) -> dict[Segment, int]:
    """The repetitions of each segment that have a gradient.

    With a random number of repetitions there is room for the largest.
    """
    loop = cfg.loop
    most = {
        s: s.repeats if s.repeats == 1 or not loop.repeats else loop.law.largest
        for s in plan.segments
    }
    return {s: min(n, loop.backprop or n) if s.repeats > 1 else 1 for s, n in most.items()}


def exit_work(
    cfg: model.ModelConfig, plan: DepthPlan, added: Losses, full: int, per_layer: int
) -> int:
    """Working memory of what losses of exits run besides the plan; 0 for nothing.

    Of a layer after the loop it is that of all exits, which are rows beside each other; of a penalty on the
    Jacobian, the layers of a repetition; and that of one layer more, as measured.

    Args:
      full: bytes that a layer saves without `remat`.
      per_layer: those that it saves.
    """
    if not added.of_exits(plan) or added.exit_gate == "gate":  # which has no backward pass
        return 0
    looped = next(s for s in plan.segments if s.repeats > 1)
    of_jacobian = (looped.layers + 1) * full if added.jacobian else 0
    exits = kept(cfg, plan)[looped]
    if not added.exit_gate:
        exits = {"random": min(2, exits), "mean": exits}.get(added.per_repetition, 1)
    coda = plan.segments[-1] is not looped and exits > 1
    return max(of_jacobian, (exits + 1) * max(full - per_layer, full // 2) if coda else 0)


def head_bytes(cfg: model.ModelConfig, shape: tuple[int, int]) -> int:
    """Working memory of the head: exponentials and gradients of the logits of a chunk, and the head
    in the compute type. The gradient of the head is among the values saved."""
    n = min(math.prod(shape), head.chunk_tokens(cfg.d_model))
    size = jnp.dtype(cfg.dtype).itemsize
    return cfg.vocab_size * (n * (4 + size) + cfg.d_model * size)


def weights_at_work(params, parts) -> int:
    """Bytes of the weights and gradients of one layer, sliced from the stack, and of three full
    matrices (gathered over fsdp, transposed)."""
    stack = params["layers"]
    one = shard_bytes(stack) // n_layers(params)
    largest = max(math.prod(leaf.shape[1:]) for leaf in jax.tree.leaves(stack))
    return 2 * one + 3 * 4 * largest // parts["mlp"]


def cut_bytes(params, plan: DepthPlan) -> int:
    """Bytes of the slices of the stack, which are copies if a plan has several segments."""
    return shard_bytes(params["layers"]) if len(plan.segments) > 1 else 0


def loop_bytes(params, plan: DepthPlan, per_layer: int) -> int:
    """Bytes for one repetition of a looped block: its gradient, before it is added to the sum, and
    its saved values, sliced from those of all repetitions."""
    one = shard_bytes(params["layers"]) // plan.n_unique
    return (one + per_layer) * max((s.layers for s in plan.segments if s.repeats > 1), default=0)


def shard_bytes(tree) -> int:
    """Bytes per device of a tree of `jax.ShapeDtypeStruct` with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def local_config(cfg: model.ModelConfig, parts: dict[str, int]) -> model.ModelConfig:
    """The model config with the sizes that one device holds."""
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
    """Bytes saved for the gradient of the loss of a batch [B, T]: (outside the layers, per layer).

    Outside the layers are embedding and head; the second number is per executed layer. Neither
    parameters nor what is saved in the memory of the host is counted.
    """
    with kernels.traced_for(platform):
        two, three = (_saved(cfg, DepthPlan.of([(n, 1)]), shape) for n in (2, 3))
    return two - 2 * (three - two), three - two


@functools.lru_cache(maxsize=64)
def added_bytes(
    cfg: model.ModelConfig, plan: DepthPlan, shape: tuple[int, int], platform: str, added: Losses
) -> int:
    """Bytes saved besides those of `saved_bytes` for what happens between repetitions and for exits.

    Negative where a gate is trained alone, of which little is saved.
    """
    if not plan.is_looped or not (cfg.loop.is_active or added.of_exits(plan)):
        return 0
    options = dataclasses.replace(cfg.loop, repeats="", most=0, backprop=0)
    ours = dataclasses.replace(cfg, loop=options)
    plain = dataclasses.replace(cfg, loop=LoopConfig(), exit_gate=False)

    def more(least: int) -> int:
        """With at least as many repetitions in every loop: a single one is none."""
        repeats = {s: max(least, n) if s.repeats > 1 else 1 for s, n in kept(cfg, plan).items()}
        counted = DepthPlan.of((s.layers, n) for s, n in repeats.items())
        return _saved(ours, counted, shape, added) - _saved(plain, counted, shape)

    with kernels.traced_for(platform):
        if min(n for s, n in kept(cfg, plan).items() if s.repeats > 1) > 1:
            return more(2)
        return 2 * more(2) - more(3)


def _saved(
    cfg: model.ModelConfig, plan: DepthPlan, shape: tuple[int, int], added: Losses = losses.NONE
) -> int:
    def save(params, batch):
        def loss(params):
            segments = model.cut_segments(params, plan)
            weights_BT = jnp.ones(shape)
            args = batch["inputs"], batch["targets"], weights_BT, cfg, plan
            if not added.of_exits(plan):
                return model.weighted_loss(segments, *args)[0]
            more = None, None, added
            total, _, terms = exit_losses.weighted_loss(segments, *args, *more, seed=0, step=0)
            return sum(terms.values(), start=total)

        if added.of_exits(plan) and added.exit_gate == "gate":  # nothing else has a gradient
            gate = step.gate_of(params)
            return jax.vjp(lambda gate: loss(params | {"loop": params["loop"] | gate}), gate)
        return jax.vjp(loss, params)

    tokens = jax.ShapeDtypeStruct(shape, jnp.int32)
    params = jax.eval_shape(
        lambda: nn.meta.unbox(model.init_params(cfg, plan.n_unique, jax.random.key(0)))
    )
    traced = jax.make_jaxpr(save)(params, {"inputs": tokens, "targets": tokens}).jaxpr
    saved = {id(v): v.aval for v in traced.outvars}
    for v in traced.invars:
        saved.pop(id(v), None)
    on_device = [a for a in saved.values() if a.memory_space != jax.memory.Space.Host]
    return sum(a.size * a.dtype.itemsize for a in on_device)
