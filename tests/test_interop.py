"""Weights of the Hugging Face hub in and out: the same logits, the same tensors."""

import dataclasses
import functools
import json
import math
import os
import pathlib
import re
import shutil
import subprocess
import sys
import warnings

import jax
import numpy as np
import pytest

from loopjax import checkpoint, model
from loopjax.checkpoint_files import digest
from loopjax.cli import main as cli
from loopjax.config import default
from loopjax.depth import DepthPlan
from loopjax.interop import architectures
from loopjax.interop import files as files_lib
from loopjax.interop.export_hf import export_hf
from loopjax.interop.import_hf import import_hf
from loopjax.interop.tensors import Writer
from loopjax.lm.loaded_model import open_model
from loopjax.train import train
from loopjax.weights import numbers, plot, saved, terminal
from tests.conftest import tiny_run
from tests.test_inspect import fresh, save

safetensors = pytest.importorskip("safetensors.numpy")
ROOT = pathlib.Path(__file__).resolve().parent.parent
STORIES = ROOT.parent / "shared" / "models" / "stories260k"
SIZES = {
    "vocab_size": 50, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3,
    "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
}  # fmt: skip
MODELS = {
    "llama": ("Llama", {"bos_token_id": 3, "eos_token_id": [4, 5]}),
    "llama tied": ("Llama", {"tie_word_embeddings": True}),
    "llama 3": ("Llama", {"rope_parameters": LLAMA3, "head_dim": 8}),
    "llama bfloat16": ("Llama", {"dtype": "bfloat16"}),
    "qwen2": ("Qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "qwen3": ("Qwen3", {"head_dim": 8, "tie_word_embeddings": True}),
    "mistral": ("Mistral", {"head_dim": 6, "sliding_window": None}),
}


@pytest.fixture(scope="module")
def hf():
    """The package transformers, and torch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch = pytest.importorskip("torch")
        transformers = pytest.importorskip("transformers")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return torch, transformers


def random_weights(torch, network):
    """Norms and biases too, so that one that is forgotten shows."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in network.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            p.copy_(1 + 0.3 * noise if "norm" in name else 0.3 * noise)


@pytest.fixture(scope="module")
def made(hf, tmp_path_factory):
    """Random models of each family, as transformers saves them: {name: directory}."""
    torch, transformers = hf
    place = tmp_path_factory.mktemp("models")
    for name, (family, options) in MODELS.items():
        config = getattr(transformers, f"{family}Config")(**SIZES, **options)
        network = transformers.AutoModelForCausalLM.from_config(config)
        random_weights(torch, network)
        network.save_pretrained(place / name)
    return {name: place / name for name in MODELS}


@pytest.fixture(scope="module")
def imported(made):
    """The same as checkpoints."""
    for name, path in made.items():
        import_hf(str(path), path.with_name(f"{name} checkpoint"), tokenizer=False)
    return {name: path.with_name(f"{name} checkpoint") for name, path in made.items()}


TOKENS_BT = np.random.default_rng(0).integers(0, SIZES["vocab_size"], (2, 40))


def our_logits(directory, plan=None):
    params, meta = checkpoint.load_params(directory)
    cfg = dataclasses.replace(model.ModelConfig(**meta["model"]), dtype="float32")
    return model.forward(params, TOKENS_BT, cfg, DepthPlan.parse(plan or meta["plan"]))


def their_logits(hf, directory):
    torch, transformers = hf
    load = transformers.AutoModelForCausalLM.from_pretrained
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        network, said = load(directory, dtype=torch.float32, output_loading_info=True)
        assert not any(said.values()), said
        return network(torch.tensor(TOKENS_BT)).logits.numpy()


def close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    assert np.abs(theirs).max() > 0.5


def tensors_of(directory):
    """{name: array} of all files of a model."""
    files = sorted(pathlib.Path(directory).glob("*.safetensors"))
    return {k: v for file in files for k, v in safetensors.load_file(file).items()}


def same_tensors(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype and tensor.shape == theirs[name].shape
        assert tensor.tobytes() == theirs[name].tobytes(), name


# In and out


@pytest.mark.parametrize("name", MODELS)
def test_an_imported_model_computes_the_same_logits(name, hf, made, imported):
    close(our_logits(imported[name]), their_logits(hf, made[name]))


@pytest.mark.parametrize("name", MODELS)
def test_in_and_out_again_nothing_has_changed(name, hf, made, imported, tmp_path):
    export_hf(imported[name], tmp_path / "out")
    same_tensors(tensors_of(tmp_path / "out"), tensors_of(made[name]))
    AutoConfig = hf[1].AutoConfig
    before, after = (
        AutoConfig.from_pretrained(p).to_dict() for p in (made[name], tmp_path / "out")
    )
    left_out = {"transformers_version", "_name_or_path"}
    if name == "mistral":  # without a window it is a Llama
        left_out |= {"architectures", "model_type", "sliding_window"}
    differs = {k for k in before if before[k] != after.get(k)} - left_out
    assert not differs - {"head_dim"}, {k: (before[k], after.get(k)) for k in differs}
    np.testing.assert_array_equal(their_logits(hf, tmp_path / "out"), their_logits(hf, made[name]))


def test_shards_are_read_as_one_file_and_written_as_it(hf, imported, tmp_path):
    whole, meta = checkpoint.load_params(imported["qwen2"])
    export_hf(imported["qwen2"], tmp_path / "cut", shard_size=20_000)
    files = sorted(p.name for p in (tmp_path / "cut").glob("*.safetensors"))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05}.safetensors"
    index = json.loads((tmp_path / "cut" / "model.safetensors.index.json").read_text())
    export_hf(imported["qwen2"], tmp_path / "one")
    one = tensors_of(tmp_path / "one")
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in one.values())
    assert set(index["weight_map"].values()) == set(files)
    header = int.from_bytes((tmp_path / "one" / "model.safetensors").read_bytes()[:8], "little")
    assert header % 8 == 0  # so that readers may map what follows
    same_tensors(tensors_of(tmp_path / "cut"), one)
    np.testing.assert_array_equal(
        their_logits(hf, tmp_path / "cut"), their_logits(hf, tmp_path / "one")
    )
    cut = import_hf(str(tmp_path / "cut"), tmp_path / "back", tokenizer=False)
    jax.tree.map(np.testing.assert_array_equal, checkpoint.load_params(tmp_path / "back")[0], whole)
    assert cut["checksums"] == meta["checksums"]
    hashed = {name: files_lib.sha256(tmp_path / "cut" / name) for name in files}
    assert cut["source"]["sha256"].items() >= hashed.items()
    assert cut["source"]["sha256"].keys() - hashed.keys() == {
        "config.json", "generation_config.json",
    }  # fmt: skip
    kept = (tmp_path / "back" / "generation_config.json").read_bytes()
    assert kept == (tmp_path / "cut" / "generation_config.json").read_bytes()


