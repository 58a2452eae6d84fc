import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from loopjax import attention, kernels, model, surgery
from loopjax.depth import DepthPlan

CFG = model.ModelConfig(
    vocab_size=48, d_model=24, d_ff=40, n_heads=6, n_kv_heads=2, init_depth=6, dtype="float32"
)
PLANS = ["5", "2x3", "1-2x3-2", "1x2-3x2-1x3"]


def params_of(cfg, n_layers, seed=0):
    return nn.meta.unbox(model.init_params(cfg, n_layers, jax.random.key(seed)))


@pytest.fixture(scope="module")
def tokens():
    return jax.random.randint(jax.random.key(1), (2, 13), 0, CFG.vocab_size)


def test_the_parameter_tree_is_canonical_and_named():
    boxed = model.init_params(CFG, 3, jax.random.key(0))
    shapes = jax.tree.map(jnp.shape, nn.meta.unbox(boxed))
    assert shapes == {
        "embed": (48, 24),
        "final_norm": (24,),
        "layers": {
            "attention_norm": (3, 24),
            "query": (3, 24, 24),
            "key": (3, 24, 8),
            "value": (3, 24, 8),
            "output": (3, 24, 24),
            "mlp_norm": (3, 24),
            "gate": (3, 24, 40),
            "up": (3, 24, 40),
            "down": (3, 40, 24),
        },
    }
    names = jax.tree.map(lambda box: box.names, boxed, is_leaf=lambda x: hasattr(x, "names"))
    assert names["embed"] == ("vocab", "embed")
    assert names["layers"]["query"] == ("layers", "embed", "heads")
    assert names["layers"]["key"] == ("layers", "embed", "kv_heads")
    assert names["layers"]["down"] == ("layers", "mlp", "embed")
    assert names["layers"]["mlp_norm"] == ("layers", "norm")


def test_an_untied_head_is_a_parameter_of_its_own(tokens):
    cfg = dataclasses.replace(CFG, tie_embeddings=False)
    params = params_of(cfg, 2)
    assert params["head"].shape == (24, 48)
    zero_head = {**params, "head": jnp.zeros_like(params["head"])}
    assert not model.forward(zero_head, tokens, cfg, DepthPlan.parse("2")).any()


