"""`loopjax inspect` on checkpoints that other programs wrote with Orbax."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy
from orbax.checkpoint import v1

from loopjax.cli import main as cli
from loopjax.weights import numbers, stored, structure, tree_numbers, tree_terminal
from loopjax.weights.arrays import open_tree
from tests import foreign


def shown(capsys, *args):
    """What a successful `loopjax inspect` prints."""
    assert cli.main(["inspect", *map(str, args)]) == 0
    captured = capsys.readouterr()
    assert "damaged" not in captured.out + captured.err
    return captured.out


def refused(capsys, *args):
    assert cli.main(["inspect", *map(str, args)]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    return captured.out, captured.err.removeprefix("loopjax inspect: ").rstrip("\n")


def rows(source, **how):
    return {row["name"]: row for row in tree_numbers.inspect(source, **how)["arrays"]}


def dense(*shape, seed=0):
    return np.random.default_rng(seed + sum(shape)).standard_normal(shape).astype(np.float32)


def maxtext(layers=3, seed=0):
    """Parameters as MaxText stores them: scanned along axis 1, "params" twice."""
    blocks = {
        "mlp": {"wi": {"kernel": dense(8, layers, 16, seed=seed)},
                "wo": {"kernel": dense(16, layers, 8, seed=seed)}},
        "norm": {"scale": dense(8, layers, seed=seed)},
    }  # fmt: skip
    embedder = {"embedding": dense(32, 8, seed=seed)}
    return {"params": {"params": {"decoder": {"layers": blocks}, "token_embedder": embedder}}}


# What is printed


def test_a_managers_checkpoint_is_printed_whole(tmp_path, capsys):
    foreign.manager(tmp_path / "run")
    out = shown(capsys, tmp_path / "run", "--layers")
    out = re.sub(r"saved .*", "saved TIME", out.replace(str(tmp_path), "DIR"))
    out = re.sub(r"\d+ B(?= on disk)|\d+ B$|[\d.]+ kB on disk", "N", out, flags=re.MULTILINE)
    assert out == GOLDEN


def test_every_kind_of_checkpoint_is_shown_with_its_tree(tmp_path, capsys):
    foreign.standard(tmp_path / "standard")
    foreign.pytree(tmp_path / "files", use_ocdbt=False)
    foreign.pytree(tmp_path / "zarr3", use_zarr3=True)
    foreign.train_state(tmp_path / "flax")
    foreign.nnx_state(tmp_path / "nnx")
    foreign.linen(tmp_path / "linen")
    v1.save(tmp_path / "v1", {"params": foreign.params()})
    foreign.standard(tmp_path / "maxtext", maxtext())
    lines = {
        "standard": ["layers", "attn.query 3x4x8 float32 - data model 384 B"],
        "files": ["format a directory per array, zarr2", "float8 2 float8_e4m3fn whole 2 B"],
        "zarr3": ["format OCDBT, zarr3", "key 2 uint32 whole 8 B", 'name string "text"'],
        "flax": ["step 5", "opt_state/0/count 0"],
        "nnx": ["kernel/value 4x8 float32 whole 128 B"],
        "linen": ["Dense_0", "kernel 4x4 float32 whole 64 B"],
        "v1": ["origin not written by loopjax; items: state (tree)", "state/params"],
        "maxtext": ["params/params", "wi/kernel 8x3x16 float32 ? 1.54 kB",
                    "Stack params/params/decoder/layers: 3 layers, along axis 1"],
    }  # fmt: skip
    for name, wanted in lines.items():
        out = shown(capsys, tmp_path / name)
        printed = [" ".join(line.split()) for line in out.splitlines()]
        assert any(line.startswith("origin not written by loopjax") for line in printed)
        assert "All values are finite." in printed
        for line in wanted:
            assert any(found.startswith(line) for found in printed), (name, line)


def test_json_has_everything_and_stdout_nothing_else(tmp_path, capsys):
    foreign.manager(tmp_path)
    found = json.loads(shown(capsys, tmp_path, "--layers", "--json"))
    about = found["checkpoint"]
    assert about["step"] == 20 and about["custom"] == {"learning_rate": 0.5}
    assert about["items"]["metadata"]["kind"] == "JSON" and not about["ours"]
    totals = about["totals"]
    assert totals["parameter"]["elements"] == totals["first moment"]["elements"] == 188
    assert totals["parameter"]["bytes"] == 188 * 4 - 48 * 2
    assert totals["first moment"]["below"] == "state/opt_state/0/mu"
    [query] = [a for a in found["arrays"] if a["name"] == "state/params/layers/attn.query"]
    mesh = {"data": 2, "model": 4}
    assert query["sharding"] == {"spec": [[], ["data"], ["model"]], "mesh": mesh}


def test_paths_are_drawn_as_a_tree_with_single_folders_on_one_line():
    names = ["params/decoder/layers/a/w", "params/decoder/layers/b", "params/x", "step"]
    assert tree_terminal.tree(names) == [
        ("params", None),
        ("  decoder/layers", None),
        ("    a/w", 0),
        ("    b", 1),
        ("  x", 2),
        ("step", 3),
    ]


# Numbers


def test_norms_are_numpys_and_what_is_not_finite_is_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "BLOCK", 10)
    hurt = dense(3, 5)
    hurt[1, 2], hurt[2, 0] = np.nan, np.inf
    tree = {
        "hurt": hurt,
        "narrow": jnp.asarray(dense(40, 3), jnp.bfloat16),
        "float8": jnp.asarray(dense(9, 2), jnp.float8_e5m2),
        "whole": np.arange(7),
        "complex": np.array([3 + 4j, 0]),
    }
    foreign.standard(tmp_path / "ckpt", tree)
    found = rows(tmp_path / "ckpt")
    for name in ("hurt", "narrow", "float8", "whole", "complex"):
        x = np.asarray(tree[name])
        x = x if name == "complex" else x.astype(np.float64)
        finite = np.abs(x[np.isfinite(x)])
        assert found[name]["norm"] == pytest.approx(np.linalg.norm(finite), rel=1e-7), name
        assert found[name]["rms"] == pytest.approx(np.sqrt(np.mean(finite**2)), rel=1e-7)
        assert found[name]["largest"] == finite.max()
        assert found[name]["not_finite"] == (2 if name == "hurt" else 0)


@pytest.mark.parametrize("axis", [0, 1])
def test_layers_of_a_stack_are_those_of_numpy(tmp_path, axis, monkeypatch):
    monkeypatch.setattr(stored, "BLOCK", 64)
    tree = maxtext()
    if axis == 0:
        tree = jax.tree.map(lambda x: np.moveaxis(x, 1, 0) if 3 in x.shape else x, tree)
    foreign.standard(tmp_path / "ckpt", tree)
    [stack] = tree_numbers.inspect(tmp_path / "ckpt", layers=True)["stacks"]
    assert (stack["name"], stack["axis"]) == ("params/params/decoder/layers", axis)
    mlp = tree["params"]["params"]["decoder"]["layers"]["mlp"]
    layers = [np.moveaxis(mlp[kind]["kernel"], axis, 0).reshape(3, -1) for kind in ("wi", "wo")]
    assert stack["norms"]["mlp/wi/kernel"] == pytest.approx(np.linalg.norm(layers[0], axis=1))
    both = np.concatenate(layers, axis=1)
    for i, pair in enumerate(stack["neighbors"]):
        for name, x in (("mlp/wo/kernel", layers[1]), ("matrices", both)):
            cosine = x[i] @ x[i + 1] / np.linalg.norm(x[i]) / np.linalg.norm(x[i + 1])
            assert pair["cosine"][name] == pytest.approx(cosine, abs=1e-6)


def test_layers_with_a_name_each_are_a_stack_too(tmp_path):
    layers = {f"layer_{i}": {"attn": {"w": dense(4, 4, seed=i)}, "b": dense(4)} for i in range(11)}
    foreign.standard(tmp_path / "ckpt", {"transformer": {**layers, "final": dense(4)}})
    [stack] = tree_numbers.inspect(tmp_path / "ckpt", layers=True)["stacks"]
    assert (stack["name"], stack["layers"], stack["axis"]) == ("transformer/layer_*", 11, None)
    w = np.stack([layers[f"layer_{i}"]["attn"]["w"].ravel() for i in range(11)])
    assert stack["norms"]["attn/w"] == pytest.approx(np.linalg.norm(w, axis=1))
    cosine = w[9] @ w[10] / np.linalg.norm(w[9]) / np.linalg.norm(w[10])
    assert stack["neighbors"][9]["cosine"]["attn/w"] == pytest.approx(cosine, abs=1e-6)
    assert stack["neighbors"][9]["cosine"]["b"] == 1


def test_modules_in_a_list_are_no_stack_if_they_differ(tmp_path):
    foreign.nnx_state(tmp_path / "ckpt")
    assert tree_numbers.inspect(tmp_path / "ckpt")["stacks"] == []


def test_moments_stand_beside_their_parameters(tmp_path, capsys):
    params = {"dense": {"kernel": dense(4, 8), "bias": dense(8)}}
    optimizer = optax.chain(optax.clip(99.0), optax.adamw(1e-3))
    state = optimizer.update(params, optimizer.init(params), params)[1]
    foreign.standard(tmp_path / "ckpt", {"params": params, "opt_state": state})
    found = rows(tmp_path / "ckpt")
    first, second = (found[f"opt_state/1/0/{m}/dense/kernel"] for m in ("mu", "nu"))
    assert first["of"] == second["of"] == "params/dense/kernel"
    assert first["rms"] == pytest.approx(0.1 * found["params/dense/kernel"]["rms"], rel=1e-5)
    line = next(x for x in shown(capsys, tmp_path / "ckpt").splitlines()[::-1] if "kernel" in x)
    assert line.split()[-2:] == [f"{first['rms']:.3g}", f"{second['rms']:.3g}"]


# Names


def sections(tree, tmp_path):
    foreign.standard(tmp_path / "ckpt", tree)
    arrays = open_tree(tmp_path / "ckpt").arrays
    return {name: (role.section, role.of) for name, role in structure.roles(arrays).items()}


def test_moments_are_recognized_by_name_and_shape(tmp_path):
    x = np.ones((2, 3), np.float32)
    first, second = ("first moment", "params/a/w"), ("second moment", "params/a/w")
    found = sections(
        {
            "params": {"a": {"w": x, "v": {"w": x}}, "b": {"w": x}},
            "opt_state": {
                "optax": {"mu": {"a": {"w": x}}, "nu": {"a": {"w": x}}},
                "torch": {"a": {"w": {"exp_avg": x, "exp_avg_sq": x}}},
                "below": {"m": {"params": {"a": {"w": x}}}, "v": {"params": {"a": {"w": x}}}},
                "factored": {"mu": {"a": {"w": np.ones(2)}}, "count": np.ones(1)},
            },
            "step": np.ones(1),
        },
        tmp_path,
    )
    assert found["opt_state/optax/mu/a/w"] == found["opt_state/torch/a/w/exp_avg"] == first
    assert found["opt_state/optax/nu/a/w"] == found["opt_state/torch/a/w/exp_avg_sq"] == second
    assert found["opt_state/below/m/params/a/w"] == first
    assert found["opt_state/below/v/params/a/w"] == second
    assert found["params/a/v/w"] == ("parameter", "")  # a "v" of attention is no moment
    assert found["opt_state/factored/mu/a/w"] == ("optimizer", "")
    assert found["opt_state/factored/count"] == ("optimizer", "")
    assert found["step"] == ("other", "")


def test_t5x_and_trees_without_params_are_recognized(tmp_path):
    x = np.ones((2, 3), np.float32)
    found = sections(
        {
            "target": {"encoder": {"w": x}},
            "state": {"param_states": {"encoder": {"w": {"m": x, "v": x, "v_row": np.ones(2)}}}},
        },
        tmp_path / "t5x",
    )
    assert found["target/encoder/w"] == ("parameter", "")
    assert found["state/param_states/encoder/w/m"] == ("first moment", "target/encoder/w")
    assert found["state/param_states/encoder/w/v_row"] == ("optimizer", "")
    found = sections({"q": {"w": x}, "v": {"w": x}}, tmp_path / "bare")
    assert set(found.values()) == {("parameter", "")}
    found = sections([{"w": x}, [{"mu": {"w": x}, "nu": {"w": x}}]], tmp_path / "pair")
    assert found["1/0/nu/w"] == ("second moment", "0/w")


def test_a_value_alone_is_nnxs_and_one_among_others_a_parameter(tmp_path):
    x = np.ones((2, 3), np.float32)
    layers = {"key": x, "value": x}
    wrapped = {"kernel": {"value": x}, "bias": {"raw_value": np.ones(3)}}
    foreign.standard(tmp_path / "a", {"params": {"layers": layers, "dense": wrapped}})
    roles = structure.roles(open_tree(tmp_path / "a").arrays)
    assert {name: role.parameter for name, role in roles.items()} == {
        "params/dense/bias/raw_value": "dense/bias",
        "params/dense/kernel/value": "dense/kernel",
        "params/layers/key": "layers/key",
        "params/layers/value": "layers/value",
    }


def test_the_axis_of_layers_is_the_one_that_all_arrays_share():
    assert structure.layers_axis([(3, 4, 8), (3, 8, 4), (3, 4)]) == 0
    assert structure.layers_axis([(4, 3, 8), (8, 3, 4), (4, 3)]) == 1
    assert structure.layers_axis([(24, 64, 8), (24, 64)]) == 0  # both fit
    assert structure.layers_axis([(4, 8), (8, 4)]) is None
    assert structure.layers_axis([(4, 3), (4,), ()]) is None


# --against, --grep, --export


def test_two_checkpoints_are_compared_by_path_and_stacks_by_order(tmp_path, capsys):
    ours, theirs = maxtext(3), maxtext(5, seed=7)
    blocks = [t["params"]["params"]["decoder"]["layers"]["mlp"]["wi"] for t in (ours, theirs)]
    blocks[1]["kernel"][:, 1] = blocks[0]["kernel"][:, 1]
    foreign.standard(tmp_path / "a", ours)
    with ocp.CheckpointManager(tmp_path / "b") as saver:
        saver.save(9, args=ocp.args.Composite(items=ocp.args.StandardSave(theirs["params"])))
    result = tree_numbers.inspect(tmp_path / "a", other=tmp_path / "b")["against"]
    name = "params/params/decoder/layers/mlp/wi/kernel"
    assert result["step"] == 9 and result["depths"] == {"params/params/decoder/layers": [3, 5]}
    [row] = [row for row in result["arrays"] if row["name"] == name]
    assert row["other"] == "items/params/decoder/layers/mlp/wi/kernel"
    a, b = (block["kernel"][:, :3].astype(np.float64) for block in blocks)
    assert row["distance"] == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(a))
    assert row["cosine"] == pytest.approx((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))
    assert [layer["layers"] for layer in result["layers"]] == [[0, 0], [1, 1], [2, 2]]
    assert result["layers"][1]["distance"] < result["layers"][0]["distance"]
    out = shown(capsys, tmp_path / "a", "--against", tmp_path / "b", "--grep", "wi", "--layers")
    assert "3 layers in the first, 5 in the second; layer i with layer i" in out
    assert "Not compared" not in out and "embedding" not in out
    same = tree_numbers.inspect(tmp_path / "a", other=tmp_path / "a")["against"]
    assert {(row["distance"], row["cosine"]) for row in same["arrays"]} == {(0.0, 1.0)}


def test_only_matching_paths_are_shown(tmp_path, capsys):
    foreign.standard(tmp_path / "ckpt")
    out = shown(capsys, tmp_path / "ckpt", "--grep", "mlp|scale")
    assert "mlp/up" in out and "embed" not in out
    wanted = {
        "zzz": f"--grep 'zzz' matches none of the 4 arrays of {tmp_path}/ckpt",
        "(": "--grep '(' is not a regular expression: missing ), unterminated subpattern",
    }
    for pattern, sentence in wanted.items():
        assert refused(capsys, tmp_path / "ckpt", "--grep", pattern)[1].startswith(sentence)


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_exported_arrays_are_the_saved_ones(tmp_path, capsys, suffix, monkeypatch):
    monkeypatch.setattr(stored, "BLOCK", 16)
    monkeypatch.setattr("loopjax.weights.export.BLOCK", 16)
    saved = foreign.pytree(tmp_path / "ckpt", use_zarr3=True)
    file = tmp_path / "new" / f"out.{suffix}"
    line = shown(capsys, tmp_path / "ckpt", "--export", file, "--grep", "^(?!float8|int4)")
    read = np.load if suffix == "npz" else safetensors.numpy.load_file
    found = dict(read(file))
    assert line.startswith(f"{len(found)} arrays, {file.stat().st_size:,} bytes, in {file}")
    assert set(found) == set(open_tree(tmp_path / "ckpt").arrays) - {"float8", "int4"}
    up = np.asarray(saved["params"]["layers"]["mlp/up"])
    wanted = {
        "params/layers/attn.query": np.asarray(saved["params"]["layers"]["attn.query"]),
        "params/layers/mlp/up": up.astype(np.float32) if suffix == "npz" else up,
        "bool": np.array([True, False]),
        "step": np.array(7),
    }
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype and found[name].shape == value.shape, name
        assert found[name].tobytes() == value.tobytes(), name
    assert ("bfloat16 as float32" in line) == (suffix == "npz")


def test_mistakes_with_flags_are_refused(tmp_path, capsys):
    foreign.standard(tmp_path / "ckpt")
    ckpt = tmp_path / "ckpt"
    wanted = [
        ([ckpt, "--plot", tmp_path / "a.png"], "--plot shows plan and lineage, which only checkpoints"),
        ([ckpt, "--export", "a.txt"], "--export a.txt must end in .npz or .safetensors"),
        ([ckpt, "--export", "a.npz", "--layers"], "--export writes a file only"),
        ([ckpt, "--step", "3"], f"{ckpt} is one checkpoint, not a directory with step 3"),
        (["s3://bucket/ckpt"], "DIR[@STEP] 's3://bucket/ckpt' is a URL of storage that is not"),
    ]  # fmt: skip
    for args, sentence in wanted:
        out, err = refused(capsys, *args)
        assert out == "" and err.startswith(sentence), err
    assert not list(tmp_path.glob("a.*"))


# Damage, and what is whole


def test_of_a_damaged_checkpoint_the_rest_is_shown_and_the_sentence_names_file_and_array(
    tmp_path, capsys
):
    foreign.standard(tmp_path / "ckpt", {"params": {"big": dense(64, 64), "small": dense(3)}})
    data = max((tmp_path / "ckpt").rglob("d/*"), key=lambda file: file.stat().st_size)
    whole = data.read_bytes()
    name = data.relative_to(tmp_path / "ckpt")
    data.write_bytes(whole[:1000])
    out, err = refused(capsys, tmp_path / "ckpt")
    assert err == (
        f"checkpoint {tmp_path}/ckpt is damaged (params/big: the file {name} is cut short, at 1,000 "
        "bytes); 1 other array can be read"
    )
    assert "small" in out and "cannot be read" in out
    data.write_bytes(bytes(200) + whole[200:])
    out, err = refused(capsys, tmp_path / "ckpt")
    assert "is damaged (" in err and "params/big" in err and "1 other array can be read" in err
    assert f"{np.linalg.norm(dense(3)):.4g}" in out
    assert refused(capsys, tmp_path / "ckpt", "--export", tmp_path / "a.npz")[0] == ""
    assert not list(tmp_path.glob("a.npz*"))


def test_a_missing_manifest_or_data_file_is_named(tmp_path, capsys):
    foreign.manager(tmp_path / "run")
    state = tmp_path / "run" / "20" / "state"
    (state / "manifest.ocdbt").rename(tmp_path / "manifest")
    out, err = refused(capsys, tmp_path / "run")
    assert err == (
        f"checkpoint {tmp_path}/run/20 is damaged (state: the file manifest.ocdbt is missing); "
        "1 other array can be read"
    )
    assert "table" in out
    (tmp_path / "manifest").rename(state / "manifest.ocdbt")
    for file in (state / "d").iterdir():
        file.unlink()
    assert "is damaged (state: NOT_FOUND" in refused(capsys, tmp_path / "run")[1]
    shown(capsys, f"{tmp_path}/run@10")
    foreign.pytree(tmp_path / "files", use_ocdbt=False)
    (tmp_path / "files" / "int8" / ".zarray").unlink()
    err = refused(capsys, tmp_path / "files")[1]
    assert "is damaged (int8: the array is missing); 11 other arrays can be read" in err


def test_a_tree_without_arrays_is_whole(tmp_path, capsys):
    with ocp.CheckpointManager(tmp_path / "run") as saver:
        saver.save(1, args=ocp.args.Composite(a=ocp.args.JsonSave({"b": 1})))
    assert "not written by loopjax; items: a (JSON)" in shown(capsys, tmp_path / "run")
    foreign.standard(tmp_path / "ckpt", {"nothing": None, "empty": {}, "one": np.ones(1)})
    assert "nothing" in shown(capsys, tmp_path / "ckpt")


def test_what_is_no_whole_checkpoint_is_refused(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert refused(capsys, tmp_path / "empty")[1] == f"{tmp_path}/empty has no checkpoint"
    foreign.standard(tmp_path / "3")
    (tmp_path / "3").rename(tmp_path / "3.orbax-checkpoint-tmp")
    assert refused(capsys, tmp_path)[1] == (
        f"{tmp_path} has no checkpoint, only 3.orbax-checkpoint-tmp, which was not completed"
    )


def test_an_item_named_meta_does_not_make_a_checkpoint_ours(tmp_path, capsys):
    with ocp.CheckpointManager(tmp_path / "run") as saver:
        items = {
            "params": ocp.args.StandardSave(foreign.params()),
            "meta": ocp.args.JsonSave({"a": 1}),
        }
        saver.save(4, args=ocp.args.Composite(**items))
    out = shown(capsys, tmp_path / "run")
    assert "not written by loopjax; items: meta (JSON), params (tree)" in " ".join(out.split())
    assert numbers.finite({"a": float("nan")}) == {"a": None}


GOLDEN = """\
checkpoint    DIR/run/20
origin        not written by loopjax; items: metadata (JSON), metrics (JSON),
              state (tree), table (array)
