"""Parameters and FLOPs of a plan or a curriculum, by formula.

XLA's own cost analysis counts the body of a scan once, so executed depth must come from the plan.
"""

from loopjax.depth import DepthPlan
from loopjax.model_config import ModelConfig


def layer_params(cfg: ModelConfig) -> int:
    """Matrix parameters of one layer: attention and SwiGLU, norm scales not counted."""
    heads = 2 * (cfg.n_heads + cfg.n_kv_heads) * cfg.head_size
    return cfg.d_model * (heads + 3 * cfg.d_ff)


def count_params(cfg: ModelConfig, n_layers: int) -> int:
    """All parameters of a model of `n_layers` unique layers, norm scales and biases included."""
    vocab = cfg.vocab_size * cfg.d_model * (1 if cfg.tie_embeddings else 2)
    vectors = 2 * cfg.d_model
    vectors += cfg.attention_bias * (cfg.n_heads + 2 * cfg.n_kv_heads) * cfg.head_size
    vectors += cfg.qk_norm * 2 * cfg.head_size
    gate = cfg.exit_gate * (cfg.d_model + 1)
    return n_layers * (layer_params(cfg) + vectors) + vocab + cfg.d_model + gate


def training_flops_per_token(
    cfg: ModelConfig, plan: DepthPlan, seq_len: int, *, causal: bool = False
) -> int:
    """6 P + 12 E D T (Kapl et al. 2025, Table 7); with `causal` 6 P + 6 E D T.

    P: matrix parameters executed (each executed layer, and the output head once); E: executed
    layers; D: width; T: context. Attention to all T tokens is counted, as the papers do and as in
    the MFU of PaLM (Chowdhery et al. 2022, Appendix B); a causal layer attends to half of them on
    average, and `causal` counts only these. Forward and backward pass; recomputation (remat) is
    not counted.
    """
    E = plan.n_effective
    P = E * layer_params(cfg) + cfg.vocab_size * cfg.d_model
    return 6 * P + (6 if causal else 12) * E * cfg.n_heads * cfg.head_size * seq_len


def training_flops(cfg: ModelConfig, plan: DepthPlan, config, *, causal: bool = False) -> int:
    """FLOPs of one update."""
    per_token = training_flops_per_token(cfg, plan, config.seq_len, causal=causal)
    return per_token * config.batch_size * config.seq_len
