"""Asynchronous successive halving of the points of a sweep."""

import itertools
import json
import math
import random
import re

import pytest

from loopjax.cli import main as cli
from loopjax.errors import UserError
from loopjax.files import write_json
from loopjax.sweep import directory as files
from loopjax.sweep import halving, local, points, progress
from loopjax.sweep.halving import Halving, Settings
from tests.test_sweep import begin, config_file, end, starts, steps_of


def asha(losses, rungs, eta, workers):
    """The jobs of Algorithm 2 of Li et al. 2020, in order, by its pseudocode.

    A job is (trial, rung): train the trial until that rung; `rungs` is that of the end. Jobs of
    `workers` end in the order in which they began.
    """
    trials = list(losses)
    done = {k: {} for k in range(rungs + 1)}  # rung: {trial: loss}
    given, jobs, queue = set(), [], []

    def get_job():
        for k in reversed(range(rungs)):
            candidates = sorted(done[k], key=done[k].get)[: len(done[k]) // eta]
            promotable = [t for t in candidates if (t, k + 1) not in given]
            if promotable:
                return promotable[0], k + 1
        return next(((t, 0) for t in trials if (t, 0) not in given), None)

    while True:
        while len(queue) < workers and (job := get_job()):
            given.add(job)
            queue.append(job)
            jobs.append(job)
        if not queue:
            return jobs
        trial, rung = queue.pop(0)
        done[rung][trial] = losses[trial][rung]


def scheduled(losses, rungs, eta, workers):
    """The same by `Halving`: a run stops at its rung, and a free device takes the next in order."""
    halves = Halving(Settings(tuple(range(1, rungs + 1)), 1 / eta))
    idle, begun, jobs, queue = list(losses), set(), [], []
    while True:
        while len(queue) < workers and (order := halves.order(idle, begun)):
            name = order[0]
            halves.promote(name)
            rung = halves.rung(name)
            job = name, rungs if rung is None else rung - 1
            idle.remove(name)
            queue.append(job)
            jobs.append(job)
        if not queue:
            return jobs
        name, rung = queue.pop(0)
        if rung < rungs:
            halves.reach(name, rung + 1, losses[name][rung])
            idle.append(name)


@pytest.mark.parametrize("seed", range(20))
def test_jobs_are_those_of_the_published_algorithm(seed):
    chance = random.Random(seed)
    n, rungs, eta, workers = (chance.randint(*b) for b in ((1, 30), (1, 3), (2, 4), (1, 5)))
    losses = {f"p{i}": [chance.random() for _ in range(rungs + 1)] for i in range(n)}
    assert scheduled(losses, rungs, eta, workers) == asha(losses, rungs, eta, workers)


@pytest.mark.parametrize("seed", range(5))
def test_the_best_share_is_what_counting_the_better_ones_gives(seed):
    chance = random.Random(seed)
    for n, keep in itertools.product(range(12), (0.1, 0.25, 1 / 3, 0.5, 0.9)):
        values = {f"p{i}": chance.choice([1.0, 2.0, 3.0, math.nan, math.inf]) for i in range(n)}
        names = list(values)

        def better(a, b, names=names, values=values):
            x, y = (math.inf if math.isnan(values[name]) else values[name] for name in (a, b))
            return x < y or (x == y and names.index(a) < names.index(b))

        expected = {a for a in names if sum(better(b, a) for b in names) + 1 <= round(keep * n, 9)}
        assert set(halving.best(values, keep)) == expected


def test_one_who_was_promoted_stays_promoted_when_others_turn_out_better():
    halves = Halving(Settings((10, 20), 0.5))
    for name, value in {"a": 3.0, "b": 4.0}.items():
        halves.reach(name, 10, value)
    assert [halves.can_go_on(name) for name in "ab"] == [True, False]
    halves.promote("a")
    for name, value in {"c": 1.0, "d": 2.0}.items():
        halves.reach(name, 10, value)
    assert halves.order(["a", "b", "c", "d"], {"a", "b", "c", "d"}) == ["a", "c", "d"]
    assert halves.standing("b") == {
        "step": 10, "metric": "eval/nll", "value": 4.0, "rank": 4, "of": 4,
    }  # fmt: skip


def test_a_free_device_takes_the_highest_rung_first_and_a_new_point_last():
    halves = Halving(Settings((10, 20), 0.5))
    for value, name in enumerate("abcdef"):
        halves.reach(name, 10, float(value))
    for value, name in enumerate("ab"):
        halves.reach(name, 20, float(value))
    assert halves.order(list("hgfedcba"), {"g"}) == ["g", "a", "c", "h"]


def test_points_begin_in_an_order_of_their_names_alone(tmp_path):
    found = sweep_of(tmp_path)
    sweep = local._Sweep(found, [], progress.Screen(), [], Halving(Settings((20,))))
    order = [p.name for p in sweep._in_order(found)]
    assert sorted(order) == [p.name for p in found] != order
    assert [p.name for p in sweep._in_order(found[::-1])] == order


def rows(n, evaluated=(), base=0.0):
    """Rows of n steps: loss base + step, held-out NLL ten times the step where it is evaluated."""
    for step in range(1, n + 1):
        more = {"eval/nll": 10.0 * step + base} if step in evaluated else {}
        yield json.dumps({"step": step, "loss": base + step, **more}) + "\n"


def test_values_are_those_of_the_rungs_that_the_log_has_reached(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("".join(rows(45, (20, 40))) + '{"step": 46')
    assert halving.values_at(tmp_path, Settings((20, 40, 60))) == {20: 200.0, 40: 400.0}
    found = halving.values_at(tmp_path, Settings((20, 40, 60), metric="loss"))
    assert found == {20: 19.0, 40: 38.0}  # means of steps 18..20 and 36..40
    assert halving.values_at(tmp_path, Settings((50,), metric="loss")) == {}
    assert halving.values_at(tmp_path / "none", Settings((50,))) == {}


EIGHT = """
    for seed in range(8):
        add(seed=seed)
"""


def sweep_of(folder, steps=100):
    path = config_file(folder, EIGHT, steps)
    return points.points(str(path), ["--config.eval_every=10"], folder / "runs")


def test_the_state_is_read_back_from_the_logs(tmp_path):
    found = sweep_of(tmp_path)
    halves = Halving(Settings((20, 40), 0.5))
    for k, point in enumerate(found[:4]):
        point.workdir.mkdir(parents=True)
        n = 45 if k == 0 else 22
        (point.workdir / "metrics.jsonl").write_text("".join(rows(n, (20, 40), base=float(k))))
    for _ in range(2):
        for point in found:
            halves.read(point)
        assert halves.values == {
            20: {f"seed-{k}": 200.0 + k for k in range(4)}, 40: {"seed-0": 400.0},
        }  # fmt: skip
        assert halves.promoted == {20: {"seed-0"}, 40: set()}
    assert halves.order([p.name for p in found], set()) == [
        "seed-1", "seed-4", "seed-5", "seed-6", "seed-7",
    ]  # fmt: skip


def test_a_sweep_whose_points_stand_at_a_rung_starts_none_of_them_again(tmp_path, capsys):
    found = sweep_of(tmp_path)
    for k, point in enumerate(found):
        point.workdir.mkdir(parents=True)
        (point.workdir / "metrics.jsonl").write_text("".join(rows(21, (20,), base=float(k))))
    for point in found[:4]:
        write_json(point.workdir / "result.json", {})
    for _ in range(2):
        assert local.run(found, [local.ANY], progress.Screen(), Halving(Settings((20,), 0.5)))
        err = capsys.readouterr().err
        assert "4 of 8 points finished, 4 halved" in err and "training" not in err
        assert files.ended(found[7].workdir) == {
            "how": "halved", "step": 20, "metric": "eval/nll", "value": 207.0, "rank": 8, "of": 8,
            "failures": 0,
        }  # fmt: skip
    # One more may go on with another share; it is the best of those that stand there.
    halves = Halving(Settings((20,), 0.7))
    for point in found:
        halves.read(point)
    assert halves.order([p.name for p in found[4:]], set()) == ["seed-4"]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["keep=0.5"], "--halving steps= must be ascending steps; write --halving steps=100,300"),
        (["steps=40,20"], "--halving steps=40,20 must be ascending steps"),
        (["steps=20,20"], "--halving steps=20,20 must be ascending steps"),
        (["steps=a"], "--halving steps=a must be ascending steps"),
        (["steps=²"], "--halving steps=² must be ascending steps"),
        (["steps=20", "keep=1"], "--halving keep=1 must be a share between 0 and 1"),
        (["steps=20", "keep=nan"], "--halving keep=nan must be a share between 0 and 1"),
        (["steps=20", "keep=x"], "--halving keep=x must be a share between 0 and 1"),
        (["steps=20", "metric=acc"], "--halving metric=acc must be one of eval/nll, loss"),
        (["steps=20", "eta=3"], "--halving 'eta=3' must be one of steps=, keep=, metric="),
        (["20"], "--halving '20' must be one of steps=, keep=, metric="),
        (["steps=200"], "--halving: point seed-0 ends at step 100, before or at the rung 200"),
        (["steps=15"], "--halving: point seed-0 is not evaluated at all of the steps 15 (config.ev"),
        (["steps=10,20,30,40"], "keep=0.5 leaves none of 8 points after the rung 40"),
        (["steps=10", "--launcher=commands"], "--halving goes with --launcher=local"),
        (["steps=10", "--retry", "failed"], "--halving does not go with --retry"),
        (["steps=10", "--config.init_from=a", "--config.init=state"],
         "--halving: point seed-0 branches from a; rungs compare runs that start at step 0"),
    ],
)  # fmt: skip
def test_a_mistake_is_refused_in_a_sentence_before_anything_starts(flags, says, tmp_path, capsys):
    path = config_file(tmp_path, EIGHT, 100)
    command = ["sweep", f"--config={path}", f"--workdir={tmp_path / 'runs'}"]
    assert cli.main([*command, "--config.eval_every=10", "--halving", *flags]) == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_counts_of_shares_are_exact():
    assert [halving.count(100, k / 100) for k in range(1, 100)] == list(range(1, 100))
    with pytest.raises(UserError, match="leaves none of 1 points"):
        halving.check(Settings((1,), 0.5, "loss"), [_Point()])


