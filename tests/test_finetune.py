"""Prompts and completions: packing, isolation, early stopping, the verb."""

import gzip
import json
import shutil

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopjax import checkpoint, finetune, model
from loopjax.cli.main import main
from loopjax.data import instances, pairs, pipeline, registry, tokenizers
from loopjax.depth import DepthPlan
from loopjax.errors import UserError
from loopjax.files import read_rows
from loopjax.model_config import ModelConfig
from loopjax.step import token_losses
from loopjax.train import train
from tests.conftest import tiny_run

CODEC = tokenizers.ByteTokenizer()


def made(texts, seq_len=40, split="train"):
    found = [pairs.Pair(p, c, f"pair {i}") for i, (p, c) in enumerate(texts)]
    return pairs.Pairs("x", found, split, seq_len, CODEC)


def taken_apart(source):
    """The (prompt, completion) pairs that the rows of a source hold."""
    found = []
    for row in source:
        for number in range(row["segments"].max() + 1):
            here = row["segments"] == number
            tokens, targets = row["inputs"][here], row["targets"][here]
            assert row["positions"][here].tolist() == list(range(here.sum()))
            n_prompt = int(np.argmax(targets >= 0)) + 1
            assert (targets[n_prompt - 1 :] >= 0).all() and targets[-1] == CODEC.eos_id
            assert targets[n_prompt - 1 : -1].tolist() == tokens[n_prompt:].tolist()
            found.append((CODEC.decode(tokens[:n_prompt]), CODEC.decode(targets[n_prompt - 1 :])))
        assert (row["targets"][row["segments"] < 0] == -1).all()
    return found


TEXT = st.text("abc ", min_size=0, max_size=12)


@given(st.lists(st.tuples(TEXT, TEXT.filter(bool)), min_size=1, max_size=30))
def test_rows_hold_every_pair_once_and_only_completions_are_targets(texts):
    assert sorted(taken_apart(made(texts))) == sorted(texts)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=60))
def test_packing_overfills_no_row_and_leaves_no_two_half_empty(lengths):
    rows = pairs._packed(lengths, 20)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    sums = [sum(lengths[i] for i in row) for row in rows]
    assert max(sums) <= 20
    assert sum(total <= 10 for total in sums) <= 1


@pytest.mark.slow
def test_a_packed_row_has_the_losses_of_its_pairs_alone():
    """Segments do not see one another: together as one by one, for a looped model too."""
    cfg = ModelConfig(
        vocab_size=264, d_model=16, d_ff=24, n_heads=4, n_kv_heads=2, init_depth=4, dtype="float32"
    )
    plan = DepthPlan.parse("1-1x2-1")
    params = jax.tree.map(lambda x: x.unbox(), model.init_params(cfg, 3, jax.random.key(0)),
                          is_leaf=lambda x: hasattr(x, "unbox"))  # fmt: skip
    texts = [("a=1\na=", "1"), ("the word ", "was there"), ("", "alone")]
    packed = made(texts)
    assert len(packed) == 1
    together = token_losses(params, {k: v[None] for k, v in packed[0].items()}, cfg, plan)[0][0]
    for number, segment in enumerate(packed.rows[0]):
        alone = made([texts[segment]])[0]
        plain = {key: alone[key][None] for key in ("inputs", "targets")}  # without a mask
        losses = token_losses(params, plain, cfg, plan)[0][0]
        here = packed[0]["segments"] == number
        np.testing.assert_allclose(together[here], losses[: here.sum()], rtol=2e-5, atol=1e-6)


def test_primitives_are_as_many_items_as_named_and_never_those_of_the_evaluation(tmp_path):
    name = "var_assign_code_1:5+var_assign_code_2:3"
    opened = {
        split: pairs.open_pairs(name, split, tmp_path, 600, 0, lambda: CODEC)
        for split in ("train", "heldout")
    }
    trained = taken_apart(opened["train"])
    wanted = [
        (item.prompt, f" {item.answer}")
        for depth, n in ((1, 5), (2, 3))
        for item in registry.items(f"var_assign_code_{depth}", "train", 0, n)
    ]
    assert sorted(trained) == sorted(wanted)
    other = pairs.open_pairs(name, "train", tmp_path, 600, 1, lambda: CODEC)
    assert not {*taken_apart(other)} & {*wanted}
    validated = {prompt for prompt, _ in taken_apart(opened["heldout"])}
    assert len(validated) == 2 * pairs.HELDOUT_ITEMS
    for depth in (1, 2):
        scored = registry.items(f"var_assign_code_{depth}", "heldout", 0, 1000)
        assert not validated & {item.prompt for item in scored}


