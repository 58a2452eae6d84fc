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

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax.core import meta as boxes
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from loopjax import checkpoint, curriculum, lineage, model, surgery
from loopjax import config as config_lib
from loopjax.checkpoint_files import digest
from loopjax.cli import main as cli
from loopjax.depth import DepthPlan
from loopjax.optim import decay_mask, make_optimizer
from loopjax.step import TrainState
from loopjax.train import train
from loopjax.weights import numbers, plot, saved, stored, terminal
from tests.conftest import tiny_run

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that grows 1, 2, 3 layers, on 8 devices, a checkpoint at every step in small pieces."""
    config = tiny_run()
    config.mesh.update(data=1, fsdp=4, tensor=2)
    config.checkpoint_every = 1
    config.eval_batches = 0
    workdir = tmp_path_factory.mktemp("runs") / "grown"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "PIECE", 256)
        train(config, workdir)
    return workdir


@pytest.fixture(scope="module")
def found(run):
    return numbers.inspect(run, layers=True)


def save(directory, config, plan, params, events=None, step=4):
    """A checkpoint that no run has made: these weights, fresh moments."""
    config = config_lib.resolved(config)
    optimizer, _ = make_optimizer(config)
    state = TrainState(np.int32(step), params, optimizer.init(params))
    events = events or [{"step": 0, "operator": "init", "plan": plan, "order": None}]
    checkpoints = checkpoint.Checkpoints(directory)
    checkpoints.save(
        step,
        state,
        {
            "plan": plan,
            "lineage": events,
            "phases": [],
            "data": {"position": step},
            "model": dataclasses.asdict(config_lib.model_config(config)),
            "config": config.to_dict(),
            "wall_clock_s": 1.0,
            "versions": checkpoint.versions(),
        },
    )
    checkpoints.wait()
    checkpoints.close()
    return directory


def fresh(config, layers, seed=1):
    cfg, random = config_lib.model_config(config), np.random.default_rng(seed)
    init = functools.partial(model.init_params, cfg, layers)
    shapes = boxes.unbox(jax.eval_shape(init, jax.random.key(0)))
    return jax.tree.map(lambda x: jnp.asarray(random.standard_normal(x.shape, x.dtype)), shapes)


def whole_optimizer(run, step):
    with ocp.StandardCheckpointer() as checkpointer:
        path = run / "checkpoints" / str(step) / "optimizer"
        tree = checkpointer.metadata(path).item_metadata.tree
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), tree
        )
        return checkpointer.restore(path, abstract)


def by_name(tree):
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    keystr = jax.tree_util.keystr
    return {keystr(k, simple=True, separator="/"): np.asarray(v, np.float64) for k, v in leaves}


def rms(x):
    return math.sqrt(np.mean(np.square(x)))


# Weights and updates


@pytest.mark.slow
def test_norms_are_those_of_the_weights(run, found):
    params = by_name(checkpoint.load_params(run)[0])
    modules = {m["name"]: m for m in found["parameters"]["modules"]}
    assert list(modules) == list(params)
    for name, x in params.items():
        assert modules[name]["shape"] == list(x.shape) and modules[name]["dtype"] == "float32"
        assert modules[name]["norm"] == pytest.approx(np.linalg.norm(x.ravel()), rel=1e-12)
        assert modules[name]["rms"] == pytest.approx(rms(x), rel=1e-12)
        if name.startswith("layers/"):
            norms = found["layers"]["norms"][name.removeprefix("layers/")]
            assert norms == pytest.approx([np.linalg.norm(layer) for layer in x], rel=1e-12)
    everything = np.concatenate([x.ravel() for x in params.values()])
    assert found["parameters"]["unique"] == everything.size
    assert found["parameters"]["all"]["norm"] == pytest.approx(np.linalg.norm(everything))


def test_moments_and_direction_are_adamws(run, found):
    adam = whole_optimizer(run, 12)["state"][1][0]
    first, second = by_name(adam["mu"]), by_name(adam["nu"])
    assert found["parameters"]["updates"] == int(adam["count"]) == 12
    for module in found["parameters"]["modules"]:
        m, v = first[module["name"]], second[module["name"]]
        direction = (m / (1 - 0.9**12)) / (np.sqrt(v / (1 - 0.95**12)) + 1e-8)
        assert module["first_moment_rms"] == pytest.approx(rms(m), rel=1e-6)
        assert module["second_moment_rms"] == pytest.approx(rms(v), rel=1e-6)
        assert module["update_rms"] == pytest.approx(rms(direction), rel=1e-5)


def test_the_last_update_is_the_one_that_training_made(run):
    """p - p' = lr (direction + decay p): the direction from the moments is that of the weights."""
    here = numbers.inspect(run, 11)
    before, meta = checkpoint.load_params(run, 10)
    after, decays = checkpoint.load_params(run, 11)[0], by_name(decay_mask(before))
    before, after = by_name(before), by_name(after)
    rate, decay = here["parameters"]["learning_rate"], meta["config"]["optimizer"]["weight_decay"]
    assert rate == float(make_optimizer(ConfigDict(meta["config"]))[1](10))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rate == rows[10]["learning_rate"] and rows[10]["step"] == 11
    for module in here["parameters"]["modules"]:
        p = before[module["name"]]
        made = (p - after[module["name"]]) / rate - decay * decays[module["name"]] * p
        assert module["update_rms"] == pytest.approx(rms(made), rel=1e-3)
        assert module["update_ratio"] == pytest.approx(
            rate * module["update_rms"] / module["rms"], rel=1e-9
        )


