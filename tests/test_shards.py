import collections
import contextlib
import functools
import itertools
import json
import os
import resource
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopjax.cli import main as cli
from loopjax.data import pipeline, show, token_shards, tokenizers
from loopjax.data.prepare import job, shards
from loopjax.errors import UserError


def decoded(directory, split):
    """The documents of a split, read back through windows of one token."""
    source = token_shards.TokenShards(directory, split, 1)
    counts = token_shards.read_manifest(directory)["splits"][split]["shards"]
    ids = np.concatenate([source.read(s, 0, shard["tokens"]) for s, shard in enumerate(counts)])
    ends = np.flatnonzero(ids == 256)
    return [tokenizers.ByteTokenizer().decode(piece) for piece in np.split(ids, ends + 1)[:-1]]


# --- tokens --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [job.SHARD_SIZE, 4096])
def test_prepared_text_reads_back_and_no_document_is_on_both_sides(corpus, tmp_path, size):
    documents, files = corpus
    manifest = job.prepare(files, tmp_path / "out", heldout=0.1, shard_size=size)
    train, heldout = (decoded(tmp_path / "out", split) for split in ("train", "heldout"))
    assert sorted(train + heldout) == sorted(documents)
    assert not set(train) & set(heldout)
    assert manifest["splits"]["train"]["documents"] == len(train)
    assert manifest["splits"]["train"]["text_bytes"] == sum(map(len, train))
    assert 10 < len(heldout) < 60
    assert (len(manifest["splits"]["train"]["shards"]) > 1) == (size == 4096)


def test_duplicates_fall_on_one_side_and_named_heldout_files_are_kept_out(corpus, tmp_path):
    documents, files = corpus
    copies = [shutil.copy(file, tmp_path / f"copy-{file.name}") for file in files]
    job.prepare([*files, *copies], tmp_path / "twice", heldout=0.1, shard_size=3000)
    assert not set(decoded(tmp_path / "twice", "train")) & set(
        decoded(tmp_path / "twice", "heldout")
    )
    manifest = job.prepare(files, tmp_path / "named", heldout_inputs=[files[1]])
    assert sorted(decoded(tmp_path / "named", "heldout")) == sorted(documents[200:])
    assert sorted(decoded(tmp_path / "named", "train")) == sorted(documents[:200])
    assert manifest["dropped_from_training"] == 100


@pytest.mark.parametrize("seq_len", [3, 1000, 2048, 5000])
def test_windows_of_any_length_tile_the_stream(corpus, tmp_path, seq_len):
    _, files = corpus
    copy = shutil.copy(files[1], tmp_path / "c.jsonl")
    job.prepare([*files, copy], tmp_path / "out", heldout=0.1, shard_size=9000)
    source = token_shards.TokenShards(tmp_path / "out", "train", seq_len)
    position = 0
    for i in range(len(source)):
        shard = int(np.searchsorted(source.first, i, side="right")) - 1
        start = (i - source.first[shard]) * seq_len
        stream = source.read(shard, 0, int(start) + seq_len + 1)
        np.testing.assert_array_equal(source[i]["inputs"], stream[start:-1])
        np.testing.assert_array_equal(source[i]["targets"], stream[start + 1 :])
        position += seq_len
    assert position == len(source) * seq_len > 0


