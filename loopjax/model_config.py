"""The architecture: hyperparameters of the layers, the embeddings and the head."""

import dataclasses
import math
from collections.abc import Mapping

from loopjax import attention, rope
from loopjax.loop_config import LoopConfig

MOST = 2**31 - 1  # sizes of arrays are int32
DTYPES = ("float32", "bfloat16")
POST_NORM = ("", "output", "stream")
REMAT = ("none", "dots", "attention", "full", "offload")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Hyperparameters of a layer, the embeddings and the head; depth is set by the plan.

    Attributes:
      vocab_size: V.
      d_model: D, the width of the residual stream.
      d_ff: F, the width of the SwiGLU hidden layer.
      n_heads: H, the number of query heads; divides D unless head_dim is set.
      n_kv_heads: K, the number of key/value heads; divides H (grouped-query attention if K < H).
      head_dim: width of one head; 0 for D / H.
      rope_theta: base of the rotary position frequencies.
      rope_scaling: "", or "llama3:FACTOR:LOW:HIGH:ORIGINAL" for the frequency scaling of Llama 3.1
        ("llama3:8:1:4:8192").
      attention_bias: whether queries, keys and values have biases (Qwen2).
      qk_norm: whether query and key heads have an RMSNorm before the rotary embedding (Qwen3).
      post_norm: a second RMSNorm per sublayer: "output", of what it adds (Ouro); "stream", of the
        residual stream after it has added (Huginn); "" for none.
      embed_scale: factor of the embeddings; not of the head, also where they are tied.
      norm_eps: epsilon of RMSNorm.
      tie_embeddings: whether the output head is the transposed embedding.
      init_depth: executed layers that the residual output projections are initialized for, and that
        `alpha` and `beta` are of.
      dtype: compute type; parameters are always float32.
      attention: one of `attention.IMPLEMENTATIONS`; "auto" is chosen by platform and shape.
      remat: what the backward pass recomputes: "none", "dots" (all but products with weights),
        "attention" (all but products with the weights of attention), "full" (all but the input of
        each layer), "offload" (as "full", with these inputs in the memory of the host; GPU and TPU).
      loop: what happens between the repetitions of a loop.
      exit_gate: whether the model has weights that say when to leave a loop (`losses.exit_gate`).
    """

    vocab_size: int
    d_model: int
    d_ff: int
    n_heads: int
    n_kv_heads: int
    init_depth: int
    head_dim: int = 0
    rope_theta: float = 10_000.0
    rope_scaling: str = ""
    attention_bias: bool = False
    qk_norm: bool = False
    post_norm: str = ""
    embed_scale: float = 1.0
    norm_eps: float = 1e-5
    tie_embeddings: bool = True
    dtype: str = "bfloat16"
    attention: str = "auto"
    remat: str = "none"
    loop: LoopConfig = dataclasses.field(default_factory=LoopConfig)
    exit_gate: bool = False

    def __post_init__(self):
        if isinstance(self.loop, Mapping):  # as it is saved
            object.__setattr__(self, "loop", LoopConfig(**self.loop))
        for name in ("vocab_size", "d_model", "d_ff", "n_heads", "n_kv_heads", "init_depth"):
            if not 1 <= getattr(self, name) <= MOST:
                bound = "at least 1" if getattr(self, name) < 1 else f"at most {MOST}"
                raise ValueError(f"model.{name}={getattr(self, name)} must be {bound}")
        for name in ("rope_theta", "norm_eps", "embed_scale"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"model.{name}={getattr(self, name)} must be positive and finite")
        if not 0 <= self.head_dim <= MOST or self.head_dim % 2:
            raise ValueError(
                f"model.head_dim={self.head_dim} must be even, or 0 for d_model / n_heads"
            )
        if not self.head_dim and (self.d_model % self.n_heads or self.head_size % 2):
            raise ValueError(
                f"model.n_heads={self.n_heads} must divide model.d_model={self.d_model} into heads "
                "of even size (rotary embedding rotates pairs), or set model.head_dim"
            )
        if self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"model.n_kv_heads={self.n_kv_heads} must divide model.n_heads={self.n_heads}"
            )
        choices = {
            "dtype": DTYPES, "attention": attention.IMPLEMENTATIONS, "remat": REMAT,
            "post_norm": POST_NORM,
        }  # fmt: skip
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"model.{name}={getattr(self, name)!r} must be one of {', '.join(allowed)}"
                )
        if self.loop.residual_scale == "deeploop" and self.post_norm != "stream":
            raise ValueError(
                f"loop.residual_scale='deeploop' requires model.post_norm='stream', a norm after every "
                f"addition; it is {self.post_norm!r}"
            )
        if self.post_norm and self.loop.residual_scale == "loops":
            raise ValueError(
                f"model.post_norm={self.post_norm!r} does not go with loop.residual_scale="
                f"{self.loop.residual_scale!r}: a norm undoes the scale"
            )
        if self.rope_scaling and not rope.LLAMA3.fullmatch(self.rope_scaling):
            raise ValueError(
                f"model.rope_scaling={self.rope_scaling!r} must be empty or "
                "llama3:FACTOR:LOW:HIGH:ORIGINAL, like llama3:8:1:4:8192"
            )
        if self.rope_scaling:
            factor, low, high, original = map(float, self.rope_scaling.split(":")[1:])
            if not (
                1 <= factor < math.inf and 0 < low < high < math.inf and 0 < original < math.inf
            ):
                raise ValueError(
                    f"model.rope_scaling={self.rope_scaling!r} must have FACTOR of at least 1, LOW "
                    "below HIGH and all of them positive"
                )

    @property
    def alpha(self) -> float:
        """Factor of the stream that a sublayer adds to, (2 N)^(1/2) with "deeploop" (2607.13491), N executed
        layers; else 1."""
        return (2 * self.init_depth) ** 0.5 if self.loop.residual_scale == "deeploop" else 1.0

    @property
    def beta(self) -> float | None:
        """What "deeploop" scales the initial values of some matrices by, (8 N)^(-1/2); None without it."""
        return (8 * self.init_depth) ** -0.5 if self.loop.residual_scale == "deeploop" else None

    @property
    def head_size(self) -> int:
        """C, the width of one head."""
        return self.head_dim or self.d_model // self.n_heads

    def parameter_shapes(self, n_unique: int) -> dict[str, tuple[int, ...]]:
        """{"layers/query": (U, D, H*C), ...}: the canonical parameters of a stack of U layers."""
        D, F, V, C = self.d_model, self.d_ff, self.vocab_size, self.head_size
        HC, KC = self.n_heads * C, self.n_kv_heads * C
        layer: dict[str, tuple[int, ...]] = {
            "attention_norm": (D,), "query": (D, HC), "key": (D, KC), "value": (D, KC),
            "output": (HC, D), "mlp_norm": (D,), "gate": (D, F), "up": (D, F), "down": (F, D),
        }  # fmt: skip
        if self.attention_bias:
            layer |= {"query_bias": (HC,), "key_bias": (KC,), "value_bias": (KC,)}
        if self.qk_norm:
            layer |= {"query_norm": (C,), "key_norm": (C,)}
        if self.post_norm:
            layer |= {"attention_post_norm": (D,), "mlp_post_norm": (D,)}
        matrices = {name: shape for name, shape in layer.items() if len(shape) == 2}
        for name, shape in matrices.items():
            layer |= self.loop.lora_shapes(name, shape)
        stack = {f"layers/{name}": (n_unique, *shape) for name, shape in layer.items()}
        head = {} if self.tie_embeddings else {"head": (D, V)}
        loop = {f"loop/{name}": shape for name, shape in self.loop_shapes.items()}
        return {"embed": (V, D), **stack, "final_norm": (D,), **head, **loop}

    @property
    def loop_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the parameters below `loop/`, by name."""
        gate: dict[str, tuple[int, ...]] = {}
        if self.exit_gate:
            gate = {"exit_gate": (self.d_model,), "exit_gate_bias": (1,)}
        return self.loop.shapes(self.d_model) | gate
