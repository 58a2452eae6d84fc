"""A tokenizer file means the same ids to every command, whatever else it says."""

import json

import numpy as np
import pytest

from loopjax import checkpoint, finetune
from loopjax.cli import main as cli
from loopjax.data import items, pairs, pipeline, registry, show, token_shards, tokenizers
from loopjax.data.prepare import job
from loopjax.errors import UserError
from loopjax.lm.loaded_model import open_model
from loopjax.run import plan_run
from loopjax.train import train
from tests.conftest import tiny_run

tokenizers_lib = pytest.importorskip("tokenizers")


def made(path, vocabulary=None, *, template=None, regex=None, prepend=False, **changes):
    """A tokenizer of words (or of the characters of a marked text), with fields of its file set."""
    vocabulary = vocabulary or {"<unk>": 0, "</s>": 1, "<s>": 2, "a": 3, "b": 4}
    lib = tokenizers_lib
    if prepend:  # as SentencePiece does: every text starts with the mark of a space
        tokenizer = lib.Tokenizer(lib.models.BPE(vocabulary, [], unk_token="<unk>"))
        tokenizer.normalizer = lib.normalizers.Sequence(
            [lib.normalizers.Prepend("▁"), lib.normalizers.Replace(" ", "▁")]
        )
    else:
        tokenizer = lib.Tokenizer(lib.models.WordLevel(vocabulary, unk_token="<unk>"))
        tokenizer.pre_tokenizer = lib.pre_tokenizers.Whitespace()
    if regex:
        tokenizer.pre_tokenizer = lib.pre_tokenizers.Split(lib.Regex(regex), "isolated")
    tokenizer.add_special_tokens(["</s>", "<s>"])
    if template:
        special = [(name, vocabulary[name]) for name in ("<s>", "</s>")]
        tokenizer.post_processor = lib.processors.TemplateProcessing(
            single=template, special_tokens=special
        )
    content = json.loads(tokenizer.to_str())
    content |= changes
    path.mkdir(exist_ok=True)
    (path / tokenizers.FILE).write_text(json.dumps(content))
    return str(path)


def characters(*more):
    """A vocabulary of printable characters, the mark, and more tokens."""
    symbols = ["<unk>", "</s>", "<s>", "▁", "\n", *map(chr, range(33, 127)), *more]
    return {symbol: i for i, symbol in enumerate(symbols)}


def text_file(tmp_path, text="a b a b a a b", n=40):
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"text": f"{text}{' a' * i}"}) + "\n" for i in range(n)))
    return str(path)


# --- ids -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("largest", "dtype"),
    [(500, "uint16"), (2**16 - 1, "uint16"), (2**16, "uint32"), (70_000, "uint32")],
)
def test_the_largest_id_decides_the_width_and_what_a_model_must_have(largest, dtype, tmp_path):
    spec = made(tmp_path / "t", {"<unk>": 0, "</s>": 1, "<s>": 2, "a": largest, "b": 3})
    manifest = job.prepare([text_file(tmp_path)], tmp_path / "web", spec, heldout=0.2)
    assert manifest["dtype"] == dtype and manifest["vocab_size"] == largest + 1
    source = token_shards.TokenShards(tmp_path / "web", "train", 6)
    assert {largest, 3} <= set(source.read(0, 0, 8).tolist()) <= {largest, 3, 1}
    config = tiny_run()
    config.data_dir, config.seq_len, config.model.vocab_size = str(tmp_path), 6, largest
    with pytest.raises(UserError, match=f"vocab_size={largest} is smaller than the {largest + 1}"):
        pipeline.open_sources(config, ["web"], "train")
    config.model.vocab_size = largest + 1
    assert pipeline.open_sources(config, ["web"], "train")["web"][0]["inputs"].max() == largest


def test_an_added_token_has_the_id_that_the_library_gives_it(tmp_path):
    token = {
        "content": "<x>", "single_word": False, "lstrip": False, "rstrip": False,
        "normalized": False, "special": True,
    }  # fmt: skip
    plain = made(tmp_path / "t")
    content = json.loads((tmp_path / "t" / tokenizers.FILE).read_text())
    for id_ in (600, 70_000):
        (tmp_path / "t" / tokenizers.FILE).write_text(
            json.dumps(
                {**content, "added_tokens": [*content["added_tokens"], {**token, "id": id_}]}
            )
        )
        codec = tokenizers.load(plain)
        assert max(codec.encode("a <x>")) == codec.vocab_size - 1


