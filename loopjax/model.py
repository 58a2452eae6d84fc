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

`forward` cuts `layers` into the segments of the plan and runs each by `nn.scan`: over its
repetitions (parameters broadcast) around its layers (parameters scanned). The compiled program
therefore grows with the number of segments, not with depth or repetitions, and the weights of a
loop exist once.

Initialisation (float32):

    weight                     distribution                           source
    embed, query, key, value,  N(0, 1/fan_in), embed: fan_in = D      LeCun et al. 1998; std 0.022 at
    gate, up, head                                                    D = 2048 (Llama's is 0.02)
    output, down               N(0, 1/fan_in) / sqrt(2 init_depth)    GPT-2 (Radford et al. 2019)
    norm scales                1                                      Zhang & Sennrich 2019

Layer i of the stack draws from the same key whatever the depth, so the first layers of a shallow
and a deep model with one seed are equal.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from loopjax import kernels
from loopjax.depth import DepthPlan

REMAT_POLICIES = {
    "none": None,
    "dots": jax.checkpoint_policies.save_only_these_names("linear"),
    "full": jax.checkpoint_policies.nothing_saveable,
}
DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The architecture of one layer and of what surrounds the stack; depth is the plan's.

    Attributes:
      vocab_size: V.
      d_model: D, the width of the residual stream.
      d_ff: F, the width of the SwiGLU hidden layer.
      n_heads: H query heads; they divide D.
      n_kv_heads: K key/value heads; they divide H (grouped-query attention when K < H).
      head_dim: the width of one head; 0 is D / H.
      rope_theta: base of the rotary position frequencies.
      norm_eps: epsilon of RMSNorm.
      tie_embeddings: whether the output head is the transposed embedding.
      init_depth: executed layers that the residual output projections are initialised for.
      dtype: compute type; parameters are float32 always.
      attention: implementation of `jax.nn.dot_product_attention`: "xla", "cudnn" (flash attention
        on NVIDIA GPUs, bfloat16 only) or "auto" (what suits the platform).
      remat: what the backward pass recomputes: "none", "dots" (all but products with weights),
        "full" (all but the input of each layer).
    """

    vocab_size: int
    d_model: int
    d_ff: int
    n_heads: int
    n_kv_heads: int
    init_depth: int
    head_dim: int = 0
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    tie_embeddings: bool = True
    dtype: str = "bfloat16"
    attention: str = "auto"
    remat: str = "none"

    def __post_init__(self):
        for name in ("vocab_size", "d_model", "d_ff", "n_heads", "n_kv_heads", "init_depth"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name}={getattr(self, name)} must be at least 1")
        if self.head_dim < 0 or self.head_dim % 2:
            raise ValueError(f"model.head_dim={self.head_dim} must be even, or 0 for D / H")
        if not self.head_dim and (self.d_model % self.n_heads or self.head_size % 2):
            raise ValueError(
                f"model.n_heads={self.n_heads} must divide model.d_model={self.d_model} into heads "
                "of even size (rotary embedding turns pairs), or model.head_dim must say theirs"
            )
        if self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"model.n_kv_heads={self.n_kv_heads} must divide model.n_heads={self.n_heads}"
            )
        choices = {"dtype": DTYPES, "attention": kernels.ATTENTION, "remat": (*REMAT_POLICIES,)}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"model.{name}={getattr(self, name)!r} must be one of {', '.join(allowed)}"
                )

        if self.attention == "cudnn" and self.dtype != "bfloat16":
            raise ValueError(f"model.attention='cudnn' wants bfloat16, not dtype={self.dtype}")

    @property
    def head_size(self) -> int:
        """C, the width of one head."""
        return self.head_dim or self.d_model // self.n_heads


def rope_tables(n_positions: int, head_size: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of the rotary angles, each float32 [T, C/2] (Su et al. 2021)."""
    frequencies = theta ** (-jnp.arange(0, head_size, 2, dtype=jnp.float32) / head_size)
    angles = jnp.arange(n_positions, dtype=jnp.float32)[:, None] * frequencies[None, :]
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x_BTHC: jax.Array, rope: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Turns the pairs (i, i + C/2) of each head by the angle of its position, in float32."""
    cos, sin = (table[None, :, None, :] for table in rope)
    a, b = jnp.split(x_BTHC.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BTHC.dtype)


def _fan_in_normal(scale: float = 1.0):
    return nn.initializers.variance_scaling(scale, "fan_in", "normal")


class Block(nn.Module):
    """One layer: x + Attention(norm(x)), then x + SwiGLU(norm(x)). [B, T, D] -> [B, T, D]."""

    cfg: ModelConfig

    @nn.compact
    def __call__(self, x_BTD, rope):
        x_BTD = x_BTD + self.attention(self.norm("attention_norm", x_BTD), rope)
        x_BTD = x_BTD + self.mlp(self.norm("mlp_norm", x_BTD))
        return nn.with_logical_constraint(x_BTD, ("batch", "seq", "activation"))

    def attention(self, x_BTD, rope):
        cfg, (B, T, _) = self.cfg, x_BTD.shape
        heads = functools.partial(jnp.reshape, shape=(B, T, -1, cfg.head_size))
        features, kv_features = (n * cfg.head_size for n in (cfg.n_heads, cfg.n_kv_heads))
        q_BTHC = heads(self.linear("query", x_BTD, ("embed", "heads"), features))
        k_BTKC = heads(self.linear("key", x_BTD, ("embed", "kv_heads"), kv_features))
        v_BTKC = heads(self.linear("value", x_BTD, ("embed", "kv_heads"), kv_features))
        out_BTHC = kernels.causal_attention(
            nn.with_logical_constraint(
                rotate(q_BTHC, rope), ("batch", "seq", "heads", "head_size")
            ),
            nn.with_logical_constraint(
                rotate(k_BTKC, rope), ("batch", "seq", "kv_heads", "head_size")
            ),
            nn.with_logical_constraint(v_BTKC, ("batch", "seq", "kv_heads", "head_size")),
            implementation=cfg.attention,
        )
        return self.linear("output", out_BTHC.reshape(B, T, -1), ("heads", "embed"), cfg.d_model)

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


class Transformer(nn.Module):
    """Embedding, the segments of a plan, final norm and head. int [B, T] -> float32 [B, T, V].

    Its parameters are the canonical tree with `layers` cut into `segment_0`, `segment_1`, ...;
    use `init_params` and `forward`, which speak canonical.
    """

    cfg: ModelConfig
    plan: DepthPlan

    @nn.compact
    def __call__(self, tokens_BT):
        cfg = self.cfg
        embed_init = nn.initializers.normal(cfg.d_model**-0.5)
        embed_init = nn.with_logical_partitioning(embed_init, ("vocab", "embed"))
        embed_VD = self.param("embed", embed_init, (cfg.vocab_size, cfg.d_model))
        # The width is gathered before the look-up: cut along D, the result would have to be
        # moved from there to the batch's sharding, which XLA does by replicating it.
        table_VD = embed_VD.astype(cfg.dtype)
        table_VD = nn.with_logical_constraint(table_VD, ("vocab", "activation"))
        x_BTD = table_VD[tokens_BT]
        x_BTD = nn.with_logical_constraint(x_BTD, ("batch", "seq", "activation"))
        rope = rope_tables(tokens_BT.shape[1], cfg.head_size, cfg.rope_theta)
        for i, segment in enumerate(self.plan.segments):
            x_BTD = self.run_segment(Block(cfg, name=f"segment_{i}"), segment, x_BTD, rope)
        norm_init = nn.with_logical_partitioning(nn.initializers.ones, ("norm",))
        x_BTD = rms_norm(x_BTD, self.param("final_norm", norm_init, (cfg.d_model,)), cfg.norm_eps)
        if cfg.tie_embeddings:
            head_DV = table_VD.T
        else:
            head_init = nn.with_logical_partitioning(_fan_in_normal(), ("embed", "vocab"))
            head_DV = self.param("head", head_init, (cfg.d_model, cfg.vocab_size))
            head_DV = head_DV.astype(cfg.dtype)
        # Accumulated and kept in float32: the loss is a difference of large logits.
        logits_BTV = kernels.matmul(x_BTD, head_DV, dtype=jnp.float32)
        return nn.with_logical_constraint(logits_BTV, ("batch", "seq", "vocab"))

    def run_segment(self, block, segment, x_BTD, rope):
        """nn.scan over repetitions (parameters broadcast) of nn.scan over layers (scanned)."""

        def layer(block, x, rope):
            return block(x, rope), None

        if self.cfg.remat != "none":
            policy = REMAT_POLICIES[self.cfg.remat]
            layer = nn.remat(layer, prevent_cse=False, policy=policy)
        stack = nn.scan(
            layer,
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=segment.layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        if segment.repeats > 1:
            stack = nn.scan(
                stack,
                variable_broadcast="params",
                variable_axes={"intermediates": 0},
                split_rngs={"params": False},
                in_axes=nn.broadcast,
                length=segment.repeats,
            )
        x_BTD, _ = stack(block, x_BTD, rope)
        return x_BTD


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


def forward(params, tokens_BT, cfg: ModelConfig, plan: DepthPlan) -> jax.Array:
    """Logits, float32 [B, T, V], of canonical (unboxed) parameters run by a plan."""
    return Transformer(cfg, plan).apply({"params": cut_segments(params, plan)}, tokens_BT)
