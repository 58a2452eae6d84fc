"""Orbax checkpoints of other programs: the same parameters and logits, by layouts written out here."""

import contextlib
import dataclasses
import functools
import io
import json
import math
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import types

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest

from loopjax import checkpoint, model
from loopjax.cli import main as cli
from loopjax.depth import DepthPlan
from loopjax.evals import nll
from loopjax.interop import tree_map
from loopjax.interop.axes import CANONICAL, Layout
from loopjax.interop.import_orbax import converted, cuts, import_orbax, plan_import
from loopjax.interop.matching import Piece, Source
from loopjax.model_config import ModelConfig
from loopjax.train import train
from loopjax.weights import numbers, terminal
from tests.conftest import tiny_run

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Heads of 4 and a width of 16: the scales of MaxText, 2 and 1/4, change no bit of a mantissa.
CFG = ModelConfig(
    vocab_size=20, d_model=16, d_ff=24, n_heads=6, n_kv_heads=2, head_dim=4, init_depth=3,
    rope_theta=10_000.0, norm_eps=1e-5, dtype="float32",
)  # fmt: skip
U, V, D, F, H, K, C = 3, 20, 16, 24, 6, 2, 4
TOKENS_BT = np.random.default_rng(0).integers(0, V, (2, 12))
FACTS = {
    "norm": "rms", "positions": "rope", "activation": "silu", "rope_theta": 10_000.0,
    "norm_eps": 1e-5, "seq_len": 64,
}  # fmt: skip


def random_params(cfg=CFG, seed=1):
    """{"layers/query": ...} with norms and biases that are not 1 and 0."""
    random = np.random.default_rng(seed)

    def values(name, shape):
        noise = random.standard_normal(shape).astype(np.float32)
        return 1 + 0.3 * noise if name.endswith("norm") else 0.3 * noise

    return {name: values(name, shape) for name, shape in cfg.parameter_shapes(U).items()}


def nested(flat):
    tree = {}
    for name, value in flat.items():
        node, (*above, last) = tree, name.split("/")
        for key in above:
            node = node.setdefault(key, {})
        node[last] = value
    return tree


def logits(params, cfg):
    return _forward(cfg)(nested(params))


@functools.cache
def _forward(cfg):
    return jax.jit(lambda params: model.forward(params, TOKENS_BT, cfg, DepthPlan.parse(str(U))))


def save(directory, flat, **how):
    """By Orbax alone, as a tree without items."""
    pieces = jax.tree.map(lambda _: ocp.SaveArgs(**how), nested(flat))
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save(directory, args=ocp.args.PyTreeSave(nested(flat), save_args=pieces))
    return directory


def imported(source, directory, by, **settings):
    """({"layers/query": ...}, meta) after an import."""
    settings = {name: str(value) for name, value in settings.items()}
    meta = import_orbax(plan_import(source, str(by), settings), directory)
    params, _ = checkpoint.load_params(directory)
    return {
        name: np.asarray(leaf(params, name)) for name in model_of(meta).parameter_shapes(U)
    }, meta


def model_of(meta):
    return ModelConfig(**meta["model"])


def leaf(tree, name):
    for key in name.split("/"):
        tree = tree[key]
    return tree


def same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        assert ours[name].shape == array.shape and ours[name].dtype == np.float32
        assert ours[name].tobytes() == np.ascontiguousarray(array, np.float32).tobytes(), name


@pytest.fixture
def said(capsys):
    """A function of a command line that fails: the sentence that it prints."""

    def sentence(*argv) -> str:
        capsys.readouterr()
        assert cli.main(["import-orbax", *map(str, argv)]) == 2
        out, err = capsys.readouterr()
        found = re.fullmatch("loopjax import-orbax: (.+)\n", err)
        assert found and not out, err
        return found[1]

    return sentence


# MaxText


def interleaved(w_xC):
    """The component order of pairs (2i, 2i + 1), of an array whose pairs are (i, i + C/2)."""
    half = w_xC.shape[-1] // 2
    return np.stack([w_xC[..., :half], w_xC[..., half:]], axis=-1).reshape(w_xC.shape)


def maxtext(params, cfg, scan=1, pairs="half", qwen=False):
    """The parameters as MaxText has them: layers along axis `scan`, or a subtree for each (None)."""
    order = interleaved if pairs == "interleaved" else lambda x: x
    scale = 1 if qwen else math.sqrt(C)

    def heads(name, n):
        return params[f"layers/{name}"].reshape(U, *((D,) if "bias" not in name else ()), n, C)

    layers = {
        "pre_self_attention_layer_norm/scale": params["layers/attention_norm"],
        "post_self_attention_layer_norm/scale": params["layers/mlp_norm"],
        "self_attention/query/kernel": order(heads("query", H)) / scale,
        "self_attention/key/kernel": order(heads("key", K)),
        "self_attention/value/kernel": heads("value", K),
        "self_attention/out/kernel": params["layers/output"].reshape(U, H, C, D),
        "mlp/wi_0/kernel": params["layers/gate"],
        "mlp/wi_1/kernel": params["layers/up"],
        "mlp/wo/kernel": params["layers/down"],
    }
    if cfg.attention_bias:
        layers["self_attention/query/bias"] = order(heads("query_bias", H))
        layers["self_attention/key/bias"] = order(heads("key_bias", K))
        layers["self_attention/value/bias"] = heads("value_bias", K)
    if cfg.qk_norm:
        for name in ("query_norm", "key_norm"):
            layers[f"self_attention/{name}/scale"] = order(params[f"layers/{name}"])
    tree = {"token_embedder/embedding": params["embed"]}
    if cfg.tie_embeddings:  # its logits are divided by sqrt(D)
        tree["decoder/decoder_norm/scale"] = params["final_norm"] * (1 if qwen else math.sqrt(D))
    else:
        tree["decoder/decoder_norm/scale"] = params["final_norm"]
        tree["decoder/logits_dense/kernel"] = params["head"]
    for name, stack in layers.items():
        if scan is None:
            tree |= {f"decoder/layers_{i}/{name}": stack[i] for i in range(U)}
        else:
            tree[f"decoder/layers/{name}"] = np.moveaxis(stack, 0, min(scan, stack.ndim - 1))
    return {
        f"params/params/{name}": np.ascontiguousarray(x, np.float32) for name, x in tree.items()
    }


