"""The transformer: LLaMA-style blocks in one stack, run by a depth plan.

Shape letters: B batch, T time, D width, H query heads, K key/value heads, C head size, F FFN
width, V vocabulary, U unique layers, E executed layers.

The canonical parameter tree is the same whatever the plan:

    embed                    [V, D]
    layers/attention_norm    [U, D]          scale
    layers/query             [U, D, H*C]
    layers/key, layers/value [U, D, K*C]
    layers/output            [U, H*C, D]
    layers/mlp_norm          [U, D]          scale
    layers/gate, layers/up   [U, D, F]
    layers/down              [U, F, D]
    final_norm               [D]             scale
    head                     [D, V]          only with tie_embeddings=False

and for the families that have them:

    layers/query_bias        [U, H*C]        with attention_bias=True; key_bias, value_bias [U, K*C]
    layers/query_norm        [U, C]          with qk_norm=True, scale; key_norm too

`residual` cuts `layers` into the segments of the plan and runs each by `nn.scan`: over its
repetitions (parameters broadcast) around its layers (parameters scanned). The compiled program
therefore grows with the number of segments, not with depth or repetitions, and the weights of a
loop exist once. Decoding (`evals/decode.py`) runs the same blocks one after another, each with
its own cache: a layer that runs twice remembers twice.

Initialization (float32):

    weight                     distribution                           source
    embed, query, key, value,  N(0, 1/fan_in), embed: fan_in = D      LeCun et al. 1998; std 0.022 at
    gate, up, head                                                    D = 2048 (Llama's is 0.02)
    output, down               N(0, 1/fan_in) / sqrt(2 init_depth)    GPT-2 (Radford et al. 2019)
    norm scales; biases        1; 0                                   Zhang & Sennrich 2019

Layer i of the stack draws from the same key whatever the depth, so the first layers of a shallow
and a deep model with one seed are equal.
"""

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from loopjax import kernels, rope
from loopjax.depth import DepthPlan
from loopjax.model_config import ModelConfig

REMAT_POLICIES = {
    "none": None,
    "dots": jax.checkpoint_policies.save_only_these_names("linear"),
    "full": jax.checkpoint_policies.nothing_saveable,
}


@flax.struct.dataclass
class KVCache:
    """Rotated keys, and values, of S slots; [B, K, S, C]. Every executed layer has its own."""

    key: jax.Array
    value: jax.Array


@flax.struct.dataclass
class Placement:
    """Where the T tokens of a call stand, when they are not positions 0..T-1 seen causally.

    Attributes:
      positions_BT: int, for the rotary embedding.
      mask_BTS: which slots of the cache a token sees; without a cache, which of the T tokens, of
        those up to itself.
      slot: int [], the first of the T slots that the tokens take in the cache.
    """

    positions_BT: jax.Array
    mask_BTS: jax.Array
    slot: jax.Array | None = None


def _fan_in_normal(scale: float = 1.0):
    return nn.initializers.variance_scaling(scale, "fan_in", "normal")


