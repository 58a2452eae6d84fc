"""Effects of ablating a layer on later layers and on the output (Csordas et al. 2025; Kapl et al.).

The entry [s, l] of a matrix is the relative change of the update of layer l when the update of
layer s is ablated at some tokens:

    ||c_l - c~_l|| / max(||c_l||, 1e-6)          c_l = a_l + m_l

    propagated  s is ablated, and everything after it is recomputed
    local       l is fed h_l - c_s, and nothing after l is computed: the direct effect of s on l
    future      s is ablated before a boundary t (tokens 1 .. t - 1), l is measured from t on
    current     s is ablated at tokens 1 .. T - 1, l is measured at all tokens

Token 0 is never ablated. The result is the maximum over tokens, boundaries and prompts. It grows
with their number, so models can be compared only on the same prompts and boundaries.
"""

import dataclasses
import functools
import random
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from loopjax import kernels, model
from loopjax.analysis.activations import activations
from loopjax.errors import UserError
from loopjax.lm.batching import chunks, padded, rows_at_once
from loopjax.lm.loaded_model import LanguageModel
from loopjax.loop_config import BOUNDARY

BOUNDARIES, SEED = 4, 123
LEAST = 1e-6
SUBLAYERS = {"layer": ("attention", "mlp"), "attention": ("attention",), "mlp": ("mlp",)}
READ_CHUNK = 64  # positions whose logits are held at a time, per row


@dataclasses.dataclass(frozen=True)
class Effects:
    """Effects of ablating each executed layer.

    Attributes:
      matrix: the largest relative change, [E, E]; row s is ablated, column l is measured.
      mean: mean over prompts of the largest change in each prompt, [E, E].
      output: the largest ||softmax(z) - softmax(z~)||_2 at the measured tokens, [E]; None if local.
      prompts, boundaries: numbers of prompts and of boundaries (0: current).
    """

    matrix: np.ndarray
    mean: np.ndarray
    output: np.ndarray | None
    prompts: int
    boundaries: int


def draw_boundaries(prompts: Sequence[Sequence[int]], seed: int = SEED) -> list[list[int]]:
    """For each prompt up to 4 of the positions 8, 16, 24, ... < T - 4; empty where there are none."""
    rng = random.Random(seed)
    drawn = []
    for prompt in prompts:
        places = range(8, len(prompt) - 4, 8)
        drawn.append(sorted(rng.sample(places, min(BOUNDARIES, len(places)))))
    if not any(drawn):
        raise UserError(
            "no prompt is long enough for a boundary: future effects need more than 12 tokens, the "
            f"longest has {max(map(len, prompts), default=0)}"
        )
    return drawn


def propagated(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    boundaries: Sequence[Sequence[int]] | None = None,
    sublayer: str = "layer",
    each=map,
) -> Effects:
    """Effects when everything after the ablated layer (or its attention, or its MLP) is recomputed.

    Args:
      boundaries: boundaries of each prompt ("future"); a prompt without any is skipped. None:
        "current".
      sublayer: the ablated part of the layer, a key of `SUBLAYERS`.
      each: a resumable `map` over prompts (`store.Parts.each`).
    """

    def of_prompt(case):
        matrix, output = ablate(lm, *case, sublayer)
        return {"matrix": matrix, "output": output}

    return _merged(each(of_prompt, _cases(prompts, boundaries)), boundaries)


