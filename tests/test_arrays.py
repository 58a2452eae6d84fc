"""`open_tree` reads what Orbax wrote: the same names, values, types and shardings, without Orbax."""

import asyncio
import json
import shutil

import jax
import numpy as np
import pytest
import tensorstore as ts
from etils import epath
from flax import nnx, serialization
from orbax.checkpoint import v1
from orbax.checkpoint._src.serialization import ocdbt_utils, tensorstore_utils

from loopjax.checkpoint_files import kvstore
from loopjax.errors import UserError
from loopjax.weights import ocdbt
from loopjax.weights.arrays import open_tree
from loopjax.weights.stored import Sharding
from tests import foreign


def same(tree, name, value):
    value = np.asarray(value)
    found = tree.arrays[name].read()
    assert found.shape == value.shape and str(found.dtype) == str(value.dtype), name
    assert found.tobytes() == value.tobytes(), name


def test_a_managers_newest_step_is_opened_with_its_items_and_metadata(tmp_path):
    foreign.manager(tmp_path / "run")
    tree = open_tree(tmp_path / "run")
    assert tree.step == 20 and open_tree(f"{tmp_path}/run@10").step == 10
    kinds = {name: item.kind for name, item in tree.items.items()}
    assert kinds == {"metadata": "JSON", "metrics": "JSON", "state": "tree", "table": "array"}
    params = foreign.params()
    same(tree, "state/params/embed", params["embed"])
    same(tree, "state/params/layers/attn.query", params["layers"]["attn.query"])
    same(tree, "table", np.arange(6))
    query = tree.arrays["state/opt_state/0/nu/layers/attn.query"]
    assert query.keys == ("opt_state", "0", "nu", "layers", "attn.query")
    assert query.sharding == Sharding((None, "data", "model"), {"data": 2, "model": 4})
    assert query.chunk == (3, 2, 2) and query.stored > 0 and query.dtype == "float32"
    assert tree.others == {"state/opt_state/1": "None", "state/opt_state/2": "None"}
    assert tree.metadata["custom"] == {"learning_rate": 0.5}
    assert tree.metadata["root"] == {"project": "x"} and tree.metadata["metrics"] == {"loss": 2.5}
    assert 0 <= tree.metadata["written"] - tree.metadata["begun"] < 60
    assert open_tree(tmp_path / "run" / "20" / "state").arrays["step"].read() == 20


@pytest.mark.parametrize("zarr3", [False, True])
@pytest.mark.parametrize("database", [False, True])
def test_every_kind_of_leaf_is_read_from_every_format(tmp_path, database, zarr3):
    saved = foreign.pytree(tmp_path / "ckpt", use_ocdbt=database, use_zarr3=zarr3)
    tree = open_tree(tmp_path / "ckpt")
    assert tree.unreadable == {} and set(tree.items) == {""}
    container = "OCDBT" if database else "a directory per array"
    assert tree.metadata["format"] == f"{container}, zarr{2 + zarr3}"
    for name in ("float8", "int8", "int4", "bool"):
        same(tree, name, saved[name])
    same(tree, "params/layers/mlp/up", saved["params"]["layers"]["mlp/up"])
    same(tree, "list/1", saved["list"][1])
    assert tree.arrays["step"].read() == 7 and tree.arrays["list/0"].read() == 1.5
    same(tree, "key", jax.random.key_data(saved["key"]))
    assert tree.arrays["key"].kind == "random key (threefry2x32)"
    assert tree.others == {"empty": "empty dict", "name": 'string "text"', "nothing": "None"}


def test_a_part_of_an_array_is_read_by_index(tmp_path):
    foreign.standard(tmp_path / "ckpt")
    query = open_tree(tmp_path / "ckpt").arrays["layers/attn.query"]
    whole = np.asarray(foreign.params()["layers"]["attn.query"])
    assert np.array_equal(query.read((slice(1, 2), ..., slice(0, 3))), whole[1:2, :, :3])
    assert all(np.array_equal(query.read(cut), whole[cut]) for cut in query.blocks(whole=0))


def test_train_states_nnx_states_and_linen_parameters(tmp_path):
    foreign.train_state(tmp_path / "state")
    tree = open_tree(tmp_path / "state")
    assert tree.step == 5 and tree.arrays["step"].read() == 5  # no "default/" in front
    assert "opt_state/0/mu/embed" in tree.arrays
    state = nnx.state(foreign.nnx_state(tmp_path / "nnx"))
    tree = open_tree(tmp_path / "nnx")
    same(tree, "layers/0/kernel/value", state["layers"][0]["kernel"].get_value())
    saved = foreign.linen(tmp_path / "linen")
    same(
        open_tree(tmp_path / "linen"), "params/Dense_2/kernel", saved["params"]["Dense_2"]["kernel"]
    )


