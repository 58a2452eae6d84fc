"""Terms of the loss for loops: blocks alike."""

import dataclasses
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from loopjax import config as config_lib
from loopjax import exit_losses, flops, jacobian, losses, model, run
from loopjax import step as step_lib
from loopjax.depth import DepthPlan, Segment
from loopjax.errors import UserError
from loopjax.evals import nll
from loopjax.exits import Rule
from loopjax.loop_config import LoopConfig
from loopjax.run import on_mesh, plan_run
from loopjax.train import train
from tests.conftest import tiny_run
from tests.test_model import CFG, params_of
from tests.test_train import final_state, rows_of

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
            own = jax.tree.map(np.array, params)  # the update donates its state
            before = before.replace(params=jax.device_put(own, where))
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


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [{"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_the_gradient_of_the_blocks_is_added_once_on_any_mesh(untied, mesh):
    untied.mesh.update(mesh)
    untied.microbatches = 2 if mesh["data"] == 2 else 1
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


# --- losses of the exits -------------------------------------------------------------------------

LOOPS = ["2x3", "1-2x3-1"]
rng = np.random.default_rng(5)


@pytest.fixture
def looped(tiny_config):
    tiny_config.growth.operator = ""
    tiny_config.clip_norm = 1e9
    tiny_config.depth = "1-1x3-1"
    return tiny_config


def exits_of(params, batch, cfg, plan):
    """For each repetition: the state after it [B, T, D], and the losses of its exit [B, T]."""
    # A loop of one repetition is merged with what is around it.
    loop = next((s for s in plan.segments if s.repeats > 1), None) or Segment(1, 1, 1)
    segments = plan.segments if plan.is_looped else (Segment(0, 1, 1), loop, Segment(2, 1, 1))
    out = []
    for t in range(1, loop.repeats + 1):
        parts = [(s.layers, t if s is loop else s.repeats) for s in segments]
        upto = [p for s, p in zip(segments, parts, strict=True) if s.start <= loop.start]
        inside = DepthPlan.of(upto)
        below = jax.tree.map(lambda leaf, n=inside.n_unique: leaf[:n], params["layers"])
        state = model.residual({**params, "layers": below}, batch["inputs"], cfg, inside)
        logits = model.forward(params, batch["inputs"], cfg, DepthPlan.of(parts))
        log_p = jax.nn.log_softmax(logits)
        targets = jnp.maximum(batch["targets"], 0)[..., None]
        out.append((state, -jnp.take_along_axis(log_p, targets, axis=-1)[..., 0]))
    return [state for state, _ in out], [nll for _, nll in out]


def scored_mean(batch, values_BT):
    scored = batch["targets"] >= 0
    return jnp.sum(jnp.where(scored, values_BT, 0)) / jnp.sum(scored)


def first_batch(config):
    return next(plan_run(config).stream.batches(np.arange(config.batch_size), 0))


def with_gate(params, seed=0):
    rng = np.random.default_rng(seed)
    gate = {name: rng.normal(size=leaf.shape).astype("f") for name, leaf in params["loop"].items()}
    return {**params, "loop": gate}


def assert_gradient(after, expected):
    """The first moment of AdamW after one update is 0.1 times the gradient."""
    jax.tree.map(
        lambda m, g: np.testing.assert_allclose(np.asarray(m), 0.1 * np.asarray(g), atol=3e-6),
        moment(after), expected,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("depth", "mesh"), [("1x3", {"data": 8}), ("1-1x3-1", {"data": 2, "fsdp": 2, "tensor": 2})]
)
def test_the_mean_over_repetitions_is_trained_on(looped, depth, mesh):
    looped.update(depth=depth, microbatches=2 if mesh["data"] == 2 else 1)
    looped.mesh.update(mesh)
    looped.losses.per_repetition = "mean"
    before, after, metrics = updated(looped, depth)
    cfg, plan, batch = plan_run(looped).cfg, DepthPlan.parse(depth), first_batch(looped)

    def objective(params):
        losses = [scored_mean(batch, nll) for nll in exits_of(params, batch, cfg, plan)[1]]
        return sum(losses) / 3, losses

    expected, losses = jax.jit(jax.grad(objective, has_aux=True))(before.params)
    assert_gradient(after, expected)
    assert float(metrics["loss"]) == pytest.approx(float(losses[-1]), rel=1e-5)
    assert float(metrics["losses/repetition_1"]) == pytest.approx(float(losses[0]), rel=1e-5)
    assert float(metrics["losses/repetition_2"]) == pytest.approx(float(losses[1]), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("exits", "seed"), [("mean", 0), ("random", 1), ("joint", 0)])
def test_a_random_number_of_repetitions_has_exits_after_each(looped, exits, seed):
    looped.seed = seed
    looped.loop.repeats = "uniform:1:4"
    looped.losses.update(exit_gate="joint") if exits == "joint" else looped.losses.update(
        per_repetition=exits
    )
    before, after, metrics = updated(looped, looped.depth)
    count = int(metrics["repeats"])
    earlier = int(exit_losses.drawn(seed, 0, count))
    plan, batch = DepthPlan.parse(f"1-1x{count}-1"), first_batch(looped)
    cfg = dataclasses.replace(plan_run(looped).cfg, loop=LoopConfig())

    def objective(params):
        _, nlls = exits_of(params, batch, cfg, plan)
        if exits == "joint":  # a gate of zeros leaves half of what is there
            p = [0.5**t for t in range(1, count)] + [0.5 ** (count - 1)]
            return scored_mean(batch, sum(q * nll for q, nll in zip(p, nlls, strict=True)))
        losses = [scored_mean(batch, nll) for nll in nlls]
        if exits == "mean":
            return sum(losses) / count
        return (losses[earlier] + losses[-1]) / 2

    expected = jax.jit(jax.grad(objective))(before.params)
    found = moment(after)
    found.pop("loop", None), expected.pop("loop", None)
    jax.tree.map(
        lambda m, g: np.testing.assert_allclose(np.asarray(m), 0.1 * np.asarray(g), atol=3e-6),
        found, expected,
    )  # fmt: skip
    last = scored_mean(batch, exits_of(before.params, batch, cfg, plan)[1][-1])
    assert float(metrics["loss"]) == pytest.approx(float(last), rel=1e-5)


@pytest.mark.slow
def test_the_random_exit_is_one_earlier_repetition_beside_the_last(looped):
    looped.losses.per_repetition = "random"
    before, after, metrics = updated(looped, looped.depth)
    cfg, plan, batch = plan_run(looped).cfg, DepthPlan.parse(looped.depth), first_batch(looped)
    earlier = int(exit_losses.drawn(looped.seed, 0, 3))

    def objective(params):
        losses = [scored_mean(batch, nll) for nll in exits_of(params, batch, cfg, plan)[1]]
        return (losses[earlier] + losses[-1]) / 2, losses

    expected, losses = jax.jit(jax.grad(objective, has_aux=True))(before.params)
    assert_gradient(after, expected)
    found = float(metrics["losses/earlier_repetition"])
    assert found == pytest.approx(float(losses[earlier]), rel=1e-5)


def test_draws_depend_on_seed_and_step_and_are_uniform():
    draws = np.array([[int(exit_losses.drawn(s, t, 5)) for t in range(60)] for s in range(4)])
    assert set(draws.ravel()) == {0, 1, 2, 3}
    assert (np.bincount(draws.ravel()) > 35).all()
    assert (draws[0] != draws[1]).any()
    assert int(exit_losses.drawn(2, 7, 5)) == draws[2, 7]


def exit_probabilities(gate):
    """p_t of gates lambda [..., T], by the printed products."""
    T = gate.shape[-1]
    stays = [np.prod(1 - gate[..., :t], axis=-1) for t in range(T + 1)]
    return np.stack([gate[..., t] * stays[t] for t in range(T - 1)] + [stays[T - 1]], axis=-1)


def test_the_exit_probabilities_are_the_printed_products():
    logits = rng.normal(size=(2, 5, 4)) * 3
    found = np.exp(exit_losses.log_exit_probabilities(jnp.array(logits)))
    np.testing.assert_allclose(found, exit_probabilities(1 / (1 + np.exp(-logits))), atol=1e-6)
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-6)


@pytest.mark.slow
def test_the_joint_loss_of_the_gate_is_the_printed_one(looped):
    looped.mesh.update({"data": 2, "fsdp": 2, "tensor": 2})
    looped.microbatches = 2
    looped.losses.update(exit_gate="joint", exit_entropy=0.3)
    planned = plan_run(looped)
    cfg, plan, batch = planned.cfg, DepthPlan.parse(looped.depth), first_batch(looped)
    params = with_gate(nn.meta.unbox(model.init_params(cfg, 3, jax.random.key(0))))
    _, after, metrics = updated(looped, looped.depth, params)

    def objective(params):
        states, nlls = exits_of(params, batch, cfg, plan)
        gate = []
        for h in states:
            h = h / jnp.sqrt(jnp.mean(h * h, -1, keepdims=True) + cfg.norm_eps)
            h = h * params["final_norm"]
            logit = h @ params["loop"]["exit_gate"] + params["loop"]["exit_gate_bias"][0]
            gate.append(1 / (1 + jnp.exp(-logit)))
        p = [gate[0], gate[1] * (1 - gate[0]), (1 - gate[0]) * (1 - gate[1])]
        entropy = -sum(q * jnp.log(q) for q in p)
        mean = sum(q * nll for q, nll in zip(p, nlls, strict=True))
        return scored_mean(batch, mean - 0.3 * entropy), (scored_mean(batch, entropy), nlls[-1])

    expected, (entropy, last) = jax.jit(jax.grad(objective, has_aux=True))(params)
    assert_gradient(after, expected)
    assert float(metrics["losses/exit_entropy"]) == pytest.approx(float(entropy), rel=1e-5)
    assert float(metrics["loss"]) == pytest.approx(float(scored_mean(batch, last)), rel=1e-5)
    assert np.abs(expected["loop"]["exit_gate"]).max() > 1e-4


@pytest.mark.slow
def test_stage_two_trains_the_gate_alone_on_the_printed_loss(looped):
    looped.losses.exit_gate = "gate"
    looped.optimizer.weight_decay = 0.5
    planned = plan_run(looped)
    cfg, plan, batch = planned.cfg, DepthPlan.parse(looped.depth), first_batch(looped)
    params = with_gate(nn.meta.unbox(model.init_params(cfg, 3, jax.random.key(0))))
    params = jax.tree.map(lambda p: p.at[(0,) * p.ndim].set(-0.0), jax.tree.map(jnp.array, params))
    before, after, metrics = updated(looped, looped.depth, params)
    states, nlls = exits_of(params, batch, cfg, plan)

    def objective(gate):
        total = 0
        for t in (1, 2):
            h = states[t] / jnp.sqrt(jnp.mean(states[t] ** 2, -1, keepdims=True) + cfg.norm_eps)
            logit = h * params["final_norm"] @ gate["exit_gate"] + gate["exit_gate_bias"][0]
            leaves = 1 / (1 + jnp.exp(-logit))
            gained = jnp.maximum(0, nlls[t - 1] - nlls[t])
            w = 1 / (1 + jnp.exp(-50 * (gained - 0.005)))
            total -= w * jnp.log(1 - leaves) + (1 - w) * jnp.log(leaves)
        return scored_mean(batch, total / 3)

    value, expected = jax.value_and_grad(objective)(params["loop"])
    assert float(metrics["losses/exit_gate"]) == pytest.approx(float(value), rel=1e-5)
    assert_gradient(after, jax.tree.map(jnp.zeros_like, before.params) | {"loop": expected})
    for (path, old), new in zip(
        jax.tree_util.tree_leaves_with_path(before.params),
        jax.tree.leaves(after.params),
        strict=True,
    ):
        same = np.asarray(old).tobytes() == np.asarray(new).tobytes()
        assert same == ("exit_gate" not in jax.tree_util.keystr(path)), path


@pytest.mark.parametrize(
    ("losses", "depth", "sentence"),
    [
        ({"per_repetition": "all"}, "2x2", "losses.per_repetition='all' must be one of '', 'mean'"),
        (
            {"exit_gate": "both"},
            "2x2",
            "losses.exit_gate='both' must be one of '', 'joint', 'gate'",
        ),
        ({"exit_gate": "joint", "per_repetition": "mean"}, "2x2", "must be empty with"),
        (
            {"per_repetition": "mean"},
            "4",
            "requires a plan with a loop, like '4x6', but plan 4 has",
        ),
        ({"exit_gate": "gate"}, "1x2-1x2", "one loop, but plan 1x2-1x2 has several"),
        ({"exit_gate": "joint", "exit_entropy": -1.0}, "2x2", "exit_entropy=-1.0 must be at least"),
        ({"jacobian": 1.0, "exit_gate": "gate"}, "2x2", "jacobian=1.0 must be 0 with"),
        ({"jacobian": 1.0}, "4", "losses.jacobian=1.0 requires a plan with a loop"),
    ],
)
def test_losses_of_exits_without_sense_are_refused(looped, losses, depth, sentence):
    looped.depth = depth
    looped.losses.update(losses)
    with pytest.raises(UserError, match=sentence):
        run.outline(looped)


def test_options_of_loops_that_do_not_go_with_a_loss_are_refused(looped):
    looped.losses.jacobian = 1.0
    looped.loop.norm = True
    with pytest.raises(
        UserError, match="jacobian=1.0 .* does not apply with config.loop.norm=True"
    ):
        run.outline(looped)
    looped.losses.update(jacobian=0.0, exit_gate="gate")
    looped.loop.backprop = 1
    with pytest.raises(UserError, match="exit_gate='gate' trains no layer"):
        run.outline(looped)


def test_phases_without_a_loop_have_the_plain_loss(looped):
    looped.depth = "3"
    looped.cooldown.update(depth="1-1x2-1", steps=4)
    looped.losses.per_repetition = "mean"
    run.outline(looped)
    assert not any(name.startswith("losses/") for name in updated(looped, "3")[2])
    looped.losses.update(per_repetition="", exit_gate="gate")
    with pytest.raises(
        UserError, match="requires a plan with a loop, like '4x6', but plan 3 has none"
    ):
        run.outline(looped)


# --- the Jacobian of a repetition ----------------------------------------------------------------


def test_the_spectral_norm_of_a_linear_loop_is_its_largest_singular_value():
    matrices = np.random.default_rng(3).normal(size=(2, 6, 6)).astype("f")
    x, start = jnp.zeros((2, 6)), jnp.array(np.random.default_rng(4).normal(size=(2, 6)))

    def function(matrices, x):
        return jnp.einsum("bij,bj->bi", matrices, x) + 3

    exact = np.linalg.svd(matrices)
    found = jacobian.spectral_norm(function, matrices, x, start, 60)
    np.testing.assert_allclose(found, exact.S[:, 0], rtol=1e-4)
    few = [jacobian.spectral_norm(function, matrices, x, start, k) for k in (0, 1, 4)]
    assert (few[0] < few[1]).all() and (few[1] < few[2]).all() and (few[2] <= found + 1e-5).all()
    slope = jax.grad(lambda m: jacobian.spectral_norm(function, m, x, start, 60)[0])(matrices)
    outer = np.outer(exact.U[0, :, 0], exact.Vh[0, 0])  # d sigma / d A = u v^T
    np.testing.assert_allclose(slope[0], outer, atol=2e-3)


@pytest.mark.slow
def test_the_penalty_is_on_the_largest_singular_value_of_a_repetition(looped):
    looped.mesh.update({"data": 2, "fsdp": 2, "tensor": 2})
    looped.seq_len = 3
    looped.losses.update(jacobian=0.5, jacobian_most=0.7, jacobian_steps=80)
    before, after, metrics = updated(looped, looped.depth)
    cfg, plan, batch = plan_run(looped).cfg, DepthPlan.parse(looped.depth), first_batch(looped)
    inside = DepthPlan.parse("1-1x3")
    below = {**before.params, "layers": jax.tree.map(lambda x: x[:2], before.params["layers"])}
    last = model.residual(below, batch["inputs"], cfg, inside)

    def sigma(params, x_TD):
        def repetition(x_TD):
            segments = model.cut_segments(params, plan)
            return jacobian.one_repetition(segments, x_TD[None], cfg, plan)[0]

        J = jax.jacobian(repetition)(x_TD).reshape(x_TD.size, x_TD.size)
        return jnp.linalg.norm(J, 2)

    exact = np.array([sigma(before.params, x_TD) for x_TD in last])
    expected = 0.5 * np.maximum(exact - 0.7, 0).mean()
    assert float(metrics["losses/jacobian"]) == pytest.approx(expected, rel=5e-3) and expected > 0
    looped.losses.jacobian = 0.0
    _, plain, plain_metrics = updated(looped, looped.depth)
    assert float(metrics["loss"]) == pytest.approx(float(plain_metrics["loss"]), rel=1e-5)
    changed = jax.tree.map(lambda a, b: np.abs(np.asarray(a - b)), moment(after), moment(plain))
    # The layer of the loop has a gradient; what is outside of it has none more than before.
    assert changed["layers"]["query"][1].max() > 1e-5 > changed["layers"]["query"][[0, 2]].max()
    assert changed["embed"].max() < 1e-5


def test_flops_count_the_exits(looped):
    plain = flops.training_flops(
        *(args := (plan_run(looped).cfg, DepthPlan.parse("1-2x3-2"), looped))
    )
    cfg, plan, config = args
    tokens = config.batch_size * config.seq_len
    layer = 6 * flops.layer_params(cfg) + 12 * cfg.n_heads * cfg.head_size * config.seq_len
    exit_cost = tokens * (2 * layer + 6 * cfg.vocab_size * cfg.d_model)

    def more(**fields):
        config.losses.update(per_repetition="", exit_gate="", jacobian=0.0)
        config.losses.update(fields)
        return flops.training_flops(cfg, plan, config) - plain

    assert more(per_repetition="mean") == 2 * exit_cost == more(exit_gate="joint")
    assert more(per_repetition="random") == exit_cost
    assert more(exit_gate="gate") == pytest.approx((plain + 2 * exit_cost) / 3 - plain, abs=tokens)
    assert more(jacobian=1.0, jacobian_steps=3) == 14 * tokens * (2 * layer // 3)
    assert more() == 0


# --- runs ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of 8 steps with the losses that draw, and its directory."""
    config = tiny_run()
    config.growth.operator = ""
    config.cooldown.update(mixture={}, steps=2)
    config.update(steps=8, depth="1-1x3", checkpoint_every=4)
    config.losses.update(per_repetition="random", jacobian=0.1, jacobian_most=0.5)
    workdir = tmp_path_factory.mktemp("finished")
    train(config, workdir)
    return config, workdir


@pytest.mark.slow
def test_a_resumed_run_draws_what_the_uninterrupted_one_draws(finished, tmp_path):
    config, whole = finished
    shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "8")
    (tmp_path / "run" / "result.json").unlink()
    train(config, tmp_path / "run")
    assert rows_of(tmp_path / "run") == rows_of(whole)
    jax.tree.map(np.testing.assert_array_equal, final_state(tmp_path / "run"), final_state(whole))
    row = rows_of(whole)[0]
    assert row["losses/earlier_repetition"] > 0 and row["losses/jacobian"] > 0


@pytest.mark.slow
def test_a_gate_is_trained_for_a_finished_model_and_decides_when_tokens_leave(finished, tmp_path):
    config, whole = finished
    before = final_state(whole)
    config = ConfigDict(config.to_dict())
    config.losses.update(per_repetition="", jacobian=0.0, exit_gate="gate")
    config.update(init_from=str(whole), init="weights", steps=3)
    train(config, tmp_path / "gate")
    after = final_state(tmp_path / "gate")
    gate = after.pop("loop")
    jax.tree.map(np.testing.assert_array_equal, after, before)
    assert np.abs(gate["exit_gate"]).max() > 0
    options = {"batches": 1, "batch_size": 8, "say": lambda text: None}
    rows = [
        nll.measure(tmp_path / "gate", exit=rule, **options)["rows"][0]
        for rule in (None, Rule("gate", 1.0), Rule("gate", 0.1))
    ]
    assert rows[1]["nll"] == pytest.approx(rows[0]["nll"], rel=1e-5)
    assert rows[1]["exits"]["repeats"] == 3 > rows[2]["exits"]["repeats"] == 1
    assert rows[2]["exits"]["saved"] > 0.4 and "exits" not in rows[0]

    config.losses.exit_gate = ""
    config.init_from = str(tmp_path / "gate")
    with pytest.raises(UserError, match="losses.exit_gate='', but .* has an exit gate"):
        train(config, tmp_path / "without")
