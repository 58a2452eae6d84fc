"""A cycle over depth, as a number."""

import numpy as np
import pytest

from loopjax.analysis.periodicity import Block, block_of, column_means, cycle
from loopjax.depth import DepthPlan, lidas
from loopjax.lineage import Stage


def test_a_curve_that_repeats_with_the_block_is_a_cycle_whatever_its_trend():
    values = np.linspace(5, 1, 24)
    values[2::4] += 1
    found = cycle(values, Block(4))
    assert found.strongest == 2 and found.layers == 20
    assert found.contrast == pytest.approx(1) and found.share == pytest.approx(1)
    np.testing.assert_allclose(found.position, [-0.25, -0.25, 0.75, -0.25], atol=1e-12)
    assert cycle(values[1:], Block(4)).strongest == 1
    assert cycle(values, Block(4, start=1)).strongest == 1


def test_a_trend_alone_is_no_cycle():
    found = cycle(np.linspace(5, 1, 24), Block(4))
    assert found.share == 0 and found.contrast == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("n", "block"), [(24, 4), (12, 4), (12, 3)])
def test_independent_values_share_what_chance_gives(n, block):
    rng = np.random.default_rng(0)
    found = [cycle(rng.normal(size=n), Block(block)) for _ in range(1000)]
    assert np.mean([f.share for f in found]) == pytest.approx(found[0].by_chance, abs=0.03)


def test_a_first_value_that_is_none_does_not_count():
    values = np.arange(12.0)
    values[2::4] += 1
    values[0] = np.nan
    assert cycle(values, Block(4)).layers == 7
    assert cycle(values, Block(4)).share == pytest.approx(1)


def test_too_few_layers_give_no_number():
    assert cycle(np.arange(8.0), Block(4)) is None
    assert cycle(np.arange(24.0), Block(1)) is None


def test_the_block_is_what_the_plan_repeats_else_what_growth_added():
    grown = [Stage(0, tuple(range(4))), Stage(9, lidas(4, 4), "lidas")]
    alone = [Stage(0, tuple(range(12)))]
    assert block_of(alone, DepthPlan.parse("2-3x2-7")) == Block(3, 2)
    assert block_of(grown, DepthPlan.parse("8")) == Block(4)
    assert block_of(grown, DepthPlan.parse("2-3x2-3")) == Block(3, 2)
    assert block_of(alone, DepthPlan.parse("12")) is None
    tied = [Stage(0, tuple(range(4))), Stage(9, (0, 1), "tie")]
    assert block_of(tied, DepthPlan.parse("2")) is None


def test_a_column_is_averaged_over_the_layers_before_it():
    found = column_means([[9, 1, 2], [9, 9, 4], [9, 9, 9]])
    assert np.isnan(found[0]) and found[1:].tolist() == [1, 3]
