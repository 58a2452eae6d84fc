"""Attention: every implementation computes the same, and "auto" chooses one that can run."""

import dataclasses
import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from loopjax import attention, kernels, model, run, sharding, step
from loopjax.depth import DepthPlan
from loopjax.errors import UserError

CFG = model.ModelConfig(
    vocab_size=40, d_model=32, d_ff=48, n_heads=4, n_kv_heads=2, init_depth=2, head_dim=16
)
PLAN = DepthPlan.parse("2")


def inputs(H, K, T=256, B=4, C=16):
    keys = jax.random.split(jax.random.key(0), 3)
    return [jax.random.normal(k, (B, T, n, C)) for k, n in zip(keys, (H, K, K), strict=True)]


def rows_of_segments(T=256, B=4):
    """Numbers of segments of different lengths, then padding (-1)."""
    ids = np.sort(np.random.default_rng(1).integers(0, 5, (B, T)), axis=1)
    return jnp.array(np.where(ids == 4, -1, ids))


def value_and_gradients(attend, q, k, v):
    weights = jax.random.normal(jax.random.key(9), q.shape)
    return jax.jit(jax.value_and_grad(lambda *qkv: jnp.vdot(weights, attend(*qkv)), (0, 1, 2)))(
        q, k, v
    )


def plain(q_BTHC, k_BTKC, v_BTKC, segments_BT=None, shared_context=False):
    """The definition, with all of the mask."""
    B, T, H, C = q_BTHC.shape
    k, v = (jnp.repeat(x, H // x.shape[2], axis=2) for x in (k_BTKC, v_BTKC))
    seen = jnp.tril(jnp.ones((B, T, T), bool))
    if segments_BT is not None:
        own, key = segments_BT[:, :, None], segments_BT[:, None, :]
        seen &= (key == own) | (shared_context & (key == 0))
    logits = jnp.einsum("BTHC,BSHC->BHTS", q_BTHC, k) / C**0.5
    weights = jax.nn.softmax(jnp.where(seen[:, None], logits, -jnp.inf))
    return jnp.einsum("BHTS,BSHC->BTHC", weights, v)


def assert_close(found, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=3e-4), found, expected
    )


@pytest.mark.parametrize("shared_context", [False, True])
def test_chunks_see_their_segment_and_perhaps_the_context(shared_context):
    q, k, v = inputs(4, 2)
    options = {"segments_BT": rows_of_segments(), "shared_context": shared_context}
    found = value_and_gradients(functools.partial(attention.causal, **options), q, k, v)
    assert_close(found, value_and_gradients(functools.partial(plain, **options), q, k, v))


@pytest.mark.parametrize(
    ("H", "K", "packed", "mesh"),
    [
        (2, 2, False, None),
        (4, 2, True, None),
        (4, 2, True, (2, 2, 2)),  # batch and heads are sharded
        (4, 1, False, (1, 2, 4)),  # the devices do not divide the keys: they are repeated
    ],
)
def test_splash_attention_is_the_chunked_one_on_any_mesh(monkeypatch, H, K, packed, mesh):
    monkeypatch.setattr(attention, "_MAX_BLOCK", 128)  # two blocks
    q, k, v = inputs(H, K)
    segments_BT = rows_of_segments() if packed else None
    chunks = functools.partial(attention.causal, segments_BT=segments_BT, implementation="chunks")
    splash = functools.partial(chunks, implementation="splash")
    expected = value_and_gradients(chunks, q, k, v)
    if mesh is None:
        assert_close(value_and_gradients(splash, q, k, v), expected)
        return
    devices = jax.make_mesh(mesh, sharding.MESH_AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3)
    rules = (
        ("batch", ("data", "fsdp")), ("seq", None), ("heads", ("tensor",)), ("kv_heads", ("tensor",)),
    )  # fmt: skip
    with jax.set_mesh(devices), nn.logical_axis_rules(rules):
        assert_close(value_and_gradients(splash, q, k, v), expected)


def gradient_program(platform, cfg, T, packed=False):
    """The traced gradient of the loss of a model, as text."""
    params = jax.eval_shape(
        lambda: meta.unbox(model.init_params(cfg, PLAN.n_unique, jax.random.key(0)))
    )
    tokens = jax.ShapeDtypeStruct((2, T), jnp.int32)
    names = ("inputs", "targets") + ("segments", "positions") * packed
    batch = dict.fromkeys(names, tokens)

    def loss(params, batch):
        return jnp.sum(step.token_losses(params, batch, cfg, PLAN)[0])

    with kernels.traced_for(platform):
        return str(jax.make_jaxpr(jax.grad(loss))(params, batch))


@pytest.mark.parametrize("platform", ["tpu", "gpu"])
@pytest.mark.parametrize(("remat", "runs"), [("none", 1), ("dots", 1), ("full", 2)])
def test_only_full_recomputation_runs_the_forward_kernel_twice(platform, remat, runs):
    program = gradient_program(platform, dataclasses.replace(CFG, remat=remat), 128)
    # A call of splash attention whose results nobody reads stays in the trace (the compiler drops
    # it), but without their names. Read are output and log-sum, of a run to be repeated the output.
    result = {"tpu": r"name\[name=attention\]", "gpu": r"= dot_product_attention_fwd_wrapper\b"}
    assert len(re.findall(result[platform], program)) == runs + (platform == "tpu")


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("platform", "implementation"),
    [("cpu", "auto"), ("tpu", "auto"), ("gpu", "auto"), ("gpu", "xla")],
)
def test_no_array_is_as_large_as_a_mask(platform, implementation, packed):
    cfg = dataclasses.replace(CFG, attention=implementation)
    program = gradient_program(platform, cfg, 1024, packed)
    squares = re.findall(r"\w+\[[\d,]*1024,1024\]", program)
    # The logits of all queries are what "xla" is.
    assert bool(squares) == (implementation == "xla" and not packed), set(squares)