def test_parameters_are_counted_once_and_as_executed(tmp_path, tiny_config):
    tiny_config.depth, tiny_config.growth.operator = "1-2x3", ""
    params = fresh(tiny_config, 3)
    found = numbers.inspect(save(tmp_path / "c", tiny_config, "1-2x3", params))["parameters"]
    untied = surgery.untie(params, DepthPlan.parse("1-2x3"))
    assert found["unique"] == sum(x.size for x in jax.tree.leaves(params))
    assert found["effective"] == sum(x.size for x in jax.tree.leaves(untied))
    assert found["updates"] == 0 and found["learning_rate"] is None
    assert {m["update_rms"] for m in found["modules"]} == {None}


def test_many_devices_wrote_what_one_reads(run, found):
    """Another process, with one device, gives the same numbers; stdout holds JSON alone."""
    env = os.environ | {"PYTHONWARNINGS": "error"}
    command = [sys.executable, "-m", "loopjax", "inspect", str(run), "--layers", "--json"]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == "" and json.loads(done.stdout) == found
    about, query = found["checkpoint"], found["parameters"]["modules"][8]
    assert about["devices"] == 8 and about["mesh"] == {"data": 1, "fsdp": 4, "tensor": 2}
    assert query["name"] == "layers/query" and query["sharding"] == [[], ["fsdp"], ["tensor"]]


def test_an_array_is_read_in_blocks_that_cover_it(run, found, monkeypatch):
    monkeypatch.setattr(stored, "BLOCK", 100)
    leaves = saved.open_saved(run).leaves
    assert leaves["params/layers/gate"].chunk[0] == 3  # cut by sharding and pieces, not by layer
    assert len(leaves["params/layers/gate"].blocks()) > 10
    again = numbers.inspect(run, layers=True)
    for a, b in zip(again["parameters"]["modules"], found["parameters"]["modules"], strict=True):
        assert a == {k: pytest.approx(v) if isinstance(v, float) else v for k, v in b.items()}
    assert again["layers"]["similarity"] == [
        pytest.approx(r) for r in found["layers"]["similarity"]
    ]