def test_an_id_that_no_batch_can_hold_is_refused(tmp_path, monkeypatch):
    assert tokenizers.MOST_IDS == 2**31  # the tokenizers library would make a table of 8 GB
    monkeypatch.setattr(tokenizers, "MOST_IDS", 1000)
    spec = made(tmp_path / "t", {"<unk>": 0, "</s>": 1, "<s>": 2, "a": 1000})
    with pytest.raises(UserError, match="has the token id 1000; ids must be below 1000"):
        tokenizers.load(spec)


class Wild(token_shards.Windows):
    """A source whose ids exceed what it says."""

    vocab_size = 10
    fingerprint: dict = {}  # noqa: RUF012

    def __init__(self, split, seq_len, seed):
        super().__init__([1000], seq_len, "wild")

    def read(self, shard, start, stop):
        return np.arange(start, stop)


def test_no_id_beyond_the_vocabulary_reaches_a_model(monkeypatch):
    monkeypatch.setattr(registry, "TASKS", (registry.Task("wild", "wild", Wild),))
    config = tiny_run()
    config.mixture, config.data_dir = {"wild": 1.0}, ""
    says = r"config.model.vocab_size=40 is too small: source 'wild' has the token id \d+"
    source = pipeline.open_sources(config, ["wild"], "heldout")["wild"]
    with pytest.raises(UserError, match=says):
        list(pipeline.heldout_batches(source, 8, 9, np.arange(8)))


# --- the file's own settings ---------------------------------------------------------------------

TRUNCATION = {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
PADDING = {
    "strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
    "pad_type_id": 0, "pad_token": "<unk>",
}  # fmt: skip


@pytest.mark.parametrize(
    "setting",
    [
        {"truncation": TRUNCATION},
        {"padding": PADDING},
        {"padding": {**PADDING, "strategy": "BatchLongest"}},
        {"template": "<s> $A </s>"},
    ],
    ids=["truncation", "padding", "batch padding", "template"],
)
def test_prepared_text_is_the_documents_and_one_end_each(setting, tmp_path):
    plain = job.prepare(
        [text_file(tmp_path)], tmp_path / "plain", made(tmp_path / "p"), heldout=0.2
    )
    codec = made(tmp_path / "t", **setting)
    same = job.prepare([text_file(tmp_path)], tmp_path / "web", codec, heldout=0.2)
    for split in token_shards.SPLITS:
        assert same["splits"][split] == plain["splits"][split]
    assert tokenizers.load(codec).encode("a b a b a")[-5:] == [3, 4, 3, 4, 3]


@pytest.mark.parametrize(
    ("template", "before"),
    [("<s> $A </s>", [2]), ("$A </s>", []), ("<s> $A", [2]), ("</s> $A", [1]), (None, [])],
)
def test_a_template_puts_bos_before_a_prompt_and_nothing_behind_it(template, before, tmp_path):
    spec = made(tmp_path / "t", template=template)
    codec = tokenizers.load(spec)
    assert codec.encode("a b") == [*before, 3, 4]
    assert codec.encode("") == before
    # The probe of the template may be a text that the tokenizer does not know.
    unknown = made(tmp_path / "u", {"</s>": 1, "<s>": 2, "b": 4}, template=template, model={
        "type": "BPE", "vocab": {"</s>": 1, "<s>": 2, "b": 4}, "merges": [],
    })  # fmt: skip
    assert tokenizers.load(unknown).encode("b") == [*before, 4] or template == "</s> $A"
    without = tokenizers.load(spec, add_bos=False)
    assert without.encode("a b") == [3, 4] and without.bos_id == without.eos_id == 1


def test_a_regular_expression_that_never_ends_is_a_sentence(tmp_path, capfd):
    spec = made(tmp_path / "t", regex=r"(x+x+)+y")
    codec = tokenizers.load(spec)
    for encode in (codec.encode, lambda text: codec.encode_batch([text])):
        with pytest.raises(UserError, match="tokenizer '.*json' fails on a text: .*retry-limit"):
            encode("x" * 40)
    (tmp_path / "in.txt").write_text("x" * 40)
    argv = ["prepare", "--input", str(tmp_path / "in.txt"), "--tokenizer", spec]
    assert cli.main([*argv, "--output", str(tmp_path / "web")]) == 2
    assert "Traceback" not in capfd.readouterr().err and not (tmp_path / "web").exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "tokenizer_config.json cannot be read: "),
        ("[]", "tokenizer_config.json must be an object whose 'eos_token' is a text"),
        ('{"eos_token": 5}', "whose 'eos_token' is a text, not 5"),
    ],
)
def test_a_damaged_tokenizer_config_is_told(content, says, tmp_path):
    spec = made(tmp_path / "t")
    (tmp_path / "t" / tokenizers.CONFIG).write_text(content)
    with pytest.raises(UserError, match=says):
        tokenizers.load(spec)


