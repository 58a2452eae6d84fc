"""Models that loop as an Ouro or a Huginn: what `export-hf` writes for them (`loop_families.py` reads it).

An Ouro is a Llama with more fields and tensors. A Huginn has names and fields of its own, and tensors that
hold several of those of a Llama: `huginn_parts` says which rows go where.
"""

import math

import numpy as np

from loopjax.depth import DepthPlan
from loopjax.errors import UserError
from loopjax.interop.loop_families import (
    ADAPTER,
    GATE,
    HUGINN,
    HUGINN_NORMS,
    OURO,
    rotary_order,
)
from loopjax.interop.tensors import Part
from loopjax.loop_config import ACTIVE
from loopjax.model_config import ModelConfig

_HUGINN_LOOP = ["loop.final_norm='after'", "loop.start='normal'", "loop.inject='concat'"]
_HUGINN_REPOSITORY = "tomg-group-umd/huginn-0125"
# What every Huginn has, by the fields that its class reads.
_HUGINN_FIELDS = {
    "architectures": ["RavenForCausalLM"], "model_type": HUGINN, "bias": False, "padding_multiple": 1,
    "architecture_class_name": "RecurrentGPT", "block_class_name": "SandwichBlock",
    "norm_class_name": "RMSNorm_llama", "mlp_class_name": "GatedMLP", "nonlin_name": "SiLU",
    "init_strategy": "takase", "init_orthogonal": False, "state_init": "like-init",
    "injection_type": "linear", "sampling_scheme": "poisson-lognormal-filling",
    "activation_checkpoint_impl": "per-iteration", "test_time_noise": 0, "test_time_noise_type": "fixed",
    "auto_map": {
        "AutoConfig": f"{_HUGINN_REPOSITORY}--raven_config_minimal.RavenConfig",
        "AutoModelForCausalLM": f"{_HUGINN_REPOSITORY}--raven_modeling_minimal.RavenForCausalLM",
    },
}  # fmt: skip
NOTE = (
    "the model runs by the family's own code, which is not written: transformers fetches it from "
    f"{_HUGINN_REPOSITORY} with trust_remote_code=True"
)


def family(cfg: ModelConfig, plan: DepthPlan) -> str:
    """The family that loops that a model run by a plan is: `OURO`, `HUGINN`; "" for none.

    Raises UserError if it has what neither these nor the Llama family have.
    """
    options = cfg.loop.options(ACTIVE) if plan.is_looped else cfg.loop.weighted()
    own = {"post_norm": "", "embed_scale": 1.0}
    changed = [
        f"model.{name}={getattr(cfg, name)!r}"
        for name, plain in own.items()
        if getattr(cfg, name) != plain
    ]
    if not options and not changed:
        return ""
    between = ["loop.final_norm='between'"] if plan.is_looped else []
    plain = not cfg.attention_bias and not cfg.qk_norm and len(plan.segments) == 1
    if plain and changed == ["model.post_norm='output'"] and options == between:
        return OURO
    if cfg.post_norm == "stream" and options == _HUGINN_LOOP:
        _check_huginn(cfg, plan)
        return HUGINN
    raise UserError(
        f"a model with config.{(options + changed)[0]} and plan {plan} cannot be exported: no family that "
        "is written has it (Ouro has model.post_norm='output', loop.final_norm='between' and one loop of "
        f"all layers; Huginn has model.post_norm='stream', {', '.join(_HUGINN_LOOP)} and one loop between "
        "layers)"
    )


def _check_huginn(cfg: ModelConfig, plan: DepthPlan) -> None:
    """Raises UserError if a model with the norms and the loop of a Huginn is none."""
    root = math.sqrt(cfg.d_model)
    has = {
        f"model.embed_scale={cfg.embed_scale!r}": (
            np.float32(cfg.embed_scale) == np.float32(root),
            f"{root:.9g}, the root of model.d_model",
        ),
        f"model.n_kv_heads={cfg.n_kv_heads}": (cfg.n_kv_heads == cfg.n_heads, "model.n_heads"),
        f"model.head_dim={cfg.head_size}": (
            cfg.head_size * cfg.n_heads == cfg.d_model,
            "model.d_model / model.n_heads",
        ),
        f"model.qk_norm={cfg.qk_norm}": (not cfg.qk_norm, "False"),
        f"model.rope_scaling={cfg.rope_scaling!r}": (not cfg.rope_scaling, "''"),
        f"plan {plan}": (
            [s.repeats > 1 for s in plan.segments] == [False, True, False],
            "one loop with layers before and after it, like 2-4x32-2",
        ),
    }
    for what, (holds, wanted) in has.items():
        if not holds:
            raise UserError(f"{what} cannot be exported: a Huginn has {wanted}")


def ouro_config(config: dict, plan: DepthPlan) -> dict:
    """The fields of a Llama with those of an Ouro that runs a plan of one segment."""
    (segment,) = plan.segments
    return config | {
        "architectures": ["OuroForCausalLM"], "model_type": OURO, "num_hidden_layers": segment.layers,
        "total_ut_steps": segment.repeats, "early_exit_threshold": 1.0, "use_sliding_window": False,
        "sliding_window": None, "layer_types": ["full_attention"] * segment.layers,
    }  # fmt: skip


