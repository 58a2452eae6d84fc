"""Checkpoints evaluated and dissected from the command line."""

import contextlib
import functools
import io
import json
import math
import shutil
import types

import jax
import numpy as np
import pytest
import tokenizers
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM

from loopjax import checkpoint_files, model
from loopjax.cli import main as cli
from loopjax.data.prepare.job import prepare
from loopjax.errors import UserError
from loopjax.evals import evaluate, icl, nll, suite
from loopjax.evals.harness import LoopjaxLM
from loopjax.lm import score
from loopjax.lm.loaded_model import open_model
from loopjax.train import train
from tests.conftest import tiny_run


def text_config(data_dir, source, **model):
    config = tiny_run()
    config.update(steps=8, seq_len=64, depth="1-1x2-1", warmup_steps=0, checkpoint_every=4)
    config.growth.operator = ""
    config.cooldown.update(steps=2)
    config.update(data_dir=str(data_dir), eval_batches=2)
    config.mixture = {source: 1.0}
    config.cooldown.mixture = {}
    config.model.update(vocab_size=320, **model)
    return config


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run on bytes and one on a BPE, of two checkpoints each."""
    place = tmp_path_factory.mktemp("evals")
    lines = [json.dumps({"text": f"line {i} of a text that repeats. " * 9}) for i in range(120)]
    (place / "in.jsonl").write_text("\n".join(lines))
    bpe = tokenizers.ByteLevelBPETokenizer()
    bpe.train_from_iterator(lines, 300, special_tokens=["<end>"], show_progress=False)
    bpe.save(str(place / "bpe.json"))
    with contextlib.redirect_stderr(io.StringIO()):
        prepare([place / "in.jsonl"], place / "data/bytes", heldout=0.2)
        bpe = {"tokenizer": str(place / "bpe.json"), "eos": "<end>"}
        prepare([place / "in.jsonl"], place / "data/bpe", heldout=0.2, **bpe)
        for source in ("bytes", "bpe"):
            train(text_config(place / "data", source), place / source)
        p_hop = text_config("", "p_hop_2")
        train(p_hop, place / "p_hop")
    return place


@pytest.mark.slow
def test_a_run_leaves_the_tokenizer_that_it_was_trained_with(place):
    codec = open_model(place / "bpe").tokenizer
    text = "line 7 of a text"
    assert codec.decode(codec.encode(text)) == text
    assert codec.eos == "<end>"
    assert open_model(place / "bytes").tokenizer.name == "bytes"
    assert open_model(place / "p_hop", text=False).tokenizer is None
    with pytest.raises(UserError, match=r"no tokenizer.json, and .* was trained with symbols"):
        open_model(place / "p_hop")


@pytest.mark.parametrize("source", ["bytes", "bpe"])
def test_nll_is_that_of_the_evaluation_in_training(place, source):
    result = json.loads((place / source / "result.json").read_text())["heldout"]
    found = nll.measure(place / source, batches=2, batch_size=8, say=lambda text: None)
    row = found["rows"][0]
    assert row["step"] == 8 and row["depth"] == "1-1x2-1"
    assert row["nll"] == pytest.approx(result["nll"], rel=1e-6)
    assert row["accuracy"] == pytest.approx(result["accuracy"], abs=1e-9)
    tokens, n_bytes = row["sources"][source]["tokens"], row["sources"][source]["bytes"]
    assert row["bits_per_byte"] == pytest.approx(row["nll"] / math.log(2) * tokens / n_bytes)
    lm = open_model(place / source)
    held = nll.open_heldout(lm, None, None)[0][source]
    read = (held[i]["targets"] for i in range(len(held)))  # the text is ASCII
    text = "".join(lm.tokenizer.decode(row.tolist(), special=False) for row in read)
    whole = nll.measure(place / source, batches=1000, batch_size=8, say=lambda text: None)
    assert whole["rows"][0]["sources"][source]["bytes"] == len(text) > 4000


def test_nll_of_all_checkpoints_at_two_plans(place, tmp_path, capsys):
    argv = ["nll", "--checkpoint", str(place / "bytes"), "--all", "--depth", "1-1x2-1,1-1x3-1"]
    assert cli.main([*argv, "--batches", "1", "--output", f"{tmp_path}/nll.json"]) == 0
    rows = json.loads((tmp_path / "nll.json").read_text())["rows"]
    assert [(r["step"], r["depth"]) for r in rows] == [
        (step, depth) for step in (4, 8) for depth in ("1-1x2-1", "1-1x3-1")
    ]
    assert len({r["nll"] for r in rows}) == 4
    assert len(capsys.readouterr().out.splitlines()) == 4
    said = []
    options = {"all_steps": True, "depths": ["4"], "batches": 1, "say": said.append}
    assert not nll.measure(place / "bytes", **options)["rows"]
    assert said[0].endswith("skipped, --depth=4 has 4 unique layers, the checkpoint has 3")


def test_p_hop_has_an_nll_and_no_bits_per_byte(place):
    row = nll.measure(place / "p_hop", batches=1, say=lambda text: None)["rows"][0]
    assert set(row) == {"step", "depth", "nll", "accuracy", "sources"}


class Plain(LoopjaxLM):
    """The harness's model by one plain forward pass for each request."""

    def _loglikelihood_tokens(self, requests, **kwargs):
        forward = jax.jit(model.forward, static_argnames=("cfg", "plan"))
        answers = []
        self._cut = np.array([len(c) + len(a) > self.max_length + 1 for _, c, a in requests])
        self.truncated += int(self._cut.sum())
        for _, context, continuation in requests:
            tokens = (context + continuation)[-self.max_length - 1 :]
            padded = np.zeros((self.lm.batch_parts, self.max_length), np.int32)
            padded[:, : len(tokens) - 1] = tokens[:-1]
            logits = forward(self.lm.params, padded, cfg=self.lm.cfg, plan=self.lm.plan)
            logits = np.asarray(logits, np.float64)[0, len(tokens) - 1 - len(continuation) :]
            logits = logits[: len(continuation)]
            scores = logits[np.arange(len(continuation)), continuation]
            scores = scores - np.log(np.exp(logits).sum(-1))
            answers.append((scores.sum(), (logits.argmax(-1) == continuation).all()))
        return answers


