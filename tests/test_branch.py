"""Runs that begin at a checkpoint: weights, moments, operators."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopjax import checkpoint, curriculum, lineage, model, resume, surgery
from loopjax.depth import DepthPlan, lidas, restack
from loopjax.errors import UserError
from loopjax.files import read_rows
from loopjax.run import on_mesh, plan_run
from loopjax.train import train
from tests.conftest import tiny_run


def looped(**changes):
    """A run of 6 steps of plan 1-1x2-1, without growth."""
    config = tiny_run()
    config.update(steps=6, depth="1-1x2-1", eval_batches=0, checkpoint_every=3)
    config.growth.operator = ""
    config.cooldown.mixture = {}
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("source")
    train(looped(), workdir)
    return workdir


def begun(config):
    """(run, source, the state that it begins with)."""
    run = plan_run(config)
    found = resume.find(config)
    resume.check(run, found)
    with on_mesh(run):
        return run, found, resume.initial_state(run, found)


def logits(params, cfg, plan):
    tokens = np.arange(36).reshape(4, 9) % 40
    return np.asarray(model.forward(jax.device_get(params), tokens, cfg, DepthPlan.parse(plan)))


@pytest.mark.parametrize("init", ["weights", "moments"])
def test_untied_layers_compute_what_the_loop_did(source, init):
    config = looped(init_from=str(source), init=init, init_operator="untie", depth="4")
    run, _, state = begun(config)
    params, meta = checkpoint.load_params(source)
    cfg = model.ModelConfig(**meta["model"])
    assert surgery.n_layers(state.params) == 4 and int(state.step) == 0
    np.testing.assert_allclose(
        logits(state.params, run.cfg, "4"), logits(params, cfg, "1-1x2-1"), rtol=1e-5, atol=1e-6
    )


def test_moments_go_along_by_the_order_and_the_schedule_begins_anew(source):
    config = looped(init_from=str(source), init="moments", init_operator="lidas", depth="4")
    _, _, state = begun(config)
    state_only = looped(init_from=str(source), steps=6)
    _, _, old = begun(state_only)
    adam, old_adam = state.opt_state[1][0], old.opt_state[1][0]
    for moment, before in ((adam.mu, old_adam.mu), (adam.nu, old_adam.nu)):
        for name, leaf in moment["layers"].items():
            np.testing.assert_array_equal(leaf, before["layers"][name][np.array(lidas(3, 1))])
        np.testing.assert_array_equal(moment["embed"], before["embed"])
    assert int(adam.count) == int(old_adam.count) == 6
    assert int(state.opt_state[1][2].count) == 0 and int(old.opt_state[1][2].count) == 6


def test_weights_come_with_a_fresh_optimizer(source):
    _, _, state = begun(looped(init_from=str(source), init="weights", seed=3))
    moments = jax.tree.leaves(state.opt_state)
    assert all(not np.any(leaf) for leaf in moments)
    for ours, theirs in zip(
        jax.tree.leaves(state.params),
        jax.tree.leaves(checkpoint.load_params(source)[0]),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_a_run_from_weights_is_its_own_run_and_goes_on_without_its_source(source, tmp_path):
    """Other data, seed, batch and length; its lineage goes on from that of the source."""
    moved = shutil.copytree(source, tmp_path / "source")
    config = looped(
        init_from=f"{moved}@3", init="weights", depth="1-1x3-1", seed=7, batch_size=16,
        mixture={"p_hop_2": 1.0}, steps=5, checkpoint_every=2, seq_len=7, **{"mesh.fsdp": 2},
    )  # fmt: skip
    whole = train(config, tmp_path / "whole")
    rows = read_rows(tmp_path / "whole" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert whole["plan"] == "1-1x3-1" and whole["flops_before"] > 0
    first = read_rows(source / "metrics.jsonl")
    assert whole["flops_before"] == first[2]["flops"]

    # A copy that was stopped at step 2, its source gone.
    shutil.copytree(tmp_path / "whole", tmp_path / "stopped")
    shutil.rmtree(tmp_path / "stopped/checkpoints/4")
    shutil.rmtree(tmp_path / "stopped/checkpoints/5")
    shutil.rmtree(moved)
    again = train(config, tmp_path / "stopped")
    keys = ("step", "loss", "grad_norm", "learning_rate")
    assert [[row[k] for k in keys] for row in read_rows(tmp_path / "stopped/metrics.jsonl")] == [
        [row[k] for k in keys] for row in rows
    ]
    assert again["flops_before"] == whole["flops_before"]
    for run in ("whole", "stopped"):
        _, meta = checkpoint.load_params(tmp_path / run)
        assert meta["branched_from"] == f"{moved}/checkpoints@3"
        assert meta["context"] == 9 and meta["config"]["seq_len"] == 7
        assert [(e["step"], e["operator"], e["plan"]) for e in meta["lineage"]] == [
            (0, "init", "1-1x2-1"), (0, "retrofit", "1-1x3-1"),
        ]  # fmt: skip


@pytest.mark.slow
def test_a_branch_of_a_branch_keeps_all_of_its_ancestors(source, tmp_path):
    """Untied, grown during the run, then a cooldown of that run: every layer has its ancestor."""
    config = looped(
        init_from=str(source), init="weights", init_operator="untie", depth="4", steps=6,
        checkpoint_every=1, **{"cooldown.steps": 2},
    )  # fmt: skip
    train(config, tmp_path / "untied")
    config.init_from = f"{tmp_path / 'untied'}@4"
    config.update(init="state", init_operator="")
    config.cooldown.update(depth="6", operator="lidas")
    train(config, tmp_path / "grown")
    _, meta = checkpoint.load_params(tmp_path / "grown")
    assert [(e["operator"], e["order"]) for e in meta["lineage"]] == [
        ("init", None), ("untie", [0, 1, 1, 2]), ("lidas", list(lidas(4, 2))),
    ]  # fmt: skip
    assert lineage.ancestors(lineage.stages(meta["lineage"])) == (0, 1, 1, 1, 1, 2)
    assert meta["flops_before"] == read_rows(source / "metrics.jsonl")[-1]["flops"]


def test_a_cooldown_may_untie_a_loop_without_a_step_in_the_loss(tmp_path):
    config = looped(steps=8, depth="1x3", checkpoint_every=4, **{"cooldown.steps": 4})
    train(config, tmp_path / "tied")
    config.init_from = f"{tmp_path / 'tied'}@4"
    config.cooldown.update(depth="3", operator="untie")
    result = train(config, tmp_path / "untied")
    assert (result["plan"], result["unique_layers"]) == ("3", 3)
    tied, untied = (read_rows(tmp_path / run / "metrics.jsonl") for run in ("tied", "untied"))
    # The first update sees the same function; the second one its first own step.
    assert untied[0]["step"] == 5
    assert untied[0]["loss"] == pytest.approx(tied[4]["loss"], rel=1e-5)
    assert untied[2]["loss"] != pytest.approx(tied[6]["loss"], rel=1e-6)


PLANS = st.lists(
    st.tuples(st.integers(1, 4), st.integers(1, 3)), min_size=1, max_size=4
).map(DepthPlan.of)  # fmt: skip


@given(PLANS)
def test_tie_undoes_untie(plan):
    flat = DepthPlan.of([(plan.n_effective, 1)])
    untied = restack("untie", plan, flat)
    assert untied == plan.order
    tied = restack("tie", flat, plan)
    assert [untied[i] for i in tied] == list(range(plan.n_unique))


@given(PLANS)
def test_without_an_operator_the_stack_stays_as_it_is(plan):
    once = DepthPlan.of([(plan.n_unique, 1)])
    assert restack("", once, plan) is None
    with pytest.raises(ValueError, match="unique layers, but the stack has"):
        restack("", DepthPlan.of([(plan.n_unique + 1, 1)]), plan)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model.d_model": 32}, "config.model.d_model=32, but config.init_from={source!r} has 16"),
        ({"model.qk_norm": True}, "config.model.qk_norm=True, but"),
        ({"depth": "4"}, "config.depth='4' does not fit config.init_from={source!r}: plan 4 has 4 "
         "unique layers, but the stack has 3"),
        ({"depth": "5", "init_operator": "untie"}, "config.init_operator='untie' does not fit "
         "config.init_from={source!r}: untying plan 1-1x2-1 gives 4 layers, but plan 5 has 5"),
        ({"depth": "2x2", "init_operator": "tie"}, "tying to plan 2x2 requires 4 untied layers, not"),
        ({"depth": "2", "init_operator": "lidas"}, "lidas adds layers, but plan 2 has 2 and the stack 3"),
        ({"init_operator": "double"}, "'double' must be one of midas, lidas, stack, gstack, untie"),
        ({"init": "all"}, "config.init='all' must be one of state, weights, moments"),
        ({"init": "state", "init_operator": "untie"}, "config.init_operator='untie' requires"),
        ({"init_from": "", "init_operator": "untie"}, "config.init_operator='untie' requires"),
        ({"init_from": "/nothing"}, "config.init_from='/nothing': /nothing is not a directory of"),
        ({"mixture": {"stdlib": 1.0}, "model.vocab_size": 264}, "config.model.vocab_size=264, but"),
    ],
)  # fmt: skip
def test_what_a_run_cannot_begin_from_is_refused_before_anything_is_made(
    source, tmp_path, changes, says
):
    config = looped(**{"init_from": str(source), "init": "weights", **changes})
    with pytest.raises(UserError) as error:
        train(config, tmp_path / "run")
    assert says.format(source=str(source)) in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("init", ["state", "moments"])
def test_a_checkpoint_without_an_optimizer_gives_weights_alone(source, tmp_path, init):
    shutil.copytree(source, tmp_path / "bare")
    shutil.rmtree(tmp_path / "bare/checkpoints/6/optimizer")
    config = looped(init_from=str(tmp_path / "bare"), init=init)
    with pytest.raises(
        UserError, match=rf"config.init='{init}', but .*bare/checkpoints@6 has no optimizer state"
    ):
        train(config, tmp_path / "run")
    config.init = "weights"
    assert train(config, tmp_path / "run")["steps"] == 6


def test_the_phases_of_a_cooldown_by_an_operator():
    config = looped(depth="2x2", steps=8, **{"cooldown.depth": "4", "cooldown.operator": "untie"})
    last = curriculum.build(config)[-1]
    assert (last.operator, last.order, str(last.plan)) == ("untie", (0, 1, 0, 1), "4")
    config.cooldown.operator = "tie"
    with pytest.raises(UserError, match=r"config\.cooldown\.operator: tying to plan 4 requires 4"):
        curriculum.build(config)


def test_the_schedule_of_a_run_from_moments_starts_with_its_warmup(source, tmp_path):
    config = looped(init_from=str(source), init="moments", warmup_steps=4)
    train(config, tmp_path / "run")
    rates = [row["learning_rate"] for row in read_rows(tmp_path / "run/metrics.jsonl")]
    assert rates[:3] == pytest.approx([2.5e-3, 5e-3, 7.5e-3])
    assert jnp.isfinite(rates[-1])
