"""The Llama family of Hugging Face models and its counterpart here.

`read_config` and `write_config` convert between config.json and `ModelConfig`; `TENSORS` maps the
leaves of the canonical tree to the tensor names of Hugging Face, layer by layer. A matrix is [in,
out] here and [out, in] there; rotary embedding rotates the same pairs of components in both.
"""

import dataclasses
import math
import re

import jax
import numpy as np
from flax.core import meta

from loopjax.depth import DepthPlan
from loopjax.errors import UserError, first_line
from loopjax.interop import loop_export, loop_families, options
from loopjax.interop.options import FAMILIES
from loopjax.interop.tensors import Tensor
from loopjax.loop_config import LoopConfig
from loopjax.model import init_params
from loopjax.model_config import DTYPES, ModelConfig

# Fields of "llama3" scaling, in the order of `ModelConfig.rope_scaling`.
_LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
MOST = 2**31 - 1  # of a size or a number of layers
MOST_POSITIONS = 2**24  # up to which a position is exact in float32
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")

_LAYER = "model.layers.{}."
TENSORS = {
    "embed": "model.embed_tokens.weight",
    "layers/attention_norm": _LAYER + "input_layernorm.weight",
    "layers/attention_post_norm": _LAYER + "input_layernorm_2.weight",
    "layers/query": _LAYER + "self_attn.q_proj.weight",
    "layers/query_bias": _LAYER + "self_attn.q_proj.bias",
    "layers/query_norm": _LAYER + "self_attn.q_norm.weight",
    "layers/key": _LAYER + "self_attn.k_proj.weight",
    "layers/key_bias": _LAYER + "self_attn.k_proj.bias",
    "layers/key_norm": _LAYER + "self_attn.k_norm.weight",
    "layers/value": _LAYER + "self_attn.v_proj.weight",
    "layers/value_bias": _LAYER + "self_attn.v_proj.bias",
    "layers/output": _LAYER + "self_attn.o_proj.weight",
    "layers/mlp_norm": _LAYER + "post_attention_layernorm.weight",
    "layers/mlp_post_norm": _LAYER + "post_attention_layernorm_2.weight",
    "layers/gate": _LAYER + "mlp.gate_proj.weight",
    "layers/up": _LAYER + "mlp.up_proj.weight",
    "layers/down": _LAYER + "mlp.down_proj.weight",
    "final_norm": "model.norm.weight",
    "head": "lm_head.weight",
    "loop/adapter": loop_families.ADAPTER,
    "loop/exit_gate": loop_families.GATE[0],
    "loop/exit_gate_bias": loop_families.GATE[1],
}
# Llama and Qwen3 with attention_bias have this tensor, the model here does not: it must be zero.
OUTPUT_BIAS = _LAYER + "self_attn.o_proj.bias"


@dataclasses.dataclass(frozen=True)
class Described:
    """The model described by a config.json.

    Attributes:
      cfg: architecture.
      n_layers: U.
      plan: the plan; each layer once, except for families that loop.
      seq_len: context length in tokens.
      output_bias: whether the output projections have biases.
      token_ids: bos_token_id, eos_token_id, pad_token_id; None for a missing one.
      notes: deviations from the config, one sentence each.
    """

    cfg: ModelConfig
    n_layers: int
    plan: str
    seq_len: int
    output_bias: bool
    token_ids: dict
    notes: tuple[str, ...]


def read_config(config: dict, stored_dtype: str, n_tensors: int) -> Described:
    """The model of a config.json of transformers 5 or older.

    Args:
      config: content of the file.
      stored_dtype: type of the stored weights, used if the config has no dtype.
      n_tensors: number of stored tensors, which bounds the number of layers.

    Raises UserError if the model cannot be represented.
    """
    try:
        return _described(config, stored_dtype, n_tensors)
    except UserError:
        raise
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(f"config.json is not a valid model: {first_line(error)}") from None


