"""Windows: layers of a trained model repeated in smaller steps, or one kind of sublayer only."""

import dataclasses
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from loopjax import block, model, step, surgery
from loopjax.depth import DepthPlan, restack
from loopjax.errors import UserError
from loopjax.lm import decode, score
from loopjax.passes import PLAIN
from tests.test_analysis import Plain
from tests.test_layer import CFG, TOKENS_BT, params_of
from tests.test_score import forward_logits, language_model

PLANS = (
    "1-2x3:damped-1",
    "1-2x2:damped0.3-1",
    "4x2:damped",
    "1-2x3:mlp-1",
    "2x3:attention-2",
    "1-2x3:damped:mlp-1",
    "1-1x2-2x4:damped0.5:attention",
)
FEW = (PLANS[0], PLANS[3], PLANS[-1])  # of programs that take long to compile
PROMPT = [7, 1, 200, 31, 5, 90, 12, 44, 3, 250, 17]


# The definition, in NumPy.


class Stepped(Plain):
    def mlp(self, e, x):
        p = {k: v[self.order[e]] for k, v in self.params["layers"].items()}
        x = self.norm(x, p["mlp_norm"])
        gate = x @ p["gate"]
        return (gate / (1 + np.exp(-gate)) * (x @ p["up"])) @ p["down"]

    def residual(self, plan, tokens):
        x, e = self.params["embed"][tokens], 0
        for segment in plan.segments:
            passes = getattr(segment, "passes", PLAIN)
            d = passes.factor(segment.repeats)
            for r in range(segment.repeats):
                y = x
                for _ in range(segment.layers):
                    weight = {"attention": 1.0, "mlp": 1.0}
                    if passes.sublayer:
                        weight = {name: float(r == 0) for name in weight} | {passes.sublayer: d}
                    y = y + weight["attention"] * self.sublayers(e, y)[0]
                    y = y + weight["mlp"] * self.mlp(e, y)
                    e += 1
                x = y if passes.sublayer else x + d * (y - x)
        return x

    def logits(self, plan, tokens):
        head = self.params.get("head", self.params["embed"].T)
        return self.norm(self.residual(plan, tokens), self.params["final_norm"]) @ head


@pytest.mark.parametrize("text", FEW)
def test_a_window_computes_its_formula_on_8_devices(text):
    lm = language_model(text)
    tokens = np.array([PROMPT] * lm.batch_parts, np.int32)
    with lm.on_mesh():
        found = jax.jit(model.forward, static_argnames=("cfg", "plan"))(
            lm.params, lm.put(tokens), cfg=lm.cfg, plan=lm.plan
        )
    expected = Stepped(lm).logits(lm.plan, PROMPT)
    np.testing.assert_allclose(found[0], expected, rtol=1e-3, atol=2e-4)
    plain = DepthPlan.parse(
        text.split(":")[0] + "".join(text[text.index(":") :].partition("-")[1:])
    )
    other = model.forward(jax.device_get(lm.params), tokens, lm.cfg, plain)
    assert np.abs(other[0] - expected).max() > 0.02


@pytest.mark.parametrize("remat", ["none", "full"])
@pytest.mark.parametrize(
    ("text", "same"), [("1-2x1:damped-1", "4"), ("1-2x3:damped1-1", "1-2x3-1")]
)
def test_one_step_is_the_plain_model_and_whole_steps_are_a_loop(text, same, remat):
    cfg = dataclasses.replace(CFG, remat=remat)
    assert DepthPlan.parse(text) == DepthPlan.parse(same)
    found = model.residual(params_of(), TOKENS_BT, cfg, text)
    np.testing.assert_array_equal(found, model.residual(params_of(), TOKENS_BT, cfg, same))


@pytest.mark.parametrize("text", PLANS)
def test_the_scan_of_any_window_computes_its_formula(text):
    lm = language_model(text, mesh="", devices=jax.devices()[:1])
    found = model.residual(lm.params, np.array([PROMPT]), lm.cfg, lm.plan)[0]
    np.testing.assert_allclose(found, Stepped(lm).residual(lm.plan, PROMPT), rtol=1e-3, atol=2e-4)


class LinearBlock(block.Block):
    """x + A x with a fixed A: one step of Euler's method for dx/dt = A x, of length 1."""

    @nn.compact
    def __call__(self, x_BTD, context, cache=None):
        super().__call__(x_BTD, context, cache)  # declares the parameters
        return x_BTD + x_BTD @ jnp.asarray(MATRIX, x_BTD.dtype).T, cache


MATRIX = 0.15 * np.random.default_rng(4).standard_normal((CFG.d_model, CFG.d_model))


def test_the_error_of_a_linear_differential_equation_falls_with_the_number_of_steps(monkeypatch):
    values, vectors = np.linalg.eig(MATRIX)
    flow = (vectors @ np.diag(np.exp(values)) @ np.linalg.inv(vectors)).real
    monkeypatch.setattr(model, "Block", LinearBlock)
    params = params_of(1)
    expected = np.asarray(params["embed"])[TOKENS_BT] @ flow.T
    errors = []
    for steps in (1, 2, 4, 8, 16):
        found = model.residual(params, TOKENS_BT, CFG, f"1x{steps}:damped")
        errors.append(float(np.abs(found - expected).max()))
    ratios = [a / b for a, b in itertools.pairwise(errors)]
    assert min(ratios) > 1.5 and ratios[-1] == pytest.approx(2, abs=0.15)  # first order


