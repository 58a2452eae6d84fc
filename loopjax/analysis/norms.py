"""Residual norms, what the sublayers contribute, and in which direction (Kapl et al. 2026, Fig. 3).

Every figure is a mean over the tokens of all prompts of a ratio at each token, in float32; the
denominator is the residual that the sublayer reads.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from loopjax import figure
from loopjax.analysis.activations import activations
from loopjax.analysis.batches import padded
from loopjax.evals.language_model import LanguageModel

LEAST = 1e-6  # of a denominator


@dataclasses.dataclass(frozen=True)
class Norms:
    """Means over tokens, and the largest values.

    Attributes:
      residual: ||h_l||, l = 0..E; [E + 1].
      attention, mlp, layer: ||a_l|| / ||h_l||, ||m_l|| / ||h_l + a_l||, ||c_l|| / ||h_l||; [E].
      attention_cosine, mlp_cosine, layer_cosine: cosines of the same pairs; [E].
      next_cosine: cos(h_{l+1}, h_l); [E].
      largest: the largest value of each of the norms and ratios, by name.
      residual_after_first: ||h_l|| without the first token of each prompt, whose norm dominates.
      tokens: how many.
    """

    residual: np.ndarray
    attention: np.ndarray
    mlp: np.ndarray
    layer: np.ndarray
    attention_cosine: np.ndarray
    mlp_cosine: np.ndarray
    layer_cosine: np.ndarray
    next_cosine: np.ndarray
    largest: dict
    residual_after_first: np.ndarray
    tokens: int


def norms(lm: LanguageModel, prompts: Sequence[Sequence[int]], progress=None) -> Norms:
    """The norms over prompts of token ids."""
    sums, largest, tokens = {}, {}, sum(map(len, prompts))
    measure = _program(lm.cfg, lm.plan)
    for prompt in prompts:
        found = jax.device_get(measure(lm.params, padded(prompt), len(prompt)))
        for name, (total, most) in found.items():
            sums[name] = sums.get(name, 0.0) + np.float64(total)
            largest[name] = np.maximum(largest.get(name, 0.0), most)
        if progress:
            progress()
    means = {name: total / tokens for name, total in sums.items()}
    means["residual_after_first"] = sums["residual_after_first"] / (tokens - len(prompts))
    keep = ("residual", "attention", "mlp", "layer")
    return Norms(**means, largest={name: largest[name] for name in keep}, tokens=tokens)


@functools.lru_cache(maxsize=16)
def _program(cfg, plan):
    return jax.jit(functools.partial(_measure, cfg=cfg, plan=plan))


def _measure(params, tokens_1T, length, *, cfg, plan) -> dict:
    """{name: (sum over the tokens, largest)} of one prompt, [E] or [E + 1]."""
    found = activations(params, tokens_1T, cfg, plan)
    h, a, m = (x[:, 0] for x in (found.residual[:-1], found.attention, found.mlp))  # [E, T, D]
    position = jnp.arange(tokens_1T.shape[1])

    def over(values_T, first=0):
        values_T = jnp.where((position >= first) & (position < length), values_T, 0.0)
        return values_T.sum(-1), values_T.max(-1)

    norm = functools.partial(jnp.linalg.norm, axis=-1)
    residual_T = norm(found.residual[:, 0])
    pairs = {"attention": (a, h), "mlp": (m, h + a), "layer": (a + m, h)}
    out = {name: over(norm(x) / jnp.maximum(norm(y), LEAST)) for name, (x, y) in pairs.items()}
    pairs["next"] = (found.residual[1:, 0], h)
    for name, (x, y) in pairs.items():
        product = jnp.maximum(norm(x) * norm(y), LEAST**2)
        out[f"{name}_cosine"] = over(jnp.sum(x * y, -1) / product)
    out["residual"], out["residual_after_first"] = over(residual_T), over(residual_T, 1)
    return out


def plot(results: dict[str, Norms]):
    """Residual norm, and contribution and cosine of attention, MLP and layer, by executed layer."""
    fig = figure.new(11, 10)
    axes = fig.subplots(4, 2).flat
    titles = {
        "residual": "norm of the residual stream",
        "next_cosine": "cosine of one residual with the next",
        "attention": "attention / residual",
        "attention_cosine": "cosine of attention with the residual",
        "mlp": "MLP / residual", "mlp_cosine": "cosine of the MLP with the residual",
        "layer": "layer / residual", "layer_cosine": "cosine of the layer with the residual",
    }  # fmt: skip
    for axis, (name, title) in zip(axes, titles.items(), strict=True):
        for colour, (label, result) in zip(figure.COLOURS * 9, results.items(), strict=False):
            values = getattr(result, name)
            axis.plot(range(len(values)), values, ".-", color=colour, label=label)
        figure.plain(axis)
        axis.set_title(title, loc="left", color=figure.INK, fontsize=10, fontweight="bold")
        axis.set_xlabel("executed layer", color=figure.INK, fontsize=9)
        if name in ("attention", "mlp", "layer"):
            # The first layer, which reads the bare embedding, is off the scale of all others.
            rest = np.concatenate([getattr(r, name)[1:] for r in results.values()])
            axis.set_ylim(0, 1.1 * max(rest.max(initial=0), 1e-3))
    fig.axes[0].legend(frameon=False, fontsize=9, labelcolor=figure.INK)
    return fig
