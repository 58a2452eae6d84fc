import dataclasses
import json
import os
import pathlib
import shutil
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from loopjax import checkpoint, model
from loopjax import step as step_lib
from loopjax.callbacks import Callback
from loopjax.errors import UserError
from loopjax.files import read_rows
from loopjax.run import plan_run
from loopjax.step_metrics import largest_gradient
from loopjax.train import train


def rows_of(workdir):
    """What a run did, without what depends on the clock."""
    rows = read_rows(workdir / "metrics.jsonl")
    clock = ("tokens_per_s", "wall_clock_s", "compile_s")
    return [{key: value for key, value in row.items() if key not in clock} for row in rows]


def final_state(workdir):
    return checkpoint.load_params(workdir)[0]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One uninterrupted run through two growth steps and a mixture switch."""
    from tests.conftest import tiny_run

    workdir = tmp_path_factory.mktemp("finished")
    begun = time.monotonic()
    result = train(tiny_run(), workdir)
    (workdir / "seconds").write_text(str(time.monotonic() - begun))
    return workdir, result


def test_a_run_directory_explains_itself(finished, tiny_config):
    workdir, result = finished
    assert json.loads((workdir / "config.json").read_text()) == tiny_config.to_dict()
    phases = json.loads((workdir / "phases.json").read_text())
    assert [p["operator"] for p in phases] == ["init", "lidas", "lidas", "data"]
    assert [(p["start"], p["stop"], p["plan"]) for p in phases] == [
        (0, 2, "1"), (2, 5, "2"), (5, 9, "3"), (9, 12, "3"),
    ]  # fmt: skip
    table = (workdir / "parameters.txt").read_text()
    assert "layers/query\t(3, 16, 16)\tfloat32\t(None, 'fsdp', 'tensor')\n" in table
    assert [row["step"] for row in rows_of(workdir)] == list(range(1, 13))
    saved = sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())
    assert saved == [2, 4, 6, 8, 10, 12]
    assert {key: result[key] for key in ("steps", "tokens", "plan", "unique_layers")} == {
        "steps": 12, "tokens": 12 * 8 * 9, "plan": "3", "unique_layers": 3,
    }  # fmt: skip
    assert result == json.loads((workdir / "result.json").read_text())
    n_params = sum(leaf.size for leaf in jax.tree.leaves(final_state(workdir)))
    assert result["parameters"] == n_params
    assert result["heldout"]["nll"] > 0 and "p_hop_3/accuracy" in result["heldout"]


def test_tensorboard_has_every_number_of_the_rows_that_it_shows(finished):
    """Every tenth step and the last, with the norms of gradients and the final evaluation."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    workdir, result = finished
    events = EventAccumulator(str(workdir / "tensorboard"))
    events.Reload()
    shown = {
        tag: {e.step: pytest.approx(e.value, rel=1e-6) for e in events.Scalars(tag)}
        for tag in events.Tags()["scalars"]
    }
    logged = {}
    for row in read_rows(workdir / "metrics.jsonl"):
        for name, value in row.items() if row["step"] in (10, 12) else ():
            if name not in ("step", "plan"):
                logged.setdefault(name, {})[row["step"]] = value
    assert logged == shown
    assert {"tokens", "wall_clock_s", "grad_norm/layer_02", "eval/p_hop_3/accuracy"} <= set(shown)
    final = {f"eval/{name}": {12: value} for name, value in result["heldout"].items()}
    assert final.items() <= logged.items()


def test_the_norms_of_a_gradient_by_layer_and_by_kind_add_up_to_its_own(finished):
    workdir, _ = finished
    for row in read_rows(workdir / "metrics.jsonl"):
        parts = {k: v for k, v in row.items() if k.startswith("grad_norm/")}
        assert bool(parts) == (row["step"] in (10, 12))
        if parts:
            squares = {k.removeprefix("grad_norm/"): v**2 for k, v in parts.items()}
            layers = sum(squares.pop(f"layer_{i:02d}") for i in range(3))
            whole = row["grad_norm"] ** 2
            assert sum(squares.values()) == pytest.approx(whole, rel=1e-5)
            rest = squares["embed"] + squares["final_norm"]
            assert layers + rest == pytest.approx(whole, rel=1e-5)