def test_every_bit_of_a_seed_and_an_attempt_counts():
    """Also of seeds beyond 2**31, and negative ones."""
    drawn = {
        tuple(instances.instance_rng(seed, "train", 0, attempt).integers(0, 2**32, 2).tolist())
        for seed in (0, 1, -1, 2**31, 2**31 + 1, 2**32 - 2)
        for attempt in (0, 1)
    }
    assert len(drawn) == 12


def written(path, lines):
    path.write_text(
        "".join(json.dumps(line) + "\n" if isinstance(line, dict) else line for line in lines)
    )
    return path


def lines(n, start=0):
    return [{"prompt": f"q{i}=", "completion": f"{i % 7}"} for i in range(start, start + n)]


def test_the_pairs_of_a_file_are_held_out_by_hash_or_by_a_file_of_their_own(tmp_path):
    written(tmp_path / "chat.jsonl", lines(200))

    def opened(name, split):
        return {*taken_apart(pairs.open_pairs(name, split, tmp_path, 40, 0, lambda: CODEC))}

    train_pairs, heldout = opened("chat", "train"), opened("chat", "heldout")
    assert len(train_pairs) + len(heldout) == 200 and 8 < len(heldout) < 40
    assert opened("chat:10", "train") < train_pairs and len(opened("chat:10", "train")) == 10
    assert opened("chat:10", "heldout") == heldout
    written(tmp_path / "chat.heldout.jsonl", lines(5, start=300))
    assert len(opened("chat", "train")) == 200
    assert {p for p, _ in opened("chat", "heldout")} == {f"q{i}=" for i in range(300, 305)}
    with pytest.raises(UserError, match="chat:500 is more than the 200 training pairs"):
        opened("chat:500", "train")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{broken\n", "line 3 is not JSON"),
        ('["a", "b"]\n', "line 3 must be an object"),
        ({"prompt": "a"}, "line 3 must be an object .*; it has no text 'completion'"),
        ({"prompt": 1, "completion": "b"}, "it has no text 'prompt'"),
        ({"prompt": "a", "completion": ""}, "line 3 has an empty completion"),
        ({"prompt": "a" * 90, "completion": "b"}, "line 3 has 92 tokens; config.seq_len=40"),
    ],
)
def test_a_broken_line_is_named(tmp_path, line, says):
    path = written(tmp_path / "chat.jsonl", [*lines(2), line, *lines(2, start=9)])
    shutil.copy(path, tmp_path / "chat.heldout.jsonl")
    with pytest.raises(UserError, match=says):
        pairs.open_pairs("chat", "train", tmp_path, 40, 0, lambda: CODEC)


FILES = {
    "chat.jsonl": "chat", "chat.v2.jsonl": "chat_v2_jsonl", "chat:v2.jsonl": "chat_v2_jsonl",
    "chat+code.jsonl": "chat_code_jsonl", "stdlib.jsonl": "stdlib_jsonl",
    "p_hop_1.jsonl": "p_hop_1_jsonl", "plain.jsonl": "plain_jsonl", "a,b.jsonl": "a_b_jsonl",
    "chat.JSONL": "chat_JSONL", "chat.ndjson": "chat_ndjson", "chat.json": "chat_json",
    "chat.jsonl.gz": "chat_jsonl_gz", "chat.jsonl.zst": "chat_jsonl_zst", "chat:3": None,
    "notes.txt": None,
}  # fmt: skip


@pytest.mark.parametrize("file", FILES)
def test_an_existing_path_is_that_file(file, tmp_path, tiny_config):
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "manifest.json").write_text("{}")
    text = "".join(json.dumps(line) + "\n" for line in lines(30)).encode()
    if file.endswith(".zst"):
        pyarrow = pytest.importorskip("pyarrow")
        with pyarrow.CompressedOutputStream(str(tmp_path / file), "zstd") as out:
            out.write(text)
    else:
        (tmp_path / file).write_bytes(gzip.compress(text) if file.endswith(".gz") else text)
    path = str(tmp_path / file)
    if FILES[file] is None:
        with pytest.raises(UserError, match=r"must end in \.jsonl, \.ndjson or \.json \(also"):
            finetune.source_of(path)
        return
    folder, name = finetune.source_of(path)
    assert (folder, name) == (str(tmp_path), FILES[file])
    assert finetune.source_of(f"{path}:7") == (folder, f"{name}:7")
    tiny_config.update(data_dir=folder, seq_len=40)
    tiny_config.mixture = {f"{name}:7": 1.0}  # as a name in a config
    tiny_config.model.vocab_size = 264
    source = pipeline.open_sources(tiny_config, [f"{name}:7"], "train")[f"{name}:7"]
    assert len(taken_apart(source)) == 7 and all(p.startswith("q") for p, _ in taken_apart(source))