class Block(nn.Module):
    """One layer: x + Attention(norm(x)), then x + SwiGLU(norm(x)). [B, T, D] -> [B, T, D].

    It sows what it reads ("residual"), what attention and MLP add to it ("attention", "mlp"), and
    "key" and "value" [B, T, K, C] as a cache holds them; `intermediates` gives them.
    """

    cfg: ModelConfig

    @nn.compact
    def __call__(self, x_BTD, angles, placement=None, gates=None, cache=None):
        """Returns (x_BTD, the cache with the tokens written to it).

        Args:
          angles: `rope.tables` of the positions of the tokens.
          placement, cache: where they stand, and what this layer remembers.
          gates: of attention and of the MLP, [B, T] each, by which their outputs are multiplied.
        """
        self.sow("intermediates", "residual", x_BTD)
        attended_BTD, cache = self.attention(
            self.norm("attention_norm", x_BTD), angles, placement, cache
        )
        x_BTD = self.added("attention", x_BTD, attended_BTD, gates)
        x_BTD = self.added("mlp", x_BTD, self.mlp(self.norm("mlp_norm", x_BTD)), gates)
        return nn.with_logical_constraint(x_BTD, ("batch", "seq", "activation")), cache

    def added(self, name, x_BTD, out_BTD, gates):
        if gates is not None:
            out_BTD = out_BTD * gates[name][..., None].astype(out_BTD.dtype)
        self.sow("intermediates", name, out_BTD)
        return x_BTD + out_BTD

    def attention(self, x_BTD, angles, placement, cache):
        cfg, (B, T, _) = self.cfg, x_BTD.shape
        q_BTHC = rope.rotate(self.heads("query", x_BTD, "heads", cfg.n_heads), angles)
        k_BTKC = rope.rotate(self.heads("key", x_BTD, "kv_heads", cfg.n_kv_heads), angles)
        v_BTKC = self.heads("value", x_BTD, "kv_heads", cfg.n_kv_heads)
        q_BTHC = nn.with_logical_constraint(q_BTHC, ("batch", "seq", "heads", "head_size"))
        k_BTKC = nn.with_logical_constraint(k_BTKC, ("batch", "seq", "kv_heads", "head_size"))
        v_BTKC = nn.with_logical_constraint(v_BTKC, ("batch", "seq", "kv_heads", "head_size"))
        if cache is not None:
            cache = _written(cache, KVCache(k_BTKC, v_BTKC), placement.slot)
            out_BTHC = kernels.cached_attention(q_BTHC, cache.key, cache.value, placement.mask_BTS)
        else:
            self.sow("intermediates", "key", k_BTKC)
            self.sow("intermediates", "value", v_BTKC)
            mask_BTT = None if placement is None else placement.mask_BTS
            out_BTHC = kernels.causal_attention(
                q_BTHC, k_BTKC, v_BTKC, mask_BTT, implementation=cfg.attention
            )
        flat_BTD = out_BTHC.reshape(B, T, -1)
        return self.linear("output", flat_BTD, ("heads", "embed"), cfg.d_model), cache

    def heads(self, name, x_BTD, axis, n):
        """Queries, keys or values, [B, T, n, C], before the rotary embedding."""
        cfg, (B, T, _) = self.cfg, x_BTD.shape
        out_BTN = self.linear(name, x_BTD, ("embed", axis), n * cfg.head_size)
        if cfg.attention_bias:
            init = nn.with_logical_partitioning(nn.initializers.zeros, (axis,))
            bias_N = self.param(f"{name}_bias", init, (n * cfg.head_size,))
            out_BTN = out_BTN + bias_N.astype(out_BTN.dtype)
        out_BTNC = out_BTN.reshape(B, T, n, cfg.head_size)
        return self.norm(f"{name}_norm", out_BTNC) if self.normed(name) else out_BTNC

    def normed(self, name):
        return self.cfg.qk_norm and name != "value"

    def mlp(self, x_BTD):
        gate_BTF = self.linear("gate", x_BTD, ("embed", "mlp"), self.cfg.d_ff)
        up_BTF = self.linear("up", x_BTD, ("embed", "mlp"), self.cfg.d_ff)
        hidden_BTF = nn.with_logical_constraint(nn.silu(gate_BTF) * up_BTF, ("batch", "seq", "mlp"))
        return self.linear("down", hidden_BTF, ("mlp", "embed"), self.cfg.d_model)

    def linear(self, name, x, axes, features):
        # Projections back into the residual stream start smaller, so that its variance
        # at the end does not grow with the number of executed layers.
        scale = 1.0 / (2 * self.cfg.init_depth) if axes[-1] == "embed" else 1.0
        init = nn.with_logical_partitioning(_fan_in_normal(scale), axes)
        kernel = self.param(name, init, (x.shape[-1], features))
        # The name is what remat="dots" keeps.
        return checkpoint_name(kernels.matmul(x, kernel.astype(x.dtype)), "linear")

    def norm(self, name, x):
        init = nn.with_logical_partitioning(nn.initializers.ones, ("norm",))
        return rms_norm(x, self.param(name, init, (x.shape[-1],)), self.cfg.norm_eps)


