"""What happens between the repetitions of a loop, by `config.loop`.

A loop runs its layers F on a state s, which is the residual stream e at its start at first. In
repetition i = 0 .. N - 1 (`enter_repetition`, the layers, `leave_repetition`):

    s = e at first                       start=""; else 0 ("zeros") or noise ("normal", Huginn's)
    x = RMSNorm(s)  if i > 0             norm; without scale (2609.19107)
    x = final norm(s)  if i > 0          final_norm="between" (Zhu et al. 2025)
    x = x + inject_scale e               inject="add"; with "after" if i > 0 (2609.19107)
    x = [x; e] A                         inject="concat"; A [2D, D] is [I; 0] at first (Geiping et al. 2025)
    x = x + v_i                          embedding; v [R, D] is 0 at first
    y = F(x)

    s = y                                residual=""
    s = s + y                            residual="outer" (Ng & Wang 2024, with F the layers)
    s = s + (y - x)                      residual="outer_delta": with what F adds to its input
    s = s + g_i y                        residual="scaled"; g [R] is 1 at first

and after the last one (`leave_loop`) s = final norm(s) with final_norm="after" (Geiping et al. 2025),
s = RMSNorm(s) with norm and s = s + inject_scale e with inject="after". Repetitions beyond R use the weights of
the last. The scan, layers that are run one by one and decoding share these functions.
"""

import math

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from loopjax import sharded_weights
from loopjax.block import Context, Repetition, rms_norm
from loopjax.depth import DepthPlan, Segment
from loopjax.loop_config import LoopConfig
from loopjax.model_config import ModelConfig

_ADAPTER = ("embed", "activation")


@flax.struct.dataclass
class Carried:
    """What repetitions need besides the state; a field that no option needs is None.

    Attributes:
      weights: {"adapter", "embedding", "scale", "final_norm"}, those that there are and are needed.
      start_BTD: the state before the first repetition, unless it is the anchor.
      anchor_BTD: e, the residual stream at the start of the loop.
      kept_BTD: what is added to what the layers of this repetition return.
    """

    weights: dict
    start_BTD: jax.Array | None = None
    anchor_BTD: jax.Array | None = None
    kept_BTD: jax.Array | None = None

    @classmethod
    def start(cls, cfg: ModelConfig, weights: dict, x_BTD, positions) -> "Carried | None":
        """Before the first repetition of a loop that begins with `x_BTD`; None if nothing is needed.

        Args:
          weights: `boundary_weights` of the parameters.
          positions: positions of the tokens, int [T] or [B, T].
        """
        loop = cfg.loop
        if not loop.has_boundary:
            return None
        first_BTD = first_state(cfg, x_BTD, positions) if loop.start else None
        return cls(weights, first_BTD).begun(loop, x_BTD)

    def begun(self, loop: LoopConfig, x_BTD) -> "Carried":
        """Before the first repetition of a loop that begins with `x_BTD`."""
        return self.replace(
            anchor_BTD=x_BTD if loop.inject else None, kept_BTD=x_BTD if loop.residual else None
        )


def boundary_weights(cfg: ModelConfig, loop: dict, final_norm) -> dict:
    """The weights that repetitions use: those of `loop/`, and the final norm's if they need it."""
    return {**loop, "final_norm": final_norm} if cfg.loop.final_norm else loop


def first_state(cfg: ModelConfig, x_BTD, positions):
    """The state before the first repetition with `start`, [B, T, D]; of each position the same.

    The noise of Geiping et al. 2025 (section 3.2) has the standard deviation of their embeddings,
    embed_scale sqrt(2 / 5D), and is cut off at three of them. Theirs is drawn anew for every text; here it
    depends on the position alone, so that a model computes the same function whenever it is run.
    """
    if cfg.loop.start == "zeros":
        return jnp.zeros_like(x_BTD)

    def noise(position):
        key = jax.random.fold_in(jax.random.key(0, impl="threefry2x32"), position)
        return jax.random.truncated_normal(key, -3.0, 3.0, (cfg.d_model,))

    scale = cfg.embed_scale * math.sqrt(2 / (5 * cfg.d_model))
    noise_TD = scale * jnp.vectorize(noise, signature="()->(d)")(positions)
    return jnp.broadcast_to(noise_TD, x_BTD.shape).astype(x_BTD.dtype)


class Weights(nn.Module):
    """The weights of loops outside the stack: `loop/*` of the canonical tree."""

    cfg: ModelConfig

    @nn.compact
    def __call__(self) -> dict:
        inits = {
            "adapter": (_pass_first, _ADAPTER),
            "embedding": (nn.initializers.zeros, (None, "norm")),
            "scale": (nn.initializers.ones, (None,)),
            "exit_gate": (nn.initializers.zeros, ("norm",)),
            "exit_gate_bias": (nn.initializers.zeros, (None,)),
        }

        def param(name, shape):
            init, axes = inits[name]
            return self.param(name, nn.with_logical_partitioning(init, axes), shape)

        shapes = self.cfg.loop_shapes
        return {name: param(name, shape) for name, shape in shapes.items()}


