"""Weights of sources that follow held-out metrics: the formula, and runs that are stopped and resumed."""

import json
import math

import numpy as np
import pytest

from loopjax import curriculum
from loopjax.checkpoint_files import read_meta
from loopjax.cli.main import main
from loopjax.data import pipeline
from loopjax.errors import UserError
from loopjax.files import read_rows
from loopjax.mixture_update import History, mixture_after
from loopjax.run import outline, plan_run
from loopjax.train import train

SOURCES = ("p_hop_1", "p_hop_2", "p_hop_3")


@pytest.fixture
def config(tiny_config):
    """12 steps of one layer and three sources whose weights follow an evaluation every second step."""
    tiny_config.mixture = {"p_hop_1": 6.0, "p_hop_2": 3.0, "p_hop_3": 1.0}
    tiny_config.cooldown.mixture = {}
    tiny_config.cooldown.steps = 2
    tiny_config.growth.operator = ""
    tiny_config.depth = "1"
    tiny_config.eval_every = 2
    tiny_config.mixture_update.update(
        rate=0.5,
        smoothing=0.5,
        floor=0.05,
        bounds={"p_hop_1": 1.5, "p_hop_2": 1.0, "p_hop_3": 0.5},
    )
    return tiny_config


def by_numpy(mixture, evaluations, rate, bounds, smoothing, floor, sign=1.0):
    """Shares after each evaluation, [N, S]: exponentiated gradient, then the projection on the floor."""
    w = np.array([mixture[name] for name in SOURCES], float)
    w /= w.sum()
    average, out = None, []
    for metrics in evaluations:
        gap = np.maximum(0, sign * (np.array(metrics) - np.array([bounds[n] for n in SOURCES])))
        average = gap if average is None else smoothing * average + (1 - smoothing) * gap
        w = w * np.exp(rate * average)
        w /= w.sum()
        # The scale c of max(floor, c w) whose sum is 1, by bisection.
        low, high = 0.0, 1.0 / w.max()
        for _ in range(200):
            c = (low + high) / 2
            low, high = (low, c) if np.maximum(floor, c * w).sum() > 1 else (c, high)
        w = np.maximum(floor, c * w)
        out.append(w)
    return np.array(out)


def rows_of(evaluations, metric="nll"):
    return [
        {f"eval/{name}/{metric}": float(v) for name, v in zip(SOURCES, one, strict=True)}
        for one in evaluations
    ]


@pytest.mark.parametrize("metric", ["nll", "accuracy"])
@pytest.mark.parametrize(
    ("rate", "smoothing", "floor"), [(1.0, 0.0, 1e-6), (5.0, 0.7, 0.02), (300.0, 0.0, 0.1)]
)
def test_weights_are_those_of_the_formula(config, metric, rate, smoothing, floor):
    config.mixture_update.update(rate=rate, smoothing=smoothing, floor=floor, metric=metric)
    evaluations = 0.5 + np.random.default_rng(0).random((9, 3))
    mixture, bounds = config.mixture.to_dict(), config.mixture_update.bounds.to_dict()
    sign = 1.0 if metric == "nll" else -1.0
    expected = by_numpy(mixture, evaluations, rate, bounds, smoothing, floor, sign)
    for n in range(1, 10):
        found = mixture_after(mixture, rows_of(evaluations[:n], metric), config.mixture_update)
        np.testing.assert_allclose([found[name] for name in SOURCES], expected[n - 1], rtol=1e-9)
        assert math.fsum(found.values()) == pytest.approx(1, abs=1e-12)


def test_a_gap_of_any_size_gives_finite_weights(config):
    config.mixture_update.update(rate=1e6, floor=0.05)
    found = mixture_after(config.mixture, rows_of([[900.0, 1.0, 1.0]]), config.mixture_update)
    assert found == {"p_hop_1": pytest.approx(0.9), "p_hop_2": 0.05, "p_hop_3": 0.05}


