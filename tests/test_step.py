import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from loopjax import config as config_lib
from loopjax import model, optim, surgery
from loopjax import step as step_lib
from loopjax.config import default
from loopjax.depth import DepthPlan
from loopjax.run import on_mesh, plan_run


def one_step(config):
    """State and metrics after one update from the seed, on the mesh of a config."""
    run = plan_run(config)
    plan = DepthPlan.parse("1-1x2-1")
    with on_mesh(run):
        abstract = step_lib.abstract_state(run.cfg, 3, run.optimizer, run.mesh, run.rules)
        state = step_lib.sharded_init(run.cfg, abstract, 3, run.optimizer, config.seed)
        batch = run.to_device(next(run.stream.batches(run.rows, 0)))
        args = {"cfg": run.cfg, "plan": plan, "optimizer": run.optimizer}
        args |= {"schedule": run.schedule, "microbatches": config.microbatches}
        step = jax.jit(lambda state, batch: step_lib.train_step(state, batch, **args))
        lowered = step.lower(state, batch)
        state, metrics = step(state, batch)
    norms = jax.tree.leaves(metrics.pop("grad_norms"))
    metrics["norm_of_norms"] = np.sqrt(sum(np.square(norm).sum() for norm in norms))
    return state, jax.tree.map(float, metrics), lowered


def assert_same_step(a, b):
    """Equal to float32 rounding; gradients through Adam's first moment, which is linear in them."""
    (state_a, metrics_a, _), (state_b, metrics_b, _) = a, b
    assert metrics_a == pytest.approx(metrics_b, rel=1e-5)
    assert metrics_a["norm_of_norms"] == pytest.approx(metrics_a["grad_norm"], rel=1e-5)
    moments = [s.opt_state[1][0].mu for s in (state_a, state_b)]
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(moments[0]))
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(np.asarray(x), np.asarray(y), atol=1e-5 * scale),
        *moments,
    )


@pytest.mark.parametrize(
    "mesh",
    [
        {"data": 8},
        {"data": 1, "fsdp": 8},
        {"data": 2, "fsdp": 2, "tensor": 2},
        {"data": 4, "tensor": 2},
    ],
)
def test_eight_devices_make_the_step_of_one(tiny_config, mesh, monkeypatch):
    tiny_config.mesh.update({"data": -1, **mesh})
    sharded = one_step(tiny_config)
    specs = {leaf.sharding.spec for leaf in jax.tree.leaves(sharded[0].params)}
    assert any(axis in str(specs) for axis in ("fsdp", "tensor")) == (mesh != {"data": 8})
    one = jax.make_mesh((1, 1, 1), ("data", "fsdp", "tensor"), devices=jax.devices()[:1],
                        axis_types=(jax.sharding.AxisType.Auto,) * 3)  # fmt: skip
    monkeypatch.setattr("loopjax.sharding.make_mesh", lambda *_: one)
    assert_same_step(sharded, one_step(tiny_config))


def test_activations_are_constrained_in_the_lowered_program(tiny_config):
    tiny_config.mesh.update(data=2, fsdp=2, tensor=2)
    text = one_step(tiny_config)[2].as_text()
    found = set(re.findall(r"sharding_constraint .*<@mesh, \[(.*)\]> : tensor<(\S+)xf32>", text))
    rows, none, tensor = '{"data", "fsdp"}', "{}", '{"tensor"}'
    expected = {  # B 8, T 9, D 16, H 4, K 2, head size 4, F 24, V 40
        "8x9x16": (rows, none, none),
        "8x9x4x4": (rows, none, tensor, none),
        "8x9x2x4": (rows, none, tensor, none),
        "8x9x24": (rows, none, tensor),
    }
    assert found == {(", ".join(spec), shape) for shape, spec in expected.items()}


@pytest.mark.slow
def test_no_activation_is_replicated_on_the_way(tiny_config, capfd):
    for mesh in ({"data": 2, "fsdp": 2, "tensor": 2}, {"data": 1, "fsdp": 8, "tensor": 1}):
        tiny_config.mesh.update(mesh)
        one_step(tiny_config)
    assert "rematerialization" not in capfd.readouterr().err


