import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from loopjax import curriculum
from loopjax.config import default
from loopjax.errors import UserError
from loopjax.optim import decay_mask, trapezoid


def describe(config):
    return [(p.start, p.stop, str(p.plan), p.operator) for p in curriculum.build(config)]


def test_the_papers_growth_is_six_stages_before_the_cooldown():
    config = default()
    config.growth.operator = "lidas"
    ends = np.cumsum([8095, 16191, 24286, 32381, 40476]).tolist()
    starts, ends = [0, *ends], [*ends, 200_000]
    plans, operators = ["4", "8", "12", "16", "20", "24"], ["init", *["lidas"] * 5]
    assert describe(config) == list(zip(starts, ends, plans, operators, strict=True))
    assert curriculum.build(config)[2].order == (*range(6), *range(2, 8))


def test_the_cooldown_may_change_the_data_the_plan_or_both():
    config = default()
    assert describe(config) == [(0, 200_000, "24", "init")]
    config.cooldown.mixture = {"stdlib": 0.8, "math": 0.2}
    assert describe(config) == [(0, 170_000, "24", "init"), (170_000, 200_000, "24", "data")]
    config.cooldown.depth = "8-4x2-12"
    phases = curriculum.build(config)
    assert describe(config)[1] == (170_000, 200_000, "8-4x2-12", "retrofit")
    assert phases[0].mixture == {"stdlib": 1.0}
    assert phases[1].mixture == {"math": 0.2, "stdlib": 0.8}


def test_growth_may_end_before_the_cooldown_begins():
    config = default()
    config.steps, config.depth, config.cooldown.steps = 100, "8", 20
    config.growth.update(operator="midas", steps=30, alpha=0.0)
    config.cooldown.depth = "2-4x2-2"
    assert describe(config) == [
        (0, 15, "4", "init"),
        (15, 80, "8", "midas"),
        (80, 100, "2-4x2-2", "retrofit"),
    ]


def test_a_weight_of_zero_leaves_a_source_out():
    config = default()
    config.mixture = {"stdlib": 0, "web": 2}
    assert curriculum.build(config)[0].mixture == {"web": 2.0}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"depth": "4x"}, "config.depth: invalid depth plan '4x'"),
        ({"steps": 0}, "config.steps=0 must be at least 1"),
        ({"cooldown.steps": 200_001}, "must lie within 0..config.steps"),
        ({"growth.operator": "gradual"}, "must be one of midas, lidas"),
        (
            {"growth.operator": "lidas", "growth.block": 5},
            "block=5 does not divide config.depth=24",
        ),
        ({"growth.operator": "lidas", "growth.block": 0}, "block=0 does not divide"),
        ({"growth.operator": "lidas", "growth.steps": 170_001}, "within 1..170000"),
        ({"growth.operator": "lidas", "growth.steps": 5}, "too few steps for 6 stages"),
        ({"growth.operator": "lidas", "depth": "4x6"}, "is looped"),
        ({"cooldown.depth": "8-4x2-8"}, "has 20 unique layers, but the stack"),
        ({"cooldown.depth": "8-4x2-12", "cooldown.steps": 0}, "cooldown.steps=0 must be positive"),
        ({"cooldown.depth": "8-4x2-12", "cooldown.steps": 200_000}, "leaves no step before"),
        ({"mixture": ConfigDict({"web": -1.0})}, "weights of at least 0"),
        ({"mixture": ConfigDict({"web": 0.0})}, "not all of them 0"),
        ({"cooldown.mixture": ConfigDict({"web": float("nan")})}, "config.cooldown.mixture="),
    ],
)
def test_a_curriculum_that_does_not_fit_is_refused(change, says):
    config = default()
    config.update_from_flattened_dict({k: v for k, v in change.items() if k != "mixture"})
    if "mixture" in change:
        config.mixture = change["mixture"]
    with pytest.raises(UserError) as error:
        curriculum.build(config)
    assert says in str(error.value)


def test_equal_pasts_are_equal_whatever_the_future():
    a, b = default(), default()
    b.cooldown.depth = "8-4x2-12"
    a, b = curriculum.build(a), curriculum.build(b)
    assert curriculum.past(a, 170_000) == curriculum.past(b, 170_000)
    assert curriculum.past(a, 170_001) != curriculum.past(b, 170_001)


def test_lineage_names_what_made_the_stack():
    config = default()
    config.growth.operator = "midas"
    phases = curriculum.build(config)
    events = curriculum.lineage(phases, 8096)
    assert [(e["step"], e["operator"], e["plan"]) for e in events] == [
        (0, "init", "4"),
        (8095, "midas", "8"),
    ]
    assert events[1]["order"] == [*range(4), *range(4)]
    assert len(curriculum.lineage(phases, 8095)) == 1  # grown at the start of the next update