def _pass_first(key, shape, dtype=jnp.float32):
    """[I; 0]: the first half of the input."""
    return jnp.eye(*shape, dtype=dtype)


def begin(x_BTD, context: Context, cfg: ModelConfig):
    """(the context inside of a loop that begins with `x_BTD`, its first state [B, T, D])."""
    if context.loop is None:
        return context, x_BTD
    carried = context.loop.begun(cfg.loop, x_BTD)
    state_BTD = carried.start_BTD if cfg.loop.start else x_BTD
    return context.replace(loop=carried), state_BTD


def enter_repetition(x_BTD, iteration, context: Context, cfg: ModelConfig):
    """(input of the first layer of a repetition [B, T, D], the context of its layers).

    Args:
      x_BTD: the state s.
      iteration: i, an int or a traced int32 [].
    """
    loop, carried = cfg.loop, context.loop
    if carried is None:
        return x_BTD, context
    if loop.start:
        x_BTD = _where(iteration == 0, carried.start_BTD, x_BTD)
    state_BTD = x_BTD
    if loop.final_norm == "between":
        x_BTD = _where(iteration > 0, _final_norm(x_BTD, context, cfg), x_BTD)
    if loop.norm:
        x_BTD = _where(iteration > 0, _normed(x_BTD, cfg), x_BTD)
    if loop.inject == "add":
        x_BTD = x_BTD + loop.inject_scale * carried.anchor_BTD
    if loop.inject == "after":
        added_BTD = x_BTD + loop.inject_scale * carried.anchor_BTD
        x_BTD = _where(iteration > 0, added_BTD, x_BTD)
    if loop.inject == "concat":
        both = jnp.concatenate([x_BTD, carried.anchor_BTD.astype(x_BTD.dtype)], axis=-1)
        x_BTD = sharded_weights.matmul(both, carried.weights["adapter"], _ADAPTER)
    if loop.embedding:
        x_BTD = x_BTD + _own(carried.weights["embedding"], iteration, x_BTD)
    x_BTD = nn.with_logical_constraint(x_BTD, ("batch", "seq", "activation"))
    if loop.residual:
        delta = loop.residual == "outer_delta"
        carried = carried.replace(kept_BTD=state_BTD - x_BTD if delta else state_BTD)
    return x_BTD, context.replace(loop=carried)


def leave_repetition(x_BTD, iteration, context: Context, cfg: ModelConfig):
    """The state after a repetition whose last layer returned `x_BTD`, [B, T, D]."""
    if not cfg.loop.residual:
        return x_BTD
    if cfg.loop.residual == "scaled":
        x_BTD = _own(context.loop.weights["scale"], iteration, x_BTD) * x_BTD
    return context.loop.kept_BTD + x_BTD


def leave_loop(x_BTD, context: Context, cfg: ModelConfig):
    """The residual stream after a loop that ended with the state `x_BTD`, [B, T, D]."""
    if cfg.loop.final_norm == "after":
        x_BTD = _final_norm(x_BTD, context, cfg)
    if cfg.loop.norm:
        x_BTD = _normed(x_BTD, cfg)
    if cfg.loop.inject == "after":
        x_BTD = x_BTD + cfg.loop.inject_scale * context.loop.anchor_BTD
    return x_BTD


def _final_norm(x_BTD, context, cfg):
    return rms_norm(x_BTD, context.loop.weights["final_norm"], cfg.norm_eps)


@flax.struct.dataclass
class Edges:
    """Where an executed layer is in its loop, bool or traced bool []; all False outside of loops.

    Attributes:
      begins, ends: whether it is the first layer of the first repetition, the last of the last.
      enters, leaves: whether it is the first layer of a repetition, the last of one.
    """

    begins: jax.Array | bool
    enters: jax.Array | bool
    leaves: jax.Array | bool
    ends: jax.Array | bool

    @classmethod
    def of(cls, plan: DepthPlan, e) -> "Edges":
        """Those of executed layer `e`, an int or traced."""
        rows = []
        for place in plan.executed:
            segment = plan.segments[place.segment]
            enters = segment.repeats > 1 and place.unique == segment.start
            leaves = segment.repeats > 1 and place.unique == segment.stop - 1
            begins, last = place.iteration == 0, place.iteration == segment.repeats - 1
            rows.append((enters and begins, enters, leaves, leaves and last))
        if isinstance(e, int):
            return cls(*rows[e])
        return cls(*(jnp.array(column)[e] for column in zip(*rows, strict=True)))


def before_layer(x_BTD, edges: Edges, iteration, context: Context, cfg: ModelConfig):
    """(input of an executed layer, its context), from the state after the layer before it."""
    if context.loop is None:
        return x_BTD, context
    carried = context.loop
    if cfg.loop.inject:
        anchor_BTD = _where(edges.begins, x_BTD, carried.anchor_BTD)
        carried = carried.replace(anchor_BTD=anchor_BTD)

    def enter(x_BTD, carried):
        x_BTD, inside = enter_repetition(x_BTD, iteration, context.replace(loop=carried), cfg)
        return x_BTD, inside.loop

    x_BTD, carried = _when(edges.enters, enter, x_BTD, carried)
    return x_BTD, context.replace(loop=carried)


