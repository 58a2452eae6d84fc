"""Trajectories of loops: known motions are told apart, and numbers are those of plain forward passes."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from loopjax import model
from loopjax.analysis import analyze, loops
from loopjax.analysis import trajectories as lib
from loopjax.depth import DepthPlan
from loopjax.errors import UserError
from loopjax.loop_config import LoopConfig
from loopjax.plots import trajectories as plots
from loopjax.report import collect, diagnostic_findings, page
from tests import report_material as material
from tests.test_layer import CFG, TOKENS_BT, params_of
from tests.test_score import language_model
from tests.test_windows import Stepped

CASES = [([7, 1, 200, 31, 5, 90, 12, 44], 5, ""), (list(range(3, 24)), 20, "")]


def turning(degrees: float) -> np.ndarray:
    a = np.radians(degrees)
    return np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])


@pytest.mark.parametrize(
    ("matrix", "shift", "kind", "angle", "growth"),
    [
        (0.5 * np.eye(2), (1, 0), "settling", 0, 0.5),
        (0.8 * turning(70), (1, 0), "settling", 70, 0.8),
        (np.eye(2), (1, 2), "drifting", 0, 1),
        (1.2 * np.eye(2), (0, 1), "drifting", 0, 1.2),
        (turning(60), (1, 0), "rotating", 60, 1),
        (-np.eye(2), (1, 0), "rotating", 180, 1),
        (1.1 * turning(90), (1, 0), "rotating", 90, 1.1),
        (np.eye(2), (0, 0), "settling", None, None),  # at rest
    ],
)
def test_known_motions_are_told_apart(matrix, shift, kind, angle, growth):
    states = [np.array([3.0, 1.0])]
    for _ in range(9):
        states.append(matrix @ states[-1] + np.array(shift))
    y = np.array(states, np.float32)[1:, None, None]  # [R, 1 layer, 1 token, 2]
    found = lib.movement(jnp.array(y), 1e-6)
    assert loops.KINDS[int(found["kinds"][:, 0, 0].argmax())] == kind
    assert found["kinds"].sum() == 1
    update = np.diff(y[:, 0, 0], axis=0)
    size, level = np.linalg.norm(update, axis=-1), np.linalg.norm(y[:, 0, 0], axis=-1)
    np.testing.assert_allclose(found["distance"][:, 0, 0], size / level[1:], rtol=1e-4, atol=1e-6)
    second = np.linalg.norm(np.diff(update, axis=0), axis=-1) / level[2:]
    np.testing.assert_allclose(found["second"][:, 0, 0], second, rtol=1e-3, atol=1e-5)
    if angle is not None:
        np.testing.assert_allclose(found["angle"][:, 0, 0], angle, atol=0.3)
        assert float(jnp.exp(found["log_growth"][0, 0])) == pytest.approx(growth, rel=1e-3)


@pytest.mark.parametrize("radius", [0.3, 0.97, 1.4])
@pytest.mark.parametrize("pair", [False, True])
def test_the_radius_of_a_linear_block_is_found_within_1_percent(radius, pair):
    random = np.random.default_rng(2)
    blocks = np.diag(random.uniform(-0.8, 0.8, 12) * radius)
    blocks[0, 0] = -radius
    if pair:  # complex eigenvalues of the largest size: single iterations oscillate
        blocks[:2, :2] = radius * turning(37)
    basis = random.standard_normal((12, 12))
    matrix = jnp.array(basis @ blocks @ np.linalg.inv(basis), jnp.float32)
    start = jnp.array(random.standard_normal((1, 1, 12)), jnp.float32)
    jacobians = lib.jacobian_on_krylov(lambda x: x @ matrix.T + 3, 2 * start, start)
    found = list(map(lib.radius, jacobians))
    assert found[1] == pytest.approx(radius, rel=0.01)
    assert abs(found[1] - found[0]) < 0.02 * radius


@pytest.mark.slow
def test_the_radius_is_that_of_the_jacobian_of_one_more_pass_of_the_loop():
    params, plan, tokens_BT = params_of(), DepthPlan.parse("1-2x3:damped-1"), TOKENS_BT[:1, :2]
    _, sown = model.intermediates(params, tokens_BT, CFG, plan, ["residual"])
    last_BTD = sown["residual"][7]  # what the layer after the window reads
    embedded_BTD = model.outside_stack(params, CFG, tokens_BT, "embedded")
    context = model.context_of(CFG, jnp.arange(2), embedded_BTD)
    once = functools.partial(
        lib.one_pass, params, context=context, cfg=CFG, plan=plan, index=1
    )  # fmt: skip
    # One more pass is what the plan with one more repetition computes.
    longer = loops.extended(plan, 1, 4)
    _, sown = model.intermediates(params, tokens_BT, CFG, longer, ["residual"])
    np.testing.assert_allclose(once(last_BTD), sown["residual"][9], rtol=1e-5, atol=1e-6)
    jacobian = jax.jacrev(once)(last_BTD).reshape(2 * CFG.d_model, -1)
    expected = np.abs(np.linalg.eigvals(jacobian)).max()
    jacobians = lib._jacobian(params, last_BTD[0], tokens_BT, 2, CFG, plan, 1)
    assert lib.radius(jacobians[1]) == pytest.approx(expected, rel=0.02)


@pytest.mark.slow
def test_what_happens_between_repetitions_is_followed():
    loop = LoopConfig(norm=True, inject="add", inject_scale=0.5, residual="outer_delta")
    cfg, plan = dataclasses.replace(CFG, loop=loop), DepthPlan.parse("1-2x6-1")
    params, tokens_BT = params_of(), TOKENS_BT[:1]
    states = lib._after_layers(params, tokens_BT, cfg, plan, 1)
    embedded_BTD = model.outside_stack(params, cfg, tokens_BT, "embedded")
    anchor_BTD = model.run_layer(
        params["layers"], 0, embedded_BTD,
        model.context_of(cfg, jnp.arange(tokens_BT.shape[1]), embedded_BTD, weights=params), cfg, plan,
    )[0]  # fmt: skip
    context = model.context_of(cfg, jnp.arange(tokens_BT.shape[1]), anchor_BTD, weights=params)
    once = functools.partial(lib.one_pass, params, context=context, cfg=cfg, index=1)
    answers = lib._answers(params, states[2:14:2, 0], tokens_BT, cfg, plan, 1)
    for repeats in range(2, 7):
        shorter = DepthPlan.parse(f"1-2x{repeats}-1")
        logits = model.forward(params, tokens_BT, cfg, shorter)
        np.testing.assert_array_equal(answers[repeats - 1], logits[0].argmax(-1))
        if repeats == 6:
            break
        after = once(states[2 * repeats], plan=DepthPlan.parse(f"1-2x{repeats + 1}-1"))
        np.testing.assert_allclose(after, states[2 * repeats + 2], rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def followed():
    lm = language_model("1-2x3-1", mesh="", devices=jax.devices()[:1])
    return lm, lib.trajectories(lm, CASES, 6)


def test_the_numbers_are_those_of_plain_forward_passes(followed):
    lm, found = followed
    plan = DepthPlan.parse("1-2x6-1")
    plain = Stepped(dataclasses.replace(lm, plan=plan))
    distances, answers, asked, rights = [], [], [], []
    for tokens, start, _ in CASES:
        h = plain.run(tokens)[0]
        y = h[2:14].reshape(6, 2, len(tokens), -1)
        update = np.diff(y, axis=0)
        distances.append(np.linalg.norm(update, axis=-1) / np.linalg.norm(y[1:], axis=-1))
        each = []
        for repeats in range(1, 7):
            shorter = DepthPlan.parse(f"1-2x{repeats}-1")
            one = Stepped(dataclasses.replace(lm, plan=shorter))
            each.append(one.logits(shorter, tokens).argmax(-1)[start - 1 : -1])
        answers.append(np.array(each))
        rights.append(np.array(each) == np.array(tokens[start:]))
        asked.append(len(tokens) - start)
    np.testing.assert_allclose(
        found.distance, np.concatenate(distances, -1).mean(-1), rtol=1e-3, atol=1e-6
    )
    answers, right = np.concatenate(answers, -1), np.concatenate(rights, -1)
    assert (found.prompts, found.tokens, found.answers) == (2, 29, sum(asked))
    np.testing.assert_allclose(found.flips, (answers[1:] != answers[:-1]).mean(-1), atol=1e-6)
    np.testing.assert_allclose(found.agreement, (answers == answers[2]).mean(-1), atol=1e-6)
    np.testing.assert_allclose(found.right, right.mean(-1), atol=1e-6)
    np.testing.assert_allclose(found.kinds.sum(-1), 1, atol=1e-6)
    assert (found.start, found.planned) == (1, 3) and found.agreement[2] == 1


def test_a_stopped_diagnostic_resumes_and_its_files_have_a_figure_and_sentences(
    tmp_path, monkeypatch, followed
):
    lm, expected = followed
    lm = dataclasses.replace(
        lm, meta={"step": 3, "checksums": {}, "lineage": [], "plan": "1-2x3-1"}
    )
    about = {"prompts": {"name": "made", "source": ""}, "repetitions": 6, "say": lambda text: None}
    measured, program = [], lib._program

    def stopping(*args):
        def measure(*inputs):
            if len(measured) == 1:
                measured.append("stopped")
                raise KeyboardInterrupt
            measured.append("done")
            return program(*args)(*inputs)

        return measure

    monkeypatch.setattr(lib, "_program", stopping)
    monkeypatch.setattr(analyze.roles, "look_of", lambda plan, meta: "#2563eb")
    with pytest.raises(UserError, match="rerun the same command to resume"):
        analyze.analyze(lm, ["trajectories"], CASES, tmp_path, **about)
    result = analyze.analyze(lm, ["trajectories"], CASES, tmp_path, **about)["trajectories"]
    assert measured == ["done", "stopped", "done"]
    for name, value in dataclasses.asdict(expected).items():
        np.testing.assert_array_equal(getattr(result, name), value)
    assert (tmp_path / "trajectories-made.png").read_bytes()[:4] == b"\x89PNG"
    content = json.loads((tmp_path / "trajectories-made.json").read_text())
    assert content["diagnostic"] == "trajectories"
    assert content["about"]["settings"] == {"repetitions": 6}
    says = diagnostic_findings.trajectories({"tied": result}, [])
    assert says.startswith(
        "tied (loop from layer 1, 3 repetitions in the plan): of the tokens settling"
    )
    assert f"spectral radius {result.radius:.2f}" in says
    lines = plots.plot({"a": result, "b": [result, result]}).axes[0].lines
    np.testing.assert_allclose(lines[0].get_data()[1], result.distance[:, -1])
    assert list(lines[0].get_data()[0]) == [2, 3, 4, 5, 6]


def test_more_repetitions_of_a_window_are_steps_of_the_same_size():
    plan = loops.extended(DepthPlan.parse("1-2x4:damped-1"), 1, None)
    assert str(plan) == "1-2x8:damped0.25-1"
    assert loops.longest(DepthPlan.parse("2x2-1-3x4")) == 2


@pytest.mark.parametrize(
    ("depth", "repetitions", "says"),
    [
        ("4", None, "trajectories needs a plan with a loop or a window, not 4"),
        ("1-2x6-1", 5, "--repetitions 5 must lie within 6..4,999 for the loop 2x6"),
        ("1-2x2-1", 3, "--repetitions 3 must lie within 4..4,999 for the loop 2x2"),
        ("1-2x2-1", 5000, "--repetitions 5000 must lie within 4..4,999"),
    ],
)
def test_what_cannot_be_followed_is_refused(depth, repetitions, says):
    lm = language_model(depth, mesh="", devices=jax.devices()[:1])
    with pytest.raises(UserError, match=says):
        lib.trajectories(lm, CASES, repetitions)


def test_diagnostics_of_sums_of_updates_refuse_windows(tmp_path):
    lm = language_model("1-2x2:mlp-1", mesh="", devices=jax.devices()[:1])
    lm = dataclasses.replace(lm, meta={"step": 3, "checksums": {}})
    about = {"prompts": {"name": "made", "source": ""}, "say": lambda text: None}
    with pytest.raises(UserError, match="norms needs a plan without windows, not 1-2x2:mlp-1"):
        analyze.analyze(lm, ["norms"], CASES, tmp_path, **about)


def test_the_page_asks_only_for_what_a_plan_allows(tmp_path):
    kinds = ["norms", "trajectories", "similarity", "intervene repeat"]
    tied = material.run(tmp_path / "run", material.LOOP)
    (tied / "checkpoints").mkdir()
    own = collect.open_model(str(tied))
    asked = {}
    for plan in ("12", "4x3", "4-4x2:damped-4"):
        entry = collect.Entry("m", own, DepthPlan.parse(plan))
        asked[plan] = " ".join(page.commands(entry, kinds))
    assert "norms,similarity" in asked["12"] and "intervene" in asked["12"]
    assert "norms,trajectories,similarity" in asked["4x3"] and "intervene" in asked["4x3"]
    assert "trajectories,similarity" in asked["4-4x2:damped-4"]
    assert not any(word in asked["4-4x2:damped-4"] for word in ("norms", "intervene"))
