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

from loopjax.analysis.effects import erase
from loopjax.errors import UserError
from loopjax.lm.loaded_model import LanguageModel

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
    each=map,
) -> DepthScore:
    """The score over (tokens, answer start, group) of prompts with answers.

    Args:
      one: whether the boundary is the start of the answer alone.
      each: `results.Parts.each`, to keep what is done.

    Raises UserError when no prompt has a boundary.
    """
    cut = zip(cases, draw_boundaries(cases, one), strict=True)
    todo = [(tokens, cuts, str(group)) for (tokens, _, group), cuts in cut if cuts]
    if not todo:
        least = "a token" if one else f"more than {STEP} tokens"
        raise UserError(f"none of the {len(cases)} answers has {least} within the context")

    def of_prompt(case):
        tokens, cuts, _ = case
        return {"output": erase(lm, tokens, cuts)[1]}

    effects: dict[str, list] = {}
    for (_, _, group), found in zip(todo, each(of_prompt, todo), strict=True):
        effects.setdefault(group, []).append(found["output"])
    effect = np.mean([e for group in effects.values() for e in group], axis=0)
    groups = {name: expected_layer(np.mean(found, axis=0)) for name, found in effects.items()}
    return DepthScore(expected_layer(effect), effect, groups, len(todo), len(cases) - len(todo))
