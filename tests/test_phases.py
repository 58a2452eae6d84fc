"""Growth in all its forms: of loops, within a loop, in one step; moments and learning rate."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from loopjax import config as config_lib
from loopjax import config_saved, curriculum, growth, lineage, optim, resume, run, step
from loopjax.callbacks import Callback
from loopjax.checkpoint import load_params
from loopjax.depth import DepthPlan, lidas, midas, written
from loopjax.errors import UserError
from loopjax.files import read_rows
from loopjax.growth_schedule import grown
from loopjax.model_config import ModelConfig
from loopjax.report import findings
from loopjax.train import train

CFG = ModelConfig(
    vocab_size=40, d_model=16, d_ff=24, n_heads=4, n_kv_heads=2, init_depth=6, dtype="float32"
)


def phases_of(depth="24", steps=1000, cooldown=100, **growth_fields):
    config = config_lib.default()
    config.steps, config.cooldown.steps, config.depth = steps, cooldown, depth
    config.growth.update(growth_fields)
    return curriculum.build(config)


def describe(phases):
    return [(p.start, p.stop, str(p.plan), p.operator) for p in phases]


# --- Plans and orders --------------------------------------------------------------------------


def test_the_loop_count_grows_over_one_stack():
    phases = phases_of("2-2x4-2", plans="2-2x2-2,2-2x4-2", starts="0.75", rewarm_steps=40)
    assert describe(phases) == [(0, 750, "2-2x2-2", "init"), (750, 1000, "2-2x4-2", "loops")]
    assert phases[1].order is None and phases[1].rewarm_steps == 40 and not phases[0].rewarm_steps
    assert phases[1].to_json()["rewarm_steps"] == 40


def test_an_untied_core_is_copied_behind_itself_in_order():
    # Core layer j of the grown core is old core layer j mod 4; prelude and coda stay.
    order = grown("gstack", "2-4-2", "2-8-2")
    assert order == (0, 1, *(2 + j % 4 for j in range(8)), 6, 7)
    uneven = grown("gstack", "2-6-3", "2-12-3")
    assert uneven == (0, 1, *(2 + j % 6 for j in range(12)), 8, 9, 10)
    assert written("2-4-2") == ((2, 1), (4, 1), (2, 1)) and str(DepthPlan.parse("2-4-2")) == "8"


def test_a_tied_core_may_become_an_untied_one_that_computes_the_same():
    before, after = DepthPlan.parse("1-2x2-1"), DepthPlan.parse("1-4-1")
    assert grown("gstack", "1-2x2-1", "1-4-1") == before.order == (0, 1, 2, 1, 2, 3)
    assert after.n_effective == before.n_effective


def test_operators_act_within_the_segments_that_grow():
    assert grown("lidas", "4-4x2-1", "4-6x2-1") == (0, 1, 2, 3, *(4 + i for i in lidas(4, 2)), 8)
    assert grown("midas", "4-4x2-2", "6-4x2-4") == (*midas(4, 2), 4, 5, 6, 7, *(8, 9, 8, 9))
    # Written otherwise, on the whole stack.
    assert grown("lidas", "8", "2-8x2-2") == lidas(8, 4)
    assert grown("stack", "4x3", "8x3") == (0, 1, 2, 3) * 2
    assert grown("", "2-2x2-2", "2-2x4-2") is None


def test_one_stage_may_grow_to_full_depth_at_once():
    phases = phases_of("12", operator="gstack", plans="1,12", starts="0.8")
    assert describe(phases) == [(0, 800, "1", "init"), (800, 1000, "12", "gstack")]
    assert phases[1].order == (0,) * 12


def test_growth_of_loops_and_of_layers_alternates():
    plans = "1-1x2-1,1-1x4-1,1-2x4-1"
    phases = phases_of("1-2x4-1", plans=plans, operator="stack", starts="300,600", moments="zero")
    assert [p.operator for p in phases] == ["init", "loops", "stack"]
    assert [p.moments for p in phases] == ["copy", "copy", "zero"]
    assert phases[2].order == (0, 1, 1, 2)


def test_stages_without_starts_follow_prop():
    phases = phases_of("4x4", plans="4,4x2,4x4", alpha=1.0)
    assert [p.stop - p.start for p in phases] == [150, 300, 450 + 100]


def test_growth_during_the_cooldown_needs_a_cooldown_that_changes_nothing():
    fields = {"plans": "4x2,4x4", "starts": "0.95"}
    assert describe(phases_of("4x4", **fields))[1] == (950, 1000, "4x4", "loops")
    config = config_lib.default()
    config.steps, config.cooldown.steps, config.depth = 1000, 100, "4x4"
    config.growth.update(fields)
    config.cooldown.depth = "4x6"
    with pytest.raises(UserError, match="no step between the last growth step, 950, and"):
        curriculum.build(config)


def test_lineage_says_how_loops_grew():
    phases = phases_of("4x4", plans="4x2,4x4", starts="500", rewarm_steps=7)
    events = curriculum.lineage(phases, 900)
    assert events[1] == {
        "step": 500, "operator": "loops", "plan": "4x4", "order": None, "rewarm_steps": 7,
    }  # fmt: skip
    assert len(lineage.stages(events)) == 1
    assert [event["plan"] for event in lineage.loops(events)] == ["4x2", "4x4"]
    assert not lineage.loops(events[:1])
    assert len(curriculum.lineage(phases, 500)) == 1


def test_a_saved_config_with_the_old_name_of_plans_is_the_same_run():
    config = config_lib.default()
    config.growth.update(operator="lidas", plans="8,16,24")
    old = json.loads(json.dumps(config.to_dict()))
    old["growth"]["depths"] = old["growth"].pop("plans")
    for name in ("starts", "rewarm_steps"):
        del old["growth"][name]
    restored = config_saved.from_saved(old)
    assert curriculum.build(restored) == curriculum.build(config)
    assert not config_saved.contradictions(old, config.to_dict())
    assert config_lib.unknown_field(config, "growth.depths").endswith("use config.growth.plans")


def test_the_report_says_how_loops_and_layers_grew():
    def said(**fields):
        phases = phases_of(**fields)
        events = curriculum.lineage(phases, 1000)
        model = types.SimpleNamespace(events=events, stages=lineage.stages(events))
        entry = types.SimpleNamespace(own=True, model=model)
        family = types.SimpleNamespace(label="M", entries=[entry])
        return findings.lineage(types.SimpleNamespace(families=[family]))

    loops = {"depth": "4x4", "plans": "4x2,4x3,4x4", "starts": "500,600"}
    run = "run by 4x2, from step 500 on by 4x3, from step 600 on by 4x4"
    assert said(**loops) == [f"M: one stack, {run}."]
    both = {"depth": "2x3", "plans": "1x2,2x2,2x3", "operator": "stack", "starts": "500,600"}
    run = "run by 2x2, from step 600 on by 2x3"
    assert said(**both) == [f"M: 1 → 2 layers by stack, at step 500, {run}."]
    assert said(depth="4x4") == ["M: one stack from the first step on."]


# --- Learning rate -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", optim.SCHEDULES)
def test_the_rate_rises_again_after_each_growth_step(name):
    config = config_lib.default()
    config.update(steps=60, depth="4x4", warmup_steps=5, learning_rate=0.3, schedule=name)
    config.cooldown.steps = 20
    plain = optim.make_optimizer(config)[1]
    config.growth.update(plans="4,4x2,4x4", starts="20,28", rewarm_steps=10)
    rate = optim.make_optimizer(config)[1]
    for t in range(60):
        since = next((t - start for start in (28, 20) if t >= start), None)
        factor = 1.0 if since is None else min(1.0, (since + 1) / 10)
        assert float(rate(t)) == pytest.approx(factor * float(plain(t)), rel=1e-6), t


# --- New layers and their moments --------------------------------------------------------------


def state_of(optimizer, n_layers=4):
    state = step.init_state(CFG, n_layers, optimizer, jax.random.key(0))
    gradient = jax.tree.map(jnp.ones_like, state.params)
    _, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    return state.replace(opt_state=opt_state)


def optimizer_of(name):
    config = config_lib.default()
    config.optimizer.name = name
    return optim.make_optimizer(config)[0]


def phase_of(**fields):
    order = grown("gstack", "1-2-1", "1-4-1")
    return curriculum.Phase(5, 9, DepthPlan.parse("6"), "gstack", order, {}, **fields)


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_zero_clears_the_moments_of_the_new_layers_and_nothing_else(name):
    optimizer = optimizer_of(name)
    state = state_of(optimizer)
    grown_by = {
        moments: growth.grow(
            jax.tree.map(jnp.copy, state), phase_of(moments=moments), optimizer, 0, CFG
        )
        for moments in ("copy", "zero")
    }
    new, cleared = np.array([0, 0, 0, 1, 1, 0], bool), 0
    copied = jax.tree_util.tree_leaves_with_path(grown_by["copy"])
    for (path, before), after in zip(copied, jax.tree.leaves(grown_by["zero"]), strict=True):
        stacked = any(getattr(key, "key", "") == "layers" for key in path)
        if stacked and getattr(path[0], "name", "") == "opt_state":
            assert not np.asarray(after)[new].any() and np.asarray(before)[new].any()
            np.testing.assert_array_equal(after[~new], before[~new])
            cleared += 1
        else:
            np.testing.assert_array_equal(after, before)
    assert cleared >= 9


def test_random_layers_are_those_of_a_new_model_and_the_old_ones_stay():
    optimizer = optimizer_of("adamw")
    state = state_of(optimizer)
    phase = phase_of(transform="random", moments="zero")
    key = jax.random.fold_in(jax.random.key(3), 5)
    made = growth.grow(jax.tree.map(jnp.copy, state), phase, optimizer, 3, CFG).params
    fresh = jax.jit(lambda key: step.init_state(CFG, 6, optimizer, key))(key).params["layers"]
    for name, leaf in made["layers"].items():
        for i, old in enumerate((0, 1, 2, None, None, 3)):
            expected = fresh[name][i] if old is None else state.params["layers"][name][old]
            np.testing.assert_array_equal(leaf[i], expected)
    np.testing.assert_array_equal(made["embed"], state.params["embed"])


# --- Whole runs --------------------------------------------------------------------------------

RUNS = {
    "loops, then layers of the loop": (
        "1-2x3-1",
        {"plans": "1-1x2-1,1-1x3-1,1-2x3-1", "starts": "0.5,8", "operator": "stack"},
    ),
    "once, to random layers": (
        "1-3-1",
        {"plans": "1-1-1,1-3-1", "starts": "6", "operator": "gstack", "transform": "random"},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", RUNS)
def test_a_run_killed_around_a_growth_step_ends_as_if_it_had_not_been(kind, tiny_config, tmp_path):
    depth, fields = RUNS[kind]
    tiny_config.depth = depth
    tiny_config.growth.update({"moments": "zero", "rewarm_steps": 2} | fields)
    tiny_config.mesh.update(data=2, fsdp=2, tensor=2)
    tiny_config.eval_batches = 0
    train(tiny_config, tmp_path / "whole")
    for stop in (7, 9, 12):  # from a checkpoint before a growth step, and from one after it
        train_until(tiny_config, tmp_path / "parts", stop)
    whole, parts = (read_rows(tmp_path / n / "metrics.jsonl") for n in ("whole", "parts"))
    assert [row["loss"] for row in whole] == [row["loss"] for row in parts]
    (a, meta), (b, _) = (load_params(tmp_path / n) for n in ("whole", "parts"))
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert meta["plan"] == str(DepthPlan.parse(depth))
    placed = run.plan_run(tiny_config)
    rates = [float(placed.schedule(t)) for t in range(12)]
    np.testing.assert_allclose([row["learning_rate"] for row in whole], rates, rtol=1e-6)
    assert rates[6] == pytest.approx(rates[5] / 2)


def train_until(config, workdir, stop):
    """Trains, and is stopped as if it had been killed after a step."""

    class Killed(Exception):
        pass

    class Killer(Callback):
        def on_step(self, row):
            if row["step"] == stop:
                raise Killed

    if stop >= config.steps:
        train(config, workdir)
        return
    with pytest.raises(Killed):
        train(config, workdir, callbacks=[Killer()])


@pytest.mark.slow
def test_a_zeroed_step_from_one_layer_to_many_keeps_the_loss(tiny_config, tmp_path):
    tiny_config.depth = "4"
    tiny_config.growth.update(operator="gstack", plans="1,4", starts="0.5", transform="zero_output")
    tiny_config.learning_rate, tiny_config.model.init_depth = 1e-6, 4
    tiny_config.eval_batches = tiny_config.checkpoint_every = 0
    grown_rows = losses(tiny_config, tmp_path / "grown")
    tiny_config.depth, tiny_config.growth.operator, tiny_config.growth.plans = "1", "", ""
    np.testing.assert_allclose(grown_rows, losses(tiny_config, tmp_path / "one"), atol=1e-3)


def losses(config, workdir):
    train(config, workdir)
    return [row["loss"] for row in read_rows(workdir / "metrics.jsonl")]


@pytest.mark.slow
def test_a_branch_has_the_growth_steps_and_the_rewarming_of_its_past(tiny_config, tmp_path):
    tiny_config.depth, tiny_config.growth.operator = "1x4", ""
    tiny_config.growth.update(plans="1x2,1x4", starts="4", rewarm_steps=2)
    train(tiny_config, tmp_path / "run")
    tiny_config.init_from = f"{tmp_path / 'run'}@8"
    for change, says in (
        ({"growth.rewarm_steps": 3}, "differ"),
        ({"growth.starts": "5"}, "depth, growth or mixture differ"),
        ({"growth.plans": "1x3,1x4"}, "depth, growth or mixture differ"),
    ):
        config = config_saved.from_saved(tiny_config.to_dict())
        config.update_from_flattened_dict(change)
        planned = run.plan_run(config)
        with pytest.raises(UserError, match=says):
            resume.check(planned, resume.find(config))
    tiny_config.growth.update(plans="1x2,1x4,1x8", starts="4,8")
    tiny_config.depth, tiny_config.cooldown.steps = "1x8", 2
    planned = run.plan_run(tiny_config)
    resume.check(planned, resume.find(tiny_config))
    assert [p.start for p in planned.phases] == [0, 4, 8, 10]