def rms_norm(x, scale, eps):
    """x / rms(x) * scale over the last axis, computed in float32."""
    x32 = x.astype(jnp.float32)
    x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
    return (x32 * scale).astype(x.dtype)


def _written(cache: KVCache, new: KVCache, slot) -> KVCache:
    """The cache with [B, T, K, C] written to its slots from `slot` on."""

    def write(old_BKSC, new_BTKC):
        return jax.lax.dynamic_update_slice(old_BKSC, new_BTKC.swapaxes(1, 2), (0, 0, slot, 0))

    return jax.tree.map(write, cache, new)


class Transformer(nn.Module):
    """Embedding, the segments of a plan, final norm and head. int [B, T] -> float32 [B, T, V].

    Its parameters are the canonical tree with `layers` cut into `segment_0`, `segment_1`, ...;
    use `init_params` and the functions below, which speak canonical.
    """

    cfg: ModelConfig
    plan: DepthPlan

    def setup(self):
        cfg = self.cfg
        init = nn.with_logical_partitioning(
            nn.initializers.normal(cfg.d_model**-0.5), ("vocab", "embed")
        )
        self.embed = self.param("embed", init, (cfg.vocab_size, cfg.d_model))
        for i in range(len(self.plan.segments)):
            setattr(self, f"segment_{i}", Block(cfg))
        init = nn.with_logical_partitioning(nn.initializers.ones, ("norm",))
        self.final_norm = self.param("final_norm", init, (cfg.d_model,))
        if not cfg.tie_embeddings:
            init = nn.with_logical_partitioning(_fan_in_normal(), ("embed", "vocab"))
            self.head = self.param("head", init, (cfg.d_model, cfg.vocab_size))

    def __call__(self, tokens_BT, placement=None):
        return self.unembed(self.run(tokens_BT, placement))

    def table(self):
        # The width is gathered before the look-up: cut along D, the result would have to be
        # moved from there to the batch's sharding, which XLA does by replicating it.
        table_VD = self.embed.astype(self.cfg.dtype)
        return nn.with_logical_constraint(table_VD, ("vocab", "activation"))

    def embedded(self, tokens_BT):
        x_BTD = self.table()[tokens_BT]
        return nn.with_logical_constraint(x_BTD, ("batch", "seq", "activation"))

    def run(self, tokens_BT, placement=None, gates_EBT=None):
        """The residual stream after the last executed layer, [B, T, D]."""
        x_BTD, executed = self.embedded(tokens_BT), 0
        positions = jnp.arange(tokens_BT.shape[1]) if placement is None else placement.positions_BT
        angles = angles_of(self.cfg, positions)
        for i, segment in enumerate(self.plan.segments):
            block, n = getattr(self, f"segment_{i}"), segment.layers * segment.repeats
            gates = jax.tree.map(lambda g, k=executed, n=n: g[k : k + n], gates_EBT)
            x_BTD = self.run_segment(block, segment, x_BTD, gates, angles, placement)
            executed += n
        return x_BTD

    def unembed(self, x_BTD):
        """Final norm and head, float32 [B, T, V]."""
        x_BTD = rms_norm(x_BTD, self.final_norm, self.cfg.norm_eps)
        head_DV = self.table().T if self.cfg.tie_embeddings else self.head.astype(self.cfg.dtype)
        # Accumulated and kept in float32: the loss is a difference of large logits.
        logits_BTV = kernels.matmul(x_BTD, head_DV, dtype=jnp.float32)
        return nn.with_logical_constraint(logits_BTV, ("batch", "seq", "vocab"))

    def run_segment(self, block, segment, x_BTD, gates, angles, placement):
        """nn.scan over repetitions (parameters broadcast) of nn.scan over layers (scanned)."""

        def layer(block, x_BTD, gates, angles, placement):
            return block(x_BTD, angles, placement, gates)

        if self.cfg.remat != "none":
            policy = REMAT_POLICIES[self.cfg.remat]
            layer = nn.remat(layer, prevent_cse=False, policy=policy)
        in_axes = (0, nn.broadcast, nn.broadcast)
        stack = nn.scan(
            layer,
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True},
            in_axes=in_axes,
            length=segment.layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        if segment.repeats > 1:
            stack = nn.scan(
                stack,
                variable_broadcast="params",
                variable_axes={"intermediates": 0},
                split_rngs={"params": False},
                in_axes=in_axes,
                length=segment.repeats,
            )
            shape = segment.repeats, segment.layers
            gates = jax.tree.map(lambda g: g.reshape(*shape, *g.shape[1:]), gates)
        x_BTD, _ = stack(block, x_BTD, gates, angles, placement)
        return x_BTD


