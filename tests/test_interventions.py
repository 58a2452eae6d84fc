"""Layers swapped, skipped, reversed and repeated: the models that come out, and their results."""

import contextlib
import dataclasses
import io
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from loopjax import model
from loopjax.analysis import interventions
from loopjax.checkpoint import Checkpoints, versions
from loopjax.cli import analysis
from loopjax.depth import DepthPlan, repeat, skip, swap
from loopjax.errors import UserError
from loopjax.evals import evaluate, suite
from loopjax.evals.harness import LoopjaxLM
from loopjax.lm import decode, score
from loopjax.lm.loaded_model import LanguageModel, open_model
from loopjax.model_config import ModelConfig
from tests.conftest import tiny_run

CFG = ModelConfig(
    vocab_size=264, d_model=32, d_ff=48, n_heads=4, n_kv_heads=2, init_depth=4, dtype="float32"
)
TOKENS = np.random.default_rng(0).integers(0, 257, (8, 24))


def save(directory, depth):
    """A random model on bytes as a checkpoint."""
    plan, config = DepthPlan.parse(depth), tiny_run()
    params = meta.unbox(model.init_params(CFG, plan.n_unique, jax.random.key(1)))
    config.update(depth=depth, seq_len=200)
    about = {
        "plan": depth, "phases": [],
        "lineage": [{"step": 0, "operator": "init", "plan": depth, "order": None}],
        "data": {}, "tokenizer": "bytes",
        "model": dataclasses.asdict(CFG), "config": config.to_dict(), "versions": versions(),
    }  # fmt: skip
    state = types.SimpleNamespace(
        params=params, opt_state={"n": jnp.zeros(1)}, step=jnp.zeros(()), ema=None
    )
    with contextlib.closing(Checkpoints(directory / "checkpoints")) as checkpoints:
        checkpoints.save(0, state, about)
        checkpoints.wait()
    return directory


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("interventions")
    for depth in ("4", "1-2x3-1"):
        save(place / depth, depth)
    return place


@pytest.fixture(scope="module")
def standard(place):
    return open_model(place / "4")


@pytest.fixture(scope="module")
def looped(place):
    return open_model(place / "1-2x3-1", mesh="fsdp=2,tensor=2")


def logits(lm):
    with lm.on_mesh():
        forward = jax.jit(model.forward, static_argnames=("cfg", "plan"))
        return np.asarray(forward(lm.params, lm.put(TOKENS), cfg=lm.cfg, plan=lm.plan))


def test_the_identity_order_reproduces_the_logits(standard, looped):
    same = standard.with_order(range(4))
    np.testing.assert_array_equal(logits(same), logits(standard))  # bit for bit
    untied = looped.with_order(range(8))
    assert untied.plan == DepthPlan.parse("8")
    # The same layers in a program of another form, scanned once instead of in three segments.
    np.testing.assert_allclose(logits(untied), logits(looped), rtol=1e-5, atol=1e-6)


def test_an_order_runs_the_layers_that_it_names_and_counts_each_pass(looped):
    order = (0, 4, 3, 6, 7, 5, 5)  # of executed layers, whose unique ones are 0 1 2 1 2 1 2 3
    found = looped.with_order(order)
    copies = jax.tree.map(
        lambda leaf: jnp.stack([leaf[u] for u in (0, 2, 1, 2, 3, 1, 1)]),
        jax.device_get(looped.params["layers"]),
    )
    params = {**jax.device_get(looped.params), "layers": copies}
    expected = model.forward(params, TOKENS, CFG, DepthPlan.parse("7"))
    np.testing.assert_allclose(logits(found), expected, rtol=1e-4, atol=1e-5)
    assert found.describe()["order"] == order and looped.describe()["order"] is None
    again = found.with_order((5, 0))
    assert again.order == (5, 0)
    np.testing.assert_array_equal(
        again.params["layers"]["up"], looped.params["layers"]["up"][np.array([1, 0])]
    )


def test_a_repeated_block_is_the_loop_that_a_plan_makes(standard):
    by_plan = standard.with_plan("1-2x3-1")
    by_order = standard.with_order(repeat(4, 1, 2, 2))
    np.testing.assert_allclose(logits(by_order), logits(by_plan), rtol=1e-5, atol=1e-6)


def test_a_swap_by_whole_passes_of_a_loop_changes_nothing(place, looped):
    tied = looped.with_plan("4x2")
    swapped = tied.with_order(swap(8, 0, 4))
    np.testing.assert_allclose(logits(swapped), logits(tied), rtol=1e-5, atol=1e-6)
    assert np.abs(logits(tied.with_order(swap(8, 0, 2))) - logits(tied)).max() > 0.01


@pytest.mark.parametrize("order", [(), (0, 4), (-1, 0)])
def test_orders_of_layers_that_are_not_executed_are_refused(standard, order):
    with pytest.raises(ValueError, match=r"must name executed layers 0..3"):
        standard.with_order(order)