TASKS = ["copying_real", "var_assign_code_1"]


def test_the_score_of_a_task_is_the_mean_of_its_items(place, tmp_path, capsys):
    argv = ["eval", "--checkpoint", str(place / "bytes"), "--max-length", "300", "--limit", "12",
            "--num-fewshot", "0", "--tasks", TASKS[0], "--output", str(tmp_path / "e.json")]  # fmt: skip
    assert cli.main([*argv, "--by-item"]) == 0
    plans = json.loads((tmp_path / "e.json").read_text())["plans"]
    (task,) = (one["tasks"][TASKS[0]] for one in plans.values())
    assert len(task["values"]) == 12 and set(task["values"]) <= {0.0, 1.0}
    assert np.mean(task["values"]) == pytest.approx(task["metrics"]["acc,none"])
    assert cli.main(argv) == 2  # the file has scores by item
    assert "choose a new file" in capsys.readouterr().err


def test_one_filter_of_several_gives_the_scores_by_item():
    samples = [
        {"doc_id": i, "filter": name, "exact_match": value}
        for i, name, value in ((1, "loose", 1.0), (1, "strict", 0.0), (0, "strict", 1.0))
    ]
    metrics = {"exact_match,loose": 1.0, "exact_match,strict": 0.5}
    assert evaluate._by_item(samples, "exact_match", metrics) == [1.0, 0.0]
    words = [{"doc_id": 0, "filter": "none", "word_perplexity": (-12.5, 7)}]
    assert evaluate._by_item(words, "word_perplexity", {"word_perplexity,none": 6.0}) is None