@given(st.data(), st.booleans(), st.integers(1, 40))
def test_blocks_cover_every_element_once(data, stacked, block):
    shape = tuple(data.draw(st.lists(st.integers(1, 7), min_size=int(stacked), max_size=3)))
    chunk = tuple(data.draw(st.integers(1, n)) for n in shape)
    name = "params/layers/x" if stacked else "params/x"
    leaf = saved.Leaf(name, shape, "float32", chunk, None, {}, 0)
    seen = np.zeros(shape, int)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored, "BLOCK", block)
        for cut in leaf.blocks():
            assert not stacked or cut[0] == slice(0, shape[0])
            seen[cut] += 1
    assert (seen == 1).all()


# Layers


def test_copies_are_alike_when_they_have_just_grown_and_less_so_later(tmp_path, run, found):
    params, meta = checkpoint.load_params(run, 5)
    order = (0, 0, 1, 0)
    events = [*meta["lineage"], {"step": 5, "operator": "lidas", "plan": "4", "order": list(order)}]
    config = ConfigDict(meta["config"])
    grown = save(tmp_path / "c", config, "4", surgery.grow(params, order), events)
    layers = numbers.inspect(grown, layers=True)["layers"]
    new = [pair for pair in layers["copies"] if pair["since"] == 5]
    assert [pair["layers"] for pair in new] == [[0, 1], [0, 3], [1, 3]]
    assert {value for pair in new for value in pair["cosine"].values()} == {1.0}
    trained = [pair["cosine"]["matrices"] for pair in found["layers"]["copies"]]
    assert len(trained) == 3 and all(0.5 < value < 1 for value in trained)


def test_cosines_are_those_of_the_concatenated_matrices(run, found):
    layers = by_name(checkpoint.load_params(run)[0]["layers"])
    flat = np.concatenate([x.reshape(3, -1) for x in layers.values() if x.ndim == 3], axis=1)
    unit = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    assert np.array(found["layers"]["similarity"]) == pytest.approx(unit @ unit.T, abs=1e-9)
    up = layers["up"].reshape(3, -1)
    cosine = up[1] @ up[2] / np.linalg.norm(up[1]) / np.linalg.norm(up[2])
    neighbor = found["layers"]["neighbors"][1]
    assert neighbor["layers"] == [1, 2]
    assert neighbor["cosine"]["up"] == pytest.approx(cosine, abs=1e-9)
    assert neighbor["cosine"]["matrices"] == found["layers"]["similarity"][1][2]


def test_a_cosine_is_shown_as_1_only_when_it_is():
    assert [terminal.cosine(x) for x in (1.0, 0.99999, 0.5, -0.0001, None)] == [
        "1.000", "0.999", "0.500", "0.000", "–",
    ]  # fmt: skip


# Lineage


@st.composite
def growths(draw, events=None):
    """A lineage of random gathers, as events."""
    depth = draw(st.integers(1, 4))
    events = [{"step": 0, "operator": "init", "plan": str(depth), "order": None}]
    for step in range(1, draw(st.integers(1, 5))):
        new = draw(st.lists(st.integers(0, depth - 1), min_size=depth, max_size=depth + 4))
        events.append({"step": step, "operator": "midas", "plan": str(len(new)), "order": new})
        depth = len(new)
    return events


def gathered(events, since=0):
    """Labels of the stack after event `since`, carried through the gathers that follow."""
    labels = np.arange(int(events[since]["plan"]))
    for event in events[since + 1 :]:
        labels = labels[event["order"]]
    return labels.tolist()


@given(growths())
def test_the_ancestor_is_what_the_gathers_carry_along(events):
    stack = lineage.stages(events)
    for k in range(len(events)):
        assert list(lineage.ancestors(stack, k)) == gathered(events, k)
    descent = lineage.descent(stack)
    assert [list(column) for column in zip(*descent, strict=True)] == [
        gathered(events, k) for k in range(len(events))
    ]


