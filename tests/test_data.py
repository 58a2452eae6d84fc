import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopjax.curriculum import Phase
from loopjax.data import hops, instances, pipeline, registry, text_tasks, token_shards, tokenizers
from loopjax.depth import DepthPlan
from loopjax.errors import UserError

weights = st.lists(st.floats(0.01, 1.0), min_size=1, max_size=5)


def phases_of(*changes):
    plan = DepthPlan.parse("1")
    return [Phase(start, stop, plan, "init", None, mixture) for start, stop, mixture in changes]


# --- the order of the data ---------------------------------------------------------------------


@pytest.mark.slow
@given(weights, st.integers(0, 5))
def test_a_mixture_keeps_its_weights_and_reads_each_source_once_in_order(weights, seed):
    names = [f"s{i}" for i in range(len(weights))]
    mixing = pipeline.Mixing([(0, dict(zip(names, weights, strict=True)))], names, 4, seed)
    picks = [mixing[i] for i in range(2 * pipeline.BLOCK)]
    for source, weight in enumerate(weights):
        positions = [position for s, position in picks if s == source]
        assert positions == list(range(len(positions)))
        assert abs(len(positions) - 2 * pipeline.BLOCK * weight / sum(weights)) <= 2


@pytest.mark.slow
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
        ({"seed": 7}, "config.seed=7 was 0"),
        ({"batch_size": 4}, "config.batch_size=4 was 8"),
        ({"seq_len": 11}, "config.seq_len=11 was 9"),
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
    with pytest.raises(UserError, match="the next example differs from the one recorded"):
        pipeline.check_fingerprint(saved, current, probe=True)


def test_the_standard_library_is_split_without_overlap():
    train, heldout = (token_shards.StandardLibrary(split, 256) for split in token_shards.SPLITS)
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
    assert hops.p_hop(np.array(letters), p).tolist() == hops_by_definition(letters, p)


def test_heldout_p_hop_scores_the_last_position_and_is_never_trained_on():
    train, heldout = (hops.PHop(2, split, 5, seed=0) for split in ("train", "heldout"))
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
        rng = instances.instance_rng(0, "train", i, 0)
        item = text_tasks.variable_assignment(rng, style, depth)
        assert solve(item.prompt) == item.answer
        assert len(set(item.options)) == 5 and item.answer in item.options
        places.append(item.options.index(item.answer))
    assert np.bincount(places, minlength=5).min() > 5


@pytest.mark.parametrize("words", ["random", "real"])
def test_copying_asks_for_the_word_behind_the_repeated_run(words):
    for i in range(100):
        item = text_tasks.copying(instances.instance_rng(0, "train", i, 0), words)
        body = item.prompt.split("\n\n")[1].split()
        first, again = body[:10], body[10:15]
        assert body[15:] == ["___.", "->"] and len(set(first)) == 10
        start = first.index(again[0])
        assert first[start : start + 5] == again and first[start + 5] == item.answer


def test_only_answers_are_targets_of_a_text_task():
    codec = tokenizers.ByteTokenizer()
    source = registry.open_source("var_assign_basic_1", "train", 300, 0, lambda: codec)
    for i in range(20):
        example = source[i]
        scored = example["targets"][example["targets"] >= 0]
        prompts = codec.decode(example["inputs"]).split("Fill in blank:")[1:]
        answers = [solve("Fill in blank:" + p) for p in prompts if "->" in p]
        answers = answers[: len(codec.decode(scored).split())]
        assert codec.decode(scored).split() == answers and answers
    with pytest.raises(UserError, match="seq_len=30 is too short for var_assign_basic_1"):
        registry.open_source("var_assign_basic_1", "train", 30, 0, lambda: codec)
