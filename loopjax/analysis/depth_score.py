"""The depth score: how deep the layers lie that later tokens depend on (Csordas et al. 2025).

A layer s is erased before a boundary t, and the distributions of the next token are compared from
t on. With D_p(s) the largest L2 distance over tokens and boundaries of prompt p,

    m(s) = mean over prompts of D_p(s)        score = sum_s s m(s) / sum_s m(s)

in layers, 0 .. E - 1. m(E - 1) is 0, since nothing after the last layer reads earlier tokens.
"""

import dataclasses
import random
from collections.abc import Sequence

import numpy as np

from loopjax import figure
from loopjax.analysis.effects import erase
from loopjax.errors import UserError
from loopjax.evals.language_model import LanguageModel

BOUNDARIES, SEED, STEP = 4, 12345, 4


@dataclasses.dataclass(frozen=True)
class DepthScore:
    """Which layers the answers depend on.

    Attributes:
      score: the expected layer.
      effect: m(s), [E].
      groups: the score of each group of prompts (levels, hops), by name.
      prompts, skipped: how many counted, how many have an answer too short for a boundary.
    """

    score: float
    effect: np.ndarray
    groups: dict[str, float]
    prompts: int
    skipped: int


def expected_layer(effect) -> float:
    """sum_s s m(s) / sum_s m(s); not a number where no layer has an effect."""
    total = np.sum(effect)
    return float(np.arange(len(effect)) @ effect / total) if total else float("nan")


def draw_boundaries(cases: Sequence[tuple[Sequence[int], int, str]], one: bool) -> list[list[int]]:
    """The boundaries of each (tokens, answer start t0, group).

    With `one` it is t0 (MQuAKE), none where the answer was cut off. Else up to 4 of t0, t0 + 4, ... that leave more than 4 tokens of
    the answer, drawn from one seed (MATH); none where the answer has at most 4 tokens.
    """
    rng, drawn = random.Random(SEED), []
    for tokens, start, _ in cases:
        T = len(tokens)
        places = range(start, min(start + 1, T)) if one else range(start, T - STEP, STEP)
        drawn.append(sorted(rng.sample(places, min(BOUNDARIES, len(places)))))
    return drawn


def depth_score(
    lm: LanguageModel,
    cases: Sequence[tuple[Sequence[int], int, str]],
    *,
    one: bool = False,
    progress=None,
) -> DepthScore:
    """The score over (tokens, answer start, group) of prompts with answers.

    Args:
      one: whether the boundary is the start of the answer alone.

    Raises UserError when no prompt has a boundary.
    """
    effects: dict[str, list] = {}
    skipped = 0
    for (tokens, _, group), cuts in zip(cases, draw_boundaries(cases, one), strict=True):
        if cuts:
            effects.setdefault(str(group), []).append(erase(lm, tokens, cuts)[1])
        skipped += not cuts
        if progress:
            progress()
    if not effects:
        least = "a token" if one else f"more than {STEP} tokens"
        raise UserError(f"none of the {len(cases)} answers has {least} within the context")
    effect = np.mean([e for group in effects.values() for e in group], axis=0)
    groups = {name: expected_layer(np.mean(found, axis=0)) for name, found in effects.items()}
    return DepthScore(expected_layer(effect), effect, groups, len(cases) - skipped, skipped)


def plot(results: dict[str, DepthScore]):
    """m(s) by layer, and the score as a line."""
    fig = figure.new(7.5, 4.2)
    axis = fig.subplots()
    for colour, (label, result) in zip(figure.COLOURS * 9, results.items(), strict=False):
        text = f"{label}: {result.score:.2f}"
        axis.plot(range(len(result.effect)), result.effect, ".-", color=colour, label=text)
        axis.axvline(result.score, color=colour, linestyle="--", linewidth=1)
    figure.plain(axis)
    axis.set_xlabel("executed layer that is erased", color=figure.INK)
    axis.set_ylabel("change of later distributions (L2)", color=figure.INK)
    axis.legend(frameon=False, fontsize=9, labelcolor=figure.INK)
    return fig