def ablate(lm: LanguageModel, prompt: Sequence[int], boundaries, sublayer: str = "layer"):
    """(largest relative changes [E, E], largest change of the output distribution [E]) of a prompt.

    `boundaries` are positions, or None for "current".
    """
    E, tokens_1T = lm.plan.n_effective, padded(prompt)
    pairs = _pairs(range(E), boundaries, len(prompt))
    n = len(pairs["source"])

    def cost(rows):
        """Layers computed by all batches, each from its first source on; the head counts as one."""
        return rows * np.sum(E + 1 - pairs["source"][:: rows - 1])  # one row ablates nothing

    run = _program(lm.cfg, lm.plan)
    size = bytes_of_row(lm.cfg, tokens_1T.shape[1])
    rows = rows_at_once(lm, tokens_1T.shape[1], size, n + 1, cost)
    matrix, output = np.zeros((E, E)), np.zeros(E)
    with lm.on_mesh():
        clean = _clean(lm, tokens_1T)
        for chosen in chunks(n, rows - 1):
            batch = _batch(pairs, np.append(-1, chosen))
            args = (lm.params, clean, batch["source"][1], lm.put(batch), len(prompt))
            change_EB, out_B = jax.device_get(run(*args, sublayers=SUBLAYERS[sublayer]))
            np.maximum.at(matrix, batch["source"][1:], change_EB.T[1:])
            np.maximum.at(output, batch["source"][1:], out_B[1:])
    return matrix, output


def local(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    boundaries: Sequence[Sequence[int]] | None = None,
    each=map,
) -> Effects:
    """Direct effects of each whole layer on each later layer.

    Raises UserError if the stream that layers add to is changed between repetitions.
    """
    if lm.cfg.loop.has_boundary and lm.plan.is_looped:
        option = lm.cfg.loop.options(BOUNDARY)[0]
        raise UserError(
            f"local effects are of layers that add to one residual stream, which {option} changes "
            "between repetitions; measure future_effects instead"
        )

    def of_prompt(case):
        return {"matrix": _local(lm, *case)}

    return _merged(each(of_prompt, _cases(prompts, boundaries)), boundaries)


