"""One layer of the transformer; change it here to change the model.

Shape letters are those of `model.py`. A layer reads the residual stream and a `Context`. Optional
fields of the context (the place in the plan, the embeddings) are requested in `Block.reads`.
"""

from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from loopjax import attention, rope, sharded_weights
from loopjax.depth import ExecutedLayer
from loopjax.model_config import ModelConfig

# A pytree, since its fields are traced in a scan.
jax.tree_util.register_dataclass(
    ExecutedLayer, data_fields=("unique", "segment", "iteration"), meta_fields=()
)


@flax.struct.dataclass
class KVCache:
    """Rotated keys and values of one executed layer, in S slots; [B, K, S, C] each."""

    key: jax.Array
    value: jax.Array


@flax.struct.dataclass
class Placement:
    """Positions of the T tokens of a call and what they attend to, if not 0..T-1 and all before.

    Attributes:
      positions_BT: position of each token for the rotary embedding, int.
      segments_BT: without a cache, the segment of each token: it attends to earlier tokens of its
        segment only, and to those of segment 0 with `shared_context`; None for one segment.
      shared_context: whether segment 0 is the context of all others.
      mask_BTS: cache slots that each token attends to; None without a cache.
      slot: int [], first of the T cache slots that the tokens are written to.
    """

    positions_BT: jax.Array
    segments_BT: jax.Array | None = None
    shared_context: bool = flax.struct.field(pytree_node=False, default=False)
    mask_BTS: jax.Array | None = None
    slot: jax.Array | None = None


@flax.struct.dataclass
class Held:
    """Rotated keys and values of tokens that have left a loop, [B, T, K, C] each.

    Attributes:
      key, value: those of the last repetition in which the token took part.
      active_BT: whether a token still takes part: it has keys and values of its own.
    """

    key: jax.Array
    value: jax.Array
    active_BT: jax.Array

    def instead(self, k_BTKC, v_BTKC):
        """The keys and values [B, T, K, C] that are attended to."""
        active = self.active_BT[..., None, None]
        return jnp.where(active, k_BTKC, self.key), jnp.where(active, v_BTKC, self.value)


@flax.struct.dataclass
class Repetition:
    """What a layer in a loop knows of the repetition that it runs in (`config.loop`).

    Attributes:
      iteration: int32 [], which repetition it is, from 0; negative outside of loops. None unless
        repetitions have low-rank additions to the matrices.
      scale: factor of the outputs of the sublayers; None for 1.
    """

    iteration: jax.Array | None = None
    scale: jax.Array | None = None


@flax.struct.dataclass
class Context:
    """The inputs of a layer besides the residual stream.

    Attributes:
      angles: `rope.tables` of the positions of the tokens.
      placement: None for positions 0..T-1 that attend to all before them.
      gates: factors of the sublayers' outputs, {"attention", "mlp"}, [B, T] or [] each;
        None for 1.
      place: executed layer of the plan; None unless `Block.reads` names it.
      embedded_BTD: embeddings of the tokens; None unless `Block.reads` names them.
      repetition: None outside of loops, and where layers do not depend on it.
      loop: what is carried from repetition to repetition (`loop.Carried`); None without options of
        `config.loop` that change the residual stream between them.
      held: for tokens that have left the loop (`exits.py`), what others attend to instead of what this
        layer computes for them; None if no token has.
    """

    angles: tuple[jax.Array, jax.Array]
    placement: Placement | None = None
    gates: dict | None = None
    place: ExecutedLayer | None = None
    embedded_BTD: jax.Array | None = None
    repetition: Repetition | None = None
    loop: Any = None
    held: Held | None = None


def fan_in_normal(scale: float = 1.0):
    return nn.initializers.variance_scaling(scale, "fan_in", "normal")