@given(growths())
def test_siblings_were_one_layer_until_they_parted(events):
    stack, labels = lineage.stages(events), gathered(events)
    pairs = {(i, j): step for i, j, step in lineage.siblings(stack)}
    every = [(i, j) for j in range(len(labels)) for i in range(j)]
    assert set(pairs) == {(i, j) for i, j in every if labels[i] == labels[j]}
    for (i, j), step in pairs.items():
        apart, together = gathered(events, step), gathered(events, step - 1)
        assert apart[i] != apart[j] and together[i] == together[j]


@given(growths(), st.data())
def test_of_two_depths_each_layer_goes_with_a_layer_of_the_same_ancestor(events, data):
    fork = data.draw(st.integers(1, len(events)))
    stack, other = lineage.stages(events), lineage.stages(events[:fork])
    rule, pairs = lineage.match(stack, other)
    if len(stack[-1].order) == len(other[-1].order):
        assert pairs == [(i, i) for i in range(len(stack[-1].order))]
        return
    assert "descends from" in rule
    assert pairs == list(enumerate(gathered(events, fork - 1)))
    assert lineage.match(other, stack) == (rule, [(j, i) for i, j in pairs])
    grown_apart = [*other, lineage.Stage(99, (*range(len(other[-1].order)), *[0] * 99))]
    if len(stack) > fork:
        rule, pairs = lineage.match(grown_apart, stack)
        assert "common ancestors" in rule
        ours, theirs = (lineage.ancestors(s, fork - 1) for s in (grown_apart, stack))
        assert all(ours[i] == theirs[j] for i, j in pairs)
        assert [i for i, _ in pairs] == [i for i, a in enumerate(ours) if a in theirs]


def test_the_second_copy_goes_with_the_second_copy():
    first = lineage.Stage(0, (0, 1))
    deep = [first, lineage.Stage(3, (0, 0, 0, 1, 1))]
    shallow = [first, lineage.Stage(5, (0, 0, 1))]
    assert lineage.match(deep, shallow)[1] == [(0, 0), (1, 1), (2, 1), (3, 2), (4, 2)]


def test_first_stacks_of_other_depths_have_nothing_in_common():
    rule, pairs = lineage.match([lineage.Stage(0, (0, 1))], [lineage.Stage(0, (0, 1, 2))])
    assert pairs == []
    assert rule == "none: first stacks of 2 and 3 layers have no layers in common"


def test_the_stages_are_those_of_the_curriculum(found):
    assert found["lineage"]["events"] == curriculum.lineage(curriculum.build(tiny_run()), 12)
    assert [event["operator"] for event in found["lineage"]["events"]] == [
        "init", "lidas", "lidas", "data",
    ]  # fmt: skip
    assert found["lineage"]["stages"] == [
        {"step": 0, "operator": "init", "layers": 1},
        {"step": 2, "operator": "lidas", "layers": 2},
        {"step": 5, "operator": "lidas", "layers": 3},
    ]


def test_orders_are_shown_as_runs():
    assert lineage.compact((0, 1, 2, 3, 4, 5, 2, 3, 4, 5, 6, 7)) == "0-5 2-5 6-7"
    assert lineage.compact((0, 0, 1)) == "0 0 1"


# Pictures


PICTURES = {
    "24": """\
  ┌───────────────────────────────────────────────────────────────┐
─▶│ 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 │─▶
  └───────────────────────────────────────────────────────────────┘""",
    "4x6": """\
    ┌─────────┐
─┬─▶│ 0 1 2 3 │─┬─▶
 │  └─────────┘ │
 ╰────◀ ×6 ─────╯""",
    "4-4x4-4": """\
  ┌─────────┐    ┌─────────┐    ┌───────────┐
─▶│ 0 1 2 3 │─┬─▶│ 4 5 6 7 │─┬─▶│ 8 9 10 11 │─▶
  └─────────┘ │  └─────────┘ │  └───────────┘
              ╰────◀ ×4 ─────╯""",
    "8-4x2-12": """\
  ┌─────────────────┐    ┌───────────┐    ┌────────────┐
─▶│ 0 1 2 3 4 5 6 7 │─┬─▶│ 8 9 10 11 │─┬─▶│ 12 13 … 23 │─▶
  └─────────────────┘ │  └───────────┘ │  └────────────┘
                      ╰─────◀ ×2 ──────╯""",
}