def test_what_stands_for_an_absent_cudnn_cannot_be_compiled():
    q, k, v = (x.astype(jnp.bfloat16) for x in inputs(4, 2))
    with kernels.traced_for("gpu"), pytest.raises((NotImplementedError, ValueError)):
        jax.jit(functools.partial(attention.causal, implementation="cudnn")).lower(q, k, v)


INPUTS = {"T": 256, "head_size": 64, "dtype": "bfloat16", "packed": False, "seq_parts": 1}


@pytest.mark.parametrize(
    ("platform", "change", "name", "why"),
    [
        ("cpu", {}, "chunks", ""),
        ("tpu", {}, "splash", ""),
        ("tpu", {"packed": True, "dtype": "float32", "head_size": 80}, "splash", ""),
        ("tpu", {"T": 200}, "xla", "config.seq_len to be a multiple of 128, not 200"),
        ("tpu", {"T": 200, "packed": True}, "chunks", "multiple of 128"),
        ("tpu", {"seq_parts": 2}, "xla", "config.mesh.rules.seq cuts them in 2"),
        ("gpu", {}, "cudnn", ""),
        ("gpu", {"dtype": "float32"}, "xla", "model.dtype='bfloat16', not 'float32'"),
        ("gpu", {"head_size": 132}, "xla", "at most 128 features in steps of 8, not 132"),
        ("gpu", {"T": 255}, "xla", "config.seq_len to be even, not 255"),
        ("gpu", {"packed": True}, "chunks", "rows that are not packed"),
        ("gpu", {"seq_parts": 2}, "xla", "config.mesh.rules.seq cuts them in 2"),
    ],
)
def test_auto_is_flash_attention_where_it_can_run_and_says_why_not(platform, change, name, why):
    found, said = attention.chosen(platform, **INPUTS | change)
    assert found == name and why in said and bool(said) == bool(why)


def note(config, platform, packed=False):
    planned = run.outline(config)
    mesh = sharding.abstract_mesh(planned.config.mesh, 8)
    with kernels.traced_for(platform):
        return run.attention_note(planned, mesh, sharding.axis_rules(config.mesh), packed)


def test_a_run_says_why_it_does_without_flash_attention(tiny_config):
    tiny_config.seq_len = 100
    assert note(tiny_config, "cpu") == ""
    said = "attention is 'xla': splash attention requires config.seq_len to be a multiple of 128, not 100"
    assert note(tiny_config, "tpu") == said
    assert "attention is 'chunks': cudnn attention requires" in note(
        tiny_config, "gpu", packed=True
    )


@pytest.mark.parametrize(
    ("name", "platform", "packed", "says"),
    [
        ("splash", "gpu", False, "'splash' requires a TPU (the platform is gpu)"),
        ("cudnn", "tpu", False, "'cudnn' requires a GPU (the platform is tpu)"),
        ("splash", "tpu", False, "requires config.seq_len to be a multiple of 128, not 100"),
        ("cudnn", "gpu", False, "requires model.dtype='bfloat16', not 'float32'"),
        ("cudnn", "gpu", True, "requires model.dtype"),
    ],
)
def test_attention_that_cannot_run_is_refused_by_name(tiny_config, name, platform, packed, says):
    tiny_config.seq_len = 100
    tiny_config.model.update({"attention": name, "dtype": "float32"})
    with pytest.raises(UserError) as error:
        note(tiny_config, platform, packed)
    assert says in str(error.value)
    assert str(error.value).startswith("config.model.attention=")


def test_packed_rows_are_never_given_to_attention_that_ignores_them():
    q, k, v = (x.astype(jnp.bfloat16) for x in inputs(4, 2))
    with kernels.traced_for("gpu"), pytest.raises(ValueError, match="not packed"):
        attention.causal(q, k, v, rows_of_segments(), implementation="cudnn")
