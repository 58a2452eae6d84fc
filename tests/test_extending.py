"""The recipes of docs/extending.md: each diff applies to the package, and its commands work."""

import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "extending.md").read_text()


def sections() -> dict[str, str]:
    parts = re.split(r"^## (.*)\n", TEXT, flags=re.M)[1:]
    found = dict(zip(parts[::2], parts[1::2], strict=True))
    return {title: text for title, text in found.items() if "```diff" in text}


RECIPES = sections()


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


def test_there_is_a_recipe_for_everything_in_the_table():
    anchors = re.findall(r"\]\(#([\w-]+)\)", TEXT.split("\n## ")[0])
    assert len(anchors) == len(RECIPES) == 7
    titles = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in RECIPES}
    assert titles == set(anchors)


@pytest.mark.parametrize("title", RECIPES)
def test_a_recipe_touches_few_files_and_applies(title, tmp_path):
    (patch,) = blocks(RECIPES[title], "diff")
    files = set(re.findall(r"^\+\+\+ b/(\S+)", patch, re.M))
    assert len(files) <= (3 if title == "A task" else 2)
    applied(patch, tmp_path)
    # What the recipe adds would pass the project's own checks.
    check = [sys.executable, "-m", "ruff", "check", "--config", str(ROOT / "pyproject.toml")]
    done = subprocess.run([*check, *map(str, tmp_path.rglob("*.py"))], capture_output=True)
    assert done.returncode == 0, done.stdout.decode()


def applied(patch: str, place: pathlib.Path) -> None:
    shutil.copytree(ROOT / "loopjax", place / "loopjax")
    shutil.copytree(ROOT / "configs", place / "configs")
    command = ["git", "apply", "--unidiff-zero", "-"]
    # git looks for a repository above; it must not find the project's.
    env = {**os.environ, "GIT_CEILING_DIRECTORIES": str(place.parent)}
    done = subprocess.run(command, cwd=place, input=patch, text=True, capture_output=True, env=env)
    assert done.returncode == 0, done.stderr


def wants(title: str, place: pathlib.Path) -> None:
    """What the commands of a recipe must have left, beside an exit code of 0."""
    runs = place / "runs"
    if title == "A growth operator":
        phases = json.loads((runs / "bottom" / "phases.json").read_text())
        assert [phase["operator"] for phase in phases] == ["init", "bottom", "bottom"]
        assert phases[1]["order"] == [0, 1, 2, 3, 0, 1, 2, 3]
    elif title == "A diagnostic":
        (result,) = (runs / "standard" / "signature").glob("rank-*.json")
        about = json.loads(result.read_text())
        assert about["diagnostic"] == "rank" and len(about["result"]["participation"]) == 13
        assert result.with_suffix(".png").is_file()
        assert "Participation ratio" in (place / "report.html").read_text()
    elif title == "A task":
        result = json.loads((runs / "majority" / "eval.json").read_text())
        assert "majority_9" in json.dumps(result)
    elif title == "A loss":
        rows = (runs / "z_loss" / "metrics.jsonl").read_text().splitlines()
        assert all(json.loads(row)["losses/z_loss"] > 0 for row in rows)
    elif title == "A data source":
        heldout = json.loads((runs / "reverse" / "result.json").read_text())["heldout"]
        assert {"reverse_4/exact", "reverse_8/exact"} <= heldout.keys()


@pytest.mark.slow
@pytest.mark.parametrize("title", RECIPES)
def test_the_commands_of_a_recipe_work(title, tmp_path):
    applied(blocks(RECIPES[title], "diff")[0], tmp_path)
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    for line in "".join(blocks(RECIPES[title], "sh")).splitlines():
        words = shlex.split(line)
        assert words[0] == "loopjax"
        command = [sys.executable, "-m", "loopjax", *words[1:]]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
    wants(title, tmp_path)
