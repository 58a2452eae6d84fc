"""`loopjax intervene --op repeat` with damped passes, and the choice of the best one on other items."""

import contextlib
import io
import json

import jax
import numpy as np
import pytest

from loopjax import model
from loopjax.analysis import choice, interventions
from loopjax.cli import analysis
from loopjax.depth import DepthPlan
from loopjax.errors import UserError
from loopjax.evals import evaluate, suite
from loopjax.evals.harness import LoopjaxLM
from loopjax.interop.export_hf import export_hf
from loopjax.lm.loaded_model import open_model
from loopjax.passes import DAMPED, Passes
from loopjax.plots import accuracy
from loopjax.report import diagnostic_findings
from loopjax.results import reader
from tests.test_interventions import CFG, TOKENS, save

TASK = "copying_real"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("windows")
    for depth in ("4", "1-2x3-1"):
        save(place / depth, depth)
    return place


@pytest.fixture(scope="module")
def standard(place):
    return open_model(place / "4", devices=jax.devices()[:1], context=200)


def run(place, output, *argv, model="4"):
    command = ["--checkpoint", str(place / model), "--output", str(output), "--op", "repeat"]
    command += ["--num-fewshot", "1", "--tasks", TASK, "--max-length", "200", "--size", "2"]
    with contextlib.redirect_stdout(io.StringIO()):
        return analysis.intervene([*command, *argv])


def test_a_window_is_the_plan_that_says_the_same(standard):
    edited = interventions.Intervention("repeat", 2, 1, 2, DAMPED).edited(standard)
    assert edited.plan == DepthPlan.parse("1-2x3:damped-1")
    assert edited.params is standard.params  # nothing is copied
    assert str(interventions.Intervention("repeat", 2, 1, 2, Passes(0.5, "mlp"))) == (
        "repeat 2 at 1, 2 more, damped0.5:mlp"
    )


@pytest.mark.slow
def test_a_window_may_lie_across_the_passes_of_a_loop(place):
    looped = open_model(place / "1-2x3-1", devices=jax.devices()[:1])
    edited = looped.with_window(2, 3, 2, DAMPED)  # executed layers 2 1 2 of 0 1 2 1 2 1 2 3
    assert str(edited.plan) == "2-3x2:damped-3"
    params = jax.device_get(looped.params)
    copies = jax.tree.map(lambda leaf: leaf[np.array([0, 1, 2, 1, 2, 1, 2, 3])], params["layers"])
    tokens, expected = TOKENS[:1], DepthPlan.parse("2-3x2:damped-3")
    found = model.residual(edited.params, tokens, CFG, edited.plan)
    whole = model.residual({**params, "layers": copies}, tokens, CFG, expected)
    np.testing.assert_allclose(found, whole, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="has a window; its layers cannot be reordered"):
        edited.with_order((0, 1))


ARGV = ["--passes", "plain,damped", "--starts", "0,1", "--limit", "12", "--dev", "4"]


def plain(value):
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items() if k not in ("seconds", "begun")}
    return [plain(v) for v in value] if isinstance(value, list) else value


