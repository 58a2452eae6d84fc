import gzip
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopjax.curriculum import Phase
from loopjax.data import pipeline, prepare, synthetic, text, tokenizers
from loopjax.depth import DepthPlan
from loopjax.errors import UserError

weights = st.lists(st.floats(0.01, 1.0), min_size=1, max_size=5)


def phases_of(*changes):
    plan = DepthPlan.parse("1")
    return [Phase(start, stop, plan, "init", None, mixture) for start, stop, mixture in changes]


# --- the order of the data ---------------------------------------------------------------------


@given(weights, st.integers(0, 5))
def test_a_mixture_keeps_its_weights_and_reads_each_source_once_in_order(weights, seed):
    names = [f"s{i}" for i in range(len(weights))]
    mixing = pipeline.Mixing([(0, dict(zip(names, weights, strict=True)))], names, 4, seed)
    picks = [mixing[i] for i in range(2 * pipeline.BLOCK)]
    for source, weight in enumerate(weights):
        positions = [position for s, position in picks if s == source]
        assert positions == list(range(len(positions)))
        assert abs(len(positions) - 2 * pipeline.BLOCK * weight / sum(weights)) <= 2


@given(
    st.lists(st.tuples(st.integers(1, 6000), weights), min_size=1, max_size=4), st.integers(1, 7)
)
def test_a_source_goes_on_where_the_phase_before_left_it(spans, batch_size):
    names, changes, start = [f"s{i}" for i in range(5)], [], 0
    for length, phase_weights in spans:
        changes.append((start, dict(zip(names, phase_weights, strict=False))))
        start += length
    mixing = pipeline.Mixing(changes, names, batch_size, seed=3)
    seen = dict.fromkeys(range(5), 0)
    for i in range(min(start * batch_size, 20_000)):
        source, position = mixing[i]
        assert position == seen[source]
        seen[source] += 1


def test_exact_weights_are_exact():
    mixture = {"math": 0.06, "python": 0.09, "textbooks": 0.15, "web": 0.7}
    mixing = pipeline.Mixing([(0, mixture)], sorted(mixture), 8, seed=0)
    counts = np.bincount([mixing[i][0] for i in range(pipeline.BLOCK)])
    assert counts.tolist() == [600, 900, 1500, 7000]


def test_the_stream_is_a_function_of_seed_and_step_alone(tiny_config):
    tiny_config.mixture = {"stdlib": 2.0, "var_assign_basic_0": 1.0}
    tiny_config.cooldown.mixture = {"stdlib": 1.0}
    tiny_config.seq_len, tiny_config.model.vocab_size = 100, 264
    phases = phases_of((0, 9, tiny_config.mixture), (9, 12, tiny_config.cooldown.mixture))

    def batches(rows, start, threads):
        tiny_config.data_threads = threads
        stream = pipeline.TrainStream(tiny_config, phases).batches(np.array(rows), start)
        return [next(stream)["inputs"] for _ in range(12 - start)]

    whole = batches(range(8), 0, threads=0)
    for start, threads in ((0, 3), (5, 1), (9, 2)):
        for a, b in zip(whole[start:], batches(range(8), start, threads), strict=True):
            np.testing.assert_array_equal(a, b)
    # Two processes, one of which holds the rows that a wide mesh gave it.
    halves = [batches(rows, 0, 1) for rows in ([0, 1, 4, 5], [2, 3, 6, 7])]
    for a, b, c in zip(whole, *halves, strict=True):
        np.testing.assert_array_equal(a[[0, 1, 4, 5, 2, 3, 6, 7]], np.concatenate([b, c]))
    tiny_config.seed = 1
    assert not np.array_equal(whole[0], batches(range(8), 0, 0)[0])