def _described(config: dict, stored_dtype: str, n_tensors: int) -> Described:
    family = options.family(config)
    named = config
    looped, config = loop_families.looped(config), loop_families.llama_config(config)
    fixed = {"qwen2": True, "mistral": False}  # the other families have a field for it
    attention_bias = fixed.get(family, options.flag(config, "attention_bias"))
    n_heads, n_layers = (
        _whole(config, key) for key in ("num_attention_heads", "num_hidden_layers")
    )
    if n_layers > n_tensors:
        raise UserError(
            f"config.json has num_hidden_layers={n_layers}, but there are only {n_tensors} tensors"
        )
    positions = _whole(config, "max_position_embeddings", most=MOST_POSITIONS)
    dtype, notes = _dtype(config, stored_dtype)
    notes += [*options.notes(named, family), *(looped.notes if looped else ())]
    window = _window(config, family, n_layers)
    if window and window < positions:
        notes.append(
            f"attention slides over {window} tokens (sliding_window), so the context is "
            f"{window} tokens and not {positions}"
        )
        positions = window
    theta, scaling = _rope(config, positions)
    plan = looped.plan if looped else str(n_layers)
    cfg = ModelConfig(
        vocab_size=_whole(config, "vocab_size"),
        d_model=_whole(config, "hidden_size"),
        d_ff=_whole(config, "intermediate_size"),
        n_heads=n_heads,
        n_kv_heads=_whole(config, "num_key_value_heads", n_heads),
        init_depth=DepthPlan.parse(plan).n_effective,
        head_dim=_head_dim(config, family, n_heads),
        rope_theta=theta,
        rope_scaling=scaling,
        attention_bias=attention_bias,
        qk_norm=family == "qwen3",
        norm_eps=_number(config, "rms_norm_eps", 1e-6),
        tie_embeddings=options.flag(config, "tie_word_embeddings"),
        dtype=dtype,
    )
    if looped:
        cfg = dataclasses.replace(cfg, **looped.model, loop=LoopConfig(**looped.loop))
    token_ids, of_ids = _token_ids(config, cfg.vocab_size)
    notes += of_ids
    output_bias = attention_bias and family != "qwen2"
    return Described(cfg, n_layers, plan, positions, output_bias, token_ids, tuple(notes))


def with_gate(described: Described, tensors: dict[str, Tensor]) -> Described:
    """The model with an exit gate if its tensors, `loop_families.llama_tensors`, have one."""
    if loop_families.GATE[0] not in tensors:
        return described
    note = f"every token runs all repetitions of {described.plan} unless --exit=gate:Q asks the exit gate"
    cfg = dataclasses.replace(described.cfg, exit_gate=True)
    return dataclasses.replace(described, cfg=cfg, notes=(*described.notes, note))


def _whole(config: dict, key: str, default: int | None = None, most: int = MOST) -> int:
    value = config.get(key)
    value = default if value is None else value
    if value is None:
        raise UserError(f"config.json has no {key}")
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"config.json has {key}={value!r:.80}; it must be a positive whole number")
    if value > most:
        raise UserError(f"config.json has {key}={value!r:.80}; it must be at most {most}")
    return value


def _token_ids(config: dict, vocab_size: int) -> tuple[dict, list[str]]:
    """(bos_token_id, eos_token_id and pad_token_id, notes about them)."""
    found, notes = {}, []
    for key in TOKEN_IDS:
        found[key] = value = config.get(key)
        ids = value if isinstance(value, list) and value else [] if value is None else [value]
        if all(type(i) is int and 0 <= i < vocab_size for i in ids):
            continue
        if key != "pad_token_id":
            raise UserError(
                f"config.json has {key}={value!r:.80}; it must be an id below "
                f"vocab_size={vocab_size}, a list of such ids, or null"
            )
        notes.append(
            f"config.json has {key}={value!r:.80}, which is no id of the vocabulary; ignored"
        )
        found[key] = None
    return found, notes


def _number(values: dict, key: str, default: float | None = None) -> float:
    value = values.get(key, default)
    if value is None:
        raise UserError(f"config.json has no {key}")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise UserError(f"config.json has {key}={value!r:.80}; it must be a positive number")
    return float(value)