@pytest.mark.parametrize("text", PLANS)
def test_a_looped_stack_computes_what_its_untied_copies_compute(text, tokens):
    plan = DepthPlan.parse(text)
    params = params_of(CFG, plan.n_unique)
    looped = model.forward(params, tokens, CFG, plan)
    untied = surgery.untie(params, plan)
    unrolled = model.forward(untied, tokens, CFG, DepthPlan.of([(plan.n_effective, 1)]))
    np.testing.assert_allclose(looped, unrolled, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("run", ["forward", "outputs", "residual", "intermediates"])
def test_a_plan_of_another_depth_than_the_parameters_is_refused(run, tokens):
    params = params_of(CFG, 5)
    more = [["residual"]] if run == "intermediates" else []
    for plan in ("4", "2x3", "6", DepthPlan.parse("4")):
        with pytest.raises(ValueError, match=r"plan \S+ has \d unique layers, but the tree has 5"):
            getattr(model, run)(params, tokens, CFG, plan, *more)


def test_a_plan_may_be_given_as_text(tokens):
    params, text = params_of(CFG, 3), "1-1x2-1"
    plan = DepthPlan.parse(text)
    for run in (model.forward, model.residual):
        assert (run(params, tokens, CFG, text) == run(params, tokens, CFG, plan)).all()
    assert DepthPlan.parse(plan) is plan
    for tree, same in zip(
        *(jax.tree.leaves(surgery.untie(params, p)) for p in (text, plan)), strict=True
    ):
        assert (tree == same).all()


def reference_forward(params, tokens_BT, cfg, order):
    """The model again, written from its equations in plain NumPy, one layer after the other."""
    p = jax.tree.map(np.asarray, params)
    B, T = tokens_BT.shape
    C, G = cfg.head_size, cfg.n_heads // cfg.n_kv_heads

    def norm(x, scale):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + cfg.norm_eps) * scale

    def rope(x):
        out = np.empty_like(x)
        for t in range(T):
            for i in range(C // 2):
                angle = t * cfg.rope_theta ** (-2 * i / C)
                a, b = x[:, t, :, i], x[:, t, :, i + C // 2]
                out[:, t, :, i] = a * np.cos(angle) - b * np.sin(angle)
                out[:, t, :, i + C // 2] = b * np.cos(angle) + a * np.sin(angle)
        return out

    x = p["embed"][np.asarray(tokens_BT)]
    for layer in order:
        w = {name: leaf[layer] for name, leaf in p["layers"].items()}
        h = norm(x, w["attention_norm"])
        q = rope((h @ w["query"]).reshape(B, T, cfg.n_heads, C))
        k = rope((h @ w["key"]).reshape(B, T, cfg.n_kv_heads, C))
        v = (h @ w["value"]).reshape(B, T, cfg.n_kv_heads, C)
        out = np.zeros_like(q)
        for head in range(cfg.n_heads):
            scores = np.einsum("btc,bsc->bts", q[:, :, head], k[:, :, head // G]) / np.sqrt(C)
            scores = np.where(np.tril(np.ones((T, T), bool)), scores, -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            out[:, :, head] = np.einsum("bts,bsc->btc", weights, v[:, :, head // G])
        x = x + out.reshape(B, T, -1) @ w["output"]
        h = norm(x, w["mlp_norm"])
        gate = h @ w["gate"]
        x = x + (gate / (1 + np.exp(-gate)) * (h @ w["up"])) @ w["down"]
    return norm(x, p["final_norm"]) @ p["embed"].T


@pytest.mark.parametrize("text", ["3", "1-2x2-1"])
def test_the_model_is_what_its_equations_say(text, tokens):
    plan = DepthPlan.parse(text)
    params = params_of(CFG, plan.n_unique)
    # Norm scales other than one, so that a forgotten scale shows.
    noise = jax.random.uniform(jax.random.key(2), (plan.n_unique, 24), minval=0.5, maxval=1.5)
    params["layers"] |= {"attention_norm": noise, "mlp_norm": noise[::-1]}
    expected = reference_forward(params, tokens, CFG, plan.order)
    np.testing.assert_allclose(
        model.forward(params, tokens, CFG, plan), expected, rtol=2e-4, atol=2e-5
    )


def test_no_position_sees_what_comes_after_it(tokens):
    params = params_of(CFG, 3)
    plan = DepthPlan.parse("1-2x2")
    logits = model.forward(params, tokens, CFG, plan)
    changed = tokens.at[:, 8:].set((tokens[:, 8:] + 1) % CFG.vocab_size)
    after = model.forward(params, changed, CFG, plan)
    np.testing.assert_array_equal(logits[:, :8], after[:, :8])
    assert not np.allclose(logits[:, 8:], after[:, 8:])


def program_size(plan, cfg=CFG):
    params = jax.eval_shape(lambda: params_of(cfg, DepthPlan.parse(plan).n_unique))
    tokens = jax.ShapeDtypeStruct((2, 13), jnp.int32)

    def loss(params, tokens):
        return model.forward(params, tokens, cfg, DepthPlan.parse(plan)).mean()

    return len(jax.jit(jax.grad(loss)).lower(params, tokens).as_text().splitlines())


def test_the_program_does_not_grow_with_depth_or_repetitions():
    assert program_size("3") == program_size("24")
    assert program_size("3x2") == program_size("4x9")
    assert program_size("2-3x2-4") == program_size("8-4x6-12")
    assert program_size("2-3x2-4") < 3.5 * program_size("3")


@pytest.mark.parametrize("remat", ["full", "attention", "dots"])
def test_rematerialization_changes_memory_and_not_gradients(remat, tokens):
    plan = DepthPlan.parse("1-2x2")
    params = params_of(CFG, 3)

    def grads(cfg):
        return jax.grad(lambda p: jnp.square(model.forward(p, tokens, cfg, plan)).mean())(params)

    def temporary_bytes(cfg, n_layers=16):
        params = jax.eval_shape(lambda: params_of(cfg, n_layers))
        plan = DepthPlan.of([(n_layers, 1)])
        loss = jax.grad(lambda p: model.forward(p, tokens, cfg, plan).mean())
        return jax.jit(loss).lower(params).compile().memory_analysis().temp_size_in_bytes

    saved = dataclasses.replace(CFG, remat=remat)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        grads(CFG),
        grads(saved),
    )
    assert temporary_bytes(saved) < temporary_bytes(CFG)


def test_bfloat16_compute_keeps_float32_parameters(tokens):
    cfg = dataclasses.replace(CFG, dtype="bfloat16")
    params = params_of(cfg, 2)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}
    plan = DepthPlan.parse("2")
    half = model.forward(params, tokens, cfg, plan)
    assert half.dtype == jnp.float32
    assert (half != half.astype(jnp.bfloat16)).mean() > 0.9  # not rounded on the way out
    np.testing.assert_allclose(half, model.forward(params, tokens, CFG, plan), atol=0.05)


def test_a_shallow_and_a_deep_model_of_one_seed_begin_alike():
    shallow, deep = params_of(CFG, 2), params_of(CFG, 5)
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, b[:2]), shallow["layers"], deep["layers"]
    )
    np.testing.assert_array_equal(shallow["embed"], deep["embed"])


def test_initialization_has_the_documented_scale():
    cfg = dataclasses.replace(CFG, d_model=192, d_ff=512, vocab_size=512, init_depth=8)
    params = params_of(cfg, 4)
    expected = {
        "query": 192**-0.5,
        "gate": 192**-0.5,
        "output": 192**-0.5 / 4,
        "down": 512**-0.5 / 4,
    }
    for name, std in expected.items():
        assert np.std(params["layers"][name]) == pytest.approx(std, rel=0.02)
    assert np.std(params["embed"]) == pytest.approx(192**-0.5, rel=0.02)
    assert (params["layers"]["mlp_norm"] == 1).all()


@pytest.mark.parametrize("T", [5, 64, 200])
def test_attention_on_the_cpu_is_attention(T):
    q, k, v = (
        jax.random.normal(jax.random.key(i), (2, T, heads, 8)) for i, heads in enumerate((4, 2, 2))
    )

    def grads(attention):
        return jax.value_and_grad(lambda *qkv: jnp.sin(attention(*qkv)).sum(), (0, 1, 2))(q, k, v)

    plain = functools.partial(jax.nn.dot_product_attention, is_causal=True)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        grads(attention.causal),
        grads(plain),
    )


def test_the_matrix_product_on_the_cpu_has_the_gradient_of_a_matrix_product():
    x = jax.random.normal(jax.random.key(0), (3, 5, 7))
    w = jax.random.normal(jax.random.key(1), (7, 4))

    def grads(product):
        return jax.grad(lambda x, w: jnp.sin(product(x, w)).sum(), (0, 1))(x, w)

    for ours, plain in zip(grads(kernels.matmul), grads(jnp.matmul), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"n_heads": 5}, "n_heads=5 must divide"),
        ({"n_heads": 8, "d_model": 24}, "even size"),
        ({"n_kv_heads": 4}, "n_kv_heads=4 must divide"),
        ({"dtype": "float16"}, "float32, bfloat16"),
        ({"remat": "some"}, "none, dots, attention, full, offload"),
        ({"attention": "flash"}, "auto, xla, chunks, splash, cudnn"),
        ({"d_ff": 0}, "d_ff=0 must be at least 1"),
    ],
)
def test_an_impossible_architecture_is_refused(change, says):
    with pytest.raises(ValueError, match=says):
        dataclasses.replace(CFG, **change)