@pytest.mark.slow
def test_tasks_at_two_plans_in_one_file_resume(place, tmp_path):
    output = tmp_path / "out" / "eval.json"
    argv = ["eval", "--checkpoint", str(place / "bytes"), "--max-length", "300", "--limit", "3",
            "--num-fewshot", "1", "--output", str(output)]  # fmt: skip
    assert cli.main([*argv, "--tasks", TASKS[0], "--depth", "1-1x2-1"]) == 0
    first = json.loads(output.read_text())
    assert cli.main([*argv, "--tasks", ",".join(TASKS), "--depth", "1-1x2-1,1-1x4-1"]) == 0
    found = json.loads(output.read_text())
    assert (
        found["plans"]["1-1x2-1"]["tasks"][TASKS[0]] == first["plans"]["1-1x2-1"]["tasks"][TASKS[0]]
    )
    assert list(found["plans"]) == ["1-1x2-1", "1-1x4-1"]
    for depth, plan in found["plans"].items():
        assert list(plan["tasks"]) == TASKS
        about = plan["model"]
        assert about["depth"] == depth and about["trained_depth"] == "1-1x2-1"
        assert about["lineage"] and about["config"]["seed"] == 0 and about["trained_with"]["jax"]
        for task in plan["tasks"].values():
            assert {"acc,none", "acc_stderr,none"} <= set(task["metrics"])
            assert task["n_samples"] == 3 and task["n_shot"] == 1
    assert {"lm-eval", "jax", "loopjax"} <= set(found["versions"])
    assert found["settings"]["seeds"] == evaluate.SEEDS
    lm = open_model(place / "bytes", "1-1x4-1", context=300)
    tasks = suite.load(TASKS, num_fewshot=1)["tasks"]
    for name, task in tasks.items():
        alone = evaluate.run_task(Plain(lm), name, task, 3)
        ours = found["plans"]["1-1x4-1"]["tasks"][name]
        assert ours["metrics"] == pytest.approx(alone["metrics"])
        assert ours["truncated"] == alone["truncated"]
        assert ours["items_truncated"] == alone["items_truncated"]
    task = found["plans"]["1-1x4-1"]["tasks"]["var_assign_code_1"]
    # Five options of three items.
    assert (task["truncated"], task["items_truncated"], task["n_samples"]) == (15, 3, 3)


def test_items_with_a_prompt_that_was_cut_are_counted_once_and_printed(monkeypatch):
    """Items 0 and 1 with three options each; a prompt of 9 tokens does not fit a context of 8."""
    harness = LoopjaxLM.__new__(LoopjaxLM)
    TemplateLM.__init__(harness)
    harness.lm, harness.batch_tokens = types.SimpleNamespace(context=8, plan="4", exit=None), None
    harness.truncated, harness.cut_items, harness.exited = 0, set(), [0, 0]
    monkeypatch.setattr(LoopjaxLM, "prefix_token_id", 0)
    monkeypatch.setattr(harness, "_encode_pair", lambda a, b: ([1] * len(a), [2] * len(b)))

    def scores(lm, requests, **_):
        _, cut = score.make_rows(requests, lm.context)
        return score.Scores(np.zeros(len(requests)), np.ones(len(requests), bool), cut, 0, 0)

    monkeypatch.setattr(score, "log_likelihoods", scores)
    requests = [
        Instance("loglikelihood", {}, (prompt, option), i, metadata=("task", item, 1))
        for item, prompt in enumerate(["x" * 9, "x" * 3])
        for i, option in enumerate("abc")
    ]
    harness.loglikelihood(requests, True)
    assert (harness.truncated, harness.cut_items) == (3, {0})
    task = {"metrics": {"acc,none": 0.5}, "n_samples": 2, "items_truncated": 1, "seconds": 1.0}
    printed = evaluate._summary(task)
    assert (
        printed == "acc 0.5000  (2 items, 0:01)  1 of 2 prompts cut at the start to fit the context"
    )
    assert "cut" not in evaluate._summary(task | {"items_truncated": 0})