def maxtext_logits(tree, pairs="half", theta=10_000.0, eps=1e-5):
    """The forward pass of MaxText's llama2 block, in float64, from its tensors scanned along axis 1."""
    w = {name.removeprefix("params/params/"): x.astype(np.float64) for name, x in tree.items()}

    def norm(x, scale):
        return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + eps) * scale

    T = TOKENS_BT.shape[1]
    angle = np.arange(T)[:, None] / theta ** (np.arange(0, C, 2) / C)
    turn = np.exp(1j * angle)[:, None, :]  # [T, 1, C/2]

    def rotate(x):
        real, imag = (
            (x[..., : C // 2], x[..., C // 2 :]) if pairs == "half" else (x[..., ::2], x[..., 1::2])
        )
        turned = (real + 1j * imag) * turn
        if pairs == "half":
            return np.concatenate([turned.real, turned.imag], -1)
        return np.stack([turned.real, turned.imag], -1).reshape(x.shape)

    x = w["token_embedder/embedding"][TOKENS_BT]
    for i in range(U):

        def layer(name, i=i):
            return np.take(w[f"decoder/layers/{name}"], i, axis=1)

        y = norm(x, layer("pre_self_attention_layer_norm/scale"))
        q = rotate(np.einsum("btd,dhc->bthc", y, layer("self_attention/query/kernel")))
        k = rotate(np.einsum("btd,dkc->btkc", y, layer("self_attention/key/kernel")))
        v = np.einsum("btd,dkc->btkc", y, layer("self_attention/value/kernel"))
        q = q.reshape(*q.shape[:2], K, H // K, C)
        scores = np.einsum("btkgc,bskc->bkgts", q, k)  # not divided by sqrt(C)
        scores = np.where(np.tril(np.ones((T, T), bool)), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        heads = np.einsum("bkgts,bskc->btkgc", weights, v).reshape(*x.shape[:2], H, C)
        x = x + np.einsum("bthc,hcd->btd", heads, layer("self_attention/out/kernel"))
        y = norm(x, layer("post_self_attention_layer_norm/scale"))
        gate = np.einsum("btd,df->btf", y, layer("mlp/wi_0/kernel"))
        up = np.einsum("btd,df->btf", y, layer("mlp/wi_1/kernel"))
        x = x + np.einsum("btf,fd->btd", gate / (1 + np.exp(-gate)) * up, layer("mlp/wo/kernel"))
    x = norm(x, w["decoder/decoder_norm/scale"])
    if "decoder/logits_dense/kernel" in w:
        return x @ w["decoder/logits_dense/kernel"]
    return x @ w["token_embedder/embedding"].T / np.sqrt(D)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("scan", [0, 1, None], ids=["axis 0", "axis 1", "layer by layer"])
def test_a_maxtext_tree_has_the_same_parameters_and_logits(scan, tied, tmp_path):
    cfg = dataclasses.replace(CFG, tie_embeddings=tied)
    params = random_params(cfg)
    source = save(tmp_path / "their", maxtext(params, cfg, scan))
    ours, meta = imported(
        source, tmp_path / "our", "maxtext", layers_axis=scan or 0 if scan != 1 else 1
    )
    same(ours, params)
    assert model_of(meta) == cfg and meta["config"]["seq_len"] == 2048
    np.testing.assert_array_equal(logits(ours, cfg), logits(params, cfg))


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("pairs", ["half", "interleaved"])
def test_the_formula_of_maxtext_gives_the_logits_of_the_import(pairs, tied, tmp_path):
    cfg = dataclasses.replace(CFG, tie_embeddings=tied)
    theirs = maxtext(random_params(cfg), cfg, pairs=pairs)
    source = save(tmp_path / "their", theirs)
    ours, _ = imported(source, tmp_path / "our", "maxtext", rope_pairs=pairs)
    expected = maxtext_logits(theirs, pairs)
    np.testing.assert_allclose(logits(ours, cfg), expected, rtol=1e-5, atol=1e-5)
    assert np.abs(expected).max() > 0.5
    other = {"half": "interleaved", "interleaved": "half"}[pairs]
    assert np.abs(maxtext_logits(theirs, other) - expected).max() > 0.01


def test_gate_and_up_of_maxtext_may_be_fused(tmp_path):
    params = random_params()
    theirs = maxtext(params, CFG)
    mlp = "params/params/decoder/layers/mlp"
    gate, up = (theirs.pop(f"{mlp}/wi_{i}/kernel") for i in (0, 1))
    theirs[f"{mlp}/wi/kernel"] = np.stack([gate, up], axis=2)  # [D, U, 2, F]
    same(imported(save(tmp_path / "their", theirs), tmp_path / "our", "maxtext")[0], params)


@pytest.mark.parametrize("kind", ["attention_bias", "qk_norm"])
def test_the_qwen_blocks_of_maxtext_scale_their_queries_in_attention(kind, tmp_path, said):
    cfg = dataclasses.replace(CFG, norm_eps=1e-6, rope_theta=1e6, **{kind: True})
    params = random_params(cfg)
    theirs = maxtext(params, cfg, pairs="interleaved", qwen=True)
    source = save(tmp_path / "their", theirs)
    ours, meta = imported(source, tmp_path / "our", "maxtext-qwen", rope_pairs="interleaved")
    same(ours, params)
    assert model_of(meta) == cfg
    # The map of the other blocks would not divide by sqrt(C): it has no rules for these arrays.
    name = "key/bias" if kind == "attention_bias" else "key_norm/scale"
    assert f"has no rule for params/params/decoder/layers/self_attention/{name}" in said(
        source, tmp_path / "no", "--map", "maxtext"
    )


# Other layouts


def write_map(path, rules, prefix="", facts=FACTS, **top):
    """A map of rules (path, to, axes)."""
    lines = [f"prefix = {prefix!r}", *(f"{name} = {json.dumps(x)}" for name, x in top.items())]
    lines += ["[model]", *(f"{name} = {json.dumps(value)}" for name, value in facts.items())]
    for pattern, to, axes in rules:
        lines += ["[[rules]]", f"path = '{pattern}'", f"to = {json.dumps(to)}", f"axes = '{axes}'"]
    path.write_text("\n".join(lines))
    return path


# The tree of loopjax itself, as anybody's.
OWN = [
    (re.escape(name), name, " ".join("*".join(axis) for axis in CANONICAL[name]))
    for name in CFG.parameter_shapes(1)
]
HEADS = {**FACTS, "n_heads": H, "n_kv_heads": K}


def test_a_tree_like_ours_is_imported_as_it_is(tmp_path):
    params = random_params()
    by = write_map(tmp_path / "own.toml", OWN, facts=HEADS)
    ours, meta = imported(save(tmp_path / "their", params), tmp_path / "our", by)
    same(ours, params)
    assert meta["source"] | {"facts": None} == {
        "format": "orbax", "from": str(tmp_path / "their"), "architecture": f"map {by}",
        "dtype": "float32", "facts": None,
    }  # fmt: skip


def per_block(params, cfg):
    """nanodo's names, for a Llama: a subtree for each layer, heads as an axis."""
    shapes = {
        "attn_norm/scale": ("attention_norm", (D,)), "attn/query/kernel": ("query", (D, H, C)),
        "attn/key/kernel": ("key", (D, K, C)), "attn/value/kernel": ("value", (D, K, C)),
        "attn/out/kernel": ("output", (H, C, D)), "mlp_norm/scale": ("mlp_norm", (D,)),
        "mlp/gate/kernel": ("gate", (D, F)), "mlp/up/kernel": ("up", (D, F)),
        "mlp/down/kernel": ("down", (F, D)),
    }  # fmt: skip
    tree = {"embed/embedding": params["embed"], "out_norm/scale": params["final_norm"]}
    if not cfg.tie_embeddings:
        tree["head/kernel"] = params["head"]
    for name, (leaf, shape) in shapes.items():
        for i in range(U):
            tree[f"blocks_{i}/{name}"] = params[f"layers/{leaf}"][i].reshape(shape)
    return {f"params/{name}": x for name, x in tree.items()}


def test_blocks_in_bfloat16_and_a_state_with_an_optimizer(tmp_path, capsys):
    cfg = dataclasses.replace(CFG, dtype="bfloat16", rope_theta=5e5)
    params = {k: v.astype(ml_dtypes.bfloat16) for k, v in random_params(cfg).items()}
    theirs = per_block(params, cfg)
    moments = {f"opt_state/0/mu/{name}": x for name, x in theirs.items()}
    with ocp.CheckpointManager(tmp_path / "their") as manager:
        for step in (3, 7):
            state = nested({**theirs, **moments, "step": np.int32(step)})
            manager.save(step, args=ocp.args.StandardSave(state))
    settings = {"seq_len": 64, "norm_eps": 1e-5, "rope_theta": 500_000}
    ours, meta = imported(f"{tmp_path / 'their'}@3", tmp_path / "our", "blocks", **settings)
    same(ours, params)
    assert model_of(meta) == cfg and meta["source"]["from"] == str(tmp_path / "their" / "3")
    flags = [f"{name}={value}" for name, value in settings.items()]
    argv = [tmp_path / "their", tmp_path / "new", "--map", "blocks", "--set", *flags, "--dry-run"]
    assert cli.main(["import-orbax", *map(str, argv)]) == 0
    assert not (tmp_path / "new").exists()
    rows = [re.split("  +", line) for line in capsys.readouterr().out.splitlines()]
    assert [f"{tmp_path / 'their' / '7'}, below params"] in rows
    query = ["blocks_*/attn/query/kernel", "16x6x4", "D H C", "layers/query", "3x16x24"]
    assert query in rows
    size = 2 * sum(x.size for x in params.values()) + 4
    says = f"opt_state/0/..., step ({len(moments) + 1} arrays, {size:,} bytes)"
    assert ["left out:", says] in rows


def joined(how, params):
    """(the tree with several parameters in one array, its rules)."""
    q, k, v = (params[f"layers/{name}"].reshape(U, D, -1, C) for name in ("query", "key", "value"))
    gate, up = params["layers/gate"], params["layers/up"]
    qkv, mlp = ["layers/query", "layers/key", "layers/value"], ["layers/gate", "layers/up"]
    if how == "side by side":
        arrays = {
            "qkv": np.concatenate([x.reshape(U, D, -1) for x in (q, k, v)], -1),
            "wi": np.concatenate([gate, up], -1),
        }
        axes = "D (H+K+K)*C", "D 2*F"
    elif how == "by group":  # each key/value head after its queries
        q_by_K = q.reshape(U, D, K, H // K, C)
        arrays = {
            "qkv": np.concatenate([q_by_K, k[:, :, :, None], v[:, :, :, None]], 3),
            "wi": np.stack([gate, up], -1),
        }
        axes = "D K G+1+1 C", "D F 2"
    else:  # [out, in], as PyTorch has it
        arrays = {
            "qkv": np.concatenate([x.reshape(U, D, -1) for x in (q, k, v)], -1).swapaxes(1, 2),
            "wi": np.stack([gate, up], -1).reshape(U, D, -1).swapaxes(1, 2),
        }
        axes = "H*C+K*C+K*C D", "F*2 D"
    rules = [rule for rule in OWN if rule[1] not in qkv + mlp]
    rules += [("layers/qkv", qkv, axes[0]), ("layers/wi", mlp, axes[1])]
    rest = {name: x for name, x in params.items() if name not in qkv + mlp}
    return rest | {f"layers/{name}": x for name, x in arrays.items()}, rules


@pytest.mark.parametrize("how", ["side by side", "by group", "out first"])
def test_joined_arrays_are_taken_apart(how, tmp_path):
    params = random_params()
    theirs, rules = joined(how, params)
    facts = FACTS if how == "by group" else HEADS
    by = write_map(tmp_path / "map.toml", rules, facts=facts)
    ours, _ = imported(save(tmp_path / "their", theirs), tmp_path / "our", by)
    same(ours, params)


@pytest.mark.parametrize("block", [1, 100])
def test_blocks_of_any_size_give_the_same(block, tmp_path, monkeypatch):
    cfg = dataclasses.replace(CFG, tie_embeddings=False)
    params = random_params(cfg)
    tree = maxtext(params, cfg, pairs="interleaved")
    monkeypatch.setattr(checkpoint, "PIECE", 512)
    monkeypatch.setattr("loopjax.interop.import_orbax.BLOCK", block)
    for name, how in (("small", {"chunk_byte_size": 512}), ("whole", {})):
        source = save(tmp_path / name, tree, **how)
        ours, _ = imported(source, tmp_path / f"our {name}", "maxtext", rope_pairs="interleaved")
        same(ours, params)
    theirs, rules = joined("by group", params)
    by = write_map(tmp_path / "map.toml", [*rules, ("head", "head", "D V")])
    source = save(tmp_path / "joined", theirs, chunk_byte_size=512)
    same(imported(source, tmp_path / "our joined", by)[0], params)


@pytest.mark.parametrize("scan", [1, None], ids=["stacked", "layer by layer"])
def test_any_block_is_that_part_of_the_whole(scan, tmp_path):
    """Also one that begins in the middle of a head."""
    cfg = dataclasses.replace(CFG, qk_norm=True)
    tree = maxtext(random_params(cfg), cfg, scan, pairs="interleaved", qwen=True)
    settings = {"rope_pairs": "interleaved", "norm_offset": "1"}
    match = plan_import(save(tmp_path / "their", tree), "maxtext-qwen", settings)
    random = np.random.default_rng(0)
    for source in match.sources.values():
        whole = converted(source, tuple(slice(0, n) for n in source.shape))
        for _ in range(20):
            ends = [sorted(random.choice(n + 1, 2, replace=False)) for n in source.shape]
            cut = tuple(slice(int(low), int(high)) for low, high in ends)
            np.testing.assert_array_equal(converted(source, cut), whole[cut])


@pytest.mark.parametrize(
    ("chunk", "ours", "axis", "n"),
    [
        ((8, U, F), (1, 4, F), 1, 2),  # chunks of some rows of all layers: in the same rows
        ((D, 1, F), (1, D, F), 0, 3),  # chunks of a layer: layer by layer
        ((D, U, F), (1, D, F), 0, 1),  # one chunk: all at once, since all is decoded anyway
        ((D, U, 8), (1, D, 8), 2, 3),  # chunks of some columns: in the same columns
    ],
)
def test_blocks_are_cut_where_each_foreign_chunk_is_decoded_once(chunk, ours, axis, n):
    layout = Layout.parse("D F", ("layers/up",)).stacked(1)
    array = types.SimpleNamespace(shape=(D, U, F), chunk=chunk)
    sizes, axes = {"layers": U, "D": D, "F": F}, (("layers",), ("D",), ("F",))
    piece = Piece(array, layout, 0, "up")
    source = Source("layers/up", (U, D, F), (piece,), axes, sizes, 0.0, 1.0, False)
    found = cuts(source, ours, math.prod(chunk) // 2)
    assert len(found) == n
    assert {i for cut in found for i, s in enumerate(cut) if s != slice(0, (U, D, F)[i])} <= {axis}


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_scales_of_the_foreign_model_become_factors_of_weights(tied, tmp_path, capsys):
    """A model as here, but for norms of 1 + scale, and scales of embeddings, branches and logits."""
    cfg = dataclasses.replace(CFG, tie_embeddings=tied)
    theirs = random_params(cfg)
    rules = [*OWN, ("head", "head", "D V")]
    facts = HEADS | {
        "norm_offset": 1.0, "embedding_scale": "sqrt(D)", "residual_scale": 0.5, "logits_scale": "1/3",
        "attention_scale": 0.25,
    }  # fmt: skip
    by = write_map(tmp_path / "map.toml", rules, facts=facts)
    ours, _ = imported(save(tmp_path / "their", theirs), tmp_path / "our", by)
    third = np.float32(1 / 3) if not tied else np.float32(1 / 12)
    expected = {
        **theirs,
        **{k: 1 + theirs[k] for k in ("layers/attention_norm", "layers/mlp_norm")},
        "embed": 4 * theirs["embed"],
        "layers/query": theirs["layers/query"] / 2,
        "layers/output": theirs["layers/output"] / 2,
        "layers/down": theirs["layers/down"] / 2,
    }
    norm = ours.pop("final_norm")
    np.testing.assert_allclose(norm, (1 + expected.pop("final_norm")) * third, rtol=1e-6)
    same(ours, expected)
    number = "0.333333" if not tied else "0.0833333"
    assert (
        f"final_norm is multiplied by {number}, and rounded to float32\n" == capsys.readouterr().err
    )


def test_float16_is_computed_in_float32(tmp_path, capsys):
    params = {name: x.astype(np.float16) for name, x in random_params().items()}
    by = write_map(tmp_path / "map.toml", OWN, facts=HEADS)
    ours, meta = imported(save(tmp_path / "their", params), tmp_path / "our", by)
    same(ours, params)
    assert (meta["model"]["dtype"], meta["source"]["dtype"]) == ("float32", "float16")
    assert capsys.readouterr().err == "the arrays have dtype float16; computing in float32\n"


def test_rows_that_pad_a_vocabulary_are_left_out(tmp_path, capsys):
    cfg = dataclasses.replace(CFG, tie_embeddings=False)
    params = random_params(cfg)
    source = save(tmp_path / "their", maxtext(params, cfg))
    ours, meta = imported(source, tmp_path / "our", "maxtext", vocab_size=17, sliding_window=8)
    same(ours, {**params, "embed": params["embed"][:17], "head": params["head"][:, :17]})
    assert model_of(meta).vocab_size == 17 and meta["config"]["seq_len"] == 8
    assert capsys.readouterr().err.splitlines() == [
        "the last 3 of 20 rows of the vocabulary are left out",
        "attention slides over 8 tokens, so the context is 8 tokens and not 2048",
    ]


# Mistakes


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A directory with the checkpoint of a tree like ours, and the map that it fits."""
    place = tmp_path_factory.mktemp("sound")
    save(place / "their", random_params())
    write_map(place / "map.toml", OWN, facts=HEADS)
    return place


def with_rules(**changes):
    """The rules of a tree like ours with some replaced, by the parameter; None leaves one out."""
    rules = {to: (path, to, axes) for path, to, axes in OWN}
    rules |= {
        f"layers/{name}" if f"layers/{name}" in rules else name: x for name, x in changes.items()
    }
    return [rule for rule in rules.values() if rule]


UP = ("layers/up", "layers/up", "D F")
MAPS = [
    ("an array is left over", {"rules": with_rules(up=None)}, "--map MAP has no rule for layers/up of THEIR; add rules, or patterns to 'ignore' if a model here does not need them"),
    ("a parameter is left over", {"rules": with_rules(up=None), "ignore": ["layers/up"]}, "--map MAP: nothing fills layers/up"),
    ("an array is taken twice", {"rules": [*OWN, ("layers/u.", "layers/gate", "D F")]}, "--map MAP: two rules take layers/up: 'layers/up' and 'layers/u.'"),
    ("a parameter is filled twice", {"rules": with_rules(up=("layers/up", "layers/gate", "D F"))}, "--map MAP: layers/gate and layers/up both fill layers/gate"),
    ("no array", {"rules": [("a", "embed", "V D")]}, "--map MAP takes no array of THEIR, which has embed, final_norm, layers/attention_norm, layers/down, layers/gate and 6 more"),
    ("transposed", {"rules": with_rules(up=("layers/up", "layers/up", "F D"))}, "layers/up has shape 3x16x24, which does not fit its axes 'layers F D': 16 cannot be F, where F is 24 by layers/down"),
    ("an axis too many", {"rules": with_rules(up=("layers/up", "layers/up", "D F 1"))}, "layers/up has shape 3x16x24, but its rule has 4 axes: layers D F 1"),
    ("no number of heads", {"facts": FACTS}, "the shapes leave head_dim open (C in 'layers D K*C', layers/key of 3x16x8); state model.head_dim in the map, or with --set"),
    ("another number of heads", {"facts": HEADS | {"n_kv_heads": 3}}, "layers/key has shape 3x16x8, which does not fit its axes 'layers D K*C': 8 cannot be K*C, where K is 3 by model.n_kv_heads"),
    ("another width", {"facts": HEADS | {"d_model": 8}}, "embed has shape 20x16, which does not fit its axes 'V D': 16 cannot be D, where D is 8 by model.d_model"),
    ("another number of layers", {"facts": HEADS | {"n_layers": 4}}, "layers/attention_norm has shape 3x16, which does not fit its axes 'layers D': 3 cannot be layers, where layers is 4 by model.n_layers"),
    ("layers along another axis", {"layers_axis": 1}, "layers/attention_norm has shape 3x16, which does not fit its axes 'D layers': 3 cannot be D, where D is 16 by embed"),
    ("a vocabulary of more rows", {"facts": HEADS | {"vocab_size": 21}}, "--map MAP: model.vocab_size=21, but the embedding has 20 rows"),
    ("an unknown parameter", {"rules": [("a", "layers/quary", "D H C")]}, "--map MAP: rule 1: to='layers/quary' must be one of embed, layers/attention_norm, layers/query, layers/key, layers/value, layers/query_bias, layers/key_bias, layers/value_bias, layers/query_norm, layers/key_norm, layers/output, layers/mlp_norm, layers/gate, layers/up, layers/down, final_norm, head"),
    ("an unknown axis", {"rules": [("a", "layers/up", "D X")]}, "--map MAP: rule 1: axes has 'X'; names are V, D, F, H, K, C, G, and 1"),
    ("axes that are none", {"rules": [("a", "layers/up", "D (F")]}, "--map MAP: rule 1: axes has '(F'; write names of axes joined by * and +, like (H+K+K)*C"),
    ("axes of another parameter", {"rules": [("a", "layers/up", "D H C")]}, "--map MAP: rule 1: axes 'D H C' gives layers/up the axes D H C; it has D F"),
    ("two parameters side by side", {"rules": [("a", ["layers/up", "layers/gate"], "D F")]}, "--map MAP: rule 1: axes 'D F' must join its 2 parameters once, by a sum such as H+K+K or by the number 2"),
    ("three of two parameters", {"rules": [("a", ["layers/up", "layers/gate"], "D F+F+F")]}, "--map MAP: rule 1: axes 'D F+F+F' joins 3 arrays, but 'to' has 2"),
    ("three times two parameters", {"rules": [("a", ["layers/up", "layers/gate"], "D 3 F")]}, "--map MAP: rule 1: axes has 3, which must be the number of parameters, 2"),
    ("no regular expression", {"rules": [("layers/(", "layers/up", "D F")]}, "--map MAP: rule 1: path='layers/(' is not a regular expression: missing ), unterminated subpattern at position 7"),
    ("nothing to ignore", {"ignore": ["*"]}, "--map MAP: ignore='*' is not a regular expression: nothing to repeat at position 0"),
    ("a layer outside", {"rules": [("(?P<layer>.*)", "embed", "V D")]}, "--map MAP: rule 1: path has a group 'layer', but embed is not of a layer"),
    ("a layer that is no number", {"rules": with_rules(up=("layers/(?P<layer>up)", "layers/up", "D F"))}, "--map MAP: the group 'layer' of 'layers/(?P<layer>up)' is 'up' in layers/up; it must be a number"),
    ("an unknown fact", {"facts": HEADS | {"rope_tehta": 1}}, "--map MAP: model.rope_tehta does not exist; did you mean model.rope_theta?"),
    ("an unknown key", {"ingore": []}, "--map MAP: ingore does not exist; did you mean ignore?"),
    ("a missing fact", {"facts": {"norm": "rms", "positions": "rope", "norm_eps": 1e-5, "seq_len": 8}}, "--map MAP does not state model.activation, model.rope_theta, which no array shows; add it to the map, or use --set"),
    ("another activation", {"facts": HEADS | {"activation": "gelu", "norm": "layer"}}, "--map MAP is of a model with norm='layer', activation='gelu'; a model here has norm='rms', activation='silu', so it cannot be imported"),
    ("capped logits", {"facts": HEADS | {"logits_softcap": 30.0}}, "--map MAP is of a model with logits_softcap=30.0; a model here has logits_softcap=0, so it cannot be imported"),
    ("other pairs", {"facts": HEADS | {"rope_pairs": "adjacent"}}, "--map MAP is of a model with rope_pairs='adjacent'; a model here has rope_pairs='half' or 'interleaved', so it cannot be imported"),
    ("a word for a number", {"facts": HEADS | {"rope_theta": "large"}}, "--map MAP: model.rope_theta='large' must be a positive number"),
    ("half a token", {"facts": HEADS | {"seq_len": 1.5}}, "--map MAP: model.seq_len=1.5 must be a whole number of at least 1"),
    ("no scale", {"facts": HEADS | {"logits_scale": "sqrt(E)"}}, "--map MAP: model.logits_scale='sqrt(E)' must be a positive number, or a text such as 'sqrt(D)' or '1/sqrt(C)' of a size"),
    ("no type", {"facts": HEADS | {"dtype": 8}}, "--map MAP: model.dtype=8 must be text"),
    ("another type", {"facts": HEADS | {"dtype": "bf16"}}, "--map MAP and THEIR describe no model: model.dtype='bf16' must be one of float32, bfloat16"),
    ("no scaling", {"facts": HEADS | {"rope_scaling": "yarn:4"}}, "--map MAP and THEIR describe no model: model.rope_scaling='yarn:4' must be empty or llama3:FACTOR:LOW:HIGH:ORIGINAL, like llama3:8:1:4:8192"),
    ("no axis of layers", {"layers_axis": -1}, "--map MAP: layers_axis=-1 must be a whole number within 0..8"),
    ("a base that is itself", {"base": "map.toml"}, "--map PLACE/map.toml is based on itself, or on more than 8 maps"),
    ("a base that is missing", {"base": "none.toml"}, "--map PLACE/none.toml is none of blocks, maxtext, maxtext-qwen, nanodo and cannot be read: No such file or directory"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "says"), [r[1:] for r in MAPS], ids=[r[0] for r in MAPS])
def test_a_map_with_a_mistake(changes, says, sound, tmp_path, said):
    by = write_map(tmp_path / "map.toml", **{"rules": OWN, "facts": HEADS, **changes})
    told = said(sound / "their", tmp_path / "new", "--map", by)
    told = told.replace(str(by), "MAP" if "base" not in changes else "PLACE/map.toml")
    assert told.replace(str(sound / "their"), "THEIR").replace(str(tmp_path), "PLACE") == says
    assert [path.name for path in tmp_path.iterdir()] == ["map.toml"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("model", "--map MAP is not TOML: Expected '=' after a key in a key/value pair (at end of document)"),
        ("rules = 3", "--map MAP: rules must be a list of tables, [[rules]]"),
        ("rules = [3]", "--map MAP: rule 1 must be a table with path, to and axes"),
        ("[[rules]]\npath = 'a'\nto = 'embed'", "--map MAP: rule 1 has no axes"),
        ("[[rules]]\npath = 3\nto = 'embed'\naxes = 'V D'", "--map MAP: rule 1: path=3 is not a regular expression: first argument must be string or compiled pattern"),
        ("[[rules]]\npath = 'a'\nto = []\naxes = 'V D'", "--map MAP: rule 1: to=[] must be a parameter, or a list of them"),
        ("[[rules]]\npath = 'a'\nto = 'embed'\naxes = 3", "--map MAP: rule 1: axes=3 must be text such as 'D H C'"),
        ("[[rules]]\npath = 'a'\nto = 'embed'\naxis = ''", "--map MAP: rule 1: axis does not exist; did you mean axes?"),
        ("[[rules]]\npath = 'a'\nto = ['embed', 'layers/up']\naxes = 'V D'", "--map MAP: rule 1: to has parameters of layers and others; use two rules"),
        ("ignore = 'a'", "--map MAP: ignore='a' must be a list of patterns"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_map(text, says, sound, tmp_path, said):
    by = tmp_path / "map.toml"
    facts = (sound / "map.toml").read_text().split("[model]")[1].split("[[rules]]")[0]
    by.write_text(f"{text}\n[model]{facts}" if text.startswith("ignore") else text)
    told = said(sound / "their", tmp_path / "new", "--map", by)
    assert told.replace(str(by), "MAP") == says


def test_trees_with_a_mistake(sound, tmp_path, said):
    by, params = sound / "map.toml", random_params()
    nan = {**params, "layers/up": params["layers/up"].copy()}
    nan["layers/up"][1, 2, :3] = np.nan, np.inf, -np.inf
    assert said(save(tmp_path / "nan", nan), tmp_path / "new", "--map", by) == (
        "layers/up has 3 of 1,152 values that are NaN or infinite; the model is damaged"
    )
    huge = {**params, "embed": np.full_like(params["embed"], 1e38)}
    assert (
        said(
            save(tmp_path / "huge", huge),
            tmp_path / "new",
            "--map",
            by,
            "--set",
            "embedding_scale=4",
        )
        == "embed has values that are infinite after a factor of 4"
    )
    whole = {**params, "layers/up": params["layers/up"].astype(np.int32)}
    assert said(save(tmp_path / "int", whole), tmp_path / "new", "--map", by) == (
        "layers/up has the type int32; supported are float32, bfloat16, float16"
    )
    blocks = per_block(params, CFG)
    facts = ["--map", "blocks", "--set", "rope_theta=1e4", "norm_eps=1e-5", "seq_len=8"]
    gap = {name: x for name, x in blocks.items() if name != "params/blocks_1/mlp/up/kernel"}
    assert said(save(tmp_path / "gap", gap), tmp_path / "new", *facts) == (
        "layers/up is missing in layer 1 of 3, numbered 0 to 2"
    )
    stacked = {**blocks, "blocks_0/mlp/up/kernel": params["layers/up"][0]}
    assert said(save(tmp_path / "two", stacked), tmp_path / "new", *facts) == (
        "--map blocks: blocks_0/mlp/up/kernel and params/blocks_0/mlp/up/kernel both fill layers/up"
    )
    assert said(save(tmp_path / "four", blocks), tmp_path / "new", *facts, "n_layers=4") == (
        f"--map blocks: model.n_layers=4, but {tmp_path}/four has 3 layers"
    )
    group = {**blocks, "blocks_3/q": params["layers/query"][0].reshape(D, K, H // K, C)}
    group |= {k.replace("blocks_0", "blocks_3"): x for k, x in blocks.items() if "blocks_0" in k}
    del group["params/blocks_3/attn/query/kernel"]
    (tmp_path / "mixed.toml").write_text(
        "base = 'blocks'\n[[rules]]\npath = 'blocks_(?P<layer>3)/q'\nto = 'layers/query'\n"
        "axes = 'D K G C'"
    )
    mixed = ["--map", tmp_path / "mixed.toml", *facts[2:]]
    assert said(save(tmp_path / "group", group), tmp_path / "new", *mixed) == (
        "params/blocks_0/attn/query/kernel and blocks_3/q have heads as H and as K and G; use the same "
        "names"
    )
    half = {**params, "layers/query_norm": np.ones((U, C), np.float32)}
    with_norm = write_map(
        tmp_path / "norm.toml", [*OWN, ("layers/query_norm", "layers/query_norm", "C")], facts=HEADS
    )
    assert said(save(tmp_path / "half", half), tmp_path / "new", "--map", with_norm) == (
        f"--map {with_norm}: nothing fills layers/key_norm"
    )
    assert not (tmp_path / "new").exists()


def test_only_damage_of_what_is_needed_matters(sound, tmp_path, said):
    params = random_params()
    files = {"opt_state/0/mu/embed": params["embed"], **params}
    source = tmp_path / "their"
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False)) as checkpointer:
        checkpointer.save(source, args=ocp.args.PyTreeSave(nested(files)))
    shutil.rmtree(source / "opt_state.0.mu.embed")
    same(imported(source, tmp_path / "our", sound / "map.toml")[0], params)
    shutil.rmtree(source / "layers.up")
    assert said(source, tmp_path / "new", "--map", sound / "map.toml") == (
        f"checkpoint {source} is damaged (layers/up: the array is missing); 10 other arrays can be "
        "read"
    )


def test_nanodo_is_refused_with_what_differs(sound, tmp_path, said):
    assert said(sound / "their", tmp_path / "new", "--map", "nanodo") == (
        "--map nanodo is of a model with norm='layer', positions='learned', activation='gelu'; a model "
        "here has norm='rms', positions='rope', activation='silu', so it cannot be imported"
    )


def test_command_lines_with_a_mistake(sound, tmp_path, said):
    their, by = sound / "their", ["--map", sound / "map.toml"]
    assert said(their, tmp_path / "new", "--map", "blocks") == (
        "--map blocks does not state model.rope_theta, model.norm_eps, model.seq_len, which no array "
        "shows; add it to the map, or use --set"
    )
    assert said(their, tmp_path / "new", *by, "--set", "rope_theta") == (
        "--set 'rope_theta' must be KEY=VALUE, like rope_theta=500000"
    )
    assert said(tmp_path / "none", tmp_path / "new", *by) == (
        f"{tmp_path}/none is not a directory of checkpoints"
    )
    assert said(their, sound, *by) == f"{sound} is not empty; choose a new directory"
    assert said(their, tmp_path / "new", *by, "--tokenizer", "bytes") == (
        "--tokenizer bytes has 257 tokens, the model only 20"
    )
    assert said(their, tmp_path / "new", *by, "--tokenizer", sound) == (
        f"--tokenizer {str(sound)!r} must be 'bytes', a tokenizer.json, or a directory with one"
    )
    assert said(their, tmp_path / "new", "--map", "gs://maps/a.toml").startswith(
        "--map 'gs://maps/a.toml' is a URL"
    )
    assert list(tmp_path.iterdir()) == []


# Afterwards


@pytest.fixture(scope="module")
def bytes_model(tmp_path_factory):
    """A run's directory with an import of a model that reads bytes."""
    place = tmp_path_factory.mktemp("bytes")
    cfg = dataclasses.replace(CFG, vocab_size=264)
    argv = [save(place / "their", maxtext(random_params(cfg), cfg)), place / "our"]
    flags = ["--map", "maxtext", "--set", "seq_len=64", "--tokenizer", "bytes"]
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert cli.main(["import-orbax", *map(str, argv), *flags]) == 0
    return place / "our", out.getvalue()


def test_an_import_says_what_it_is(bytes_model):
    ours, out = bytes_model
    assert out.splitlines() == [
        f"{ours}: 3 layers, context 64, by map maxtext, from float32",
        "by the shapes: n_layers=3 d_model=16 d_ff=24 n_heads=6 n_kv_heads=2 head_dim=4 vocab_size=264 "
        "tie_embeddings=true",
        "by the map:    norm=rms positions=rope activation=silu rope_theta=10000.0 norm_eps=1e-05 "
        "seq_len=64 rope_pairs=half attention_scale=1 tied_logits_scale=1/sqrt(D)",
    ]
    found = numbers.inspect(ours)
    shown = terminal.render(found, layers=False, color=False)
    assert f"imported from {ours.with_name('their')} (map maxtext, float32)" in shown
    assert found["checkpoint"]["source"]["facts"]["tied_logits_scale"] == "1/sqrt(D)"


@pytest.mark.slow
def test_an_import_is_measured_sampled_and_grown(bytes_model, tmp_path):
    ours = str(bytes_model[0])
    rows = nll.measure(ours, mixture={"hop_text_1": 1.0}, batches=1, say=lambda text: None)["rows"]
    assert math.isfinite(rows[0]["nll"])
    argv = ["generate", "--checkpoint", ours, "--prompt", "a", "--max-new-tokens", "2"]
    assert cli.main([*argv, "--depth", "1-1x2-1"]) == 0

    config = tiny_run()
    config.model.update(vocab_size=264, n_heads=6, n_kv_heads=2, head_dim=4)
    config.update(init_from=ours, init="weights", init_operator="lidas", depth="4", steps=4)
    config.growth.update(operator="", block=1)
    config.seq_len, config.mixture, config.cooldown.mixture = 64, {"hop_text_1": 1.0}, {}
    result = train(config, tmp_path / "grown")
    assert math.isfinite(result["heldout"]["nll"])
    _, meta = checkpoint.load_params(tmp_path / "grown")
    events = [(event["operator"], event["plan"]) for event in meta["lineage"]]
    assert events == [("import", "3"), ("lidas", "4")]


def test_a_tokenizer_comes_along(sound, tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"model": {}}')
    (tmp_path / "tokenizer_config.json").write_text("{}")
    for i, given in enumerate((tmp_path, tmp_path / "tokenizer.json")):
        planned = plan_import(sound / "their", str(sound / "map.toml"))
        meta = import_orbax(planned, tmp_path / f"our {i}", str(given))
        assert meta["tokenizer"].startswith("sha256:")
        names = {path.name for path in (tmp_path / f"our {i}").iterdir()}
        assert names == {"checkpoints", "tokenizer.json", "tokenizer_config.json"}


MEASURED = """
import resource, sys
import jax
from loopjax.cli import main as cli
from loopjax.interop import import_orbax
jax.config.update("jax_platforms", "cpu")
jax.devices()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert cli.main(sys.argv[1:]) == 0
print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""


@pytest.mark.slow
def test_it_takes_less_memory_than_the_model(tmp_path):
    U, V, D, F, H, K, C = 16, 2**14, 1024, 4096, 16, 4, 64
    shapes = {
        "token_embedder/embedding": (V, D), "decoder/decoder_norm/scale": (D,),
        "decoder/layers/pre_self_attention_layer_norm/scale": (D, U),
        "decoder/layers/post_self_attention_layer_norm/scale": (D, U),
        "decoder/layers/self_attention/query/kernel": (D, U, H, C),
        "decoder/layers/self_attention/key/kernel": (D, U, K, C),
        "decoder/layers/self_attention/value/kernel": (D, U, K, C),
        "decoder/layers/self_attention/out/kernel": (H, U, C, D),
        "decoder/layers/mlp/wi_0/kernel": (D, U, F), "decoder/layers/mlp/wi_1/kernel": (D, U, F),
        "decoder/layers/mlp/wo/kernel": (F, U, D),
    }  # fmt: skip
    zeros = {name: np.zeros(shape, ml_dtypes.bfloat16) for name, shape in shapes.items()}
    zeros = {f"params/params/{name}": x for name, x in zeros.items()}
    save(tmp_path / "their", zeros, chunk_byte_size=2**24)
    flags = ["their", "our", "--map", "maxtext", "--set", "rope_pairs=interleaved"]
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, "import-orbax", *flags], cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    taken = int(done.stdout.splitlines()[-1])
    assert taken < 0.75 * 4 * sum(map(math.prod, shapes.values()))


# The documentation


def test_the_example_of_the_documentation_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "conversion.md").read_text()
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", page, re.S | re.M)
    [program] = [text for language, text in fenced if language == "python"]
    [by] = [text for language, text in fenced if language == "toml" and "[[rules]]" in text]
    [lines] = [text for language, text in fenced if not language and "other.toml" in text]
    names = {}
    exec(program, names)
    pathlib.Path("other.toml").write_text(by)
    for line in lines.splitlines():
        assert cli.main(shlex.split(line)[1:]) == 0
    params, meta = checkpoint.load_params("checkpoints/other")
    qkv = names["tree"]["block_1"]["attn"]["qkv"]
    np.testing.assert_array_equal(params["layers"]["value"][1], qkv[:, 6:8].reshape(32, 16))
    np.testing.assert_array_equal(
        params["layers"]["mlp_norm"][0], 1 + names["tree"]["block_0"]["mlp"]["norm"]
    )
    assert (meta["plan"], meta["tokenizer"]) == ("2", "bytes")


def test_the_documentation_has_every_fact_and_map():
    page = (ROOT / "docs" / "conversion.md").read_text()
    for name in (*tree_map.FACTS, *tree_map.NAMES, *CANONICAL):
        assert f"`{name}`" in page, name
