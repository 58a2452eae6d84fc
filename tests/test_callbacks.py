"""Callbacks of the training loop, and the one for Weights & Biases."""

import importlib.machinery
import os
import shutil
import signal
import sys
import types

import jax
import numpy as np
import pytest

from loopjax import checkpoint, config_saved
from loopjax.callbacks import WANDB_ID, Callback, TensorBoard, WeightsAndBiases
from loopjax.errors import UserError
from loopjax.files import read_rows
from loopjax.train import train
from tests.conftest import tiny_run


class Recorder(Callback):
    """Keeps the rows; at step `at` it then does what `then` says."""

    def __init__(self, at=None, then=None):
        self.rows, self.closed = [], 0
        self.at, self.then = at, then

    def on_step(self, row):
        self.rows.append(row)
        if row["step"] == self.at:
            self.then()

    def close(self):
        self.closed += 1


def short_run():
    config = tiny_run()
    config.update(steps=6, eval_every=3, checkpoint_every=2)
    config.growth.operator = ""
    config.cooldown.mixture = {}
    return config


def losses(workdir):
    return [(row["step"], row["loss"]) for row in read_rows(workdir / "metrics.jsonl")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    train(short_run(), workdir)
    return workdir


@pytest.mark.slow
def test_every_row_reaches_the_callbacks_once_and_in_order_across_a_resume(whole, tmp_path):
    before = Recorder(at=3, then=lambda: os.kill(os.getpid(), signal.SIGTERM))
    after = Recorder()
    assert train(short_run(), tmp_path, [before]) is None
    assert train(short_run(), tmp_path, [after])["steps"] == 6
    assert before.rows + after.rows == read_rows(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in before.rows + after.rows] == [1, 2, 3, 4, 5, 6]
    assert "eval/nll" in before.rows[2] and before.closed == after.closed == 1
    # Values are on the host: a callback cannot make the loop wait for the device.
    values = [value for row in before.rows for value in row.values()]
    assert {type(value) for value in values} <= {int, float, str}
    assert losses(tmp_path) == losses(whole)


def test_an_exception_in_a_callback_ends_the_run_and_damages_nothing(whole, tmp_path):
    def fail():
        raise RuntimeError("no space on the dashboard")

    other = Recorder()
    with pytest.raises(RuntimeError, match="no space on the dashboard"):
        train(short_run(), tmp_path, [Recorder(at=5, then=fail), other])
    assert other.closed == 1
    assert not (tmp_path / "result.json").exists()
    assert checkpoint.load_params(tmp_path)[1]["step"] == 4
    again = Recorder()
    train(short_run(), tmp_path, [again])
    assert [row["step"] for row in again.rows] == [5, 6]
    assert losses(tmp_path) == losses(whole)
    final, expected = (checkpoint.load_params(run)[0] for run in (tmp_path, whole))
    jax.tree.map(np.testing.assert_array_equal, final, expected)


def test_all_callbacks_are_closed_when_one_of_them_fails_to(tmp_path):
    from loopjax.log import RunLog

    class Broken(Callback):
        def close(self):
            raise OSError("gone")

    first, last = Recorder(), Recorder()
    log = RunLog(tmp_path, 0, 6, [first, Broken(), last])
    with pytest.raises(OSError, match="gone"):
        log.close()
    assert first.closed == last.closed == 1


def test_without_wandb_the_sentence_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = short_run()
    config.wandb = "study"
    with pytest.raises(UserError) as error:
        train(config, tmp_path / "run")
    assert str(error.value).startswith("config.wandb='study' needs pip install 'loopjax[wandb]'")
    assert not (tmp_path / "run").exists()


class FakeWandb(types.ModuleType):
    """What is used of the package; keeps the calls."""

    class Error(Exception):
        pass

    def __init__(self):
        super().__init__("wandb")
        self.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
        self.runs, self.logged, self.refuse = [], [], ""

    def Settings(self, **kwargs):
        return kwargs

    def init(self, **kwargs):
        if self.refuse:
            raise self.Error(self.refuse)
        self.runs.append(kwargs)
        return self

    def log(self, row, step):
        self.logged.append((step, row["loss"]))

    def finish(self):
        self.runs[-1]["finished"] = True


@pytest.fixture
def wandb(monkeypatch):
    module = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_a_resumed_run_is_the_same_run_in_wandb(wandb, tmp_path):
    config = short_run()
    config.update(wandb="study", log_every=4)
    for steps in ([1, 2, 3], [4, 5, 6]):
        callback = WeightsAndBiases(config, tmp_path)
        for step in steps:
            callback.on_step({"step": step, "loss": 0.5} | ({"eval/nll": 1.0} if step == 3 else {}))
        callback.close()
    first, second = wandb.runs
    assert first["id"] == second["id"] == (tmp_path / WANDB_ID).read_text().strip()
    assert (first["project"], first["resume"], first["finished"]) == ("study", "allow", True)
    assert first["config"] == config.to_dict()
    # Every `log_every` steps, evaluations, and the last step.
    assert wandb.logged == [(3, 0.5), (4, 0.5), (6, 0.5)]


def test_what_wandb_refuses_is_one_sentence_of_the_user(wandb, tmp_path):
    config = short_run()
    config.wandb = "study"
    wandb.refuse = "No API key configured.\nmore lines"
    with pytest.raises(UserError, match=r"^config\.wandb='study': No API key configured\.$"):
        WeightsAndBiases(config, tmp_path)


def test_wandb_may_be_switched_on_or_off_when_a_run_is_resumed():
    before, after = short_run(), short_run()
    after.wandb = "study"
    assert config_saved.contradictions(before.to_dict(), after.to_dict()) == []


def test_tensorboard_that_cannot_write_is_a_warning(tmp_path, capfd):
    config = short_run()
    (tmp_path / "tensorboard").write_text("a file in its place")
    board = TensorBoard(config, tmp_path, 0)
    board.on_step({"step": config.steps, "loss": 1.0})
    board.close()
    said = capfd.readouterr().err
    assert said == "TensorBoard is not written any more: File exists; metrics.jsonl has all rows\n"

    (tmp_path / "tensorboard").unlink()
    board = TensorBoard(config, tmp_path, 0)
    shutil.rmtree(tmp_path / "tensorboard")
    for _ in range(3):
        board.on_step({"step": config.steps, "loss": 1.0})
    board.close()
    assert capfd.readouterr().err.count("its file was removed") == 1
