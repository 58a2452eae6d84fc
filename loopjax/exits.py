"""Early exits from a loop: every token leaves it when a rule holds, at inference and without training.

    kl:E          KL(p_r || p_{r-1}) < E, p_r the distribution of the next token after repetition r >= 2
    latent:E      ||x_r - x_{r-1}|| < E ||x_r||, x_r the state after repetition r, x_0 before the first
    confidence:P  the most likely next token has a probability > P
    gate:Q        the probability to have left by then, 1 - prod_{t <= r} (1 - lambda_t), is > Q; of models
                  with an exit gate (`exit_losses.py`)

(The first two: Geiping et al. 2025, KL 5e-4, latent 0.03. The last: Zhu et al. 2025.) kl:0, latent:0,
confidence:1 and gate:1 never hold.

A token that left keeps its state, and what later repetitions attend to is what it had last: the keys and
values of its deepest repetition, of the same layer. After the loop all tokens run the rest of the plan.
The state is s of `loop.py`, with what `config.loop` does between repetitions; head, gate and the rest of the
plan read it as after the end of a loop (`loop.leave_loop`).

`residual` runs whole sequences; `lm/exit_decoding.py` decodes. In a batch every token leaves on its own,
but a repetition is left out only where no token of the batch takes part: `Saving` counts by formula what
each token alone would have cost.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from loopjax import flops, loop, model
from loopjax.block import Held
from loopjax.depth import MOST_LAYERS, DepthPlan, Segment
from loopjax.errors import UserError

# Rule: (largest threshold, whether it reads the distribution of the next token).
RULES = {
    "kl": (math.inf, True), "latent": (math.inf, False), "confidence": (1.0, True), "gate": (1.0, False),
}  # fmt: skip
_READ_CHUNK = 64  # positions per row whose logits are in memory at a time


@dataclasses.dataclass(frozen=True)
class Rule:
    """When a token leaves the loop: a key of `RULES` and its threshold."""

    name: str
    threshold: float

    @classmethod
    def parse(cls, text: str) -> "Rule":
        """Reads "kl:5e-4", "latent:0.03", "confidence:0.9"; else UserError."""
        name, _, number = text.partition(":")
        try:
            threshold = float(number)
        except ValueError:
            threshold = math.nan
        most = RULES[name][0] if name in RULES else math.nan
        if not 0 <= threshold <= most or threshold == math.inf:
            raise UserError(
                f"--exit {text!r} must be a rule and its threshold: kl:5e-4 or latent:0.03 (at least 0), "
                "confidence:0.9 or gate:0.8 (0..1)"
            )
        return cls(name, threshold)

    @property
    def reads(self) -> bool:
        """Whether it needs the distribution of the next token after every repetition."""
        return RULES[self.name][1]

    def of_logits(self, logits, before):
        """Whether it holds [...] by the logits [..., V] of this and (None: none) the last repetition."""
        log_p = jax.nn.log_softmax(logits)
        if self.name == "confidence":
            return jnp.max(log_p, axis=-1) > math.log(self.threshold or 1e-45)
        if before is None:
            return jnp.zeros(logits.shape[:-1], bool)
        log_q = jax.nn.log_softmax(before)
        return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1) < self.threshold

    def of_states(self, params, cfg, x_BTD, before_BTD, read_BTD, log_stay_BT):
        """Whether it holds [B, T] by the states after this and the last repetition.

        Args:
          read_BTD: the residual stream if the loop ended here, which the gate reads.
          log_stay_BT: log-probability of the gate to have stayed until the last repetition.

        Returns:
          (whether it holds, `log_stay_BT` after this repetition).
        """
        if self.name == "gate":
            logits_BT = model.outside_stack(params, cfg, read_BTD, "exit_logits")
            log_stay_BT = log_stay_BT + jax.nn.log_sigmoid(-logits_BT)
            return -jnp.expm1(log_stay_BT) > self.threshold, log_stay_BT
        x, before = x_BTD.astype(jnp.float32), before_BTD.astype(jnp.float32)
        change = jnp.sum(jnp.square(x - before), axis=-1)
        holds_BT = change < self.threshold**2 * jnp.sum(jnp.square(x), axis=-1)
        return holds_BT, log_stay_BT

    def __str__(self) -> str:
        return f"{self.name}:{self.threshold:g}"


def loop_of(plan: DepthPlan, flag: str = "--exit") -> Segment:
    """The repeated segment that tokens leave early; raises UserError unless there is exactly one."""
    loops = [s for s in plan.segments if s.repeats > 1]
    if len(loops) != 1:
        count = "no loop" if not loops else f"{len(loops)} loops"
        raise UserError(f"{flag} requires a plan with one loop, but plan {plan} has {count}")
    return loops[0]


def repeated(plan: DepthPlan, repeats: int) -> DepthPlan:
    """The plan with another number of repetitions of its loop, at least 2; else UserError."""
    flag = f"--max-repeats {repeats}"
    loop = loop_of(plan, flag)
    if not 2 <= repeats <= MOST_LAYERS // loop.layers:
        raise UserError(f"{flag} must lie within 2..{MOST_LAYERS // loop.layers} for plan {plan}")
    return DepthPlan.of((s.layers, repeats if s is loop else s.repeats) for s in plan.segments)


@dataclasses.dataclass(frozen=True)
class Parts:
    """Indices of the executed layers before the loop, in its first repetition, and after it."""

    before: range
    loop: range
    after: range
    repeats: int

    @classmethod
    def of(cls, plan: DepthPlan) -> "Parts":
        loop = loop_of(plan)
        start = sum(s.layers * s.repeats for s in plan.segments[: plan.segments.index(loop)])
        stop = start + loop.layers * loop.repeats
        first = range(start, start + loop.layers)
        return cls(range(start), first, range(stop, plan.n_effective), loop.repeats)


# --- whole sequences ---------------------------------------------------------------------------


def residual(
    params, tokens_BT, cfg, plan: DepthPlan, rule: Rule, placement=None, tokens_there_BT=None
):
    """(residual stream before the final norm [B, T, D], repetitions of each token int32 [B, T]).

    What decoding token by token computes, except for "kl" and "confidence" where layers follow the
    loop: there, tokens read the others as these are after the same repetition, not as they left.

    Args:
      tokens_there_BT: False for padding, which takes part in no repetition; None for no padding.
    """
    parts = Parts.of(plan)
    x_BTD = model.outside_stack(params, cfg, tokens_BT, "embedded")
    positions = jnp.arange(tokens_BT.shape[1]) if placement is None else placement.positions_BT
    context = model.context_of(cfg, positions, x_BTD, placement, weights=params)

    def run(x_BTD, indices, context, held=None):
        def layer(x_BTD, e_and_held):
            e, held = e_and_held
            x_BTD, _, sown = model.run_layer(
                params["layers"], e, x_BTD, context.replace(held=held), cfg, plan
            )
            return x_BTD, (sown["key"], sown["value"])

        return jax.lax.scan(layer, x_BTD, (indices, held))

    def after(x_BTD):
        return run(x_BTD, jnp.array(parts.after), context)[0] if parts.after else x_BTD

    def leaves(r, x_BTD, before_BTD, read):
        """(whether tokens leave after repetition r >= 1, what the rule needs next time)."""
        read_BTD, log_stay_BT = read
        out_BTD = loop.leave_loop(x_BTD, inside, cfg)
        if not rule.reads:
            args = params, cfg, x_BTD, before_BTD, out_BTD, log_stay_BT
            holds_BT, log_stay_BT = rule.of_states(*args)
            return holds_BT, (read_BTD, log_stay_BT)
        new_BTD = after(out_BTD)
        holds_BT = _of_readings(params, rule, new_BTD, read_BTD, cfg)
        return holds_BT & (rule.name != "kl" or r > 1), (new_BTD, log_stay_BT)

    def repetition(carry):
        r, x_BTD, (k, v), active_BT, count_BT, read = carry
        indices = jnp.array(parts.loop) + r * len(parts.loop)
        alive = jnp.broadcast_to(active_BT, (len(parts.loop), *active_BT.shape))
        new_BTD, here = loop.enter_repetition(x_BTD, r, inside, cfg)
        new_BTD, (k, v) = run(new_BTD, indices, here, Held(k, v, alive))
        new_BTD = loop.leave_repetition(new_BTD, r, here, cfg)
        new_BTD = jnp.where(active_BT[..., None], new_BTD, x_BTD)
        left_BT, read = leaves(r + 1, new_BTD, x_BTD, read)
        return r + 1, new_BTD, (k, v), active_BT & ~left_BT, count_BT + active_BT, read

    def goes_on(carry):
        return (carry[0] < parts.repeats) & jnp.any(carry[3])

    if parts.before:
        x_BTD, _ = run(x_BTD, jnp.array(parts.before), context)
    inside, x_BTD = loop.begin(x_BTD, context, cfg)
    B, T = tokens_BT.shape
    zeros = jnp.zeros((len(parts.loop), B, T, cfg.n_kv_heads, cfg.head_size), x_BTD.dtype)
    active_BT = jnp.ones((B, T), bool) if tokens_there_BT is None else tokens_there_BT
    count_BT = jnp.zeros((B, T), jnp.int32)
    start = jnp.int32(0), x_BTD, (zeros, zeros), active_BT, count_BT, (x_BTD, jnp.zeros((B, T)))
    _, x_BTD, _, _, count_BT, _ = jax.lax.while_loop(goes_on, repetition, start)
    return after(loop.leave_loop(x_BTD, inside, cfg)), count_BT


def _of_readings(params, rule: Rule, x_BTD, before_BTD, cfg):
    """`Rule.of_logits` [B, T] of two residual streams, with the logits of few positions at a time."""
    B, T, D = x_BTD.shape
    chunk = next(c for c in range(min(T, _READ_CHUNK), 0, -1) if T % c == 0)

    def read(parts):
        logits, before = (model.unembed(params, x_BnD, cfg) for x_BnD in parts)
        return rule.of_logits(logits, before)

    cut = [x.reshape(B, T // chunk, chunk, D).swapaxes(0, 1) for x in (x_BTD, before_BTD)]
    return jax.lax.map(read, tuple(cut)).swapaxes(0, 1).reshape(B, T)


# --- what is saved -----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Saving:
    """What exits saved of the forward pass of tokens, each counted alone.

    Attributes:
      tokens: number of tokens.
      repeats: mean repetitions of the loop.
      most: repetitions without exits.
      layers: mean executed layers, those that only read for the rule included.
      most_layers: executed layers without exits.
      flops: mean FLOPs of a token, readings included.
      most_flops: FLOPs of a token without exits.
      saved: share of the FLOPs that is saved; negative where reading costs more than exits save.
    """

    tokens: int
    repeats: float
    most: int
    layers: float
    most_layers: int
    flops: float
    most_flops: float
    saved: float

    def as_text(self) -> str:
        return (
            f"{self.repeats:.2f} of {self.most} repetitions, {self.layers:.2f} of {self.most_layers} "
            f"layers and {self.saved:.1%} of the FLOPs saved, per token"
        )


def saving(cfg, plan: DepthPlan, rule: Rule, context: int, tokens: int, repeats: float) -> Saving:
    """The saving of `tokens` tokens that had `repeats` repetitions of the loop in all.

    A layer takes 2 FLOPs per parameter and 4 H C `context` for attention, a repetition also those of its
    low-rank additions and its adapter, a reading 2 D V and the layers after the loop. The rules on distributions read after every repetition; the last reading
    is the output, so a token that never leaves reads `repeats` times instead of once.
    """
    parts = Parts.of(plan)
    of_layer = 2 * flops.layer_params(cfg) + 4 * cfg.n_heads * cfg.head_size * context
    of_head = 2 * cfg.d_model * cfg.vocab_size
    mean = repeats / tokens
    readings = mean if rule.reads else 1
    layers = len(parts.before) + mean * len(parts.loop) + readings * len(parts.after)
    # What a repetition takes besides its layers (`config.loop`).
    more = 2 * (len(parts.loop) * flops.lora_params(cfg) + flops.adapter_params(cfg))
    cost = layers * of_layer + mean * more + readings * of_head
    full = plan.n_effective * of_layer + parts.repeats * more + of_head
    return Saving(
        tokens, mean, parts.repeats, layers, plan.n_effective, cost, full, 1 - cost / full
    )
