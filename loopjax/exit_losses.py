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

import flax
import jax
import jax.numpy as jnp

from loopjax import head, jacobian, loop, model
from loopjax.losses import Losses

# Improvements below the threshold are none (Zhu et al. 2025, stage II).
_STEEPNESS, _THRESHOLD = 50.0, 0.005
_NEVER = -1e9  # the logit of an exit that is not there


def weighted_loss(
    segments, tokens_BT, targets_BT, weights_BT, cfg, plan, placement, passes, added: Losses, *,
    seed: int, step,
):  # fmt: skip
    """`model.weighted_loss` with the losses of the exits of the plan's loop.

    The term "nll" stays the loss of the last exit; other terms are for the record, not summed. With
    `passes`, the exits are those after repetitions with a gradient.

    Args:
      seed, step: of the run, and updates done: they determine what is drawn.
    """

    def run(module, tokens_BT, placement, passes):
        exits = _after_repetitions(module, tokens_BT, placement, passes, added, seed, step)
        loss = {"joint": _joint, "gate": _gate}.get(added.exit_gate, _mean)
        total, nll_BTN, terms = loss(module, exits, targets_BT, weights_BT, added)
        nll_N = jnp.einsum("BT,BTN->N", weights_BT, jax.lax.stop_gradient(nll_BTN))
        # Repetitions of a random number have no names.
        names = exits.names if passes is None else ("nll",)
        recorded = dict(zip(reversed(names), reversed(nll_N), strict=False))
        return total, recorded | terms, exits.state_BTND[:, :, -1]

    (total, terms, last_BTD), losses = model.with_losses(
        run, segments, cfg, plan, tokens_BT, placement, passes
    )
    if added.jacobian:
        args = segments, last_BTD, cfg, plan, placement, added, seed, step
        losses = {**losses, "jacobian": added.jacobian * jacobian.penalty(*args)}
    return total, terms, losses


@flax.struct.dataclass
class Exits:
    """The exits of a batch.

    Attributes:
      state_BTND: residual streams after the repetitions, as if the loop ended there.
      x_BTND: residual streams at the end of the plan: `Transformer.run` returns the last one.
      number_N: repetitions before each exit; what is below 1 is no exit.
      names: of the exits in the record of a run.
    """

    state_BTND: jax.Array
    x_BTND: jax.Array
    number_N: jax.Array
    names: tuple[str, ...] = flax.struct.field(pytree_node=False)


def _after_repetitions(
    module, tokens_BT, placement, passes, added: Losses, seed: int, step
) -> Exits:
    cfg, segments = module.cfg, module.plan.segments
    weights = loop.boundary_weights(cfg, module.loop(), module.final_norm)
    x_BTD = module.embedded(tokens_BT)
    positions = jnp.arange(tokens_BT.shape[1]) if placement is None else placement.positions_BT
    context = model.context_of(cfg, positions, x_BTD, placement)
    at = next(i for i, s in enumerate(segments) if s.repeats > 1)
    for i in range(at):
        x_BTD = module.run_segment(i, x_BTD, context)
    inside = context.replace(loop=loop.Carried.start(cfg, weights, x_BTD, positions))
    x_NBTD = module.run_segment(at, x_BTD, inside, passes, every=True)
    N = len(x_NBTD)
    count = segments[at].repeats
    if passes is not None and passes.count is not None:
        count = passes.count
    number_N = count - N + 1 + jnp.arange(N)
    names = (*(f"repetition_{t}" for t in range(1, N)), "nll")
    if added.per_repetition == "random":
        there = jnp.minimum(count, N)  # of the N
        earlier = jnp.minimum(N - there + drawn(seed, step, there), N - 1)
        chosen, names = jnp.array([earlier, N - 1]), ("earlier_repetition", "nll")
        x_NBTD, number_N = x_NBTD[chosen], number_N[chosen]
    elif not added.per_repetition and not added.exit_gate:
        x_NBTD, number_N, names = x_NBTD[-1:], number_N[-1:], ("nll",)
    N, B, T, D = x_NBTD.shape
    # The exits of a row are rows beside each other: no row moves between devices.
    x_BTD = x_NBTD.swapaxes(0, 1).reshape(B * N, T, D)
    if placement is not None:
        placement = jax.tree.map(lambda x: jnp.repeat(x, N, axis=0), placement)
        positions = placement.positions_BT
    embedded_BTD = context.embedded_BTD
    if embedded_BTD is not None:
        embedded_BTD = jnp.repeat(embedded_BTD, N, axis=0)
    context = model.context_of(cfg, positions, embedded_BTD, placement)
    for i in range(at + 1, len(segments)):
        x_BTD = module.run_segment(i, x_BTD, context)
    x_BTND = x_BTD.reshape(B, N, T, D).swapaxes(1, 2)
    return Exits(x_NBTD.transpose(1, 2, 0, 3), x_BTND, number_N, names)


def drawn(seed: int, step, repeats) -> jax.Array:
    """The repetition 0 .. R - 2 after which there is an exit beside the last, int32 []; 0 if R is 1."""
    key = jax.random.fold_in(jax.random.key(seed), 0x65786974)  # a stream of its own
    most = jnp.maximum(repeats - 1, 1)
    return jax.random.randint(jax.random.fold_in(key, step), (), 0, most)


def _mean(module, exits: Exits, targets_BT, weights_BT, added):
    there_N = exits.number_N >= 1
    share_N = there_N / jnp.sum(there_N)
    weights_BTN = weights_BT[..., None] * share_N
    total, nll_BTN = _losses(module, exits.x_BTND, targets_BT, weights_BTN)
    return total, nll_BTN, {}


def _joint(module, exits: Exits, targets_BT, weights_BT, added):
    logits_BTN = module.exit_logits(exits.state_BTND)
    log_p_BTN = log_exit_probabilities(jnp.where(exits.number_N >= 1, logits_BTN, _NEVER))
    p_BTN = jnp.exp(log_p_BTN)
    total, nll_BTN = _losses(module, exits.x_BTND, targets_BT, weights_BT[..., None] * p_BTN)
    entropy = jnp.sum(weights_BT[..., None] * -p_BTN * log_p_BTN)
    terms = {
        "exit_entropy": entropy,
        "exit_repetition": jnp.sum(weights_BT[..., None] * p_BTN * exits.number_N),
    }
    return total - added.exit_entropy * entropy, nll_BTN, terms


def _gate(module, exits: Exits, targets_BT, weights_BT, added):
    # Nothing but the gate has a gradient: neither the stream nor the norm and head that read it.
    x_BTND, h_BTND = jax.lax.stop_gradient((exits.x_BTND, exits.state_BTND))
    flat, targets = _rows(x_BTND, targets_BT)
    nll, _ = module.losses(head.token_losses, flat, targets)
    nll_BTN = jax.lax.stop_gradient(nll.reshape(x_BTND.shape[:3]))
    bce = jnp.sum(weights_BT * improvement_loss(module.exit_logits(h_BTND, True), nll_BTN))
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