def test_the_parts_of_the_time_add_up_to_the_wall_clock(finished):
    """That of the whole call, within 1% and 2 s for what happens before and after the run."""
    workdir, result = finished
    seconds = float((workdir / "seconds").read_text())
    parts = result["time_s"]
    assert sum(parts.values()) == result["wall_clock_s"]
    assert abs(seconds - result["wall_clock_s"]) < 0.01 * seconds + 2
    known = {"start", "compile", "growth", "data", "steps", "evaluation", "save", "log", "lost"}
    assert set(parts) == known and parts["lost"] == 0
    assert all(value > 0 for kind, value in parts.items() if kind != "lost")
    assert result["compile_s"] == parts["compile"]


def test_training_flops_add_up_over_the_phases(finished, tiny_config):
    _, result = finished
    D, F, V, T = 16, 24, 40, 9
    layer = 2 * D * D + 2 * D * (D // 2) + 3 * D * F
    per_token = [6 * (E * layer + V * D) + 12 * E * D * T for E in (1, 2, 3)]
    expected = 8 * T * (2 * per_token[0] + 3 * per_token[1] + 7 * per_token[2])
    assert result["training_flops"] == expected


# Steps 2 and 5 are growth boundaries, 9 is where the mixture changes, 12 is the end.
@pytest.mark.parametrize("cut", [1, 2, 5, 9, 11, 12])
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(finished, tiny_config, tmp_path, cut):
    whole, result = finished
    shutil.copytree(whole, tmp_path / "run")
    for step in range(cut + 1, 13):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / str(step), ignore_errors=True)
    (tmp_path / "run" / "result.json").unlink()
    if cut == 1:  # before the first checkpoint
        (tmp_path / "run" / "checkpoints.json").unlink()
    resumed = train(tiny_config, tmp_path / "run")
    assert rows_of(tmp_path / "run") == rows_of(whole)
    jax.tree.map(np.testing.assert_array_equal, final_state(tmp_path / "run"), final_state(whole))
    assert resumed["heldout"] == result["heldout"]
    # What was computed after the checkpoint is lost, and counted.
    ended = read_rows(whole / "metrics.jsonl")[-1]["wall_clock_s"]
    assert resumed["wall_clock_s"] > ended > 0 and (resumed["time_s"]["lost"] > 0) == (cut < 12)


def test_rows_after_the_checkpoint_and_a_torn_last_one_are_dropped(finished, tiny_config, tmp_path):
    whole, _ = finished
    shutil.copytree(whole, tmp_path / "run")
    for step in (8, 10, 12):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / str(step))
    with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
        file.write('{"step": 13, "lo')
    train(tiny_config, tmp_path / "run")
    assert rows_of(tmp_path / "run") == rows_of(whole)


@pytest.mark.parametrize("when", [4, 5])
def test_sigterm_saves_and_stops_and_the_run_goes_on_as_if_nothing_had_been(
    finished, tiny_config, tmp_path, when
):
    class Signal(Callback):
        def on_step(self, row):
            if row["step"] == when:
                os.kill(os.getpid(), signal.SIGTERM)

    whole, _ = finished
    tiny_config.checkpoint_every = 100
    before = signal.getsignal(signal.SIGTERM)
    assert train(tiny_config, tmp_path, [Signal()]) is None
    assert signal.getsignal(signal.SIGTERM) is before
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1
    train(tiny_config, tmp_path)
    assert rows_of(tmp_path) == rows_of(whole)


def damage_zero(path):
    path.write_bytes(bytes(path.stat().st_size))


def damage_cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damage_flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