def test_two_files_of_one_name_are_refused(tmp_path):
    for file in ("chat.v2.jsonl", "chat:v2.jsonl"):
        written(tmp_path / file, lines(9))
    with pytest.raises(
        UserError, match="source 'chat_v2_jsonl' may be .*; rename one of the files"
    ):
        finetune.source_of(str(tmp_path / "chat.v2.jsonl"))
    written(tmp_path / "x.jsonl", lines(9))
    assert finetune.source_of(f"{tmp_path}/x.jsonl:3,copying_real:5") == (
        str(tmp_path),
        "x:3+copying_real:5",
    )
    for none in ("x.jsonl", "none/x.jsonl:3", "x.jsonl:0", "a b", "x\0y"):
        with pytest.raises(UserError, match="is not a file"):
            finetune.source_of(none)


def test_every_character_of_a_pair_is_kept(tmp_path):
    """A line ends at a line feed; what Python calls a line end may stand in a text."""
    path = tmp_path / "chat.jsonl"
    odd = {"prompt": "a\u2028b\u0085", "completion": "c\x0bd\u2029\r"}
    text = json.dumps(odd, ensure_ascii=False) + "\r\n" + r'{"prompt": "\ud800", "completion": "x"}'
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    found = pairs.read_file(path)
    assert [(p.prompt, p.completion) for p in found] == [(*odd.values(),), ("\ud800", "x")]
    source = pairs.Pairs("chat", found, "train", 40, CODEC)
    assert sorted(taken_apart(source)) == sorted([(*odd.values(),), ("?", "x")])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"[" * 100_000, "line 1 is not JSON: it is nested too deeply"),
        (b'{"prompt": "\xff", "completion": "x"}', "line 1 is not JSON: .*can't decode byte 0xff"),
        (b'{"messages": []}', 'line 1 has "messages"; write each conversation as'),
        (b"\n" + b" " * (2**26 + 1), "line 2 is longer than 64 MiB"),
        (b"", "chat.jsonl has no pairs"),
    ],
)
def test_a_file_that_holds_no_pairs_is_told(content, says, tmp_path):
    (tmp_path / "chat.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=says):
        pairs.read_file(tmp_path / "chat.jsonl")


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-9], lambda data: data[:40] + b"xx" + data[42:]]
)
def test_a_compressed_file_that_is_cut_is_told(damage, tmp_path):
    text = "".join(json.dumps(line) + "\n" for line in lines(30)).encode()
    (tmp_path / "chat.jsonl.gz").write_bytes(damage(gzip.compress(text)))
    with pytest.raises(UserError, match=r"chat.jsonl.gz( line \d+)? cannot be read: "):
        pairs.read_file(tmp_path / "chat.jsonl.gz")