def test_an_epoch_reads_every_window_once_and_the_next_in_another_order(tiny_config):
    tiny_config.mixture, tiny_config.model.vocab_size = {"stdlib": 1.0}, 264
    tiny_config.seq_len = 2**18
    stream = pipeline.TrainStream(tiny_config, phases_of((0, 12, {"stdlib": 1.0})))
    n = len(stream.sources["stdlib"])
    windows = [hash(stream.sources["stdlib"][i]["inputs"].tobytes()) for i in range(n)]
    epochs = [
        [hash(stream.parents[0][e * n + i]["inputs"].tobytes()) for i in range(n)] for e in (0, 1)
    ]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(windows)
    assert epochs[0] != epochs[1] != windows


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seed": 7}, "config.seed=7, it was 0"),
        ({"batch_size": 4}, "config.batch_size=4, it was 8"),
        ({"seq_len": 11}, "config.seq_len=11, it was 9"),
    ],
)
def test_a_stream_that_would_go_on_elsewhere_is_refused(tiny_config, change, says):
    phases = phases_of((0, 12, tiny_config.mixture))
    saved = pipeline.TrainStream(tiny_config, phases).fingerprint(5)
    same = pipeline.TrainStream(tiny_config, phases).fingerprint(5)
    pipeline.check_fingerprint(saved, same, probe=True)
    tiny_config.update(change)
    other = pipeline.TrainStream(tiny_config, phases).fingerprint(5)
    with pytest.raises(UserError) as error:
        pipeline.check_fingerprint(saved, other, probe=True)
    assert says in str(error.value)


def test_the_probe_notices_what_no_field_tells(tiny_config):
    phases = phases_of((0, 12, tiny_config.mixture))
    saved = pipeline.TrainStream(tiny_config, phases).fingerprint(5)
    other = pipeline.TrainStream(tiny_config, phases_of((0, 12, {"p_hop_2": 1.0})))
    current = {**other.fingerprint(5), "sources": saved["sources"]}
    with pytest.raises(UserError, match="the next example is not the one that was to come"):
        pipeline.check_fingerprint(saved, current, probe=True)


# --- token shards ------------------------------------------------------------------------------


@pytest.fixture
def corpus(tmp_path):
    documents = [f"document {i}: " + "lorem ipsum " * (i % 7) for i in range(300)]
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.writelines(json.dumps({"text": d}) + "\n" for d in documents[:200])
    (tmp_path / "b.jsonl").write_text("\n".join(json.dumps({"text": d}) for d in documents[200:]))
    return documents, [tmp_path / "a.jsonl.gz", tmp_path / "b.jsonl"]


def decoded(directory, split):
    """The documents of a split, read back through windows of one token."""
    source = text.TokenShards(directory, split, 1)
    shards = range(len(source.first) - 1)
    totals = text.read_manifest(directory)["splits"][split]["shards"]
    ids = np.concatenate([source.read(s, 0, totals[s]["tokens"]) for s in shards])
    ends = np.flatnonzero(ids == 256)
    pieces = np.split(ids, ends + 1)
    return [tokenizers.ByteTokenizer().decode(piece) for piece in pieces if len(piece)]


@pytest.mark.parametrize("shard_tokens", [prepare.SHARD_TOKENS, 4096])
def test_prepared_text_reads_back_and_no_document_is_on_both_sides(corpus, tmp_path, shard_tokens):
    documents, files = corpus
    manifest = prepare.prepare(files, tmp_path / "out", heldout=0.1, shard_tokens=shard_tokens)
    train, heldout = (decoded(tmp_path / "out", split) for split in ("train", "heldout"))
    assert sorted(train + heldout) == sorted(documents)
    assert not set(train) & set(heldout)
    assert manifest["splits"]["train"]["documents"] == len(train)
    assert 10 < len(heldout) < 60
    assert (len(manifest["splits"]["train"]["shards"]) > 1) == (shard_tokens == 4096)


def test_duplicates_fall_on_one_side_and_named_heldout_files_are_kept_out(corpus, tmp_path):
    documents, files = corpus
    prepare.prepare([*files, *files], tmp_path / "twice", heldout=0.1)
    assert not set(decoded(tmp_path / "twice", "train")) & set(
        decoded(tmp_path / "twice", "heldout")
    )
    manifest = prepare.prepare(files, tmp_path / "named", heldout_inputs=[files[1]])
    assert sorted(decoded(tmp_path / "named", "heldout")) == sorted(documents[200:])
    assert sorted(decoded(tmp_path / "named", "train")) == sorted(documents[:200])
    assert manifest["dropped_from_training"] == 100