@given(st.lists(st.integers(0, 3 * shards.RECORD_TOKENS), min_size=1, max_size=40))
def test_a_shard_holds_its_documents_token_by_token(tmp_path_factory, lengths):
    root = tmp_path_factory.mktemp("shard")
    (root / shards.UNFINISHED).mkdir()
    codec = tokenizers.ByteTokenizer()
    task = shards.Task(root, "bytes", "", "text", None, 0.0, False)
    writer = shards.ShardWriter(task, "train", "00000", codec)
    documents = [np.full(n, i % 256, np.uint8) for i, n in enumerate(lengths)]
    for ids in documents:
        writer.add(ids, len(ids))
    [shard] = writer.finish()["shards"]
    records = token_shards.ArrayRecordDataSource([str(root / shard["file"])])
    stream = np.concatenate([np.frombuffer(record, np.uint16) for record in records])
    wanted = np.concatenate([np.append(ids.astype(np.uint16), 256) for ids in documents])
    np.testing.assert_array_equal(stream, wanted)
    assert shard["tokens"] == len(wanted) and len(records) == -(-len(wanted) // 2048)


def make_bpe(path, documents):
    tokenizers_lib = pytest.importorskip("tokenizers")
    bpe = tokenizers_lib.ByteLevelBPETokenizer()
    special = ["<|endoftext|>", "<end>"]
    bpe.train_from_iterator(documents, vocab_size=300, special_tokens=special, show_progress=False)
    bpe.save(str(path))
    return path


def test_a_tokenizer_file_makes_the_shards_and_the_synthetic_text_beside_them(
    corpus, tmp_path, tiny_config
):
    documents, files = corpus
    job.prepare(
        files, tmp_path / "web", str(make_bpe(tmp_path / "bpe.json", documents)), heldout=0.1
    )
    tiny_config.data_dir, tiny_config.seq_len = str(tmp_path), 200
    tiny_config.model.vocab_size = 400
    sources = pipeline.open_sources(tiny_config, ["web", "copying_real"], "train")
    codec = sources["copying_real"].codec
    assert sources["web"].tokenizer == codec.name == sources["copying_real"].tokenizer
    assert "Fill in the blank" in codec.decode(sources["copying_real"][0]["inputs"])
    with pytest.raises(UserError, match="sources of different tokenizers"):
        pipeline.open_sources(tiny_config, ["web", "stdlib"], "train")
    tiny_config.model.vocab_size = 280
    with pytest.raises(UserError, match=r"vocab_size=280 is smaller than the \d+ tokens"):
        pipeline.open_sources(tiny_config, ["web"], "train")


def test_a_tokenizer_is_a_file_a_directory_or_of_the_hub(tmp_path, monkeypatch):
    path = make_bpe(tmp_path / tokenizers.FILE, ["lorem ipsum"] * 20)
    assert tokenizers.load(str(path)).eos == tokenizers.load(str(tmp_path)).eos == "<|endoftext|>"
    config = tmp_path / tokenizers.CONFIG
    for token in ("<end>", {"content": "<end>", "special": True}):
        config.write_text(json.dumps({"eos_token": token}))
        assert tokenizers.load(str(tmp_path)).eos == "<end>"
    assert tokenizers.load(str(tmp_path), eos="<|endoftext|>").eos == "<|endoftext|>"
    huggingface_hub = pytest.importorskip("huggingface_hub")
    asked = []

    def download(repository, name):
        asked.append((repository, name))
        return str(tmp_path / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert tokenizers.load("some/model").name == tokenizers.load(str(path)).name
    assert asked == [("some/model", tokenizers.FILE), ("some/model", tokenizers.CONFIG)]
    lone = "\ud800 lorem"  # as JSON can hold it
    codec = tokenizers.load(str(path))
    assert codec.decode(codec.encode_batch([lone])[0]) == "? lorem"


# --- damage --------------------------------------------------------------------------------------


def flip(data):
    return data[:5000] + bytes([data[5000] ^ 1]) + data[5001:]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda data: data[:-1000], "were written"),
        (lambda data: None, "00000.arrayrecord is missing"),
        (lambda data: b"x" * len(data), "00000.arrayrecord is damaged or not a shard: "),
        (flip, "00000.arrayrecord is damaged or not a shard: "),
    ],
)
def test_a_damaged_or_foreign_shard_is_told(damage, says, corpus, tmp_path):
    _, files = corpus
    job.prepare(files, tmp_path / "web", heldout=0.1)
    shard = tmp_path / "web" / "train" / "00000.arrayrecord"
    data = damage(shard.read_bytes())
    shard.unlink() if data is None else shard.write_bytes(data)
    with pytest.raises(UserError, match=says):
        source = token_shards.TokenShards(tmp_path / "web", "train", 8)
        for i in range(len(source)):
            source[i]
    with pytest.raises(UserError, match=f"1 of 2 shards do not match their hash: {shard}"):
        show.verify(tmp_path)


