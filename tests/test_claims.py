"""Verdicts of experiments: intervals hold the true effect as often as they say, and decide nothing by themselves."""

import math
import pathlib
import sys

import numpy as np
import pytest

from loopjax import intervals

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "experiments"))

import claims


def _draw(rng, seeds, items, *, mean=0.0, by_seed=0.03, by_item=0.3, rest=0.3):
    return (
        mean
        + by_seed * rng.standard_normal((seeds, 1))
        + by_item * rng.standard_normal((1, items))
        + rest * rng.standard_normal((seeds, items))
    )


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("noise", [{"by_seed": 0.05}, {"by_seed": 0.0}, {"by_item": 0.0}])
def test_an_interval_of_few_seeds_holds_the_effect_95_times_in_100(seeds, noise):
    rng = np.random.default_rng(1)
    found = [claims.effect(_draw(rng, seeds, 60, mean=0.1, **noise)) for _ in range(150)]
    inside = np.mean([one.low <= 0.1 <= one.high for one in found])
    assert inside >= 0.90  # at 95%, fewer than 135 of 150 have a probability of 0.4%


def test_one_value_per_seed_has_the_interval_of_student():
    values = [0.02, 0.05, 0.03, 0.08]
    ours, theirs = claims.effect(values), intervals.mean_of(values)
    assert ours.mean == pytest.approx(theirs.mean) and ours.items == 0
    assert ours.half == pytest.approx(theirs.half, rel=0.06)  # resampled 2000 times


def test_more_seeds_do_not_remove_the_noise_of_the_items():
    rng = np.random.default_rng(2)
    one = claims.effect(_draw(rng, 6, 100, by_seed=0.05))
    assert one.item_deviation == pytest.approx(math.sqrt((0.3**2 + 0.3**2 / 6) / 100), rel=0.25)
    assert one.half_with(6) == pytest.approx(one.half, rel=1e-6)
    assert one.half_with(1000) == pytest.approx(1.96 * one.item_deviation, rel=0.02)


def _claim(low, high, least=0.02, **kwargs):
    middle, half = (low + high) / 2, (high - low) / 2
    deviation = half / intervals.student_t(3) * 2  # as of four seeds
    return claims.Claim("", "", claims.Effect(middle, half, 4, 0, deviation, 0.0), least, **kwargs)


@pytest.mark.parametrize(
    "low, high, verdict",
    [
        (0.001, 0.05, claims.REPRODUCED),
        (0.001, 0.015, claims.PARTLY),
        (-0.01, 0.015, claims.NOT_REPRODUCED),
        (-0.05, -0.01, claims.NOT_REPRODUCED),
        (-0.01, 0.05, claims.UNDECIDED),
    ],
)
def test_the_verdict_is_where_the_interval_lies(low, high, verdict):
    assert _claim(low, high).verdict == verdict


def test_what_a_claim_needs_and_does_not_find_makes_it_undecided():
    blocked = claims.missing(claims.effect([0.01, -0.01, 0.0]), "a loop with more passes")
    claim = _claim(-0.05, -0.01, blocked=blocked)
    assert claim.verdict == claims.UNDECIDED
    assert claim.reason.startswith("Not decidable here: a loop with more passes has +0.0 [")
    assert not claims.missing(claims.effect([0.1, 0.11, 0.12]), "")


@pytest.mark.parametrize(
    "low, high, verdict",
    [
        (-0.015, 0.01, claims.REPRODUCED),
        (-0.015, -0.01, claims.REPRODUCED),
        (-0.05, -0.03, claims.NOT_REPRODUCED),
        (-0.05, 0.01, claims.UNDECIDED),
    ],
)
def test_a_claim_of_no_loss_is_true_above_a_negative_limit(low, high, verdict):
    assert _claim(low, high, least=-0.02).verdict == verdict
    assert _claim(low, high, least=-0.02).row()["looked for"] == "above -2.0 points"


def test_the_proposed_number_of_seeds_decides_and_one_less_does_not():
    claim = _claim(-0.03, 0.05)
    n = claim.seeds_needed
    assert claim.effect.half_with(n) < 0.01 <= claim.effect.half_with(n - 1)
    assert f"about {n} seeds" in claim.reason
    noisy = claims.Effect(0.01, 0.05, 4, 100, 0.01, 0.02)
    assert claims.Claim("", "", noisy, 0.02).seeds_needed is None
    assert "more items" in claims.Claim("", "", noisy, 0.02).reason
    at_the_limit = claims.Effect(-0.02, 0.05, 4, 0, 0.01, 0.0)
    assert "over 1,000 seeds would decide" in claims.Claim("", "", at_the_limit, -0.02).reason


def test_one_seed_decides_nothing():
    claim = claims.Claim("", "", claims.effect([[1.0, 1.0]]), 0.02)
    assert claim.verdict == claims.UNDECIDED and claim.row()["here"] == "+100.0 [one seed] points"
    assert claim.reason == "One seed has no interval."


@pytest.mark.parametrize("values", [[], [[]], [float("nan"), 1.0], np.zeros((2, 2, 2))])
def test_differences_that_are_none_are_refused(values):
    with pytest.raises(ValueError, match="seeds, items"):
        claims.effect(values)


def test_claims_together():
    reproduced, refused, open_ = _claim(0.01, 0.05), _claim(-0.05, -0.01), _claim(-0.01, 0.05)
    assert claims.together([reproduced]) == claims.REPRODUCED
    assert claims.together([reproduced, open_]) == claims.PARTLY
    assert claims.together([refused, open_]) == claims.UNDECIDED
    assert claims.together([refused, refused]) == claims.NOT_REPRODUCED