@pytest.mark.parametrize("seq_len", [3, 1000, 2048, 5000])
def test_windows_of_any_length_tile_the_stream(corpus, tmp_path, seq_len):
    _, files = corpus
    prepare.prepare(files, tmp_path / "out", heldout=0.1, shard_tokens=9000)
    source = text.TokenShards(tmp_path / "out", "train", seq_len)
    position = 0
    for i in range(len(source)):
        shard = int(np.searchsorted(source.first, i, side="right")) - 1
        start = (i - source.first[shard]) * seq_len
        stream = source.read(shard, 0, int(start) + seq_len + 1)
        np.testing.assert_array_equal(source[i]["inputs"], stream[start:-1])
        np.testing.assert_array_equal(source[i]["targets"], stream[start + 1 :])
        position += seq_len
    assert position == len(source) * seq_len > 0


def test_a_tokenizer_file_makes_the_shards_and_the_synthetic_text_beside_them(
    corpus, tmp_path, tiny_config
):
    tokenizers_lib = pytest.importorskip("tokenizers")
    documents, files = corpus
    bpe = tokenizers_lib.ByteLevelBPETokenizer()
    special = ["<|endoftext|>"]
    bpe.train_from_iterator(documents, vocab_size=300, special_tokens=special, show_progress=False)
    bpe.save(str(tmp_path / "bpe.json"))
    prepare.prepare(files, tmp_path / "web", str(tmp_path / "bpe.json"), heldout=0.1)
    tiny_config.data_dir, tiny_config.seq_len = str(tmp_path), 200
    tiny_config.model.vocab_size = 400
    sources = pipeline.open_sources(tiny_config, ["web", "copying_real"], "train")
    codec = sources["copying_real"].codec
    assert sources["web"].tokenizer == codec.name == sources["copying_real"].tokenizer
    assert "Fill in the blank" in codec.decode(sources["copying_real"][0]["inputs"])
    with pytest.raises(UserError, match="joins sources of different tokenizers"):
        pipeline.open_sources(tiny_config, ["web", "stdlib"], "train")
    tiny_config.model.vocab_size = 280
    with pytest.raises(UserError, match=r"vocab_size=280 is smaller than the \d+ tokens"):
        pipeline.open_sources(tiny_config, ["web"], "train")


def test_damaged_or_foreign_directories_are_refused(corpus, tmp_path, tiny_config):
    _, files = corpus
    prepare.prepare(files, tmp_path / "web", heldout=0.1)
    shard = tmp_path / "web" / "train" / "00000.arrayrecord"
    shard.write_bytes(shard.read_bytes()[:-1000])
    with pytest.raises(UserError, match="were written"):
        text.TokenShards(tmp_path / "web", "train", 8)
    with pytest.raises(UserError, match="is not empty"):
        prepare.prepare(files, tmp_path / "web")
    with pytest.raises(UserError, match="holds no sequence of config.seq_len=100000 tokens"):
        text.TokenShards(tmp_path / "web", "heldout", 100_000)
    with pytest.raises(UserError, match="no source 'wbe' is known"):
        pipeline.open_sources(tiny_config, ["wbe"], "train")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"text": "fine"}\n{"text": 3}\n', "line 2: no JSON object with a text field 'text'"),
        ("not json\n", "line 1"),
        ("", "hold no document to train on"),
        ('{"text": "one"}\n', "no document fell into the held-out split"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_left_behind(content, says, tmp_path):
    (tmp_path / "in.jsonl").write_text(content)
    with pytest.raises(UserError) as error:
        prepare.prepare([tmp_path / "in.jsonl"], tmp_path / "out", heldout=1e-9)
    assert says in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_long_text_file_is_cut_at_line_ends(tmp_path):
    lines = [f"line {i} " + "x" * 100 + "\n" for i in range(2000)]
    (tmp_path / "long.txt").write_text("".join(lines))
    documents = list(prepare.read_documents(tmp_path / "long.txt"))
    assert "".join(documents) == "".join(lines) and len(documents) > 2
    assert all(document.endswith("\n") for document in documents)


def test_the_standard_library_is_split_without_overlap():
    train, heldout = (text.StandardLibrary(split, 256) for split in text.SPLITS)
    files = [
        set(bytes(s.tokens.astype(np.uint8)[s.tokens < 256]).split(b"\n\n\n"))
        for s in (train, heldout)
    ]
    assert len(train.tokens) > 10 * len(heldout.tokens) > 10**6
    long = {paragraph for paragraph in files[0] & files[1] if len(paragraph) > 2000}
    assert not long


# --- synthetic tasks ---------------------------------------------------------------------------


def hops_by_definition(letters, p):
    """hop_p by the formula of the paper, letter by letter, with 1-based positions."""
    v = [None, *letters]

    def find_1(i):
        return max([0, *(j for j in range(2, i + 1) if v[j - 1] == v[i])])

    def find(p, i):
        return find_1(i) if p == 1 else (find_1(find(p - 1, i)) if find(p - 1, i) else 0)

    found = [find(p, i) for i in range(1, len(letters) + 1)]
    return [v[i] if i else -1 for i in found]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=20), st.integers(1, 5))