@pytest.mark.parametrize("block", [1, 500])
def test_blocks_of_any_size_make_the_same_files(block, imported, made, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "PIECE", 512)
    for module in ("import_hf", "export_hf"):
        monkeypatch.setattr(f"loopjax.interop.{module}.BLOCK", block)
    import_hf(str(made["qwen3"]), tmp_path / "in", tokenizer=False)
    leaf = saved.open_saved(tmp_path / "in").params()["layers/gate"]
    assert leaf.chunk != leaf.shape
    jax.tree.map(
        np.testing.assert_array_equal,
        *(checkpoint.load_params(p)[0] for p in (tmp_path / "in", imported["qwen3"])),
    )
    export_hf(tmp_path / "in", tmp_path / "out")
    same_tensors(tensors_of(tmp_path / "out"), tensors_of(made["qwen3"]))


def test_a_loop_is_exported_as_the_layers_that_it_runs(hf, tmp_path):
    directory = random_checkpoint(tmp_path / "loop", 4, "1-2x3-1")
    for plan in (None, "2x2-2", "4"):
        out = tmp_path / f"out {plan}"
        config = export_hf(directory, out, depth=plan)
        order = DepthPlan.parse(plan or "1-2x3-1").order
        assert config["num_hidden_layers"] == len(order)
        close(our_logits(directory, plan), their_logits(hf, out))
        norms = checkpoint.load_params(directory)[0]["layers"]["mlp_norm"]
        written = tensors_of(out)
        name = "model.layers.{}.post_attention_layernorm.weight"
        for i, layer in enumerate(order):
            np.testing.assert_array_equal(written[name.format(i)], norms[layer])


