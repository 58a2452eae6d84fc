"""Residual norms, and the size and direction of the sublayers' outputs (Kapl et al. 2026, Fig. 3).

Every value is a ratio at each token, in float32, averaged over the tokens of all prompts; the
denominator is the norm of the residual that the sublayer reads.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from loopjax.analysis.activations import activations
from loopjax.lm.batching import padded
from loopjax.lm.loaded_model import LanguageModel

LEAST = 1e-6  # smallest denominator


@dataclasses.dataclass(frozen=True)
class Norms:
    """Means over tokens, and the largest values.

    Attributes:
      residual: ||h_l||, l = 0..E; [E + 1].
      attention, mlp, layer: ||a_l|| / ||h_l||, ||m_l|| / ||h_l + a_l||, ||c_l|| / ||h_l||; [E].
      attention_cosine, mlp_cosine, layer_cosine: cosines of the same pairs; [E].
      next_cosine: cos(h_{l+1}, h_l); [E].
      largest: largest value of each norm and ratio, by name.
      residual_after_first: ||h_l|| without the first token of each prompt, whose norm dominates.
      tokens: number of tokens.
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


def run(lm, cases, options, each) -> Norms:
    """`loopjax analyze --what norms`."""
    return norms(lm, [tokens for tokens, _, _ in cases], each)


def norms(lm: LanguageModel, prompts: Sequence[Sequence[int]], each=map) -> Norms:
    """The norms over prompts of token ids; `each` is `store.Parts.each`, to resume."""
    sums, largest = {}, {}
    tokens = sum(map(len, prompts))
    measure = _program(lm.cfg, lm.plan)

    def of_prompt(prompt):
        with jax.set_mesh(lm.mesh):  # the attention kernel of a TPU runs on each device of a mesh
            return jax.device_get(measure(lm.params, padded(prompt), len(prompt)))

    for part in each(of_prompt, prompts):
        for name, (total, most) in part.items():
            sums[name] = sums.get(name, 0.0) + np.float64(total)
            largest[name] = np.maximum(largest.get(name, 0.0), most)
    means = {name: total / tokens for name, total in sums.items()}
    means["residual_after_first"] = sums["residual_after_first"] / (tokens - len(prompts))
    keep = ("residual", "attention", "mlp", "layer")
    return Norms(**means, largest={name: largest[name] for name in keep}, tokens=tokens)


@functools.lru_cache(maxsize=16)
def _program(cfg, plan):
    return jax.jit(functools.partial(_measure, cfg=cfg, plan=plan))


def _measure(params, tokens_1T, length, *, cfg, plan) -> dict:
    """{name: (sum over the tokens, largest)} of one prompt, [2, E] or [2, E + 1]."""
    acts = activations(params, tokens_1T, cfg, plan)
    h, a, m = (x[:, 0] for x in (acts.residual[:-1], acts.attention, acts.mlp))  # [E, T, D]
    position = jnp.arange(tokens_1T.shape[1])

    def over(values_T, first=0):
        values_T = jnp.where((position >= first) & (position < length), values_T, 0.0)
        return jnp.stack([values_T.sum(-1), values_T.max(-1)])

    norm = functools.partial(jnp.linalg.norm, axis=-1)
    residual_T = norm(acts.residual[:, 0])
    pairs = {"attention": (a, h), "mlp": (m, h + a), "layer": (a + m, h)}
    out = {name: over(norm(x) / jnp.maximum(norm(y), LEAST)) for name, (x, y) in pairs.items()}
    pairs["next"] = (acts.residual[1:, 0], h)
    for name, (x, y) in pairs.items():
        product = jnp.maximum(norm(x) * norm(y), LEAST**2)
        out[f"{name}_cosine"] = over(jnp.sum(x * y, -1) / product)
    out["residual"], out["residual_after_first"] = over(residual_T), over(residual_T, 1)
    return out
