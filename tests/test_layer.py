"""One executed layer: the scan, a loop over `run_layer` and decoding run the same layer."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import meta

from loopjax import block, model, step, surgery
from loopjax.depth import DepthPlan, ExecutedLayer
from loopjax.lm import decode

CFG = model.ModelConfig(
    vocab_size=40, d_model=16, d_ff=24, n_heads=4, n_kv_heads=2, init_depth=6, dtype="float32"
)
PLAN = DepthPlan.parse("1-2x3-1")
TOKENS_BT = jnp.array(np.random.default_rng(0).integers(0, 40, (2, 9)))


def params_of(n_layers=4, cfg=CFG):
    return meta.unbox(model.init_params(cfg, n_layers, jax.random.key(1)))


def one_by_one(params, plan=PLAN, gates=None, layers=None):
    x_BTD = model.outside_stack(params, CFG, TOKENS_BT, "embedded")
    context = model.context_of(CFG, jnp.arange(TOKENS_BT.shape[1]), x_BTD)
    for e in range(plan.n_effective):
        here = context.replace(gates=gates[e]) if gates else context
        stack = params["layers"] if layers is None else layers
        x_BTD, _, _ = model.run_layer(stack, e, x_BTD, here, CFG, plan)
    return x_BTD


def test_a_plan_knows_each_executed_layer():
    assert DepthPlan.parse("1-2x2-1").executed == (
        ExecutedLayer(0, 0, 0),
        ExecutedLayer(1, 1, 0), ExecutedLayer(2, 1, 0),
        ExecutedLayer(1, 1, 1), ExecutedLayer(2, 1, 1),
        ExecutedLayer(3, 2, 0),
    )  # fmt: skip


def test_layers_run_one_by_one_compute_what_the_scan_computes():
    params = params_of()
    scanned = model.residual(params, TOKENS_BT, CFG, PLAN)
    np.testing.assert_allclose(one_by_one(params), scanned, rtol=2e-5, atol=1e-6)
    cut = [jax.tree.map(lambda leaf, u=u: leaf[u], params["layers"]) for u in range(4)]
    np.testing.assert_array_equal(one_by_one(params, layers=cut), one_by_one(params))


def test_the_executed_layer_may_be_traced():
    params = params_of()
    x_BTD = model.outside_stack(params, CFG, TOKENS_BT, "embedded")
    context = model.context_of(CFG, jnp.arange(TOKENS_BT.shape[1]), x_BTD)

    def layer(x_BTD, e):
        return model.run_layer(params["layers"], e, x_BTD, context, CFG, PLAN)[0], None

    looped, _ = jax.lax.scan(layer, x_BTD, jnp.arange(PLAN.n_effective))
    np.testing.assert_allclose(looped, one_by_one(params), rtol=2e-5, atol=1e-6)


def gates_for(layers, value):
    shape = TOKENS_BT.shape
    return [
        {name: jnp.full(shape, value if e in layers else 1.0) for name in ("attention", "mlp")}
        for e in range(PLAN.n_effective)
    ]


def test_gates_of_one_change_no_bit():
    params = params_of()
    np.testing.assert_array_equal(one_by_one(params, gates=gates_for((), 0.0)), one_by_one(params))


def test_a_layer_with_gates_of_zero_is_a_layer_left_out():
    params = params_of()
    order = [u for e, u in enumerate(PLAN.order) if e != 2]
    expected = model.residual(surgery.reorder(params, order), TOKENS_BT, CFG, DepthPlan.parse("7"))
    ablated = one_by_one(params, gates=gates_for((2,), 0.0))
    np.testing.assert_allclose(ablated, expected, rtol=2e-5, atol=1e-6)


class PlacedBlock(block.Block):
    """Adds a bias per iteration, and a little of the embeddings: both need the context."""

    reads = ("place", "embedded_BTD")

    @nn.compact
    def __call__(self, x_BTD, context, cache=None):
        init = nn.with_logical_partitioning(nn.initializers.normal(0.5), ("norm", "embed"))
        bias_RD = self.param("iteration_bias", init, (3, self.cfg.d_model))
        x_BTD = x_BTD + bias_RD[context.place.iteration] + 0.1 * context.embedded_BTD
        self.sow("intermediates", "unique", jnp.full((1, 1), context.place.unique))
        return super().__call__(x_BTD, context, cache)


@pytest.fixture
def placed(monkeypatch):
    monkeypatch.setattr(model, "Block", PlacedBlock)
    return params_of()


@pytest.mark.parametrize("remat", ["none", "full"])
def test_a_layer_that_reads_its_place_is_told_it_in_the_scan_and_one_by_one(placed, remat):
    cfg = dataclasses.replace(CFG, remat=remat)
    scanned, sown = model.intermediates(placed, TOKENS_BT, cfg, PLAN, ["unique"])
    assert sown["unique"].ravel().tolist() == list(PLAN.order)
    np.testing.assert_allclose(one_by_one(placed), scanned, rtol=2e-5, atol=1e-6)
    # Iterations differ: the same layers with the first iteration's bias everywhere compute another.
    first = placed["layers"]["iteration_bias"][:, :1].repeat(3, axis=1)
    same = {**placed, "layers": placed["layers"] | {"iteration_bias": first}}
    assert jnp.abs(model.residual(same, TOKENS_BT, cfg, PLAN) - scanned).max() > 0.1


@pytest.mark.slow
def test_a_layer_that_reads_its_place_decodes_as_it_scores(placed):
    whole = model.residual(placed, TOKENS_BT, CFG, PLAN)
    x_BTD, caches = decode.prefill(placed, TOKENS_BT[:, :6], CFG, PLAN)
    np.testing.assert_allclose(x_BTD, whole[:, :6], rtol=2e-5, atol=1e-6)

    def padded(leaf_BKTC):
        return jnp.pad(leaf_BKTC, ((0, 0), (0, 0), (0, 3), (0, 0)))

    caches = jax.tree.map(padded, caches)
    layers = [jax.tree.map(lambda leaf, u=u: leaf[u], placed["layers"]) for u in range(4)]
    for t in range(6, 9):
        positions_BT = jnp.full((2, 1), t)
        mask_BTS = jnp.broadcast_to(jnp.arange(9) <= t, (2, 1, 9))
        placement = block.Placement(positions_BT, mask_BTS=mask_BTS, slot=jnp.int32(t))
        args = (placed, layers, TOKENS_BT[:, t : t + 1], CFG, PLAN, placement, caches)
        x_BTD, caches = decode.decode_step(*args)
        np.testing.assert_allclose(x_BTD[:, 0], whole[:, t], rtol=1e-4, atol=1e-5)


class LossBlock(block.Block):
    """Has an auxiliary loss: the mean square of what it reads."""

    @nn.compact
    def __call__(self, x_BTD, context, cache=None):
        self.sow("losses", "mean_square", jnp.mean(jnp.square(x_BTD)))
        return super().__call__(x_BTD, context, cache)


def updated(params, microbatches=1, tokens_BT=TOKENS_BT):
    optimizer = optax.sgd(0.1)
    state = step.TrainState(jnp.int32(0), params, optimizer.init(params))
    batch = {"inputs": tokens_BT[:, :-1], "targets": tokens_BT[:, 1:]}
    update = functools.partial(
        step.train_step, cfg=CFG, plan=PLAN, optimizer=optimizer,
        schedule=lambda t: 0.1, microbatches=microbatches,
    )  # fmt: skip
    return jax.jit(update)(state, batch)


@pytest.mark.slow
def test_auxiliary_losses_are_summed_over_the_executed_layers_and_trained_on(monkeypatch):
    params = params_of()
    plain, plain_metrics = updated(params)
    assert not any(key.startswith("losses") for key in plain_metrics)
    monkeypatch.setattr(model, "Block", LossBlock)
    state, metrics = updated(params)
    _, sown = model.intermediates(params, TOKENS_BT[:, :-1], CFG, PLAN, ["residual"])
    expected = jnp.square(sown["residual"]).mean((1, 2, 3)).sum()
    np.testing.assert_allclose(metrics["losses/mean_square"], expected, rtol=1e-5)
    # The loss that is reported stays the one that models are compared by.
    np.testing.assert_allclose(metrics["loss"], plain_metrics["loss"], rtol=1e-6)
    change = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), state.params, plain.params)
    assert change["layers"]["gate"] > 1e-6


@pytest.mark.slow
def test_microbatches_give_the_same_update_with_auxiliary_losses(monkeypatch):
    monkeypatch.setattr(model, "Block", LossBlock)
    params, tokens_BT = params_of(), jnp.concatenate([TOKENS_BT, TOKENS_BT[:, ::-1]])
    whole, metrics = updated(params, tokens_BT=tokens_BT)
    parts, metrics_of_parts = updated(params, microbatches=2, tokens_BT=tokens_BT)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
        (whole.params, metrics["loss"], metrics["losses/mean_square"]),
        (parts.params, metrics_of_parts["loss"], metrics_of_parts["losses/mean_square"]),
    )
