"""Terms of the loss for loops: blocks alike."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from loopjax import config as config_lib
from loopjax import losses, run
from loopjax import step as step_lib
from loopjax.depth import DepthPlan
from loopjax.errors import UserError
from loopjax.run import on_mesh, plan_run
from tests.test_model import CFG, params_of

MATRICES = ("query", "key", "value", "output", "gate", "up", "down")


def cosine(a, b):
    return (a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum())


# --- blocks alike ------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 2, 3])
def test_the_loss_of_blocks_is_the_printed_sum_of_cosines(block):
    layers = jax.tree.map(np.asarray, params_of(CFG, 6)["layers"])
    rng = np.random.default_rng(0)
    layers = {n: leaf + 0.1 * leaf[:1] + rng.normal(size=leaf.shape) for n, leaf in layers.items()}
    found = losses.block_cosine({"layers": layers}, block)
    groups = []
    for name in MATRICES:
        matrix = layers[name].astype(np.float64)
        pairs = [
            cosine(matrix[i * block + j], matrix[(i + 1) * block + j])
            for i in range(6 // block - 1)
            for j in range(block)
        ]
        groups.append(sum(pairs) / (6 - block))
    assert float(found) == pytest.approx(np.mean([1 - group for group in groups]), rel=1e-5)


def test_equal_blocks_have_no_loss_and_a_step_down_brings_blocks_together():
    params = params_of(CFG, 4)
    twice = {
        **params,
        "layers": jax.tree.map(lambda x: x[jnp.array([0, 1, 0, 1])], params["layers"]),
    }
    assert float(losses.block_cosine(twice, 2)) == pytest.approx(0, abs=1e-6)
    before, slope = jax.value_and_grad(losses.block_cosine)(params, 2)
    moved = jax.tree.map(lambda p, g: p - 3 * g, params, slope)
    assert float(losses.block_cosine(moved, 2)) < float(before) - 0.05
    assert not any(np.any(leaf) for name, leaf in slope["layers"].items() if name not in MATRICES)
    assert not np.any(slope["embed"])


def test_matrices_of_zeros_have_no_direction_and_no_gradient():
    params = params_of(CFG, 4)
    params["layers"]["down"] = jnp.zeros_like(params["layers"]["down"])
    value, slope = jax.value_and_grad(losses.block_cosine)(params, 2)
    assert np.isfinite(value) and not np.any(slope["layers"]["down"])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slope))


def updated(config, plan, params=None):
    """State before and after one update of a config, and the metrics."""
    planned = plan_run(config)
    plan = DepthPlan.parse(plan)
    with on_mesh(planned):
        abstract = step_lib.abstract_state(
            planned.cfg, plan.n_unique, planned.optimizer, planned.mesh, planned.rules
        )
        before = step_lib.sharded_init(
            planned.cfg, abstract, plan.n_unique, planned.optimizer, config.seed
        )
        if params is not None:
            where = jax.tree.map(lambda leaf: leaf.sharding, before.params)
            before = before.replace(params=jax.device_put(params, where))
        kept = jax.tree.map(np.array, before)
        batch = planned.to_device(next(planned.stream.batches(planned.rows, 0)))
        after, metrics = planned.jitted_update(plan, before)(before, batch)
    return kept, after, metrics


def moment(state):
    """Adam's first moment after one update, which is linear in the gradient."""
    return state.opt_state[1][0].mu


@pytest.fixture
def untied(tiny_config):
    tiny_config.growth.operator = ""
    tiny_config.clip_norm = 1e9
    tiny_config.depth = "4"
    tiny_config.losses.update(block_cosine=2.0, block=2)
    return tiny_config


@pytest.mark.parametrize("mesh", [{"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}])
@pytest.mark.parametrize("microbatches", [1, 2])
def test_the_gradient_of_the_blocks_is_added_once_on_any_mesh(untied, mesh, microbatches):
    untied.mesh.update(mesh)
    untied.microbatches = microbatches if mesh["data"] == 2 else 1
    state, after, metrics = updated(untied, "4")
    expected, slope = jax.value_and_grad(losses.block_cosine)(state.params, 2)
    assert float(metrics["losses/block_cosine"]) == pytest.approx(2 * float(expected), rel=1e-5)
    untied.losses.block_cosine = 0.0
    _, plain, plain_metrics = updated(untied, "4")
    assert float(metrics["loss"]) == pytest.approx(float(plain_metrics["loss"]), rel=1e-6)
    assert "losses/block_cosine" not in plain_metrics

    def same(with_term, without, slope):
        # 0.1 is 1 - beta1.
        expected = np.asarray(without) + 0.1 * 2 * np.asarray(slope)
        np.testing.assert_allclose(np.asarray(with_term), expected, atol=2e-6)

    jax.tree.map(same, moment(after), moment(plain), slope)


GROWN = {"operator": "lidas", "block": 2}


@pytest.mark.parametrize(
    ("depth", "growth", "block", "sentence"),
    [
        ("4", {}, 3, "losses.block=3 does not divide the 4 layers of plan 4"),
        ("4", {}, 4, "losses.block=4 must be less than the 4 layers of the model"),
        ("2x2", {}, 1, "is for models without loops, but plan 2x2 has one"),
        ("8", GROWN, 4, "losses.block=4 does not divide the 2 layers of plan 2"),
    ],
)
def test_depths_that_are_not_whole_blocks_are_refused(untied, depth, growth, block, sentence):
    untied.depth = depth
    untied.growth.update(growth)
    untied.losses.block = block
    with pytest.raises(UserError, match=sentence):
        run.outline(untied)


def test_a_first_stage_of_one_block_has_no_loss(untied):
    untied.growth.update(GROWN)
    run.outline(untied)
    assert float(losses.block_cosine(params_of(CFG, 2), 2)) == 0


def test_the_size_of_a_block_matters_only_with_the_loss(untied):
    assert "losses.block" not in config_lib.unused(config_lib.flatten(untied.to_dict()))
    untied.losses.block_cosine = 0.0
    assert "losses.block" in config_lib.unused(config_lib.flatten(untied.to_dict()))


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_a_weight_must_be_a_number_of_at_least_zero(untied, weight):
    untied.losses.block_cosine = weight
    with pytest.raises(UserError, match="config.losses.block_cosine=.* must be at least 0"):
        run.outline(untied)