def test_the_new_api_of_orbax_writes_what_is_read(tmp_path):
    v1.save(tmp_path / "one", {"params": foreign.params(), "name": "text"})
    tree = open_tree(tmp_path / "one")
    same(tree, "state/params/layers/mlp/up", foreign.params()["layers"]["mlp/up"])
    assert tree.others == {"state/name": 'string "text"'}
    with v1.training.Checkpointer(tmp_path / "steps") as saver:
        saver.save(3, {"a": np.ones(2)}, custom_metadata={"k": 1})
    tree = open_tree(tmp_path / "steps@3")
    same(tree, "state/a", np.ones(2))
    assert tree.metadata["custom"] == {"k": 1}


def test_keys_with_slashes_are_told_from_nested_keys(tmp_path):
    foreign.standard(tmp_path / "ckpt", {"a": {"b": np.zeros(1)}, "a/b": np.ones(1)})
    tree = open_tree(tmp_path / "ckpt")
    assert tree.arrays["a/b"].read() == 0 and tree.arrays["'a/b'"].read() == 1


@pytest.mark.parametrize("database", [False, True])
def test_without_tree_metadata_the_stored_names_are_listed(tmp_path, database):
    foreign.pytree(tmp_path / "ckpt", use_ocdbt=database, use_zarr3=not database)
    (tmp_path / "ckpt" / "_METADATA").unlink()
    (tmp_path / "ckpt" / "_sharding").unlink()
    tree = open_tree(tmp_path / "ckpt")
    embed = tree.arrays["params/embed"]
    assert embed.sharding is None and embed.kind == "array"
    same(tree, "params/embed", foreign.params()["embed"])
    same(tree, "params/layers/mlp/up", foreign.params()["layers"]["mlp/up"])


def test_several_processes_write_parts_of_one_array(tmp_path):
    """As Orbax lays it out: a database per process, merged into one that points into theirs."""
    whole = np.arange(32.0).reshape(4, 8)
    for process in range(2):
        base = kvstore(tmp_path / "ckpt" / f"ocdbt.process_{process}")
        store = {"driver": "ocdbt", "base": base, "path": "params.w/"}
        spec = {"driver": "zarr", "kvstore": store, "metadata": {"chunks": [2, 8]}}
        array = ts.open(spec, open=True, create=True, dtype=ts.float64, shape=(4, 8)).result()
        rows = slice(2 * process, 2 * process + 2)
        array[rows].write(whole[rows]).result()
    ts_context = tensorstore_utils.get_ts_context()
    merge = ocdbt_utils.merge_ocdbt_per_process_files
    asyncio.run(merge(epath.Path(tmp_path / "ckpt"), ts_context, use_zarr3=False))
    tree = open_tree(tmp_path / "ckpt")
    same(tree, "params/w", whole)
    assert tree.arrays["params/w"].chunk == (2, 8)


def test_large_databases_have_nodes_below_nodes(tmp_path):
    config = {"max_decoded_node_bytes": 300, "max_inline_value_bytes": 8}
    spec = {"driver": "ocdbt", "base": kvstore(tmp_path), "config": config}
    store = ts.KvStore.open(spec).result()
    for k in range(40):
        store.write(f"params.layers.{k:02d}/.zarray", b"x" * k).result()
    found = ocdbt.entries(tmp_path)
    assert list(found) == sorted(key.decode() for key in store.list().result())
    for k, (length, file, end) in enumerate(found.values()):
        assert length == k and (file is None) == (k <= 8)
        if file:
            assert (tmp_path / file).read_bytes()[end - length : end] == b"x" * k


def test_directories_of_steps_are_known_by_the_names_of_orbax(tmp_path):
    for name in ("a/run_000030", "a/run_000200", "b/gemma-2", "c/small_1", "c/large_2"):
        foreign.standard(tmp_path / name, {"w": np.ones(2)})
    assert open_tree(tmp_path / "a").path.name == "run_000200"
    assert open_tree(f"{tmp_path}/a@30").step == 30
    assert open_tree(tmp_path / "b" / "gemma-2").step is None
    for folder, names in (("b", "gemma-2"), ("c", "large_2, small_1")):
        with pytest.raises(UserError, match=f"no numbered checkpoints, but {names}; name one"):
            open_tree(tmp_path / folder)


def test_files_of_flax_are_read_too(tmp_path):
    tree = {
        "params": {"w": np.ones((2, 3), np.float32)},
        "step": np.int32(4),
        "note": "n",
        "no": None,
    }
    (tmp_path / "checkpoint_4").write_bytes(serialization.msgpack_serialize(tree))
    found = open_tree(tmp_path)
    assert found.step == 4 and found.others == {"note": 'string "n"', "no": "None"}
    same(found, "params/w", tree["params"]["w"])
    assert found.arrays["params/w"].read((0,)).tolist() == [1, 1, 1]