@pytest.mark.slow
def test_the_best_on_some_items_is_measured_on_the_others(
    place, tmp_path, monkeypatch, standard, capsys
):
    output, stopped = tmp_path / "whole.json", tmp_path / "stopped.json"
    assert run(place, output, *ARGV) == 0
    lines = capsys.readouterr().err
    found = json.loads(output.read_text())
    assert [(row["start"], row["passes"]) for row in found["rows"]] == [
        (0, "plain"), (1, "plain"), (0, "damped"), (1, "damped"),
    ]  # fmt: skip
    task = suite.load([TASK], num_fewshot=1)["tasks"][TASK]
    split = choice.split(TASK, task, 12, 4)
    assert sorted(split.dev + split.test) == list(range(12)) and len(split.dev) == 4
    accuracies = [row["tasks"][TASK]["accuracy"] for row in found["rows"]]
    made = found["choice"]
    assert made["row"] == int(np.argmax(accuracies)) and made["tried"] == 4
    # Every number again, by the task on the model that the row names.
    harness = LoopjaxLM(standard)
    for row in found["rows"]:
        harness.lm = interventions._of_row("repeat", row).edited(standard)
        alone = evaluate.run_task(harness, TASK, task, None, items=split.dev)
        assert alone["metrics"]["acc,none"] == row["tasks"][TASK]["accuracy"]
    harness.lm = interventions._of_row("repeat", found["rows"][made["row"]]).edited(standard)
    edited = evaluate.run_task(harness, TASK, task, None, items=split.test)
    assert made["chosen"][TASK]["metrics"] == edited["metrics"]
    difference = np.subtract(made["chosen"][TASK]["values"], made["unmodified"][TASK]["values"])
    assert len(difference) == made["difference"][TASK]["n"] == 8
    assert made["difference"][TASK]["mean"] == pytest.approx(difference.mean())
    half = 2.364624 * difference.std(ddof=1) / np.sqrt(8)
    assert made["difference"][TASK]["high"] == pytest.approx(difference.mean() + half)
    assert f"best of 4 on the items to choose by: {made['intervention']}" in lines
    assert f"{TASK}, 8 other items: " in lines

    # Stopped within the part on the other items, the same command ends the same.
    def stops(harness, name, task, limit, *, items=None, metric=None):
        if metric and not harness.lm.plan.is_looped and harness.lm.order is None:
            return evaluate.run_task(harness, name, task, limit, items=items, metric=metric)
        if metric:
            raise KeyboardInterrupt
        return evaluate.run_task(harness, name, task, limit, items=items, metric=metric)

    monkeypatch.setattr(interventions, "run_task", stops)
    with pytest.raises(KeyboardInterrupt):
        run(place, stopped, *ARGV)
    part = json.loads(stopped.read_text())["choice"]
    assert part["unmodified"] and not part["chosen"] and "difference" not in part
    monkeypatch.setattr(interventions, "run_task", evaluate.run_task)
    assert run(place, stopped, *ARGV) == 0
    assert plain(json.loads(stopped.read_text())) == plain(found)
    with pytest.raises(UserError, match="another model, command or settings"):
        run(place, stopped, *ARGV, "--starts", "0")

    (read,) = reader.read(output)
    assert "4 items to choose by" in read.of
    says = diagnostic_findings.interventions("repeat")({"m": read.value}, [])
    assert f"m, best of 4: {made['intervention']}; on items that took no part" in says
    panels = [axis.get_title("left") for axis in accuracy.plot_interventions({"m": found}).axes]
    assert panels == [f"{TASK}\nrepeat blocks of 2 layers once more".replace("blocks of ", ""),
                      f"{TASK}\nrepeat 2 layers once more, damped"]  # fmt: skip


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--op", "skip", "--passes", "damped"], "--passes goes with --op repeat, not with skip"),
        (["--passes", "halved"], "'halved' must be plain, damped .* or mlp"),
        (["--passes", "damped0"], "the damping factor 0 must lie within 0.001..1"),
        (["--limit", "5", "--dev", "4"], "--dev 4 must leave at least 2 items of task .* has 5"),
        (["--depth", "2-2x2:damped"], "--depth 2-2x2:damped has the window 2x2:damped"),
    ],
)
def test_mistakes_are_told_before_anything_is_evaluated(place, tmp_path, argv, says):
    with pytest.raises(UserError, match=says):
        run(place, tmp_path / "out.json", *argv)
    assert not (tmp_path / "out.json").exists()


def test_a_window_is_not_exported(place, tmp_path):
    with pytest.raises(UserError, match="^--depth=2-2x2:damped repeats 2x2:damped in steps"):
        export_hf(place / "4", tmp_path / "new", depth="2-2x2:damped")
    assert not (tmp_path / "new").exists()
