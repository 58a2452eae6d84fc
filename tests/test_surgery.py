import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopjax import sharding, surgery
from loopjax.config import default, model_config
from loopjax.depth import DepthPlan, lidas, midas
from loopjax.optim import make_optimizer
from loopjax.step import TrainState, abstract_state, sharded_init

parts = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=4)


def small_tree(n_layers, seed=0):
    layers = {
        "w": jax.random.normal(jax.random.key(seed), (n_layers, 2, 3)),
        "b": jnp.arange(float(n_layers)),
    }
    return {"embed": jnp.ones((5, 2)), "layers": layers}


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@settings(max_examples=15)  # every example compiles
@given(parts)
def test_tie_undoes_untie(parts):
    plan = DepthPlan.of(parts)
    tree = small_tree(plan.n_unique)
    untied = surgery.untie(tree, plan)
    assert surgery.n_layers(untied) == plan.n_effective
    assert_equal(surgery.tie(untied, plan), tree)


@given(st.integers(1, 6).flatmap(lambda n: st.permutations(range(n))))
def test_an_order_and_its_inverse_are_the_identity(order):
    tree = small_tree(len(order))
    inverse = tuple(int(i) for i in np.argsort(order))
    assert_equal(surgery.reorder(surgery.reorder(tree, order), inverse), tree)


@settings(max_examples=15)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=9))
def test_growing_on_the_devices_is_the_gather(order):
    tree = small_tree(5)
    grown = surgery.grow(tree, order)
    assert_equal(grown, surgery.reorder(tree, order))
    np.testing.assert_array_equal(grown["layers"]["b"], order)
    assert grown["embed"] is tree["embed"]


@pytest.mark.parametrize("order", [(), (0, 5), (-1, 0)])
def test_an_order_that_names_no_layer_is_refused(order):
    with pytest.raises(ValueError, match=r"must consist of layers 0\.\.4 of a 5-layer stack"):
        surgery.grow(small_tree(5), order)


def test_a_plan_that_does_not_fit_the_stack_is_refused():
    with pytest.raises(ValueError, match="has 4 unique layers, but the tree has 5"):
        surgery.untie(small_tree(5), DepthPlan.parse("4x2"))
    with pytest.raises(ValueError, match="executes 8 layers, but the tree has 5"):
        surgery.tie(small_tree(5), DepthPlan.parse("4x2"))


@pytest.fixture
def sharded_state():
    """A state of 4 layers on 2 x 2 x 2 devices, after one update, so that no moment is zero."""
    config = default()
    config.steps, config.cooldown.steps = 10, 2
    config.model.update(vocab_size=16, d_model=8, d_ff=16, n_heads=4, n_kv_heads=2)
    config.mesh.update(data=2, fsdp=2, tensor=2)
    mesh, rules = sharding.make_mesh(config.mesh), sharding.axis_rules(config.mesh)
    optimizer, _ = make_optimizer(config)
    cfg = model_config(config)
    with jax.set_mesh(mesh):
        abstract = abstract_state(cfg, 4, optimizer, mesh, rules)
        state = sharded_init(cfg, abstract, 4, optimizer, seed=0)

        @jax.jit  # one program: dozens of small ones at once can make XLA's CPU client abort
        def updated(state):
            grads = jax.tree.map(lambda p: p + 0.1, state.params)
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
            return TrainState(state.step + 1, optax.apply_updates(state.params, updates), opt_state)

        yield updated(state)


@pytest.mark.parametrize("operator", [midas, lidas])
def test_growth_copies_parameters_and_moments_and_touches_nothing_else(sharded_state, operator):
    order = operator(4, 2)
    grown = surgery.grow(sharded_state, order)
    old = jax.tree_util.tree_flatten_with_path(sharded_state)[0]
    new = jax.tree_util.tree_flatten_with_path(grown)[0]
    stacked = 0
    for (path, before), (same_path, after) in zip(old, new, strict=True):
        assert path == same_path
        if surgery.on_stack(path):
            stacked += 1
            np.testing.assert_array_equal(after, np.asarray(before)[list(order)])
            assert after.sharding == before.sharding
        else:
            assert after is before
    assert stacked == 3 * 9  # parameters, first and second moments
    assert grown.step == sharded_state.step == 1


def test_growth_happens_on_the_devices(sharded_state):
    order = lidas(4, 2)
    surgery.grow(sharded_state, order)  # compile: constants go to the devices once
    with jax.transfer_guard("disallow"):
        surgery.grow(sharded_state, order)


def test_growth_gives_the_old_stack_up_when_asked(sharded_state):
    query, embed = sharded_state.params["layers"]["query"], sharded_state.params["embed"]
    surgery.grow(sharded_state, lidas(4, 2))
    assert not query.is_deleted()
    grown = surgery.grow(sharded_state, lidas(4, 2), donate=True)
    assert query.is_deleted() and not embed.is_deleted()
    assert surgery.n_layers(grown) == 6


def test_growth_by_copies_of_an_unlooped_stack_is_its_looped_plan(sharded_state):
    """LIDAS on 4 layers doubles them: until training goes on, "8" computes what "4x2" did."""
    from loopjax import model

    cfg = model.ModelConfig(
        vocab_size=16, d_model=8, d_ff=16, n_heads=4, n_kv_heads=2, init_depth=8, dtype="float32"
    )
    tokens = jnp.arange(12).reshape(2, 6)
    grown = surgery.grow(sharded_state.params, lidas(4, 4))
    np.testing.assert_allclose(
        model.forward(grown, tokens, cfg, DepthPlan.parse("8")),
        model.forward(sharded_state.params, tokens, cfg, DepthPlan.parse("4x2")),
        rtol=1e-5,
        atol=1e-5,
    )