KINDS = {
    "biases": ({"attention_bias": True}, "Qwen2ForCausalLM"),
    "norms of heads": ({"qk_norm": True}, "Qwen3ForCausalLM"),
    "both": ({"attention_bias": True, "qk_norm": True, "head_dim": 6}, "Qwen3ForCausalLM"),
    "a width that heads do not divide": ({"d_model": 18, "head_dim": 8}, "MistralForCausalLM"),
    "scaled frequencies": ({"rope_scaling": "llama3:8:1:4:16"}, "LlamaForCausalLM"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_trained_model_computes_the_same_there_and_comes_back(kind, hf, tmp_path):
    fields, architecture = KINDS[kind]
    directory = random_checkpoint(tmp_path / "run", 2, "2", **fields)
    config = export_hf(directory, tmp_path / "out")
    assert config["architectures"] == [architecture] and config["max_position_embeddings"] == 48
    close(our_logits(directory), their_logits(hf, tmp_path / "out"))
    back = import_hf(str(tmp_path / "out"), tmp_path / "back", tokenizer=False)
    ours, meta = checkpoint.load_params(directory)
    jax.tree.map(np.testing.assert_array_equal, checkpoint.load_params(tmp_path / "back")[0], ours)
    assert model.ModelConfig(**back["model"]).head_size == (fields.get("head_dim") or 4)
    same = meta["model"] | {"head_dim": back["model"]["head_dim"], "init_depth": 2}
    assert back["model"] == same


def test_bfloat16_is_rounded_to_the_nearest(imported, tmp_path):
    export_hf(imported["llama"], tmp_path / "half", dtype="bfloat16")
    export_hf(imported["llama"], tmp_path / "full")
    half, full = tensors_of(tmp_path / "half"), tensors_of(tmp_path / "full")
    same_tensors(half, {k: v.astype(half[k].dtype) for k, v in full.items()})
    assert json.loads((tmp_path / "half" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_float16_is_kept_in_float32(sound, tmp_path, capsys):
    half = {k: v.astype(np.float16) for k, v in tensors_of(sound).items()}
    path = changed(sound, tmp_path / "m", {"torch_dtype": "float16"}, half)
    meta = import_hf(str(path), tmp_path / "c", tokenizer=False)
    told = "the model has dtype float16; computing in float32\n"
    assert capsys.readouterr().err == told and meta["source"]["dtype"] == "float16"
    assert export_hf(tmp_path / "c", tmp_path / "out")["torch_dtype"] == "float32"
    same_tensors(tensors_of(tmp_path / "out"), {k: v.astype(np.float32) for k, v in half.items()})


def random_checkpoint(directory, layers, plan, **fields):
    """A checkpoint with an optimizer's state, as training leaves it, of random weights."""
    config = tiny_run()
    config.depth, config.growth.operator, config.seq_len = plan, "", 48
    config.model.update(vocab_size=50, **fields)
    params = jax.tree.map(lambda x: 0.3 * x, fresh(config, layers))
    return save(directory / "checkpoints", config, plan, params).parent


# What is read from config.json


@functools.cache
def written_config(**options):
    cfg = model.ModelConfig(
        vocab_size=50, d_model=24, d_ff=40, n_heads=6, n_kv_heads=2, init_depth=3,
        dtype="float32", **options,
    )  # fmt: skip
    return architectures.write_config(cfg, DepthPlan.parse("3"), 64, "float32", {"eos_token_id": 2})


def read(config, **changes):
    config = {**config, **changes}
    return architectures.read_config({k: v for k, v in config.items() if v != "-"}, "float32", 99)


def test_configs_of_transformers_5_and_older_ones_say_the_same():
    old = written_config(rope_theta=5000.0, rope_scaling="llama3:8:1:4:16")
    assert old["rope_scaling"]["original_max_position_embeddings"] == 16
    without = {"rope_theta": "-", "rope_scaling": "-", "torch_dtype": "-"}
    new = read(old, **without, rope_parameters=LLAMA3, dtype="float32")
    assert new == read(old) and new.cfg.rope_scaling == "llama3:8:1:4:16"
    plain = written_config(rope_theta=5000.0)
    new = read(plain, **without, rope_parameters={"rope_type": "default", "rope_theta": 5000.0})
    assert new == read(plain) and new.cfg.rope_theta == 5000.0


def test_what_a_config_leaves_out_is_what_transformers_takes_it_for(hf):
    bare = {k: v for k, v in SIZES.items() if k not in ("num_key_value_heads", "rms_norm_eps")}
    for family in architectures.FAMILIES.keys() - {"ouro", "huginn_raven"}:
        theirs = hf[1].AutoConfig.for_model(family, **bare, num_key_value_heads=2)
        ours = read({**bare, "model_type": family, "num_key_value_heads": 2})
        assert ours.cfg.head_size == getattr(theirs, "head_dim", 4)
        assert ours.cfg.norm_eps == theirs.rms_norm_eps
        assert ours.cfg.rope_theta == theirs.rope_parameters["rope_theta"]
        assert ours.cfg.tie_embeddings == theirs.tie_word_embeddings


WINDOWS = [
    ("mistral", {"sliding_window": 8}, 8),
    ("mistral", {"sliding_window": 100}, 64),
    ("mistral", {"sliding_window": None}, 64),
    ("mistral", {"max_position_embeddings": 9000}, 4096),
    ("qwen2", {"sliding_window": 8, "use_sliding_window": False}, 64),
    ("qwen2", {"sliding_window": 8, "use_sliding_window": True}, 64),  # from layer 28 on
    ("qwen2", {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 2}, 8),
    ("qwen3", {"sliding_window": 8, "use_sliding_window": True, "head_dim": 4,
               "layer_types": ["full_attention"] * 2 + ["sliding_attention"]}, 8),
]  # fmt: skip


@pytest.mark.parametrize(("family", "changes", "context"), WINDOWS)
def test_the_context_ends_where_a_window_would_begin_to_slide(family, changes, context):
    config = {**written_config(), "sliding_window": "-", "model_type": family, **changes}
    described = read(config, architectures="-")
    assert described.seq_len == context
    cut = f"attention slides over {context} tokens (sliding_window), so the context is {context} "
    positions = config["max_position_embeddings"]
    assert described.notes == (() if context == 64 else (f"{cut}tokens and not {positions}",))


def test_within_its_window_a_sliding_model_computes_the_same(hf, tmp_path, capsys):
    torch, transformers = hf
    config = transformers.MistralConfig(**SIZES, sliding_window=40)
    network = transformers.MistralForCausalLM(config)
    random_weights(torch, network)
    network.save_pretrained(tmp_path / "model")
    meta = import_hf(str(tmp_path / "model"), tmp_path / "c", tokenizer=False)
    assert meta["config"]["seq_len"] == 40 == TOKENS_BT.shape[1]
    assert capsys.readouterr().err.startswith("attention slides over 40 tokens")
    close(our_logits(tmp_path / "c"), their_logits(hf, tmp_path / "model"))


# Checkpoints


def test_an_import_is_stored_as_a_run_stores_its_parameters(imported, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "PIECE", 1024)
    run = saved.open_saved(random_checkpoint(tmp_path / "run", 3, "3"))
    export_hf(tmp_path / "run", tmp_path / "out")
    import_hf(str(tmp_path / "out"), tmp_path / "c", tokenizer=False)
    ours = saved.open_saved(tmp_path / "c")
    assert ours.path == tmp_path / "c" / "checkpoints" / "0"
    for name, leaf in ours.leaves.items():
        assert leaf == dataclasses.replace(
            run.leaves[name], spec=leaf.spec, checksum=run.leaves[name].checksum
        )
    assert ours.leaves.keys() == {name for name in run.leaves if name.startswith("params/")}
    assert run.meta.keys() - ours.meta.keys() == set()
    assert ours.meta["lineage"] == [{"step": 0, "operator": "import", "plan": "3", "order": None}]


def test_zeros_are_kept(imported, tmp_path):
    directory = random_checkpoint(tmp_path / "run", 2, "2", attention_bias=True)
    export_hf(directory, tmp_path / "out")
    tensors = tensors_of(tmp_path / "out")
    zeros = {k: np.zeros_like(v) if k.endswith("bias") else v for k, v in tensors.items()}
    safetensors.save_file(zeros, tmp_path / "out" / "model.safetensors")
    import_hf(str(tmp_path / "out"), tmp_path / "c", tokenizer=False)
    assert not np.any(checkpoint.load_params(tmp_path / "c")[0]["layers"]["key_bias"])
    assert numbers.inspect(tmp_path / "c")["parameters"]["unique"] > 0


def test_an_import_is_inspected_like_a_run(imported, made, tmp_path, capsys):
    found = numbers.inspect(imported["llama"], layers=True, other=imported["llama bfloat16"])
    assert {m["first_moment_rms"] for m in found["parameters"]["modules"]} == {None}
    assert found["parameters"]["updates"] == 0 and found["parameters"]["learning_rate"] is None
    assert found["lineage"]["stages"] == [{"step": 0, "operator": "import", "layers": 3}]
    norms = safetensors.load_file(made["llama"] / "model.safetensors")
    norm = np.linalg.norm(norms["model.layers.1.mlp.up_proj.weight"])
    assert found["layers"]["norms"]["up"][1] == pytest.approx(norm, rel=1e-6)
    distances = {m["name"]: m["distance"] for m in found["against"]["modules"]}
    assert 0 < distances["layers/up"] < 2**-8
    json.dumps(found, allow_nan=False)
    shown = terminal.render(found, layers=True, color=False).split("\n")
    assert f"imported from {made['llama']} (LlamaForCausalLM, float32)" in shown
    assert "step          0, 0 tokens" in shown
    assert ["0", "import", "3"] in [line.split() for line in shown]
    plot.write(tmp_path / "p.png", found)


def test_an_import_that_was_cut_off_leaves_nothing(made, tmp_path, monkeypatch, said):
    def full(*args):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("loopjax.interop.import_hf.files.copy", full)
    monkeypatch.setattr("loopjax.interop.export_hf.files.copy", full)
    told = f"{tmp_path}/c cannot be written: No space left on device"
    assert said("import-hf", made["llama"], tmp_path / "c", "--no-tokenizer") == told
    assert not list(tmp_path.iterdir())


MEASURED = """
import resource, sys
import jax
from loopjax.cli import main as cli
from loopjax.config import default
from loopjax.interop import export_hf, import_hf
jax.config.update("jax_platforms", "cpu")
jax.devices()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert cli.main(sys.argv[1:]) == 0
print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""


@pytest.mark.slow
def test_it_takes_less_memory_than_the_model(tmp_path):
    cfg = model.ModelConfig(
        vocab_size=2**15, d_model=1024, d_ff=4096, n_heads=16, n_kv_heads=4, init_depth=16
    )
    leaves, there = architectures.shapes(cfg, 16), {}
    for leaf, shape in leaves.items():
        there |= architectures.tensors(leaf, shape)
    (tmp_path / "model").mkdir()
    Writer(tmp_path / "model", there, "bfloat16", 10**9).close()  # zeros
    config = architectures.write_config(cfg, DepthPlan.parse("16"), 64, "bfloat16", {})
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    for argv in (["import-hf", "model", "c", "--no-tokenizer"], ["export-hf", "c", "out"]):
        command = [sys.executable, "-c", MEASURED, *argv]
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True
        )
        taken = int(done.stdout.splitlines()[-1])
        assert taken < 0.75 * 4 * sum(map(math.prod, leaves.values())), argv


def test_a_model_tuned_on_shorter_sequences_keeps_the_context_of_its_import(sound, tmp_path):
    """Imported with 48 positions, then trained on rows of 8 tokens from its weights."""
    meta = import_hf(str(sound), tmp_path / "imported", tokenizer=False)
    config = default()
    config.update(
        init_from=str(tmp_path / "imported"), init="weights", depth=meta["plan"], steps=1,
        batch_size=8, seq_len=8, warmup_steps=0, eval_batches=0,
    )  # fmt: skip
    config.mixture = {"p_hop_1": 1.0}
    config.cooldown.steps = 0
    config.model.update({k: v for k, v in meta["model"].items() if k in config.model})
    train(config, tmp_path / "tuned")
    assert export_hf(tmp_path / "tuned", tmp_path / "out")["max_position_embeddings"] == 48
    assert open_model(tmp_path / "tuned", text=False).context == 48
    # With other rotary frequencies, the context before says nothing.
    config.model.rope_theta = 5e5
    train(config, tmp_path / "moved")
    assert export_hf(tmp_path / "moved", tmp_path / "moved-hf")["max_position_embeddings"] == 8


# The real one


@pytest.mark.skipif(not STORIES.is_dir(), reason="the model is not there")
def test_stories260k_is_itself(tmp_path, capsys):
    assert cli.main(["import-hf", str(STORIES), str(tmp_path / "c")]) == 0
    assert "LlamaForCausalLM of 5 layers, context 512, from float32" in capsys.readouterr().out
    params, meta = checkpoint.load_params(tmp_path / "c")
    cfg, plan = model.ModelConfig(**meta["model"]), DepthPlan.parse(meta["plan"])
    logits = model.forward(params, np.array([[1, 403, 407, 261, 378]]), cfg, plan)[0, -1]
    known = [-10.1366, -5.3295, -10.1381, -10.1369, -10.1372, -10.1383, -10.1373, -10.1376]
    np.testing.assert_allclose(logits[:8], known, atol=1e-4)
    assert cli.main(["export-hf", str(tmp_path / "c"), str(tmp_path / "out")]) == 0
    captured = capsys.readouterr()
    assert captured.err == "" and "LlamaForCausalLM of 5 layers, in float32" in captured.out
    same_tensors(tensors_of(tmp_path / "out"), tensors_of(STORIES))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (STORIES / name).read_bytes()
    ours, theirs = (
        json.loads((p / "config.json").read_text()) for p in (tmp_path / "out", STORIES)
    )
    assert {k: ours[k] for k in theirs} == theirs


def test_tokens_come_from_the_tokenizer_where_no_config_names_them(tmp_path, capsys):
    directory = random_checkpoint(tmp_path / "run", 2, "2")
    assert export_hf(directory, tmp_path / "bytes")["eos_token_id"] is None
    told = f"no tokenizer.json was written: {directory} has none\n"
    assert capsys.readouterr().err == told
    with pytest.MonkeyPatch.context() as patch:
        run = saved.open_saved(directory)
        run = dataclasses.replace(run, meta=run.meta | {"tokenizer": "bytes"})
        patch.setattr("loopjax.interop.export_hf.open_saved", lambda *args: run)
        export_hf(directory, tmp_path / "said")
    told = "no tokenizer.json was written: the model reads bytes\n"
    assert capsys.readouterr().err == told
    tokens = [{"id": 7, "content": "</s>"}, {"id": 8, "content": "<s>"}]
    (directory / "tokenizer.json").write_text(json.dumps({"model": {}, "added_tokens": tokens}))
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": {"content": "</s>"}, "bos_token": "<s>"})
    )
    config = export_hf(directory, tmp_path / "file")
    assert [config[f"{name}_token_id"] for name in ("eos", "bos", "pad")] == [7, 8, None]
    assert (tmp_path / "file" / "tokenizer.json").is_file() and not capsys.readouterr().err


@pytest.mark.parametrize("add_bos", [False, None])
def test_a_model_trained_without_bos_is_exported_without_it(add_bos, hf, tmp_path, capsys):
    tokenizers = pytest.importorskip("tokenizers")
    ids = {"<s>": 7, "</s>": 8, "<unk>": 9, "a": 10}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, "<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<s>", "</s>", "<unk>"])
    template = tokenizers.processors.TemplateProcessing(
        "<s> $A </s>", None, [("<s>", 7), ("</s>", 8)]
    )
    together = tokenizers.processors.Sequence([tokenizers.processors.ByteLevel(), template])
    for name, processor in (("one", template), ("several", together)):
        directory = random_checkpoint(tmp_path / name, 2, "2")
        tokenizer.post_processor = processor
        tokenizer.save(str(directory / "tokenizer.json"))
        (directory / "tokenizer_config.json").write_text(
            json.dumps({"eos_token": "</s>", "bos_token": "<s>"})
        )
        run = saved.open_saved(directory)
        run = dataclasses.replace(run, meta=run.meta | {"add_bos": add_bos})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("loopjax.interop.export_hf.open_saved", lambda *args, run=run: run)
            config = export_hf(directory, tmp_path / f"{name} out")
        theirs = hf[1].PreTrainedTokenizerFast.from_pretrained(tmp_path / f"{name} out")
        told = capsys.readouterr().err
        if add_bos is None:  # a checkpoint that does not know keeps the files as they are
            assert theirs("a a").input_ids == [7, 10, 10, 8] and config["bos_token_id"] == 7
            continue
        assert theirs("a a").input_ids == [10, 10]
        assert theirs.bos_token_id == theirs.eos_token_id == config["bos_token_id"] == 8
        says = (
            "the exported tokenizer adds no BOS to a text, because the model was trained without it"
        )
        assert says in told


# Mistakes


@pytest.fixture
def said(capsys):
    """A function of a command that fails: the sentence that it says."""

    def told(verb, *argv) -> str:
        capsys.readouterr()
        assert cli.main([verb, *map(str, argv)]) == 2
        out, err = capsys.readouterr()
        sentence = re.fullmatch(f"loopjax {verb}: (.+)\n", err)
        assert sentence and not out, err
        return sentence[1]

    return told


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A model of random weights that nothing is wrong with."""
    place = tmp_path_factory.mktemp("sound")
    export_hf(random_checkpoint(place / "run", 2, "2"), place / "model")
    return place / "model"


def changed(sound, path, config=None, tensors=None):
    """A copy, with changes to its config and its tensors; "-" leaves one out."""
    shutil.copytree(sound, path)
    for file, changes, load, write in (
        ("config.json", config, lambda p: json.loads(p.read_text()),
         lambda value, p: p.write_text(json.dumps(value))),
        ("model.safetensors", tensors, safetensors.load_file, safetensors.save_file),
    ):  # fmt: skip
        if changes:
            value = {**load(path / file), **changes}
            write(
                {k: v for k, v in value.items() if not isinstance(v, str) or v != "-"}, path / file
            )
    return path


CONFIGS = [
    ("another family", {"model_type": "gemma3"}, "config.json has model_type='gemma3'; supported are llama, mistral, qwen2, qwen3, ouro, huginn_raven"),
    ("no family", {"model_type": "-"}, "config.json has model_type=None; supported are llama, mistral, qwen2, qwen3, ouro, huginn_raven"),
    ("experts", {"model_type": "mixtral", "num_local_experts": 8}, "config.json has num_local_experts=8; a mixture of experts is not supported"),
    ("quantized", {"quantization_config": {"bits": 4}}, "config.json has a quantization_config; quantized weights are not supported"),
    ("another activation", {"hidden_act": "gelu"}, "config.json has hidden_act='gelu'; only silu is supported"),
    ("biases of the feed-forward", {"mlp_bias": True}, "config.json has mlp_bias=true; feed-forward biases are not supported"),
    ("another rotary embedding", {"rope_scaling": {"type": "yarn", "factor": 4.0}}, "config.json has rope_type='yarn'; supported are default, llama3"),
    ("half of it", {"partial_rotary_factor": 0.5}, "config.json has a partial_rotary_factor; only 1.0 is supported"),
    ("one for each type", {"rope_parameters": {"full_attention": {}}}, "config.json has a rotary embedding per type of layer; only one for all is supported"),
    ("scaling by nothing", {"rope_scaling": {"rope_type": "llama3"}}, "config.json has no factor"),
    ("scaling by a word", {"rope_scaling": {**LLAMA3, "factor": "much"}}, "config.json has factor='much'; it must be a positive number"),
    ("layers of another type", {"model_type": "qwen2", "layer_types": ["linear_attention"] * 2}, "config.json has layers of type linear_attention; supported are full_attention, sliding_attention"),
    ("no width", {"hidden_size": "-"}, "config.json has no hidden_size"),
    ("half a layer", {"num_hidden_layers": 1.5}, "config.json has num_hidden_layers=1.5; it must be a positive whole number"),
    ("a word for frequencies", {"rope_scaling": "llama3"}, "config.json has rope_scaling='llama3'; it must be an object"),
    ("layers of no type", {"model_type": "qwen2", "layer_types": 1}, "config.json is not a valid model: 'int' object is not iterable"),
    ("odd heads", {"head_dim": 5}, "config.json is not a valid model: model.head_dim=5 must be even, or 0 for d_model / n_heads"),
    ("a layer too many", {"num_hidden_layers": 3}, "the tensor model.layers.2.input_layernorm.weight is missing, and 8 more"),
    ("a layer too few", {"num_hidden_layers": 1}, "the tensor model.layers.1.input_layernorm.weight does not belong to the model of config.json"),
    ("another width", {"intermediate_size": 32}, "the tensor model.layers.0.mlp.down_proj.weight has shape 16x24, but config.json implies 16x32"),
    ("no head", {"tie_word_embeddings": False}, "the tensor lm_head.weight is missing"),
    ("more layers than tensors", {"num_hidden_layers": 10**9}, "config.json has num_hidden_layers=1000000000, but there are only 20 tensors"),
    ("a vocabulary beyond any", {"vocab_size": 10**15}, "config.json has vocab_size=1000000000000000; it must be at most 2147483647"),
    ("the largest vocabulary", {"vocab_size": 2**31 - 1}, "the tensor model.embed_tokens.weight has shape 50x16, but config.json implies 2147483647x16"),
    ("a width beyond any", {"hidden_size": 2**31 - 4}, "the tensor model.embed_tokens.weight has shape 50x16, but config.json implies 50x2147483644"),
    ("heads beyond any", {"num_attention_heads": 2**30, "num_key_value_heads": 2}, "the tensor model.layers.0.self_attn.o_proj.weight has shape 16x16, but config.json implies 16x4294967296"),
    ("a context beyond any", {"max_position_embeddings": 10**12}, "config.json has max_position_embeddings=1000000000000; it must be at most 16777216"),
    ("a number of 400 digits", {"rope_theta": 10**400}, "config.json is not a valid model: int too large to convert to float"),
    ("a token beyond the vocabulary", {"eos_token_id": 10**9}, "config.json has eos_token_id=1000000000; it must be an id below vocab_size=50, a list of such ids, or null"),
    ("a word for a token", {"eos_token_id": "a"}, "config.json has eos_token_id='a'; it must be an id below vocab_size=50, a list of such ids, or null"),
    ("a list of words for tokens", {"bos_token_id": [1, "a"]}, "config.json has bos_token_id=[1, 'a']; it must be an id below vocab_size=50, a list of such ids, or null"),
    ("a word for a truth", {"tie_word_embeddings": "false"}, "config.json has tie_word_embeddings='false'; it must be true or false"),
    ("capped logits", {"final_logit_softcapping": 30.0}, "config.json has final_logit_softcapping=30.0, which changes what the model computes and is not supported"),
    ("scaled residuals", {"residual_multiplier": 0.22}, "config.json has residual_multiplier=0.22, which changes what the model computes and is not supported"),
    ("another order of rotation", {"rope_interleaved": True}, "config.json has rope_interleaved=True, which changes what the model computes and is not supported"),
    ("no mask", {"is_causal": False}, "config.json has is_causal=False, which changes what the model computes and is not supported"),
]  # fmt: skip


@pytest.mark.parametrize(("config", "says"), [r[1:] for r in CONFIGS], ids=[r[0] for r in CONFIGS])
def test_a_config_that_cannot_be_represented(config, says, sound, tmp_path, said):
    path = changed(sound, tmp_path / "m", config)
    assert said("import-hf", path, tmp_path / "c", "--no-tokenizer") == says
    assert not (tmp_path / "c").exists()


def test_what_is_not_taken_over_from_a_config_is_told():
    config = written_config()
    neutral = {
        "rope_interleaved": False,
        "logits_scaling": 1.0,
        "clip_qkv": None,
        "use_cache": True,
    }
    assert read(config, **neutral, eos_token_id=[1, 2]).notes == ()
    told = {
        "sliding_window": (8, "config.json has sliding_window=8, which a Llama does not use: its attention is imported without a window, as in transformers"),
        "layer_types": (["sliding_attention"], "config.json has layer_types=['sliding_attention'], which a Llama does not use: its attention is imported without a window, as in transformers"),
        "pad_token_id": (-1, "config.json has pad_token_id=-1, which is no id of the vocabulary; ignored"),
        "architectures": (["LlamaForClassification"], "config.json names the class LlamaForClassification; the weights are imported as LlamaForCausalLM"),
        "auto_map": ({"AutoModel": "own.py"}, "the model has code of its own (auto_map), which is not run: it is imported as LlamaForCausalLM"),
        "zeta": (1, "config.json has fields of no known meaning, which are ignored: zeta"),
    }  # fmt: skip
    for key, (value, says) in told.items():
        assert read(config, **{key: value}).notes == (says,)
    assert read(config, pad_token_id=-1).token_ids["pad_token_id"] is None
    many = {f"x{i}": 1 for i in range(9)}
    assert read(config, **many).notes[0].endswith("ignored: x0, x1, x2, x3, x4 and 4 more")


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight"])
def test_weights_that_are_no_numbers_are_counted_and_refused(name, value, sound, tmp_path, said):
    tensor = tensors_of(sound)[name].copy()
    tensor[1, 1:4] = value
    path = changed(sound, tmp_path / "m", None, {name: tensor})
    assert said("import-hf", path, tmp_path / "c", "--no-tokenizer") == (
        f"the tensor {name} in {path}/model.safetensors has 3 of {tensor.size:,} values that are NaN "
        "or infinite; the model is damaged"
    )
    assert not (tmp_path / "c").exists()


def test_a_checkpoint_with_a_nan_is_not_exported(tmp_path, said):
    config = tiny_run()
    config.depth, config.growth.operator = "2", ""
    params = fresh(config, 2)
    params["layers"]["up"] = params["layers"]["up"].at[1, 0, 0].set(np.nan)
    save(tmp_path / "run" / "checkpoints", config, "2", params)
    says = r"params/layers/up of .* has values that are NaN or infinite in float32; nothing is exported"
    assert re.fullmatch(says, said("export-hf", tmp_path / "run", tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_a_tensor_of_two_files_and_a_config_too_large(sound, tmp_path, said):
    path = changed(sound, tmp_path / "m")
    shutil.copy(path / "model.safetensors", path / "a.safetensors")
    (path / "model.safetensors").rename(path / "b.safetensors")
    names = tensors_of(sound)
    where = {name: f"{'ab'[i % 2]}.safetensors" for i, name in enumerate(names)}
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    told = said("import-hf", path, tmp_path / "c", "--no-tokenizer")
    assert re.fullmatch(rf"{path} has the tensor \S+ in a.safetensors and in b.safetensors", told)
    (path / "config.json").write_text("{" + " " * files_lib.LARGEST_JSON + "}")
    told = said("import-hf", path, tmp_path / "c", "--no-tokenizer")
    assert told == f"{path}/config.json has 32 MB; it can have at most 32 MB"
    (path / "config.json").write_text('{"a": ' + "[" * 10**5 + "]" * 10**5 + "}")
    told = said("import-hf", path, tmp_path / "c", "--no-tokenizer")
    assert told == f"{path}/config.json cannot be read: it is nested too deeply"


BIAS = "model.layers.1.self_attn.o_proj.bias"
TENSORS = [
    ("another head", {"lm_head.weight": np.ones((50, 16), np.float32)}, "config.json has tie_word_embeddings=true, but lm_head.weight differs from model.embed_tokens.weight"),
    ("a tensor more", {"model.layers.0.mlp.extra": np.ones(3)[:0].astype(np.float32)}, "the tensor model.layers.0.mlp.extra does not belong to the model of config.json"),
    ("a tensor less", {"model.norm.weight": "-"}, "the tensor model.norm.weight is missing"),
    ("whole numbers", {"model.norm.weight": np.ones(16, np.int8)}, "PLACE/m/model.safetensors has model.norm.weight as I8; supported are F32, BF16, F16"),
    ("double precision", {"model.norm.weight": np.ones(16)}, "PLACE/m/model.safetensors has model.norm.weight as F64; supported are F32, BF16, F16"),
]  # fmt: skip


@pytest.mark.parametrize(("tensors", "says"), [r[1:] for r in TENSORS], ids=[r[0] for r in TENSORS])
def test_tensors_that_do_not_make_the_model(tensors, says, sound, tmp_path, said):
    path = changed(sound, tmp_path / "m", None, tensors)
    told = said("import-hf", path, tmp_path / "c", "--no-tokenizer")
    assert told.replace(str(tmp_path), "PLACE") == says
    assert not (tmp_path / "c").exists()


def test_tensors_that_add_nothing_are_left_out(sound, tmp_path):
    embed = tensors_of(sound)["model.embed_tokens.weight"]
    idle = {"lm_head.weight": embed, "model.layers.0.self_attn.rotary_emb.inv_freq": embed[0, :2]}
    path = changed(sound, tmp_path / "m", None, idle)
    meta = import_hf(str(path), tmp_path / "c", tokenizer=False)
    assert "params/head" not in meta["checksums"]


def test_a_bias_of_the_output_has_to_be_zero(tmp_path, said):
    fields = {"attention_bias": True, "qk_norm": True}
    export_hf(random_checkpoint(tmp_path / "run", 2, "2", **fields), tmp_path / "model")
    assert not tensors_of(tmp_path / "model")[BIAS].any()
    path = changed(tmp_path / "model", tmp_path / "m", None, {BIAS: np.ones(16, np.float32)})
    assert said("import-hf", path, tmp_path / "c", "--no-tokenizer") == (
        f"the tensor {BIAS} is not zero; biases of output projections are not supported"
    )


def test_files_that_are_not_whole(sound, tmp_path, said):
    def told(path, *flags):
        out = said("import-hf", path, tmp_path / "c", *(flags or ["--no-tokenizer"]))
        assert not (tmp_path / "c").exists()
        return out.replace(str(tmp_path), "PLACE")

    torn, cut = changed(sound, tmp_path / "torn"), changed(sound, tmp_path / "cut")
    os.truncate(torn / "model.safetensors", 5000)
    damaged = r"PLACE/torn/model.safetensors is damaged or not a safetensors file: .+"
    assert re.fullmatch(damaged, told(torn))
    (torn / "model.safetensors").write_bytes(b"PK\x03\x04 a pickle, say")
    assert re.fullmatch(damaged, told(torn))
    (torn / "config.json").write_text("{")
    assert told(torn).startswith("PLACE/torn/config.json cannot be read: ")
    (torn / "config.json").unlink()
    assert told(torn) == "PLACE/torn has no config.json"
    assert (
        told(sound, "--revision=main")
        == f"{sound} has no tokenizer.json; use --no-tokenizer to import without it"
    )

    (cut / "model.safetensors").rename(cut / "pytorch_model.bin")
    assert told(cut) == (
        "PLACE/cut has no model.safetensors (pytorch_model.bin is a pickle, which is not supported)"
    )
    (cut / "pytorch_model.bin").rename(cut / "a.safetensors")
    index = cut / "model.safetensors.index.json"
    index.write_text("{}")
    assert told(cut) == "PLACE/cut/model.safetensors.index.json has no weight_map"
    for other in ("b.safetensors", "../sound/a.safetensors"):
        names = {"model.norm.weight": "a.safetensors", "lm_head.weight": other}
        index.write_text(json.dumps({"weight_map": names}))
        assert told(cut) == (
            f"PLACE/cut/model.safetensors.index.json names {other}, which does not exist"
        )
    names = {"model.norm.weight": "a.safetensors", "lm_head.weight": "a.safetensors"}
    index.write_text(json.dumps({"weight_map": names}))
    assert told(cut) == (
        "PLACE/cut/a.safetensors has no tensor lm_head.weight, which "
        "model.safetensors.index.json lists"
    )


def test_places_that_cannot_be_and_tokenizers_that_are_none(sound, tmp_path, said):
    place, shown = "n" * 300, repr("n" * 300)[:80]
    for verb, source in (("import-hf", sound), ("export-hf", sound.with_name("run"))):
        assert said(verb, source, place).startswith(f"{shown} cannot be a directory: ")
    assert said("import-hf", place, tmp_path / "c") == (
        f"{shown} is neither a directory nor an ID of the Hugging Face hub"
    )
    path = changed(sound, tmp_path / "m")
    file = path / "tokenizer.json"
    for content, says in (
        ("{}", "is not a tokenizer: it has no model"),
        ("[]", "must contain a JSON object"),
        ("[" * 10**5, "cannot be read: it is nested too deeply"),
    ):
        file.write_text(content)
        assert said("import-hf", path, tmp_path / "c") == f"{file} {says}"
    run = shutil.copytree(sound.with_name("run"), tmp_path / "run")
    (run / "tokenizer.json").write_text('{"model": {}, "added_tokens": [3]}')
    (run / "tokenizer_config.json").write_text("{}")
    says = f"{run}/tokenizer.json has added_tokens without content and id"
    assert said("export-hf", run, tmp_path / "new") == says
    (run / "tokenizer.json").write_text("[" * 10**5)
    says = f"{run}/tokenizer.json cannot be read: it is nested too deeply"
    assert said("export-hf", run, tmp_path / "new") == says
    assert not (tmp_path / "c").exists() and not (tmp_path / "new").exists()


def test_a_directory_whose_name_is_a_pattern(sound, tmp_path):
    import_hf(str(sound), tmp_path / "m" / "[x]*", tokenizer=False)
    export_hf(tmp_path / "m" / "[x]*", tmp_path / "o[1]")
    same_tensors(tensors_of(tmp_path / "o[1]"), tensors_of(sound))


def test_places_and_packages_that_are_not_there(sound, tmp_path, monkeypatch, said):
    new = tmp_path / "new"
    assert said("import-hf", tmp_path / "no", new) == (
        f"{tmp_path}/no is neither a directory nor an ID of the Hugging Face hub"
    )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    told = said("import-hf", "some/model", new)
    prefix = "some/model is not a directory, and the Hugging Face hub does not have it: "
    assert told.startswith(prefix)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for verb, source in (("import-hf", sound), ("export-hf", sound.with_name("run"))):
        for place in (tmp_path / "full", tmp_path / "full" / "file"):
            assert said(verb, source, place) == f"{place} is not empty; choose a new directory"
        assert said(verb, source, tmp_path / "full" / "file" / "new", *(
            ["--no-tokenizer"] if verb == "import-hf" else []
        )) == f"{tmp_path}/full/file/new cannot be written: Not a directory"  # fmt: skip
    monkeypatch.setitem(sys.modules, "safetensors", None)
    assert said("import-hf", sound, new) == (
        "reading weights needs pip install 'loopjax[hf]' (safetensors is not installed)"
    )
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert said("import-hf", "some/model", new) == (
        "some/model is not a directory, and downloading it needs pip install 'loopjax[hf]' "
        "(huggingface_hub is not installed)"
    )
    assert not new.exists()


EXPORTS = [
    ("a plan of more layers", ["--depth=3"], "--depth=3 has 3 unique layers, the checkpoint has 2"),
    ("no plan", ["--depth=2y"], "--depth: invalid depth plan '2y': write segments L or LxR (L layers, run R times), positive whole numbers, joined by \"-\", like \"24\", \"4x6\" or \"4-4x4-4\""),
    ("a loop that must not be untied", ["--depth=2x3", "--no-untie"], "plan 2x3 executes 2 layers as 6, which requires writing 6 layers (remove --no-untie)"),
    ("a plan beyond any", ["--depth=2x5000000"], "--depth: depth plan '2x5000000' executes more than 10,000 layers, the most that are supported"),
    ("no step", ["--step=9"], "PLACE/run/checkpoints has no checkpoint at step 9; there are 4"),
    ("no size", ["--shard-size=5"], "argument --shard-size: invalid size '5': use e.g. 80GB (units: kB, MB, MiB, GB, GiB, TB)"),
]  # fmt: skip


@pytest.mark.parametrize(("flags", "says"), [r[1:] for r in EXPORTS], ids=[r[0] for r in EXPORTS])
def test_a_mistake_in_an_export(flags, says, sound, tmp_path, said):
    told = said("export-hf", sound.with_name("run"), tmp_path / "new", *flags)
    assert told.replace(str(sound.parent), "PLACE") == says
    assert not (tmp_path / "new").exists()


def test_a_damaged_checkpoint_is_not_exported(sound, tmp_path, said):
    copy = tmp_path / "run" / "checkpoints" / "4"
    shutil.copytree(sound.with_name("run") / "checkpoints" / "4", copy)
    meta = json.loads((copy / "meta" / "metadata").read_text())
    del meta["sha256"]
    meta["checksums"]["params/layers/up"] += 1
    meta["sha256"] = digest(meta)
    (copy / "meta" / "metadata").write_text(json.dumps(meta))
    assert said("export-hf", tmp_path / "run", tmp_path / "new") == (
        f"checkpoint {copy} is damaged (the content of params/layers/up is not what was saved)"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
