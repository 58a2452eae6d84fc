"""Optimizers and schedules by name: what they update, keep, shard, save and grow."""

import functools
import json
import math
import pathlib
import tarfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from loopjax import config as config_lib
from loopjax import growth, model, optim, run, sharding, step, surgery
from loopjax.callbacks import Callback
from loopjax.curriculum import Phase
from loopjax.depth import DepthPlan, lidas
from loopjax.errors import UserError
from loopjax.files import read_rows
from loopjax.train import train
from loopjax.weights import numbers

NAMES = tuple(optim.OPTIMIZERS)
CFG = model.ModelConfig(
    vocab_size=40, d_model=16, d_ff=24, n_heads=4, n_kv_heads=2, init_depth=4, dtype="float32"
)


def config_of(name, **fields):
    config = config_lib.default()
    config.learning_rate, config.warmup_steps, config.clip_norm = 1e-2, 0, 1e9
    config.optimizer.update(name=name, weight_decay=0.0, **fields)
    return config


def state_of(name, n_layers=4, **fields):
    optimizer, _ = optim.make_optimizer(config_of(name, **fields))
    return step.init_state(CFG, n_layers, optimizer, jax.random.key(0)), optimizer


def gradient_like(params):
    keys = iter(jax.random.split(jax.random.key(1), 100))
    return jax.tree.map(lambda leaf: jax.random.normal(next(keys), leaf.shape), params)


def test_adamw_makes_the_update_that_it_made_before_it_had_a_name():
    state, optimizer = state_of("adamw")
    before = optax.chain(
        optax.clip_by_global_norm(1e9),
        optax.adamw(
            optim.make_optimizer(config_of("adamw"))[1], b1=0.9, b2=0.95, eps=1e-8,
            weight_decay=0.0, mask=optim.decay_mask,
        ),
    )  # fmt: skip
    gradient = gradient_like(state.params)
    old = before.update(gradient, before.init(state.params), state.params)
    new = optimizer.update(gradient, state.opt_state, state.params)
    assert jax.tree.structure(old) == jax.tree.structure(new)
    jax.tree.map(np.testing.assert_array_equal, old, new)


def orthogonalized(matrix):
    """The Newton-Schulz iteration of Muon, in NumPy."""
    a, b, c = 3.4445, -4.775, 2.0315
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (np.linalg.norm(x) + 1e-8)
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def test_muon_orthogonalizes_each_matrix_of_each_layer_and_leaves_the_rest_to_adamw():
    state, optimizer = state_of("muon")
    gradient = gradient_like(state.params)
    updates, _ = optimizer.update(gradient, state.opt_state, state.params)
    adam, adamw = state_of("adamw")
    by_adam, _ = adamw.update(gradient, adam.opt_state, adam.params)
    for name in ("embed", "final_norm"):
        np.testing.assert_allclose(updates[name], by_adam[name], rtol=1e-6)
    for name, leaf in updates["layers"].items():
        if leaf.ndim == 2:  # norm scales
            np.testing.assert_allclose(leaf, by_adam["layers"][name], rtol=1e-6)
            continue
        for layer, update in enumerate(leaf):
            # At the first step the momentum points along the gradient.
            expected = orthogonalized(np.asarray(gradient["layers"][name][layer], np.float64))
            expected *= -1e-2 * 0.2 * math.sqrt(max(expected.shape))
            np.testing.assert_allclose(update, expected, rtol=5e-3, atol=2e-5)
            singular = np.linalg.svd(update / (1e-2 * 0.2 * math.sqrt(max(update.shape))))[1]
            assert singular.min() > 0.6 and singular.max() < 1.3