@pytest.mark.parametrize("text", FEW[1:])
def test_cached_decoding_is_the_forward_pass(text):
    lm = language_model(text)
    made = decode.generate(lm, [PROMPT, PROMPT[:4]], 5)
    for prompt, generation in zip((PROMPT, PROMPT[:4]), made, strict=True):
        run = list(prompt)
        for _ in range(5):
            run.append(int(forward_logits(lm, run)[-1].argmax()))
        assert generation.tokens == run[len(prompt) :]


@pytest.mark.slow
@pytest.mark.parametrize("text", FEW)
def test_each_pass_of_a_cached_step_attends_to_the_keys_of_the_same_pass(text):
    params, plan = params_of(), DepthPlan.parse(text)
    whole = model.residual(params, TOKENS_BT, CFG, plan)
    x_BTD, caches = decode.prefill(params, TOKENS_BT[:, :6], CFG, plan)
    np.testing.assert_allclose(x_BTD, whole[:, :6], rtol=2e-5, atol=1e-6)
    assert len(caches) == plan.n_effective
    pad = ((0, 0), (0, 0), (0, 3), (0, 0))
    caches = jax.tree.map(lambda leaf_BKTC: jnp.pad(leaf_BKTC, pad), caches)
    layers = [jax.tree.map(lambda leaf, u=u: leaf[u], params["layers"]) for u in range(4)]
    for t in range(6, 9):
        mask_BTS = jnp.broadcast_to(jnp.arange(9) <= t, (2, 1, 9))
        placement = block.Placement(jnp.full((2, 1), t), mask_BTS=mask_BTS, slot=jnp.int32(t))
        args = (params, layers, TOKENS_BT[:, t : t + 1], CFG, plan, placement, caches)
        x_BTD, caches = decode.decode_step(*args)
        np.testing.assert_allclose(x_BTD[:, 0], whole[:, t], rtol=1e-4, atol=1e-5)


def test_branches_are_scored_as_plain_forward_passes():
    lm = language_model("1-2x3:damped-1")
    requests = [(PROMPT, [4, 5, 6]), (PROMPT, [9]), (PROMPT[:3], [8, 2])]
    found = score.log_likelihoods(lm, requests).logprobs
    for (before, after), logprob in zip(requests, found, strict=True):
        logprobs = jax.nn.log_softmax(forward_logits(lm, before + after))
        places = range(len(before) - 1, len(before) + len(after) - 1)
        expected = sum(float(logprobs[t, token]) for t, token in zip(places, after, strict=True))
        assert logprob == pytest.approx(expected, abs=1e-4)


def test_the_loss_of_a_batch_is_that_of_the_logits():
    params, plan = params_of(), DepthPlan.parse("1-2x3:damped:mlp-1")
    batch = {"inputs": TOKENS_BT[:, :-1], "targets": TOKENS_BT[:, 1:]}
    found = step.eval_step(params, batch, cfg=CFG, plan=plan)
    logprobs = jax.nn.log_softmax(model.forward(params, batch["inputs"], CFG, plan))
    expected = -jnp.take_along_axis(logprobs, batch["targets"][..., None], -1).sum()
    np.testing.assert_allclose(found["nll"], expected, rtol=1e-5)


def test_the_stream_after_a_segment_can_be_run_to_the_end():
    params, plan = params_of(), DepthPlan.parse("1-2x3:damped-1")
    whole, sown = model.intermediates(params, TOKENS_BT, CFG, plan, ["residual"])
    for first, e in enumerate((0, 1, 7)):
        rest = model.residual_from(params, first, sown["residual"][e], TOKENS_BT, CFG, plan)
        np.testing.assert_allclose(rest, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("text", [*PLANS, "8-4x3:damped0.125-12"])
def test_a_plan_with_a_window_survives_being_written_and_read(text):
    plan = DepthPlan.parse(text)
    assert str(plan) == text and DepthPlan.parse(str(plan)) == plan
    assert plan.order == DepthPlan.of([(s.layers, s.repeats) for s in plan.segments]).order


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("4:damped", "invalid depth plan '4:damped'"),
        ("4x2:damp", "invalid depth plan"),
        ("4x2:mlp:damped", "invalid depth plan"),
        ("4x2:damped0", "the damping factor 0 must lie within 0.001..1"),
        ("4x2:damped1.5", "the damping factor 1.5 must lie within 0.001..1"),
        ("4x1:damped0.5", "4 layers that run once cannot be damped0.5"),
    ],
)
def test_windows_that_make_no_sense_are_refused(text, says):
    with pytest.raises(ValueError, match=says):
        DepthPlan.parse(text)


def test_windows_are_not_trained(tiny_config):
    from loopjax import run

    says = "repeats 4x2:damped at inference only; training needs plain loops"
    tiny_config.depth = "4x2:damped"
    tiny_config.growth.operator = ""
    with pytest.raises(UserError, match=f"^config.depth: plan .* {says}"):
        run.outline(tiny_config)
    with pytest.raises(ValueError, match=says):
        restack("untie", DepthPlan.parse("4x2:damped"), DepthPlan.parse("8"))
    with pytest.raises(ValueError, match=says):  # no untied stack computes it
        surgery.untie(params_of(), "4x2:damped")