def test_weights_stay_where_no_source_is_beyond_its_bound(config):
    shares = {"p_hop_1": 0.6, "p_hop_2": 0.3, "p_hop_3": 0.1}
    found = mixture_after(config.mixture, rows_of([[0.1, 0.2, 0.3]] * 5), config.mixture_update)
    assert found == pytest.approx(shares, rel=1e-15)


def test_a_history_is_the_fold_of_its_evaluations_and_survives_json(config):
    evaluations = rows_of(1 + np.random.default_rng(1).random((4, 3)))
    mixture, history = curriculum.build(config)[0].mixture, History()
    for step, evaluation in enumerate(evaluations):
        history = History.of_json(json.loads(json.dumps(history.to_json())))
        history = history.plus(*history.next(step, mixture, evaluation, config.mixture_update))
    assert history.changes[-1][1] == mixture_after(mixture, evaluations, config.mixture_update)
    assert [start for start, _ in history.changes] == [1, 2, 3, 4]


# The data.


def loop_of_sources(mixture, changes, batch_size, steps, seed):
    """Source of each row, [steps, B], by counting through blocks of 10,000 examples one by one."""
    starts = {0: mixture} | {start: weights for start, weights in changes}
    out, phase, number = [], -1, 0
    for step in range(steps):
        if step in starts:
            phase, number = phase + 1, 0
            counts = pipeline._proportions([starts[step][name] for name in SOURCES])
        for _ in range(batch_size):
            labels, _ = pipeline._block(seed, phase, number // pipeline.BLOCK, counts)
            out.append(labels[number % pipeline.BLOCK])
            number += 1
    return np.array(out).reshape(steps, batch_size)


def test_rows_follow_from_seed_step_and_weights_alone(config):
    config.update(steps=40, batch_size=8)
    stream = plan_run(config).stream
    changes = (
        (7, {"p_hop_1": 0.05, "p_hop_2": 0.05, "p_hop_3": 0.9}),
        (19, {"p_hop_1": 0.9, "p_hop_2": 0.05, "p_hop_3": 0.05}),
    )
    stream.follow(History(changes, {}))
    expected = loop_of_sources(config.mixture, changes, 8, 40, config.seed)
    read = np.zeros(3, int)
    for step in range(40):
        for row in range(8):
            source, position = stream.mixing[8 * step + row]
            # A source is read in order, whatever the weights.
            assert (source, position) == (expected[step, row], read[source])
            read[source] += 1


@pytest.mark.parametrize("threads", [1, 4])
def test_batches_change_at_the_step_of_the_history_however_far_the_threads_have_read(
    config, threads
):
    config.update(steps=40, data_threads=threads)
    history = History(((9, {"p_hop_1": 0.05, "p_hop_2": 0.05, "p_hop_3": 0.9}),), {})
    run = plan_run(config)
    rows = np.arange(8)
    changed = plan_run(config).stream
    changed.follow(history)
    expected = [batch["inputs"] for batch in changed.batches(rows, 0)]
    batches, found = run.stream.batches(rows, 0), []
    for step in range(41):
        if step == 8:  # after that, up to 2 x threads batches of the old weights are read already
            run.stream.follow(history)
        found.append(next(batches)["inputs"])
    np.testing.assert_array_equal(found, expected)
    plain = [batch["inputs"] for batch in plan_run(config).stream.batches(rows, 0)]
    same = [np.array_equal(a, b) for a, b in zip(found, plain, strict=True)]
    assert all(same[:9]) and not any(same[9:])
    # From any step, also one between an evaluation and the first batch with its weights.
    for start in (8, 9, 20):
        np.testing.assert_array_equal(next(changed.batches(rows, start))["inputs"], found[start])


# Runs.


@pytest.mark.slow
def test_a_run_logs_the_weights_that_its_evaluations_make(config, tmp_path):
    train(config, tmp_path)
    rows = {row["step"]: row for row in read_rows(tmp_path / "metrics.jsonl")}
    evaluated = [rows[step] for step in range(2, 13, 2)]
    metrics = [[row[f"eval/{name}/nll"] for name in SOURCES] for row in evaluated]
    update = config.mixture_update
    expected = by_numpy(
        config.mixture, metrics, update.rate, update.bounds, update.smoothing, update.floor
    )
    found = [[row[f"mixture/{name}"] for name in SOURCES] for row in evaluated]
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert len({tuple(one) for one in found}) == 6
    assert not any("mixture/p_hop_1" in rows[step] for step in range(1, 12, 2))
    # The held-out mean keeps the weights of the config: a fixed yardstick.
    mean = np.average(metrics[-1], weights=[config.mixture[name] for name in SOURCES])
    assert evaluated[-1]["eval/nll"] == pytest.approx(mean, rel=1e-12)
    meta = read_meta(tmp_path / "checkpoints", 8)
    changes = meta["mixture_history"]["changes"]
    assert [start for start, _ in changes] == [3, 5, 7, 9]
    assert changes[-1][1] == {name: rows[8][f"mixture/{name}"] for name in SOURCES}


def without_times(rows):
    return [
        {k: v for k, v in row.items() if k not in ("wall_clock_s", "tokens_per_s", "compile_s")}
        for row in rows
    ]


@pytest.mark.slow
@pytest.mark.parametrize("at", [5, 6])
def test_a_stopped_run_goes_on_as_if_it_had_not_been_stopped(config, tmp_path, at):
    """At step 6 the weights of its evaluation wait for the second batch after the checkpoint."""
    config.checkpoint_every = 1
    if at == 6:  # and the stack has grown
        config.growth.update(operator="lidas", block=1, steps=8)
        config.depth = "2"
    train(config, tmp_path / "whole")
    train(config, tmp_path / "stopped")
    for step in range(at + 1, 13):
        (tmp_path / "stopped/checkpoints" / str(step)).rename(tmp_path / f"{at}-{step}")
    (tmp_path / "stopped/result.json").unlink()
    config.data_threads = 4
    train(config, tmp_path / "stopped")
    whole, stopped = (
        without_times(read_rows(tmp_path / n / "metrics.jsonl")) for n in ("whole", "stopped")
    )
    assert whole == stopped
    sums = [read_meta(tmp_path / n / "checkpoints", 12)["checksums"] for n in ("whole", "stopped")]
    assert sums[0] == sums[1]


@pytest.mark.slow
def test_the_data_of_a_run_differ_from_those_with_constant_weights_after_the_first_evaluation(
    config, tmp_path
):
    train(config, tmp_path / "moving")
    config.mixture_update.rate = 0.0
    train(config, tmp_path / "constant")
    moving, constant = (
        [row["loss"] for row in read_rows(tmp_path / name / "metrics.jsonl")]
        for name in ("moving", "constant")
    )
    assert moving[:3] == constant[:3]  # update 4 is the first
    other = np.abs(np.subtract(moving, constant))[3:]
    assert other.max() > 0.1, "other rows, not another rounding"


@pytest.mark.slow
def test_a_longer_run_is_the_same_up_to_the_end_of_a_shorter_one(config, tmp_path):
    """The evaluation at the last step alone, which a longer run does not make, changes nothing."""
    config.update(steps=9, schedule="constant")
    train(config, tmp_path / "run")
    config.steps = 12
    train(config, tmp_path / "run")
    train(config, tmp_path / "whole")
    rows = [
        without_times(read_rows(tmp_path / name / "metrics.jsonl")) for name in ("run", "whole")
    ]
    assert [row["loss"] for row in rows[0]] == [row["loss"] for row in rows[1]]


@pytest.mark.slow
def test_a_branch_takes_the_weights_along_and_its_cooldown_has_its_own(config, tmp_path):
    train(config, tmp_path / "run")
    config.mixture_update.rate = 0.0
    config.init_from = f"{tmp_path}/run@8"
    train(config, tmp_path / "frozen")
    history = read_meta(tmp_path / "frozen/checkpoints", 12)["mixture_history"]
    assert [start for start, _ in history["changes"]] == [3, 5, 7, 9]  # no more after step 8

    config.init_from = f"{tmp_path}/run@10"
    config.cooldown.mixture = {"p_hop_1": 1.0}
    train(config, tmp_path / "cooldown")
    phases = plan_run(config).phases
    history = History.of_json(read_meta(tmp_path / "cooldown/checkpoints", 12)["mixture_history"])
    made = curriculum.mixtures(phases, history.changes)
    assert [start for start, _ in made] == [0, 3, 5, 7, 9, 10]
    assert made[-1][1] == {"p_hop_1": 1.0}  # and not what step 11 would have begun with


@pytest.mark.slow
def test_weights_do_not_depend_on_the_mesh(config, tmp_path):
    config.steps = 4
    found = []
    for name, mesh in (("data", {}), ("all", {"data": 2, "fsdp": 2, "tensor": 2})):
        config.mesh.update(mesh)
        train(config, tmp_path / name)
        rows = read_rows(tmp_path / name / "metrics.jsonl")
        expected = mixture_after(config.mixture, [rows[1], rows[3]], config.mixture_update)
        found.append({name: rows[3][f"mixture/{name}"] for name in SOURCES})
        assert found[-1] == expected
    assert found[0] == pytest.approx(found[1], rel=1e-4)


# Mistakes.


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"rate": -1.0}, "config.mixture_update.rate=-1.0 must be finite and at least 0"),
        ({"rate": math.nan}, "config.mixture_update.rate=nan must be finite"),
        ({"metric": "loss"}, "config.mixture_update.metric='loss' must be one of nll, accuracy"),
        ({"smoothing": 1.0}, "config.mixture_update.smoothing=1.0 must be at least 0 and below 1"),
        ({"floor": 0.0}, "config.mixture_update.floor=0.0 must lie between 0 and 1"),
        ({"floor": 0.11}, "floor=0.11 must be at most the smallest share .* 0.1 of 'p_hop_3'"),
        ({"bounds": {"web": 1.0}}, r"bounds has \['web'\], but the sources of config.mixture are"),
        ({"bounds": {"p_hop_1": 1.0}}, r"it lacks \['p_hop_2', 'p_hop_3'\]"),
        ({"bounds": {"p_hop_1": math.inf}}, "must be finite numbers"),
        ({"bounds": {"p_hop_1": "low"}}, "must be finite numbers"),
    ],
)
def test_settings_that_cannot_be_followed_are_refused(config, change, sentence):
    config.mixture_update.update(change) if "bounds" not in change else setattr(
        config.mixture_update, "bounds", change["bounds"]
    )
    with pytest.raises(UserError, match=sentence):
        outline(config)


