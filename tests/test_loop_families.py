"""Ouro and Huginn: imported, they compute what NumPy does from their tensors, also while decoding."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from loopjax import checkpoint, flops, loop, model
from loopjax.cli import main as cli
from loopjax.depth import DepthPlan
from loopjax.errors import UserError
from loopjax.interop import architectures, step_zero
from loopjax.interop.export_hf import export_hf
from loopjax.interop.import_hf import import_hf
from loopjax.lm import decode
from loopjax.lm.loaded_model import open_model
from loopjax.loop_config import LoopConfig
from loopjax.model_config import ModelConfig

safetensors = pytest.importorskip("safetensors.numpy")
V, D, F, H = 264, 24, 36, 3
OURO = {
    "architectures": ["OuroForCausalLM"], "model_type": "ouro", "vocab_size": V, "hidden_size": D,
    "intermediate_size": F, "num_hidden_layers": 2, "num_attention_heads": H, "num_key_value_heads": H,
    "hidden_act": "silu", "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
    "tie_word_embeddings": False, "total_ut_steps": 3, "early_exit_threshold": 1.0,
    "sliding_window": None, "use_sliding_window": False, "layer_types": ["full_attention"] * 2,
    "auto_map": {"AutoModelForCausalLM": "modeling_ouro.OuroForCausalLM"}, "dtype": "float32",
}  # fmt: skip
HUGINN = {
    "architectures": ["RavenForCausalLM"], "model_type": "huginn_raven", "vocab_size": V, "n_embd": D,
    "intermediate_size": F, "n_heads": H, "n_layers": 4, "n_layers_in_prelude": 1,
    "n_layers_in_recurrent_block": 2, "n_layers_in_coda": 1, "mean_recurrence": 3, "block_size": 64,
    "norm_eps": 1e-6, "rope_base": 50_000, "qk_bias": True, "bias": False, "injection_type": "linear",
    "tie_embeddings": True, "block_class_name": "SandwichBlock", "torch_dtype": "float32",
}  # fmt: skip


def ouro_tensors(random):
    found = {
        "model.embed_tokens.weight": (V, D),
        "lm_head.weight": (V, D),
        "model.norm.weight": (D,),
    }
    found |= {"model.early_exit_gate.weight": (1, D), "model.early_exit_gate.bias": (1,)}
    for i in range(2):
        at = f"model.layers.{i}."
        found |= {f"{at}self_attn.{name}_proj.weight": (D, D) for name in "qkvo"}
        found |= {f"{at}mlp.{name}_proj.weight": (F, D) for name in ("gate", "up")}
        found[f"{at}mlp.down_proj.weight"] = (D, F)
        for name in ("input_layernorm", "post_attention_layernorm"):
            found |= {f"{at}{name}{suffix}.weight": (D,) for suffix in ("", "_2")}
    return filled(found, random)


def huginn_tensors(random):
    found = {"wte.weight": (V, D), "ln_f.weight": (D,), "adapter.weight": (D, 2 * D)}
    for part, n in (("prelude", 1), ("core_block", 2), ("coda", 1)):
        for i in range(n):
            at = f"{part}.{i}."
            found |= {f"{at}norm_{k}.weight": (D,) for k in (1, 2, 3, 4)}
            found |= {f"{at}attn.Wqkv.weight": (3 * D, D), f"{at}attn.qk_bias": (2, 1, H, D // H)}
            found |= {f"{at}attn.proj.weight": (D, D), f"{at}mlp.fc.weight": (2 * F, D)}
            found[f"{at}mlp.proj.weight"] = (D, F)
    return filled({f"transformer.{name}": shape for name, shape in found.items()}, random)


def filled(shapes, random):
    def values(name, shape):
        normal = random.standard_normal(shape).astype(np.float32)
        return 1 + 0.2 * normal if "norm" in name or "ln_f" in name else 0.15 * normal

    return {name: values(name, shape) for name, shape in shapes.items()}


# The families in NumPy, by their own tensors.


def rms(x, scale):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * scale


def silu(x):
    return x / (1 + np.exp(-x))


def attend(q, k, v):
    """Causal attention of one text, [T, H, C] each."""
    scores = np.einsum("thc,shc->hts", q, k) / np.sqrt(q.shape[-1])
    scores = np.where(np.tril(np.ones(scores.shape[1:], bool)), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("hts,shc->thc", weights / weights.sum(-1, keepdims=True), v).reshape(
        len(q), -1
    )


def angles(T, theta):
    return np.arange(T)[:, None] * theta ** (-np.arange(0, D // H, 2) / (D // H))


def ouro_logits(tensors, tokens):
    return ouro_states(tensors, tokens)[-1] @ tensors["lm_head.weight"].T


def ouro_states(tensors, tokens):
    """The normed state after each repetition, of which head and gate read one."""
    states = []
    angle = angles(len(tokens), 1e6)[:, None]

    def rotated(x):
        a, b = np.split(x, 2, axis=-1)
        cos, sin = np.cos(angle), np.sin(angle)
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

    x = tensors["model.embed_tokens.weight"][tokens]
    for _ in range(3):
        for i in range(2):
            w = {
                name.removeprefix(f"model.layers.{i}.").removesuffix(".weight"): value
                for name, value in tensors.items()
            }
            h = rms(x, w["input_layernorm"])
            q, k, v = ((h @ w[f"self_attn.{n}_proj"].T).reshape(-1, H, D // H) for n in "qkv")
            out = attend(rotated(q), rotated(k), v) @ w["self_attn.o_proj"].T
            x = x + rms(out, w["input_layernorm_2"])
            h = rms(x, w["post_attention_layernorm"])
            out = (silu(h @ w["mlp.gate_proj"].T) * (h @ w["mlp.up_proj"].T)) @ w["mlp.down_proj"].T
            x = x + rms(out, w["post_attention_layernorm_2"])
        x = rms(x, tensors["model.norm.weight"])
        states.append(x)
    return states


def huginn_logits(tensors, tokens, state, repeats=3):
    angle = angles(len(tokens), 50_000)[:, None]
    t = {name.removeprefix("transformer."): value for name, value in tensors.items()}

    def rotated(x):
        pairs = (x[..., 0::2] + 1j * x[..., 1::2]) * np.exp(1j * angle)
        return np.stack([pairs.real, pairs.imag], axis=-1).reshape(x.shape)

    def layer(x, at):
        qkv = (rms(x, t[f"{at}.norm_1.weight"]) @ t[f"{at}.attn.Wqkv.weight"].T).reshape(
            -1, 3, H, D // H
        )
        q, k = (rotated(qkv[:, j] + t[f"{at}.attn.qk_bias"][j]) for j in range(2))
        x = rms(
            attend(q, k, qkv[:, 2]) @ t[f"{at}.attn.proj.weight"].T + x, t[f"{at}.norm_2.weight"]
        )
        gate, up = np.split(
            rms(x, t[f"{at}.norm_3.weight"]) @ t[f"{at}.mlp.fc.weight"].T, 2, axis=-1
        )
        return rms(silu(gate) * up @ t[f"{at}.mlp.proj.weight"].T + x, t[f"{at}.norm_4.weight"])

    e = layer(t["wte.weight"][tokens] * np.sqrt(D), "prelude.0")
    for _ in range(repeats):
        state = np.concatenate([state, e], axis=-1) @ t["adapter.weight"].T
        state = layer(layer(state, "core_block.0"), "core_block.1")
    x = layer(rms(state, t["ln_f.weight"]), "coda.0")
    return rms(x, t["ln_f.weight"]) @ t["wte.weight"].T


def first_states(T):
    cfg = imported_config(HUGINN)
    return np.asarray(loop.first_state(cfg, jnp.zeros((1, T, D)), jnp.arange(T)))[0]


def imported_config(config):
    return architectures.read_config(config, "float32", 100).cfg


FAMILIES = {
    "ouro": (OURO, ouro_tensors, "2x3", ouro_logits),
    "huginn": (
        HUGINN, huginn_tensors, "1-2x3-1",
        lambda tensors, tokens: huginn_logits(tensors, tokens, first_states(len(tokens))),
    ),
}  # fmt: skip


def write(directory, config, tensors):
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    safetensors.save_file(tensors, directory / "model.safetensors")
    return directory


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    """(name, the model in NumPy, the directory of its files, the imported checkpoint)."""
    config, make, _, logits = FAMILIES[request.param]
    tensors = make(np.random.default_rng(0))
    at = tmp_path_factory.mktemp(request.param)
    source = write(at / "model", config, tensors)
    (source / "modeling_family.py").write_text("raise SystemExit('executed')\n")
    import_hf(str(source), at / "run", tokenizer=False)
    return request.param, lambda tokens: logits(tensors, tokens), source, at / "run"


def test_logits_are_those_of_the_family(family):
    name, logits, _, run = family
    params, meta = checkpoint.load_params(run)
    assert meta["plan"] == FAMILIES[name][2]
    n_layers = DepthPlan.parse(meta["plan"]).n_unique
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert flops.count_params(ModelConfig(**meta["model"]), n_layers) == count
    tokens = np.random.default_rng(1).integers(0, V, (2, 13))
    ours = model.forward(params, jnp.array(tokens), ModelConfig(**meta["model"]), meta["plan"])
    for row, text in zip(np.asarray(ours), tokens, strict=True):
        np.testing.assert_allclose(row, logits(text), atol=1e-4)


@pytest.mark.slow
def test_decoding_with_a_cache_gives_the_tokens_of_the_family(family):
    _, logits, _, run = family
    prompts = [[3, 1, 4, 1, 5, 9], [2, 7, 18]]
    made = decode.generate(open_model(str(run), tokenizer="bytes"), prompts, 6)
    for prompt, generation in zip(prompts, made, strict=True):
        text = list(prompt)
        for _ in range(6):
            text.append(int(np.argmax(logits(np.array(text))[-1])))
        assert generation.tokens == text[len(prompt) :]


def test_more_repetitions_than_trained(tmp_path):
    tensors = huginn_tensors(np.random.default_rng(0))
    import_hf(str(write(tmp_path / "model", HUGINN, tensors)), tmp_path / "run", tokenizer=False)
    params, meta = checkpoint.load_params(tmp_path / "run")
    tokens = np.arange(9)
    cfg = ModelConfig(**meta["model"])
    ours = model.forward(params, jnp.array(tokens[None]), cfg, "1-2x7-1")
    theirs = huginn_logits(tensors, tokens, first_states(9), repeats=7)
    np.testing.assert_allclose(np.asarray(ours)[0], theirs, atol=1e-4)


def test_the_export_of_an_import_is_the_same_model_to_the_bit(family, tmp_path, capsys):
    name, _, source, run = family
    config = export_hf(str(run), tmp_path / "out")
    told = capsys.readouterr().err
    before, after = (
        safetensors.load_file(at / "model.safetensors") for at in (source, tmp_path / "out")
    )
    if name == "huginn":
        assert "fetches it from tomg-group-umd/huginn-0125 with trust_remote_code=True" in told
        theirs = json.loads((source / "config.json").read_text())
        assert theirs == {key: config[key] for key in theirs}
        # The class registers the table as a buffer, so it has to be stored.
        table = after.pop("freqs_cis")
        assert table.shape == (1, 64, 1, D // H // 2, 2)
        complex_numbers = np.exp(1j * angles(64, 50_000))
        np.testing.assert_allclose(table[0, :, 0, :, 0], complex_numbers.real, atol=1e-5)
        np.testing.assert_allclose(table[0, :, 0, :, 1], complex_numbers.imag, atol=1e-5)
    else:
        assert config["num_hidden_layers"] == 2 and config["total_ut_steps"] == 3
        assert meta_of(run)["model"]["exit_gate"]
    assert before.keys() == after.keys()
    for tensor, value in before.items():
        np.testing.assert_array_equal(after[tensor], value, err_msg=tensor)
    import_hf(str(tmp_path / "out"), tmp_path / "again", tokenizer=False)
    (a, meta), (b, again) = (checkpoint.load_params(at) for at in (run, tmp_path / "again"))
    assert meta["model"] == again["model"] and meta["plan"] == again["plan"]
    jax.tree.map(np.testing.assert_array_equal, a, b)


def meta_of(run):
    return checkpoint.load_params(run)[1]


def test_the_gate_reads_what_the_family_lets_it_read(family):
    name, _, source, run = family
    if name != "ouro":
        pytest.skip("a Huginn has no gate")
    tensors = safetensors.load_file(source / "model.safetensors")
    params, meta = checkpoint.load_params(run)
    cfg, tokens = ModelConfig(**meta["model"]), np.arange(9)
    weight, bias = (tensors[f"model.early_exit_gate.{part}"] for part in ("weight", "bias"))
    for t, state in enumerate(ouro_states(tensors, tokens)[:2], 1):
        x = model.residual(params, jnp.array(tokens[None]), cfg, f"2x{t}")
        found = model.outside_stack(params, cfg, x, "exit_logits")[0]
        np.testing.assert_allclose(found, (state @ weight.T + bias)[:, 0], atol=1e-4)


GATE = ["model.early_exit_gate.weight", "model.early_exit_gate.bias"]


@pytest.mark.parametrize(
    ("changes", "tensors"),
    [
        ({}, dict.fromkeys(GATE)),  # no such tensors
        ({}, {GATE[0]: np.zeros((1, D), np.float32), GATE[1]: np.zeros(1, np.float32)}),
        ({"total_ut_steps": 1}, {}),
    ],
    ids=["none", "zeros", "one repetition"],
)
def test_without_a_gate_that_says_something_there_is_none(changes, tensors, tmp_path):
    found = ouro_tensors(np.random.default_rng(0)) | tensors
    found = {name: value for name, value in found.items() if value is not None}
    source = write(tmp_path / "model", OURO | changes, found)
    meta = import_hf(str(source), tmp_path / "run", tokenizer=False)
    assert not meta["model"]["exit_gate"]
    export_hf(str(tmp_path / "run"), tmp_path / "out")
    written = safetensors.load_file(tmp_path / "out" / "model.safetensors")
    assert written[GATE[0]].shape == (1, D) and not written[GATE[0]].any()


def test_a_gate_of_another_shape_or_without_a_bias_is_refused(tmp_path):
    found = ouro_tensors(np.random.default_rng(0))
    wide = write(tmp_path / "a", OURO, found | {GATE[0]: np.ones((2, D), np.float32)})
    with pytest.raises(UserError, match="early_exit_gate.weight has shape 2x24, but config.json"):
        import_hf(str(wide), tmp_path / "run", tokenizer=False)
    half = write(tmp_path / "b", OURO, {k: v for k, v in found.items() if k != GATE[1]})
    with pytest.raises(UserError, match="early_exit_gate.bias is missing"):
        import_hf(str(half), tmp_path / "run", tokenizer=False)


# Fields of the class RavenConfig of the family's repository that have to be in a config.json or have
# a default there.
RAVEN = {
    "n_embd", "n_heads", "n_layers", "block_size", "vocab_size", "padding_multiple", "tie_embeddings",
    "intermediate_size", "bias", "architecture_class_name", "block_class_name", "norm_class_name",
    "norm_eps", "mlp_class_name", "nonlin_name", "init_strategy", "init_orthogonal", "state_init",
    "injection_type", "n_layers_in_recurrent_block", "mean_recurrence", "sampling_scheme",
    "mean_backprop_depth", "n_layers_in_prelude", "n_layers_in_coda", "qk_bias",
    "activation_checkpoint_impl", "rope_base", "torch_dtype",
}  # fmt: skip


def huginn(**changes):
    fields = dict(
        vocab_size=V, d_model=D, d_ff=F, n_heads=H, n_kv_heads=H, init_depth=8, dtype="float32",
        post_norm="stream", embed_scale=float(np.sqrt(D)), tie_embeddings=False,
        loop=LoopConfig(start="normal", inject="concat", final_norm="after"),
    )  # fmt: skip
    return ModelConfig(**fields | changes)


def test_a_model_of_that_shape_is_a_huginn_in_shards_and_by_another_plan(tmp_path, capsys):
    directory = saved_model(tmp_path / "run", huginn(), "1-2x3-1")
    args = [
        "export-hf",
        str(directory),
        str(tmp_path / "out"),
        "--depth=1-2x5-1",
        "--shard-size=20kB",
    ]
    assert cli.main(args) == 0
    assert "RavenForCausalLM of 4 layers, in float32" in capsys.readouterr().out
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config.keys() >= RAVEN and config["mean_recurrence"] == 5
    assert "tie_word_embeddings" not in config  # the class passes it on itself
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 2
    import_hf(str(tmp_path / "out"), tmp_path / "again", tokenizer=False)
    (a, _), (b, again) = (checkpoint.load_params(at) for at in (directory, tmp_path / "again"))
    jax.tree.map(np.testing.assert_array_equal, a, b)
    tokens = jnp.arange(7)[None]
    ours, theirs = (
        model.forward(params, tokens, cfg, "1-2x5-1")
        for params, cfg in ((a, huginn()), (b, ModelConfig(**again["model"])))
    )
    np.testing.assert_array_equal(ours, theirs)


def saved_model(directory, cfg, plan):
    """A checkpoint of random weights."""
    n_layers = DepthPlan.parse(plan).n_unique
    keys = iter(jax.random.split(jax.random.key(3), 99))
    shapes = cfg.parameter_shapes(n_layers)
    leaves = {k: np.asarray(jax.random.normal(next(keys), shape)) for k, shape in shapes.items()}

    def blocks(leaf, chunk):
        yield tuple(slice(0, n) for n in shapes[leaf]), leaves[leaf]

    meta = step_zero.about(cfg, plan, 32, None)
    checkpoint.save_params(directory / "checkpoints", 0, shapes, blocks, meta)
    return directory


@pytest.mark.parametrize(
    ("changes", "plan", "says"),
    [
        ({"embed_scale": 5.0}, "1-2x3-1", "model.embed_scale=5.0 cannot .* a Huginn has 4.89"),
        ({"n_kv_heads": 1}, "1-2x3-1", "model.n_kv_heads=1 cannot be exported"),
        ({"head_dim": 6}, "1-2x3-1", "model.head_dim=6 cannot be exported"),
        ({"qk_norm": True}, "1-2x3-1", "model.qk_norm=True cannot be exported"),
        ({"rope_scaling": "llama3:8:1:4:32"}, "1-2x3-1", "model.rope_scaling='llama3:8:1:4:32' can"),
        ({}, "2x3-1", "plan 2x3-1 cannot be exported: a Huginn has one loop with layers before"),
        ({}, "4", "config.loop.inject='concat' and plan 4 cannot be exported"),
        ({"post_norm": "output"}, "1-2x3-1", "no family that is written has it"),
        ({"attention_bias": True}, "1-2x3-1", "value_bias of .* is not zero"),
    ],
)  # fmt: skip
def test_what_a_huginn_does_not_have_is_not_exported(changes, plan, says, tmp_path):
    directory = saved_model(tmp_path / "run", huginn(**changes), plan)
    with pytest.raises(UserError, match=says) as error:
        export_hf(str(directory), tmp_path / "out")
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name, changes, message",
    [
        ("ouro", {"total_ut_steps": 0}, "total_ut_steps=0; it must be a whole number"),
        ("huginn", {"injection_type": "gate"}, "injection_type='gate', which is not supported"),
        ("huginn", {"mean_recurrence": 1}, "mean_recurrence=1; it must be at least 2"),
        ("huginn", {"n_layers_in_coda": "2"}, "n_layers_in_coda='2'; it must be"),
        ("huginn", {"n_heads": 5}, "n_heads=5 must divide model.d_model=24"),
        ("huginn", {"intermediate_size": 35}, "mlp.fc.weight has shape 72x24, but config.json"),
        ("huginn", {"n_layers_in_prelude": 2}, "prelude.1.norm_1.weight is missing"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(name, changes, message, tmp_path, capsys):
    config, make, _, _ = FAMILIES[name]
    source = write(tmp_path / "model", config | changes, make(np.random.default_rng(0)))
    args = ["import-hf", str(source), str(tmp_path / "run"), "--no-tokenizer"]
    assert cli.main(args) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()