def after_layer(x_BTD, edges: Edges, iteration, context: Context, cfg: ModelConfig):
    """The state after an executed layer that returned `x_BTD`."""
    if context.loop is None:
        return x_BTD

    def leave(x_BTD):
        return (leave_repetition(x_BTD, iteration, context, cfg),)

    (x_BTD,) = _when(edges.leaves, leave, x_BTD)
    (x_BTD,) = _when(edges.ends, lambda x_BTD: (leave_loop(x_BTD, context, cfg),), x_BTD)
    return x_BTD


def _when(condition, function, *args):
    """What a function returns of its arguments where a condition holds, else the arguments."""
    if isinstance(condition, bool):
        return function(*args) if condition else args
    return jax.lax.cond(condition, function, lambda *args: args, *args)


def _normed(x_BTD, cfg):
    return rms_norm(x_BTD, 1.0, cfg.norm_eps)


def _own(weights_R, iteration, x_BTD):
    """The weights of a repetition, in the type of the residual stream."""
    return weights_R[jnp.minimum(iteration, len(weights_R) - 1)].astype(x_BTD.dtype)


def _where(condition, a, b):
    if isinstance(condition, bool):
        return a if condition else b
    return jnp.where(condition, a, b)


def repetition_of(segment: Segment, iteration, cfg: ModelConfig) -> Repetition | None:
    """What the layers of a segment know of a repetition; None if it does not repeat.

    Args:
      iteration: int or traced int32 [].
    """
    loop = cfg.loop
    scales = loop.residual_scale == "loops"
    if segment.repeats == 1 or not (loop.lora_rank or scales):
        return None
    scale = loop.sublayer_scale(segment.repeats, segment.layers) if scales else None
    return Repetition(iteration if loop.lora_rank else None, scale)


def repetition_at(plan: DepthPlan, e, cfg: ModelConfig) -> Repetition | None:
    """What executed layer `e` of a plan, an int or traced, knows of its repetition."""
    known = [
        repetition_of(plan.segments[place.segment], place.iteration, cfg) for place in plan.executed
    ]
    if isinstance(e, int):
        return known[e]
    if not any(known):
        return None
    iterations = scales = None
    if cfg.loop.lora_rank:
        iterations = jnp.array([-1 if one is None else one.iteration for one in known])[e]
    if cfg.loop.residual_scale == "loops":
        scales = jnp.array([1.0 if one is None else one.scale for one in known])[e]
    return Repetition(iterations, scales)


@flax.struct.dataclass
class Passes:
    """How training runs a loop, if not as often as the plan says and with all gradients.

    Attributes:
      count: repetitions, int or traced int32 [], at least 1; None for those of the plan.
      backprop: the last repetitions, which have a gradient; 0 for all.
    """

    count: jax.Array | int | None
    backprop: int = flax.struct.field(pytree_node=False)

    @classmethod
    def drawn(cls, loop: LoopConfig, plan: DepthPlan, seed: int, step) -> "Passes | None":
        """Those of an update, from the seed of the run and its step; None for those of the plan."""
        if not plan.is_looped or not (loop.repeats or loop.backprop):
            return None
        return cls(loop.law.draw(seed, step) if loop.repeats else None, loop.backprop)


@jax.custom_vjp
def _with_own_gradient(tree):
    """The tree; its gradient is whole before it is added to a sum.

    JAX 0.10 cannot add to a sum in place (`step._accumulated`) from within a `cond`.
    """
    return tree


_with_own_gradient.defvjp(lambda tree: (tree, None), lambda _, gradient: (gradient,))


def run_passes(repetition, inputs, x_BTD, passes: Passes, most: int):
    """The state after the repetitions of a loop, of which the last have a gradient.

    The earlier ones run in a loop with a traced number of turns on inputs without gradient, the last in
    a scan of static length, of which the first turns do nothing if there are fewer repetitions. One
    program therefore serves every number.

    Args:
      repetition: pure function (inputs, x_BTD, iteration) -> (x_BTD, tree of auxiliary results).
      inputs: all that it differentiates besides the state.
      most: the largest number of repetitions, which bounds the scan.

    Returns:
      (x_BTD, the auxiliary results of the repetitions with a gradient, [k, ...]; 0 for those that do
      nothing).
    """
    count = most if passes.count is None else passes.count
    k = min(passes.backprop, most) or most
    first = jnp.maximum(count - k, 0)
    frozen, start = jax.lax.stop_gradient((inputs, x_BTD))
    passed = jax.lax.fori_loop(0, first, lambda i, x: repetition(frozen, x, i)[0], start)
    x_BTD = jnp.where(first > 0, passed, x_BTD)
    inputs = _with_own_gradient(inputs)
    shapes = jax.eval_shape(repetition, inputs, x_BTD, jnp.int32(0))[1]

    def turn(x_BTD, i):
        def skip(x_BTD):
            return x_BTD, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

        return jax.lax.cond(i >= 0, lambda x: repetition(inputs, x, i), skip, x_BTD)

    return jax.lax.scan(turn, x_BTD, count - k + jnp.arange(k))
