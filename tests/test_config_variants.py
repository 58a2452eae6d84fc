"""Variants of the config files: one grammar each, parsed by one function."""

import json
import pathlib
import re

import pytest

from loopjax import config as config_lib
from loopjax import config_flags, depth
from loopjax.config_variants import parse_variant

from .test_project import ROOT, VARIANTS

# The fields there were when the parser was written, and what each variant changed in them.
BEFORE = json.loads((pathlib.Path(__file__).parent / "config_variants.json").read_text())


def load(file: str, variant: str) -> dict:
    path = ROOT / "configs" / f"{file}.py"
    config, _ = config_flags.parse("train", "", [f"--config={path}:{variant}"])
    return config_lib.flatten(config.to_dict())


@pytest.mark.parametrize("file", VARIANTS)
def test_every_variant_sets_the_fields_it_always_did(file):
    default = config_lib.flatten(config_lib.default().to_dict())
    known = tuple(BEFORE["fields"])
    for variant in VARIANTS[file]:
        changed = {
            name: value
            for name, value in load(file, variant).items()
            if (name in known or "mixture." in name) and value != default.get(name)
        }
        assert changed == BEFORE["variants"][f"{file}:{variant}"]
    names = [name for name in BEFORE["variants"] if name.startswith(f"{file}:")]
    assert len(names) == len(VARIANTS[file])


def test_a_part_in_brackets_may_be_absent():
    grammar = "[paper,]PLAN[,GROWTH]"
    assert parse_variant("x.py", "4x6", grammar) == {"paper": "", "PLAN": "4x6", "GROWTH": ""}
    parts = {"paper": "paper", "PLAN": "8-4x2-12", "GROWTH": "midas"}
    assert parse_variant("x.py", "paper,8-4x2-12,midas", grammar) == parts


@pytest.mark.parametrize(
    ("variant", "grammar"),
    [
        ("paper", "[paper,]PLAN"),
        ("", "PLAN"),
        ("4,", "PLAN[,GROWTH]"),
        ("4,other", "PLAN[,GROWTH]"),
        ("large", "SIZE"),
        ("small,4,midas", "SIZE,PLAN"),
        ("small,standard-4x2", "SIZE,ROW"),
    ],
)
def test_a_wrong_variant_is_told_the_grammar_and_every_choice(variant, grammar):
    choices = {"SIZE": ("small", "medium"), "ROW": ("standard-LAYERS", "loop-PLAN", "GROWTH")}
    with pytest.raises(ValueError) as error:
        parse_variant("configs/x.py", variant, grammar, **choices)
    message = str(error.value)
    assert message.startswith(f"variant {variant!r} of configs/x.py must be {grammar} (")
    parts = re.findall("[A-Z]+", grammar)
    operators = ", ".join(depth.GROWTH_OPERATORS)
    assert (f"GROWTH: {operators}" in message) == ("GROWTH" in parts)
    assert ("SIZE: small, medium" in message) == ("SIZE" in parts)
    assert (f"ROW: standard-LAYERS, loop-PLAN, {operators}" in message) == ("ROW" in parts)
    assert ("PLAN: a depth plan" in message) == ("PLAN" in parts or "ROW" in parts)


def test_a_new_growth_operator_is_a_variant_of_every_config_that_grows(monkeypatch):
    monkeypatch.setitem(depth.GROWTH_OPERATORS, "copy_last", depth.midas)
    variants = {
        "study": "mini,copy_last,math", "tiny": "copy_last", "smollm": "360m,copy_last",
        "addition": "paper,4,copy_last", "igsm": "4,copy_last", "hops": "p16,6,copy_last",
        "two_phase": "2,copy_last",
    }  # fmt: skip
    assert variants.keys() | {"p_hop", "scaling_exponents", "loop_neural_networks"} == {
        path.stem for path in (ROOT / "configs").glob("*.py")
    }
    for file, variant in variants.items():
        assert load(file, variant)["growth.operator"] == "copy_last"