@pytest.mark.slow
def test_muon_takes_a_looped_layer_as_one_matrix_with_one_gradient():
    """The update of a loop's weights depends on the summed gradient only, not on the plan."""
    config = config_of("muon")
    optimizer, schedule = optim.make_optimizer(config)
    state = step.init_state(CFG, 2, optimizer, jax.random.key(0))
    tokens_BT = jax.random.randint(jax.random.key(2), (2, 9), 0, 40)
    batch = {"inputs": tokens_BT[:, :-1], "targets": tokens_BT[:, 1:]}
    plan = DepthPlan.parse("2x2")
    update = functools.partial(
        step.train_step, cfg=CFG, plan=plan, optimizer=optimizer, schedule=schedule, microbatches=1
    )
    after, _ = jax.jit(update)(state, batch)
    gradient = jax.grad(lambda p: jnp.sum(step.token_losses(p, batch, CFG, plan)[0]) / 16)
    moved = (after.params["layers"]["gate"] - state.params["layers"]["gate"]) / 1e-2
    expected = orthogonalized(np.asarray(gradient(state.params)["layers"]["gate"][1]))
    np.testing.assert_allclose(moved[1], -0.2 * math.sqrt(24) * expected, rtol=2e-2, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_every_leaf_of_a_state_lies_where_its_parameter_does(name):
    config = config_lib.default()
    config.mesh.update(data=1, fsdp=4, tensor=2)
    mesh, rules = sharding.make_mesh(config.mesh), sharding.axis_rules(config.mesh)
    optimizer, _ = optim.make_optimizer(config_of(name))
    abstract = step.abstract_state(CFG, 4, optimizer, mesh, rules)
    state = step.sharded_init(CFG, abstract, 4, optimizer, 0)
    query = abstract.params["layers"]["query"].sharding
    assert "tensor" in str(query.spec)
    moments = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state)
        if path[-1] == jax.tree_util.DictKey("query")
    ]
    assert moments and all(leaf.sharding == query for leaf in moments)
    for leaf, expected in zip(jax.tree.leaves(state), jax.tree.leaves(abstract), strict=True):
        assert leaf.shape == expected.shape and leaf.sharding == expected.sharding


def test_a_statistic_of_another_shape_keeps_the_axis_of_the_stack():
    config = config_lib.default()
    config.mesh.rules.layers = "fsdp"
    config.mesh.update(data=1, fsdp=4, tensor=2)
    config.mesh.rules.embed = ""
    mesh, rules = sharding.make_mesh(config.mesh), sharding.axis_rules(config.mesh)
    rms = optax.GradientTransformation(
        lambda params: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape[:1]), params),
        lambda updates, state, params=None: (updates, state),
    )
    abstract = step.abstract_state(CFG, 4, rms, mesh, rules)
    assert abstract.opt_state["layers"]["query"].sharding.spec[0] in ("fsdp", ("fsdp",))
    assert abstract.opt_state["embed"].sharding.is_fully_replicated
    grown = surgery.grow(step.sharded_init(CFG, abstract, 4, rms, 0), lidas(4, 4))
    assert grown.opt_state["layers"]["query"].shape == (8,)


def phase_of(**fields):
    return Phase(5, 9, DepthPlan.parse("6"), "lidas", lidas(4, 2), {}, **fields)


@pytest.mark.parametrize("name", NAMES)
def test_growth_copies_the_moments_with_their_layers_or_resets_them(name):
    state, optimizer = state_of(name)
    gradient = gradient_like(state.params)
    _, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    state = state.replace(opt_state=opt_state)
    expected = surgery.reorder(state, lidas(4, 2))
    copied = growth.grow(jax.tree.map(jnp.copy, state), phase_of(), optimizer, 0, CFG)
    jax.tree.map(np.testing.assert_array_equal, copied, expected)
    fresh = growth.grow(jax.tree.map(jnp.copy, state), phase_of(moments="reset"), optimizer, 0, CFG)
    jax.tree.map(np.testing.assert_array_equal, fresh.params, expected.params)
    counts = {"moments": 0, "schedule": 0}
    for path, leaf in jax.tree_util.tree_leaves_with_path(fresh.opt_state):
        if "ns_coeffs" in str(path):
            continue
        total = float(jnp.abs(leaf).sum())
        counts["schedule" if total else "moments"] += 1
        assert total in (0.0, 1.0)  # the rate goes on with update 1
    assert counts["moments"] > 9 and counts["schedule"] >= 1


