"""Files that are written: a failure leaves nothing, and is told before the work."""

import argparse
import pathlib

import numpy as np
import pytest

from loopjax import files, json_shapes, outputs
from loopjax.cli import arguments
from loopjax.cli import main as cli
from loopjax.errors import UserError


def everything(place: pathlib.Path) -> list[str]:
    return sorted(str(p.relative_to(place)) for p in place.rglob("*"))


def test_a_file_that_cannot_be_replaced_leaves_no_temporary_one(tmp_path):
    (tmp_path / "folder").mkdir()
    for write in (
        lambda: files.write_text(tmp_path / "folder", "text"),
        lambda: files.write_json(tmp_path / "x.json", {"a": object()}),
        lambda: files.write_arrays(tmp_path / "folder", {"a": np.ones(2)}),
    ):
        with pytest.raises((OSError, TypeError)):
            write()
    assert everything(tmp_path) == ["folder"]


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("folder", "it is a directory"),
        ("file/x.json", "PLACE/file is a file"),
        ("file/y/x.json", "Not a directory"),
        ("a\0b/x.json", "embedded null byte"),
        ("new/" + "n" * 300, "File name too long"),
    ],
)
def test_an_output_that_cannot_be_written_is_told_at_once(path, says, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("kept")
    with pytest.raises(UserError) as told:
        outputs.check_file(tmp_path / path, "--output")
    says = says.replace("PLACE", str(tmp_path))
    assert str(told.value) == f"--output {tmp_path / path} cannot be written: {says}"
    assert everything(tmp_path) == ["file", "folder"]


def test_asking_leaves_nothing_and_writing_creates_the_directory(tmp_path):
    outputs.check_file(tmp_path / "new/deep/x.json", "--output")
    outputs.check_directory(tmp_path / "other/deep", "--output")
    assert everything(tmp_path) == []
    outputs.write_json(tmp_path / "new/deep/x.json", {"a": 1})
    outputs.check_file(tmp_path / "new/deep/x.json", "--output")
    assert files.read_json(tmp_path / "new/deep/x.json") == {"a": 1}


@pytest.mark.parametrize(
    "argv",
    [
        ["nll", "--checkpoint", "none", "--output", "file/x.json"],
        ["nll", "--checkpoint", "none", "--output", "new/x.json"],
        ["intervene", "--checkpoint", "none", "--op", "swap", "--output", "new/x.json"],
        ["icl", "--checkpoint", "none", "--output", "new/x.json", "--plot", "new/x.png"],
        ["icl", "--checkpoint", "none", "--output", "x.json", "--plot", ""],
        ["nll", "--checkpoint", "none", "--output", ""],
        ["inspect", "none", "--plot", "new/x.png"],
        ["analyze", "--checkpoint", "none", "--output", "new/x"],
    ],
)
def test_a_command_that_fails_leaves_nothing(argv, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("kept")
    assert cli.main(argv) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"loopjax {argv[0]}: ") and err.count("\n") == 1
    assert everything(tmp_path) == ["file"]


@pytest.mark.parametrize("text", ["0", "-1", "x", "\u00b2", "1.5", "9" * 20, "9" * 5000])
def test_counts_are_whole_numbers_that_can_be_counted(text):
    with pytest.raises(argparse.ArgumentTypeError, match="must be a whole number of at least 1"):
        arguments.positive(text)


@pytest.mark.parametrize(
    "weights", ["true", "NaN", "Infinity", "1e400", "1" * 400, "-1", "0", '"1"', "[" * 100_000]
)
def test_weights_of_a_mixture_are_finite_numbers(weights):
    with pytest.raises(UserError, match=r"^--mixture '.* must be like "):
        arguments.mixture(f'{{"web": {weights}}}')
    assert arguments.mixture('{"web": 2, "math": 0.5}') == {"web": 2, "math": 0.5}


SHAPE = {"n": json_shapes.count, "x?": (json_shapes.number, None), "plan": json_shapes.plan,
         "rows": [{"name": str, ...: json_shapes.number}]}  # fmt: skip
GOOD = {"n": 3, "plan": "4x2", "rows": [{"name": "a", "y": float("nan")}], "free": object}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, None),
        ({"x": None}, None),
        ({"x": "1"}, "x is '1', not null"),
        ({"x": 10**400}, "x is 1000"),
        ({"n": True}, "n is True, not a whole number"),
        ({"n": -1}, "n is -1, not a whole number"),
        ({"plan": "4y"}, "plan is '4y', not a depth plan"),
        ({"rows": {}}, "rows is {}, not a list"),
        ({"rows": [{"name": "a"}, {"y": 1}]}, "it has no rows[1].name"),
        ({"rows": [{"name": "a", "y": []}]}, "rows[0].y is [], not a number"),
    ],
)
def test_the_place_of_what_does_not_fit_is_told(change, says):
    if says is None:
        return json_shapes.check(GOOD | change, SHAPE)
    with pytest.raises(ValueError) as told:
        json_shapes.check(GOOD | change, SHAPE)
    assert str(told.value).startswith(says)
