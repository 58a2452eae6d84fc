"""When a run evaluates, saves and stops, as decided step by step; no model is trained."""

import pytest

from loopjax.early_stopping import EarlyStopping


def run(config, losses, step=0, heldout=None):
    """(steps evaluated, steps saved, last step) of a run with these held-out losses by step."""
    early = EarlyStopping(config, step, heldout or {})
    evaluated, saved = [], []
    while step < config.steps and not early.exhausted(step):
        step += 1
        metrics = {}
        if early.evaluates(step):
            evaluated.append(step)
            metrics = {"eval/nll": losses[step]}
        if early.saves(step, stopping=False) or early.improves(step, metrics):
            saved.append(step)
    return evaluated, saved, step


@pytest.fixture
def config(tiny_config):
    tiny_config.update(steps=20, eval_every=2, checkpoint_every=5, patience=2)
    return tiny_config


def test_without_patience_evaluations_and_checkpoints_are_regular(config):
    config.patience = 0
    rising = {step: float(step) for step in range(1, 21)}
    assert run(config, rising) == (list(range(2, 21, 2)), [5, 10, 15, 20], 20)


def test_with_patience_only_better_evaluations_are_saved_and_the_run_ends_after_the_rest(config):
    losses = {2: 5.0, 4: 3.0, 6: 4.0, 8: 2.0, 10: 2.0, 12: 2.5}
    # An equal loss is not a better one: after step 8, two evaluations bring nothing.
    assert run(config, losses) == ([2, 4, 6, 8, 10, 12], [2, 4, 8], 12)


def test_a_run_that_keeps_improving_ends_at_its_last_step_which_is_evaluated(config):
    config.steps = 7
    falling = {step: -float(step) for step in range(1, 8)}
    assert run(config, falling) == ([2, 4, 6, 7], [2, 4, 6, 7], 7)


def test_a_resumed_run_counts_from_its_best_checkpoint(config):
    losses = {2: 5.0, 4: 1.0, 6: 4.0, 8: 3.0}
    whole = run(config, losses)
    resumed = run(config, losses, step=4, heldout={"eval/nll": 1.0})
    assert whole == ([2, 4, 6, 8], [2, 4], 8)
    assert resumed == ([6, 8], [], 8)


def test_a_request_to_stop_saves_without_patience_only(config):
    """With patience, the newest checkpoint stays the best one."""
    assert not EarlyStopping(config, 0, {}).saves(3, stopping=True)
    config.patience = 0
    assert EarlyStopping(config, 0, {}).saves(3, stopping=True)


@pytest.mark.parametrize(
    ("result", "final"),
    [
        ({"steps": 4, "stopped_at": 8}, True),  # patience exhausted
        ({"steps": 4, "stopped_at": 20}, True),  # the end of the run
        ({"steps": 4, "stopped_at": 7}, False),  # ended by a smaller patience or fewer steps
        ({"steps": 2, "stopped_at": 8}, False),  # of another checkpoint
        ({"steps": 4}, False),  # without early stopping
        ({}, False),
    ],
)
def test_a_run_is_over_when_its_result_is_that_of_its_newest_checkpoint(config, result, final):
    assert EarlyStopping(config, 4, {"eval/nll": 1.0}).is_final(result) == final
    config.patience = 0
    assert not EarlyStopping(config, 4, {}).is_final(result)


def test_a_loss_that_is_nan_is_no_improvement(config):
    losses = {2: 5.0, 4: float("nan"), 6: 4.0, 8: float("nan"), 10: float("nan")}
    assert run(config, losses) == ([2, 4, 6, 8, 10], [2, 6], 10)
    assert run(config, {2: float("nan"), 4: float("nan")})[1] == []
