"""Parameters and FLOPs of a plan or a curriculum, by formula.

XLA's own cost analysis counts the body of a scan once, so executed depth must come from the plan.
"""

import math

from loopjax import losses
from loopjax.depth import DepthPlan
from loopjax.losses import Losses
from loopjax.model_config import ModelConfig


def layer_params(cfg: ModelConfig) -> int:
    """Matrix parameters of one layer: attention and SwiGLU, norm scales not counted."""
    heads = 2 * (cfg.n_heads + cfg.n_kv_heads) * cfg.head_size
    return cfg.d_model * (heads + 3 * cfg.d_ff)


def count_params(cfg: ModelConfig, n_layers: int) -> int:
    """All parameters of a model of `n_layers` unique layers, norm scales and biases included."""
    vocab = cfg.vocab_size * cfg.d_model * (1 if cfg.tie_embeddings else 2)
    vectors = (4 if cfg.post_norm else 2) * cfg.d_model
    vectors += cfg.attention_bias * (cfg.n_heads + 2 * cfg.n_kv_heads) * cfg.head_size
    vectors += cfg.qk_norm * 2 * cfg.head_size
    layer = layer_params(cfg) + vectors + cfg.loop.own * lora_params(cfg)
    loop = sum(map(math.prod, cfg.loop_shapes.values()))
    return n_layers * layer + vocab + cfg.d_model + loop


def lora_params(cfg: ModelConfig) -> int:
    """Parameters of the low-rank additions to the matrices of one layer in one repetition."""
    heads = cfg.n_heads * cfg.head_size, cfg.n_kv_heads * cfg.head_size
    sides = 4 * cfg.d_model + 2 * sum(heads)  # [in + out] of query, key, value and output
    return cfg.loop.lora_rank * (sides + 3 * (cfg.d_model + cfg.d_ff))


def adapter_params(cfg: ModelConfig) -> int:
    """Parameters of the adapter that every repetition runs once; 0 without one."""
    return math.prod(cfg.loop.shapes(cfg.d_model).get("adapter", (0,)))


def training_flops_per_token(
    cfg: ModelConfig, plan: DepthPlan, seq_len: int, *, causal: bool = False
) -> int:
    """6 P + 12 E D T (Kapl et al. 2025, Table 7); with `causal` 6 P + 6 E D T.

    P: matrix parameters executed (each executed layer, and the output head once); E: executed
    layers; D: width; T: context. Attention to all T tokens is counted, as the papers do and as in
    the MFU of PaLM (Chowdhery et al. 2022, Appendix B); a causal layer attends to half of them on
    average, and `causal` counts only these. Forward and backward pass; recomputation (remat) is
    not counted.

    With a random number of repetitions this is the expected cost, and a repetition without gradient
    counts a third: only its forward pass. Adapters and low-rank additions of `config.loop` are among
    the matrices of a repetition; norms and vectors are not counted.
    """
    return round(_per_token(cfg, plan, seq_len, causal, training=True))


def inference_flops_per_token(cfg: ModelConfig, plan: DepthPlan, seq_len: int) -> int:
    """FLOPs of a forward pass by the plan: a third of an update that runs it as it says."""
    return round(_per_token(cfg, plan, seq_len, False, training=False)) // 3


def _per_token(cfg, plan, seq_len: int, causal: bool, *, training: bool) -> float:
    attention = (6 if causal else 12) * cfg.n_heads * cfg.head_size * seq_len
    layer = 6 * layer_params(cfg) + attention
    total = 6 * cfg.vocab_size * cfg.d_model
    for segment in plan.segments:
        if segment.repeats == 1:
            total += segment.layers * layer
            continue
        once = segment.layers * (layer + 6 * lora_params(cfg))
        once += 6 * adapter_params(cfg)
        total += once * (repetitions(cfg, segment.repeats) if training else segment.repeats)
    return total


def repetitions(cfg: ModelConfig, planned: int) -> float:
    """Repetitions of a loop in an update, expected; one without a gradient counts a third.

    Args:
      planned: repetitions by the plan.
    """
    backprop = cfg.loop.backprop

    def cost(r):
        k = min(r, backprop or r)
        return k + (r - k) / 3

    return cfg.loop.law.expected(cost) if cfg.loop.repeats else cost(planned)


def training_flops(cfg: ModelConfig, plan: DepthPlan, config, *, causal: bool = False) -> int:
    """FLOPs of one update, with what the losses of `config.losses` cost besides the forward and
    backward pass of the plan (`exit_flops_per_token`)."""
    per_token = training_flops_per_token(cfg, plan, config.seq_len, causal=causal)
    if "losses" in config:  # configs saved by earlier versions have none
        per_token += exit_flops_per_token(
            cfg, plan, config.seq_len, losses.of(config), causal=causal
        )
    return per_token * config.batch_size * config.seq_len


def exit_flops_per_token(
    cfg: ModelConfig, plan: DepthPlan, seq_len: int, added: Losses, *, causal: bool = False
) -> int:
    """FLOPs of losses of a loop in addition to `training_flops_per_token`; 0 for other plans.

    Every exit but the last runs the layers after the loop and the head once more, forward and backward.
    A gate trained alone needs no backward pass, so two thirds of everything are subtracted. A
    penalty on the Jacobian takes 2 k + 8 forward passes of a repetition: one, 2 k products in k power
    iterations, the last product, and six for its gradient.
    """
    if not added.of_exits(plan):
        return 0
    most = cfg.loop.law.largest if cfg.loop.repeats else max(s.repeats for s in plan.segments)
    kept = min(
        cfg.loop.backprop or most, most
    )  # exits are computed for all repetitions with a gradient
    loop = next(s for s in plan.segments if s.repeats > 1)
    after = plan.n_unique - loop.stop
    exits = {"random": 2, "mean": kept}.get(added.per_repetition, 1)
    if added.exit_gate:
        exits = kept
    coda = DepthPlan.of([(after, 1)] if after else [])
    more = (exits - 1) * _per_token(cfg, coda, seq_len, causal, training=True)
    if added.exit_gate == "gate":
        whole = training_flops_per_token(cfg, plan, seq_len, causal=causal) + more
        return more - 2 * whole // 3
    if added.jacobian:
        head = 6 * cfg.vocab_size * cfg.d_model
        once = DepthPlan.of([(loop.layers, 1)])
        forward = (_per_token(cfg, once, seq_len, causal, training=True) - head) // 3
        more += (2 * added.jacobian_steps + 8) * forward
    return more