@pytest.mark.slow
def test_pairs_and_running_text_stand_in_one_batch(tiny_config, tmp_path):
    written(tmp_path / "chat.jsonl", lines(50))
    tiny_config.update(seq_len=64, data_dir=str(tmp_path))
    tiny_config.mixture = {"chat": 1.0, "stdlib": 1.0}
    tiny_config.cooldown.mixture = {}
    tiny_config.model.vocab_size = 264
    tiny_config.update(checkpoint_every=12)
    result = train(tiny_config, tmp_path / "run")
    assert {"chat/nll", "stdlib/nll"} <= result["heldout"].keys()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A byte model that has seen a little text, looped."""
    config = tiny_run()
    config.update(steps=3, depth="1-1x2-1", seq_len=64, eval_batches=0)
    config.growth.operator, config.cooldown.mixture = "", {}
    config.mixture = {"stdlib": 1.0}
    config.model.vocab_size = 264
    workdir = tmp_path_factory.mktemp("base")
    train(config, workdir)
    return workdir


def tuned(base, folder, **changes):
    written(folder / "chat.jsonl", lines(80))
    config = finetune.config_for(str(base), str(folder / "chat.jsonl"))
    config.update(steps=60, eval_every=2, patience=2, learning_rate=3e-2, warmup_steps=2)
    config.update(changes)
    return config


@pytest.mark.slow
def test_a_run_with_patience_keeps_its_best_checkpoint(base, tmp_path):
    """It ends where the held-out loss has not fallen for two evaluations; killed, it ends alike."""
    config = tuned(base, tmp_path)
    result = train(config, tmp_path / "run")
    rows = read_rows(tmp_path / "run/metrics.jsonl")
    losses = {row["step"]: row["eval/nll"] for row in rows if "eval/nll" in row}
    best = min(losses, key=losses.get)
    assert result["steps"] == best and result["heldout"]["nll"] == losses[best]
    assert result["stopped_at"] == rows[-1]["step"] in (best + 4, 60)
    assert losses[best] < losses[2], "it has not learned at all"
    _, meta = checkpoint.load_params(tmp_path / "run")
    assert meta["step"] == best and meta["heldout"]["eval/nll"] == losses[best]
    assert [event["operator"] for event in meta["lineage"]] == ["init", "data"]

    # Finished, it is not trained again; killed after its best step, it comes to the same end.
    assert train(config, tmp_path / "run") == result
    assert read_rows(tmp_path / "run/metrics.jsonl") == rows
    (tmp_path / "run/result.json").unlink()
    again = train(config, tmp_path / "run")
    clock = {"wall_clock_s": 0, "time_s": 0, "compile_s": 0}
    assert {**again, **clock} == {**result, **clock}


def test_finetune_is_train_with_a_config_made_for_it(base, tmp_path, capsys):
    written(tmp_path / "chat.jsonl", lines(60))
    args = [
        "finetune", f"--checkpoint={base}", f"--pairs={tmp_path / 'chat.jsonl'}:30",
        f"--workdir={tmp_path / 'run'}", "--config.init_operator=untie", "--config.depth=4",
        "--config.steps=4", "--config.eval_every=2", "--config.batch_size=8",
    ]  # fmt: skip
    assert main(args) == 0
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["mixture"] == {"chat:30": 1.0} and config["seq_len"] == 64
    assert config["learning_rate"] == pytest.approx(1e-3)
    assert json.loads((tmp_path / "run/result.json").read_text())["unique_layers"] == 4
    for wrong, says in (
        ([*args[:1], *args[2:]], "--checkpoint is missing"),
        ([*args[:3]], "--workdir is missing"),
        ([*args, "--config.learning_rat=1"], "config.learning_rat does not exist; did you mean"),
        ([*args[:2], "--pairs=/none.jsonl", *args[3:]], "--pairs /none.jsonl is not a file"),
        ([*args[:1], "--checkpoint=/none", *args[2:]], "/none is not a directory of checkpoints"),
    ):
        assert main(wrong) == 2
        assert says in capsys.readouterr().err


def test_patience_wants_evaluations_and_one_phase(tiny_config, tmp_path):
    tiny_config.patience = 2
    with pytest.raises(UserError, match=r"config\.patience=2 requires config\.eval_every"):
        train(tiny_config, tmp_path / "run")
    tiny_config.eval_every = 2
    with pytest.raises(
        UserError, match="requires a run of one plan and one mixture; this run has 4"
    ):
        train(tiny_config, tmp_path / "run")


def test_the_tokenizer_of_a_fine_tuning_run_is_that_of_its_checkpoint(base, tmp_path):
    """A model of another tokenizer than bytes: the pairs are read by it, and it is left behind."""
    lib = pytest.importorskip("tokenizers")
    bpe = lib.ByteLevelBPETokenizer()
    bpe.train_from_iterator(["q1=2"] * 9, vocab_size=260, special_tokens=["<|endoftext|>"])
    other = shutil.copytree(base, tmp_path / "base")
    bpe.save(str(other / tokenizers.FILE))
    config = tuned(other, tmp_path, steps=2, patience=0, eval_every=0)
    with pytest.raises(UserError, match="config.mixture has text of another tokenizer"):
        train(config, tmp_path / "run")  # its meta says bytes
    opened = pipeline.open_sources(config, ["chat"], "train", str(other))
    assert opened["chat"].tokenizer == tokenizers.name_of(other / tokenizers.FILE)
    config.tokenizer = "bytes"
    train(config, tmp_path / "run")