def ouro_gate(cfg: ModelConfig) -> tuple[dict[str, tuple[int, ...]], dict[str, Part]]:
    """({tensor of an Ouro's exit gate: its shape}, {those that are written otherwise: how}).

    Without a gate they are of zeros: the class of the family has one always.
    """
    weight, bias = GATE
    parts = {weight: Part(weight, (cfg.d_model,))} if cfg.exit_gate else {}
    return {weight: (1, cfg.d_model), bias: (1,)}, parts


def huginn_config(
    cfg: ModelConfig, plan: DepthPlan, seq_len: int, dtype: str, token_ids: dict
) -> dict:
    """The config.json of a Huginn that runs a plan of prelude, core and coda."""
    prelude, core, coda = plan.segments
    return _HUGINN_FIELDS | {
        "vocab_size": cfg.vocab_size, "n_embd": cfg.d_model, "n_heads": cfg.n_heads,
        "intermediate_size": cfg.d_ff, "n_layers": plan.n_unique, "n_layers_in_prelude": prelude.layers,
        "n_layers_in_recurrent_block": core.layers, "n_layers_in_coda": coda.layers,
        "mean_recurrence": core.repeats, "effective_expected_depth": plan.n_effective,
        "mean_backprop_depth": cfg.loop.backprop or min(8, core.repeats), "block_size": seq_len,
        "norm_eps": cfg.norm_eps, "rope_base": cfg.rope_theta, "qk_bias": cfg.attention_bias,
        "tie_embeddings": cfg.tie_embeddings, "torch_dtype": dtype, **token_ids,
    }  # fmt: skip


FREQUENCIES = "freqs_cis"


def huginn_frequencies(cfg: ModelConfig, seq_len: int) -> np.ndarray:
    """Cosines and sines of the rotary embedding, which a Huginn stores, float32 [1, S, 1, C / 2, 2]."""
    C = cfg.head_size
    inverse = 1 / np.float32(cfg.rope_theta) ** (np.arange(0, C, 2, dtype=np.float32) / C)
    angles = np.outer(np.arange(seq_len, dtype=np.float32), inverse.astype(np.float32))
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1)[None, :, None]


def huginn_parts(
    cfg: ModelConfig, plan: DepthPlan, seq_len: int
) -> tuple[dict[str, tuple[int, ...]], dict[str, Part]]:
    """({tensor of a Huginn: its shape}, {tensor of a Llama: where its rows are in them}).

    Biases of values have no place: a Huginn has none.
    """
    D, F, H, V, C = cfg.d_model, cfg.d_ff, cfg.n_heads, cfg.vocab_size, cfg.head_size
    order = rotary_order(D, H)
    tensors: dict[str, tuple[int, ...]] = {}
    parts: dict[str, Part] = {}

    def add(name, shape, *of):
        """A tensor and what it consists of: (name in a Llama, shape, order of rows)."""
        tensors[name], first = shape, 0
        for llama, part, rows in of:
            parts[llama] = Part(name, part, first, rows)
            first += math.prod(part)

    add("transformer.wte.weight", (V, D), ("model.embed_tokens.weight", (V, D), None))
    names = zip(("prelude", "core_block", "coda"), plan.segments, strict=True)
    layers = (f"transformer.{part}.{j}." for part, s in names for j in range(s.layers))
    for i, at in enumerate(layers):
        ours = f"model.layers.{i}."
        attention, mlp = f"{ours}self_attn.", f"{ours}mlp."
        for theirs, llama in HUGINN_NORMS.items():
            add(f"{at}{theirs}.weight", (D,), (f"{ours}{llama}.weight", (D,), None))
        fused = (
            (f"{attention}{n}_proj.weight", (D, D), None if n == "v" else order) for n in "qkv"
        )
        add(f"{at}attn.Wqkv.weight", (3 * D, D), *fused)
        if cfg.attention_bias:
            biases = ((f"{attention}{n}_proj.bias", (D,), order) for n in "qk")
            add(f"{at}attn.qk_bias", (2, 1, H, C), *biases)
        add(f"{at}attn.proj.weight", (D, D), (f"{attention}o_proj.weight", (D, D), None))
        fused = ((f"{mlp}{n}_proj.weight", (F, D), None) for n in ("gate", "up"))
        add(f"{at}mlp.fc.weight", (2 * F, D), *fused)
        add(f"{at}mlp.proj.weight", (D, F), (f"{mlp}down_proj.weight", (D, F), None))
    add("transformer.ln_f.weight", (D,), ("model.norm.weight", (D,), None))
    add("transformer.adapter.weight", (D, 2 * D), (ADAPTER, (D, 2 * D), None))
    if not cfg.tie_embeddings:
        tensors["lm_head.weight"] = (V, D)
    tensors[FREQUENCIES] = (1, seq_len, 1, C // 2, 2)
    return tensors, parts