def test_the_mean_of_a_group_and_its_error():
    rows = {
        name: {"metrics": {"acc,none": 0.1 * i, "acc_stderr,none": 0.02, "acc_norm,none": 0.9}}
        for i, name in enumerate(suite.GROUPS["reasoning_primitives"])
    }
    found = evaluate.group_scores(rows)["reasoning_primitives"]
    assert found["metric"] == "acc" and found["value"] == pytest.approx(0.2)
    assert found["stderr"] == pytest.approx(0.02 / math.sqrt(5))
    del rows["copying_real"]
    assert not evaluate.group_scores(rows)


def test_rolling_log_likelihood_is_the_sum_over_windows(place):
    lm = LoopjaxLM(open_model(place / "bytes"))
    text = "line 3 of a text that repeats. " * 5
    request = type("Request", (), {"args": (text,)})()
    ids = [lm.prefix_token_id, *lm.tok_encode(text)]
    (found,) = lm.loglikelihood_rolling([request], disable_tqdm=True)
    expected = 0.0
    for start in range(0, len(ids) - 1, 64):
        stop = min(start + 64, len(ids) - 1)
        begin = stop - 64 if stop == len(ids) - 1 and start else start
        scored = lm._loglikelihood_tokens(
            [(None, ids[begin : start + 1], ids[start + 1 : stop + 1])]
        )
        expected += scored[0][0]
    assert found == pytest.approx(expected, rel=1e-6)


def test_the_adapter_notices_scores_that_are_not_the_models(place, monkeypatch):
    lm = open_model(place / "bytes")
    LoopjaxLM(lm)
    from loopjax.lm import score

    right = score._placement
    monkeypatch.setattr(
        score,
        "_placement",
        lambda b: right({**b, "positions": b["positions"] + 1 * (b["branches"] > 0)}),
    )
    score._scorer.cache_clear()
    with pytest.raises(RuntimeError, match="scoring gives log p"):
        LoopjaxLM(lm)
    score._scorer.cache_clear()


@pytest.mark.slow
def test_a_sweep_ends_with_the_most_examples_that_fit(place, tmp_path, capsys):
    output, picture = tmp_path / "icl.json", tmp_path / "icl.png"
    argv = ["icl", "--checkpoint", str(place / "bytes"), "--max-length", "500", "--limit", "3",
            "--tasks", "var_assign_basic_0", "--output", str(output)]  # fmt: skip
    assert cli.main([*argv, "--shots", "0,1"]) == 0
    assert cli.main([*argv, "--shots", "0,1"]) == 0
    two = json.loads(output.read_text())["curves"]["var_assign_basic_0"]["rows"]
    assert [row["shots"] for row in two] == [0, 1]
    output.unlink()
    assert cli.main([*argv, "--plot", str(picture)]) == 0
    assert picture.read_bytes()[:4] == b"\x89PNG"
    curve = json.loads(output.read_text())["curves"]["var_assign_basic_0"]
    most = curve["most_shots"]
    assert [row["shots"] for row in curve["rows"]] == icl.grid(most)
    lm = LoopjaxLM(open_model(place / "bytes", context=500))

    def longest(shots):
        task = suite.load(["var_assign_basic_0"], num_fewshot=shots)["tasks"]["var_assign_basic_0"]
        task.build_all_requests(limit=3, rank=0, world_size=1)
        return max(len(lm.tok_encode(a + b)) for a, b in (i.args[:2] for i in task.instances))

    assert longest(most) <= 501 < longest(most + 1)
    assert not any(row["truncated"] for row in curve["rows"])


def asked(kind, *args):
    return Instance(kind, {}, args, 0)


