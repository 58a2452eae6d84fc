"""The experiments: each runs whole at a size that a test can afford, and its protocol traces."""

import dataclasses
import importlib
import json
import pathlib
import re
import types

import pytest

from loopjax.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent
NAMES = (
    "tradeoffs", "cooldown", "retrofit", "repeat", "residual", "effects", "similarity", "order",
    "depth_use", "finetune", "in_context",
)  # fmt: skip
SEEDS = ("repeat", "similarity")  # those that the test of all runs with two seeds
RECURRENCE = ("random_depth", "equal_flops", "growth_moments", "damped")
SYNTHETIC = ("p_hop", "addition", "igsm", "two_phase", "loop_neural_networks")


@pytest.fixture(autouse=True)
def at_home(monkeypatch):
    """As if an experiment were started by its file."""
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    monkeypatch.chdir(ROOT)


def tiny(folder, **changes):
    """A study at the mini scale, reduced to 20 steps."""
    scales = importlib.import_module("scales")
    config = (ROOT / "configs/study.py").read_text()
    for old, new in (
        ("config.steps = 2400", "config.steps = 20"),
        ("config.cooldown.steps = 360", "config.cooldown.steps = 5"),
        ("warmup_steps = 100", "warmup_steps = 2"),
        ("eval_every = 500", "eval_every = 10"),
        ("eval_batches = 8", "eval_batches = 1"),
        ("batch_size = 16", "batch_size = 8"),
        ("d_model=64, d_ff=176", "d_model=16, d_ff=24"),
    ):
        assert old in config
        config = config.replace(old, new)
    (folder / "config.py").write_text(config)
    scale = dataclasses.replace(
        scales.MINI, config=f"{folder}/config.py:mini,", plateau=15, seeds=(0, 1), limit=4, dev=2,
        words=("var_assign_basic_0",),
        examples=(8,), tuning_seeds=(0,), lens=("--lens-steps=2", "--lens-tokens=512"),
        overrides=("steps=4", "batch_size=8", "eval_every=2", "eval_batches=1", "patience=1"),
    )  # fmt: skip
    scale = dataclasses.replace(scale, **changes)
    return importlib.import_module("study").Study(folder / "mini", scale)


def performed(name, study):
    """Runs an experiment and checks what it has written."""
    experiment, claims = importlib.import_module("experiment"), importlib.import_module("claims")
    outcome = experiment.perform(importlib.import_module(name), study)
    assert outcome.claims and outcome.verdict in claims.VERDICTS
    record = json.loads((study.output / f"{name}.json").read_text())
    assert record["table"] and list(record["table"][0]) == list(outcome.heads)
    assert record["figures"][0] == name
    for figure in record["figures"]:
        assert (study.output / f"{figure}.png").stat().st_size > 5000
    return outcome


@pytest.mark.slow
def test_experiments_with_options_of_recurrence_come_to_an_outcome(tmp_path, monkeypatch):
    monkeypatch.setattr("damped.ROLES", ("standard",))
    monkeypatch.setattr("damped.TIMES", (1,))
    study = tiny(tmp_path, seeds=(0,), tasks=("trail_2",), block=6)
    study.output.mkdir()
    performed("random_depth", study)
    performed("damped", study)
    grown = performed("equal_flops", study)
    flops = [float(row[grown.heads.index("training FLOPs")]) for row in grown.rows]
    assert min(flops) > 0.9 * max(flops), "equal but for the FLOPs of a step"
    assert len(performed("growth_moments", study).rows) == 3


