"""The depth score: how deep the layers are that later tokens depend on (Csordas et al. 2025).

A layer s is ablated before a boundary t, and the next-token distributions are compared from t on.
With D_p(s) the largest L2 distance over tokens and boundaries of prompt p,

    m(s) = mean over prompts of D_p(s)        score = sum_s s m(s) / sum_s m(s)

in layers, 0 .. E - 1. m(E - 1) is 0, since nothing after the last layer reads earlier tokens.
"""

import dataclasses
import random
from collections.abc import Sequence

import numpy as np

from loopjax.analysis.effects import ablate
from loopjax.errors import UserError
from loopjax.lm.loaded_model import LanguageModel

BOUNDARIES, SEED, STEP = 4, 12345, 4


@dataclasses.dataclass(frozen=True)
class DepthScore:
    """Which layers the answers depend on.

    Attributes:
      score: the expected layer.
      effect: m(s), [E].
      groups: score of each group of prompts (levels, hops), by name.
      prompts, skipped: number of prompts measured, and of those whose answer is too short.
    """

    score: float
    effect: np.ndarray
    groups: dict[str, float]
    prompts: int
    skipped: int


def expected_layer(effect) -> float:
    """sum_s s m(s) / sum_s m(s); NaN if no layer has an effect."""
    total = np.sum(effect)
    return float(np.arange(len(effect)) @ effect / total) if total else float("nan")


def draw_boundaries(cases: Sequence[tuple[Sequence[int], int, str]], one: bool) -> list[list[int]]:
    """The boundaries of each (tokens, answer start t0, group).

    With `one`, t0 alone (MQuAKE), or no boundary if the answer was cut off. Otherwise up to 4 of
    t0, t0 + 4, ... that leave more than 4 tokens of the answer, drawn from one seed (MATH); no
    boundary if the answer has at most 4 tokens.
    """
    rng = random.Random(SEED)
    drawn = []
    for tokens, start, _ in cases:
        T = len(tokens)
        places = range(start, min(start + 1, T)) if one else range(start, T - STEP, STEP)
        drawn.append(sorted(rng.sample(places, min(BOUNDARIES, len(places)))))
    return drawn


def run(lm, cases, options, each) -> DepthScore:
    """`loopjax analyze --what depth_score`."""
    return depth_score(lm, cases, one=options["one_boundary"], each=each)


def depth_score(
    lm: LanguageModel,
    cases: Sequence[tuple[Sequence[int], int, str]],
    *,
    one: bool = False,
    each=map,
) -> DepthScore:
    """The score over (tokens, answer start, group) of prompts with answers.

    Args:
      one: whether the start of the answer is the only boundary.
      each: `store.Parts.each`, to resume.

    Raises UserError if no prompt has a boundary.
    """
    cut = zip(cases, draw_boundaries(cases, one), strict=True)
    todo = [(tokens, cuts, str(group)) for (tokens, _, group), cuts in cut if cuts]
    if not todo:
        least = "a token" if one else f"more than {STEP} tokens"
        raise UserError(f"none of the {len(cases)} answers has {least} within the context")

    def of_prompt(case):
        tokens, cuts, _ = case
        return {"output": ablate(lm, tokens, cuts)[1]}

    effects: dict[str, list] = {}
    for (_, _, group), part in zip(todo, each(of_prompt, todo), strict=True):
        effects.setdefault(group, []).append(part["output"])
    effect = np.mean([e for group in effects.values() for e in group], axis=0)
    groups = {name: expected_layer(np.mean(rows, axis=0)) for name, rows in effects.items()}
    return DepthScore(expected_layer(effect), effect, groups, len(todo), len(cases) - len(todo))