def test_the_schedule_is_a_trapezoid_with_a_square_root_decay():
    lr = trapezoid(3e-3, steps=200_000, warmup_steps=2000, decay_steps=30_000)
    assert lr(0) == pytest.approx(3e-3 / 2000)
    assert lr(1999) == lr(100_000) == lr(170_000) == pytest.approx(3e-3)
    for t in (170_001, 180_000, 199_999):
        expected = 3e-3 * (1 - ((t - 170_000) / 30_000) ** 0.5)
        assert lr(t) == pytest.approx(expected, rel=1e-3)
    assert lr(200_000) == 0


def test_a_run_without_cooldown_does_not_decay():
    lr = trapezoid(1.0, steps=10, warmup_steps=0, decay_steps=0)
    np.testing.assert_array_equal([lr(t) for t in range(10)], 1.0)


def test_weight_decay_is_for_matrices_and_not_for_norm_scales():
    tree = {"embed": 0, "final_norm": 0, "layers": {"query": 0, "mlp_norm": jnp.zeros((3, 4))}}
    assert decay_mask(tree) == {
        "embed": True,
        "final_norm": False,
        "layers": {"query": True, "mlp_norm": False},
    }


def grown(**growth):
    config = default()
    config.steps, config.cooldown.steps, config.depth = 1000, 100, "24"
    config.growth.update({"operator": "lidas"} | growth)
    return curriculum.build(config)


def test_plans_name_the_stages_and_the_block_is_their_shorthand():
    assert grown(plans="6,12,18,24") == grown(block=6)
    unequal = grown(plans="4, 8,24", operator="gstack")
    assert [str(phase.plan) for phase in unequal] == ["4", "8", "24"]
    assert unequal[2].order == (*range(8),) * 3
    assert [phase.stop - phase.start for phase in unequal] == [150, 300, 550]  # PROP-1, cooldown


@pytest.mark.parametrize(
    ("growth", "sentence"),
    [
        ({"plans": "8,4,24"}, "config.growth.plans: plan 4 has fewer layers than plan 8"),
        ({"plans": "8,16"}, "growth.plans='8,16' must be .* the last of them config.depth='24'"),
        ({"plans": "24"}, "growth.plans='24' must be at least two plans"),
        ({"plans": "8,8,24"}, "has two stages of one plan in a row: 8, 8"),
        ({"plans": "8,x,24"}, "config.growth.plans: invalid depth plan 'x'"),
        ({"plans": "5,24"}, "config.growth.plans: block=19 does not divide the depth of 5"),
        (
            {"plans": "8,24", "operator": ""},
            "plan 24 has more layers .* a growth operator is needed",
        ),
        ({"plans": "12x2,24x1", "operator": ""}, "growth operator is needed"),
        ({"plans": "4x2,12-12"}, "the loop of plan 4x2 has no counterpart in plan 12-12"),
        ({"plans": "8-4,4-20"}, "a segment of plan 8-4 has fewer layers in plan 4-20"),
        ({"plans": "24x2,24"}, "config.growth.operator='lidas' must be empty"),
        ({"starts": "x"}, "config.growth.starts='x' must be steps or fractions"),
        ({"starts": "1.5"}, "config.growth.starts='1.5' must be steps or fractions"),
        ({"starts": "-5"}, "config.growth.starts='-5' must be steps or fractions"),
        ({"starts": "5,6"}, "must name the start of every stage but the first, 5 in all"),
        ({"starts": "9", "block": 12, "steps": 3}, "config.growth.steps=3 must be 0"),
        ({"starts": "0", "block": 12}, "the steps 0, which must ascend within 1..999"),
        ({"starts": "1000", "block": 12}, "the steps 1000, which must ascend within 1..999"),
        ({"starts": ".9,900,950", "block": 6}, "the steps 900, 900, 950, which must ascend"),
        ({"transform": "random"}, "config.growth.moments='copy' must be 'zero' or 'reset'"),
        (
            {"plans": "16,24", "operator": "gstack"},
            "added=8 must be a positive multiple of the depth",
        ),
        ({"transform": "zero"}, "config.growth.transform='zero' must be one of '', 'zero_output'"),
        ({"moments": "no"}, "growth.moments='no' must be one of 'copy', 'zero', 'reset'"),
        ({"transform": "noise", "noise": 0.0}, "config.growth.noise=0.0 must be positive"),
    ],
)
def test_impossible_growth_is_refused(growth, sentence):
    with pytest.raises(UserError, match=sentence):
        grown(**growth)


def test_a_phase_says_its_transform_and_moments_only_where_they_are_set():
    plain, changed = grown(block=12)[1], grown(block=12, transform="noise", moments="reset")[1]
    assert not {"transform", "noise", "moments", "rewarm_steps"} & plain.to_json().keys()
    assert changed.to_json().items() >= {"transform": "noise", "noise": 0.01}.items()
    events = curriculum.lineage([grown(block=12)[0], changed], 900)
    assert events[-1]["moments"] == "reset"
