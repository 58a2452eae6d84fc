"""How the state of a loop moves over its repetitions: does it settle, drift or rotate, and who notices?

The state y_r of a layer of the loop is the residual stream after that layer in repetition r = 1..R, at
a token; R may exceed the repetitions of the plan. With the update u_r = y_r - y_(r-1):

    distance           ||u_r|| / ||y_r||                    falls to 0 at a fixed point
    angle              of u_r and u_(r-1), degrees          constant for a rotation, 0 on a straight line
    second difference  ||u_r - u_(r-1)|| / ||y_r||          (2509.23314: its smallness as a stopping rule)

Over the later half of the updates, a state is

    settling   if ||u_r|| shrinks on average to less than SETTLES of the one before per repetition, or
               if the last distance is below the rounding of the compute type
    drifting   else if successive updates turn by less than TURN degrees on average
    rotating   else (an orbit, an oscillation, or a walk in many dimensions)

(2604.11791 and 2608.18222 tell fixed points, orbits and drifts apart; the two thresholds are ours.) Whether
a fixed point attracts is up to the Jacobian J of one repetition at the last state: it does if the spectral
radius is below 1. J is that of all tokens of a prompt, and its radius is found by power iteration (Mises and
Pollaczek-Geiringer 1929), as STARS (2605.26733) does, on the transpose of J: that needs the backward pass
alone, which every kernel has, and a matrix and its transpose have the same eigenvalues.

The answer of a repetition is the most likely token if the loop ended there and the rest of the model ran.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from loopjax import loop as loop_lib
from loopjax import model, windows
from loopjax.analysis import loops
from loopjax.depth import DepthPlan, Window
from loopjax.lm.batching import padded
from loopjax.lm.loaded_model import LanguageModel

SETTLES = 0.95
TURN = 30.0
LEAST = 1e-6  # smallest denominator
ITERATIONS = 32  # of the power iteration
KRYLOV = 6  # vectors of the space in which the largest eigenvalue is then found
READ_CHUNK = 64  # positions whose logits are held at a time


@dataclasses.dataclass(frozen=True)
class Trajectories:
    """The trajectory of a loop of L layers over R repetitions; means over tokens of all prompts.

    Attributes:
      start: first executed layer of the loop.
      planned: repetitions of the plan.
      distance: relative distance of repetition r to r - 1, r = 2..R, [R - 1, L].
      angle: of the updates at r and r - 1, r = 3..R, degrees, [R - 2, L].
      second: relative second difference, r = 3..R, [R - 2, L].
      kinds: shares of the tokens whose state settles, drifts and rotates, [L, 3].
      growth: geometric mean of ||u_r|| / ||u_(r-1)|| over the later half, [L].
      radius: spectral radius of the Jacobian of a repetition at the last state, mean over prompts.
      radius_largest: the largest of a prompt.
      radius_change: largest change of an estimate from half as many iterations to all.
      flips: share of the answers that differ from those of r - 1, r = 2..R, [R - 1].
      agreement: share of the answers that are those of the plan's last repetition, r = 1..R, [R].
      right: share of the answers that are the next token of the prompt, r = 1..R, [R].
      prompts, tokens, answers: their numbers; answers are at tokens that predict the prompt's answer.
    """

    start: int
    planned: int
    distance: np.ndarray
    angle: np.ndarray
    second: np.ndarray
    kinds: np.ndarray
    growth: np.ndarray
    radius: float
    radius_largest: float
    radius_change: float
    flips: np.ndarray
    agreement: np.ndarray
    right: np.ndarray
    prompts: int
    tokens: int
    answers: int


def run(lm, cases, options, each) -> Trajectories:
    """`loopjax analyze --what trajectories`."""
    return trajectories(lm, cases, options["repetitions"], each)


def trajectories(
    lm: LanguageModel, cases, repetitions: int | None = None, each=map
) -> Trajectories:
    """The trajectory of the loop of a model's plan (`loops.longest`).

    Args:
      cases: (token ids, start of the answer, group) of each prompt.
      repetitions: R, at least 4 and those of the plan; by default twice those of the plan, at least 8.
      each: `store.Parts.each`, to resume.

    Raises UserError for a plan without a loop, and for too few or too many repetitions.
    """
    index = loops.longest(lm.plan)
    planned = lm.plan.segments[index].repeats
    plan = loops.extended(lm.plan, index, repetitions)
    measure = _program(lm.cfg, plan, index, planned)

    def of_case(case):
        tokens, start, _ = case
        tokens_BT = np.repeat(padded(tokens), lm.batch_parts, 0)
        with lm.on_mesh():
            return jax.device_get(measure(lm.params, lm.put(tokens_BT), len(tokens), start))

    parts = list(each(of_case, cases))
    names = [name for name in parts[0] if name != "jacobian"]
    total = {name: sum(np.float64(part[name]) for part in parts) for name in names}
    tokens, answers = int(total["tokens"]), int(total["answers"])
    radii = np.array([list(map(radius, part["jacobian"])) for part in parts])
    return Trajectories(
        start=loops.start(plan, index),
        planned=planned,
        **{name: total[name] / tokens for name in ("distance", "angle", "second", "kinds")},
        growth=np.exp(total["log_growth"] / tokens),
        radius=float(radii[:, 1].mean()),
        radius_largest=float(radii[:, 1].max()),
        radius_change=float(np.abs(radii[:, 1] - radii[:, 0]).max()),
        **{name: total[name] / max(answers, 1) for name in ("flips", "agreement", "right")},
        prompts=len(parts),
        tokens=tokens,
        answers=answers,
    )


@functools.lru_cache(maxsize=16)
def _program(cfg, plan, index: int, planned: int):
    about = {"cfg": cfg, "plan": plan, "index": index, "planned": planned}
    return jax.jit(functools.partial(_measure, **about))


def _measure(params, tokens_BT, length, start, *, cfg, plan: DepthPlan, index, planned) -> dict:
    """Sums over the tokens of a prompt, whose copies are the rows, and "jacobian"."""
    loop, first = plan.segments[index], loops.start(plan, index)
    after_NTD = _after_layers(params, tokens_BT, cfg, plan, index)[:, 0]
    states_RLTD = after_NTD[first:].astype(jnp.float32)
    states_RLTD = states_RLTD.reshape(loop.repeats, loop.layers, *states_RLTD.shape[1:])
    position_T = jnp.arange(tokens_BT.shape[1])
    moved = movement(states_RLTD, float(jnp.finfo(cfg.dtype).eps))
    inside_T = position_T < length
    sums = {name: jnp.where(inside_T, value, 0.0).sum(-1) for name, value in moved.items()}
    sums["kinds"] = sums["kinds"].T  # [L, 3]
    last_TD = states_RLTD[-1, -1] * inside_T[:, None]
    jacobian = _jacobian(params, last_TD, tokens_BT, length, cfg, plan, index)
    answers_RT = _answers(params, states_RLTD[:, -1], tokens_BT, cfg, plan, index)
    next_T = jnp.roll(tokens_BT[0], -1)
    asked_T = (position_T >= start - 1) & (position_T < length - 1)
    compared = {
        "flips": answers_RT[1:] != answers_RT[:-1],
        "agreement": answers_RT == answers_RT[planned - 1],
        "right": answers_RT == next_T,
    }
    sums |= {name: jnp.sum(value & asked_T, axis=-1) for name, value in compared.items()}
    return sums | {"tokens": length, "answers": asked_T.sum(), "jacobian": jacobian}


def _after_layers(params, tokens_BT, cfg, plan: DepthPlan, index: int):
    """The residual stream after each executed layer up to the end of segment `index`, [N, B, T, D].

    After the last layer of a repetition it is the state, as the next repetition would find it.
    """
    loop = plan.segments[index]
    n = loops.start(plan, index) + loop.repeats * loop.layers
    if cfg.loop.has_boundary and not isinstance(loop, Window):
        # With one repetition more, the last state is not yet changed by the end of the loop.
        longer = loops.extended(plan, index, loop.repeats + 1)
        return _advanced(params, tokens_BT, cfg, longer, n)[1]
    x_BTD, sown = model.intermediates(params, tokens_BT, cfg, plan, ("residual",))
    return jnp.concatenate([sown["residual"][1:], x_BTD[None]])[:n]


def _advanced(params, tokens_BT, cfg, plan: DepthPlan, n: int):
    """(residual stream after the first n executed layers, after each of them [n, B, T, D])."""
    embedded_BTD = model.outside_stack(params, cfg, tokens_BT, "embedded")
    positions = jnp.arange(tokens_BT.shape[1])
    context = model.context_of(cfg, positions, embedded_BTD, weights=params)

    def layer(carry, e):
        x_BTD, carried = carry
        at = params["layers"], e, x_BTD, context.replace(loop=carried)
        x_BTD, after, _, _ = model.advance(*at, cfg, plan)
        return (x_BTD, after.loop), x_BTD

    (x_BTD, _), after_NBTD = jax.lax.scan(layer, (embedded_BTD, context.loop), jnp.arange(n))
    return x_BTD, after_NBTD


def movement(states_RLTD, rounding: float) -> dict:
    """{"distance" [R - 1, L, T], "angle", "second" [R - 2, L, T], "log_growth" [L, T], "kinds" [3, L, T]}.

    Args:
      states_RLTD: float32, at least 4 repetitions.
      rounding: relative distance below which a state is at rest.
    """
    norm = functools.partial(jnp.linalg.norm, axis=-1)
    update = states_RLTD[1:] - states_RLTD[:-1]
    size, level = norm(update), jnp.maximum(norm(states_RLTD), LEAST)
    distance = size / level[1:]
    product = jnp.maximum(size[1:] * size[:-1], LEAST**2)
    cosine = jnp.sum(update[1:] * update[:-1], -1) / product
    angle = jnp.degrees(jnp.arccos(jnp.clip(cosine, -1.0, 1.0)))
    half = len(size) // 2
    ratio = jnp.maximum(size[-1], LEAST**2) / jnp.maximum(size[half], LEAST**2)
    log_growth = jnp.log(ratio) / (len(size) - 1 - half)
    settles = (log_growth < np.log(SETTLES)) | (distance[-1] < rounding)
    straight = angle[half:].mean(0) < TURN
    kinds = jnp.stack([settles, ~settles & straight, ~settles & ~straight])
    second = norm(update[1:] - update[:-1]) / level[2:]
    return {
        "distance": distance, "angle": angle, "second": second, "log_growth": log_growth,
        "kinds": kinds.astype(jnp.float32),
    }  # fmt: skip


def jacobian_on_krylov(function, x, start, iterations: int = ITERATIONS):
    """The Jacobian of a function at x on small spaces that hold its largest eigenvectors; see `radius`.

    Power iteration on the transpose turns the start into the directions that grow most. The space is that of
    the next KRYLOV vectors (Arnoldi 1951): a single vector never settles if the largest eigenvalues are a
    complex pair.

    Args:
      function: from arrays like x to arrays like x.
      start: the first vector, an array like x.

    Returns float32 [2, KRYLOV, KRYLOV]: the transpose on the spaces after half of the iterations and after all.
    """
    _, pull = jax.vjp(function, x)

    def iterate(vector, _):
        (vector,) = pull(vector)
        return _unit(vector), None

    middle, _ = jax.lax.scan(iterate, _unit(start), length=iterations // 2)
    end, _ = jax.lax.scan(iterate, middle, length=iterations - iterations // 2)
    return jax.lax.map(lambda vector: _projected(pull, vector), jnp.stack([middle, end]))


def radius(matrix) -> float:
    """The largest size of an eigenvalue of a matrix, on the host: accelerators have no such routine."""
    return float(np.abs(np.linalg.eigvals(np.asarray(matrix, np.float64))).max())


def _projected(pull, vector):
    """A linear function on the orthonormal basis of `vector` and its next images, [KRYLOV, KRYLOV]."""
    basis = jnp.zeros((KRYLOV + 1, vector.size)).at[0].set(vector.ravel())

    def extend(k, carry):
        basis, columns = carry
        (image,) = pull(basis[k].reshape(vector.shape))
        image, column = image.ravel(), jnp.zeros(KRYLOV + 1)
        for _ in range(2):  # once more, for what rounding left
            part = jnp.matmul(basis, image, precision="highest")
            image -= jnp.matmul(part, basis, precision="highest")
            column += part
        column = column.at[k + 1].set(jnp.linalg.norm(image))
        return basis.at[k + 1].set(_unit(image)), columns.at[k].set(column)

    columns = jnp.zeros((KRYLOV, KRYLOV + 1))
    _, columns = jax.lax.fori_loop(0, KRYLOV, extend, (basis, columns))
    return columns[:, :KRYLOV].T


def _unit(vector):
    return vector / jnp.maximum(jnp.linalg.norm(vector), jnp.finfo(jnp.float32).tiny)


def _jacobian(params, x_TD, tokens_BT, length, cfg, plan, index):
    """`jacobian_on_krylov` of one repetition as a function of the residual stream of the first tokens."""
    cfg = dataclasses.replace(cfg, dtype="float32")
    B, T = tokens_BT.shape
    context = _begun(params, tokens_BT, cfg, plan, index)
    function = functools.partial(one_pass, params, context=context, cfg=cfg, plan=plan, index=index)
    # Causal: tokens beyond the prompt reach no token of it. So the transpose keeps a vector that is 0 there 0.
    start_TD = jax.random.normal(jax.random.key(0), x_TD.shape)
    start_TD = jnp.where((jnp.arange(T) < length)[:, None], start_TD, 0.0)
    rows = (B, *x_TD.shape)
    args = jnp.broadcast_to(x_TD, rows), jnp.broadcast_to(start_TD, rows)
    return jacobian_on_krylov(function, *args)


def _begun(params, tokens_BT, cfg, plan: DepthPlan, index: int) -> model.Context:
    """The context of the layers of segment `index`, where it begins."""
    embedded_BTD = model.outside_stack(params, cfg, tokens_BT, "embedded")
    positions = jnp.arange(tokens_BT.shape[1])
    context = model.context_of(cfg, positions, embedded_BTD, weights=params)
    if context.loop is None:
        return context
    anchor_BTD, _ = _advanced(params, tokens_BT, cfg, plan, loops.start(plan, index))
    return context.replace(loop=context.loop.begun(cfg.loop, anchor_BTD))


def one_pass(params, x_BTD, *, context, cfg, plan: DepthPlan, index: int):
    """The residual stream after one more repetition of segment `index`, as its last one computes it."""
    loop = plan.segments[index]
    iteration = loop.repeats - 1
    bounded = context.loop is not None and not isinstance(loop, Window)
    if bounded:
        x_BTD, context = loop_lib.enter_repetition(x_BTD, iteration, context, cfg)
    gates = windows.gates(loop, iteration)
    if gates is not None:
        context = context.replace(gates=gates)
    stop = loops.start(plan, index) + loop.repeats * loop.layers

    def layer(x_BTD, e):
        return model.run_layer(params["layers"], e, x_BTD, context, cfg, plan)[0], None

    left_BTD, _ = jax.lax.scan(layer, x_BTD, jnp.arange(stop - loop.layers, stop))
    if bounded:
        return loop_lib.leave_repetition(left_BTD, iteration, context, cfg)
    return windows.stepped(loop, x_BTD, left_BTD)


def _answers(params, states_RTD, tokens_BT, cfg, plan: DepthPlan, index: int):
    """The most likely next tokens if the loop ended after each repetition, int32 [R, T]."""
    B, T = tokens_BT.shape
    n = next(c for c in range(min(T, READ_CHUNK), 0, -1) if T % c == 0)
    bounded = cfg.loop.has_boundary and not isinstance(plan.segments[index], Window)
    if bounded:
        context = _begun(params, tokens_BT, cfg, plan, index)

    def answer(x_TD):
        x_BTD = jnp.broadcast_to(x_TD, (B, *x_TD.shape)).astype(cfg.dtype)
        if bounded:
            x_BTD = loop_lib.leave_loop(x_BTD, context, cfg)
        x_BTD = model.residual_from(params, index + 1, x_BTD, tokens_BT, cfg, plan)
        chunks = x_BTD.reshape(B, T // n, n, -1).swapaxes(0, 1)
        return jax.lax.map(lambda x: model.unembed(params, x, cfg)[0].argmax(-1), chunks).ravel()

    return jax.lax.map(answer, states_RTD)