@pytest.mark.parametrize("plan", PICTURES)
def test_plans_are_drawn_as_boxes_and_loops(plan):
    assert terminal.draw_plan(DepthPlan.parse(plan)) == PICTURES[plan]


@given(st.lists(st.tuples(st.integers(1, 32), st.integers(1, 1000)), min_size=1, max_size=32))
def test_every_plan_fits_80_columns_and_shows_every_segment(parts):
    plan = DepthPlan.of(parts)
    picture = terminal.draw_plan(plan)
    assert max(map(len, picture.splitlines())) <= 80
    assert picture.count("┌") == len(plan.segments)
    assert picture.count("×") == sum(s.repeats > 1 for s in plan.segments)


def test_descent_has_a_column_for_each_layer():
    events = [
        {"step": 0, "operator": "init", "plan": "2", "order": None},
        {"step": 1500, "operator": "lidas", "plan": "3", "order": [0, 1, 1]},
    ]
    about = numbers.about_lineage(events, lineage.stages(events))
    lines = terminal.draw_descent(about, color=False).splitlines()
    assert lines[2:] == ["    step", "       0  0  1  1", "   1,500  0  1  2"]
    colored = terminal.draw_descent(about, color=True).splitlines()
    assert colored[-1] == "   1,500\x1b[34m  0\x1b[0m\x1b[31m  1\x1b[0m\x1b[31m  2\x1b[0m"


def test_the_text_fits_80_columns_and_tells_what_there_is(run, capsys):
    place = f"{run / 'checkpoints'}@5"
    assert cli.main(["inspect", str(run), "--layers", "--against", place]) == 0
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if str(run) not in line]
    assert max(map(len, lines)) <= 80
    lines = [line.split() for line in lines]
    for line in (
        "step          12 of 12 (100%), 864 tokens",
        "written by    8 devices (data=1, fsdp=4, tensor=2)",
        "Plan 3: 3 unique layers, 3 executed",
        "2     lidas     2     0 0",
        "9     data      3     as before",
        "layers/query           3x16x16  float32  - fsdp tensor",
        "final_norm             16       float32  whole",
        "Cosine of copies that were one layer until step 5",
        "plan                    3      2",
        "lineage of the second: 1, 2 by lidas at 2",
    ):
        assert line.split() in lines, line


def test_the_picture_is_a_png_with_the_blocks_of_growth_or_loop(run, found, tmp_path, capsys):
    path = tmp_path / "new" / "p.png"
    assert cli.main(["inspect", str(run), "--plot", str(path), "--json"]) == 0
    assert path.read_bytes().startswith(b"\x89PNG")
    assert json.loads(capsys.readouterr().out)["layers"] == found["layers"]
    assert plot.boundaries(found) == [1, 2]
    looped = {**found, "plan": numbers.about_plan(DepthPlan.parse("2-3x2-4"))}
    assert plot.boundaries(looped) == [2, 5]


# Two checkpoints


def test_a_checkpoint_is_no_way_from_itself(run):
    against = numbers.inspect(run, other=run)["against"]
    assert [against[key] for key in ("plan", "lineage", "model", "config", "data")] == [
        None, None, {}, {}, {},
    ]  # fmt: skip
    assert {(m["distance"], m["cosine"]) for m in against["modules"]} == {(0.0, 1.0)}
    assert against["rule"] == "layer i with layer i (the same lineage)"
    assert len(against["modules"]) == 11 and against["not_compared"] == []