def test_p_hop_is_its_definition(letters, p):
    assert synthetic.p_hop(np.array(letters), p).tolist() == hops_by_definition(letters, p)


def test_heldout_p_hop_scores_the_last_position_and_is_never_trained_on():
    train, heldout = (synthetic.PHop(2, split, 5, seed=0) for split in ("train", "heldout"))
    seen = {train[i]["inputs"].tobytes() for i in range(2000)}
    for i in range(200):
        example = heldout[i]
        assert example["inputs"].tobytes() not in seen
        assert (example["targets"] >= 0).tolist() == [False] * 4 + [True]
    assert len(seen) > 200  # of 4^4 strings: the whole space is split, not only what was drawn


def solve(prompt):
    """The answer to a variable-assignment prompt, by substitution."""
    import re

    values = dict(re.findall(r"^(\w) ?= ?(\w+)$", prompt, re.M))
    name = re.search(r"(?:^(\w)=___|value of (?:the variable )?(\w)\?)", prompt, re.M)
    value = values[name[1] or name[2]]
    while not value.isdigit():
        value = values[value]
    return value


@pytest.mark.parametrize("style", ["basic", "math", "code"])
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_variable_assignment_has_the_answer_that_substitution_finds(style, depth):
    places = []
    for i in range(100):
        rng = synthetic.instance_rng(0, "train", i, 0)
        item = synthetic.variable_assignment(rng, style, depth)
        assert solve(item.prompt) == item.answer
        assert len(set(item.options)) == 5 and item.answer in item.options
        places.append(item.options.index(item.answer))
    assert np.bincount(places, minlength=5).min() > 5


@pytest.mark.parametrize("words", ["random", "real"])
def test_copying_asks_for_the_word_behind_the_repeated_run(words):
    for i in range(100):
        item = synthetic.copying(synthetic.instance_rng(0, "train", i, 0), words)
        body = item.prompt.split("\n\n")[1].split()
        first, again = body[:10], body[10:15]
        assert body[15:] == ["___.", "->"] and len(set(first)) == 10
        start = first.index(again[0])
        assert first[start : start + 5] == again and first[start + 5] == item.answer


def test_only_answers_are_targets_of_a_text_task():
    codec = tokenizers.ByteTokenizer()
    source = synthetic.open_synthetic("var_assign_basic_1", "train", 300, 0, codec)
    for i in range(20):
        example = source[i]
        scored = example["targets"][example["targets"] >= 0]
        prompts = codec.decode(example["inputs"]).split("Fill in blank:")[1:]
        answers = [solve("Fill in blank:" + p) for p in prompts if "->" in p]
        answers = answers[: len(codec.decode(scored).split())]
        assert codec.decode(scored).split() == answers and answers
    with pytest.raises(UserError, match="seq_len=30 is too short for var_assign_basic_1"):
        synthetic.open_synthetic("var_assign_basic_1", "train", 30, 0, codec)