@pytest.mark.slow
def test_every_experiment_comes_to_an_outcome_and_does_nothing_twice(tmp_path, capfd):
    experiment = importlib.import_module("experiment")
    studies = {name: tiny(tmp_path, seeds=(0, 1) if name in SEEDS else (0,)) for name in NAMES}
    study = studies[NAMES[0]]
    study.output.mkdir()
    for name in NAMES:
        performed(name, studies[name])
    capfd.readouterr()
    for name in NAMES:
        experiment.perform(importlib.import_module(name), studies[name])
    assert not re.findall(r"^loopjax .*", capfd.readouterr().out, re.M)

    everything = importlib.import_module("everything")
    with everything.timed(study.output, "training"):
        pass
    (tmp_path / "docs").mkdir()
    page = importlib.import_module("page")
    page.write(study.output, tmp_path / "docs", NAMES)
    text = (tmp_path / "docs/results.md").read_text()
    for picture in re.findall(r"\]\((results/[^)]*)\)", text):
        assert (tmp_path / "docs" / picture).is_file()
    assert text.count("\n## ") == len(NAMES)

    # What was written by hand and the results of experiments that were run elsewhere stay.
    by_hand = text.replace("\n## ", "\n## What to conclude\n\nLoops reason.\n\n## ", 1)
    (tmp_path / "docs/results.md").write_text(by_hand)
    page.write(tmp_path / "elsewhere", tmp_path / "docs", NAMES)
    assert (tmp_path / "docs/results.md").read_text() == by_hand


@pytest.mark.slow
def test_models_are_trained_ahead_each_after_the_runs_it_starts_from(tmp_path, capfd):
    everything = importlib.import_module("everything")
    study = tiny(tmp_path, seeds=(0,), retrofits={"standard": ("2-2x2-4",)})
    everything.train_all(study, ["cooldown"], jobs=2)
    trained = re.findall(r"^done +(\S+)", capfd.readouterr().err, re.M)
    assert trained[0] == "standard-s0"
    assert {*trained[1:]} == {"standard-math-s0", "standard-math-by-2-2x2-4-s0"}
    everything.train_all(study, ["cooldown"], jobs=2)
    assert capfd.readouterr().out == "3 models, 0 to train\n"

    study = tiny(tmp_path, seeds=(1,), rows={"standard": "deep"}, retrofits={"standard": ()})
    with pytest.raises(UserError, match="variant 'mini,deep' of configs"):
        everything.train_all(study, ["cooldown"], jobs=2)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES + RECURRENCE + SYNTHETIC)
def test_the_published_protocol_of_every_experiment_traces(name, tmp_path, capsys):
    protocol, scales = importlib.import_module("protocol"), importlib.import_module("scales")
    study = importlib.import_module("study").Study(tmp_path, scales.PAPER, checking=True)
    rows = protocol.check(importlib.import_module(name), study)
    assert rows and all(row["gib"] < 37 and row["pflops"] > 0 for row in rows)
    by_run = {row["run"]: row for row in rows}
    if name == "tradeoffs":
        # Table 7 of Kapl et al. 2025.
        assert by_run["baseline-s0"]["pflops"] == pytest.approx(4_813_222.102, abs=1e-3)
        ratio = by_run["baseline-s0"]["pflops"] / by_run["lidas-s0"]["pflops"]
        assert ratio == pytest.approx(1.288, abs=1e-3)
    assert not any(tmp_path.iterdir()), "checking makes nothing"


@pytest.mark.slow
def test_the_study_for_one_gpu_is_traced_and_trains_nothing(tmp_path, monkeypatch, capsys):
    argv = ["everything.py", "--scale=gpu", "--seeds=1", f"--output={tmp_path}"]
    monkeypatch.setattr("sys.argv", [*argv, "--only", "equal_flops", "in_context"])
    importlib.import_module("everything").main()
    text = capsys.readouterr().out
    assert "in_context: not run at --scale=gpu: nothing in its training data" in text
    runs = re.findall(r"(\d+) PFLOPs, [\d.]+ GiB per device", text)
    assert len(runs) == 7 and min(map(int, runs)) > 0.9 * max(map(int, runs))
    assert re.search(r"^7 runs, \d+ PFLOPs: [\d.]+ hours on 1 h100", text, re.M)
    assert not any(tmp_path.iterdir())


def test_an_experiment_that_a_scale_leaves_out_says_why(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["in_context.py"])
    with pytest.raises(SystemExit, match="2"):
        importlib.import_module("experiment").main("in_context.py")
    assert "not run at --scale=mini: models of this size" in capsys.readouterr().err


