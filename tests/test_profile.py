"""A trace of some steps, and the names in it."""

import re

import jax
import pytest

from loopjax import profile
from loopjax.callbacks import Callback
from loopjax.errors import UserError
from loopjax.run import on_mesh, plan_run
from loopjax.step import abstract_state
from loopjax.train import train


def steps_in(directory):
    """Numbers of the steps in the trace below a directory."""
    (file,) = directory.rglob("*.xplane.pb")
    found = []
    for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
        for line in plane.lines:
            found += [dict(event.stats) for event in line.events if event.name == "train"]
    return sorted(stats["step_num"] for stats in found)


@pytest.fixture
def small(tiny_config):
    """6 steps of one layer."""
    tiny_config.update(depth="1", steps=6, eval_batches=0, checkpoint_every=4)
    tiny_config.growth.operator = ""
    tiny_config.cooldown.steps, tiny_config.cooldown.mixture = 0, {}
    return tiny_config


def test_the_steps_that_are_asked_for_are_traced(small, tmp_path, capfd):
    train(small, tmp_path / "run", profile_steps="2:3")
    assert steps_in(tmp_path / "run" / "profile") == [2, 3]
    assert f"the trace is in {tmp_path}/run/profile\n" in capfd.readouterr().err


def test_a_run_that_fails_within_the_steps_still_writes_its_trace(small, tmp_path):
    class Fails(Callback):
        def on_step(self, row):
            if row["step"] == 4:  # while step 5 is at work
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train(small, tmp_path, [Fails()], profile_steps="3:6")
    assert steps_in(tmp_path / "profile") == [3, 4]


def test_a_run_that_resumes_within_the_steps_traces_the_rest(tmp_path):
    asked = profile.Profile("10:15", 20, tmp_path)
    assert [step for step in range(1, 21) if asked.starts(step)] == [10, 11, 12, 13, 14, 15]
    assert not any(map(profile.Profile(None, 20, tmp_path).starts, range(21)))


@pytest.mark.parametrize("steps", ["0:5", "5:3", "a:b", "10", "10:", "1:2:3", "19:21", ""])
def test_steps_that_the_run_does_not_have_are_refused(steps, tmp_path):
    with pytest.raises(UserError) as error:
        profile.Profile(steps, 20, tmp_path)
    assert str(error.value) == (
        f"--profile_steps={steps!r} must be FIRST:LAST, two of the steps 1 to 20 of the run in this "
        "order, like 10:15"
    )


def test_operations_carry_the_names_of_the_parts_of_a_step(small):
    """Embedding, segment with its repetitions, layer, attention, MLP, head, loss, optimizer."""
    small.depth = "1-2x3-1"
    run = plan_run(small)
    with on_mesh(run):
        plan = run.phases[0].plan
        state = abstract_state(run.cfg, plan.n_unique, run.optimizer, run.mesh, run.rules)
        batch = run.to_device(next(run.stream.batches(run.rows, 0)))
        text = run.jitted_update(plan, state).lower(state, batch).as_text(debug_info=True)
    for i, repeats in enumerate((1, 3, 1)):
        assert f"segment_{i}_x{repeats}/" in text
        for name in ("layer", "attention", "mlp"):
            assert f"segment_{i}.{name}" in text
    for name in ("embed", "head", "loss", "optimizer"):
        assert re.search(rf"[(/]{name}[)/]", text), name