def test_an_ordered_model_is_not_run_by_a_plan_of_the_checkpoint(standard):
    with pytest.raises(ValueError, match="with a layer order cannot be changed"):
        standard.with_order((0, 1)).with_plan("4")


def test_layers_are_copied_and_freed_and_all_else_is_shared(looped):
    def held():
        return sum(array.nbytes for array in jax.live_arrays())

    before = held()
    edited = looped.with_order(skip(8, 3, 1))
    assert edited.params["embed"] is looped.params["embed"]
    assert edited.params["final_norm"] is looped.params["final_norm"]
    for name, leaf in edited.params["layers"].items():
        assert leaf.shape[0] == 7 and leaf.sharding == looped.params["layers"][name].sharding
    layers = sum(leaf.nbytes for leaf in jax.tree.leaves(looped.params["layers"]))
    assert held() - before == pytest.approx(layers * 7 / 4, rel=0.01)
    assert looped.layers is not edited.layers and len(edited.layers) == 7
    del edited, leaf
    assert held() - before <= layers  # `looped.layers`, kept for decoding


def test_decoding_follows_the_order_with_a_cache_for_each_execution(standard):
    standard.layers  # noqa: B018 (cut now: an edited model must not take them for its own)
    edited = standard.with_order((0, 2, 1, 2, 3))
    prompt = TOKENS[0, :9].tolist()
    made = decode.generate(edited, [prompt], 6)[0].tokens
    run = list(prompt)
    for _ in range(6):
        padded = np.zeros((1, 16), np.int32)
        padded[0, : len(run)] = run
        forward = jax.jit(model.forward, static_argnames=("cfg", "plan"))
        run.append(int(forward(edited.params, padded, cfg=CFG, plan=edited.plan)[0, len(run) - 1].argmax()))  # fmt: skip
    assert made == run[9:]


REQUESTS = [([1, 2, 3], [4, 5]), ([1, 2, 3], [6]), ([7] * 40, [8, 9, 10])]


def test_all_starts_of_one_depth_share_the_compiled_programs(standard, looped):
    for lm, orders in (
        (standard, [swap(4, i, 1) for i in range(3)]),
        (looped, [skip(8, i, 3) for i in range(6)]),
    ):
        plan = DepthPlan.of([(len(orders[0]), 1)])
        scorer, seen = score._scorer(lm.cfg, plan, None), set()
        compiled = []
        for order in orders:
            seen.add(tuple(score.log_likelihoods(lm.with_order(order), REQUESTS).logprobs))
            compiled.append(scorer._cache_size())
        assert len(seen) == len(orders)
        assert compiled[0] > 0 and set(compiled) == {compiled[0]}


TASKS = ("copying_real", "copying_random")
ARGV = ["--limit", "4", "--num-fewshot", "1", "--tasks", ",".join(TASKS), "--max-length", "200"]


def run(place, output, *argv, model="4"):
    command = ["--checkpoint", str(place / model), "--output", str(output), *ARGV, *argv]
    with contextlib.redirect_stdout(io.StringIO()):
        return analysis.intervene(command)


@pytest.fixture
def copies_held(monkeypatch):
    """How many stacks of 8 layers there are before another one is made."""
    held, with_order = [], LanguageModel.with_order

    def counted(lm, order):
        held.append(sum(array.shape == (8, CFG.d_ff, CFG.d_model) for array in jax.live_arrays()))
        return with_order(lm, order)

    monkeypatch.setattr(LanguageModel, "with_order", counted)
    return held


@pytest.mark.slow
def test_results_are_those_of_the_task_on_the_edited_model(place, tmp_path, capsys, copies_held):
    output, picture = tmp_path / "new" / "repeat.json", tmp_path / "repeat.png"
    argv = ["--op", "repeat", "--size", "2", "--times", "2", "--starts", "0,2", "--tasks", TASKS[0]]
    assert run(place, output, *argv, "--plot", str(picture)) == 0
    assert copies_held == [0, 0]
    assert picture.read_bytes()[:4] == b"\x89PNG"
    lines = [line for line in capsys.readouterr().err.splitlines() if "/3  " in line]
    assert [line[:5] + line[5:].split("  ")[0] for line in lines] == [
        "1/3  unmodified", "2/3  repeat 2 at 0, 2 more", "3/3  repeat 2 at 2, 2 more",
    ]  # fmt: skip
    assert "ETA" in lines[1] and "ETA" not in lines[2]
    found = json.loads(output.read_text())
    assert found["chance"] == pytest.approx({"copying_real": 0.1})
    assert [(row["times"], row["start"]) for row in found["rows"]] == [(2, 0), (2, 2)]
    assert found["model"]["order"] is None and found["settings"]["depth"] == "4"
    lm = open_model(place / "4", context=200)
    harness, tasks = LoopjaxLM(lm), suite.load(TASKS[:1], num_fewshot=1)["tasks"]
    for row in found["rows"]:
        assert tuple(row["order"]) == repeat(4, row["start"], 2, 2)
        harness.lm = lm.with_order(row["order"])
        for name, task in tasks.items():
            alone, ours = evaluate.run_task(harness, name, task, 4), row["tasks"][name]
            assert ours["metrics"] == alone["metrics"] and ours["n_samples"] == 4
            assert ours["accuracy"] == alone["metrics"]["acc,none"]
            assert ours["stderr"] == alone["metrics"]["acc_stderr,none"]
            whole = found["unmodified"][name]["accuracy"]
            assert ours["relative"] == (ours["accuracy"] / whole if whole else None)