def test_more_shards_than_files_may_be_open_are_read(corpus, tmp_path):
    documents, files = corpus
    job.prepare([files[1]], tmp_path / "web", heldout=0, shard_size=40)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 50, hard))
    try:
        assert sorted(decoded(tmp_path / "web", "train")) == sorted(documents[200:])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (lambda whole: whole[:-20], "manifest.json cannot be read: "),
        (lambda whole: "[" * 100_000, "manifest.json cannot be read: it is nested too deeply"),
        (lambda whole: "[]", "has format None, this version reads 1"),
        (
            lambda whole: '{"format": 1}',
            "has no field 'tokenizer': it was not written by loopjax prepare",
        ),
    ],
)
def test_a_damaged_manifest_is_told(content, says, corpus, tmp_path):
    _, files = corpus
    job.prepare(files, tmp_path / "web", heldout=0.1)
    path = tmp_path / "web" / token_shards.MANIFEST
    path.write_text(content(path.read_text()))
    with pytest.raises(UserError, match=says):
        token_shards.TokenShards(tmp_path / "web", "train", 8)


@pytest.fixture(scope="module")
def shards_of_one_size(tmp_path_factory):
    """A prepared directory whose shards have equal sizes and numbers of tokens."""
    root = tmp_path_factory.mktemp("shards")
    for n in range(3):
        (root / f"{n}.txt").write_text("".join(chr(97 + (i * i + n) % 26) for i in range(5000)))
    inputs = [root / f"{n}.txt" for n in range(3)]
    job.prepare(inputs[1:], root / "web", shard_size=5000, heldout_inputs=inputs[:1])
    return root / "web"


def changed_manifest(directory, change, *, old: bool):
    """Changes the manifest; an old one has no hash of its own and none of the shards' ends."""
    path = directory / token_shards.MANIFEST
    manifest = json.loads(path.read_text())
    if old:
        del manifest["sha256"]
        for split in manifest["splits"].values():
            for shard in split["shards"]:
                del shard["ends"]
    change(manifest)
    path.write_text(json.dumps(manifest))


def of_train(key, value):
    def change(manifest):
        shard = manifest["splits"]["train"]["shards"][0]
        shard[key] = value(shard[key]) if callable(value) else value

    return change


def of_top(key, value):
    return lambda manifest: manifest.update({key: value})


def swapped(directory):
    first, second = sorted((directory / "train").glob("*"))[:2]
    assert first.stat().st_size == second.stat().st_size
    aside = first.with_suffix(".aside")
    for source, target in ((first, aside), (second, first), (aside, second)):
        source.rename(target)


def told(directory, split="train") -> list[str]:
    """The sentences of training and of `data --verify`."""
    sentences = []
    for read in (
        lambda: token_shards.TokenShards(directory, split, 8),
        lambda: show.verify(directory),
    ):
        with pytest.raises(UserError) as error:
            read()
        sentences.append(str(error.value))
    return sentences


def test_swapped_shards_are_told_before_training(shards_of_one_size, tmp_path):
    directory = shutil.copytree(shards_of_one_size, tmp_path / "web")
    swapped(directory)
    start, whole = told(directory)
    assert "record of shard" in start and "is not the one that was written; restore" in start
    assert "2 of 3 shards do not match their hash" in whole


def more_tokens(manifest, n):
    """In a shard and in the sum of its split."""
    counts = manifest["splits"]["train"]
    counts["tokens"] += n
    counts["shards"][0]["tokens"] += n


DAMAGE = {
    "dtype": of_top("dtype", "uint32"),
    "tokens": lambda m: more_tokens(m, 1000),
    "one token": lambda m: more_tokens(m, -1),
    "tokens of a shard": of_train("tokens", lambda n: n + 1),
}


@pytest.mark.parametrize("old", [False, True], ids=["with hashes", "without"])
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_manifest_that_is_not_that_of_the_shards_is_told(
    damage, old, shards_of_one_size, tmp_path
):
    """Also one of an earlier version, which has no hash: by the lengths of the records."""
    directory = shutil.copytree(shards_of_one_size, tmp_path / "web")
    changed_manifest(directory, damage, old=old)
    for sentence in told(directory):
        told_by = ("the sum of its shards", "tokens, uint" if old else "(its hash differs)")
        assert any(part in sentence for part in told_by) and token_shards.REPAIR in sentence