def angles_of(cfg: ModelConfig, positions):
    """`rope.tables` of positions [..., T]."""
    frequencies = rope.frequencies(cfg.head_size, cfg.rope_theta, cfg.rope_scaling)
    return rope.tables(positions, frequencies)


def init_params(cfg: ModelConfig, n_layers: int, key: jax.Array):
    """The canonical tree of a stack of `n_layers`, boxed with logical axis names (`nn.meta`)."""
    plan = DepthPlan.of([(n_layers, 1)])
    params = Transformer(cfg, plan).init(key, jnp.zeros((1, 2), jnp.int32))["params"]
    return {("layers" if k == "segment_0" else k): v for k, v in params.items()}


def cut_segments(params, plan: DepthPlan):
    """The canonical tree with `layers` cut into the segments of the plan."""
    rest = {k: v for k, v in params.items() if k != "layers"}
    for i, s in enumerate(plan.segments):
        rest[f"segment_{i}"] = jax.tree.map(
            lambda leaf, s=s: leaf[s.start : s.stop], params["layers"]
        )
    return rest


# Canonical (unboxed) parameters run by a plan:


def forward(params, tokens_BT, cfg: ModelConfig, plan: DepthPlan, placement=None) -> jax.Array:
    """Logits, float32 [B, T, V]."""
    args = {"params": cut_segments(params, plan)}, tokens_BT, placement
    return Transformer(cfg, plan).apply(*args)


def residual(params, tokens_BT, cfg: ModelConfig, plan: DepthPlan, placement=None) -> jax.Array:
    """The residual stream before the final norm, [B, T, D]."""
    args = {"params": cut_segments(params, plan)}, tokens_BT, placement
    return Transformer(cfg, plan).apply(*args, method="run")


def intermediates(
    params, tokens_BT, cfg: ModelConfig, plan: DepthPlan, names, gates_EBT=None, placement=None
):
    """(residual stream before the final norm [B, T, D], {name: what each executed layer sowed}).

    Args:
      names: of what `Block` sows; each comes out as [E, B, T, ...], in the order of execution.
      gates_EBT: {"attention", "mlp"}, by which the outputs of each executed layer are multiplied,
        token by token; a layer of which both are 0 is skipped.
    """
    x_BTD, sown = Transformer(cfg, plan).apply(
        {"params": cut_segments(params, plan)}, tokens_BT, placement, gates_EBT,
        method="run", mutable=["intermediates"],
    )  # fmt: skip
    segments = [sown["intermediates"][f"segment_{i}"] for i in range(len(plan.segments))]

    def in_order(name):
        # [L, B, T, ...] of a segment, [R, L, B, T, ...] of a loop.
        parts = [s[name][0] for s in segments]
        looped = [s.repeats > 1 for s in plan.segments]
        parts = [p.reshape(-1, *p.shape[1 + loop :]) for p, loop in zip(parts, looped, strict=True)]
        return jnp.concatenate(parts)

    return x_BTD, {name: in_order(name) for name in names}


def unembed(params, x_BTD, cfg: ModelConfig) -> jax.Array:
    """Final norm and head: the logits of residuals, float32 [B, T, V]."""
    return outside_stack(params, cfg, x_BTD, "unembed")


def outside_stack(params, cfg, x, method: str):
    """A method of the transformer that needs no layer."""
    outside = {k: v for k, v in params.items() if k != "layers"}
    return Transformer(cfg, DepthPlan(())).apply({"params": outside}, x, method=method)
