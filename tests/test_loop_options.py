"""Options of what happens between repetitions: each computes its formula, however it is run."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from loopjax import (
    block,
    checkpoint,
    checkpoint_files,
    flops,
    growth,
    loop_checks,
    model,
    optim,
    run,
    step,
    surgery,
)
from loopjax import config as config_lib
from loopjax.analysis import effects
from loopjax.depth import DepthPlan
from loopjax.errors import UserError
from loopjax.finetune import config_from
from loopjax.interop import loop_export
from loopjax.interop.export_hf import export_hf
from loopjax.lm import decode
from loopjax.lm.loaded_model import open_model
from loopjax.loop import first_state
from loopjax.loop_config import LoopConfig
from loopjax.train import train

PLAN = DepthPlan.parse("1-2x3-1")
PLAIN = model.ModelConfig(
    vocab_size=40, d_model=8, d_ff=12, n_heads=2, n_kv_heads=1, init_depth=8, dtype="float32",
    attention="xla",
)  # fmt: skip
TOKENS_BT = jnp.array(np.random.default_rng(0).integers(0, 40, (2, 7)))
OPTIONS = {
    "norm": {"norm": True},
    "add": {"inject": "add", "inject_scale": 0.707, "norm": True},
    "after": {"inject": "after", "inject_scale": 0.707, "norm": True},
    "zeros": {"start": "zeros", "inject": "add"},
    "normal": {"start": "normal", "inject": "concat", "own": 3, "final_norm": "after"},
    "between": {"final_norm": "between"},
    "concat": {"inject": "concat", "own": 3},
    "outer": {"residual": "outer"},
    "outer_delta": {"residual": "outer_delta", "norm": True, "inject": "add"},
    "scaled": {"residual": "scaled", "own": 3},
    "loops": {"residual_scale": "loops", "residual_lambda": 1.5},
    "embedding": {"embedding": True, "own": 2},  # the third repetition uses the second's
    "lora": {"lora_rank": 2, "own": 3},
    "all": {"norm": True, "inject": "concat", "residual": "scaled", "residual_scale": "loops",
            "embedding": True, "lora_rank": 1, "own": 3},
}  # fmt: skip
BOUNDARY = [name for name in OPTIONS if name not in ("loops", "lora")]


def config_of(name):
    return dataclasses.replace(PLAIN, loop=LoopConfig(**OPTIONS[name]))


def params_of(cfg, n_layers=4):
    """Initial parameters with all that is 0, 1 or the identity at first moved away from it."""
    params = meta.unbox(model.init_params(cfg, n_layers, jax.random.key(1)))

    def moved(path, leaf):
        name = str(path[-1].key)
        moves = path[0].key in ("loop", "final_norm") or name.endswith("_lora_b")
        if not moves:
            return leaf
        noise = jax.random.normal(jax.random.key(len(name)), leaf.shape)
        return leaf + 0.3 * noise

    return jax.tree_util.tree_map_with_path(moved, params)


def formula(params, cfg, plan=PLAN):
    """The residual stream by loops in Python over plain layers, as the docstring of `loop` has it."""
    loop, stack = cfg.loop, params["layers"]
    weights = params.get("loop", {})
    T = TOKENS_BT.shape[1]
    x = params["embed"][TOKENS_BT]
    context = model.context_of(PLAIN, jnp.arange(T), x)

    def rms(x):
        return x / jnp.sqrt(jnp.mean(x * x, -1, keepdims=True) + cfg.norm_eps)

    def layer(x, u, i, segment):
        mine = {k: v[u] for k, v in stack.items() if "_lora_" not in k}
        if i is not None and loop.lora_rank:
            n = min(i, loop.own - 1)
            for k in mine:
                if f"{k}_lora_a" in stack:
                    mine[k] += stack[f"{k}_lora_a"][u, n] @ stack[f"{k}_lora_b"][u, n]
        if i is not None and loop.residual_scale:
            factor = loop.residual_lambda / (segment.repeats * np.sqrt(segment.layers))
            mine |= {k: factor * mine[k] for k in ("output", "down")}
        return model.run_layer([mine], 0, x, context, PLAIN, DepthPlan.parse("1"))[0]

    for segment in plan.segments:
        layers = range(segment.start, segment.stop)
        if segment.repeats == 1:
            x = functools.reduce(lambda x, u: layer(x, u, None, segment), layers, x)
            continue
        s = e = x
        if loop.start:
            s = first_state(cfg, x, jnp.arange(x.shape[1]))
        for i in range(segment.repeats):
            n = min(i, loop.own - 1)
            x = rms(s) * params["final_norm"] if loop.final_norm == "between" and i else s
            x = rms(x) if loop.norm and i else x
            if loop.inject == "add" or (loop.inject == "after" and i):
                x = x + loop.inject_scale * e
            if loop.inject == "concat":
                x = jnp.concatenate([x, e], -1) @ weights["adapter"]
            if loop.embedding:
                x = x + weights["embedding"][n]
            y = functools.reduce(lambda x, u, i=i: layer(x, u, i, segment), layers, x)
            s = {
                "": lambda s, x, y, n: y,
                "outer": lambda s, x, y, n: s + y,
                "outer_delta": lambda s, x, y, n: s + (y - x),
                "scaled": lambda s, x, y, n: s + weights["scale"][n] * y,
            }[loop.residual](s, x, y, n)
        x = rms(s) * params["final_norm"] if loop.final_norm == "after" else s
        x = rms(x) if loop.norm else x
        x = x + loop.inject_scale * e if loop.inject == "after" else x
    return x


def one_by_one(params, cfg, e_of=int):
    x = model.outside_stack(params, cfg, TOKENS_BT, "embedded")
    context = model.context_of(cfg, jnp.arange(TOKENS_BT.shape[1]), x, weights=params)
    for e in range(PLAN.n_effective):
        x, context, _, _ = model.advance(params["layers"], e_of(e), x, context, cfg, PLAN)
    return x


def traced(params, cfg):
    x = model.outside_stack(params, cfg, TOKENS_BT, "embedded")
    context = model.context_of(cfg, jnp.arange(TOKENS_BT.shape[1]), x, weights=params)

    def layer(carry, e):
        x, loop = carry
        here = context.replace(loop=loop)
        x, after, _, _ = model.advance(params["layers"], e, x, here, cfg, PLAN)
        return (x, after.loop), None

    return jax.lax.scan(layer, (x, context.loop), jnp.arange(PLAN.n_effective))[0][0]


def decoded(params, cfg):
    """The last residuals of the whole by a prompt of 5 tokens and two more, from the cache."""
    _, caches = decode.prefill(params, TOKENS_BT[:, :5], cfg, PLAN)
    caches = jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, 2), (0, 0))), caches)
    layers = [jax.tree.map(lambda leaf, u=u: leaf[u], params["layers"]) for u in range(4)]
    found = []
    for t in (5, 6):
        mask_BTS = jnp.broadcast_to(jnp.arange(7) <= t, (2, 1, 7))
        placement = block.Placement(jnp.full((2, 1), t), mask_BTS=mask_BTS, slot=jnp.int32(t))
        args = (params, layers, TOKENS_BT[:, t : t + 1], cfg, PLAN, placement, caches)
        x, caches = decode.decode_step(*args)
        found.append(x[:, 0])
    return jnp.stack(found, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_the_scan_layers_one_by_one_and_decoding_compute_the_formula(name):
    cfg = config_of(name)
    params = params_of(cfg)
    whole = jax.jit(lambda p: model.residual(p, TOKENS_BT, cfg, PLAN))(params)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    close(whole, formula(params, cfg))
    close(jax.jit(lambda p: one_by_one(p, cfg))(params), whole)
    if name in ("normal", "lora", "all"):  # with a number of the layer that is not known ahead
        close(jax.jit(lambda p: traced(p, cfg))(params), whole)
    close(jax.jit(lambda p: decoded(p, cfg))(params), whole[:, 5:])
    plain = {k: v for k, v in params.items() if k != "loop"}
    plain["layers"] = {k: v for k, v in params["layers"].items() if "_lora_" not in k}
    off = jax.jit(lambda p: model.residual(p, TOKENS_BT, PLAIN, PLAN))(plain)
    assert jnp.abs(whole - off).max() > 1e-3, "the option changes nothing"


@pytest.mark.parametrize("name", ["concat", "embedding", "lora"])
def test_weights_begin_as_if_they_were_not_there(name):
    cfg = config_of(name)
    params = meta.unbox(model.init_params(cfg, 4, jax.random.key(1)))
    plain = meta.unbox(model.init_params(PLAIN, 4, jax.random.key(1)))
    a = jax.jit(lambda p: model.residual(p, TOKENS_BT, cfg, PLAN))(params)
    b = jax.jit(lambda p: model.residual(p, TOKENS_BT, PLAIN, PLAN))(plain)
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_plan_without_a_loop_is_the_plain_model():
    cfg = dataclasses.replace(PLAIN, loop=LoopConfig(norm=True, inject="add", residual="outer"))
    params = params_of(PLAIN)
    texts = {
        jax.jit(lambda p, c=c: model.residual(p, TOKENS_BT, c, "4")).lower(params).as_text()
        for c in (PLAIN, cfg)
    }
    assert len(texts) == 1


@pytest.mark.parametrize("name", OPTIONS)
def test_shapes_and_counts_are_those_of_the_initial_parameters(name):
    cfg = config_of(name)
    shapes = jax.eval_shape(
        lambda key: meta.unbox(model.init_params(cfg, 4, key)), jax.random.key(0)
    )
    named = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree.leaves_with_path(shapes)
    }
    assert cfg.parameter_shapes(4) == named
    assert flops.count_params(cfg, 4) == sum(map(np.prod, named.values()))


def test_adapters_and_low_rank_additions_cost_their_products():
    plain = flops.training_flops_per_token(PLAIN, PLAN, 16)
    adapter = flops.training_flops_per_token(config_of("concat"), PLAN, 16)
    assert adapter - plain == 6 * 3 * (2 * 8) * 8  # three repetitions of a [2D, D] matrix
    lora = flops.training_flops_per_token(config_of("lora"), PLAN, 16)
    sides = (8 + 8) + 2 * (8 + 4) + (8 + 8) + 3 * (8 + 12)  # in + out: q, k and v, output, MLP
    assert lora - plain == 6 * 3 * 2 * (2 * sides)  # repetitions, layers, rank 2


@pytest.mark.slow
def test_untying_merges_low_rank_additions_and_scales():
    cfg = dataclasses.replace(
        PLAIN, loop=LoopConfig(lora_rank=2, own=2, residual_scale="loops", residual_lambda=2.0)
    )
    params = params_of(cfg)
    untied = surgery.untie(params, PLAN, cfg.loop)
    a = jax.jit(lambda p: model.residual(p, TOKENS_BT, cfg, PLAN))(params)
    b = jax.jit(lambda p: model.residual(p, TOKENS_BT, PLAIN, "8"))(untied)
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    assert not [name for name in untied["layers"] if "lora" in name]


@pytest.mark.parametrize("name", BOUNDARY)
def test_what_changes_the_stream_between_repetitions_cannot_be_untied(name):
    cfg = config_of(name)
    with pytest.raises(UserError, match=r"^loop\.\w+=.* changes the residual stream between"):
        surgery.untie(params_of(cfg), PLAN, cfg.loop)
    with pytest.raises(UserError, match=r"cannot be tied to it"):
        surgery.tie(params_of(cfg, 8), PLAN, cfg.loop)


DEEP = dataclasses.replace(PLAIN, post_norm="stream", loop=LoopConfig(residual_scale="deeploop"))


def test_deeploop_scales_the_initial_values_that_a_branch_is_linear_in():
    """By 2607.13491 with N = init_depth = 8, (8 N)^(-1/2) = 1/8."""
    plain = dataclasses.replace(DEEP, loop=LoopConfig())
    deep, other = (
        meta.unbox(model.init_params(cfg, 4, jax.random.key(1))) for cfg in (DEEP, plain)
    )
    factors = {
        "value": 1 / 8,
        "up": 1 / 8,
        "output": 4 / 8,
        "down": 4 / 8,
    }  # those had 1 / sqrt(2 N)
    for name, leaf in deep["layers"].items():
        np.testing.assert_allclose(leaf, factors.get(name, 1) * other["layers"][name], rtol=1e-6)
    np.testing.assert_array_equal(deep["embed"], other["embed"])


def test_deeploop_is_of_layers_and_can_be_untied():
    params = meta.unbox(model.init_params(DEEP, 4, jax.random.key(1)))
    untied = surgery.untie(params, PLAN, DEEP.loop)
    a, b = (
        jax.jit(lambda p, plan=plan: model.residual(p, TOKENS_BT, DEEP, plan))(p)
        for p, plan in ((params, PLAN), (untied, "8"))
    )
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match="residual_scale='deeploop' and plan 1-2x3-1 cannot be exp"):
        loop_export.family(DEEP, PLAN)


def test_a_run_keeps_the_depth_that_deeploop_is_of(tiny_config):
    config = loop_config(tiny_config, residual_scale="deeploop")
    config.model.post_norm = "stream"
    cfg = run.outline(config).cfg
    assert cfg.alpha == 8**0.5 and cfg.beta == 32**-0.5  # 1-1x2-1 executes 4
    config.cooldown.update(depth="1-1x5-1")
    assert run.outline(config).cfg.alpha == 8**0.5  # also in a phase of another plan
    config.update(init_from="there", init="weights")
    longer = dataclasses.replace(cfg, init_depth=7)
    with pytest.raises(
        UserError, match="config.model.init_depth=4, but .*'there' has 7, which loop"
    ):
        loop_checks.check_origin(config, cfg, longer)


def test_new_layers_that_are_zeroed_add_nothing_in_any_repetition():
    params = params_of(config_of("lora"))
    zeroed = growth.zero_output(params, np.array([0, 1, 0, 1], bool), None, 0.0, None)["layers"]
    for name in ("output", "down"):
        whole = zeroed[name][:, None] + zeroed[f"{name}_lora_a"] @ zeroed[f"{name}_lora_b"]
        assert not whole[np.array([1, 3])].any() and whole[np.array([0, 2])].any()


def test_vectors_of_repetitions_do_not_decay_and_muon_leaves_new_weights_to_adamw():
    params = params_of(config_of("all"))
    decays, labels = optim.decay_mask(params), optim._muon_labels(params)
    assert decays["loop"] == {"adapter": True, "embedding": False, "scale": False}
    assert decays["layers"]["query_lora_a"] and decays["layers"]["query"]
    assert set(labels["loop"].values()) == {"adamw"} == {labels["layers"]["up_lora_b"]}
    assert labels["layers"]["up"] == "muon"


def loop_config(tiny_config, plan="1-1x2-1", **fields):
    tiny_config.growth.operator = ""
    tiny_config.depth = plan
    tiny_config.cooldown.mixture = {}
    tiny_config.loop.update(fields)
    return tiny_config


@pytest.mark.slow
def test_eight_devices_make_the_step_of_one(tiny_config):
    fields = OPTIONS["all"] | {"own": 0}
    config = loop_config(tiny_config, **fields)
    config.optimizer.name = "muon"  # which updates these weights by AdamW
    states = []
    for mesh in ({"data": 2, "fsdp": 2, "tensor": 2}, {"data": 1, "fsdp": 8, "tensor": 1}):
        config.mesh.update(mesh)
        planned = run.plan_run(config)
        with run.on_mesh(planned):
            args = planned.optimizer, planned.mesh, planned.rules
            abstract = step.abstract_state(planned.cfg, 3, *args)
            state = step.sharded_init(planned.cfg, abstract, 3, planned.optimizer, 0)
            jax.tree.map(lambda a, b: a.sharding == b.sharding or pytest.fail(), abstract, state)
            batch = planned.to_device(next(planned.stream.batches(planned.rows, 0)))
            state, metrics = planned.jitted_update(planned.plan, abstract)(state, batch)
        assert planned.cfg.loop.own == 2
        states.append((float(metrics["loss"]), jax.device_get(metrics["grad_norms"])))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=1e-6), *states)


BAD = [
    ({"inject": "sum"}, "config.loop.inject='sum' must be one of '', 'add', 'after', 'concat'"),
    ({"residual": "inner"}, "config.loop.residual='inner' must be one of '', 'outer'"),
    ({"residual_scale": "sqrt"}, "config.loop.residual_scale='sqrt' must be one of '', 'loops', 'deeploop'"),
    ({"residual_scale": "deeploop"}, "config.loop.residual_scale='deeploop' requires model.post_norm='stream'"),
    ({"inject_scale": 0.0}, "config.loop.inject_scale=0.0 must be positive and finite"),
    ({"residual_lambda": float("inf")}, "config.loop.residual_lambda=inf must be positive"),
    ({"lora_rank": -1}, "config.loop.lora_rank=-1 must lie within 0..10,000"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "sentence"), BAD, ids=[s[12:30] for _, s in BAD])
def test_a_bad_value_is_refused_in_a_sentence(tiny_config, fields, sentence):
    with pytest.raises(UserError) as error:
        run.outline(loop_config(tiny_config, **fields))
    assert str(error.value).startswith(sentence)


def test_options_require_a_loop_and_those_with_weights_one(tiny_config):
    with pytest.raises(UserError, match=r"config.loop.norm=True requires a plan that loops"):
        run.outline(loop_config(tiny_config, "3", norm=True))
    config = loop_config(tiny_config, "1x2-1x3", norm=True)
    run.outline(config)
    config.loop.embedding = True
    with pytest.raises(UserError, match=r"config.loop.embedding=True requires plans with one loop"):
        run.outline(config)


def test_a_run_cannot_untie_what_its_loops_do(tiny_config):
    config = loop_config(tiny_config, lora_rank=2)
    config.cooldown.update(depth="4", operator="untie")
    with pytest.raises(UserError, match=r"config.loop.lora_rank=2 does not fit operator 'untie'"):
        run.outline(config)


def test_repetitions_have_as_many_weights_as_the_run_makes(tiny_config):
    config = loop_config(tiny_config, embedding=True)
    assert run.outline(config).cfg.loop.own == 2
    config.cooldown.depth = "1-1x5-1"
    assert run.outline(config).cfg.loop.own == 5
    config.loop.update(repeats="huginn:4", most=9)
    assert run.outline(config).cfg.loop.own == 9
    config.loop.own = 3
    assert run.outline(config).cfg.loop.own == 3


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run with options of every kind."""
    from tests.tiny_config import get_config

    config = loop_config(get_config(), norm=True, inject="concat", embedding=True, lora_rank=1)
    config.steps, config.cooldown.steps, config.schedule = 3, 0, "constant"
    place = tmp_path_factory.mktemp("run")
    train(config, place)
    return place


