"""Roles look the same in every figure, and different from each other to every eye."""

import itertools

import numpy as np
import pytest

from loopjax import config as config_lib
from loopjax import curriculum
from loopjax.plots import roles
from loopjax.plots.roles import Kind, kind_of

# Machado, Oliveira and Fernandes 2009, severity 1, for linear RGB.
VISION = {
    "normal": np.eye(3),
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                     [-0.011820, 0.042940, 0.968881]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                   [-0.003882, -0.048116, 1.051998]],
}  # fmt: skip
XYZ = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750],
                [0.0193339, 0.1191920, 0.9503041]])  # fmt: skip


def linear(color: str) -> np.ndarray:
    values = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIELAB of linear RGB."""
    share = XYZ @ rgb / [0.95047, 1, 1.08883]
    f = np.where(share > 216 / 24389, np.cbrt(share), (24389 / 27 * share + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def distance(a: str, b: str, vision: str) -> float:
    seen = [lab(np.clip(VISION[vision] @ linear(color), 0, 1)) for color in (a, b)]
    return float(np.linalg.norm(seen[0] - seen[1]))


def contrast(a: str, b: str) -> float:
    low, high = sorted(XYZ[1] @ linear(color) for color in (a, b))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("vision", VISION)
def test_the_colors_of_two_roles_differ_to_every_eye(vision):
    for one, other in itertools.combinations(roles.ROLES, 2):
        far = distance(roles.look(one).color, roles.look(other).color, vision)
        assert far > 20, (one, other, far)


def test_roles_are_seen_on_white_and_on_dark_pages_and_without_color():
    for role in roles.ROLES:
        color = roles.look(role).color
        assert contrast(color, "#ffffff") >= 3
        assert contrast(color, "#111111") >= 2.6
    markers = [roles.look(role).marker for role in roles.ROLES]
    assert len(set(markers)) == len(markers)
    others = {roles.look("other", repeated=k) for k in range(8)}
    assert len(others) == 8 and not {one.color for one in others} & {
        color for color, _ in roles.ROLES.values()
    }


def test_adaptations_are_line_styles_of_one_color_and_marker():
    looks = [roles.look("lidas", adaptation) for adaptation in roles.ADAPTATIONS]
    assert {(one.color, one.marker) for one in looks} == {roles.ROLES["lidas"]}
    assert len({one.linestyle for one in looks}) == len(looks)


def test_models_of_one_kind_keep_the_hue_and_differ_in_shade_and_marker():
    several = {f"lidas {k}": Kind("lidas") for k in range(4)}
    chosen = roles.looks({**several, "standard": Kind("standard"), "x": Kind("stack")})
    assert len({(one.color, one.marker) for one in chosen.values()}) == 6
    assert chosen["lidas 0"] == roles.look("lidas")
    assert chosen["standard"] == roles.look("standard")
    assert chosen["x"] == roles.look("other")


GROWN = {"operator": "lidas", "block": 2}
MATH = {"steps": 20, "mixture": {"math": 1.0}}
CASES = [
    ({}, Kind("standard")),
    ({"depth": "4"}, Kind("half")),
    ({"depth": "2"}, Kind("one block")),
    ({"depth": "6"}, Kind("other")),
    ({"depth": "2x4"}, Kind("loop")),
    ({"depth": "4x2"}, Kind("half, looped")),
    ({"depth": "1-2x3-1"}, Kind("middle loop")),
    ({"growth": GROWN}, Kind("lidas")),
    ({"growth": {"operator": "midas", "block": 2}}, Kind("midas")),
    ({"growth": {"operator": "gstack", "block": 4}}, Kind("other")),
    ({"growth": GROWN, "cooldown": MATH}, Kind("lidas", "cooldown")),
    ({"growth": GROWN, "cooldown": {**MATH, "depth": "2-2x2-4"}}, Kind("lidas", "retrofit")),
    ({"depth": "2x4", "growth": {"plans": "2x2,2x4"}}, Kind("loop")),
    ({"depth": "1-2x3-1", "growth": {"plans": "4,1-2x3-1"}}, Kind("middle loop")),
    ({"depth": "2x4", "cooldown": {"steps": 20, "operator": "untie", "depth": "8"}},
     Kind("loop", "untied")),
]  # fmt: skip


@pytest.mark.parametrize("fields, kind", CASES)
def test_a_lineage_and_a_config_say_the_role(fields, kind):
    made = config_lib.default()
    made.update(steps=100, depth=fields.get("depth", "8"))
    made.cooldown.steps = 0
    for name in ("growth", "cooldown"):
        made[name].update(fields.get(name, {}))
    phases = curriculum.build(made)
    events = curriculum.lineage(phases, 100)
    assert kind_of(phases[-1].plan, events, depth=8) == kind
    assert kind_of(phases[-1].plan, (), made.to_dict(), depth=8) == kind


def test_a_run_from_the_weights_of_another_one_is_fine_tuned_or_untied():
    base = {"step": 0, "operator": "init", "plan": "2x4", "order": None}
    tuned = {"step": 0, "operator": "data", "plan": "2x4", "order": None, "from": "runs/loop@100"}
    untied = {**tuned, "operator": "untie", "plan": "8", "order": [0, 1] * 4}
    assert kind_of("2x4", [base, tuned]) == Kind("loop", "fine-tuned")
    assert kind_of("8", [base, untied]) == Kind("loop", "untied")
    assert kind_of("2x5", [base], trained="2x4") == Kind("loop", "other plan")
    meta = {"lineage": [base, tuned], "plan": "2x4"}
    assert roles.look_of("2x4", meta) == roles.look("loop", "fine-tuned")
    assert roles.look_of("8", {}) == roles.look("standard"), "all that is known is the plan"
