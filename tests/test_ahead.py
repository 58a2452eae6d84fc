"""What comes next is compiled while the training goes on."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

import jax
import pytest

from loopjax import ahead, run
from loopjax.ahead import Ahead
from loopjax.callbacks import Callback
from loopjax.files import read_rows
from loopjax.train import train

here = threading.get_ident


def all_done(thread):
    """Waits until the thread has done all that was begun."""
    done = threading.Event()
    thread.begin(done, done.set)
    assert done.wait(60)


def test_work_is_done_in_its_thread_in_order_and_its_result_is_given_once():
    done = []

    def work(name):
        done.append((name, here()))
        return name

    with Ahead(contextlib.nullcontext) as thread:
        for name in "abca":
            thread.begin(name, lambda name=name: work(name))
        all_done(thread)
        assert [thread.get(name, pytest.fail) for name in "cab"] == ["c", "a", "b"]
        assert [name for name, _ in done] == ["a", "b", "c"]
        assert {ident for _, ident in done} - {here()} and here() not in {i for _, i in done}
        assert thread.get("a", lambda: work("again")) == "again"
        assert done[-1] == ("again", here())


def test_work_that_has_not_begun_does_not_wait_for_other_work():
    with Ahead(contextlib.nullcontext) as thread:
        release = threading.Event()
        begun = threading.Event()
        thread.begin("long", lambda: begun.set() or release.wait())
        thread.begin("short", pytest.fail)
        begun.wait()
        assert thread.get("short", here) == here()
        release.set()
        assert thread.get("long", pytest.fail) is True


def test_work_that_failed_in_the_thread_is_tried_again_where_its_result_is_asked_for():
    with Ahead(contextlib.nullcontext) as thread:
        thread.begin("work", lambda: 1 / 0)
        all_done(thread)
        assert thread.get("work", here) == here()
        thread.begin("work", lambda: 1 / 0)
        all_done(thread)
        with pytest.raises(ZeroDivisionError):
            thread.get("work", lambda: 1 / 0)


def test_the_thread_works_inside_the_context():
    entered = threading.local()

    @contextlib.contextmanager
    def inside():
        entered.here = True
        yield

    with Ahead(inside) as thread:
        thread.begin("work", lambda: entered.here)
        all_done(thread)
        assert thread.get("work", pytest.fail) is True
    assert not hasattr(entered, "here")


def test_the_end_waits_for_nothing_and_drops_what_has_not_begun():
    release, begun, later = threading.Event(), threading.Event(), []
    with Ahead(contextlib.nullcontext) as thread:
        thread.begin("long", lambda: begun.set() or release.wait())
        thread.begin("later", lambda: later.append(1))
        begun.wait()
    assert ahead.in_progress()
    release.set()
    deadline = time.monotonic() + 60
    while ahead.in_progress() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not ahead.in_progress() and not later


def test_a_command_ends_at_once_though_its_thread_works():
    program = """
import contextlib, time
from loopjax.ahead import Ahead
from loopjax.cli import main
def command(argv=None):
    with Ahead(contextlib.nullcontext) as thread:
        thread.begin("long", lambda: time.sleep(600))
    print("done")
    return 0
main.main = command
main.run()
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120
    )
    assert (ended.returncode, ended.stdout) == (0, "done\n"), ended.stderr


class Compiler:
    """`Run.jitted_update`, whose calls in a thread are held until they are released."""

    def __init__(self, monkeypatch):
        self.release, self.begun = threading.Event(), threading.Event()
        self.plans: list[tuple[str, bool]] = []  # and whether in the thread of the training
        self.error: Exception | None = None
        real, training = run.Run.jitted_update, here()

        def update(run, plan, state):
            self.plans.append((str(plan), here() == training))
            if here() != training:
                self.begun.set()
                self.release.wait(120)
            if self.error and str(plan) == "2":
                raise self.error
            return real(run, plan, state)

        monkeypatch.setattr(run.Run, "jitted_update", update)


class At(Callback):
    """Calls a function with the row of one step."""

    def __init__(self, step, function):
        self.step, self.function = step, function

    def on_step(self, row):
        if row["step"] == self.step:
            self.function()


def losses(workdir):
    return [row["loss"] for row in read_rows(workdir / "metrics.jsonl")]


@pytest.fixture
def small(tiny_config):
    """4 steps of one layer, then 4 of two."""
    tiny_config.update(depth="2", steps=8, eval_batches=0, checkpoint_every=100)
    tiny_config.cooldown.steps, tiny_config.cooldown.mixture = 0, {}
    tiny_config.growth.alpha = 0.0
    return tiny_config


@pytest.fixture
def compiler(monkeypatch):
    compiler = Compiler(monkeypatch)
    yield compiler
    compiler.release.set()


@pytest.mark.slow
def test_a_run_compiles_the_next_phase_while_it_trains_and_computes_the_same(
    small, compiler, tmp_path, capfd
):
    def released():
        assert compiler.begun.wait(60)
        compiler.release.set()

    train(small, tmp_path / "ahead", [At(2, released)])
    assert compiler.plans == [("1", True), ("2", False)]
    assert "step 4: plan 2, 4,560 parameters, compiled ahead, waited" in capfd.readouterr().err
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ahead, "begin", lambda *args: None)
        train(small, tmp_path / "plain")
    assert compiler.plans[2:] == [("1", True), ("2", True)]
    assert losses(tmp_path / "ahead") == losses(tmp_path / "plain")


def test_an_error_of_the_compiler_ends_the_run_when_its_program_is_needed(
    small, compiler, tmp_path
):
    """And not before: the thread's may be for want of the memory that the training uses."""
    compiler.error = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED")
    compiler.release.set()
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        train(small, tmp_path, [At(1, lambda: compiler.begun.wait(60))])
    assert compiler.plans == [("1", True), ("2", False), ("2", True)]
    assert len(losses(tmp_path)) == 4


@pytest.mark.slow
def test_a_run_that_is_stopped_does_not_wait_for_the_compiler(small, compiler, tmp_path):
    def stop():
        assert compiler.begun.wait(60)
        os.kill(os.getpid(), signal.SIGTERM)

    assert train(small, tmp_path / "run", [At(1, stop)]) is None
    assert ahead.in_progress() and not compiler.release.is_set()
    compiler.release.set()
    assert train(small, tmp_path / "run")["steps"] == 8