def test_every_field_of_a_manifest_counts(shards_of_one_size, tmp_path):
    directory = shutil.copytree(shards_of_one_size, tmp_path / "web")
    path = directory / token_shards.MANIFEST
    whole = json.loads(path.read_text())
    for key in whole:
        path.write_text(json.dumps(whole | {key: "changed"}))
        with pytest.raises(UserError, match="manifest.json"):
            token_shards.read_manifest(directory)
    path.write_text(json.dumps(dict(reversed(whole.items()))))
    assert token_shards.read_manifest(directory) == whole  # the order of the keys says nothing


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (of_top("dtype", "junk"), "field 'dtype' is 'junk', but must be one of uint16, uint32"),
        (of_top("dtype", "object"), "field 'dtype' is 'object', but must be one of"),
        (of_top("dtype", ["uint16"]), "field 'dtype' is "),
        (
            of_top("record_tokens", 0),
            "'record_tokens' is 0, but must be a whole number of at least",
        ),
        (of_top("vocab_size", True), "field 'vocab_size' is True, but must be a whole number"),
        (of_top("tokenizer", None), "field 'tokenizer' is None, but must be a text"),
        (of_top("splits", []), r"field 'splits' is \[\], but must be an object"),
        (of_top("splits", {}), "has no field 'splits.train'"),
        (lambda m: m["splits"]["train"].pop("shards"), "has no field 'splits.train.shards'"),
        (lambda m: m["splits"]["train"].update(shards={}), "'splits.train.shards' is {}, but must"),
        (lambda m: m["splits"]["train"].update(tokens="9"), "'splits.train.tokens' is '9', but"),
        (
            lambda m: m["splits"]["train"].update(tokens=9),
            r"'splits.train.tokens' is 9, but must be \d+, the sum of its shards",
        ),
        (
            lambda m: m["splits"]["train"].update(shards=[]),
            r"'splits.train.tokens' is \d+, but must be 0, the sum of its shards",
        ),
        (of_train("tokens", "9"), r"'splits.train.shards\[0\].tokens' is '9', but must be a whole"),
        (of_train("tokens", 10**30), r"'splits.train.shards\[0\].tokens' is 1000"),
        (of_train("file", 3), r"'splits.train.shards\[0\].file' is 3, but must be a text"),
        (of_train("sha256", None), r"'splits.train.shards\[0\].sha256' is None"),
    ],
)
def test_a_field_of_the_wrong_type_is_named(damage, says, shards_of_one_size, tmp_path):
    directory = shutil.copytree(shards_of_one_size, tmp_path / "web")
    changed_manifest(directory, damage, old=True)
    with pytest.raises(UserError, match=rf"manifest.json:? .*{says}"):
        token_shards.TokenShards(directory, "train", 8)
    assert cli.main(["data", str(directory), "--verify"]) == 2


def leaves(value, path=()):
    """The paths of all values within a JSON value."""
    if path:
        yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from leaves(value[key], (*path, key))


def with_value(manifest, path, value):
    manifest = json.loads(json.dumps(manifest))
    within = functools.reduce(lambda inside, key: inside[key], path[:-1], manifest)
    if value == "no value":
        del within[path[-1]]
    else:
        within[path[-1]] = value
    return manifest


@pytest.mark.slow
@pytest.mark.parametrize("old", [False, True], ids=["with hashes", "without"])
def test_any_value_of_any_field_is_told_or_harmless(old, shards_of_one_size, tmp_path):
    directory = shutil.copytree(shards_of_one_size, tmp_path / "web")
    changed_manifest(directory, lambda manifest: None, old=old)
    path = directory / token_shards.MANIFEST
    whole = json.loads(path.read_text())
    right = [row["inputs"] for row in token_shards.TokenShards(directory, "train", 8)]
    values = [
        "no value", None, True, -1, 0, 3, 10**30, 1.5, float("nan"), "x", "uint32", "../x", [], {},
        "train/00001.arrayrecord", [1], {"a": 1},
    ]  # fmt: skip
    outcomes = collections.Counter()
    for where, value in itertools.product(leaves(whole), values):
        path.write_text(json.dumps(with_value(whole, where, value)))
        for look in (lambda: show.look(directory, "train", 1, 0), lambda: show.verify(directory)):
            with contextlib.suppress(UserError):
                look()
        try:
            source = token_shards.TokenShards(directory, "train", 8)
            np.testing.assert_array_equal([row["inputs"] for row in source], right)
            outcomes["harmless"] += 1
        except UserError:
            outcomes["told"] += 1
    assert outcomes["told"] > (500 if old else 1000)