class _Point:
    name = "only"

    class config:
        steps, eval_every, eval_batches, init_from, init = 10, 0, 0, "", "state"


FOUR = """
    for rate in (1e-5, 1e-2, 2e-2, 1e-4):
        add(learning_rate=rate)
"""


@pytest.mark.slow
def test_a_real_sweep_stops_the_worse_half_and_a_second_call_starts_nothing(tmp_path):
    path = config_file(tmp_path, FOUR, 300, "import tests.paced\n")
    directory = tmp_path / "runs"
    flags = ["--jobs=2", "--config.eval_every=50", "--halving", "steps=100", "keep=0.5"]
    _, err = end(begin(path, directory, *flags))
    names = [p.name for p in points.points(str(path), ["--config.eval_every=50"], directory)]
    finished = {n for n in names if (directory / n / "result.json").is_file()}
    halved = {n for n in names if files.ended(directory / n).get("how") == "halved"}
    assert finished | halved == set(names) and not finished & halved
    assert f"{len(finished)} of 4 points finished, {len(halved)} halved" in err

    def value(name):
        rows = (directory / name / "metrics.jsonl").read_text().splitlines()
        return json.loads(rows[99])["eval/nll"]

    # At the end, with all four at the rung, the best half is finished, and perhaps one that was
    # promoted when it was among the best of fewer.
    best = sorted(names, key=value)[:2]
    assert set(best) <= finished
    for name in halved:
        ended = files.ended(directory / name)
        assert (ended["value"], ended["step"], ended["of"]) == (value(name), 100, 4)
        assert 100 <= steps_of(directory, name)[-1] < 300
        assert re.search(r"stopped; saved step \d+", (directory / name / "train.log").read_text())
    before = {n: starts(directory, n) for n in names}
    _, err = end(begin(path, directory, *flags))
    assert {n: starts(directory, n) for n in names} == before and "training" not in err