def test_the_time_that_is_left_is_that_of_the_finished_runs(tmp_path):
    everything = importlib.import_module("everything")
    study = tiny(tmp_path)
    commands = {
        w: ["train", f"--config={study.scale.config}standard"]
        for w in (tmp_path / "a", tmp_path / "b")
    }
    configs = {w: importlib.import_module("protocol").config_of(c, {}) for w, c in commands.items()}
    todo = {tmp_path / "b": commands[tmp_path / "b"]}
    assert re.fullmatch(r": \S+ FLOPs", everything._left(commands, todo, configs, 2))
    (tmp_path / "a").mkdir()
    done = {"training_flops": 1e3, "wall_clock_s": 7200.0}
    (tmp_path / "a/result.json").write_text(json.dumps(done))
    flops = importlib.import_module("loopjax.cost").flops_of(configs[tmp_path / "b"])[
        "training_flops"
    ]
    assert f", {flops / 1e3:.1f} hours at the speed" in everything._left(commands, todo, configs, 2)
    assert everything._left(commands, {}, configs, 2) == ""


def test_the_output_of_another_command_is_not_reused(tmp_path):
    study = tiny(tmp_path)
    study.output.mkdir()
    executed = []

    def execute(command):
        executed.append(command)
        pathlib.Path(command[1]).write_text("[1]")

    def cached(study, *flags):
        study.execute = execute
        file = study.output / "result.json"
        return study.cached(file, ["eval", str(file), *flags])

    assert cached(study, "--limit=4") == cached(study, "--limit=4") == [1]
    assert len(executed) == 1
    with pytest.raises(SystemExit, match="written by another command .*--limit=4; now .*--limit=8"):
        cached(study, "--limit=8")
    moved = type(study)(study.output.rename(tmp_path / "moved"), study.scale)
    assert cached(moved, "--limit=4") == [1] and len(executed) == 1, "a study can be moved"
    (moved.output / "result.json").unlink()
    assert cached(moved, "--limit=4") == [1] and len(executed) == 2, "what is gone is made again"


def test_an_accuracy_is_of_the_metric_that_a_task_has():
    summary = importlib.import_module("summary")
    metrics = {"exact_match,strict": 0.25, "exact_match_stderr,strict": 0.01}
    evaluated = {"plans": {"8": {"tasks": {
        "gsm8k": {"metrics": metrics},
        "copying_real": {"metrics": {"acc,none": 0.5, "acc_norm,none": 0.75}},
    }}}}  # fmt: skip
    assert summary.accuracy(evaluated, "gsm8k") == 0.25
    assert summary.mean_accuracy(evaluated) == 0.375


def test_models_without_accuracy_have_none_to_lose():
    order = importlib.import_module("order")

    def result(plain, *edited):
        rows = [
            {"size": 2, "start": k, "tasks": {"t": {"accuracy": value}}}
            for k, value in enumerate(edited)
        ]
        unmodified = {"t": {"accuracy": plain}}
        return {
            "metrics": {"t": "acc"},
            "chance": {"t": 0.25},
            "unmodified": unmodified,
            "rows": rows,
        }

    found = [result(0.75, 0, 0, 0.5, 0.75), result(0.26, 0.2, 0.2, 0.2, 0.2)]
    assert order._kept(found, 2, 2) == [0.75], "of the first model, starts behind its first block"
    assert order._kept(found[1:], 2, 2) == []


