"""The experiments: each runs whole at a size that a test can afford, and its protocol traces."""

import dataclasses
import importlib
import json
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
NAMES = (
    "tradeoffs", "cooldown", "retrofit", "repeat", "residual", "effects", "similarity", "order",
    "depth_use", "finetune", "in_context",
)  # fmt: skip
SYNTHETIC = ("p_hop", "addition", "igsm")


@pytest.fixture(autouse=True)
def at_home(monkeypatch):
    """As if an experiment were started by its file."""
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    monkeypatch.chdir(ROOT)


def tiny(folder, **changes):
    """The small scale, smaller still: 20 steps."""
    common, scales = importlib.import_module("common"), importlib.import_module("scales")
    config = (ROOT / "configs/mini.py").read_text()
    for old, new in (
        ("STEPS, COOLDOWN = 1000, 150", "STEPS, COOLDOWN = 20, 5"),
        ("warmup_steps = 100", "warmup_steps = 2"),
        ("eval_every = 200", "eval_every = 10"),
        ("eval_batches = 8", "eval_batches = 1"),
        ("batch_size = 16", "batch_size = 8"),
        ("d_model=64, d_ff=176", "d_model=16, d_ff=24"),
    ):
        assert old in config
        config = config.replace(old, new)
    (folder / "config.py").write_text(config)
    scale = dataclasses.replace(
        scales.MINI, config=f"{folder}/config.py:", plateau=15, seeds=(0, 1), limit=4,
        examples=(8,), tuning_seeds=(0,), lens=("--lens-steps=2", "--lens-tokens=512"),
        overrides=("steps=4", "batch_size=8", "eval_every=2", "eval_batches=1", "patience=1"),
    )  # fmt: skip
    scale = dataclasses.replace(scale, **changes)
    study = common.Study(folder / "mini", scale)
    return common, study


@pytest.mark.slow
def test_every_experiment_comes_to_an_outcome_and_does_nothing_twice(tmp_path, capfd):
    common, study = tiny(tmp_path)
    study.output.mkdir()
    for name in NAMES:
        found = common.perform(importlib.import_module(name), study)
        assert found.verdict in ("shows", "shows in part", "does not show", "cannot show")
        about = json.loads((study.output / f"{name}.json").read_text())
        assert about["table"] and list(about["table"][0]) == list(found.heads)
        assert next(iter(found.figures)) == name
        for figure in found.figures:
            assert (study.output / f"{figure}.png").stat().st_size > 5000
    capfd.readouterr()
    for name in NAMES:
        common.perform(importlib.import_module(name), study)
    assert not re.findall(r"^loopjax .*", capfd.readouterr().out, re.M)

    everything = importlib.import_module("everything")
    with everything.timed(study.output, "training"):
        pass
    (tmp_path / "docs").mkdir()
    everything.write_docs(study.output, tmp_path / "docs")
    text = (tmp_path / "docs/results.md").read_text()
    for picture in re.findall(r"\]\((results/[^)]*)\)", text):
        assert (tmp_path / "docs" / picture).is_file()
    assert text.count("\n## ") == len(NAMES)


@pytest.mark.slow
def test_models_are_trained_ahead_each_after_what_it_begins_with(tmp_path, capfd):
    everything = importlib.import_module("everything")
    _, study = tiny(tmp_path, seeds=(0,), retrofits={"standard": ("2-2x2-4",)})
    everything.train_all(study, ["cooldown"], jobs=2)
    trained = re.findall(r"^(\S+): [\d.]+ minutes", capfd.readouterr().out, re.M)
    assert trained[0] == "standard-s0"
    assert {*trained[1:]} == {"standard-math-s0", "standard-math-by-2-2x2-4-s0"}
    everything.train_all(study, ["cooldown"], jobs=2)
    assert capfd.readouterr().out == "3 models, 0 to train\n"

    _, study = tiny(tmp_path, seeds=(1,), rows={"standard": "deep"}, retrofits={"standard": ()})
    with pytest.raises(SystemExit, match="(?s)deep-s1 failed:.*row 'deep' of"):
        everything.train_all(study, ["cooldown"], jobs=2)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES + SYNTHETIC)
def test_the_published_protocol_of_every_experiment_traces(name, tmp_path, capsys):
    common, protocol = importlib.import_module("common"), importlib.import_module("protocol")
    scales = importlib.import_module("scales")
    study = common.Study(tmp_path, scales.PAPER, checking=True)
    rows = protocol.check(importlib.import_module(name), study)
    assert rows and all(row["gib"] < 37 and row["pflops"] > 0 for row in rows)
    by_run = {row["run"]: row for row in rows}
    if name == "tradeoffs":
        # Table 7 of Kapl et al. 2025.
        assert by_run["baseline-s0"]["pflops"] == pytest.approx(4_813_222.102, abs=1e-3)
        ratio = by_run["baseline-s0"]["pflops"] / by_run["lidas-s0"]["pflops"]
        assert ratio == pytest.approx(1.288, abs=1e-3)
    assert not any(tmp_path.iterdir()), "checking makes nothing"


def test_the_readme_of_the_experiments_names_every_file():
    text = (ROOT / "experiments/README.md").read_text()
    files = {path.name for path in (ROOT / "experiments").glob("*.py")} - {"looped.py"}
    assert {name for name in files if f"`{name}`" not in text} == {"everything.py"}
    assert "experiments/everything.py" in text
    assert set(importlib.import_module("everything").NAMES) == {*NAMES, *SYNTHETIC}