# TensorStore leaves the futures of a failed read behind; their complaint has no owner.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", [damage_zero, damage_cut, damage_flip, type(None)])
@pytest.mark.parametrize("item", ["params", "optimizer", "meta"])
def test_a_damaged_newest_checkpoint_is_reported_and_the_one_before_it_used(
    finished, tiny_config, tmp_path, capfd, damage, item
):
    whole, _ = finished
    shutil.copytree(whole, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints" / "12" / item
    if damage is type(None):
        shutil.rmtree(folder)
    else:
        # Arrays lie in files below folders named "d".
        arrays = [path for path in folder.rglob("d/*") if path.is_file()]
        for path in arrays or [folder / "metadata"]:
            damage(path)
    train(tiny_config, tmp_path / "run")
    said = capfd.readouterr().err
    assert "checkpoints/12 is damaged" in said and "resuming from step 10" in said
    assert rows_of(tmp_path / "run") == rows_of(whole)
    assert (tmp_path / "run" / "checkpoints.damaged" / "12.0").is_dir()
    jax.tree.map(np.testing.assert_array_equal, final_state(tmp_path / "run"), final_state(whole))


@pytest.mark.parametrize("item", ["params", "optimizer"])
def test_arrays_that_are_sound_but_not_those_that_were_saved_are_noticed(
    finished, tiny_config, tmp_path, capfd, item
):
    whole, _ = finished
    shutil.copytree(whole, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    shutil.rmtree(folder / "12" / item)
    shutil.copytree(folder / "10" / item, folder / "12" / item)
    if item == "params":
        with pytest.raises(ValueError, match="is not what was saved"):
            checkpoint.load_params(tmp_path / "run", step=12)
    train(tiny_config, tmp_path / "run")
    said = capfd.readouterr().err
    assert f"checkpoints/12 is damaged (the content of {item}/" in said
    assert rows_of(tmp_path / "run") == rows_of(whole)


def test_a_run_none_of_whose_checkpoints_can_be_read_does_not_start_over(
    finished, tiny_config, tmp_path
):
    whole, _ = finished
    shutil.copytree(whole, tmp_path / "run")
    for folder in (tmp_path / "run" / "checkpoints").iterdir():
        damage_zero(folder / "meta" / "metadata")
    with pytest.raises(UserError, match="none of the checkpoints in .* can be read"):
        train(tiny_config, tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"learning_rate": 2e-2}, "config.learning_rate=0.02 (the run has 0.01)"),
        ({"model.d_ff": 32}, "config.model.d_ff=32 (the run has 24)"),
        ({"seed": 1}, "config.seed=1 (the run has 0)"),
        ({"growth.operator": ""}, "depth, growth or mixture differ"),
        ({"growth.alpha": 0.0}, "depth, growth or mixture differ"),
        ({"cooldown.steps": 6}, "depth, growth or mixture differ"),
        ({"steps": 11}, "config.steps=11 (the run is at step 12)"),
    ],
)
def test_a_config_that_contradicts_the_checkpoint_is_refused(
    finished, tiny_config, tmp_path, change, says
):
    whole, _ = finished
    shutil.copytree(whole, tmp_path / "run")
    tiny_config.update_from_flattened_dict(change)
    with pytest.raises(UserError) as error:
        train(tiny_config, tmp_path / "run")
    assert says in str(error.value)
    assert rows_of(tmp_path / "run") == rows_of(whole)


@pytest.mark.slow
def test_a_branch_has_the_past_of_its_source_and_another_future(finished, tiny_config, tmp_path):
    """From a checkpoint before the cooldown: another cooldown, with another plan and other data."""
    whole, _ = finished
    tiny_config.init_from = f"{whole}@8"
    tiny_config.cooldown.depth = "1-1x3-1"
    tiny_config.cooldown.mixture = {"p_hop_2": 1.0}
    tiny_config.checkpoint_every, tiny_config.mesh.fsdp = 3, 2
    result = train(tiny_config, tmp_path / "run")
    assert (result["plan"], result["effective_layers"]) == ("1-1x3-1", 5)
    rows = rows_of(tmp_path / "run")
    assert [(row["step"], row["plan"]) for row in rows] == [
        (9, "3"), (10, "1-1x3-1"), (11, "1-1x3-1"), (12, "1-1x3-1"),
    ]  # fmt: skip
    assert rows[0]["loss"] == pytest.approx(rows_of(whole)[8]["loss"], rel=1e-5)
    _, meta = checkpoint.load_params(tmp_path / "run")
    assert meta["branched_from"] == f"{whole / 'checkpoints'}@8"
    operators = [event["operator"] for event in meta["lineage"]]
    assert operators == ["init", "lidas", "lidas", "retrofit"]
    # With another source it is a different run.
    tiny_config.init_from = f"{whole}@6"
    with pytest.raises(UserError, match="belongs to a different run: config.init_from="):
        train(tiny_config, tmp_path / "run")