step          20
saved TIME
format        OCDBT, zarr2; a directory per array, zarr2
mesh          data=2, model=4
metrics       {"loss": 2.5}
metadata      {"learning_rate": 0.5}
of the run    {"project": "x"}
parameters    188 in 4 arrays, 656 B (N)
moments 1     188 in 4 arrays, 656 B (N on disk), below state/opt_state/0/mu
moments 2     188 in 4 arrays, 656 B (N on disk), below state/opt_state/0/nu
optimizer     1 in 1 array, 4 B (N on disk)
other         7 in 2 arrays, 56 B (N on disk)

Parameters

path            shape  dtype     sharding      memory  on disk
state/params
  embed         8x4    float32   model -        128 B    N
  layers
    attn.query  3x4x8  float32   - data model   384 B    N
    mlp/up      3x4x4  bfloat16  whole           96 B    N
    scale       3x4    float32   whole           48 B    N

path             norm    rms   max  moment 1  moment 2
state/params
  embed         5.069  0.896  1.91         0         0
  layers
    attn.query  10.21   1.04  2.28         0         0
    mlp/up      6.011  0.868  1.92         0         0
    scale       2.223  0.642  1.34         0         0

moment 1, moment 2: root mean squares of the moments that the optimizer has of
them

Other optimizer state

path                     shape   dtype  sharding  memory  on disk
state/opt_state/0/count  scalar  int32  whole        4 B    N

Other arrays

path        shape   dtype  sharding  memory  on disk
state/step  scalar  int64  ?            8 B    N
table       6       int64  ?           48 B    N

path    norm   rms  max
table  7.416  3.03    5

value
state/opt_state/0/count  0
state/step               20

no array
state/opt_state/1  None
state/opt_state/2  None

All values are finite.

Stack state/params/layers: 3 layers, along axis 0

Norms by layer

layer  attn.query  mlp/up   scale
0           5.781   3.403  0.9785
1           5.342   3.738   1.729
2           6.495   3.254  0.9973

Cosine of neighboring layers (matrices: all matrices as one vector)

layers  attn.query  mlp/up   scale  matrices
0 1          0.109  -0.117  -0.891     0.043
1 2         -0.096  -0.253   0.781    -0.135
"""