def test_distances_are_those_of_the_weights(run):
    against = numbers.inspect(run, 9, other=f"{run}@12")["against"]
    ours, theirs = (by_name(checkpoint.load_params(run, step)[0]) for step in (9, 12))
    for module in against["modules"]:
        a, b = (tree[module["name"]].ravel() for tree in (ours, theirs))
        apart = np.linalg.norm(a - b) / np.linalg.norm(a)
        assert module["distance"] == pytest.approx(apart, rel=1e-9) and apart > 0
        cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        assert module["cosine"] == pytest.approx(cosine, abs=1e-9)
    assert against["data"]["position"] == [9, 12] and against["model"] == {}


def test_what_has_just_grown_is_no_way_from_its_parent(tmp_path, run):
    params, meta = checkpoint.load_params(run, 5)
    events = [
        *meta["lineage"],
        {"step": 5, "operator": "lidas", "plan": "4", "order": [1, 0, 0, 1]},
    ]
    config = ConfigDict(meta["config"])
    grown = save(tmp_path / "c", config, "4", surgery.grow(params, (1, 0, 0, 1)), events)
    for ours, theirs in ((grown, f"{run}@5"), (f"{run}@5", grown)):
        against = numbers.inspect(ours, other=theirs)["against"]
        assert "descends from" in against["rule"]
        distances = [*against["modules"], *against["layers"]]
        assert len(distances) == 15
        assert {(d["distance"], d["cosine"]) for d in distances} == {(0.0, 1.0)}