def test_the_same_command_goes_on_where_it_was_stopped(place, tmp_path, monkeypatch):
    output, whole = tmp_path / "skip.json", tmp_path / "whole.json"
    argv = ["--op", "skip", "--size", "1", "--starts", "1,2,3"]
    evaluated = []

    def stops_at(n):
        def run_task(harness, name, *args, **kwargs):
            if len(evaluated) == n:
                raise KeyboardInterrupt
            evaluated.append((harness.lm.order, name))
            return evaluate.run_task(harness, name, *args, **kwargs)

        return run_task

    monkeypatch.setattr(interventions, "run_task", stops_at(5))
    with pytest.raises(KeyboardInterrupt):
        run(place, output, *argv)
    part = json.loads(output.read_text())
    assert [len(row["tasks"]) for row in part["rows"]] == [2, 1]
    monkeypatch.setattr(interventions, "run_task", stops_at(-1))
    assert run(place, output, *argv) == 0
    assert len(evaluated) == len(set(evaluated)) == 8
    found = json.loads(output.read_text())
    assert run(place, whole, *argv) == 0
    expected = json.loads(whole.read_text())

    def plain(value):
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items() if k not in ("seconds", "begun")}
        return [plain(v) for v in value] if isinstance(value, list) else value

    assert plain(found) == plain(expected)
    with pytest.raises(UserError, match="another model, command or settings"):
        run(place, output, "--op", "swap", "--size", "1")


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--op", "turn"], "argument --op: invalid choice: 'turn'"),
        (["--op", "swap", "--size", "1,5"], r"--size 5 leaves no start: swap .* 8 layers"),
        (["--op", "skip", "--size", "8"], r"--size 8 leaves no start"),
        (["--op", "repeat", "--times", "9" * 9], r"of --size 4 executes [\d,]+ layers; at most"),
        (
            ["--op", "skip", "--starts", "0,5"],
            r"--starts 5 must lie within 0..4 for skip of size 4",
        ),
        (["--op", "skip", "--starts", "one"], "'one' must be all, or layers joined by commas"),
        (["--op", "skip", "--size", "0"], "'0' must be a whole number of at least 1"),
        (["--op", "skip", "--times", "2"], "--times goes with --op repeat"),
        (["--op", "skip", "--depth", "5"], "--depth=5 has 5 unique layers"),
    ],
)
def test_mistakes_are_told_before_anything_is_evaluated(place, tmp_path, argv, says):
    with pytest.raises(UserError, match=says):
        run(place, tmp_path / "out.json", *argv, model="1-2x3-1")
    assert not (tmp_path / "out.json").exists()


def test_a_task_without_an_accuracy_is_refused(standard, tmp_path):
    (tmp_path / "data").mkdir()
    document = {"story": "Ann is here.", "id": "s", "additional_answers": {},
                "questions": [{"input_text": "Who?", "turn_id": 1}],
                "answers": [{"input_text": "Ann", "turn_id": 1}]}  # fmt: skip
    (tmp_path / "data/coqa-dev-v1.0.json").write_text(json.dumps({"data": [document]}))
    made = interventions.interventions("swap", 4, [1])
    with pytest.raises(UserError, match="task coqa_f1 has no accuracy; it has f1"):
        interventions.intervene(
            standard, made, ["coqa_f1"], tmp_path / "out.json", data_dir=tmp_path / "data"
        )
    assert not (tmp_path / "out.json").exists()


def test_requests_are_built_once_and_answered_anew(standard):
    task = suite.load(["copying_real"], num_fewshot=1)["tasks"]["copying_real"]
    built, build = [], task.build_all_requests
    task.build_all_requests = lambda **kwargs: (built.append(kwargs), build(**kwargs))
    interventions.keep_requests(task)
    harness = interventions.Repeated(standard)
    first = evaluate.run_task(harness, "copying_real", task, 4)
    harness.lm = standard.with_order((3, 0, 0, 1))
    other = evaluate.run_task(harness, "copying_real", task, 4)
    harness.lm = standard
    again = evaluate.run_task(harness, "copying_real", task, 4)
    assert len(built) == 1
    assert first["metrics"] == again["metrics"] and other["n_samples"] == 4
    assert all(len(instance.resps) == 1 for instance in task.instances)