class Block(nn.Module):
    """One layer: x + Attention(norm(x)), then x + SwiGLU(norm(x)). [B, T, D] -> [B, T, D].

    With `post_norm` "output" x + norm(Attention(norm(x))), with "stream" norm(x + Attention(norm(x))), where
    `cfg.alpha` multiplies the first x.

    It sows its input ("residual"), the outputs of attention and MLP ("attention", "mlp"), and "key"
    and "value" [B, T, K, C] as a cache holds them, into "intermediates" (see `intermediates`). A
    scalar sown into "losses" is an auxiliary loss: `outputs` sums it over the executed layers, and
    training adds it to the loss unscaled.
    """

    cfg: ModelConfig

    # Optional fields of the context that the layer reads: "place" (per-iteration weights) and
    # "embedded_BTD" (input injection). Fields not named here are not computed, so the compiled
    # program of a plain layer contains neither.
    reads = ()

    @nn.compact
    def __call__(self, x_BTD, context: Context, cache: KVCache | None = None):
        """Returns (x_BTD, the cache with the tokens written to it)."""
        self.sow("intermediates", "residual", x_BTD)
        attended_BTD, cache = self.attention(self.norm("attention_norm", x_BTD), context, cache)
        x_BTD = self.added("attention", x_BTD, attended_BTD, context)
        out_BTD = self.mlp(self.norm("mlp_norm", x_BTD), context)
        x_BTD = self.added("mlp", x_BTD, out_BTD, context)
        return nn.with_logical_constraint(x_BTD, ("batch", "seq", "activation")), cache

    def added(self, name, x_BTD, out_BTD, context):
        if self.cfg.post_norm == "output":
            out_BTD = self.norm(f"{name}_post_norm", out_BTD)
        if context.gates is not None:
            out_BTD = out_BTD * context.gates[name][..., None].astype(out_BTD.dtype)
        if context.repetition is not None and context.repetition.scale is not None:
            out_BTD = out_BTD * jnp.asarray(context.repetition.scale, out_BTD.dtype)
        self.sow("intermediates", name, out_BTD)
        if self.cfg.alpha != 1:
            x_BTD = x_BTD * self.cfg.alpha
        x_BTD = x_BTD + out_BTD
        return self.norm(f"{name}_post_norm", x_BTD) if self.cfg.post_norm == "stream" else x_BTD

    def attention(self, x_BTD, context, cache):
        cfg, angles, placement = self.cfg, context.angles, context.placement
        B, T, _ = x_BTD.shape
        q_BTHC = rope.rotate(self.heads("query", x_BTD, "heads", cfg.n_heads, context), angles)
        k_BTKC = rope.rotate(self.heads("key", x_BTD, "kv_heads", cfg.n_kv_heads, context), angles)
        v_BTKC = self.heads("value", x_BTD, "kv_heads", cfg.n_kv_heads, context)
        q_BTHC = nn.with_logical_constraint(q_BTHC, ("batch", "seq", "heads", "head_size"))
        k_BTKC = nn.with_logical_constraint(k_BTKC, ("batch", "seq", "kv_heads", "head_size"))
        v_BTKC = nn.with_logical_constraint(v_BTKC, ("batch", "seq", "kv_heads", "head_size"))
        if context.held is not None:
            k_BTKC, v_BTKC = context.held.instead(k_BTKC, v_BTKC)
        self.sow("intermediates", "key", k_BTKC)
        self.sow("intermediates", "value", v_BTKC)
        if cache is not None:
            cache = written(cache, KVCache(k_BTKC, v_BTKC), placement.slot)
            out_BTHC = attention.cached(q_BTHC, cache.key, cache.value, placement.mask_BTS)
        else:
            segments_BT = None if placement is None else placement.segments_BT
            shared = placement is not None and placement.shared_context
            out_BTHC = attention.causal(
                q_BTHC, k_BTKC, v_BTKC, segments_BT, shared_context=shared,
                implementation=cfg.attention,
            )  # fmt: skip
        flat_BTD = out_BTHC.reshape(B, T, -1)
        out_BTD = self.linear("output", flat_BTD, ("heads", "embed"), cfg.d_model, context)
        return out_BTD, cache

    def heads(self, name, x_BTD, axis, n, context):
        """Queries, keys or values, [B, T, n, C], before the rotary embedding."""
        cfg = self.cfg
        B, T, _ = x_BTD.shape
        out_BTN = self.linear(name, x_BTD, ("embed", axis), n * cfg.head_size, context)
        if cfg.attention_bias:
            init = nn.with_logical_partitioning(nn.initializers.zeros, (axis,))
            bias_N = self.param(f"{name}_bias", init, (n * cfg.head_size,))
            out_BTN = out_BTN + bias_N.astype(out_BTN.dtype)
        out_BTNC = out_BTN.reshape(B, T, n, cfg.head_size)
        return self.norm(f"{name}_norm", out_BTNC) if self.normed(name) else out_BTNC

    def normed(self, name):
        return self.cfg.qk_norm and name != "value"

    def mlp(self, x_BTD, context):
        gate_BTF = self.linear("gate", x_BTD, ("embed", "mlp"), self.cfg.d_ff, context)
        up_BTF = self.linear("up", x_BTD, ("embed", "mlp"), self.cfg.d_ff, context)
        hidden_BTF = nn.with_logical_constraint(nn.silu(gate_BTF) * up_BTF, ("batch", "seq", "mlp"))
        return self.linear("down", hidden_BTF, ("mlp", "embed"), self.cfg.d_model, context)

    def linear(self, name, x, axes, features, context):
        # Projections back into the residual stream start smaller, so that its variance
        # at the end does not grow with the number of executed layers.
        scale = 1.0 / (2 * self.cfg.init_depth) if axes[-1] == "embed" else 1.0
        if self.cfg.beta is not None:  # of the matrices that a branch is linear in
            linear = name in ("value", "output", "up", "down")
            scale = self.cfg.beta**2 if linear else 1.0
        init = nn.with_logical_partitioning(fan_in_normal(scale), axes)
        kernel = self.param(name, init, (x.shape[-1], features))
        # The policies of `remat` save values by these names.
        group = "mlp_product" if "mlp" in axes else "attention_product"
        out = checkpoint_name(sharded_weights.matmul(x, kernel, axes), group)
        if self.cfg.loop.lora_rank:
            out = self.with_low_rank(name, x, out, axes, context)
        return out

    def with_low_rank(self, name, x, out, axes, context):
        """The product and, in a loop, x A_i B_i of its repetition i (Bae et al. 2024, section 2.4)."""
        rows, columns = axes
        shapes = self.cfg.loop.lora_shapes(name, (x.shape[-1], out.shape[-1]))
        (a, a_shape), (b, b_shape) = shapes.items()
        a_init = nn.initializers.variance_scaling(1.0, "fan_in", "normal", batch_axis=(0,))
        a_axes, b_axes = (None, rows, None), (None, None, columns)
        a_RIr = self.param(a, nn.with_logical_partitioning(a_init, a_axes), a_shape)
        zeros = nn.with_logical_partitioning(nn.initializers.zeros, b_axes)
        b_RrO = self.param(b, zeros, b_shape)
        if context.repetition is None:  # outside of loops
            return out
        iteration = context.repetition.iteration
        i = jnp.clip(iteration, 0, self.cfg.loop.own - 1)
        low = sharded_weights.matmul(x, a_RIr[i], a_axes[1:])
        low = sharded_weights.matmul(low, b_RrO[i], b_axes[1:])
        return out + jnp.where(iteration >= 0, low, 0)

    def norm(self, name, x):
        init = nn.with_logical_partitioning(nn.initializers.ones, ("norm",))
        return rms_norm(x, self.param(name, init, (x.shape[-1],)), self.cfg.norm_eps)


def rms_norm(x, scale, eps):
    """x / rms(x) * scale over the last axis, computed in float32."""
    x32 = x.astype(jnp.float32)
    x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
    return (x32 * scale).astype(x.dtype)


def written(cache: KVCache, new: KVCache, slot) -> KVCache:
    """The cache with new keys and values [B, T, K, C] written to the slots from `slot` on."""

    def write(old_BKSC, new_BTKC):
        return jax.lax.dynamic_update_slice(old_BKSC, new_BTKC.swapaxes(1, 2), (0, 0, slot, 0))

    return jax.tree.map(write, cache, new)