def test_data_of_an_earlier_version_are_read_and_verified(shards_of_one_size, tmp_path, capsys):
    directory = shutil.copytree(shards_of_one_size, tmp_path / "web")
    new = token_shards.TokenShards(directory, "train", 8)
    changed_manifest(directory, lambda manifest: None, old=True)
    old = token_shards.TokenShards(directory, "train", 8)
    assert old.fingerprint == new.fingerprint and len(old) == len(new)
    np.testing.assert_array_equal(old[7]["inputs"], new[7]["inputs"])
    show.verify(directory)
    err = capsys.readouterr().err
    assert "3 shards match their hash" in err and "manifest.json has no hash (written by an" in err


def test_verify_reads_every_token_id(shards_of_one_size, tmp_path):
    directory = shutil.copytree(shards_of_one_size, tmp_path / "web")
    manifest = token_shards.read_manifest(directory)
    token_shards.write_manifest(directory, manifest | {"vocab_size": 256})
    with pytest.raises(
        UserError, match=r"has the token id 256, but its tokenizer has ids below 256"
    ):
        show.verify(directory)


def test_foreign_directories_are_refused(corpus, tmp_path, tiny_config):
    _, files = corpus
    job.prepare(files, tmp_path / "web", heldout=0.1)
    with pytest.raises(UserError, match="has no sequence of config.seq_len=100000 tokens"):
        token_shards.TokenShards(tmp_path / "web", "heldout", 100_000)
    with pytest.raises(UserError, match="unknown source 'wbe'"):
        pipeline.open_sources(tiny_config, ["wbe"], "train")


# --- the data verb -------------------------------------------------------------------------------


def test_the_data_verb_shows_counts_and_documents(corpus, tmp_path, capsys):
    _, files = corpus
    manifest = job.prepare(files, tmp_path / "data" / "web", heldout=0.1, shard_size=3000)
    job.prepare(files, tmp_path / "data" / "more", heldout=0.1)
    assert cli.main(["data", str(tmp_path / "data"), "--samples", "20", "--verify", "--json"]) == 0
    printed = capsys.readouterr()
    shown = json.loads(printed.out)
    assert "shards match their hash" in printed.err
    assert {(row["source"], row["split"]) for row in shown["rows"]} == {
        (source, split) for source in ("web", "more") for split in token_shards.SPLITS
    }
    [row] = [row for row in shown["rows"] if (row["source"], row["split"]) == ("web", "train")]
    counts = manifest["splits"]["train"]
    assert row["documents"] == counts["documents"] and row["shards"] == len(counts["shards"]) > 2
    assert row["bytes_per_token"] == counts["text_bytes"] / counts["tokens"]
    train = decoded(tmp_path / "data" / "web", "train")
    assert len(shown["samples"]["web"]) == 20
    assert all(any(d.endswith(s) for d in train) for s in shown["samples"]["web"])
    assert sum(sample in train for sample in shown["samples"]["web"]) > 15
    assert cli.main(["data", str(tmp_path / "data" / "web"), "--samples", "1"]) == 0
    out = capsys.readouterr().out
    assert "| document" in out and f"{counts['tokens']:,}" in out
    assert cli.main(["data", str(tmp_path / "none")]) == 2
    assert "has no data written by loopjax prepare" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--samples", "-1"], "'-1' must be a whole number of at least 0"),
        (["--samples", "2000000"], "--samples 2000000 must be at most 10000"),
        (["--seed", "-1"], "--seed: '-1' must be a whole number within 0..4294967295"),
        (["--seed", str(10**22)], "must be a whole number within 0..4294967295"),
    ],
)
def test_numbers_that_are_none_are_refused(flags, says, shards_of_one_size, capsys):
    assert cli.main(["data", str(shards_of_one_size), *flags]) == 2
    assert says in capsys.readouterr().err


def test_samples_show_what_cannot_be_seen():
    shown = {"rows": [], "unfinished": {}, "split": "train", "samples": {"a": ["x\ty\r\n" * 9]}}
    lines = show.as_text(shown).splitlines()
    assert lines[2] == r"| x\ty\r" and lines[-1] == "| ... 4 more lines"
