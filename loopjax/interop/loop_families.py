"""Ouro and Huginn, families of looped models, in the terms of the Llama family.

Ouro (Zhu et al. 2025, 2510.25741) runs its whole stack `total_ut_steps` times; the final norm is between
the repetitions too, and each sublayer's output has a second RMSNorm. Huginn (Geiping et al. 2025,
2502.05171) is prelude, core and coda: an adapter joins the state with the prelude's output before each
repetition of the core, and each sublayer ends with a norm of the residual stream.

`llama_config` and `llama_tensors` say the same as config.json and the tensors in the names of
`architectures.TENSORS`, so that the rest of the import knows one family. Code that a model brings along
is never run.
"""

import dataclasses
import math

import numpy as np

from loopjax.errors import UserError
from loopjax.interop.tensors import Tensor

OURO, HUGINN = "ouro", "huginn_raven"
# Fields of these families beside those of `options.KNOWN`.
KNOWN = {
    OURO: {"total_ut_steps", "early_exit_threshold", "early_exit_step", "chunk_size"},
    HUGINN: {
        "activation_checkpoint_impl", "architecture_class_name", "bias", "block_class_name",
        "block_size", "effective_expected_depth", "init_orthogonal", "init_strategy", "init_values",
        "injection_type", "mean_backprop_depth", "mean_recurrence", "mlp_class_name", "n_embd", "n_heads",
        "n_layers", "n_layers_in_coda", "n_layers_in_prelude", "n_layers_in_recurrent_block",
        "nonlin_name", "norm_class_name", "norm_eps", "padded_vocab_size", "padding_multiple", "qk_bias",
        "rope_base", "sampling_scheme", "state_init", "test_time_noise", "test_time_noise_type",
        "tie_embeddings",
    },
}  # fmt: skip
# What the import of Huginn implements: field -> values.
_HUGINN_ONLY = {
    "bias": (None, False),
    "block_class_name": (None, "SandwichBlock"),
    "injection_type": (None, "linear"),
    "mlp_class_name": (None, "GatedMLP"),
    "nonlin_name": (None, "SiLU"),
    "norm_class_name": (None, "RMSNorm_llama", "RMSNorm"),
    "test_time_noise": (None, 0),
}
_HUGINN_NAMES = {
    "vocab_size": "vocab_size", "hidden_size": "n_embd", "intermediate_size": "intermediate_size",
    "num_attention_heads": "n_heads", "max_position_embeddings": "block_size",
    "rms_norm_eps": "norm_eps", "rope_theta": "rope_base",
}  # fmt: skip
HUGINN_NORMS = {
    "norm_1": "input_layernorm", "norm_2": "input_layernorm_2",
    "norm_3": "post_attention_layernorm", "norm_4": "post_attention_layernorm_2",
}  # fmt: skip
ADAPTER = "model.adapter.weight"
GATE = ("model.early_exit_gate.weight", "model.early_exit_gate.bias")


@dataclasses.dataclass(frozen=True)
class Looped:
    """What a family adds to a Llama.

    Attributes:
      plan: the plan that the config describes.
      model: fields of `ModelConfig`.
      loop: fields of `LoopConfig`.
      notes: deviations from the config, one sentence each.
    """

    plan: str
    model: dict
    loop: dict
    notes: tuple[str, ...] = ()


def looped(config: dict) -> Looped | None:
    """What the family of a config adds; None for one without loops. UserError for invalid fields."""
    if config.get("model_type") == OURO:
        repeats, layers = (_count(config, key) for key in ("total_ut_steps", "num_hidden_layers"))
        plan = str(layers) if repeats == 1 else f"{layers}x{repeats}"
        between = {"final_norm": "between"} if repeats > 1 else {}
        return Looped(plan, {"post_norm": "output"}, between)
    if config.get("model_type") != HUGINN:
        return None
    for key, allowed in _HUGINN_ONLY.items():
        if config.get(key) not in allowed:
            raise UserError(f"config.json has {key}={config[key]!r:.80}, which is not supported")
    prelude, core, coda = huginn_layers(config)
    repeats = _count(config, "mean_recurrence")
    if repeats < 2:
        raise UserError(f"config.json has mean_recurrence={repeats}; it must be at least 2")
    loop = {"start": "normal", "inject": "concat", "final_norm": "after", "own": repeats}
    model = {
        "post_norm": "stream", "embed_scale": math.sqrt(_count(config, "n_embd")),
        "attention_bias": bool(config.get("qk_bias")),
    }  # fmt: skip
    note = "the first state of the loop is noise: here it depends on the position alone, not on the text"
    return Looped(f"{prelude}-{core}x{repeats}-{coda}", model, loop, (note,))


def huginn_layers(config: dict) -> tuple[int, int, int]:
    """Layers of prelude, core and coda."""
    return tuple(
        _count(config, f"n_layers_in_{part}") for part in ("prelude", "recurrent_block", "coda")
    )


def _count(config: dict, key: str) -> int:
    value = config.get(key)
    if type(value) is not int or not 1 <= value <= 10_000:
        raise UserError(
            f"config.json has {key}={value!r:.80}; it must be a whole number of at least 1"
        )
    return value