@pytest.mark.slow
def test_a_saved_model_is_run_and_refused_where_it_cannot_be(trained):
    lm = open_model(trained, text=False)
    assert lm.cfg.loop.own == 2 and set(lm.params["loop"]) == {"adapter", "embedding"}
    with pytest.raises(UserError, match=r"another order of its layers does not have"):
        lm.with_order(range(4))
    with pytest.raises(UserError, match=r"local effects are of layers that add to one"):
        effects.local(lm, [[1, 2, 3]])
    with pytest.raises(UserError, match=r"has 2 loops, but loop.inject='concat' of the checkpoint"):
        checkpoint_files.chosen_plan(lm.meta, "1x2-1x3-1")
    with pytest.raises(UserError, match=r"cannot be exported: no family that is written has it"):
        export_hf(str(trained), trained / "hf")
    fine = config_from(lm.meta, str(trained), "var_assign_code_1:64")
    assert config_lib.model_config(fine).loop == lm.cfg.loop


@pytest.mark.slow
def test_effects_of_ablating_a_layer_go_through_what_is_between_repetitions(trained):
    lm = open_model(trained, text=False)
    prompt = list(range(1, 9))
    matrix, output = effects.ablate(lm, prompt, None)
    with lm.on_mesh():
        clean = effects._clean(lm, np.array([prompt]))["update"]
    # By hand: the layers one by one, with the update of the second left out at tokens 1 .. T - 1.
    tokens = jnp.array([prompt])
    x = model.outside_stack(lm.params, lm.cfg, tokens, "embedded")
    context = model.context_of(lm.cfg, jnp.arange(8), x, weights=lm.params)
    for e in range(4):
        gate = jnp.where((jnp.arange(8) > 0) & (e == 1), 0.0, 1.0)[None]
        here = context.replace(gates={"attention": gate, "mlp": gate})
        x, context, _, sown = model.advance(lm.params["layers"], e, x, here, lm.cfg, lm.plan)
        change = jnp.linalg.norm(sown["attention"] + sown["mlp"] - clean[e], axis=-1)
        expected = (change / jnp.linalg.norm(clean[e], axis=-1)).max()
        np.testing.assert_allclose(matrix[1, e], expected, rtol=1e-3, atol=1e-5)
    assert output[1] > 0


@pytest.mark.slow
def test_a_plain_checkpoint_may_get_options_and_their_weights_begin_anew(
    trained, tiny_config, tmp_path
):
    config = loop_config(tiny_config)
    config.steps, config.cooldown.steps, config.schedule, config.eval_batches = 2, 0, "constant", 0
    train(config, tmp_path / "plain")
    config.update(init_from=str(tmp_path / "plain"), init="weights", learning_rate=1e-30)
    config.loop.update(inject="concat", embedding=True)
    train(config, tmp_path / "added")
    a, b = (checkpoint.load_params(tmp_path / n / "checkpoints")[0] for n in ("plain", "added"))
    loop = b.pop("loop")
    np.testing.assert_allclose(loop["adapter"], np.eye(32, 16), atol=1e-6)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), a, b)
    config.update(init_from=str(trained), learning_rate=1e-2)
    with pytest.raises(
        UserError, match=r"config.loop.norm=False, but config.init_from=.* has True"
    ):
        train(config, tmp_path / "other")
