"""The moving average of the parameters (config.ema): computed, grown, saved, read."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from loopjax import config as config_lib
from loopjax import config_saved, growth, run, step
from loopjax.checkpoint import load_params
from loopjax.cli import main as cli
from loopjax.cost import Machine, plan_of
from loopjax.curriculum import Phase
from loopjax.depth import DepthPlan, gstack
from loopjax.errors import UserError
from loopjax.files import read_rows
from loopjax.interop.export_hf import export_hf
from loopjax.lm.loaded_model import open_model
from loopjax.optim import make_optimizer
from loopjax.step import abstract_state
from loopjax.train import train

from .test_phases import CFG, train_until

safetensors = pytest.importorskip("safetensors.numpy")


@pytest.mark.slow
def test_the_average_follows_its_formula_and_without_it_the_program_is_the_same():
    optimizer, schedule = make_optimizer(config_lib.default())
    plan = DepthPlan.parse("1x2")
    key = jax.random.key(0)
    tokens_BT = jax.random.randint(jax.random.key(1), (2, 9), 0, 40)
    batch = {"inputs": tokens_BT[:, :-1], "targets": tokens_BT[:, 1:]}
    args = {"cfg": CFG, "plan": plan, "optimizer": optimizer, "schedule": schedule}

    def update(state, batch, **more):
        return step.train_step(state, batch, microbatches=1, **args, **more)

    averaged = jax.jit(lambda state, batch: update(state, batch, ema=0.75), donate_argnums=0)
    state = step.init_state(CFG, 1, optimizer, key, ema=True)
    expected = jax.tree.map(np.array, state.params)
    jax.tree.map(np.testing.assert_array_equal, state.ema, expected)
    for _ in range(3):
        state, _ = averaged(state, batch)
        expected = jax.tree.map(lambda a, p: 0.75 * a + 0.25 * np.array(p), expected, state.params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), state.ema, expected
    )
    plain = step.init_state(CFG, 1, optimizer, key)
    assert plain.ema is None and len(jax.tree.leaves(plain)) < len(jax.tree.leaves(state))
    jax.tree.map(
        np.testing.assert_array_equal, jax.jit(update)(plain, batch)[0].params,
        jax.jit(lambda s, b: update(s, b, ema=0.75))(
            step.init_state(CFG, 1, optimizer, key, ema=True), batch
        )[0].params,
    )  # fmt: skip


def test_an_update_that_is_skipped_leaves_the_average():
    optimizer, schedule = make_optimizer(config_lib.default())
    state = step.init_state(CFG, 1, optimizer, jax.random.key(0), ema=True)
    state.params["embed"] = state.params["embed"].at[0].set(jnp.nan)
    batch = {name: jnp.zeros((2, 8), jnp.int32) for name in ("inputs", "targets")}
    args = {"cfg": CFG, "plan": DepthPlan.parse("1"), "optimizer": optimizer, "ema": 0.5}
    new, metrics = step.train_step(
        state, batch, schedule=schedule, microbatches=1, skip_bad=True, **args
    )
    assert bool(metrics["skipped"])
    jax.tree.map(np.testing.assert_array_equal, new.ema, state.ema)


@pytest.mark.parametrize("transform", ["", "zero_output", "random"])
def test_the_average_grows_with_the_parameters(transform):
    optimizer = make_optimizer(config_lib.default())[0]
    state = step.init_state(CFG, 2, optimizer, jax.random.key(0), ema=True)
    state = state.replace(ema=jax.tree.map(lambda p: p + 1.0, state.ema))
    phase = Phase(
        5, 9, DepthPlan.parse("4"), "gstack", gstack(2, 2), {}, transform=transform, moments="zero"
    )
    grown = growth.grow(jax.tree.map(jnp.copy, state), phase, optimizer, 0, CFG)
    gate, average = grown.params["layers"]["gate"], grown.ema["layers"]["gate"]
    np.testing.assert_array_equal(average[:2], state.ema["layers"]["gate"])
    expected = gate[2:] if transform == "random" else state.ema["layers"]["gate"]
    np.testing.assert_array_equal(average[2:], expected)
    down = grown.ema["layers"]["down"][2:]
    assert bool(jnp.any(down)) == (transform != "zero_output")


def test_the_average_lies_where_the_parameters_do():
    config = config_lib.default()
    config.mesh.update(data=1, fsdp=4, tensor=2)
    config.ema, config.steps, config.cooldown.steps = 0.9, 10, 0
    config.batch_size, config.depth = 8, "2"
    config.model.update(vocab_size=40, d_model=16, d_ff=24, n_heads=4, n_kv_heads=2)
    placed = run.place(run.outline(config))
    parts = placed.cfg, 2, placed.optimizer, placed.mesh, placed.rules
    state = abstract_state(*parts, ema=True)
    assert jax.tree.map(lambda leaf: leaf.sharding, state.ema) == jax.tree.map(
        lambda leaf: leaf.sharding, state.params
    )
    assert abstract_state(*parts).ema is None


@pytest.fixture(scope="module")
def runs(tmp_path_factory, request):
    """A run with an average and growth, whole and in parts, on 8 devices."""
    place = tmp_path_factory.mktemp("ema")
    from .tiny_config import get_config

    config = get_config()
    config.ema, config.checkpoint_every = 0.5, 4
    config.growth.update(moments="zero", rewarm_steps=2)
    config.mesh.update(data=2, fsdp=2, tensor=2)
    train(config, place / "whole")
    for stop in (5, 12):
        train_until(config, place / "parts", stop)
    return config, place


@pytest.mark.slow
def test_a_resumed_run_has_the_average_of_an_uninterrupted_one(runs):
    _, place = runs
    whole, parts = (load_params(place / name, ema=True)[0] for name in ("whole", "parts"))
    jax.tree.map(np.testing.assert_array_equal, whole, parts)
    raw, _ = load_params(place / "whole")
    assert not np.array_equal(raw["layers"]["gate"], whole["layers"]["gate"])


def test_both_are_evaluated_on_held_out_data(runs):
    _, place = runs
    result = json.loads((place / "whole" / "result.json").read_text())
    assert result["heldout_ema"].keys() == result["heldout"].keys()
    assert result["heldout_ema"]["nll"] != result["heldout"]["nll"]
    row = read_rows(place / "whole" / "metrics.jsonl")[-1]
    assert row["eval_ema/nll"] == result["heldout_ema"]["nll"]


def test_commands_read_the_average_where_they_are_told_to(runs, capsys):
    _, place = runs
    kwargs = {"text": False, "devices": jax.devices()[:1]}
    raw, average = (open_model(place / "whole", ema=ema, **kwargs) for ema in (False, True))
    expected, _ = load_params(place / "whole", ema=True)
    jax.tree.map(np.testing.assert_array_equal, average.params, expected)
    assert raw.digest != average.digest
    assert average.describe()["ema"] and "ema" not in raw.describe()
    export_hf(str(place / "whole"), place / "exported", ema=True)
    exported = safetensors.load_file(place / "exported" / "model.safetensors")
    np.testing.assert_array_equal(exported["model.norm.weight"], expected["final_norm"])
    output = place / "nll.json"
    argv = ["nll", f"--checkpoint={place / 'whole'}", "--batches=1", "--batch-size=8"]
    assert cli.main([*argv, "--ema", f"--output={output}"]) == 0
    measured = json.loads(output.read_text())["rows"][0]["nll"]
    result = json.loads((place / "whole" / "result.json").read_text())
    assert measured == pytest.approx(result["heldout_ema"]["nll"], rel=1e-4)


@pytest.mark.slow
def test_a_run_without_an_average_has_none_to_read_or_to_resume(runs, tmp_path):
    config, place = runs
    with pytest.raises(UserError, match=r"config.ema=0.0 \(the run has 0.5\)"):
        other = config_saved.from_saved(config.to_dict())
        other.ema = 0.0
        train(other, place / "whole")
    plain = config_saved.from_saved(config.to_dict())
    plain.update(ema=0.0, depth="1", steps=2, eval_batches=0)
    plain.growth.operator, plain.cooldown.steps, plain.cooldown.mixture = "", 0, {}
    train(plain, tmp_path / "plain")
    folder = tmp_path / "plain" / "checkpoints" / "2"
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == [
        "meta", "optimizer", "params",
    ]  # fmt: skip
    assert "ema" not in (folder / "_CHECKPOINT_METADATA").read_text()
    with pytest.raises(UserError, match="has no moving average of the parameters"):
        open_model(tmp_path / "plain", text=False, ema=True)
    # From its weights and moments a run with an average may begin; the average begins with them.
    plain.update(init_from=str(tmp_path / "plain"), init="moments", ema=0.5, steps=1)
    train(plain, tmp_path / "next")
    before, after = (load_params(tmp_path / name)[0] for name in ("plain", "next"))
    average, _ = load_params(tmp_path / "next", ema=True)
    jax.tree.map(
        lambda a, p, q: np.testing.assert_allclose(a, (p + q) / 2, rtol=1e-5, atol=1e-7),
        average, before, after,
    )  # fmt: skip


def test_its_memory_is_in_the_plan():
    config = config_lib.default()
    config.model.update(vocab_size=512, d_model=64, d_ff=128, n_heads=4, n_kv_heads=4)
    config.update(depth="2", batch_size=4, seq_len=64)
    machine = Machine.of("h100", 1, 0.4)
    without = plan_of(config, machine)["phases"][0]
    config.ema = 0.999
    with_average = plan_of(config, machine)["phases"][0]
    for part in ("optimizer", "peak"):
        assert with_average[part] - without[part] == without["parameters"]


@pytest.mark.parametrize("decay", [1.0, -0.1, float("nan")])
def test_a_decay_outside_of_its_range_is_refused(decay):
    config = config_lib.default()
    config.ema = decay
    with pytest.raises(UserError, match="config.ema=.* must be at least 0 and below 1"):
        run.outline(config)