def test_a_mixture_that_cannot_move_is_refused(config):
    for change, sentence in (
        ({"eval_every": 0}, "rate=0.5 requires config.eval_batches, and config.eval_every"),
        ({"eval_batches": 0}, "rate=0.5 requires config.eval_batches"),
        ({"mixture": {"p_hop_1": 1.0}}, "at least two sources"),
    ):
        other = config.copy_and_resolve_references()
        other.update(change) if "mixture" not in change else setattr(
            other, "mixture", change["mixture"]
        )
        if "mixture" in change:
            other.mixture_update.bounds = {"p_hop_1": 1.0}
        with pytest.raises(UserError, match=sentence):
            outline(other)
    config.cooldown.mixture = {"p_hop_1": 1.0}
    with pytest.raises(UserError, match="config.cooldown.mixture is another; branch off"):
        outline(config)


def test_the_command_line_takes_bounds_and_ends_with_a_sentence(tmp_path, capfd):
    command = ["train", "--config=tests/tiny_config.py", f"--workdir={tmp_path / 'run'}"]
    flags = [
        "--config.mixture_update.rate=1", "--config.eval_every=2", "--config.cooldown.mixture={}",
        '--config.mixture_update.bounds={"p_hop_1": 1.0, "p_hop_9": 2}',
    ]  # fmt: skip
    assert main([*command, *flags]) == 2
    assert "config.mixture_update.bounds has ['p_hop_9']" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()