def test_zeroed_outputs_keep_the_function_and_noise_touches_new_layers_alone():
    state, optimizer = state_of("adamw")
    tokens_BT = jax.random.randint(jax.random.key(2), (2, 9), 0, 40)
    before = model.forward(state.params, tokens_BT, CFG, DepthPlan.parse("4"))

    def grown(**fields):
        return growth.grow(
            jax.tree.map(jnp.copy, state), phase_of(**fields), optimizer, 0, CFG
        ).params

    same = model.forward(grown(transform="zero_output"), tokens_BT, CFG, DepthPlan.parse("6"))
    np.testing.assert_allclose(same, before, rtol=1e-5, atol=1e-5)
    new = growth.new_layers(lidas(4, 2))
    assert new.tolist() == [False, False, False, True, True, False]
    plain, noisy = grown(), grown(transform="noise", noise=0.1)
    for name, leaf in plain["layers"].items():
        apart = np.asarray(noisy["layers"][name] - leaf)
        assert not apart[~new].any()
        if leaf.ndim == 3:
            relative = apart[new].std() / np.asarray(leaf)[new].std()
            assert 0.08 < relative < 0.12
    np.testing.assert_array_equal(plain["embed"], noisy["embed"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["muon", "lion"])
def test_a_stopped_run_resumes_to_the_bit_with_every_optimizer(name, tiny_config, tmp_path):
    tiny_config.optimizer.name = name
    tiny_config.growth.update(transform="noise", moments="reset" if name == "muon" else "copy")
    tiny_config.checkpoint_every = 5
    train(tiny_config, tmp_path / "whole")
    for stop in (7, 12):
        _train_until(tiny_config, tmp_path / "parts", stop)
    whole, parts = (read_rows(tmp_path / n / "metrics.jsonl") for n in ("whole", "parts"))
    assert [row["loss"] for row in whole] == [row["loss"] for row in parts]
    assert len(whole) == 12
    report = numbers.inspect(tmp_path / "parts")["parameters"]
    assert report["updates"] > 0 and report["all"]["first_moment_rms"] > 0
    # Resetting the moments resets the count of their updates, not the schedule.
    assert report["learning_rate"] == parts[-1]["learning_rate"]
    assert report["all"]["second_moment_rms"] is None


def _train_until(config, workdir, stop):
    """Trains, and is stopped as if it had been killed after a step."""

    class Killed(Exception):
        pass

    class Killer(Callback):
        def on_step(self, row):
            if row["step"] == stop:
                raise Killed

    if stop >= config.steps:
        train(config, workdir)
        return
    with pytest.raises(Killed):
        train(config, workdir, callbacks=[Killer()])


def test_moments_of_another_optimizer_are_refused(tiny_config, tmp_path):
    tiny_config.steps, tiny_config.growth.operator = 4, ""
    tiny_config.cooldown.steps, tiny_config.cooldown.mixture = 0, {}
    train(tiny_config, tmp_path / "first")
    tiny_config.update(init_from=str(tmp_path / "first"), init="moments")
    tiny_config.optimizer.name = "lion"
    with pytest.raises(UserError, match="has the moments of 'adamw'"):
        train(tiny_config, tmp_path / "second")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"name": "sgd"}, "config.optimizer.name='sgd' must be one of adamw, muon, lion"),
        ({"momentum": 0.9}, "config.optimizer.momentum=0.9 does not apply to .*'adamw'"),
        ({"name": "lion", "eps": 1e-6}, "config.optimizer.eps=1e-06 does not apply to .*'lion'"),
        ({"beta1": 1.0}, "config.optimizer.beta1=1.0 must lie within 0..1"),
    ],
)
def test_an_impossible_optimizer_is_refused(change, sentence, tiny_config):
    tiny_config.optimizer.update(change)
    with pytest.raises(UserError, match=sentence):
        run.outline(tiny_config)


def test_schedules_start_and_end_where_they_say():
    for name, make in optim.SCHEDULES.items():
        rate = make(1.0, 100, 10, 20)
        assert rate(0) == pytest.approx(0.1) and rate(9) == pytest.approx(1.0), name
    assert optim.SCHEDULES["constant"](1.0, 100, 10, 20)(99) == 1.0
    cosine = optim.cosine(1.0, 100, 10, 20)
    assert cosine(55) == pytest.approx(0.5, abs=1e-6) and cosine(100) == pytest.approx(0, abs=1e-6)


def test_a_run_of_an_earlier_version_resumes_with_its_settings(tiny_config, tmp_path):
    """A stored run whose config has the optimizer's fields at the top, stopped at step 7."""
    archive = pathlib.Path(__file__).parent / "fixtures" / "run-format-1.tar.xz"
    with tarfile.open(archive) as file:
        file.extractall(tmp_path, filter="data")
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert "beta1" in saved and "optimizer" not in saved
    expected = read_rows(tmp_path / "run" / "metrics.jsonl")
    tiny_config.checkpoint_every = 7
    train(tiny_config, tmp_path / "run")
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 13))
    # Made on another machine: equal to rounding, which 5 steps of training do not blow up.
    found, stored = ([row["loss"] for row in part] for part in (rows, expected))
    np.testing.assert_allclose(found, stored, rtol=1e-3)
    with pytest.raises(UserError, match=r"config.optimizer.beta1=0.5 \(the run has 0.9\)"):
        tiny_config.optimizer.beta1 = 0.5
        train(tiny_config, tmp_path / "run")