def test_a_branch_with_the_same_future_is_the_run_it_came_from(finished, tiny_config, tmp_path):
    whole, _ = finished
    tiny_config.init_from = f"{whole}@6"
    train(tiny_config, tmp_path / "run")
    assert rows_of(tmp_path / "run") == rows_of(whole)[6:]


@pytest.mark.parametrize(
    ("source", "change", "says"),
    [
        ("@7", {}, "has no checkpoint at step 7; there are 2, 4, 6, 8, 10, 12"),
        ("/nothing", {}, "nothing is not a directory of checkpoints"),
        ("@12", {"cooldown.depth": "1-2x2"}, "does not match this run's history up to step 12"),
        ("@8", {"model.d_model": 32}, "config.model.d_model=32 (the run has 16)"),
        ("@8", {"learning_rate": 1e-3}, "config.learning_rate=0.001 (the run has 0.01)"),
    ],
)
def test_a_branch_from_what_is_not_its_past_is_refused(
    finished, tiny_config, tmp_path, source, change, says
):
    tiny_config.init_from = f"{finished[0]}{source}"
    tiny_config.update_from_flattened_dict(change)
    with pytest.raises(UserError) as error:
        train(tiny_config, tmp_path / "run")
    assert says in str(error.value)


def test_a_checkpoint_is_read_without_its_config(finished):
    workdir, _ = finished
    params, meta = checkpoint.load_params(workdir / "checkpoints", step=4)
    assert params["layers"]["query"].shape == (2, 16, 16)
    assert (meta["step"], meta["plan"]) == (4, "2")
    assert meta["lineage"][-1] == {"step": 2, "operator": "lidas", "plan": "2", "order": [0, 0]}
    assert meta["model"]["d_model"] == 16 and meta["data"]["position"] == 4
    with pytest.raises(UserError, match="has no checkpoint at step 3"):
        checkpoint.load_params(workdir, step=3)
    with pytest.raises(UserError, match="is not a directory of checkpoints"):
        checkpoint.load_params(workdir / "nothing")


# TensorStore leaves the futures of a failed read behind; their complaint has no owner.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", [damage_zero, damage_cut, damage_flip, pathlib.Path.unlink])
def test_the_metadata_of_a_damaged_checkpoint_is_refused_in_one_sentence(
    finished, tmp_path, damage
):
    shutil.copytree(finished[0] / "checkpoints" / "12", tmp_path / "12")
    assert checkpoint.read_meta(tmp_path, 12)["step"] == 12
    damage(tmp_path / "12" / "meta" / "metadata")
    with pytest.raises(UserError, match=rf"^checkpoint {tmp_path}/12 is damaged \(.*\)$"):
        checkpoint.read_meta(tmp_path, 12)


def test_looking_into_a_run_that_is_going_on_leaves_its_unfinished_checkpoint_alone(
    finished, tmp_path
):
    workdir, _ = finished
    shutil.copytree(workdir, tmp_path / "run")
    unfinished = tmp_path / "run" / "checkpoints" / "14.orbax-checkpoint-tmp"
    unfinished.mkdir()
    assert checkpoint.load_params(tmp_path / "run")[1]["step"] == 12
    assert unfinished.is_dir()


