"""What erasing a layer does to later layers and to the output (Csordas et al. 2025; Kapl et al.).

The entry [s, l] of a matrix is the relative change of the update of layer l when the update of
layer s is erased at some tokens and l's is measured at some:

    ||c_l - c~_l|| / max(||c_l||, 1e-6)          c_l = a_l + m_l

    propagated  s is erased and everything after it computed anew
    local       l alone sees what s did not add: it is fed h_l - c_s; nothing carries on past l
    future      erased before a boundary t (tokens 1 .. t - 1), measured from t on
    current     erased at tokens 1 .. T - 1, measured at all

Token 0 is never erased. The largest value over tokens, boundaries and prompts counts; it grows with
their number, which has to be the same for all models that are compared.
"""

import dataclasses
import functools
import random
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from loopjax import figure, model
from loopjax.analysis.activations import activations, gates_without
from loopjax.analysis.batches import chunks, padded, rows_that_fit
from loopjax.errors import UserError
from loopjax.evals.language_model import LanguageModel

BOUNDARIES, SEED = 4, 123
LEAST = 1e-6
SUBLAYERS = {"layer": ("attention", "mlp"), "attention": ("attention",), "mlp": ("mlp",)}
READ_CHUNK = 64  # positions whose logits are held at a time, per row


@dataclasses.dataclass(frozen=True)
class Effects:
    """Effects of erasing each executed layer.

    Attributes:
      matrix: the largest relative change, [E, E]: row s is erased, column l is measured.
      mean: the mean over prompts of what is the largest within each.
      output: the largest ||softmax(z) - softmax(z~)||_2 at the measured tokens, [E]; None if local.
      prompts, boundaries: how many (0 boundaries: current).
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
    progress=None,
) -> Effects:
    """Effects when everything after the erased layer (or its attention, or its MLP) is recomputed.

    `boundaries` of each prompt make it "future", None makes it "current"; a prompt with an empty
    list is left out.
    """
    per_prompt = []
    for prompt, cuts in _cases(prompts, boundaries):
        per_prompt.append(erase(lm, prompt, cuts, sublayer))
        if progress:
            progress()
    return _merged(per_prompt, boundaries)


def erase(lm: LanguageModel, prompt: Sequence[int], boundaries, sublayer: str = "layer"):
    """(largest relative changes [E, E], largest change of the output distribution [E]) of a prompt.

    `boundaries` are positions, or None for "current".
    """
    E = lm.plan.n_effective
    tokens_1T = padded(prompt)
    pairs = _pairs(range(E), boundaries, len(prompt), tokens_1T.shape[1])
    run = _program(lm.cfg, lm.plan)
    with lm.on_mesh():
        per_row = 4 * tokens_1T.shape[1] * (3 * E * lm.cfg.d_model + 2 * lm.cfg.d_ff)
        per_row += 4 * min(READ_CHUNK, tokens_1T.shape[1]) * lm.cfg.vocab_size
        matrix, output = np.zeros((E, E)), np.zeros(E)
        for batch in _batches(lm, pairs, per_row):
            tokens_BT = np.repeat(tokens_1T, len(batch["source"]), 0)
            args = (lm.params, *map(lm.put, (tokens_BT, batch)))
            change_EB, out_B = jax.device_get(run(*args, sublayers=SUBLAYERS[sublayer]))
            np.maximum.at(matrix, batch["source"][1:], change_EB.T[1:])
            np.maximum.at(output, batch["source"][1:], out_B[1:])
    return matrix, output


def local(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    boundaries: Sequence[Sequence[int]] | None = None,
    progress=None,
) -> Effects:
    """Effects of each layer on each later one alone; of whole layers."""
    per_prompt = []
    for prompt, cuts in _cases(prompts, boundaries):
        per_prompt.append((_local(lm, prompt, cuts), None))
        if progress:
            progress()
    return _merged(per_prompt, boundaries)


def _local(lm: LanguageModel, prompt, boundaries) -> np.ndarray:
    E, tokens_1T = lm.plan.n_effective, padded(prompt)
    T = tokens_1T.shape[1]
    one = _local_program(lm.cfg)
    matrix = np.zeros((E, E))
    with lm.on_mesh():
        tokens_BT = lm.put(np.repeat(tokens_1T, lm.batch_parts, 0))
        clean = _clean_program(lm.cfg, lm.plan)(lm.params, tokens_BT)
        for target in range(1, E):
            pairs = _pairs(range(target), boundaries, len(prompt), T)
            layer = lm.layers[lm.plan.order[target]]
            for batch in _batches(lm, pairs, 4 * T * (8 * lm.cfg.d_model + 2 * lm.cfg.d_ff)):
                change_B = jax.device_get(one(layer, clean, target, lm.put(batch)))
                np.maximum.at(matrix[:, target], batch["source"][1:], change_B[1:])
    return matrix


def _cases(prompts, boundaries):
    """(prompt, its boundaries or None) of the prompts that are not left out."""
    if boundaries is None:
        yield from ((prompt, None) for prompt in prompts)
        return
    for prompt, cuts in zip(prompts, boundaries, strict=True):
        if cuts:
            yield prompt, cuts


def _merged(per_prompt: list, boundaries) -> Effects:
    matrices = np.stack([matrix for matrix, _ in per_prompt])
    outputs = [output for _, output in per_prompt if output is not None]
    return Effects(
        matrix=matrices.max(0),
        mean=matrices.mean(0),
        output=np.max(outputs, axis=0) if outputs else None,
        prompts=len(per_prompt),
        boundaries=0 if boundaries is None else sum(map(len, boundaries)),
    )


def _pairs(sources, boundaries, length: int, T: int):
    """(sources [N], hidden [N, T], measured [N, T]) of every source at every boundary."""
    position = np.arange(T)
    inside = position < length
    found = []
    for source in sources:
        for t in [None] if boundaries is None else boundaries:
            hidden = inside & (position >= 1) & (position < (length if t is None else t))
            measured = inside if t is None else inside & (position >= t)
            found.append((source, hidden, measured))
    source, hidden, measured = zip(*found, strict=True)
    return np.array(source, np.int32), np.array(hidden), np.array(measured)


def _batches(lm: LanguageModel, pairs, bytes_per_row: int):
    """Batches of pairs, each behind a row that erases nothing (source -1).

    What is measured is a difference to that row: both come from one program, so that a layer that
    changes nothing has an effect of exactly 0.
    """
    n = len(pairs[0])
    size = rows_that_fit(lm, bytes_per_row, n + 1)
    for rows in chunks(n, max(1, size - 1)):
        source, hidden, measured = (np.concatenate([x[:1], x[rows]]) for x in pairs)
        source[0] = -1
        short = -len(source) % lm.batch_parts
        batch = {"source": source, "hidden": hidden, "measured": measured}
        yield {k: np.concatenate([v, np.repeat(v[-1:], short, 0)]) for k, v in batch.items()}


@functools.lru_cache(maxsize=16)
def _program(cfg, plan):
    erased = functools.partial(_erased, cfg=cfg, plan=plan)
    return jax.jit(erased, static_argnames="sublayers")


def _erased(params, tokens_BT, batch, *, cfg, plan, sublayers):
    """(relative change [E, B], change of the output [B]), the largest over the measured tokens."""
    gates = gates_without(batch["source"], batch["hidden"], plan.n_effective, sublayers)
    found = activations(params, tokens_BT, cfg, plan, gates)
    change_EBT = _relative(found.update, found.update[:, :1])
    change_EB = jnp.where(batch["measured"][None], change_EBT, 0.0).max(-1)
    return change_EB, _output_change(params, found.residual[-1], batch["measured"], cfg)


def _relative(changed, clean):
    """||clean - changed|| / ||clean|| over the width."""
    norm = jnp.linalg.norm(clean, axis=-1)
    return jnp.linalg.norm(clean - changed, axis=-1) / jnp.maximum(norm, LEAST)


def _output_change(params, x_BTD, measured_BT, cfg):
    """The largest L2 distance of the next-token distributions to those of the first row, [B]."""

    def distance(chunk):
        x_BtD, measured_Bt = chunk
        q_BtV = jax.nn.softmax(model.unembed(params, x_BtD.astype(cfg.dtype), cfg))
        found_Bt = jnp.linalg.norm(q_BtV - q_BtV[:1], axis=-1)
        return jnp.where(measured_Bt, found_Bt, 0.0).max(-1)

    # Logits are [..., V]: of a few positions of each row at a time.
    T = x_BTD.shape[1]
    n = next(c for c in range(min(T, READ_CHUNK), 0, -1) if T % c == 0)
    parts = tuple(
        x.reshape(x.shape[0], T // n, n, *x.shape[2:]).swapaxes(0, 1) for x in (x_BTD, measured_BT)
    )
    return jax.lax.map(distance, parts).max(0)


@functools.lru_cache(maxsize=16)
def _clean_program(cfg, plan):
    """Residuals [E + 1, 1, T, D] and updates [E, 1, T, D] of a prompt, whose rows are all the same."""

    def clean(params, tokens_BT):
        found = activations(params, tokens_BT, cfg, plan)
        return {"residual": found.residual[:, :1], "update": found.update[:, :1]}

    return jax.jit(clean)


@functools.lru_cache(maxsize=16)
def _local_program(cfg):
    return jax.jit(functools.partial(_erased_for_one, cfg=cfg))


def _erased_for_one(layer, clean, target, batch, *, cfg):
    """Relative change of the update of one layer that is fed h_l - c_s, [B]."""
    hidden_BT = batch["hidden"] & (batch["source"] >= 0)[:, None]
    erased_BTD = clean["update"][batch["source"], 0] * hidden_BT[..., None]
    x_BTD = (clean["residual"][target] - erased_BTD).astype(cfg.dtype)
    angles = model.angles_of(cfg, jnp.arange(x_BTD.shape[1]))
    block = model.Block(cfg)
    _, sown = block.apply({"params": layer}, x_BTD, angles, mutable=["intermediates"])
    a, m = (sown["intermediates"][name][0].astype(jnp.float32) for name in ("attention", "mlp"))
    change_BT = _relative(a + m, (a + m)[:1])
    return jnp.where(batch["measured"], change_BT, 0.0).max(-1)


def plot(results: dict[str, Effects], title: str = ""):
    """A heat map for each model; the colours run from 0 to 1 in all."""
    fig = figure.new(4.6 * len(results) + 0.6, 4.6)
    for axis, (label, result) in zip(
        np.atleast_1d(fig.subplots(1, len(results))), results.items(), strict=True
    ):
        image = axis.imshow(result.matrix, vmin=0, vmax=1, cmap="viridis")
        axis.set_title(label, loc="left", color=figure.INK, fontsize=10, fontweight="bold")
        axis.set_xlabel("layer that changes", color=figure.INK)
        axis.set_ylabel("layer that is erased", color=figure.INK)
    fig.colorbar(image, ax=fig.axes, shrink=0.8)
    if title:
        fig.suptitle(title, x=0.01, ha="left", color=figure.INK, fontsize=12, fontweight="bold")
    return fig