def test_other_widths_leave_the_rest_to_compare(tmp_path, tiny_config, capsys):
    tiny_config.growth.operator = ""
    ours = save(tmp_path / "a", tiny_config, "3", fresh(tiny_config, 3))
    tiny_config.model.update(d_ff=32, tie_embeddings=False)
    theirs = save(tmp_path / "b", tiny_config, "3", fresh(tiny_config, 3, seed=2))
    assert cli.main(["inspect", str(ours), "--against", str(theirs)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert (
        "Not compared: layers/down (3x24x16 in the first and 3x32x16 in the second); layers/gate, "
        "layers/up (3x16x24 in the first and 3x16x32 in the second); head (only in the second)."
    ) in out
    against = numbers.inspect(ours, other=theirs)["against"]
    assert against["model"] == {"d_ff": [24, 32], "tie_embeddings": [True, False]}
    assert against["config"] == {"model.d_ff": [24, 32], "model.tie_embeddings": [True, False]}
    distances = {m["name"]: m["distance"] for m in against["modules"]}
    assert len(distances) == 8
    assert 1 < distances["layers/query"] < 2  # random and unrelated: about the root of 2


# A part of a checkpoint, and checkpoints of others


def test_only_matching_parameters_are_read(run, found, capsys):
    part = numbers.inspect(run, layers=True, other=f"{run}@9", grep="layers/(query|gate)")
    names = ["layers/gate", "layers/query"]
    assert [m["name"] for m in part["parameters"]["modules"]] == names
    assert part["parameters"]["modules"][1] in found["parameters"]["modules"]
    assert part["parameters"]["unique"] == found["parameters"]["unique"]
    assert part["lineage"] == found["lineage"] and set(part["layers"]["norms"]) == {"gate", "query"}
    assert [m["name"] for m in part["against"]["modules"]] == names
    scales = numbers.inspect(run, layers=True, grep="norm")["layers"]
    assert scales["neighbors"][0]["cosine"]["mlp_norm"] > 0.9
    assert said(capsys, run, "--grep", "opt") == (
        f"loopjax inspect: --grep 'opt' matches none of the 11 arrays of "
        f"{run}/checkpoints/12/params\n"
    )


def test_parameters_are_compared_with_those_of_another_program(run, tmp_path, capsys):
    params = checkpoint.load_params(run)[0]
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "ckpt", {"params": params})
    assert cli.main(["inspect", str(run), "--against", str(tmp_path / "ckpt"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["checkpoint"]["ours"] and result["checkpoint"]["step"] == 12
    arrays = result["against"]["arrays"]
    assert len(arrays) == 11 and {(a["distance"], a["cosine"]) for a in arrays} == {(0.0, 1.0)}
    moments = [row for row in result["arrays"] if row["role"] == "second moment"]
    assert len(moments) == 11
    assert all(row["of"] == f"params/{row['parameter']}" for row in moments)
    assert cli.main(["inspect", str(tmp_path / "ckpt"), "--against", str(run)]) == 0
    assert "Compared with" in capsys.readouterr().out


def test_arrays_of_ours_are_exported(run, tmp_path, capsys):
    file = tmp_path / "out.npz"
    assert cli.main(["inspect", f"{run}@9", "--grep", "mu/layers/up", "--export", str(file)]) == 0
    [(name, value)] = np.load(file).items()
    assert name == "optimizer/state/1/0/mu/layers/up"
    assert np.array_equal(value, whole_optimizer(run, 9)["state"][1][0]["mu"]["layers"]["up"])


# Mistakes and damage


def said(capsys, *args):
    assert cli.main(["inspect", *map(str, args)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def test_mistakes_are_told_in_one_sentence(run, tmp_path, capsys, monkeypatch):
    empty = tmp_path / "empty"
    empty.mkdir()
    there = ", ".join(map(str, range(1, 13)))
    wanted = [
        ([tmp_path / "no"], f"{tmp_path}/no is not a directory of checkpoints"),
        ([empty], f"{empty} has no checkpoint"),
        ([run, "--step", 99], f"{run}/checkpoints has no checkpoint at step 99; there are {there}"),
        ([run, "--against", f"{run}@99"],
         f"{run}/checkpoints has no checkpoint at step 99; there are {there}"),
    ]  # fmt: skip
    for args, sentence in wanted:
        assert said(capsys, *args) == f"loopjax inspect: {sentence}\n"
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert said(capsys, run, "--plot", "p.png") == (
        "loopjax inspect: a figure needs pip install 'loopjax[report]' "
        "(matplotlib is not installed)\n"
    )


def test_damage_is_told_in_one_sentence(run, tmp_path, capsys):
    def damaged(name):
        copy = tmp_path / name / "12"
        shutil.copytree(run / "checkpoints" / "12", copy)
        return copy

    def sentence(copy, *args):
        err = said(capsys, *(args or [copy.parent]))
        prefix = f"loopjax inspect: checkpoint {copy} is damaged ("
        assert err.startswith(prefix) and err.endswith(")\n") and err.count("\n") == 1
        return err[len(prefix) : -2]

    copy = damaged("meta")
    os.truncate(copy / "meta" / "metadata", 1000)
    assert "line 1 column" in sentence(copy)
    assert "line 1 column" in sentence(copy, run, "--against", copy.parent)
    copy = damaged("gone")
    shutil.rmtree(copy / "params")
    assert re.fullmatch("the array params/.+ is missing", sentence(copy))
    copy = damaged("data")
    for path in (copy / "optimizer").rglob("d/*"):
        path.unlink()
    sentence(copy)
    copy = damaged("leaf")
    meta = json.loads((copy / "meta" / "metadata").read_text())
    del meta["sha256"]
    meta["checksums"]["params/embed"] += 1
    (copy / "meta" / "metadata").write_text(json.dumps({**meta, "sha256": digest(meta)}))
    assert sentence(copy) == "the content of params/embed is not what was saved"
    meta["format"] = 99
    (copy / "meta" / "metadata").write_text(json.dumps({**meta, "sha256": digest(meta)}))
    assert said(capsys, run, "--against", copy.parent) == (
        f"loopjax inspect: checkpoint {copy} has format 99; this version reads format 1\n"
    )