def test_a_continuation_that_ends_in_a_token_of_the_context_is_scored_alone(place):
    """A token spans both, so that the harness's own split leaves nothing to score."""
    lm = LoopjaxLM(open_model(place / "bpe"))
    encode = functools.partial(lm.tok_encode, add_special_tokens=False)
    assert len(encode("line")) <= len(encode("lin"))
    assert lm._encode_pair("lin", "e") == (encode("lin"), encode("e"))
    assert lm._encode_pair("line", " 5") == (
        encode("line"),
        encode("line 5")[len(encode("line")) :],
    )
    ((logprob, _),) = lm.loglikelihood([asked("loglikelihood", "lin", "e")], True)
    expected = score.log_likelihoods(lm.lm, [(encode("lin"), encode("e"))]).logprobs[0]
    assert logprob == expected < 0
    ((spaces, _),) = lm.loglikelihood([asked("loglikelihood", "  ", "line")], True)
    expected = score.log_likelihoods(lm.lm, [([lm.prefix_token_id], encode("  line"))]).logprobs[0]
    assert spaces == expected
    for context in ("", "line"):
        with pytest.raises(UserError, match=r"^request 0 has an empty continuation, which has no"):
            lm.loglikelihood([asked("loglikelihood", context, "")], True)


def test_names_that_the_harness_splits_are_told():
    """What its command line makes of checkpoint=runs/loop,learning_rate=0.001,seed=1."""
    with pytest.raises(UserError) as told:
        LoopjaxLM("runs/loop", learning_rate=0.001, seed=1)
    assert str(told.value) == (
        "--model_args has no 'learning_rate'; it has checkpoint, depth, dtype, max_length, tokenizer, "
        'mesh, batch_tokens, generation_batch, ema (the harness splits at "," and "=": link a directory '
        "whose name has them to another name)"
    )


def test_settings_of_a_task_that_do_not_fit_are_told_as_the_task_s(place):
    lm = LoopjaxLM(open_model(place / "bpe"))
    for settings, message in (
        ({"max_gen_toks": 64}, r"^the task's max_gen_toks 64 must lie within 1\.\.63, the context"),
        (
            {"do_sample": True, "temperature": -1},
            r"^the task's temperature -1\.0 must be at least 0",
        ),
        ({"do_sample": True, "top_p": 0}, r"^the task's top-p 0\.0 must lie within 0\.\.1"),
    ):
        with pytest.raises(UserError, match=message):
            lm.generate_until([asked("generate_until", "line", {"until": ["."], **settings})])


@pytest.mark.parametrize(("share", "n"), [(0.0, 20), (0.3, 10), (0.5, 1000), (1.0, 5)])
def test_the_interval_holds_the_shares_that_are_not_too_far(share, n):
    z = 1.959964
    for bound in icl.wilson(share, n):
        if 0 < bound < 1:  # where the score test just rejects
            assert abs(share - bound) == pytest.approx(z * np.sqrt(bound * (1 - bound) / n))


def test_generation_goes_to_standard_output_alone(place, capsys):
    argv = [
        "generate",
        "--checkpoint",
        str(place / "bpe"),
        "--prompt",
        "line 5",
        "--max-new-tokens",
    ]
    assert cli.main([*argv, "6"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("line 5") and "plan 1-1x2-1: 6 tokens" in err
    assert cli.main([*argv, "6", "--no-echo", "--depth", "1-1x5-1"]) == 0
    looped, err = capsys.readouterr()
    assert not looped.startswith("line 5") and "plan 1-1x5-1" in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"mesh": "data=1,tensor=8"}, "--mesh 'data=1,tensor=8': the model's n_heads=4 is not divi"),
        ({"mesh": "data=2,data=4"}, "--mesh 'data=2,data=4' sets data twice"),
        ({"mesh": "tensor=3"}, "--mesh (data=-1, fsdp=1, tensor=3) requires a multiple of 3"),
        ({"context": 0}, "--max-length 0 must lie within 2..16777216"),
        ({"context": 10**22}, "--max-length 10000000000000000000000 must lie within 2..16777216"),
        ({"depth": "1-1x99999999999-1"},
         "--depth: depth plan '1-1x99999999999-1' executes more than 10,000 layers"),
    ],
)  # fmt: skip
def test_arguments_of_a_model_that_do_not_fit_are_told(place, arguments, says):
    with pytest.raises(UserError) as told:
        open_model(place / "bytes", **arguments)
    assert str(told.value).startswith(says)


