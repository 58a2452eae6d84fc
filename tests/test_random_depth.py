"""A random number of repetitions, and gradients through the last of them only."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import meta

from loopjax import flops, loop, model, step
from loopjax.depth import DepthPlan
from loopjax.errors import UserError
from loopjax.loop_config import LoopConfig
from loopjax.random_depth import Law
from loopjax.run import on_mesh, outline, plan_run
from loopjax.train import train
from tests.test_layer import LossBlock

PLAN = DepthPlan.parse("1-1x3-1")
RNG = np.random.default_rng(0)
TOKENS_BT = jnp.array(RNG.integers(0, 40, (2, 6)))
BATCH = {"inputs": TOKENS_BT[:, :-1], "targets": TOKENS_BT[:, 1:]}


def config_of(remat="none", **loop_fields):
    return model.ModelConfig(
        vocab_size=40, d_model=8, d_ff=12, n_heads=2, n_kv_heads=1, init_depth=5, dtype="float32",
        attention="xla", remat=remat, loop=LoopConfig(**loop_fields),
    )  # fmt: skip


def params_of(cfg, n_layers=3):
    return meta.unbox(model.init_params(cfg, n_layers, jax.random.key(1)))


def python_loop(params, cfg, count: int, backprop: int):
    """The loss, with a Python loop of `count` repetitions: those before the last have no gradient."""
    x_BTD = model.outside_stack(params, cfg, BATCH["inputs"], "embedded")
    context = model.context_of(cfg, jnp.arange(5), x_BTD)
    three = DepthPlan.parse("3")

    def layer(i, x_BTD):
        return model.run_layer(params["layers"], i, x_BTD, context, cfg, three)[0]

    e_BTD = x_BTD = layer(0, x_BTD)
    for i in range(count):
        if cfg.loop.norm and i:
            x_BTD = x_BTD / jnp.sqrt(jnp.mean(x_BTD**2, -1, keepdims=True) + cfg.norm_eps)
        x_BTD = x_BTD + (cfg.loop.inject_scale * e_BTD if cfg.loop.inject else 0.0)
        x_BTD = layer(1, x_BTD)
        if i < count - backprop:
            # Nothing before has a gradient, through e neither, for these repetitions.
            x_BTD = jax.lax.stop_gradient(x_BTD)
    if cfg.loop.norm:
        x_BTD = x_BTD / jnp.sqrt(jnp.mean(x_BTD**2, -1, keepdims=True) + cfg.norm_eps)
    logits = model.unembed(params, layer(2, x_BTD), cfg)
    return optax.softmax_cross_entropy_with_integer_labels(logits, BATCH["targets"]).mean()


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields", [{}, {"inject": "add", "inject_scale": 0.7, "norm": True}], ids=["plain", "boundary"]
)
def test_one_program_computes_the_gradients_of_every_number_of_repetitions(fields):
    cfg = config_of(repeats="uniform:1:33", backprop=4, **fields)
    params, traces = params_of(cfg), []

    @jax.jit
    def gradients(params, count):
        traces.append(count)

        def loss(params):
            weights_BT = jnp.full((2, 5), 0.1)
            passes = loop.Passes(count, cfg.loop.backprop)
            segments = model.cut_segments(params, PLAN)
            args = BATCH["inputs"], BATCH["targets"], weights_BT, cfg, PLAN, None, passes
            return model.weighted_loss(segments, *args)[0]

        return jax.value_and_grad(loss)(params)

    for count in range(1, 34):
        found = gradients(params, jnp.int32(count))
        if count not in (1, 2, 4, 5, 9):
            continue
        expected = jax.value_and_grad(
            functools.partial(python_loop, count=count, backprop=4, cfg=cfg)
        )(params)
        scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=0, atol=3e-7 * scale),
            found,
            expected,
        )
    assert len(traces) == 1


def updated(cfg, plan=PLAN, microbatches=1, seed=0, at=0, batch=BATCH):
    optimizer = optax.sgd(0.1)
    params = params_of(cfg, plan.n_unique)
    state = step.TrainState(jnp.int32(at), params, optimizer.init(params))
    update = functools.partial(
        step.train_step, cfg=cfg, plan=plan, optimizer=optimizer, schedule=lambda t: 0.1,
        microbatches=microbatches, seed=seed,
    )  # fmt: skip
    return jax.jit(update)(state, batch)


def assert_close(a, b, tolerance=1e-6):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=tolerance), a, b)


def test_a_law_of_one_number_trains_the_plan_that_has_it():
    of_law, metrics = updated(config_of(repeats="uniform:5:5", backprop=7))
    of_plan, expected = updated(config_of(), DepthPlan.parse("1-1x5-1"))
    assert_close(of_law.params, of_plan.params)
    assert metrics.pop("repeats") == 5
    assert_close(metrics, expected)


@pytest.mark.parametrize("remat", ["none", "full"])
def test_the_plans_own_number_may_be_truncated_too(remat):
    cfg = config_of(remat, backprop=1, inject="add")
    state, _ = updated(
        cfg, microbatches=2, batch=jax.tree.map(lambda x: jnp.tile(x, (2, 1)), BATCH)
    )
    params = params_of(cfg)
    grads = jax.grad(functools.partial(python_loop, count=3, backprop=1, cfg=cfg))(params)
    assert_close(state.params, jax.tree.map(lambda p, g: p - 0.1 * g, params, grads))


def test_packed_rows_are_truncated_like_others():
    cfg = config_of(backprop=1, inject="add")
    packed = {"segments": jnp.ones((2, 5), jnp.int32), "positions": jnp.tile(jnp.arange(5), (2, 1))}
    states = [updated(cfg, batch=batch)[0].params for batch in (BATCH, BATCH | packed)]
    assert_close(*states)


def test_truncation_to_all_repetitions_is_the_plain_program():
    whole, truncated = (updated(config_of(**fields))[0].params for fields in ({}, {"backprop": 3}))
    assert_close(whole, truncated, 1e-7)


@pytest.mark.slow
def test_auxiliary_losses_count_the_repetitions_with_a_gradient(monkeypatch):
    monkeypatch.setattr(model, "Block", LossBlock)
    _, whole = updated(config_of())
    _, all_of_them = updated(config_of(backprop=3))
    assert_close(all_of_them, whole)
    _, last = updated(config_of(backprop=1), microbatches=2)
    assert 0 < last["losses/mean_square"] < whole["losses/mean_square"]


@pytest.mark.parametrize(
    ("text", "sample"),
    [
        ("uniform:2:8", lambda rng, n: rng.integers(2, 9, n)),
        ("huginn:4", lambda rng, n: 1 + rng.poisson(np.exp(rng.normal(np.log(4) - 0.125, 0.5, n)))),
        ("lognormal:5:0.4",
         lambda rng, n: np.maximum(1, np.rint(np.exp(rng.normal(np.log(5) - 0.08, 0.4, n))))),
    ],
)  # fmt: skip
def test_draws_follow_the_law(text, sample):
    law, n = Law(text), 40_000
    drawn = np.asarray(jax.jit(jax.vmap(lambda s: law.draw(7, s)))(jnp.arange(n)))
    expected = sample(np.random.default_rng(1), n).astype(int)
    assert drawn.min() >= 1
    size = max(drawn.max(), expected.max()) + 1
    a, b = (np.cumsum(np.bincount(x, minlength=size)) / n for x in (drawn, expected))
    assert np.abs(a - b).max() < 0.015  # two-sample Kolmogorov-Smirnov, p = 0.0003
    assert law.expected(float) == pytest.approx(expected.mean(), rel=0.01)


def test_huginns_law_has_the_published_mean_median_and_tail():
    law = Law("huginn:32")
    below = np.cumsum(law.probabilities)
    assert law.expected(float) == pytest.approx(33, abs=1e-3)
    assert np.searchsorted(below, 0.5) == 29
    assert np.searchsorted(below, 0.99) == 94


def test_a_cap_takes_what_exceeds_it():
    free, capped = Law("huginn:8"), Law("huginn:8", 12)
    assert capped.largest == 12
    np.testing.assert_allclose(capped.probabilities[:12], free.probabilities[:12], rtol=1e-9)
    assert capped.probabilities.sum() == pytest.approx(1)


def test_a_draw_depends_on_the_seed_and_the_step_alone():
    law = Law("huginn:8")
    rows = [[int(law.draw(seed, step)) for step in range(12)] for seed in (0, 1, 0)]
    assert rows[0] == rows[2] != rows[1]
    # Recorded once: a run that is resumed by a later version must draw the same.
    assert rows[0] == [8, 8, 15, 12, 10, 6, 3, 9, 9, 10, 8, 5]


def loop_config(tiny_config, **fields):
    tiny_config.growth.operator = ""
    tiny_config.depth = "1-1x2-1"
    tiny_config.loop.update(fields)
    return tiny_config


def rows_of(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: row[k] for k in ("step", "loss", "grad_norm", "repeats")} for row in rows]


@pytest.mark.slow
def test_a_resumed_run_repeats_the_draws_of_an_uninterrupted_one(tiny_config, tmp_path):
    config = loop_config(tiny_config, repeats="huginn:3", backprop=2, inject="add", norm=True)
    config.steps, config.cooldown.steps, config.cooldown.mixture = 8, 0, {}
    config.schedule, config.eval_batches = "constant", 0
    whole = train(config, tmp_path / "whole")
    config.steps = 5
    train(config, tmp_path / "parts")
    config.steps = 8
    resumed = train(config, tmp_path / "parts")
    rows = rows_of(tmp_path / "whole")
    assert rows_of(tmp_path / "parts") == rows
    law = Law("huginn:3")
    assert [r["repeats"] for r in rows] == [int(law.draw(config.seed, t)) for t in range(8)]
    assert resumed["training_flops"] == whole["training_flops"]


@pytest.mark.slow
def test_eight_devices_and_microbatches_draw_one_number(tiny_config):
    config = loop_config(tiny_config, repeats="uniform:1:6", backprop=3, inject="concat")
    states = []
    for mesh, microbatches in (
        ({"data": 1, "fsdp": 8}, 1),
        ({"data": 2, "fsdp": 2, "tensor": 2}, 2),
    ):
        config.mesh.update({"data": -1, "tensor": 1, **mesh})
        config.microbatches = microbatches
        run = plan_run(config)
        with on_mesh(run):
            abstract = step.abstract_state(run.cfg, 3, run.optimizer, run.mesh, run.rules)
            state = step.sharded_init(run.cfg, abstract, 3, run.optimizer, config.seed)
            batch = run.to_device(next(run.stream.batches(run.rows, 0)))
            state, metrics = run.jitted_update(run.plan, abstract)(state, batch)
        states.append((jax.device_get(state.opt_state[1][0].mu), int(metrics["repeats"])))
    assert states[0][1] == states[1][1]
    assert_close(states[0][0], states[1][0], 1e-6)


def test_the_expected_cost_is_the_mean_over_the_counts(tiny_config):
    config = loop_config(tiny_config, repeats="uniform:2:6", backprop=3)
    cfg = outline(config).cfg

    def cost(count, cfg):
        return flops.training_flops(cfg, DepthPlan.parse(f"1-1x{count}-1"), config)

    plain = outline(loop_config(tiny_config, repeats="", backprop=0)).cfg
    once = cost(3, plain) - cost(2, plain)
    # Counts 4, 5, 6 run 1, 2, 3 repetitions forward only: a third of the cost of an update.
    expected = np.mean([cost(n, plain) - once * (n - min(n, 3)) * 2 / 3 for n in range(2, 7)])
    assert cost(2, cfg) == cost(4, cfg) == pytest.approx(expected, rel=2e-5)
    fixed = outline(loop_config(tiny_config, repeats="", backprop=1)).cfg
    assert cost(3, fixed) == pytest.approx(cost(3, plain) - once * 2 * 2 / 3, rel=2e-5)
    per_token = flops.inference_flops_per_token(cfg, PLAN, config.seq_len)
    assert 3 * per_token * config.batch_size * config.seq_len == cost(3, plain)


BAD = [
    ({"repeats": "poisson:3"}, "config.loop.repeats='poisson:3' must be empty or one of uniform"),
    ({"repeats": "uniform:0:3"}, "config.loop.repeats='uniform:0:3' must be empty or one of"),
    ({"repeats": "uniform:3:2.5"}, "config.loop.repeats='uniform:3:2.5' must be"),
    ({"repeats": "huginn:nan"}, "config.loop.repeats='huginn:nan' must be"),
    ({"repeats": "huginn:8"}, "config.loop.repeats='huginn:8' requires loop.most or loop.backprop"),
    ({"repeats": "uniform:1:4", "most": 3}, "config.loop.most=3 does not apply to loop.repe"),
    ({"most": 3}, "config.loop.most=3 requires loop.repeats"),
    ({"backprop": -1}, "config.loop.backprop=-1 must lie within 0..10,000"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "sentence"), BAD, ids=[s[:30] for _, s in BAD])
def test_a_law_that_cannot_be_is_refused_in_a_sentence(tiny_config, fields, sentence):
    with pytest.raises(UserError) as error:
        outline(loop_config(tiny_config, **fields))
    assert str(error.value).startswith(sentence)


def test_a_law_requires_one_loop(tiny_config):
    config = loop_config(tiny_config, repeats="uniform:1:3")
    config.depth = "3"
    with pytest.raises(UserError, match=r"config.loop.repeats='uniform:1:3' requires a plan that"):
        outline(config)
    config.depth = "1x2-1x3"
    with pytest.raises(UserError, match=r"requires plans with one loop; plan 1x2-1x3 has 2"):
        outline(config)