def _head_dim(config: dict, family: str, n_heads: int) -> int:
    """The head size, 0 if it is D / H; the default of Qwen3 is 128."""
    if config.get("head_dim") is None and family != "qwen3":
        return 0
    head_dim = _whole(config, "head_dim", 128)
    return 0 if head_dim * n_heads == _whole(config, "hidden_size") else head_dim


def _dtype(config: dict, stored: str) -> tuple[str, list[str]]:
    """(compute type, notes about it)."""
    named = config.get("dtype") or config.get("torch_dtype") or stored
    if named in DTYPES:
        return named, []
    return "float32", [f"the model has dtype {named}; computing in float32"]


def _rope(config: dict, positions: int) -> tuple[float, str]:
    """(base, scaling) from rope_parameters, or rope_theta and rope_scaling of older configs."""
    for key in ("rope_scaling", "rope_parameters"):
        if not isinstance(config.get(key) or {}, dict):
            raise UserError(f"config.json has {key}={config[key]!r:.80}; it must be an object")
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    theta = _number({"rope_theta": 10_000.0, **_if_set(config, "rope_theta"), **rope}, "rope_theta")
    if any(isinstance(value, dict) for value in rope.values()):
        raise UserError(
            "config.json has a rotary embedding per type of layer; only one for all is supported"
        )
    if {**config, **rope}.get("partial_rotary_factor", 1.0) not in (None, 1.0):
        raise UserError("config.json has a partial_rotary_factor; only 1.0 is supported")
    if kind == "default":
        return theta, ""
    if kind != "llama3":
        raise UserError(f"config.json has rope_type={kind!r:.80}; supported are default, llama3")
    rope = {"original_max_position_embeddings": positions, **rope}
    numbers = [_number(rope, key) for key in _LLAMA3]
    return theta, ":".join(["llama3", *(f"{x:.12g}" for x in numbers)])


def _if_set(config: dict, key: str) -> dict:
    return {key: config[key]} if config.get(key) is not None else {}


def _window(config: dict, family: str, n_layers: int) -> int | None:
    """The smallest attention window of all layers in tokens; None if all attend to everything.

    A missing key has the default of transformers.
    """
    if family in ("llama", "huginn_raven"):
        return None
    if family == "mistral":
        window = config.get("sliding_window", 4096)
        return None if window is None else _whole({"sliding_window": window}, "sliding_window")
    sliding = options.flag(config, "use_sliding_window")
    types = config.get("layer_types") or [
        "sliding_attention"
        if sliding and i >= config.get("max_window_layers", 28)
        else "full_attention"
        for i in range(n_layers)
    ]
    other = set(types) - {"full_attention", "sliding_attention"}
    if other:
        raise UserError(
            f"config.json has layers of type {other.pop()}; supported are full_attention, "
            "sliding_attention"
        )
    if not sliding or "sliding_attention" not in types:
        return None
    return _whole(config, "sliding_window", 4096)


def write_config(
    cfg: ModelConfig, plan: DepthPlan, seq_len: int, dtype: str, token_ids: dict
) -> dict:
    """The config.json of a model that runs a plan, for any version of transformers with its family.

    An Ouro and a Huginn keep their loop; for the other families each executed layer is one of its own.
    Qwen3 with attention_bias also has a bias of the output projection; it is written as zero.
    """
    looped = loop_export.family(cfg, plan)
    if looped == loop_families.HUGINN:
        return loop_export.huginn_config(cfg, plan, seq_len, dtype, token_ids)
    family = "qwen3" if cfg.qk_norm else "qwen2" if cfg.attention_bias else "llama"
    if family == "llama" and cfg.d_model % cfg.n_heads:
        family = "mistral"  # the same layer, but its class allows any head size
    out = {
        "architectures": [FAMILIES[family]],
        "model_type": family,
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.d_model,
        "intermediate_size": cfg.d_ff,
        "num_hidden_layers": plan.n_effective,
        "num_attention_heads": cfg.n_heads,
        "num_key_value_heads": cfg.n_kv_heads,
        "head_dim": cfg.head_size,
        "hidden_act": "silu",
        "max_position_embeddings": seq_len,
        "rms_norm_eps": cfg.norm_eps,
        "rope_theta": cfg.rope_theta,
        "rope_scaling": None,
        "tie_word_embeddings": cfg.tie_embeddings,
        "attention_bias": cfg.attention_bias,
        "attention_dropout": 0.0,
        "torch_dtype": dtype,
        **token_ids,
    }
    if cfg.rope_scaling:
        numbers = [float(x) for x in cfg.rope_scaling.split(":")[1:]]
        out["rope_scaling"] = {"rope_type": "llama3", **dict(zip(_LLAMA3, numbers, strict=True))}
        out["rope_scaling"][_LLAMA3[-1]] = int(numbers[-1])
    if family == "llama":
        out["mlp_bias"] = False
    if family == "mistral":
        out["sliding_window"] = None
    if family in ("qwen2", "qwen3"):
        out["use_sliding_window"] = False
    return loop_export.ouro_config(out, plan) if looped else out


