"""The commands, files and links in the README and in docs/ exist as printed."""

import pathlib
import re
import shlex

import pytest

from loopjax import config_flags
from loopjax.cli.main import main
from loopjax.config import default, flatten

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "experiments/README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]


def code_blocks(text: str) -> list[str]:
    """Blocks without a language: commands and their output."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.S | re.M)
    return [body for language, body in fenced if not language]


def commands() -> list[list[str]]:
    """The words of every `loopjax ...` line in the pages, continuation lines joined."""
    lines = [
        line
        for page in PAGES
        for block in code_blocks(page.read_text())
        for line in block.replace("\\\n", " ").splitlines()
        if line.startswith("loopjax ")
    ]
    return [shlex.split(line, comments=True)[1:] for line in lines]


COMMANDS = commands()


def help_of(name: str, capsys) -> str:
    try:
        code = main([name, "--help"])
    except SystemExit as exit:
        code = exit.code
    assert not code, f"loopjax {name} --help"
    return capsys.readouterr().out


@pytest.mark.parametrize("name", sorted({words[0] for words in COMMANDS}))
def test_documented_commands_exist_with_their_flags(name, capsys):
    text = help_of(name, capsys)
    for words in COMMANDS:
        if words[0] != name:
            continue
        for word in words[1:]:
            flag = word.partition("=")[0]
            if flag.startswith("--") and not flag.startswith("--config"):
                flag = re.escape(flag.removeprefix("--"))
                assert re.search(rf"--(\[no\])?{flag}\b", text), f"{shlex.join(words)}: {flag}"


@pytest.mark.parametrize("words", COMMANDS, ids=shlex.join)
def test_documented_configs_load_with_their_overrides(words):
    overrides = [word for word in words if word.startswith("--config.")]
    if any(word.startswith("--config=") for word in words):
        chosen = [word for word in words if word.startswith("--config")]
        config_flags.parse("train", "", chosen)  # raises UserError for an unknown option
    else:
        options = flatten(default().to_dict())
        for override in overrides:
            assert override.partition("=")[0].removeprefix("--config.") in options


def test_every_command_is_in_the_readme(capsys):
    assert main(["--help"]) == 0
    listed = re.findall(r"^  ([a-z][a-z-]+) +\S", capsys.readouterr().out, re.M)
    assert len(listed) >= 18
    blocks = "".join(code_blocks((ROOT / "README.md").read_text()))
    for name in listed:
        assert f"loopjax {name} " in blocks, name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_links_of_a_page_exist(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links {target}"
    named = r"\b(?:configs|experiments|docs|benchmarks|tests|loopjax)/[\w./-]*\w\.(?:py|md|png)\b"
    text = re.sub(r"```diff\n.*?```", "", text, flags=re.S)  # a recipe may add a file
    for name in set(re.findall(named, text)):
        assert (ROOT / name).exists(), f"{page.name} names {name}"


def test_anchors_of_the_results_exist():
    text = (ROOT / "docs/results.md").read_text()
    headings = {
        re.sub(r"[^\w\- ]", "", line.removeprefix("## ").lower()).replace(" ", "-")
        for line in text.splitlines()
        if line.startswith("## ")
    }
    anchors = set(re.findall(r"\]\(#([^)]+)\)", text))
    assert anchors and anchors <= headings
