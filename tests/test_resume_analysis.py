"""A stopped diagnostic resumes after the prompts that are done, and gives the same bits."""

import dataclasses
import itertools
import os
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from loopjax.analysis import analyze, exit_accuracy, lens
from loopjax.analysis.diagnostics import DIAGNOSTICS
from loopjax.errors import UserError
from loopjax.plots import figure
from loopjax.results import store
from tests.test_lens import tiny

ROOT = pathlib.Path(__file__).resolve().parent.parent
TOKENS = [list(range(3, 24)), [7, 1, 200] * 11, [9, 8] * 9, list(range(40))]
CASES = [(tokens, 6, group) for tokens, group in zip(TOKENS, "aabb", strict=True)]
TRAINING = lens.Training(steps=1, tokens=24)
PARTS = {"norms": 4, "future_local": 4, "future": 4, "current_attention": 4, "depth_score": 4,
         "trajectories": 4,
         "overlap": 2}  # fmt: skip


def model():
    lm = tiny()
    return dataclasses.replace(lm, meta=lm.meta | {"step": 3})


LM = model()


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr(figure, "save", lambda fig, path: None)


def run(output, name, cases=CASES, lm=LM, said=None, **options):
    say = (lambda text: None) if said is None else said.append
    done = analyze.analyze(
        lm, [name], cases, output, prompts={"name": "made", "source": ""}, training=TRAINING,
        say=say, **options,
    )  # fmt: skip
    return done[name]


@pytest.fixture
def stopped(monkeypatch):
    """`stopped(n, asked)`: computing part number n raises KeyboardInterrupt, None: nothing does.

    How many parts each call computed is added to `asked`.
    """
    each = store.Parts.each

    def stopped(after, asked):
        def counted(self, compute, cases):
            numbers = itertools.count()
            asked.append(0)

            def computed(case):
                if next(numbers) == after:
                    raise KeyboardInterrupt
                found = compute(case)
                asked[-1] += 1
                return found

            return each(self, computed, cases)

        monkeypatch.setattr(store.Parts, "each", counted)

    return stopped


def same(a, b):
    a, b = (jax.tree.leaves_with_path(store._plain(dataclasses.asdict(x))) for x in (a, b))
    assert a == b and len(a) > 4


def test_the_diagnostics_over_prompts_are_tried():
    over_prompts = {name for name, one in DIAGNOSTICS.items() if one.prompts != 0}
    assert set(PARTS) == over_prompts


@pytest.mark.parametrize("name", PARTS)
def test_a_stopped_diagnostic_computes_what_is_left_and_ends_in_the_same_bits(
    name, stopped, tmp_path
):
    asked, said, partial = [], [], tmp_path / f"b/{name}-made.partial.npz"
    stopped(None, asked)
    whole = run(tmp_path / "a", name)
    stopped(PARTS[name] - 1, asked)
    with pytest.raises(UserError) as told:
        run(tmp_path / "b", name)
    assert str(told.value) == f"stopped in {name}-made; rerun the same command to resume"
    assert partial.exists() and not (tmp_path / f"b/{name}-made.json").exists()
    stopped(None, asked)
    same(run(tmp_path / "b", name, said=said), whole)
    assert asked == [PARTS[name], PARTS[name] - 1, 1]
    assert not partial.exists() and said[-1].startswith(f"{name}-made: 0:")
    kind = DIAGNOSTICS[name].result_type()
    same(*(store.load(tmp_path / place, f"{name}-made", name, kind) for place in "ab"))


def test_parts_of_something_else_are_replaced(stopped, tmp_path):
    asked = []

    def stop_after(n, **options):
        stopped(n, asked)
        with pytest.raises(UserError, match="^stopped in depth_score-made"):
            run(tmp_path, "depth_score", **options)
        return asked.pop()

    assert stop_after(2) == 2 and stop_after(0) == 0 and stop_after(1) == 1  # 3 are done
    assert stop_after(2, one_boundary=True) == 2
    assert stop_after(3, cases=CASES[::-1]) == 3
    other = dataclasses.replace(LM, meta=LM.meta | {"step": 4})
    assert stop_after(3, lm=other) == 3
    assert stop_after(3, again=True) == 3 and stop_after(2, again=True) == 2
    partial = tmp_path / "depth_score-made.partial.npz"
    partial.write_bytes(partial.read_bytes()[:-9])
    stopped(None, asked)
    run(tmp_path, "depth_score")
    assert asked == [4] and not partial.exists()


def test_parts_are_written_when_ten_seconds_have_passed(tmp_path, monkeypatch):
    clock, written = itertools.count(0, 4), []
    monkeypatch.setattr(store.time, "monotonic", lambda: float(next(clock)))
    parts = store.Parts(tmp_path / "x.partial.npz", {"n": 1})
    write = parts._write
    monkeypatch.setattr(parts, "_write", lambda *args: (written.append(len(args[1])), write(*args)))
    found = parts.each(lambda i: {"i": np.float32(i)}, range(9))
    assert [part["i"] for part in found] == list(range(9))
    assert written[-1] == 9 and len(written) == 4  # a part takes 4 s
    again = store.Parts(tmp_path / "x.partial.npz", {"n": 1})
    assert again.each(None, range(9)) == found and again.earlier > 36
    parts.remove()
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal
import tests.conftest
from loopjax.results import store
from tests import test_resume_analysis as test
write = store.Parts._write
def killed(self, about, found):
    write(self, about, found)
    if len(found) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
store.Parts._write, store.EVERY = killed, 0.0
test.run(os.environ["OUTPUT"], "depth_score")
"""


@pytest.mark.slow
def test_a_killed_process_is_gone_on_from(stopped, tmp_path):
    environment = os.environ | {"OUTPUT": str(tmp_path / "b"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", KILLED], cwd=ROOT, env=environment)
    assert done.returncode == -signal.SIGKILL
    asked = []
    stopped(None, asked)
    same(run(tmp_path / "b", "depth_score"), run(tmp_path / "a", "depth_score"))
    assert asked == [1, 4]


def test_accuracy_at_exits_keeps_the_tasks_that_are_done(tmp_path, monkeypatch):
    tasks, evaluated = ("copying_real", "var_assign_math_0"), []
    lm = dataclasses.replace(LM, tokenizer=None)
    monkeypatch.setattr(exit_accuracy, "ExitLM", lambda *args: type("", (), {"answers": {}})())
    monkeypatch.setattr(exit_accuracy, "_items", lambda task: [])
    monkeypatch.setattr(exit_accuracy, "_accuracy", lambda task, items, answers, i: i / 8)

    def run_task(harness, name, task, limit):
        evaluated.append(name)
        if evaluated.count(name) == 1 and name == tasks[1]:
            raise KeyboardInterrupt
        return {"n_samples": len(name)}

    monkeypatch.setattr(exit_accuracy, "run_task", run_task)
    with pytest.raises(
        UserError, match="^stopped in exit_accuracy; rerun the same command to resume$"
    ):
        run(tmp_path, "exit_accuracy", lm=lm, tasks=tasks)
    found = run(tmp_path, "exit_accuracy", lm=lm, tasks=tasks)
    assert evaluated == [*tasks, tasks[1]]
    assert found.tasks == tasks and found.n_items.tolist() == [12, 17]
    assert (found.unmodified == LM.plan.n_effective / 8).all()