def test_the_directory_of_another_run_is_refused_even_without_checkpoints(
    finished, tiny_config, tmp_path
):
    workdir, _ = finished
    shutil.copytree(workdir, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    tiny_config.seed = 5
    with pytest.raises(
        UserError, match=r"belongs to a different run: config\.seed=5 \(the run has 0\)"
    ):
        train(tiny_config, tmp_path / "run")
    assert len(rows_of(tmp_path / "run")) == 12


def test_a_finished_run_is_not_trained_again(finished, tiny_config, tmp_path, capfd):
    whole, result = finished
    shutil.copytree(whole, tmp_path / "run")
    again = train(tiny_config, tmp_path / "run")
    assert again["heldout"] == result["heldout"]
    assert rows_of(tmp_path / "run") == rows_of(whole)
    assert "compiled" not in capfd.readouterr().err


def test_warmup_and_cooldown_follow_the_length_of_the_run(tiny_config):
    tiny_config.update(steps=400, warmup_steps=-1)
    tiny_config.cooldown.steps = -1
    run = plan_run(tiny_config)
    assert (run.config.warmup_steps, run.config.cooldown.steps) == (4, 60)
    assert run.phases[-1].start == 340


@pytest.mark.slow
def test_keep_last_and_keep_every(tiny_config, tmp_path):
    tiny_config.update(checkpoint_every=1, keep_last=2, keep_every=5, eval_batches=0)
    train(tiny_config, tmp_path)
    steps = sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert steps == [5, 10, 11, 12]


def test_restoring_on_another_mesh_gives_the_same_weights_and_trains_on(
    finished, tiny_config, tmp_path
):
    whole, _ = finished
    shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "12")
    tiny_config.mesh.update(data=2, fsdp=2, tensor=2)
    train(tiny_config, tmp_path / "run")
    a, b = rows_of(tmp_path / "run"), rows_of(whole)
    assert a[:10] == b[:10]
    for row_a, row_b in zip(a[10:], b[10:], strict=True):
        assert row_a["loss"] == pytest.approx(row_b["loss"], rel=1e-4)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(
    tiny_config, tmp_path, monkeypatch
):
    real = step_lib.train_step

    def poisoned(state, batch, **kwargs):
        """From update 8 on the third layer's way up is far too large."""
        up = state.params["layers"]["up"]
        bad = jnp.where(state.step >= 7, jnp.inf, 1.0)
        layers = {**state.params["layers"], "up": up.at[-1].multiply(bad)}
        state = dataclasses.replace(state, params={**state.params, "layers": layers})
        return real(state, batch, **kwargs)

    monkeypatch.setattr("loopjax.run.train_step", poisoned)
    with pytest.raises(UserError) as error:
        train(tiny_config, tmp_path)
    assert str(error.value) == (
        "step 8: loss nan, all gradients are nan; stopped, the last good checkpoint is step 6"
    )
    assert [row["step"] for row in rows_of(tmp_path)] == list(range(1, 8))
    assert checkpoint.load_params(tmp_path)[1]["step"] == 6


def one_plan(config):
    """The same run without growth: one program is compiled."""
    config.depth, config.growth.operator = "1", ""
    return config


def poisoned_at(monkeypatch, bad_steps):
    """Makes the loss and the gradients of these steps nan."""
    real = model.weighted_loss

    def update(state, batch, **kwargs):
        bad = jnp.isin(state.step + 1, jnp.array(bad_steps))

        def weighted_loss(*args):
            total, terms, losses = real(*args)
            factor = jnp.where(bad, jnp.nan, 1.0)
            return total * factor, {"nll": terms["nll"] * factor}, losses

        with monkeypatch.context() as patched:
            patched.setattr(model, "weighted_loss", weighted_loss)
            return step_lib.train_step(state, batch, **kwargs)

    monkeypatch.setattr("loopjax.run.train_step", update)


@pytest.mark.slow
def test_a_bad_step_is_skipped_and_logged_and_too_many_in_a_row_stop(
    tiny_config, tmp_path, monkeypatch, capfd
):
    poisoned_at(monkeypatch, [4, 8, 9, 10])
    one_plan(tiny_config).update(skip_bad_steps=3, checkpoint_every=1, eval_batches=0)
    with pytest.raises(UserError) as error:
        train(tiny_config, tmp_path)
    assert str(error.value) == (
        "step 10: loss nan, all gradients are nan; 3 such steps in a row; stopped, the last good "
        "checkpoint is step 9"
    )
    err = capfd.readouterr().err
    assert "step 4: loss nan, all gradients are nan; this update is skipped, 1 in a row" in err
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows if "skipped" in row] == [4, 8, 9]
    (before, _), (after, meta) = (checkpoint.load_params(tmp_path, step) for step in (7, 9))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    assert meta["step"] == 9
    # A resumed run has not forgotten the steps in a row.
    with pytest.raises(UserError, match="step 10: .* 3 such steps in a row"):
        train(tiny_config, tmp_path)