def test_bytes_have_no_other_end_and_an_end_has_a_name(tmp_path):
    with pytest.raises(UserError, match="--eos=<x> does not go with the tokenizer bytes"):
        tokenizers.load("bytes", "<x>")
    with pytest.raises(UserError, match="--eos is empty"):
        tokenizers.load(made(tmp_path / "t"), "")


def test_added_tokens_beyond_a_model_are_refused_only_where_they_occur(tmp_path, capsys):
    codec = tokenizers.load(made(tmp_path / "t", {"<unk>": 0, "</s>": 1, "<s>": 2, "a": 3}))
    codec.tokenizer.add_special_tokens(["<pad>"])
    file = tmp_path / "t" / tokenizers.FILE
    file.write_text(codec.tokenizer.to_str())
    codec = tokenizers.load(str(file))
    tokenizers.limit(codec, 4)
    assert "added tokens <pad> exceed the checkpoint's vocabulary of 4" in capsys.readouterr().err
    assert codec.encode("a a") == [3, 3]
    with pytest.raises(
        UserError, match=r"the token '<pad>' \(id 4\), but the vocabulary of the mod"
    ):
        codec.encode_batch(["a", "a <pad>"])
    with pytest.raises(UserError, match="has 5 tokens, but the checkpoint's vocabulary has only 3"):
        tokenizers.limit(tokenizers.load(str(file)), 3)


# --- prompts and completions ---------------------------------------------------------------------


def test_a_prompt_and_its_completion_are_one_text(tmp_path):
    codec = tokenizers.load(made(tmp_path / "t", characters(), prepend=True, template="<s> $A"))
    ids, n = tokenizers.encode_pair(codec, "x: ", "5")
    assert codec.tokenizer.decode(ids) and ids == codec.encode("x: 5")
    assert ids[n:] == codec.encode("x: 5")[-1:] and ids[:n] == codec.encode("x: ")
    [source] = [pairs.Pairs("s", [pairs.Pair("x:", " 5", "")], "train", 20, codec)]
    row = source[0]
    assert row["inputs"][:7].tolist() == [*codec.encode("x: 5"), 0]
    assert row["targets"][:8].tolist() == [-1, -1, -1, *codec.encode("x: 5")[-2:], 1, -1, -1]
    assert source.fingerprint["version"] == 2  # apart, the completion had a mark of its own
    assert (
        "version"
        not in pairs.Pairs(
            "s", [pairs.Pair("x:", " 5", "")], "train", 20, tokenizers.ByteTokenizer()
        ).fingerprint
    )


def test_a_token_across_the_seam_is_a_target(tmp_path):
    vocabulary = characters(":5", "x:")
    lib = tokenizers_lib
    path = tmp_path / "bpe.json"
    tokenizer = lib.Tokenizer(lib.models.BPE(vocabulary, [(":", "5")], unk_token="<unk>"))
    tokenizer.save(str(path))
    codec = tokenizers.load(str(path), "</s>")
    ids, n = tokenizers.encode_pair(codec, "x:", "5")
    assert (ids, n) == (codec.encode("x:5"), 1) and len(ids) == 2
    # Where nothing would be left of the prompt, the two stay apart; an empty one is its start.
    assert tokenizers.encode_pair(codec, ":", "5") == (codec.encode(":") + codec.encode("5"), 1)
    assert tokenizers.encode_pair(codec, "", "5") == ([codec.bos_id, *codec.encode("5")], 1)