def test_damaged_arrays_are_named_with_their_file_and_the_others_read(tmp_path):
    foreign.manager(tmp_path / "run")
    state = tmp_path / "run" / "20" / "state"
    (state / "manifest.ocdbt").rename(tmp_path / "manifest")
    tree = open_tree(tmp_path / "run")
    assert "manifest.ocdbt" in tree.unreadable["state"] and set(tree.arrays) == {"table"}
    (tmp_path / "manifest").rename(state / "manifest.ocdbt")
    big = np.random.default_rng(0).standard_normal((64, 64))
    foreign.standard(tmp_path / "ckpt", {"big": big, "small": np.ones(1)})
    data = max((tmp_path / "ckpt").rglob("d/*"), key=lambda file: file.stat().st_size)
    data.write_bytes(data.read_bytes()[:1000])
    tree = open_tree(tmp_path / "ckpt")
    name = data.relative_to(tmp_path / "ckpt")
    assert tree.unreadable == {"big": f"the file {name} is cut short, at 1,000 bytes"}
    same(tree, "small", np.ones(1))


def test_what_is_no_checkpoint_is_refused(tmp_path):
    foreign.standard(tmp_path / "a")
    (tmp_path / "empty").mkdir()
    wanted = {
        tmp_path / "no": "is not a directory of checkpoints",
        tmp_path / "empty": "has no checkpoint",
        tmp_path: "has no numbered checkpoints, but a; name one",
        f"{tmp_path}/a@3": "is one checkpoint, not a directory with step 3",
    }
    for source, sentence in wanted.items():
        with pytest.raises(UserError, match=sentence):
            open_tree(source)
    shutil.move(tmp_path / "a", tmp_path / "empty" / "5.orbax-checkpoint-tmp")
    with pytest.raises(UserError, match="only 5.orbax-checkpoint-tmp, which was not completed"):
        open_tree(tmp_path / "empty")
    with pytest.raises(UserError, match="was not completed: Orbax"):
        open_tree(tmp_path / "empty" / "5.orbax-checkpoint-tmp")


def test_checkpoints_with_a_msgpack_file_beside_the_arrays_keep_their_keys(tmp_path):
    """As Orbax wrote them before `_METADATA`, and T5X, whose placeholder is a TensorStore spec."""
    spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": "b.w"}, "metadata": {}}
    leaves = {"a": {"w.x": "PLACEHOLDER://a.w.x"}, "b": {"w": spec}, "step": 3, "rest": np.ones(2)}
    (tmp_path / "checkpoint").write_bytes(serialization.msgpack_serialize(leaves))
    for name in ("a.w.x", "b.w"):
        store = {"driver": "file", "path": f"{tmp_path}/{name}/"}
        array = ts.open(
            {"driver": "zarr", "kvstore": store}, create=True, dtype=ts.float32, shape=(4, 2)
        ).result()
        array[...] = np.full((4, 2), 5, np.float32)
    tree = open_tree(tmp_path)
    assert tree.unreadable == {} and tree.metadata["format"].endswith("zarr2, msgpack")
    assert tree.arrays["a/w.x"].keys == ("a", "w.x") and tree.arrays["step"].read() == 3
    assert tree.arrays["rest"].stored is None
    same(tree, "b/w", np.full((4, 2), 5, np.float32))


def test_a_damaged_sharding_file_leaves_the_arrays_readable(tmp_path):
    foreign.standard(tmp_path / "ckpt")
    file = tmp_path / "ckpt" / "_sharding"
    no_axis = {"partition_spec": ["x"], "axis_names": ["y"], "shape": [2]}
    for text in (
        "{",
        "[]",
        json.dumps({"ZW1iZWQ=": json.dumps(no_axis)}),
        '{"ZW1iZWQ=": "{\\"partition_spec\\": []}"}',
        '{"ZW1iZWQ=": 3}',
    ):
        file.write_text(text)
        tree = open_tree(tmp_path / "ckpt")
        assert list(tree.unreadable) == ["_sharding"] and len(tree.arrays) == 4
        assert tree.arrays["embed"].sharding is None


def test_with_damaged_tree_metadata_the_stored_names_are_listed(tmp_path):
    foreign.pytree(tmp_path / "ckpt")
    (tmp_path / "ckpt" / "_METADATA").write_text("{")
    tree = open_tree(tmp_path / "ckpt")
    assert list(tree.unreadable) == ["_METADATA"] and len(tree.arrays) == 12
    foreign.pytree(tmp_path / "other")
    (tmp_path / "other" / "_strings.json").write_text("{")
    tree = open_tree(tmp_path / "other")
    assert list(tree.unreadable) == ["_strings.json"] and len(tree.arrays) == 12


@pytest.mark.parametrize("zarr3", [False, True])
def test_a_missing_chunk_is_not_read_as_zeros(tmp_path, zarr3):
    foreign.pytree(tmp_path / "ckpt", use_ocdbt=False, use_zarr3=zarr3)
    chunk = "c/1/0" if zarr3 else "1.0"
    (tmp_path / "ckpt" / "params.embed" / chunk).unlink()
    tree = open_tree(tmp_path / "ckpt")
    assert tree.unreadable == {"params/embed": "1 of its 8 chunks are missing"}
    assert len(tree.arrays) == 11