@pytest.mark.parametrize(
    "accuracies, verdict",
    [
        ({"4": 0.95, "1x4": 0.94, "1": 0.4, "4,lidas": 0.93}, "reproduced"),
        ({"4": 0.95, "1x4": 0.94, "1": 0.4, "4,lidas": 0.6}, "partly"),
        ({"4": 0.95, "1x4": 0.5, "1": 0.4, "4,lidas": 0.6}, "partly"),
        ({"4": 0.99, "1x4": 0.98, "1": 0.99, "4,lidas": 0.98}, "undecided"),
        ({"4": 0.27, "1x4": 0.28, "1": 0.21, "4,lidas": 0.25}, "undecided"),
    ],
)
def test_loops_and_grown_models_are_judged_beside_the_deep_one(accuracies, verdict, tmp_path):
    tasks = importlib.import_module("synthetic_tasks")
    runs = {}
    for plan, accuracy in accuracies.items():
        runs[plan] = [tmp_path / f"{plan}-s{seed}" for seed in (0, 1)]
        for seed, run in enumerate(runs[plan]):
            run.mkdir()
            heldout = {"sanford_4/accuracy": accuracy + 0.01 * seed}
            result = {"heldout": heldout, "steps": 2, "plan": plan.split(",")[0], "training_flops": 2.0, "parameters": 10,
                      "unique_layers": 1, "effective_layers": 4}  # fmt: skip
            (run / "result.json").write_text(json.dumps(result))
            (run / "config.json").write_text('{"seq_len": 33}')
    outcome = tasks.outcome(runs, ["sanford_4"], "4", "1x4", "1", "4,lidas")
    assert outcome.verdict == verdict
    assert outcome.rows[0][-1] == f"{100 * accuracies['4'] + 0.5:.1f} ± 0.7%"
    assert "2 seeds" in outcome.finding
    (axis,) = tasks.draw(outcome.data, "hops", "accuracy").axes
    assert [line.get_label() for line in axis.lines if line.get_gid()] == [
        "4 layers", "1 layer, looped 4 times", "1 layer", "4 layers, grown by LIDAS",
    ]  # fmt: skip
    assert axis.patches[0].get_height() + axis.patches[0].get_y() == pytest.approx(0.35, abs=0.02)


def test_a_cycle_counts_above_half_of_the_way_from_chance():
    cycles = importlib.import_module("cycles")

    def verdicts(**shares):
        found = {
            role: [types.SimpleNamespace(share=s, by_chance=0.5) for s in values]
            for role, values in shares.items()
        }
        return [claim.verdict for claim in cycles.finding(found, "")[1]]

    few, many, unclear = (0.60, 0.62, 0.61), (0.90, 0.91, 0.92), (0.5, 0.75, 0.99)
    assert verdicts(standard=few, lidas=many) == ["reproduced", "reproduced"]
    assert verdicts(standard=many, lidas=few) == ["not reproduced", "not reproduced"]
    assert verdicts(standard=unclear, lidas=unclear) == ["undecided", "undecided"]


def test_what_is_solved_or_not_learned_decides_nothing():
    summary = importlib.import_module("summary")

    def scores(share):  # two seeds of 100 items
        return [[1.0] * round(100 * share) + [0.0] * (100 - round(100 * share))] * 2

    def found(**shares):
        models = {name: scores(share) for name, share in shares.items()}
        return summary.undecidable(models, ["trail_4", "trail_6"])

    assert (
        found(a=0.98, b=1.0)
        == "The tasks are solved already (at least 98.0%), so no gain can show."
    )
    assert found(a=0.5, b=1.0) == found(a=0.2, b=0.9) == ""
    # The most frequent digit gets 19%.
    assert found(a=0.2, b=0.1).startswith("Not decidable here: the best model (a), above the best")


def test_points_and_percentages_have_a_deviation_if_there_are_several_seeds():
    summary = importlib.import_module("summary")
    assert summary.percent([0.5, 0.6]) == "55.0 ± 7.1%" and summary.percent([0.5]) == "50.0%"
    assert summary.points([0.01, 0.03]) == "+2.0 ± 1.4" and summary.points([-0.01]) == "-1.0"


def test_the_readme_of_the_experiments_names_every_file():
    text = (ROOT / "experiments/README.md").read_text()
    files = {path.name for path in (ROOT / "experiments").glob("*.py")}
    assert {name for name in files if f"`{name}`" not in text} == {"everything.py"}
    assert "experiments/everything.py" in text
    assert set(importlib.import_module("everything").NAMES) == {*NAMES, *RECURRENCE, *SYNTHETIC}
