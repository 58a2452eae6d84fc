"""The training losses of the exits after every repetition of a loop: `config.losses`.

    per_repetition="mean"     the mean over all R repetitions of the loss of the exit after it
    per_repetition="random"   the mean of the loss of the last exit and of one earlier, drawn from
                              (seed, step) for every update
    exit_gate="joint"         sum_t p_t L_t - beta H(p) for every token (Zhu et al. 2025, stage I)
    exit_gate="gate"          the gate alone learns which repetition still improves (stage II)

An exit is the state after a repetition, then the layers after the loop, final norm and head. The gate reads
the normed state itself: lambda_t = sigmoid(w h_t + b) is the probability to leave after repetition t,

    p_t = lambda_t S_{t-1} for t < T,   p_T = S_{T-1},   S_t = prod_{j <= t} (1 - lambda_j)

Shape letters are those of `model.py`; N is the exits of a call.
"""

import jax
import jax.numpy as jnp

from loopjax import head, jacobian, model
from loopjax.losses import Losses

# Improvements below the threshold are none (Zhu et al. 2025, stage II).
_STEEPNESS, _THRESHOLD = 50.0, 0.005


def weighted_loss(
    segments, tokens_BT, targets_BT, weights_BT, cfg, plan, placement, added: Losses, step
):
    """`model.weighted_loss` with the losses of the exits of the plan's loop.

    The term "nll" stays the loss of the last exit; other terms are for the record, not summed.

    Args:
      step: updates done; the draw of "random" depends on it and on `added.seed`.
    """
    R = max(s.repeats for s in plan.segments)
    if added.per_repetition == "random":
        chosen_N = jnp.array([drawn(added.seed, step, R), R - 1])
        names = ("earlier_repetition", "nll")
    elif not added.per_repetition and not added.exit_gate:
        chosen_N, names = jnp.array([R - 1]), ("nll",)
    else:
        chosen_N = None
        names = (*(f"repetition_{t}" for t in range(1, R)), "nll")

    def run(module, tokens_BT, placement):
        h_BTND, x_BTND = after_repetitions(module, tokens_BT, placement, chosen_N)
        loss = {"joint": _joint, "gate": _gate}.get(added.exit_gate, _mean)
        total, nll_BTN, terms = loss(module, h_BTND, x_BTND, targets_BT, weights_BT, added)
        nll_N = jnp.einsum("BT,BTN->N", weights_BT, jax.lax.stop_gradient(nll_BTN))
        return total, dict(zip(names, nll_N, strict=True)) | terms, h_BTND[:, :, -1]

    (total, terms, last_BTD), losses = model.with_losses(
        run, segments, cfg, plan, tokens_BT, placement
    )
    if added.jacobian:
        args = segments, last_BTD, cfg, plan, placement, added, step
        losses = {**losses, "jacobian": added.jacobian * jacobian.penalty(*args)}
    return total, terms, losses


def after_repetitions(module, tokens_BT, placement=None, chosen_N=None):
    """Residual streams of the exits after the repetitions of the loop, two [B, T, N, D].

    The first is that of the loop itself, the second that of the end of the plan when its layers
    after the loop run on it: what `run` returns is the last of these.

    Args:
      chosen_N: int, the repetitions from 0 after which there are exits; None for all R.
    """
    x_BTD = module.embedded(tokens_BT)
    positions = jnp.arange(tokens_BT.shape[1]) if placement is None else placement.positions_BT
    context = model.context_of(module.cfg, positions, x_BTD, placement)
    loop = next(i for i, s in enumerate(module.plan.segments) if s.repeats > 1)
    for i in range(loop):
        x_BTD = module.run_segment(i, x_BTD, context)
    x_NBTD = module.run_segment(loop, x_BTD, context, every=True)
    if chosen_N is not None:
        x_NBTD = x_NBTD[chosen_N]
    N, B, T, D = x_NBTD.shape
    # The exits of a row are rows beside each other: no row moves between devices.
    x_BTD = x_NBTD.swapaxes(0, 1).reshape(B * N, T, D)
    if placement is not None:
        placement = jax.tree.map(lambda x: jnp.repeat(x, N, axis=0), placement)
        positions = placement.positions_BT
    embedded_BTD = context.embedded_BTD
    if embedded_BTD is not None:
        embedded_BTD = jnp.repeat(embedded_BTD, N, axis=0)
    context = model.context_of(module.cfg, positions, embedded_BTD, placement)
    for i in range(loop + 1, len(module.plan.segments)):
        x_BTD = module.run_segment(i, x_BTD, context)
    return x_NBTD.transpose(1, 2, 0, 3), x_BTD.reshape(B, N, T, D).swapaxes(1, 2)


