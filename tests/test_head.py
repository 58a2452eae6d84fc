"""The cross-entropy of the head is the plain one, in less memory and with few collectives."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from loopjax import config, head, sharding

B, T, D, V = 8, 13, 16, 48
TIED, UNTIED = ("vocab", "embed"), ("embed", "vocab")
MESHES = [
    {"data": 8},
    {"data": 1, "fsdp": 8},
    {"data": 1, "tensor": 8},
    {"data": 2, "fsdp": 2, "tensor": 2},
]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """7 tokens in a chunk, so that 104 tokens, and the 13 of one of 8 devices, need several."""
    monkeypatch.setattr(head, "chunk_tokens", lambda d_model: 7)


def batch_of(axes, dtype="float32"):
    """Input, head, targets of which some are -1, and weights of the others."""
    keys = jax.random.split(jax.random.key(0), 4)
    shape = (V, D) if axes == TIED else (D, V)
    x_BTD = jax.random.normal(keys[0], (B, T, D), dtype)
    table = jax.random.normal(keys[1], shape) * D**-0.5
    targets_BT = jax.random.randint(keys[2], (B, T), -V // 2, V).clip(-1)
    weights_BT = jnp.where(targets_BT >= 0, jax.random.uniform(keys[3], (B, T)), 0.0)
    return x_BTD, table, targets_BT, weights_BT


def plain_losses(x_BTD, table, targets_BT, axes):
    logits_BTV = x_BTD.astype(jnp.float32) @ (table.T if axes == TIED else table)
    nll_BT = optax.softmax_cross_entropy_with_integer_labels(logits_BTV, targets_BT.clip(0))
    return nll_BT, jnp.argmax(logits_BTV, axis=-1) == targets_BT


def plain(x_BTD, table, targets_BT, weights_BT, axes):
    return jnp.sum(weights_BT * plain_losses(x_BTD, table, targets_BT, axes)[0])


def ours(x_BTD, table, targets_BT, weights_BT, axes):
    return head.weighted_loss(x_BTD, table, targets_BT, weights_BT, axes)[0]


def on_mesh(function, mesh_sizes, args, axes, **rules):
    """The result, and the compiled program, of a function on a mesh of 8 devices."""
    settings = config.default().mesh
    settings.update({"data": 1, "fsdp": 1, "tensor": 1, **mesh_sizes})
    settings.rules.update(rules)
    mesh, rules = sharding.make_mesh(settings), sharding.axis_rules(settings)
    with jax.set_mesh(mesh), nn.logical_axis_rules(rules):

        def placed(x, names):
            return jax.device_put(x, jax.NamedSharding(mesh, nn.logical_to_mesh_axes(names)))

        names = ("batch", "seq"), axes, ("batch", "seq"), ("batch", "seq")
        args = [placed(x, names) for x, names in zip(args, names[: len(args)], strict=True)]
        shardings = jax.tree.map(lambda x: x.sharding, args[:2])
        out = (None, tuple(shardings)) if function is value_and_grad else None
        jitted = jax.jit(lambda *args: function(*args, axes), out_shardings=out)
        return jitted(*args), jitted.lower(*args).compile().as_text()


def value_and_grad(*args):
    return jax.value_and_grad(ours, (0, 1))(*args)


def assert_close(found, expected, tolerance=1e-6):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=tolerance), found, expected
    )


@pytest.mark.parametrize("axes", [TIED, UNTIED], ids="-".join)
def test_loss_and_gradients_are_those_of_the_plain_cross_entropy(axes):
    args = batch_of(axes)
    expected = jax.value_and_grad(plain, (0, 1))(*args, axes)
    assert_close(jax.jit(lambda *a: value_and_grad(*a, axes))(*args), expected)
    assert_close(ours(*args, axes), expected[0])  # without gradients
    doubled = jax.grad(lambda table: 2 * ours(args[0], table, *args[2:], axes))(args[1])
    assert_close(doubled, 2 * expected[1][1])


@pytest.mark.parametrize("axes", [TIED, UNTIED], ids="-".join)
@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_eight_devices_have_the_loss_of_one(mesh, axes):
    args = batch_of(axes)
    found, _ = on_mesh(value_and_grad, mesh, args, axes)
    assert_close(found, jax.value_and_grad(plain, (0, 1))(*args, axes))


@pytest.mark.parametrize(
    "rules",
    [
        {"seq": "tensor", "vocab": "tensor"},  # nothing is left for the vocabulary
        {"batch": "data"},  # tokens are replicated over fsdp, which shards the width
        {"vocab": "tensor,fsdp", "embed": ""},
        {"batch": "", "vocab": "fsdp"},
    ],
    ids=str,
)
def test_any_rules_give_the_same_loss(rules):
    args = [x[:, :12] if x.shape[:2] == (B, T) else x for x in batch_of(TIED)]
    found, _ = on_mesh(value_and_grad, {"fsdp": 4, "tensor": 2}, args, TIED, **rules)
    assert_close(found, jax.value_and_grad(plain, (0, 1))(*args, TIED))


@pytest.mark.parametrize("mesh", [None, *MESHES], ids=str)
def test_every_token_has_its_loss_and_its_hit(mesh):
    x_BTD, table, targets_BT, _ = batch_of(TIED)
    # Two rows of the table are equal, so some tokens have two largest logits: the first counts.
    table = table.at[V - 1].set(table[3])
    most_BT = jnp.argmax(x_BTD @ table.T, axis=-1)
    targets_BT = targets_BT.at[::2].set(most_BT[::2]).at[most_BT == 3].set(V - 1)
    args = x_BTD, table, targets_BT
    if mesh is None:
        nll_BT, hits_BT = head.token_losses(*args, TIED)
    else:
        (nll_BT, hits_BT), _ = on_mesh(head.token_losses, mesh, args, TIED)
    expected_BT, expected_hits_BT = plain_losses(*args, TIED)
    scored_BT = targets_BT >= 0
    assert_close(nll_BT[scored_BT], expected_BT[scored_BT])
    np.testing.assert_array_equal(hits_BT, expected_hits_BT)
    assert hits_BT.any() and not hits_BT[scored_BT].all()


def test_bfloat16_is_as_exact_as_its_products():
    args = batch_of(TIED, "bfloat16")
    rounded = (args[0], args[1].astype("bfloat16").astype("float32"), *args[2:])
    expected = jax.value_and_grad(plain, (0, 1))(*rounded, TIED)
    loss, (dx_BTD, dhead) = value_and_grad(*args, TIED)
    assert (dx_BTD.dtype, dhead.dtype) == (jnp.bfloat16, jnp.float32)
    assert_close(loss, expected[0], 1e-4)
    scale = float(jnp.abs(expected[1][1]).max())
    np.testing.assert_allclose(dhead, expected[1][1], atol=0.01 * scale)
    np.testing.assert_allclose(
        dx_BTD.astype("float32"), expected[1][0].astype("float32"), atol=0.02
    )


def test_extremely_large_logits_have_a_finite_loss():
    x_BTD, table, *rest = batch_of(UNTIED)
    found = value_and_grad(1e4 * x_BTD, table, *rest, UNTIED)
    assert_close(found[0] / 1e4, plain(1e4 * x_BTD, table, *rest, UNTIED) / 1e4, 1e-5)
    assert all(jnp.isfinite(g).all() for g in found[1])


def test_a_term_of_the_loss_is_added_and_reported(monkeypatch):
    def with_z_loss(log_sum_n, target_n):
        return {"nll": log_sum_n - target_n, "z_loss": 0.1 * jnp.square(log_sum_n)}

    def plain_z_loss(x_BTD, table, targets_BT, weights_BT):
        z_BT = 0.1 * jnp.square(jax.nn.logsumexp(x_BTD @ table, axis=-1))
        return jnp.sum(weights_BT * z_BT)

    monkeypatch.setattr(head, "token_terms", with_z_loss)
    args = batch_of(UNTIED)
    total, terms = head.weighted_loss(*args, UNTIED)
    nll = plain(*args, UNTIED)
    assert_close(terms, {"nll": nll, "z_loss": plain_z_loss(*args)}, 1e-5)
    expected = jax.grad(lambda *a: plain(*a, UNTIED) + plain_z_loss(*a), (0, 1))(*args)
    assert_close(value_and_grad(*args, UNTIED)[1], expected, 1e-5)
    assert_close(total, nll + terms["z_loss"], 1e-5)


@pytest.mark.parametrize("axes", [TIED, UNTIED], ids="-".join)
def test_the_head_is_gathered_once_and_its_gradient_reduced_once(axes):
    """However many chunks there are; only numbers per token travel within the loop."""
    _, text = on_mesh(value_and_grad, {"fsdp": 4, "tensor": 2}, batch_of(axes, "bfloat16"), axes)
    large = [
        kind
        for shapes, kind in re.findall(
            r"= (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)\(", text
        )
        if any(np.prod([int(n) for n in s.split(",")]) >= D * V // 8
               for s in re.findall(r"\[([\d,]+)\]", shapes))
    ]  # fmt: skip
    dx = ["all-reduce"]  # of the parts of the vocabulary
    assert sorted(large) == sorted(["all-gather", "reduce-scatter", *dx])


def temporary_bytes(loss, x_shape, V):
    """Temporaries of loss and gradients as XLA assigns them after its optimizations."""
    x_BTD = jax.ShapeDtypeStruct(x_shape, jnp.float32)
    table = jax.ShapeDtypeStruct((V, x_shape[-1]), jnp.float32)
    targets_BT = jax.ShapeDtypeStruct(x_shape[:2], jnp.int32)
    weights_BT = jax.ShapeDtypeStruct(x_shape[:2], jnp.float32)
    options = {"xla_backend_optimization_level": 2, "xla_llvm_disable_expensive_passes": False}
    jitted = jax.jit(jax.value_and_grad(lambda *args: loss(*args, TIED), (0, 1)))
    compiled = jitted.lower(x_BTD, table, targets_BT, weights_BT).compile(compiler_options=options)
    return compiled.memory_analysis().temp_size_in_bytes


def test_the_memory_of_the_head_does_not_grow_with_the_tokens(monkeypatch):
    monkeypatch.undo()
    V, D = 4096, 64
    few, many = (temporary_bytes(ours, (B, T, D), V) for B, T in ((4, 1024), (16, 1024)))
    assert many - few < 2 * 4 * 12 * 1024 * D  # inputs and their gradients, not logits
    assert many < temporary_bytes(plain, (16, 1024, D), V) / 3


@pytest.mark.parametrize("axes", [TIED, UNTIED])
@pytest.mark.parametrize("sizes", MESHES[2:])
def test_losses_of_each_token_have_a_gradient_for_their_weights(axes, sizes):
    args = batch_of(axes)

    def each(x_BTD, table, targets_BT, weights_BT, axes=axes):
        total, terms_BT = head.weighted_losses(x_BTD, table, targets_BT, weights_BT, axes)
        return total, jnp.where(targets_BT >= 0, terms_BT["nll"], 0)

    def gradients(*args):
        return jax.value_and_grad(each, argnums=(0, 1, 3), has_aux=True)(*args)

    (total, nll_BT), found = on_mesh(gradients, sizes, args, axes)[0]
    expected = jax.grad(lambda *a: plain(*a, axes), argnums=(0, 1, 3))(*args)
    own_BT = jnp.where(args[2] >= 0, plain_losses(*args[:3], axes)[0], 0)
    np.testing.assert_allclose(nll_BT, own_BT, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(total, jnp.sum(args[3] * own_BT), rtol=1e-5)
    there_BT = args[2] >= 0  # others have a weight of 0 whatever it is
    found = (*found[:2], jnp.where(there_BT, found[2], 0))
    expected = (*expected[:2], jnp.where(there_BT, expected[2], 0))
    for ours_, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours_, theirs, rtol=1e-4, atol=1e-5)