def written_layers(cfg: ModelConfig, plan: DepthPlan) -> DepthPlan:
    """The plan of the layers that are written: each of the stack once where the loop is kept."""
    if loop_export.family(cfg, plan):
        return DepthPlan.of([(plan.n_unique, 1)])
    return plan


# Leaves and tensors


def shapes(cfg: ModelConfig, n_layers: int) -> dict[str, tuple[int, ...]]:
    """{"layers/query": (U, D, H*C), ...}, the canonical tree by path."""
    tree = meta.unbox(
        jax.eval_shape(lambda key: init_params(cfg, n_layers, key), jax.random.key(0))
    )
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    keystr = jax.tree_util.keystr
    return {keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in leaves}


def stacked(leaf: str) -> bool:
    return leaf.startswith("layers/")


def turn(leaf: str, array: np.ndarray, out: np.ndarray) -> None:
    """Fills `out` with one layer's array in the other layout: matrices are transposed."""
    if array.ndim == 1 or leaf == "embed":
        out[...] = array
        return
    for i in range(0, len(array), 64):  # blocks that stay in the cache
        out[:, i : i + 64] = array[i : i + 64].astype(out.dtype).T


def tensors(leaf: str, shape) -> dict[str, tuple[int, ...]]:
    """{name: shape} of the tensors of a leaf: one per layer for a stacked leaf, else one."""
    if not stacked(leaf):
        return {TENSORS[leaf]: turned(leaf, shape)}
    return {TENSORS[leaf].format(i): turned(leaf, shape[1:]) for i in range(shape[0])}


def turned(leaf: str, shape) -> tuple[int, ...]:
    return tuple(reversed(shape)) if leaf != "embed" else tuple(shape)


def zero_biases(cfg: ModelConfig, n_layers: int) -> dict[str, tuple[int, ...]]:
    """{name: shape} of the zero tensors that `write_config` implies and that no leaf has."""
    if not (cfg.qk_norm and cfg.attention_bias):
        return {}
    return {OUTPUT_BIAS.format(i): (cfg.d_model,) for i in range(n_layers)}


def position(name: str) -> float:
    """Sort key of the tensors in a file: the embedding, layer by layer, the rest."""
    layer = re.match(r"model\.layers\.(\d+)\.", name)
    return int(layer[1]) if layer else -1 if name == TENSORS["embed"] else math.inf


def rows_axis(leaf: str, shape) -> int:
    """The axis of a leaf that runs along the rows of its tensors."""
    return 0 if leaf == "embed" else len(shape) - 1


def cuts(leaf: str, shape, chunk, most: int) -> list[tuple[slice, ...]]:
    """Slices that cover a leaf, each of whole rows of its tensors, in every layer.

    Args:
      shape: shape of the leaf.
      chunk: shape of its stored chunks; cuts end at chunk boundaries.
      most: elements in a cut, if the chunks allow it.
    """
    axis = rows_axis(leaf, shape)
    row = math.prod(shape) // shape[axis]
    step = chunk[axis] * max(1, most // (row * chunk[axis]))
    whole = [slice(0, n) for n in shape]
    return [
        (*whole[:axis], slice(start, min(start + step, shape[axis])), *whole[axis + 1 :])
        for start in range(0, shape[axis], step)
    ]