def llama_config(config: dict) -> dict:
    """The config with the fields of a Llama; the same one for Ouro, which has them."""
    if config.get("model_type") != HUGINN:
        return config
    renamed = {ours: config[theirs] for ours, theirs in _HUGINN_NAMES.items() if theirs in config}
    kept = {k: v for k, v in config.items() if k not in KNOWN[HUGINN]}
    tied = config.get("tie_embeddings", config.get("tie_word_embeddings", True))
    return {
        **kept, **renamed, "num_hidden_layers": sum(huginn_layers(config)),
        "tie_word_embeddings": tied, "hidden_act": "silu",
    }  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Rows(Tensor):
    """Rows of a stored tensor in another order."""

    source: Tensor = None
    order: np.ndarray = None

    def rows(self, rows: slice) -> np.ndarray:
        chosen = self.order[rows]
        least = int(chosen.min())
        return self.source.rows(slice(least, int(chosen.max()) + 1))[chosen - least]


@dataclasses.dataclass(frozen=True)
class Held(Tensor):
    """A small tensor in memory."""

    def rows(self, rows: slice) -> np.ndarray:
        return self.data[rows]


def _gate(stored: dict[str, Tensor], config: dict) -> dict[str, Tensor]:
    """The exit gate of an Ouro as a vector and a bias; nothing for none, one of zeros or a single repetition.

    The class of the family has a gate always, so that of a model without one is of zeros.
    """
    if not stored or config["total_ut_steps"] == 1:
        return {}
    D = _count(config, "hidden_size")
    found = {}
    for name, shape in zip(GATE, ((1, D), (1,)), strict=True):
        if name not in stored:
            raise UserError(f"the tensor {name} is missing")
        tensor = stored[name]
        _check_shape(tensor, shape)
        values = tensor.rows(slice(0, 1)).reshape(-1)
        found[name] = Held(name, tensor.path, values.shape, tensor.dtype, values)
    return found if any(held.data.any() for held in found.values()) else {}


def _check_shape(tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape:
        had, wanted = ("x".join(map(str, s)) for s in (tensor.shape, shape))
        raise UserError(
            f"the tensor {tensor.name} has shape {had}, but config.json implies {wanted}"
        )


def rotary_order(D: int, H: int) -> np.ndarray:
    """The row of Huginn's queries or keys that each row here is, [D].

    Rotary embedding rotates components 2i and 2i + 1 of a head there, i and i + C/2 here.
    """
    return np.arange(D).reshape(H, -1, 2).swapaxes(1, 2).ravel()


def llama_tensors(stored: dict[str, Tensor], config: dict) -> dict[str, Tensor]:
    """Stored tensors by the names of `architectures.TENSORS`; others keep their names.

    Raises UserError if a tensor of the family is missing or has another shape.
    """
    if config.get("model_type") == OURO:
        rest = {name: tensor for name, tensor in stored.items() if name not in GATE}
        return rest | _gate({name: stored[name] for name in GATE if name in stored}, config)
    if config.get("model_type") != HUGINN:
        return stored
    rest = {name: tensor for name, tensor in stored.items() if name != "freqs_cis"}
    D, F, H = (_count(config, key) for key in ("n_embd", "intermediate_size", "n_heads"))
    if D % H:
        raise UserError(f"config.json has n_heads={H}, which does not divide n_embd={D}")
    order = rotary_order(D, H)
    found = {}

    def take(name, *shape):
        if name not in rest:
            raise UserError(f"the tensor {name} is missing")
        tensor = rest.pop(name)
        _check_shape(tensor, shape)
        return tensor

    def add(name, tensor, order=None):
        if order is not None:
            shape = (len(order), *tensor.shape[1:])
            tensor = Rows(tensor.name, tensor.path, shape, tensor.dtype, None, tensor, order)
        found[name] = tensor

    parts = zip(("prelude", "core_block", "coda"), huginn_layers(config), strict=True)
    for i, source in enumerate(f"transformer.{part}.{j}." for part, n in parts for j in range(n)):
        layer = f"model.layers.{i}."
        for theirs, ours in HUGINN_NORMS.items():
            add(f"{layer}{ours}.weight", take(f"{source}{theirs}.weight", D))
        fused = take(f"{source}attn.Wqkv.weight", 3 * D, D)
        for k, (name, rows) in enumerate((("q", order), ("k", order), ("v", np.arange(D)))):
            add(f"{layer}self_attn.{name}_proj.weight", fused, k * D + rows)
        if config.get("qk_bias"):
            bias = take(f"{source}attn.qk_bias", 2, 1, H, D // H)
            both = bias.rows(slice(0, 2)).reshape(2, D)[:, order]
            for name, value in zip("qkv", (*both, np.zeros_like(both[0])), strict=True):
                held = Held(bias.name, bias.path, (D,), bias.dtype, value)
                add(f"{layer}self_attn.{name}_proj.bias", held)
        add(f"{layer}self_attn.o_proj.weight", take(f"{source}attn.proj.weight", D, D))
        fused = take(f"{source}mlp.fc.weight", 2 * F, D)
        add(f"{layer}mlp.gate_proj.weight", fused, np.arange(F))
        add(f"{layer}mlp.up_proj.weight", fused, F + np.arange(F))
        add(f"{layer}mlp.down_proj.weight", take(f"{source}mlp.proj.weight", D, F))
    for theirs, ours in (
        ("transformer.wte.weight", "model.embed_tokens.weight"),
        ("transformer.ln_f.weight", "model.norm.weight"),
        ("transformer.adapter.weight", ADAPTER),
    ):
        if theirs not in rest:
            raise UserError(f"the tensor {theirs} is missing")
        found[ours] = rest.pop(theirs)
    return found | rest