def test_weights_that_the_last_update_spoils_are_neither_saved_nor_the_end_of_a_run(
    tiny_config, tmp_path, monkeypatch
):
    real = step_lib.train_step

    def spoiled(state, batch, **kwargs):
        new, metrics = real(state, batch, **kwargs)
        bad = jnp.where(new.step == 12, jnp.inf, 1.0)
        params = {**new.params, "embed": new.params["embed"] * bad}
        return dataclasses.replace(new, params=params), metrics

    monkeypatch.setattr("loopjax.run.train_step", spoiled)
    with pytest.raises(UserError) as error:
        train(one_plan(tiny_config), tmp_path)
    assert str(error.value) == (
        "step 12: parameters that are nan or infinite after the update; stopped, the last good "
        "checkpoint is step 10"
    )
    assert not (tmp_path / "result.json").exists()


def test_a_workdir_that_was_removed_is_told_in_one_sentence(tiny_config, tmp_path):
    class Removes(Callback):
        def on_step(self, row):
            if row["step"] == 3:
                shutil.rmtree(tmp_path / "run")

    with pytest.raises(UserError) as error:
        train(one_plan(tiny_config), tmp_path / "run", [Removes()])
    assert str(error.value) == (
        f"--workdir {tmp_path / 'run'} was removed or replaced while the run was training in it; "
        "start the run again"
    )


def test_a_clock_that_jumps_while_a_checkpoint_is_written_changes_nothing(
    tiny_config, tmp_path, monkeypatch
):
    real, ahead = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: real() + ahead[0])

    class Jumps(Callback):
        def on_step(self, row):
            ahead[0] += 1800 if row["step"] < 8 else -7200

    one_plan(tiny_config).update(eval_batches=0, checkpoint_every=1, keep_last=0)
    assert train(tiny_config, tmp_path, [Jumps()])["steps"] == 12
    steps = sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert steps == list(range(1, 13))


def test_the_largest_gradient_is_named_with_its_layer():
    norms = {"embed": jnp.array(3.0), "layers": {"up": jnp.array([1.0, 5.0]), "key": jnp.ones(2)}}
    assert (
        largest_gradient(norms) == "the largest gradient is that of layers/up of layer 1 (norm 5)"
    )
    norms["layers"]["key"] = jnp.array([jnp.nan, 1.0])
    assert (
        largest_gradient(norms)
        == "the largest gradient is that of layers/key of layer 0 (norm nan)"
    )


def test_a_full_disk_is_told_in_one_sentence_and_loses_nothing(tiny_config, tmp_path, monkeypatch):
    real = checkpoint.Checkpoints.save

    def save(self, step, *args):
        if step == 6:
            raise ValueError("RESOURCE_EXHAUSTED: Failed to write: No space left on device [28]")
        real(self, step, *args)

    monkeypatch.setattr(checkpoint.Checkpoints, "save", save)
    with pytest.raises(UserError) as error:
        train(tiny_config, tmp_path)
    assert str(error.value) == (
        f"--workdir {tmp_path}: No space left on device; the last good checkpoint is step 4; "
        "free some space and rerun the same command to resume"
    )
    monkeypatch.undo()
    assert train(tiny_config, tmp_path)["steps"] == 12


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"mesh.data": 3}, "multiplies to 3, but 8 devices are available"),
        ({"mesh.data": -1, "mesh.fsdp": -1}, "one may be -1"),
        (
            {"batch_size": 12},
            "config.batch_size / config.microbatches=12 is not divisible by 8",
        ),
        ({"mesh.data": 2, "mesh.tensor": 4}, "config.model.n_kv_heads=2 is not divisible by 4"),
        ({"mesh.rules.embed": "fdsp"}, "'fdsp' is not one of data, fsdp, tensor"),
        ({"microbatches": 3}, "config.microbatches=3 does not divide"),
        ({"model.vocab_size": 30}, "config.model.vocab_size=30 is smaller than the 36 tokens"),
        (
            {"model.attention": "cudnn", "model.dtype": "bfloat16"},
            "requires a GPU (the platform is cpu)",
        ),
        ({"learning_rate": 0.0}, "config.learning_rate=0.0 must be positive"),
        ({"model.n_heads": 3}, "config.model.n_heads=3 must divide"),
    ],
)
def test_an_impossible_run_is_refused_before_anything_is_written(
    tiny_config, tmp_path, change, says
):
    tiny_config.update_from_flattened_dict(change)
    with pytest.raises(UserError) as error:
        train(tiny_config, tmp_path / "run")
    assert says in str(error.value)
    assert not (tmp_path / "run").exists()
