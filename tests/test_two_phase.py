"""Log-spaced evaluations and checkpoints, accuracy on training data, training sets of N instances."""

import importlib
import json
import pathlib

import numpy as np
import pytest

from loopjax import config as config_lib
from loopjax import curriculum, model
from loopjax.checkpoint import load_params
from loopjax.data import pipeline, registry
from loopjax.data.floors import floors
from loopjax.depth import DepthPlan
from loopjax.early_stopping import EarlyStopping
from loopjax.errors import UserError
from loopjax.files import read_rows
from loopjax.model_config import ModelConfig
from loopjax.run import plan_run
from loopjax.step_grid import Kept, log_spaced, log_steps
from loopjax.sweep import branches
from loopjax.train import train

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture
def config(tiny_config):
    """One layer, 12 steps on 20 instances, evaluated at log-spaced steps."""
    tiny_config.growth.operator = ""
    tiny_config.depth = "1"
    tiny_config.cooldown.steps, tiny_config.cooldown.mixture = 0, {}
    tiny_config.mixture = {"mod_addition_9:20": 1.0}
    tiny_config.update(eval_per_decade=4, eval_train=True, eval_batches=2, checkpoint_every=0)
    return tiny_config


# The grid.


@pytest.mark.parametrize("per_decade", [1, 3, 8, 20])
def test_log_spaced_steps_are_rounded_powers(per_decade):
    expected = {round(10 ** (k / per_decade)) for k in range(4 * per_decade + 1)}
    assert {step for step in range(10_001) if log_spaced(step, per_decade)} == expected
    assert log_steps(per_decade, 10_000) == sorted(expected)
    # No two of them are further apart than a factor and what rounding makes of it.
    steps = np.array(sorted(expected))
    assert (steps[1:] <= 10 ** (1 / per_decade) * (steps[:-1] + 0.5) + 0.5).all()


def test_without_a_grid_no_step_is_on_it():
    assert not any(log_spaced(step, 0) for step in range(100)) and log_steps(0, 100) == []


def test_evaluations_are_those_of_both_grids_and_the_last(config):
    config.update(steps=250, eval_every=100, eval_per_decade=2)
    early = EarlyStopping(config, 0, {})
    found = [step for step in range(1, 251) if early.evaluates(step)]
    assert found == [1, 3, 10, 32, 100, 200, 250]
    assert early.scheduled(200) and not early.scheduled(250)


def test_checkpoints_of_the_grid_are_kept_besides_the_newest():
    class Checkpoint:
        def __init__(self, step):
            self.step = step

    def kept(*args, steps):
        flags = Kept(*args).should_preserve([Checkpoint(step) for step in steps])
        return [step for step, flag in zip(steps, flags, strict=True) if flag]

    steps = range(1, 121)
    assert kept(2, 0, 2, steps=steps) == [1, 3, 10, 32, 100, 119, 120]
    assert kept(1, 50, 1, steps=steps) == [1, 10, 50, 100, 120]
    assert kept(0, 0, 0, steps=steps) == [*steps]


def test_a_branch_may_start_at_a_step_that_the_grid_keeps(tmp_path):
    class Point:
        def __init__(self, name, config, base=None):
            self.name, self.config, self.base = name, config, base
            self.workdir = tmp_path / name

    config = config_lib.default()
    config.update(steps=1000, checkpoint_every=0, keep_last=1, keep_per_decade=4)
    for step in (178, 1000):
        points = [Point("a", config), Point("b", config, branches.Reference("a", step))]
        branches._check_step(points[1], points[0])
    with pytest.raises(UserError, match="saves no such step"):
        branches._check_step(Point("b", config, branches.Reference("a", 179)), points[0])


# Training sets.


def test_a_training_set_is_the_first_n_different_instances(config):
    endless = registry.open_source("mod_addition_9", "train", 3, 0, None)
    limited = registry.open_source("mod_addition_9:60", "train", 3, 0, None)
    seen = {}
    for number in range(2000):
        seen.setdefault(tuple(endless[number]["inputs"]), len(seen))
    rows = [tuple(limited[i]["inputs"]) for i in range(60)]
    assert limited.finite and len(limited) == 60 == len({*rows})
    assert [seen[row] for row in rows] == [*range(60)]
    assert limited.fingerprint == {**endless.fingerprint, "instances": 60}