@pytest.mark.parametrize(
    "change", [{"plan": "1000000"}, {"plan": "9000"}, {"model": {"vocab_size": 10**9}}]
)
def test_a_checkpoint_that_claims_what_it_does_not_hold_is_told_at_once(place, change, tmp_path):
    run = shutil.copytree(place / "bytes", tmp_path / "run")
    path = run / "checkpoints/8/meta/metadata"
    meta = json.loads(path.read_text())
    del meta["sha256"]
    meta |= {k: meta[k] | v if isinstance(v, dict) else v for k, v in change.items()}
    path.write_text(json.dumps(meta | {"sha256": checkpoint_files.digest(meta)}))
    with pytest.raises(UserError, match=r"checkpoints/8 (is damaged \(params/|cannot be used: )"):
        open_model(run)


def test_checkpoints_are_found_on_another_mesh(place):
    one = open_model(place / "bytes", mesh="fsdp=2,tensor=2")
    other = nll.measure(place / "bytes", batches=1, mesh="fsdp=2,tensor=2", say=lambda text: None)
    plain = nll.measure(place / "bytes", batches=1, say=lambda text: None)
    assert one.params["layers"]["query"].sharding.spec[1:] == ("fsdp", "tensor")
    assert other["rows"][0]["nll"] == pytest.approx(plain["rows"][0]["nll"], rel=1e-6)


@pytest.mark.slow
def test_an_analysis_leaves_numbers_and_pictures_and_computes_nothing_twice(place, capsys):
    argv = ["analyze", "--checkpoint", str(place / "bytes"), "--depth", "1-1x3-1", "--n", "1",
            "--max-length", "500", "--block", "1", "--what", "norms,future,depth_score,similarity",
            "--output", str(place / "signature")]  # fmt: skip
    assert cli.main(argv) == 0
    assert cli.main(argv) == 0
    said = capsys.readouterr().err
    assert said.count("already exists, skipped") == 4
    found = {path.name for path in (place / "signature").iterdir()}
    names = {"norms-arithmetic", "future-arithmetic", "depth_score-arithmetic", "similarity"}
    assert found == {f"{n}.{kind}" for n in names for kind in ("json", "png")}
    saved = json.loads((place / "signature" / "future-arithmetic.json").read_text())
    assert np.shape(saved["result"]["matrix"]) == (5, 5)
    assert saved["about"]["depth"] == "1-1x3-1" and saved["about"]["prompts"]["n"] == 3
    assert saved["versions"]["jax"]
    assert cli.main([*argv[:-6], "--what", "norms,depth", "--output", "x"]) == 2
    assert "--what 'depth' must be all or some of depth_score," in capsys.readouterr().err


@pytest.mark.slow
def test_early_exits_are_read_by_a_lens_that_is_trained_once(place, capsys):
    argv = ["analyze", "--checkpoint", str(place / "bytes"), "--n", "1", "--max-length", "64",
            "--what", "overlap,exit_accuracy", "--prompts", "chains", "--tasks", "copying_real",
            "--limit", "2", "--lens-steps", "3", "--lens-tokens", "512", "--output",
            str(place / "exits")]  # fmt: skip
    assert cli.main(argv) == 0
    begun = (place / "exits" / "lens.npz").stat().st_mtime_ns
    (place / "exits" / "overlap-chains.json").unlink()
    assert cli.main(argv) == 0
    assert (place / "exits" / "lens.npz").stat().st_mtime_ns == begun
    overlap = json.loads((place / "exits" / "overlap-chains.json").read_text())
    assert len(overlap["result"]["overlap"]) == 4 and overlap["about"]["settings"]["training"]
    accuracy = json.loads((place / "exits" / "exit_accuracy.json").read_text())["result"]
    assert np.shape(accuracy["accuracy"]) == (1, 4) and accuracy["n_items"] == [2]
