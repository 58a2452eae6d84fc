"""`loopjax results`: the answer of a sweep, as tables and as a figure.

The runs are files without training: what the tables say is known.
"""

import contextlib
import csv
import io
import itertools
import json
import math
import os
import re
import statistics
import sys

import pytest
from scipy import stats

from loopjax import config as config_lib
from loopjax import curriculum, intervals, lock, optim, run_record
from loopjax.cli import main as cli
from loopjax.errors import UserError
from loopjax.files import write_json
from loopjax.report import collect
from loopjax.results import schema
from loopjax.sweep import axis, compare, draw, metric, rows
from loopjax.text_table import prefixed
from tests.finished_run import finished_run

NAMES = ["seed-0", "seed-1", "1x2__seed-0"]


def results(*flags):
    """What `loopjax results` prints; fails if it fails."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert cli.main(["results", *map(str, flags)]) == 0
    return out.getvalue()


def tables(text):
    """The tables of a text, each as a list of {title: cell}."""
    found = []
    for block in re.findall(r"(?:^\|.*\|\n?)+", text, re.M):
        lines = [[c.strip() for c in line.strip("|").split("|")] for line in block.splitlines()]
        head, _, *body = lines
        found.append([dict(zip(head, line, strict=True)) for line in body])
    return found


# Intervals.


@pytest.mark.parametrize("df", [1, 2, 3, 4, 9, 30, 200])
@pytest.mark.parametrize("level", [0.5, 0.95, 0.99])
def test_students_t_is_that_of_scipy(df, level):
    assert intervals.student_t(df, level) == pytest.approx(
        stats.t.ppf((1 + level) / 2, df), rel=1e-9
    )


def test_the_interval_of_a_mean_is_that_of_the_t_test():
    values = [2.31, 2.25, 2.4, 2.28]
    found = intervals.mean_of(values)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.n, found.mean) == (4, statistics.fmean(values))
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-12)


@pytest.mark.parametrize("values", [[2.0], [2.0, math.nan], [math.inf, 2.0]])
def test_a_single_run_and_values_that_are_not_finite_have_no_interval(values):
    assert intervals.mean_of(values).half is None


# Fields without effect.

GROWN = {"growth.operator": "lidas", "growth.block": 2, "depth": "8"}
EFFECTS = [  # what a config sets, and a field with another value: whether it matters
    ({}, "growth.block", 2, False),
    ({}, "growth.alpha", 2.0, False),
    ({}, "growth.steps", 5, False),
    (GROWN, "growth.block", 4, True),
    (GROWN, "growth.alpha", 2.0, True),
    (GROWN, "growth.steps", 5, True),
    (GROWN, "growth.noise", 0.5, False),
    (GROWN | {"growth.transform": "noise"}, "growth.noise", 0.5, True),
    (GROWN | {"growth.plans": "4,8"}, "growth.block", 4, False),
    (GROWN | {"growth.block": 4}, "growth.starts", "9", True),
    (GROWN | {"growth.block": 4, "growth.starts": "9"}, "growth.alpha", 2.0, False),
    (GROWN | {"growth.moments": "zero"}, "growth.transform", "random", True),
    (GROWN, "growth.rewarm_steps", 4, True),
    ({}, "growth.rewarm_steps", 4, False),
    ({"depth": "2x4", "growth.plans": "2x2,2x4"}, "growth.moments", "zero", False),
    ({}, "cooldown.steps", 9, True),
    ({"schedule": "cosine"}, "cooldown.steps", 9, False),
    ({"schedule": "constant"}, "cooldown.steps", 9, False),
    ({"schedule": "cosine", "cooldown.depth": "4x2"}, "cooldown.steps", 9, True),
    (GROWN | {"schedule": "constant"}, "cooldown.steps", 9, True),
    (GROWN | {"schedule": "constant", "growth.steps": 9}, "cooldown.steps", 9, False),
]


@pytest.mark.parametrize(("base", "field", "other", "matters"), EFFECTS)
def test_a_field_has_an_effect_if_it_changes_the_phases_or_the_learning_rate(
    base, field, other, matters
):
    def made(changes):
        config = config_lib.default()
        config.update(steps=20, depth="4", warmup_steps=2)
        config.cooldown.steps = 3
        for name, value in changes.items():
            *folders, name = name.split(".")
            node = config
            for folder in folders:
                node = node[folder]
            node[name] = value
        rate = optim.SCHEDULES[config.schedule](1.0, 20, 2, config.cooldown.steps)
        phases = [phase.to_json() for phase in curriculum.build(config)]
        return config_lib.flatten(config.to_dict()), (phases, [float(rate(t)) for t in range(20)])

    values, effect = made(base)
    changed_values, changed_effect = made(base | {field: other})
    assert (effect != changed_effect) == matters
    assert (field not in config_lib.unused(values)) == matters
    assert (field not in config_lib.unused(changed_values)) == matters


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_the_fields_of_other_optimizers_have_no_effect(name):
    values = config_lib.flatten(config_lib.default().to_dict()) | {"optimizer.name": name}
    own = {f"optimizer.{field}" for field in ("name", *optim.OPTIMIZERS[name].fields)}
    fields = {field for field in values if field.startswith("optimizer.")}
    assert fields & config_lib.unused(values) == fields - own


def test_a_field_without_effect_is_blank_and_makes_no_column(tmp_path):
    for seed in (0, 1):
        finished_run(tmp_path / f"standard__seed-{seed}", {"nll": 2.0}, depth="8", seed=seed)
        for block in (2, 4):
            fields = {"growth__operator": "lidas", "growth__block": block, "depth": "8"}
            finished_run(
                tmp_path / f"lidas-{block}__seed-{seed}", {"nll": 2.0}, seed=seed, **fields
            )
    found = {
        row["run"]: row
        for row in tables(results(tmp_path, "--x=growth.operator", "--by=growth.block"))[0]
    }
    blocks = {name: row["growth.block"] for name, row in found.items()}
    assert blocks["standard__seed-0"] == "" and blocks["lidas-4__seed-1"] == "4"
    with open(tmp_path / "results.csv", newline="") as file:
        assert {row["run"]: row["growth.block"] for row in csv.DictReader(file)} == blocks
    assert not any("alpha" in column for column in found["standard__seed-0"])
    off = (
        "growth.block has no effect on these runs, which are in no mean over it: standard__seed-0, "
    )
    assert off in results(tmp_path, "--x=growth.block")


# The rows.


@pytest.fixture
def scored(tmp_path):
    """Three runs, files of scores in one of them, one unfinished run, one not started."""
    for name in NAMES:
        depth, seed = "1x2" if "1x2" in name else "1", int(name[-1])
        heldout = {"nll": 2.5 + 0.125 * seed + len(depth) / 7, "accuracy": 0.25}
        heldout |= {"p_hop_1/nll": heldout["nll"], "p_hop_1/accuracy": 0.25}
        finished_run(tmp_path / name, heldout, depth=depth, seed=seed, steps=20)
    finished_run(tmp_path / "cut", {}, until=2, depth="1")
    write_json(tmp_path / "sweep.json", {"points": [{"name": n} for n in (*NAMES, "later")]})

    def task(value):
        return {"metrics": {"acc,none": value, "acc_stderr,none": 0.1}}

    def plan(depth, value, step=20):
        groups = {"primitives": {"metric": "acc", "value": value, "stderr": 0.1}}
        model = {"step": step, "depth": depth}
        return {"model": model, "tasks": {"copying": task(value)}, "groups": groups}

    def evaluated(path, *plans):
        settings = {"checkpoint": "elsewhere", "weights": None}
        plans = {plan["model"]["depth"]: plan for plan in plans}
        write_json(path, {"settings": settings, "plans": plans})

    evaluated(tmp_path / NAMES[2] / "eval.json", plan("1x2", 0.5), plan("1x3", 0.75))
    (tmp_path / NAMES[2] / "more").mkdir()
    evaluated(tmp_path / NAMES[2] / "more" / "early.json", plan("1x2", 0.25, step=1))
    write_json(tmp_path / NAMES[2] / "other.json", [1, 2])
    return tmp_path


def test_rows_hold_what_was_changed_what_it_cost_and_what_came_of_it(scored):
    directories = rows.runs_below(scored)
    assert [d.name for d in directories] == sorted([*NAMES, "cut"])
    found = {row["name"]: row for row in rows.rows(directories)}
    looped, plain, cut = found["1x2__seed-0"], found["seed-0"], found["cut"]
    assert (cut["finished"], cut["step"], cut["steps"]) == (False, 2, 20)
    result = json.loads((scored / "seed-0" / "result.json").read_text())
    assert plain["metrics"] == result["heldout"]
    assert plain["training_flops"] == result["training_flops"]
    # A forward pass is a third of an update.
    assert plain["inference_flops_per_token"] * 3 * 20 * 8 * 9 == result["training_flops"]
    assert (looped["plan"], looped["unique_layers"], looped["effective_layers"]) == ("1x2", 1, 2)
    assert looped["parameters"] == plain["parameters"]
    scores = {k: v for k, v in looped["metrics"].items() if k not in plain["metrics"]}
    assert scores == {
        "primitives": 0.5, "copying/acc": 0.5, "primitives at 1x3": 0.75,
        "copying/acc at 1x3": 0.75, "primitives @1": 0.25, "copying/acc @1": 0.25,
    }  # fmt: skip
    assert set(rows.changed(list(found.values()))) == {"seed", "depth"}


def test_bits_per_byte_are_those_of_the_last_step_in_a_file_of_nll(scored):
    of = {"accuracy": 0.5, "sources": {"web": {"nll": 1.0}}}
    steps = [
        {"step": s, "depth": "1", "nll": 2.0, "bits_per_byte": b} | of
        for s, b in ((9, 3.0), (20, 2.0))
    ]
    content = schema.header("nll") | {"checkpoint": "x", "mixture": {"web": 1.0}, "model": {}}
    write_json(scored / "seed-0" / "bytes.json", content | {"rows": steps})
    (row,) = rows.rows([scored / "seed-0"])
    own = json.loads((scored / "seed-0" / "result.json").read_text())["heldout"]
    added = {"nll (bytes)": 2.0, "accuracy (bytes)": 0.5, "bits_per_byte": 2.0}
    assert row["metrics"] == own | added


def test_branches_of_a_base_per_seed_are_one_point(tmp_path):
    for seed in (0, 1, 2):
        finished_run(tmp_path / f"base__seed-{seed}", {"nll": 3.0}, seed=seed)
        source, name = f"{tmp_path}/base__seed-{seed}@17", f"math__seed-{seed}"
        finished_run(tmp_path / name, {"nll": 2.0 + seed}, seed=seed, init_from=source)
        source = f"/moved/{name}"
        more = {"init": "weights", "init_from": source, "learning_rate": 1e-2}
        finished_run(tmp_path / f"tuned__seed-{seed}", {"nll": 1.0 + seed}, seed=seed, **more)
    means = {row["runs"]: row for row in tables(results(tmp_path))[-1]}
    assert {name: row["n"] for name, row in means.items()} == dict.fromkeys(
        ("base", "math", "tuned"), "3"
    )
    assert [means[name]["init_from"] for name in ("base", "math", "tuned")] == [
        "",
        "base@17",
        "math",
    ]
    assert means["math"]["nll"] == "3.0000 ± 1.0000"


def test_the_table_and_the_report_tell_the_same_of_a_run(scored):
    path = scored / "seed-0" / "result.json"
    write_json(path, json.loads(path.read_text()) | {"flops_before": 1e9})
    (row,), (entry,) = rows.rows([path.parent]), collect.collect([path.parent])[0]
    assert {key: row[key] for key in run_record.COSTS} == entry.costs
    assert row["training_flops"] > 1e9 and row["wall_clock_s"] == entry.model.seconds
    assert row["metrics"] == entry.model.heldout()


def test_a_damaged_file_is_named(scored):
    (scored / "seed-0" / "result.json").write_text('{"steps"')
    with pytest.raises(UserError, match=r"seed-0/result.json cannot be read"):
        rows.rows([scored / "seed-0"])


# Tables and files.


def test_results_are_tables_in_csv_and_markdown_with_means_over_seeds_and_a_figure(scored):
    shown = results(scored, "--metric=nll", "--metric=accuracy")
    assert shown == (scored / "results.md").read_text()
    with open(scored / "results.csv", newline="") as file:
        found = {row["run"]: row for row in csv.DictReader(file)}
    assert sorted(found) == sorted(NAMES) and set(list(found["seed-0"])[1:3]) == {"seed", "depth"}
    nll = [
        json.loads((scored / n / "result.json").read_text())["heldout"]["nll"]
        for n in ("seed-0", "seed-1")
    ]
    assert [float(found[n]["nll"]) for n in ("seed-0", "seed-1")] == nll
    assert found["1x2__seed-0"]["copying/acc at 1x3"] == "0.75"
    assert found["seed-0"]["copying/acc"] == ""
    means = {
        row["runs"]: row
        for row in tables(shown.split("Mean ± standard deviation over seed:")[1])[0]
    }
    assert means["default"]["nll"] == f"{statistics.fmean(nll):.4f} ± {statistics.stdev(nll):.4f}"
    assert means["default"]["n"] == "2" and "±" not in means["1x2__seed-0"]["nll"]
    assert (scored / "results.png").read_bytes().startswith(b"\x89PNG")
    assert (scored / "results.pdf").read_bytes().startswith(b"%PDF")
    # Of the only source of a run the metrics are the run's own.
    assert "p_hop_1/nll" not in shown and "p_hop_1/nll" in found["seed-0"]


def test_a_column_that_is_the_same_in_all_runs_is_a_sentence(scored):
    shown = results(scored)
    assert "All runs: unique layers 1, unique parameters (k) " in shown
    assert {"unique layers", "plan"}.isdisjoint(tables(shown)[0][0])
    assert {"effective layers", "training kFLOPs"} < tables(shown)[0][0].keys() | {
        "training kFLOPs"
    }


@pytest.mark.parametrize("values", [(2.0, float("nan")), (float("nan"),) * 2, (float("inf"), 2.0)])
def test_a_loss_that_is_not_finite_is_shown_as_such(values, scored):
    for seed, value in enumerate(values):
        path = scored / f"seed-{seed}" / "result.json"
        result = json.loads(path.read_text())
        result["heldout"]["nll"] = value
        write_json(path, result)
    means = tables(results(scored))[-1]
    mean = "inf" if float("inf") in values else "nan"
    assert {row["runs"]: row["nll"] for row in means}["default"] == mean
    assert (scored / "results.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_tables_are_there_all_the_same(scored, capsys, monkeypatch):
    for module in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, module, None)
    assert cli.main(["results", str(scored)]) == 0
    said = capsys.readouterr()
    assert "pip install 'loopjax[report]'" in said.err and "| seed-1 " in said.out
    assert sorted(p.name for p in scored.glob("results*")) == ["results.csv", "results.md"]


@pytest.mark.parametrize(
    ("values", "unit", "shown"),
    [
        ([201_792, 571_456], "k", ["201.8", "571.5"]),
        ([1.2e12, 3.4e13], "T", ["1.200", "34.000"]),
        ([999, 1e6], "", ["999", "1,000,000"]),
        ([0.5, 12.25], "", ["0.500", "12.250"]),
        ([0, 4.5e15], "P", ["0.000", "4.500"]),
        ([1000], "k", ["1.000"]),
    ],
)
def test_the_unit_of_a_column_is_that_of_its_smallest_value(values, unit, shown):
    found, show = prefixed(values)
    assert (found, [show(value) for value in values]) == (unit, shown)


# A learning-rate sweep whose numbers are known.

RATES = (1e-3, 3e-3, 1e-2, 3e-2)
SEEDS = (-0.01, 0.0, 0.025)  # what each seed adds
# The mean of the seeds is 0.005 above these, times the number of the rate.
BASE = {"4": (2.5, 2.3, 2.4, 2.9), "4x2": (2.4, 2.25, 2.2, 2.1)}


def rate_sweep(directory, *, leave_out=(), depths=tuple(BASE), **more):
    for depth, (k, rate), (seed, add) in itertools.product(
        depths, enumerate(RATES), enumerate(SEEDS)
    ):
        name = f"depth-{depth}__learning_rate-{rate}__seed-{seed}"
        if name not in leave_out:
            nll = BASE[depth][k] + add * (1 + k)
            fields = {"depth": depth, "learning_rate": rate, "seed": seed}
            finished_run(directory / name, {"nll": nll, "accuracy": 1 - nll / 4}, **fields, **more)
    return directory


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    return rate_sweep(tmp_path_factory.mktemp("swept"))


def test_the_best_point_of_each_line_is_shown_with_its_neighbors(swept, tmp_path):
    text = results(swept, "--x=learning_rate", "--by=depth", f"--output={tmp_path / 'r'}")
    assert text.startswith("Best learning_rate by nll (lower is better, mean over seed), with its")
    best = tables(text)[0]
    places = [(row["depth"], row["learning_rate"], row["n"]) for row in best]
    assert places == [
        ("4", "0.001", "3"), ("4", "**0.003**", "3"), ("4", "0.01", "3"),
        ("4x2", "0.01", "3"), ("4x2", "**0.03**", "3"),
    ]  # fmt: skip
    for row in best:
        k = RATES.index(float(row["learning_rate"].strip("*")))
        values = [BASE[row["depth"]][k] + add * (1 + k) for add in SEEDS]
        mean, half = statistics.fmean(values), stats.sem(values) * stats.t.ppf(0.975, 2)
        assert row["nll"] == f"{mean:.4f}"
        assert row["95% interval"] == f"{mean - half:.4f} to {mean + half:.4f}"
    assert [row["to the best"] for row in best] == ["+0.1950", "best", "+0.1050", "+0.0950", "best"]
    assert [row["intervals overlap"] for row in best] == ["no", "", "yes", "yes", ""]
    warning = "Warning: depth 4x2: the best learning_rate, 0.03, is the largest that was tried;"
    assert re.findall("Warning: .*;", text) == [warning]
    assert text == (tmp_path / "r.md").read_text()


def test_the_only_numeric_field_is_the_axis_by_default(swept, tmp_path, capsys):
    output = f"--output={tmp_path / 'r'}"
    assert results(swept, output) == results(swept, "--x=learning_rate", "--by=depth", output)
    assert "--x=learning_rate; --x=costs plots" in capsys.readouterr().err
    assert "Best" not in results(swept, "--x=costs", output)


def test_of_accuracy_more_is_better(swept, tmp_path):
    flags = ("--x=learning_rate", "--by=depth", "--metric=accuracy", f"--output={tmp_path / 'r'}")
    text = results(swept, *flags)
    assert "by accuracy (higher is better" in text
    best = [row for row in tables(text)[0] if row["to the best"] == "best"]
    assert [row["learning_rate"] for row in best] == ["**0.003**", "**0.03**"]
    assert {row["to the best"][0] for row in tables(text)[0]} == {"b", "-"}


@pytest.mark.parametrize(
    "name, lower",
    [
        ("nll", True), ("p_hop_2/nll", True), ("lambada/perplexity", True), ("loss", True),
        ("wiki/word_perplexity", True), ("bits_per_byte", True), ("nll (bytes) at 1x3", True),
        ("accuracy", False), ("copying/acc", False), ("copying/acc_norm @1", False),
        ("reasoning_primitives", False), ("squad/f1", False), ("p_hop_2/exact", False),
    ],
)  # fmt: skip
def test_the_better_direction_of_a_metric_is_known(name, lower):
    assert metric.lower_is_better(name) == lower


def test_an_unfinished_run_is_listed_and_missed_in_the_count(tmp_path):
    lost = [f"depth-4__learning_rate-0.003__seed-{seed}" for seed in range(3)]
    rate_sweep(tmp_path, leave_out=lost[:2], depths=["4"])
    fields = {"depth": "4", "learning_rate": 3e-3}
    log = "step 4\nloopjax train: step 5: loss is nan; stopped, no checkpoint\n"
    finished_run(tmp_path / lost[0], {}, until=5, log=log, **fields)
    write_json(tmp_path / "sweep.json", {"points": [{"name": name} for name in lost]})
    text = results(tmp_path, "--x=learning_rate")
    assert {row["n"] for row in tables(text)[0] if "0.003" in row["learning_rate"]} == {"1 of 2"}
    said = text.split("Not finished:\n\n")[1].splitlines()
    assert said == [
        f"- {lost[0]}: step 5 of 20; failed: step 5: loss is nan; stopped, no checkpoint",
        f"- {lost[1]}: not started",
    ]


def test_a_range_that_ends_in_unfinished_runs_is_no_edge(tmp_path):
    def line(*values):
        cells = [compare.Cell(x, [v] if v else [], 1) for x, v in zip(RATES, values, strict=False)]
        return compare.Line("", (), cells, [])

    along = axis.Axis("learning_rate", RATES, "log")

    def warning(*values):
        return compare.best_of(line(*values), along, "nll").warning

    assert warning(3.0, 2.0, 2.5) == ""
    assert "0.001, is the smallest that was tried; extend" in warning(2.0, 3.0)
    assert "0.003, is the largest with a finished run; no run of 0.01 is finished" in warning(
        3.0, 2.0, None
    )
    # What is not finite was tried, and is worse.
    assert warning(3.0, 2.0, math.nan) == "" and warning(3.0) == ""
    assert compare.best_of(line(math.nan, math.nan), along, "nll") is None


@pytest.mark.parametrize(
    "log, says",
    [
        ("step 9\nstopped; saved step 9. Rerun the same command to resume\n", "stopped"),
        ("loopjax train: no space left\n", "failed: no space left"),
        ("Traceback (most recent call last):\n  x\nValueError: bad\n", "failed: ValueError: bad"),
        ("$ loopjax train\nstep 9 loss 3\n", "stopped"),
        (None, "stopped"),
    ],
)
def test_why_a_run_is_not_finished(tmp_path, log, says):
    finished_run(tmp_path / "run", {}, until=9, log=log)
    assert results(tmp_path) == f"Not finished:\n\n- run: step 9 of 20; {says}\n"


def test_a_run_that_is_being_trained_is_no_failure(tmp_path):
    run = finished_run(tmp_path / "run", {}, until=9, log="loopjax train: an earlier error\n")
    with lock.Lock(run) as held:
        held.take()
        assert f"; being trained by process {os.getpid()} on " in results(tmp_path)


def test_a_run_that_was_extended_has_no_result_yet(tmp_path):
    run = finished_run(tmp_path / "run", {"nll": 2.0})
    saved = json.loads((run / "config.json").read_text())
    write_json(run / "config.json", saved | {"steps": 40})
    assert results(tmp_path) == (
        "Not finished:\n\n- run: step 20 of 40; stopped; its result is that of fewer steps\n"
    )


def test_tables_are_sorted_by_lines_then_axis_or_by_a_metric(swept, tmp_path):
    flags = (swept, "--x=learning_rate", "--by=depth", f"--output={tmp_path / 'r'}")
    runs = tables(results(*flags))[1]
    places = [(row["depth"], float(row["learning_rate"]), row["seed"]) for row in runs]
    assert places == sorted(places, key=lambda place: (place[0] == "4x2", *place[1:]))
    ranked = tables(results(*flags, "--sort=nll"))
    for table in ranked[1:]:
        values = [float(row["nll"].split()[0]) for row in table]
        assert values == sorted(values)
    accuracies = [float(row["accuracy"]) for row in tables(results(*flags, "--sort=accuracy"))[1]]
    assert accuracies == sorted(accuracies, reverse=True)
    assert [row["seed"] for row in tables(results(*flags, "--sort=seed"))[1]] == sorted("012" * 8)


def test_runs_that_differ_otherwise_are_never_averaged(tmp_path, capsys):
    rate_sweep(tmp_path)
    for name in ("one", "two"):
        finished_run(tmp_path / f"{name}__seed-0", {"nll": 2.0}, learning_rate=0.1)
    assert "Warning: one__seed-0, two__seed-0 have the same config" in results(tmp_path)
    finished_run(tmp_path / "clipped", {"nll": 2.0}, learning_rate=0.1, clip_norm=0.5)
    assert cli.main(["results", str(tmp_path), "--x=learning_rate", "--by=depth"]) == 2
    assert (
        "learning_rate=0.1 depth=4 also differ in clip_norm: add it to --by"
        in capsys.readouterr().err
    )


# Axes.


@pytest.mark.parametrize(
    "values, scale, ordered",
    [
        ((3e-3, 1e-3, 1e-2), "log", (1e-3, 3e-3, 1e-2)),
        ((64, 32, 96), "linear", (32, 64, 96)),
        ((64, 32, 128), "log", (32, 64, 128)),
        ((0.0, 1.0, 100.0), "linear", (0.0, 1.0, 100.0)),
        (("12", "4", "8"), "linear", ("4", "8", "12")),
        (("12", "4x3", "4-4x2-4"), "categories", ("4-4x2-4", "4x3", "12")),
        (("muon", "adamw"), "categories", ("adamw", "muon")),
        ((True, False), "categories", (False, True)),
    ],
)
def test_an_axis_is_numeric_where_its_values_are(values, scale, ordered):
    found = axis.axis_of([{"config": {"field": value}} for value in values], "field")
    assert (found.scale, found.values) == (scale, ordered)
    places = [found.place(value) for value in ordered]
    assert places == sorted(set(places))


def test_lines_are_named_in_words():
    label = compare.label
    assert label(["depth"], ("4x3",)) == "depth 4x3"
    assert label(["depth", "growth.operator"], ("12", "lidas")) == "depth 12, lidas"
    assert label(["depth", "growth.operator"], ("12", "")) == "depth 12"
    assert label(["growth.operator"], ("",)) == "no growth.operator"
    assert (
        label(["model.tie_embeddings", "learning_rate"], (True, 1e-3))
        == "tie_embeddings true, learning_rate 0.001"
    )


def figure_of(directory, *args, names=("nll",)):
    found = rows.rows(rows.runs_below(directory))
    fig = draw.draw(found, compare.choose(found, *args), list(names))
    fig.canvas.draw()
    return fig


def means_in(axes):
    """{label: [(x, y)]} of the large marks of a panel."""
    return {
        line.get_gid(): list(zip(*line.get_data(), strict=True))
        for line in axes.lines
        if line.get_gid() is not None
    }


def test_the_figure_shows_the_means_and_says_what_its_bars_are(swept):
    fig = figure_of(swept, "learning_rate", ["depth"], None)
    (axes,) = fig.axes
    drawn = means_in(axes)
    assert axes.get_xscale() == "log" and list(drawn) == ["depth 4", "depth 4x2"]
    for label, points in drawn.items():
        means = [base + 0.005 * (1 + k) for k, base in enumerate(BASE[label.split()[1]])]
        assert [y for _, y in points] == pytest.approx(means)
        for (x, _), rate in zip(points, RATES, strict=True):
            assert abs(math.log(x / rate)) < 0.2
    # No two marks at one place.
    assert {x for x, _ in drawn["depth 4"]}.isdisjoint(x for x, _ in drawn["depth 4x2"])
    says = fig.legends[0].get_title().get_text().replace("\n", " ")
    assert "bars: 95% interval of the mean (Student's t, n = 3)" in says and "ring: best" in says
    assert [tick.get_text() for tick in axes.get_xticklabels()] == [
        "0.001",
        "0.003",
        "0.01",
        "0.03",
    ]
    assert not axes.spines["top"].get_visible() and not axes.spines["right"].get_visible()


def test_points_of_one_run_have_no_interval_in_words_and_in_the_figure(tmp_path):
    for rate in RATES:
        finished_run(tmp_path / f"rate-{rate}", {"nll": 2.0 + rate}, learning_rate=rate)
    says = figure_of(tmp_path, "learning_rate", None, None).legends[0].get_title().get_text()
    assert "One run per point, no interval" in says
    text = results(tmp_path)
    assert "95%" not in text and "without more seeds a difference may be noise" in text


def test_models_have_the_colors_of_their_roles_and_numbers_a_scale(tmp_path):
    from loopjax.plots import roles

    for depth, operator in (("8", ""), ("2x4", ""), ("8", "lidas")):
        for rate in (1e-3, 1e-2):
            fields = {"depth": depth, "growth__operator": operator, "learning_rate": rate}
            finished_run(tmp_path / f"{depth}{operator}{rate}", {"nll": 2.0}, **fields)
    drawn = figure_of(tmp_path, "learning_rate", None, None).axes[0].lines
    colors = {line.get_gid(): line.get_color() for line in drawn if line.get_gid() is not None}
    found = {"depth 8": "standard", "depth 2x4": "loop", "depth 8, lidas": "lidas"}
    assert colors == {label: roles.look(role).color for label, role in found.items()}
    drawn = figure_of(tmp_path, "growth.operator", ["learning_rate"], ["depth"]).axes[0].lines
    dark, light = (line.get_color() for line in drawn if line.get_gid() is not None)
    assert sum(bytes.fromhex(dark[1:])) < sum(bytes.fromhex(light[1:]))


def test_a_cost_is_an_axis_and_equal_costs_have_no_panel(tmp_path):
    for depth, nll in (("2", 2.5), ("4", 2.25), ("2x2", 2.375)):
        for seed in (0, 1):
            finished_run(tmp_path / f"{depth}__seed-{seed}", {"nll": nll}, depth=depth, seed=seed)
    panels = figure_of(tmp_path, compare.COSTS, None, None).axes
    assert [axes.get_xlabel() for axes in panels] == list(run_record.COSTS.values())
    inference = {name: x for name, ((x, _),) in means_in(panels[1]).items()}
    flops = {
        r["plan"]: r["inference_flops_per_token"] for r in rows.rows(rows.runs_below(tmp_path))
    }
    assert flops["4"] == flops["2x2"] and inference["4"] != inference["2x2"]
    assert inference["2"] == flops["2"]  # nothing else is there
    (axes,) = figure_of(tmp_path, "training_flops", [], None).axes
    ((_, y2), *others) = means_in(axes)[compare.label([], ())]
    assert y2 == 2.5 and len(others) == 2
    for folder in tmp_path.glob("2__*"):
        for file in folder.iterdir():
            file.unlink()
    titles = [axes.get_xlabel() for axes in figure_of(tmp_path, compare.COSTS, None, None).axes]
    assert titles == ["unique parameters"]  # as deep as each other


def test_a_run_that_is_not_finite_is_marked_and_a_wide_interval_cut(tmp_path):
    for rate, values in ((1e-3, (2.0, 2.1)), (3e-3, (2.0, 2.01)), (1e-2, (math.nan, 2.0))):
        for seed, nll in enumerate(values):
            finished_run(tmp_path / f"{rate}-{seed}", {"nll": nll}, learning_rate=rate, seed=seed)
    fig = figure_of(tmp_path, "learning_rate", None, None)
    says = fig.legends[0].get_title().get_text()
    assert "×: nan or infinite" in says and "arrow: the interval goes on" in says
    low, high = fig.axes[0].get_ylim()
    assert high - low < 0.3  # the interval of the first point is 1.27 wide
    assert {"v", "^"} <= {line.get_marker() for line in fig.axes[0].lines}
    crosses = [line for line in fig.axes[0].lines if line.get_marker() == "x"]
    assert len(crosses) == 1 and low < crosses[0].get_ydata()[0] < high


# Mistakes.


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["none"], "none contains no runs"),
        (["{}", "--metric=bleu"], "--metric=bleu must be a metric of the runs: nll, accuracy"),
        (["{}", "--over=sede"], "config.sede does not exist; did you mean config.seed?"),
        (["{}", "--x=clip_norm"],
         "--x=clip_norm must be a field in which the runs differ: depth, learning_rate, seed"),
        (["{}", "--by=clip_norm"], "--by=clip_norm must be a field in which the runs differ: depth"),
        (["{}", "--x=depth", "--by=depth"], "--by=depth must not contain the field of --x=depth"),
        (["{}", "--x=depth", "--over=seed,depth"], "must not contain the field depth of --x"),
        (["{}", "--x=learning_rate", "--by=seed"], "also differ in depth: add it to --by"),
        (["{}", "--sort=wall"], "--sort=wall must be a metric or a field of the runs: nll"),
        (["{}", "--output={}/sweep"], "cannot be written: it is a directory"),
        (["{}", "--output={}/file/results"], "file is a file"),
    ],
)  # fmt: skip
def test_mistakes_about_results_are_told_in_one_sentence(
    swept, flags, says, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(swept)
    blocked = tmp_path / "sweep.md"
    blocked.mkdir()
    (tmp_path / "file").write_text("")
    flags = [flag.format(tmp_path if "output" in flag else swept) for flag in flags]
    before = sorted(swept.iterdir())
    assert cli.main(["results", *flags]) == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1
    assert sorted(swept.iterdir()) == before