def test_every_epoch_holds_every_instance_once(config):
    config.update(steps=20, batch_size=10)
    stream = pipeline.TrainStream(config, curriculum.build(config))
    rows = [tuple(r) for b in stream.batches(np.arange(10), 0) for r in b["inputs"].tolist()]
    epochs = [rows[i : i + 20] for i in range(0, 200, 20)]
    assert all({*epoch} == {*epochs[0]} and len({*epoch}) == 20 for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_held_out_instances_are_never_in_a_training_set():
    train_set = registry.open_source("mod_addition_9:60", "train", 3, 0, None)
    heldout = registry.open_source("mod_addition_9:60", "heldout", 3, 0, None)
    inside = {tuple(train_set[i]["inputs"]) for i in range(60)}
    outside = {tuple(heldout[i]["inputs"]) for i in range(200)}
    assert not heldout.finite and not inside & outside


def test_more_instances_than_there_are_is_a_sentence(config):
    config.mixture = {"mod_addition_9:82": 1.0}
    with pytest.raises(UserError, match="mod_addition_9:82 asks for more than the 7. different"):
        plan_run(config)


@pytest.mark.parametrize("name", ["sanford_2", "addition_2", "p_hop_1", "igsm_2", "hops_2x8"])
def test_every_synthetic_task_can_be_a_training_set(name):
    source = registry.open_source(f"{name}:3", "train", 99, 0, None)
    endless = registry.open_source(name, "train", 99, 0, None)
    assert len(source) == 3
    np.testing.assert_array_equal(source[2]["inputs"], endless[2]["inputs"])
    assert source.vocab_size == endless.vocab_size and source.tokenizer == endless.tokenizer
    assert source.one_answer == endless.one_answer


@pytest.mark.parametrize("name", ["stdlib:5", "sanford_2:0", "sanford_2:", "sanford_2:x", "no:5"])
def test_other_names_are_no_training_sets(name):
    assert registry.limited(name) == (name, 0)


# Modular addition.


def test_sums_are_modulo_p():
    source = registry.open_source("mod_addition_23", "train", 5, 0, None)
    for i in range(100):
        example = source[i]
        a, b, equals, *padding = example["inputs"].tolist()
        assert equals == 23 and padding == [(a + b) % 23, 24]
        assert example["targets"].tolist() == [-1, -1, (a + b) % 23, -1, -1]
    assert floors("mod_addition_23").best == floors("mod_addition_23:50").best == ("chance", 1 / 23)


@pytest.mark.parametrize(
    ("name", "seq_len", "sentence"),
    [
        ("mod_addition_7", 3, "the modulus must lie within 8..1000"),
        ("mod_addition_23", 2, "config.seq_len=2 is too short for mod_addition_23"),
    ],
)
def test_impossible_sums_are_refused(name, seq_len, sentence):
    with pytest.raises(UserError, match=sentence):
        registry.open_source(name, "train", seq_len, 0, None)


# Runs.


def test_a_sample_is_spread_over_a_finite_source_and_the_beginning_of_an_endless_one():
    class Numbers:
        name, limit = "numbers", 9

        def __init__(self, n, finite):
            self.n, self.finite = n, finite

        def __len__(self):
            return self.n

        def __getitem__(self, i):
            return i

    def sample(n, finite, size):
        found = pipeline.Sample(Numbers(n, finite), size)
        return [found[i] for i in range(len(found))]

    assert sample(10, True, 4) == [0, 2, 5, 7]
    assert sample(3, True, 8) == [0, 1, 2]
    assert sample(2**31 - 1, False, 3) == [0, 1, 2]


def test_training_rows_are_evaluated_like_held_out_ones_and_all_is_on_the_grid(config, tmp_path):
    config.update(keep_per_decade=2, keep_last=1)
    train(config, tmp_path)
    rows = read_rows(tmp_path / "metrics.jsonl")
    source = "mod_addition_9:20"
    evaluated = [row["step"] for row in rows if f"train/{source}/nll" in row]
    assert evaluated == [1, 2, 3, 6, 10, 12] == [r["step"] for r in rows if "eval/nll" in r]
    steps = sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert steps == [1, 3, 10, 12]
    # The loss on the whole training set by the checkpoint, in plain JAX.
    params, meta = load_params(tmp_path, 10)
    instances = registry.open_source(source, "train", 9, config.seed, None)
    # Two batches of eight: as many as held-out rows.
    examples = [instances[i * 20 // 16] for i in range(16)]
    inputs, targets = (np.stack([e[key] for e in examples]) for key in ("inputs", "targets"))
    logits = model.forward(params, inputs, ModelConfig(**meta["model"]), DepthPlan.parse("1"))
    logits = np.asarray(logits, np.float64)
    at = targets >= 0
    z = logits[at] - logits[at].max(-1, keepdims=True)
    nll = (np.log(np.exp(z).sum(-1)) - z[np.arange(at.sum()), targets[at]]).mean()
    row = rows[9]
    assert row[f"train/{source}/nll"] == row["train/nll"] == pytest.approx(nll, rel=1e-4)
    accuracy = (logits[at].argmax(-1) == targets[at]).mean()
    assert row["train/accuracy"] == pytest.approx(accuracy)
    result = json.loads((tmp_path / "result.json").read_text())
    assert not any("train" in name for name in result["heldout"])


def test_without_these_fields_a_run_logs_what_it_always_did(config, tmp_path):
    config.update(eval_per_decade=0, eval_train=False, keep_per_decade=0)
    train(config, tmp_path)
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows if "eval/nll" in row] == [12]
    assert not any(name.startswith(("train/", "mixture/")) for row in rows for name in row)


def test_contradictions_are_refused(config):
    config.update(patience=2, eval_every=2, keep_per_decade=3)
    with pytest.raises(UserError, match="config.keep_per_decade=3 is for others"):
        plan_run(config)
    config.update(patience=0, eval_batches=0)
    with pytest.raises(UserError, match="config.eval_train=True requires config.eval_batches"):
        plan_run(config)


# The experiment.


@pytest.fixture
def two_phase(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    monkeypatch.chdir(ROOT)
    return importlib.import_module("two_phase")


def rows_of(train_accuracy, heldout):
    return [
        {"step": 10 * (k + 1), "train/accuracy": a, "eval/accuracy": b}
        for k, (a, b) in enumerate(zip(train_accuracy, heldout, strict=True))
    ]


def test_the_clock_of_a_run_is_the_first_step_that_is_good_enough(two_phase):
    rows = [{"step": 5}, *rows_of([0.2, 0.99, 0.9, 1.0], [0.1, 0.2, 0.5, 0.995])]
    assert two_phase.clock(rows) == {"train": 20, "heldout": 40, "ratio": 2.0}
    never = two_phase.clock(rows_of([0.2, 1.0], [0.1, 0.2]))
    assert never == {"train": 20, "heldout": None, "ratio": None}
    assert two_phase.clock(rows_of([0.2], [0.1]))["train"] is None


@pytest.mark.parametrize(
    ("clocks", "verdict"),
    [
        ([(50, 500), (60, 600), (40, 420)], "reproduced"),
        ([(50, 60), (60, 70), (50, 58)], "partly"),
        ([(50, 500), (60, None)], "undecided"),
        ([(None, None), (None, None)], "undecided"),
    ],
)
def test_the_verdict_follows_from_the_clocks(two_phase, clocks, verdict):
    ones = [{"train": a, "heldout": b, "ratio": b / a if a and b else None} for a, b in clocks]
    text, (claim,) = two_phase._finding({"2": ones})
    assert claim.verdict == verdict and f"{len(ones)} seeds" in text
    missing = [
        what for one, what in zip(clocks[-1], ("training", "held-out"), strict=True) if not one
    ]
    assert not missing or f"seeds do not know their {missing[0]} data" in claim.reason
