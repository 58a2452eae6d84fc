"""The table of diagnostics: a row is all that a command, a file, a picture and the report need."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

from loopjax.analysis import analyze
from loopjax.analysis.diagnostics import DIAGNOSTICS, Diagnostic
from loopjax.cli import main as cli
from loopjax.errors import UserError
from loopjax.report import page
from loopjax.results import reader, store
from tests import report_material as material
from tests.test_resume_analysis import CASES, LM

ROW = Diagnostic(
    name="lengths",
    title="number of tokens of each prompt",
    section="Lengths of prompts",
    caption="Tokens of each prompt ({of}).",
    result="tests.example_diagnostic:Lengths",
    run="tests.example_diagnostic:run",
    plot="tests.example_diagnostic:plot",
)


@pytest.fixture
def lengths(monkeypatch):
    monkeypatch.setitem(DIAGNOSTICS, "lengths", ROW)


def run(output, *names, lm=LM, say=lambda text: None, **options):
    about = {"name": "made", "source": ""}
    return analyze.analyze(lm, list(names), CASES, output, prompts=about, say=say, **options)


def test_every_row_names_things_that_exist():
    for name, row in DIAGNOSTICS.items():
        assert row.name == name and row.title and "{of}" in row.caption and row.section
        assert dataclasses.is_dataclass(row.result_type()) and callable(row.computation())
        assert row.table_builder() is None or callable(row.table_builder())


@pytest.mark.slow
def test_a_file_and_a_row_make_a_diagnostic(lengths, tmp_path, capsys):
    place = material.run(tmp_path / "run")
    meta = LM.meta | {"step": material.STEPS}
    lm = dataclasses.replace(LM, meta=meta, path=place / "checkpoints" / str(material.STEPS))
    result = run(place / "signature", "lengths", lm=lm)["lengths"]
    assert result.tokens.tolist() == [21, 33, 18, 40] and result.longest == 40
    assert {path.name for path in (place / "signature").iterdir()} == {
        "lengths-made.json", "lengths-made.png",
    }  # fmt: skip
    content = json.loads((place / "signature" / "lengths-made.json").read_text())
    assert content["schema"] == "loopjax.diagnostic" and content["diagnostic"] == "lengths"
    (read,) = reader.read(place / "signature" / "lengths-made.json")
    assert read.kind == "lengths" and read.value.tokens.tolist() == [21, 33, 18, 40]
    page.write_report(tmp_path / "r.html", [page.Group("", "", [place])])
    text = (tmp_path / "r.html").read_text()
    assert "<h2>Lengths of prompts</h2>\n<p>Number of tokens of each prompt.</p>" in text
    assert "Tokens of each prompt (made, 4 prompts)." in text
    with pytest.raises(SystemExit):
        cli.main(["analyze", "--help"])
    assert "number of tokens of each prompt" in capsys.readouterr().out


def test_a_computation_that_returns_something_else_is_named(monkeypatch, tmp_path):
    row = dataclasses.replace(ROW, run="tests.example_diagnostic:run_wrong")
    monkeypatch.setitem(DIAGNOSTICS, "lengths", row)
    with pytest.raises(ValueError, match=r"diagnostic lengths: .* dict of arrays, .* case 1 has"):
        run(tmp_path, "lengths")


@pytest.mark.parametrize("wrong", [3.0, None, {}, {"x": object()}, {"x": [[1], [1, 2]]}])
def test_parts_must_be_dicts_of_arrays(wrong, tmp_path):
    parts = store.Parts(tmp_path / "norms.partial.npz", {}, name="norms")
    with pytest.raises(ValueError, match="diagnostic norms: .* dict of arrays"):
        parts.each(lambda case: wrong, [1, 2])
    assert list(tmp_path.iterdir()) == []


def in_a_process(without: str, code: str):
    """Runs code in a process in which a package is not installed."""
    hidden = f"import sys\nsys.modules[{without!r}] = None\n"
    argv = [sys.executable, "-c", hidden + code]
    return subprocess.run(argv, capture_output=True, text=True, timeout=300)


# `tests.test_lens` itself needs the harness.
RUN = """
import dataclasses, pathlib
import tests.conftest
from loopjax.analysis import analyze
from loopjax.errors import UserError
from tests.test_score import language_model
lm = language_model()
lm = dataclasses.replace(lm, meta={"step": 3, "checksums": {}})
def run(output, name):
    prompts = {"name": "made", "source": ""}
    analyze.analyze(lm, [name], [([5] * 9, 3, "")], output, prompts=prompts, block=1)
"""


@pytest.mark.slow
def test_without_matplotlib_an_analysis_writes_numbers_and_a_report_is_refused(tmp_path):
    code = f"""{RUN}
run({str(tmp_path)!r}, "norms")
from loopjax.cli import main
sys.exit(main.main(["report", "{tmp_path}/r.html", "{tmp_path}/norms-made.json"]))
"""
    done = in_a_process("matplotlib", code)
    assert done.returncode == 2, done.stderr
    assert done.stdout.count("pip install 'loopjax[report]'") == 1
    assert "loopjax report: needs pip install 'loopjax[report]'" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["norms-made.json"]


@pytest.mark.slow
def test_without_the_harness_only_the_accuracy_of_exits_is_refused(tmp_path):
    code = f"""{RUN}
run({str(tmp_path / "a")!r}, "similarity")
try:
    run({str(tmp_path / "b")!r}, "exit_accuracy")
except UserError as error:
    print(error)
"""
    done = in_a_process("lm_eval", code)
    assert done.returncode == 0, done.stderr
    assert "exit_accuracy needs pip install 'loopjax[eval]'" in done.stdout.splitlines()[-1]
    assert (tmp_path / "a" / "similarity.json").exists() and not (tmp_path / "b").exists()


def test_an_unknown_diagnostic_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"^--what 'depth' must be all or some of depth_score, "):
        run(tmp_path / "out", "depth")
    assert not (tmp_path / "out").exists()
    assert np.all([row.prompts is None or row.prompts >= 0 for row in DIAGNOSTICS.values()])