def _local(lm: LanguageModel, prompt, boundaries) -> np.ndarray:
    E, tokens_1T = lm.plan.n_effective, padded(prompt)
    pairs = _pairs(range(E), boundaries, len(prompt))
    per_source = len(boundaries or [None])
    counts = per_source * np.arange(1, E)

    def cost(rows):
        return rows * np.sum(-(-(counts + 1) // rows))  # one row ablates nothing

    run = _local_program(lm.cfg, lm.plan)
    size = bytes_of_row(lm.cfg, tokens_1T.shape[1], False)
    rows = rows_at_once(lm, tokens_1T.shape[1], size, counts.max(initial=0) + 1, cost)
    matrix = np.zeros((E, E))
    with lm.on_mesh():
        clean = _clean(lm, tokens_1T)
        reference = clean["update"][0, 0]  # placeholder; the first row of each target replaces it
        for target, n in enumerate(counts, 1):
            for chosen in chunks(n + 1, rows):
                batch = _batch(pairs, chosen - 1)
                args = (lm.params, clean, reference, target, lm.put(batch), len(prompt))
                change_B, reference = run(*args)
                change_B = jax.device_get(change_B)
                ablated = batch["source"] >= 0
                np.maximum.at(matrix[:, target], batch["source"][ablated], change_B[ablated])
    return matrix


def _clean(lm: LanguageModel, tokens_1T) -> dict:
    """Residuals [E + 1, 1, T, D] and updates [E, 1, T, D] of a prompt without ablation."""
    tokens_BT = np.repeat(tokens_1T, lm.batch_parts, 0)
    return _clean_program(lm.cfg, lm.plan)(lm.params, lm.put(tokens_BT))


def _cases(prompts, boundaries) -> list[tuple]:
    """(prompt, its boundaries or None); prompts without boundaries are skipped."""
    if boundaries is None:
        return [(prompt, None) for prompt in prompts]
    return [(prompt, cuts) for prompt, cuts in zip(prompts, boundaries, strict=True) if cuts]


def _merged(per_prompt, boundaries) -> Effects:
    per_prompt = list(per_prompt)
    matrices = np.stack([part["matrix"] for part in per_prompt])
    outputs = [part["output"] for part in per_prompt if "output" in part]
    return Effects(
        matrix=matrices.max(0),
        mean=matrices.mean(0),
        output=np.max(outputs, axis=0) if outputs else None,
        prompts=len(per_prompt),
        boundaries=0 if boundaries is None else sum(map(len, boundaries)),
    )


def _pairs(sources, boundaries, length: int) -> dict[str, np.ndarray]:
    """All ablations: source s at tokens 1 .. until - 1, measured at tokens since .. length - 1.

    int32 [N] each, by ascending source.
    """
    cuts = [(length, 0)] if boundaries is None else [(t, t) for t in boundaries]
    rows = [(source, *cut) for source in sources for cut in cuts]
    columns = np.array(rows, np.int32).reshape(-1, 3).T
    return dict(zip(("source", "until", "since"), columns, strict=True))


def _batch(pairs: dict, chosen) -> dict:
    """Some of the pairs; -1 is a row without ablation (source -1).

    Changes are measured against such a row of the same batch. Both come from one program, so a layer
    that changes nothing has an effect of exactly 0.
    """
    batch = {k: x[chosen] for k, x in pairs.items()}
    batch["source"][chosen < 0] = -1
    return batch


@functools.lru_cache(maxsize=16)
def _program(cfg, plan):
    ablated = functools.partial(_ablated, cfg=cfg, plan=plan)
    return jax.jit(ablated, static_argnames="sublayers")


def _ablated(params, clean, first, batch, length, *, cfg, plan, sublayers):
    """(relative change [E, B], change of the output [B]), maxima over the measured tokens.

    Layers before `first`, the first ablated one, are not run: their outputs are in `clean`. With
    options that change the stream between repetitions, what these carry is not, and all layers run.
    """
    (B,) = batch["source"].shape
    T = clean["residual"].shape[2]
    E = plan.n_effective
    hidden_BT, measured_BT = _where(batch, T, length)
    if cfg.loop.has_boundary:
        first, start_1TD = 0, clean["embedded"]
    else:
        start_1TD = clean["residual"][first]
    x_BTD = jnp.broadcast_to(start_1TD, (B, *start_1TD.shape[1:])).astype(cfg.dtype)
    context = _context(clean, cfg, params, x_BTD if cfg.loop.has_boundary else None)

    def run_layer(e, carry):
        x_BTD, loop, change_EB = carry
        gate_BT = jnp.where(hidden_BT & (batch["source"] == e)[:, None], 0.0, 1.0)
        kept_BT = jnp.ones_like(gate_BT)
        gates = {name: gate_BT if name in sublayers else kept_BT for name in SUBLAYERS["layer"]}
        at = params["layers"], e, x_BTD, context.replace(gates=gates, loop=loop)
        x_BTD, after, _, sown = model.advance(*at, cfg, plan)
        c_BTD = _update(sown)
        change_BT = _relative(c_BTD, c_BTD[:1])
        change_EB = change_EB.at[e].set(jnp.where(measured_BT, change_BT, 0.0).max(-1))
        return x_BTD, after.loop, change_EB

    carry = x_BTD, context.loop, jnp.zeros((E, B))
    x_BTD, _, change_EB = jax.lax.fori_loop(first, E, run_layer, carry)
    return change_EB, _output_change(params, x_BTD, measured_BT, cfg)


def _context(clean, cfg, params=None, embedded_BTD=None):
    """The context for running layers one by one on a prompt."""
    if embedded_BTD is None:
        embedded_BTD = clean["embedded"].astype(cfg.dtype)
    positions = jnp.arange(clean["residual"].shape[2])
    return model.context_of(cfg, positions, embedded_BTD, weights=params)


def _update(sown):
    """The update c of a layer, float32 [B, T, D]."""
    a, m = (sown[name].astype(jnp.float32) for name in SUBLAYERS["layer"])
    return a + m


def _where(batch, T: int, length):
    """(tokens at which each row is ablated, tokens at which it is measured), bool [B, T]."""
    position_T, until, since = jnp.arange(T), batch["until"][:, None], batch["since"][:, None]
    ablated_BT = (position_T >= 1) & (position_T < until)
    return ablated_BT, (position_T >= since) & (position_T < length)


def bytes_of_row(cfg, T: int, reads: bool = True) -> int:
    """Bytes per row of an ablation, beside the parameters: one layer, or logits if it `reads` them.

    Attention is counted as XLA computes it: all logits of a query at once, in chunks on a CPU.
    """
    queries = max(64, T // 8) if kernels.platform() == "cpu" else T
    layer = T * (6 * cfg.d_model + 2 * cfg.d_ff) + 2 * cfg.n_heads * min(queries, T) * T
    head = T * cfg.d_model + 2 * min(T, READ_CHUNK) * cfg.vocab_size
    return 4 * max(layer, head if reads else 0)


def _relative(changed, clean):
    """||clean - changed|| / ||clean|| over the width."""
    norm = jnp.linalg.norm(clean, axis=-1)
    return jnp.linalg.norm(clean - changed, axis=-1) / jnp.maximum(norm, LEAST)


def _output_change(params, x_BTD, measured_BT, cfg):
    """The largest L2 distance of the next-token distributions to those of the first row, [B]."""

    def distance(chunk):
        x_BtD, measured_Bt = chunk
        q_BtV = jax.nn.softmax(model.unembed(params, x_BtD, cfg))
        distance_Bt = jnp.linalg.norm(q_BtV - q_BtV[:1], axis=-1)
        return jnp.where(measured_Bt, distance_Bt, 0.0).max(-1)

    def distance_if_measured(chunk):
        nothing_B = jnp.zeros(len(measured_BT))
        return jax.lax.cond(jnp.any(chunk[1]), distance, lambda _: nothing_B, chunk)

    # Logits are [..., V]: compute those of a few positions per row at a time.
    T = x_BTD.shape[1]
    n = next(c for c in range(min(T, READ_CHUNK), 0, -1) if T % c == 0)
    parts = tuple(
        x.reshape(x.shape[0], T // n, n, *x.shape[2:]).swapaxes(0, 1) for x in (x_BTD, measured_BT)
    )
    return jax.lax.map(distance_if_measured, parts).max(0)


@functools.lru_cache(maxsize=16)
def _clean_program(cfg, plan):
    def clean(params, tokens_BT):
        acts = activations(params, tokens_BT, cfg, plan)
        embedded_BTD = model.outside_stack(params, cfg, tokens_BT, "embedded")
        residual = {"residual": acts.residual[:, :1], "embedded": embedded_BTD[:1]}
        return {**residual, "update": acts.update[:, :1]}

    return jax.jit(clean)


@functools.lru_cache(maxsize=16)
def _local_program(cfg, plan):
    return jax.jit(functools.partial(_ablated_for_one, cfg=cfg, plan=plan))


def _ablated_for_one(params, clean, reference_TD, target, batch, length, *, cfg, plan):
    """(relative change of the update of one layer that is fed h_l - c_s, [B]; the reference).

    The reference is the update without ablation: that of the first row if it has no ablation, else
    the reference of an earlier batch.
    """
    T = clean["update"].shape[2]
    hidden_BT, measured_BT = _where(batch, T, length)
    hidden_BT &= (batch["source"] >= 0)[:, None]
    ablated_BTD = clean["update"][batch["source"], 0] * hidden_BT[..., None]
    x_BTD = (clean["residual"][target] - ablated_BTD).astype(cfg.dtype)
    context = _context(clean, cfg).replace(loop=None)
    c_BTD = _update(model.run_layer(params["layers"], target, x_BTD, context, cfg, plan)[2])
    reference_TD = jnp.where(batch["source"][0] < 0, c_BTD[0], reference_TD)
    change_BT = _relative(c_BTD, reference_TD[None])
    return jnp.where(measured_BT, change_BT, 0.0).max(-1), reference_TD


# The diagnostics of `loopjax analyze` (`diagnostics.py`).


def run_future_local(lm, cases, options, each) -> Effects:
    prompts = _prompts(cases)
    return local(lm, prompts, draw_boundaries(prompts), each=each)


def run_future(lm, cases, options, each) -> Effects:
    prompts = _prompts(cases)
    return propagated(lm, prompts, draw_boundaries(prompts), each=each)


def run_current_attention(lm, cases, options, each) -> Effects:
    return propagated(lm, _prompts(cases), None, "attention", each)


def _prompts(cases) -> list[list[int]]:
    return [tokens for tokens, _, _ in cases]