def drawn(seed: int, step, repeats: int) -> jax.Array:
    """The repetition 0 .. R - 2 after which there is an exit beside the last, int32 []."""
    key = jax.random.fold_in(jax.random.key(seed), 0x65786974)  # a stream of its own
    return jax.random.randint(jax.random.fold_in(key, step), (), 0, repeats - 1)


def _mean(module, h_BTND, x_BTND, targets_BT, weights_BT, added):
    weights_BTN = jnp.broadcast_to(weights_BT[..., None] / x_BTND.shape[2], x_BTND.shape[:3])
    total, nll_BTN = _losses(module, x_BTND, targets_BT, weights_BTN)
    return total, nll_BTN, {}


def _joint(module, h_BTND, x_BTND, targets_BT, weights_BT, added):
    log_p_BTN = log_exit_probabilities(module.exit_logits(h_BTND))
    p_BTN = jnp.exp(log_p_BTN)
    total, nll_BTN = _losses(module, x_BTND, targets_BT, weights_BT[..., None] * p_BTN)
    entropy = jnp.sum(weights_BT[..., None] * -p_BTN * log_p_BTN)
    repetition_N = jnp.arange(1, p_BTN.shape[-1] + 1)
    terms = {
        "exit_entropy": entropy,
        "exit_repetition": jnp.sum(weights_BT[..., None] * p_BTN * repetition_N),
    }
    return total - added.exit_entropy * entropy, nll_BTN, terms


def _gate(module, h_BTND, x_BTND, targets_BT, weights_BT, added):
    # Nothing but the gate has a gradient: neither the stream nor the norm and head that read it.
    shape = x_BTND.shape[:3]
    flat, targets = _rows(jax.lax.stop_gradient(x_BTND), targets_BT)
    nll, _ = module.losses(head.token_losses, flat, targets)
    nll_BTN = jax.lax.stop_gradient(nll.reshape(shape))
    logits_BTN = module.loop(jax.lax.stop_gradient(module.normed(h_BTND)))
    bce = jnp.sum(weights_BT * improvement_loss(logits_BTN, nll_BTN))
    return bce, nll_BTN, {"exit_gate": bce}


def log_exit_probabilities(logits_BTN):
    """log p_t of leaving after each repetition; the logit of the last one is not used."""
    log_stay = jnp.cumsum(jax.nn.log_sigmoid(-logits_BTN), axis=-1)
    before = jnp.pad(log_stay[..., :-1], [(0, 0)] * (log_stay.ndim - 1) + [(1, 0)])
    return before.at[..., :-1].add(jax.nn.log_sigmoid(logits_BTN[..., :-1]))


def improvement_loss(logits_BTN, nll_BTN):
    """The loss of stage II for each token, [B, T] (Zhu et al. 2025).

    The sum over t = 2 .. T, divided by T, of the binary cross-entropy of 1 - lambda_t (going on) with
    w_t = sigmoid(50 (I_t - 0.005)), I_t = max(0, L_{t-1} - L_t).
    """
    gained = jnp.maximum(nll_BTN[..., :-1] - nll_BTN[..., 1:], 0.0)
    w = jax.nn.sigmoid(_STEEPNESS * (gained - _THRESHOLD))
    logits = logits_BTN[..., 1:]
    terms = w * jax.nn.log_sigmoid(-logits) + (1 - w) * jax.nn.log_sigmoid(logits)
    return -jnp.sum(terms, axis=-1) / nll_BTN.shape[-1]


def _losses(module, x_BTND, targets_BT, weights_BTN):
    """(the weighted sum of all losses, the cross-entropy of each token at each exit [B, T, N])."""
    flat, targets = _rows(x_BTND, targets_BT)
    weights = weights_BTN.reshape(flat.shape[:2])
    total, terms = module.losses(head.weighted_losses, flat, targets, weights)
    return total, terms["nll"].reshape(weights_BTN.shape)


def _rows(x_BTND, targets_BT):
    """The exits of a token as tokens beside each other: [B, T N, D] and [B, T N]."""
    B, T, N, D = x_BTND.shape
    return x_BTND.reshape(B, T * N, D), jnp.repeat(targets_BT, N, axis=1)