@pytest.mark.slow
def test_the_loss_is_the_mean_over_the_targets_that_there_are(tiny_config):
    _, metrics, _ = one_step(tiny_config)
    run = plan_run(tiny_config)
    batch = next(run.stream.batches(np.arange(8), 0))
    params = model.init_params(run.cfg, 3, jax.random.key(tiny_config.seed))
    plan = DepthPlan.parse("1-1x2-1")
    logits = model.forward(nn.meta.unbox(params), batch["inputs"], run.cfg, plan)
    log_probs = np.asarray(jax.nn.log_softmax(logits))
    scored = np.argwhere(batch["targets"] >= 0)
    losses = [-log_probs[b, t, batch["targets"][b, t]] for b, t in scored]
    assert 0 < len(losses) < batch["targets"].size / 2
    assert metrics["loss"] == pytest.approx(np.mean(losses), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_gradients_are_those_of_the_whole_batch(tiny_config, parts):
    # Rows of p-hop have different numbers of targets, so a mean of means would differ.
    tiny_config.mesh.update(data=1, fsdp=2, tensor=4)
    tiny_config.model.update(n_kv_heads=4)
    whole = one_step(tiny_config)
    tiny_config.microbatches = parts
    assert_same_step(whole, one_step(tiny_config))


@pytest.mark.slow
def test_microbatches_need_no_second_copy_of_the_gradients(tiny_config):
    """Weights dominate here, so that a second copy would be a third of the temporaries more."""
    tiny_config.model.update(d_model=64, d_ff=256, n_heads=4, n_kv_heads=4, remat="full")
    cfg = config_lib.model_config(tiny_config)
    optimizer, schedule = optim.make_optimizer(tiny_config)
    plan = DepthPlan.parse("2-2x3-4")
    state = jax.eval_shape(
        lambda: step_lib.init_state(cfg, plan.n_unique, optimizer, jax.random.key(0))
    )
    tokens = jax.ShapeDtypeStruct((8, 4), "int32")
    options = {"xla_backend_optimization_level": 2, "xla_llvm_disable_expensive_passes": False}

    def temporary_bytes(microbatches):
        update = functools.partial(
            step_lib.train_step, cfg=cfg, plan=plan, optimizer=optimizer, schedule=schedule,
            microbatches=microbatches,
        )  # fmt: skip
        lowered = jax.jit(update, donate_argnums=0).lower(
            state, {"inputs": tokens, "targets": tokens}
        )
        return lowered.compile(compiler_options=options).memory_analysis().temp_size_in_bytes

    assert temporary_bytes(4) < 1.05 * temporary_bytes(1)


def test_a_single_batch_is_learnt_by_heart():
    """The whole machinery can drive a loss down: one batch of four strings, again and again."""
    config = default()
    config.batch_size, config.seq_len, config.steps, config.cooldown.steps = 8, 12, 60, 10
    config.mixture, config.learning_rate, config.warmup_steps = {"p_hop_1": 1.0}, 1e-2, 5
    config.eval_batches = 0
    config.model.update(
        vocab_size=40, d_model=32, d_ff=64, n_heads=4, n_kv_heads=4, dtype="float32", init_depth=4
    )
    run = plan_run(config)
    with on_mesh(run):
        abstract = step_lib.abstract_state(run.cfg, 2, run.optimizer, run.mesh, run.rules)
        state = step_lib.sharded_init(run.cfg, abstract, 2, run.optimizer, 0)
        batch = run.to_device(next(run.stream.batches(run.rows, 0)))
        args = {"cfg": run.cfg, "plan": DepthPlan.parse("2x2"), "optimizer": run.optimizer}
        args |= {"schedule": run.schedule, "microbatches": 1}
        step = jax.jit(lambda s, b: step_lib.train_step(s, b, **args))
        losses = []
        for _ in range(60):
            state, metrics = step(state, batch)
            losses.append(float(metrics["loss"]))
    assert losses[0] > 1.2 and losses[-1] < 0.1
    assert surgery.n_layers(state.params) == 2


def test_a_row_is_exact_where_all_of_its_targets_are_hit(tiny_config):
    run = plan_run(tiny_config)
    plan = DepthPlan.parse("3")
    params = nn.meta.unbox(model.init_params(run.cfg, 3, jax.random.key(0)))
    inputs = jnp.arange(4 * 9).reshape(4, 9)
    right = jnp.argmax(model.forward(params, inputs, run.cfg, plan), axis=-1)
    targets = right.at[0].set(-1).at[1, :5].set(-1).at[2, 3].add(1).at[3, 8].set(-1)
    sums = step_lib.eval_step(
        params, {"inputs": inputs, "targets": targets}, cfg=run.cfg, plan=plan
    )
    found = {key: int(sums[key]) for key in ("hits", "targets", "exact", "rows")}
    assert found == {"hits": 20, "targets": 21, "exact": 2, "rows": 3}


def lowered(config, n_layers=1, **options):
    cfg = config_lib.model_config(config)
    optimizer, schedule = optim.make_optimizer(config)
    plan = DepthPlan.parse(str(n_layers))
    update = functools.partial(
        step_lib.train_step, cfg=cfg, plan=plan, optimizer=optimizer, schedule=schedule,
        microbatches=1, **options,
    )  # fmt: skip
    state = step_lib.init_state(cfg, n_layers, optimizer, jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (4, 9), 0, cfg.vocab_size)
    return jax.jit(update), state, {"inputs": tokens, "targets": tokens}


@pytest.mark.parametrize(
    "name",
    ["adamw", *(pytest.param(name, marks=pytest.mark.slow) for name in ("muon", "lion"))],
)
def test_a_skipped_update_leaves_parameters_and_moments_as_they_were(tiny_config, name):
    tiny_config.optimizer.name = name
    update, state, batch = lowered(tiny_config, skip_bad=True)
    with jax.disable_jit():  # two programs may round differently
        good, metrics = update(state, batch)
        plain, _ = lowered(tiny_config)[0](state, batch)
    assert not metrics["skipped"]
    jax.tree.map(np.testing.assert_array_equal, good, plain)
    embed = good.params["embed"].at[0, 0].set(jnp.nan)
    spoiled = good.replace(params={**good.params, "embed": embed})
    after, metrics = update(spoiled, batch)
    assert metrics["skipped"]
    jax.tree.map(np.testing.assert_array_equal, after.params, spoiled.params)
    assert after.step == 2
    expected = optim.unmoved(spoiled.opt_state, plain_count(spoiled.opt_state))
    jax.tree.map(np.testing.assert_array_equal, after.opt_state, expected)


def plain_count(opt_state):
    """An optimizer state whose schedule is one step further."""
    return jax.tree.map(lambda leaf: leaf + 1, opt_state)


def test_without_skipping_the_program_is_the_one_that_it_was(tiny_config):
    texts = []
    for options in ({}, {"skip_bad": False}, {"skip_bad": True}):
        update, state, batch = lowered(tiny_config, **options)
        texts.append(update.lower(state, batch).as_text())
    assert texts[0] == texts[1]
    assert texts[0].count("is_finite") < texts[2].count("is_finite")
