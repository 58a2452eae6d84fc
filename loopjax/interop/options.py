"""Fields of config.json that change what a layer computes, or that nothing here knows."""

from loopjax.errors import UserError
from loopjax.interop import loop_families

# model_type -> the class that config.json names.
FAMILIES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "ouro": "OuroForCausalLM",
    "huginn_raven": "RavenForCausalLM",
}
# Options of related families that forks add to these: field -> values that change nothing.
OFF = (None, False, 0)
ONE = (None, False, 1)
UNSUPPORTED = {
    "attention_logit_cap": OFF, "attn_logit_softcapping": OFF, "final_logit_softcapping": OFF,
    "logit_softcapping": OFF, "logits_soft_cap": OFF, "clip_qkv": OFF, "query_pre_attn_scalar": OFF,
    "attention_multiplier": OFF, "embedding_multiplier": ONE, "residual_multiplier": ONE,
    "logits_scaling": ONE, "logit_scale": ONE, "scale_emb": ONE, "scale_depth": ONE,
    "dim_model_base": OFF, "mup": OFF, "scale_embeddings": OFF, "use_qk_norm": OFF,
    "use_parallel_residual": OFF, "parallel_attn": OFF, "alibi": OFF, "rope_interleave": OFF,
    "rope_interleaved": OFF, "no_rope_layers": (*OFF, []), "no_rope_layer_interval": OFF,
    "attn_temperature_tuning": OFF, "use_bidirectional_attention": OFF, "is_causal": (None, True),
    "attention_chunk_size": OFF, "is_encoder_decoder": OFF,
    "add_cross_attention": OFF, "rotary_pct": ONE, "rope_pct": ONE,
}  # fmt: skip
# Fields that are read, or that do not change what a trained model computes.
KNOWN = {
    *UNSUPPORTED, "_attn_implementation", "_name_or_path", "architectures", "attention_bias",
    "attention_dropout", "auto_map", "bos_token_id", "dtype", "eos_token_id", "head_dim",
    "hidden_act", "hidden_size", "initializer_range", "intermediate_size", "is_decoder",
    "is_llama_config", "layer_types", "max_position_embeddings", "max_window_layers", "mlp_bias", "model_type",
    "num_attention_heads", "num_experts", "num_hidden_layers", "num_key_value_heads",
    "num_local_experts", "n_routed_experts", "pad_token_id", "partial_rotary_factor",
    "pretraining_tp", "quantization_config", "rms_norm_eps", "rope_parameters", "rope_scaling",
    "rope_theta", "sliding_window", "tie_word_embeddings", "torch_dtype", "transformers_version",
    "use_cache", "use_sliding_window", "vocab_size",
    # Of every config: labels, generation, training.
    "chunk_size_feed_forward", "cross_attention_hidden_size", "finetuning_task", "id2label",
    "label2id", "num_labels", "output_attentions", "output_hidden_states", "prefix", "problem_type",
    "pruned_heads", "return_dict", "sep_token_id", "task_specific_params", "tf_legacy_loss",
    "tie_encoder_decoder", "tokenizer_class", "torchscript", "use_bfloat16", "begin_suppress_tokens",
    "decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id", "unsloth_fixed",
    "unsloth_version", "transformers.js_config", "rope_scaling_type", "attn_implementation",
    # Old generation settings that transformers stored in every config.
    "bad_words_ids", "diversity_penalty", "do_sample", "early_stopping",
    "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "length_penalty",
    "max_length", "min_length", "no_repeat_ngram_size", "num_beam_groups", "num_beams",
    "num_return_sequences", "output_scores", "remove_invalid_values", "repetition_penalty",
    "return_dict_in_generate", "suppress_tokens", "temperature", "top_k", "top_p", "typical_p",
}  # fmt: skip
SHOWN = 5  # unknown fields in a note


def family(config: dict) -> str:
    """The model_type; raises UserError for every option that changes what a layer computes."""
    name = config.get("model_type")
    for key in ("num_experts", "num_local_experts", "n_routed_experts"):
        if config.get(key):
            raise UserError(
                f"config.json has {key}={config[key]}; a mixture of experts is not supported"
            )
    if not isinstance(name, str) or name not in FAMILIES:
        raise UserError(
            f"config.json has model_type={name!r:.80}; supported are {', '.join(FAMILIES)}"
        )
    if config.get("quantization_config"):
        raise UserError(
            "config.json has a quantization_config; quantized weights are not supported"
        )
    act = config.get("hidden_act", "silu")
    if act not in ("silu", "swish"):
        raise UserError(f"config.json has hidden_act={act!r:.80}; only silu is supported")
    if flag(config, "mlp_bias"):
        raise UserError("config.json has mlp_bias=true; feed-forward biases are not supported")
    for key, neutral in UNSUPPORTED.items():
        if config.get(key) not in neutral:
            raise UserError(
                f"config.json has {key}={config[key]!r:.80}, which changes what the model computes and "
                "is not supported"
            )
    return name


def architecture(config: dict, family: str) -> str:
    """The class that a config names, else the one of its family."""
    named = config.get("architectures")
    named = named[0] if isinstance(named, list) and named else None
    return named if isinstance(named, str) else FAMILIES[family]


def flag(config: dict, key: str) -> bool:
    value = config.get(key)
    if not isinstance(value, bool | None):
        raise UserError(f"config.json has {key}={value!r:.80}; it must be true or false")
    return bool(value)


def notes(config: dict, family: str) -> list[str]:
    """What is not taken over from a config, one sentence each."""
    found = []
    unknown = sorted(config.keys() - KNOWN - loop_families.KNOWN.get(family, set()))
    if unknown:
        more = f" and {len(unknown) - SHOWN} more" if len(unknown) > SHOWN else ""
        fields = ", ".join(f"{key:.80}" for key in unknown[:SHOWN]) + more
        found.append(f"config.json has fields of no known meaning, which are ignored: {fields}")
    named = architecture(config, family)
    if named != FAMILIES[family]:
        found.append(
            f"config.json names the class {named:.80}; the weights are imported as {FAMILIES[family]}"
        )
    if config.get("auto_map"):
        found.append(
            f"the model has code of its own (auto_map), which is not run: it is imported as "
            f"{FAMILIES[family]}"
        )
    if family == "llama":
        sliding = isinstance(config.get("layer_types"), list) and set(
            map(str, config["layer_types"])
        ) - {"full_attention"}
        if config.get("sliding_window") is not None or sliding:
            key = "layer_types" if sliding else "sliding_window"
            found.append(
                f"config.json has {key}={config[key]!r:.80}, which a Llama does not use: its attention "
                "is imported without a window, as in transformers"
            )
    return found