def test_a_row_of_items_is_tokenized_as_one_text(tmp_path):
    codec = tokenizers.load(made(tmp_path / "t", characters(), prepend=True))
    source = registry.open_source("var_assign_math_0", "train", 600, 0, lambda: codec)
    one = registry.open_source("var_assign_math_0", "train", 600, 0, tokenizers.ByteTokenizer)
    assert (source.fingerprint["version"], one.fingerprint["version"]) == (2, 1)
    row, wanted = source[3], one[3]
    end = int(np.flatnonzero(wanted["targets"] >= 0)[-1]) + 1  # of the last whole item
    text = bytes(wanted["inputs"][1:end].tolist()).decode()
    whole = codec.encode(text)
    assert row["inputs"][1 : len(whole) + 1].tolist() == whole  # no mark of a start in between
    answers = "".join(codec.decode([i]) for i in row["targets"] if i >= 0)
    by_bytes = bytes(i for i in wanted["targets"] if i >= 0).decode()
    assert answers.replace("▁", " ").split()[:3] == by_bytes.split()[:3] != []


def test_a_run_says_whether_its_texts_began_with_bos(tmp_path):
    spec = made(tmp_path / "t", template="<s> $A")
    job.prepare([text_file(tmp_path)], tmp_path / "web", spec, heldout=0.2)
    (tmp_path / "chat.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 3)
    (tmp_path / "chat.heldout.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    config = tiny_run()
    config.data_dir = str(tmp_path)
    opened = pipeline.open_sources(config, ["chat"], "train", spec)["chat"]
    assert opened.add_bos is True and opened[0]["inputs"][0] == 2
    beside = pipeline.open_sources(config, ["web", "chat"], "train")
    assert beside["web"].add_bos is beside["chat"].add_bos is False
    assert beside["chat"][0]["inputs"][0] == 3
    again = pipeline.open_sources(config, ["chat"], "train", spec, add_bos=False)["chat"]
    assert again[0]["inputs"][0] == 3
    assert (
        registry.open_source("copying_real", "train", 400, 0, tokenizers.ByteTokenizer).add_bos
        is None
    )


@pytest.mark.slow
def test_evaluation_uses_bos_where_training_did(tmp_path):
    """Prepared text has none; pairs that fine-tune such a model have none either."""
    spec = made(tmp_path / "t", template="<s> $A")
    job.prepare([text_file(tmp_path)], tmp_path / "web", spec, heldout=0.2)
    config = tiny_run()
    config.update(data_dir=str(tmp_path), steps=1, depth="1", seq_len=8, checkpoint_every=0)
    config.mixture, config.cooldown.mixture, config.cooldown.steps = {"web": 1.0}, {}, 0
    config.growth.operator = ""
    train(config, tmp_path / "run")
    assert checkpoint.read_meta(tmp_path / "run/checkpoints", 1)["add_bos"] is False
    assert open_model(tmp_path / "run").tokenizer.encode("a b") == [3, 4]
    written = '{"prompt": "a", "completion": "b"}\n' * 30
    for name in ("chat.jsonl", "chat.heldout.jsonl"):
        (tmp_path / name).write_text(written)
    tuned = finetune.config_for(str(tmp_path / "run"), str(tmp_path / "chat.jsonl"))
    tuned.update(steps=1, patience=0, eval_every=0, batch_size=8)
    train(tuned, tmp_path / "tuned")
    assert checkpoint.read_meta(tmp_path / "tuned/checkpoints", 1)["add_bos"] is False
    assert plan_run(tuned).stream.sources["chat"][0]["inputs"][0] == 3
    # A checkpoint of an earlier version does not say it, and keeps the template.
    assert tokenizers.load(spec, add_bos=None).encode("a b") == [2, 3, 4]


def test_samples_of_a_shard_use_its_tokenizer(tmp_path):
    spec = made(tmp_path / "t", truncation=TRUNCATION)
    job.prepare([text_file(tmp_path)], tmp_path / "web", spec, heldout=0.2)
    shown = show.look(tmp_path / "web", "train", 2, 0)
    assert all(sample.startswith(("a b a b", "a ")) for sample in shown["samples"]["web"])


def test_an_item_is_found_where_the_row_is_longer_than_was_guessed():
    def make(rng):
        n = int(rng.integers(1, 9))
        return items.Item("x" * n * n, str(n), (str(n),), " ")

    source = items.Items("squares", make, "train", 90, 0, tokenizers.ByteTokenizer())
    for row in (source[i] for i in range(20)):
        assert (row["targets"] >= 0).any() and row["inputs"][0] == 256
