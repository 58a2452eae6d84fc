"""The synthetic tasks of the looped literature, each solved again from its text."""

import itertools
import re
from collections import Counter

import numpy as np
import pytest

from loopjax.data import addition, hops, igsm, pipeline, registry
from loopjax.data.instances import instance_rng
from loopjax.errors import UserError


def rows(name, split="train", seq_len=128, count=200, seed=0):
    source = registry.open_source(name, split, seq_len, seed, None)
    return [source[i] for i in range(count)]


def parts(row, symbols):
    """(question, answer) of a row as text; nothing but the answer is a target."""
    places = np.flatnonzero(row["targets"] >= 0)
    assert (np.diff(places) == 1).all()
    question = "".join(symbols[t] for t in row["inputs"][: places[0] + 1])
    # What is fed in after the question is the answer so far, then padding.
    fed = row["inputs"][places[0] + 1 :]
    answer = row["targets"][places]
    np.testing.assert_array_equal(fed[: len(answer)], answer[: len(fed)])
    assert set(fed[len(answer) :].tolist()) <= {len(symbols) - 1}
    return question, "".join(symbols[t] for t in answer)


def length(row):
    return np.flatnonzero(row["targets"] >= 0)[0] + 1


NAMES = ["addition_2", "addition_32", "igsm_1", "igsm_6", "hops_3x20", "sanford_2", "trail_4"]


@pytest.mark.parametrize("name", NAMES)
def test_an_instance_is_a_function_of_its_place_and_never_on_both_sides(name):
    train, again, other = (
        rows(name, seq_len=132),
        rows(name, seq_len=132),
        rows(name, seed=1, seq_len=132),
    )
    for a, b in zip(train, again, strict=True):
        assert a["inputs"].dtype == a["targets"].dtype == np.int32
        assert a["inputs"].shape == a["targets"].shape == (132,)
        np.testing.assert_array_equal(a["inputs"], b["inputs"])
        np.testing.assert_array_equal(a["targets"], b["targets"])
    train = {row["inputs"].tobytes() for row in train}
    assert train != {row["inputs"].tobytes() for row in other}
    assert not train & {row["inputs"].tobytes() for row in rows(name, "heldout", 132)}


@pytest.mark.parametrize("name", NAMES)
def test_tokens_lie_within_the_vocabulary_and_use_all_of_it(name):
    source = registry.open_source(name, "train", 132, 0, None)
    seen = np.unique(
        [[row["inputs"], row["targets"]] for row in rows(name, seq_len=132, count=400)]
    )
    assert seen.min() >= -1 and seen.max() < source.vocab_size
    if name.startswith(("addition", "igsm")):
        padded = name != "addition_32"  # it fills its row
        assert {-1, *range(source.vocab_size - (not padded))} == set(seen.tolist())


# --- letters that lead to digits ---------------------------------------------------------------


def followed(text, i):
    """(digit, hops) of the symbol at i: back to the last such letter, on to the symbol after it."""
    hops = 0
    while not text[i].isdigit():
        before = text.rfind(text[i], 0, i)
        if before < 0:
            return None
        i, hops = before + 1, hops + 1
    return text[i], hops


@pytest.mark.slow
@pytest.mark.parametrize("hops", [1, 4, 16])
def test_a_letter_leads_to_the_digit_at_the_end_of_its_hops(hops):
    seen = Counter()
    for split in ("train", "heldout"):
        for row in rows(f"trail_{hops}", split, count=100):
            text = bytes(row["inputs"].tolist()).decode()
            assert re.fullmatch("[a-d0-9]{128}", text)
            assert all(a != b for a, b in itertools.pairwise(text))
            found = [followed(text, i) for i in range(128)]
            for i, (one, target) in enumerate(zip(found, row["targets"].tolist(), strict=True)):
                scored = one and 0 < one[1] <= hops and (split == "train" or i == 127)
                assert target == (ord(one[0]) if scored else -1)
                seen[one and one[1]] += 1
            assert split == "train" or found[-1][1] == hops
    assert {*range(hops + 1)} <= {*seen}


def test_questions_about_trails_have_the_digit_as_the_answer():
    for item in registry.items("trail_5", "heldout", 0, 50):
        assert followed(item.prompt, 119) == (item.answer, 5) and item.answer in item.options
    in_code = registry.items("trail_code_5", "heldout", 0, 50)
    codes = {(followed(item.prompt, 119)[0], item.answer) for item in in_code}
    assert len(codes) == len({*dict(codes).values()}) == 10, "one letter for each digit"
    assert all(item.answer in item.options for item in in_code)
    with pytest.raises(UserError, match=r"trail_17: the number of hops must lie within 1\.\.16"):
        rows("trail_17")
    with pytest.raises(UserError, match="too short for trail_5, which takes 24 tokens"):
        rows("trail_5", seq_len=23)


# --- addition ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "width"), [(2, 4), (4, 4), (10, 4), (11, 5), (32, 5)])
def test_the_digits_behind_the_equals_sign_are_the_sum(n, width):
    length = 4 * n + width - 1
    for row in rows(f"addition_{n}", seq_len=length):
        question, answer = parts(row, addition.SYMBOLS)
        assert re.fullmatch(rf"(\d{{3}}\+){{{n - 1}}}\d{{3}}=", question)
        assert answer == f"{sum(map(int, question[:-1].split('+'))):0{width}}"
    with pytest.raises(UserError, match=f"too short for addition_{n}, which takes {length} tokens"):
        rows(f"addition_{n}", seq_len=length - 1)


def test_the_example_of_the_paper_is_written_as_there():
    operands = np.array([315, 120, 45, 824])
    assert "".join(map(str, addition.digits(operands, 3).ravel())) == "315120045824"
    assert addition.digits(operands.sum(), addition.Addition(4, "train", 19, 0).width).tolist() == [
        1,
        3,
        0,
        4,
    ]


# --- i-GSM -------------------------------------------------------------------------------------


def read(question):
    """({parameter: (parameters of its sum, factor, number)}, the asked one) of a question's text."""
    *statements, asked = question.split(".")
    found = {}
    for statement in statements:
        name, value = statement.split(":=")
        assert name not in found and re.fullmatch("[A-Z]#[A-Z]", name)
        if value in "0123456":
            found[name] = ((), 1, int(value))
            continue
        factor, terms = re.fullmatch(
            r"(?:([2-6])\*)?([A-Z]#[A-Z](?:\+[A-Z]#[A-Z])*)", value
        ).groups()
        found[name] = (tuple(terms.split("+")), int(factor or 1), 0)
    return found, asked.removesuffix("?")


def solve(found, name, used):
    """The value of a parameter by the definitions; `used` gathers what it took."""
    if name not in used:
        parents, factor, number = found[name]
        used[name] = (factor * sum(solve(found, p, used) for p in parents) + number) % 7
    return used[name]


def longest_chain(found, name):
    return 1 + max((longest_chain(found, p) for p in found[name][0]), default=0)


@pytest.mark.parametrize("operations", [1, 2, 5, 8, 15, 21])
def test_the_answer_follows_from_the_statements_in_so_many_operations(operations):
    chains = []
    for row in rows(f"igsm_{operations}", seq_len=400, count=150):
        question, answer = parts(row, igsm.SYMBOLS)
        found, asked = read(question)
        used = {}
        assert solve(found, asked, used) == int(answer)
        # Factors and additions of all that it takes; a statement without is one operation.
        costs = [max(1, len(found[n][0]) - 1 + (found[n][1] > 1)) for n in used]
        assert sum(costs) == operations
        chains.append(longest_chain(found, asked))
    # More operations want more depth: the formula of a sum is not all that grows.
    assert np.mean(chains) > 0.4 * operations


def test_a_factor_multiplies_the_whole_sum():
    found, asked = read("E#I:=4.E#J:=E#I.I#N:=2*J#P+H#J+E#I.J#P:=1.H#J:=5.I#N?")
    assert solve(found, asked, {}) == 2 * (1 + 5 + 4) % 7


@pytest.mark.parametrize("operations", [1, 6, 15])
def test_parameters_are_the_edges_of_four_levels_that_leave_no_entity_out(operations):
    sizes = Counter()
    for row in rows(f"igsm_{operations}", seq_len=400, count=60):
        edges = [tuple(name.split("#")) for name in read(parts(row, igsm.SYMBOLS)[0])[0]]
        above = {b: {a for a, c in edges if c == b} for b in {b for _, b in edges}}

        def level(entity, above=above):
            return 1 + max((level(a) for a in above.get(entity, ())), default=0)

        levels = {entity: level(entity) for edge in edges for entity in edge}
        assert all(levels[b] == levels[a] + 1 for a, b in edges)
        counts = Counter(levels.values())
        assert sorted(counts) == [1, 2, 3, 4] and all(2 <= n <= 4 for n in counts.values())
        assert max(6, operations) <= len(edges) <= max(6, operations + 5)
        sizes[len(edges)] += 1
    assert len(sizes) == (1 if operations == 1 else 6)


@pytest.mark.parametrize("operations", [4, 12])
def test_no_shortcut_that_we_know_of_finds_the_answer(operations):
    shortcuts = {
        "the first digit": lambda q, found, asked: re.findall(r"\d", q)[0],
        "the last digit": lambda q, found, asked: re.findall(r"\d", q)[-1],
        "the last number": lambda q, found, asked: re.findall(r"=(\d)", q)[-1],
        "the most frequent digit": lambda q, found, asked: Counter(re.findall(r"\d", q)).most_common()[0][0],
        "all numbers": lambda q, found, asked: sum(map(int, re.findall(r"=(\d)", q))) % 7,
        "all digits": lambda q, found, asked: sum(map(int, re.findall(r"\d", q))) % 7,
        "the digit of its statement": lambda q, found, asked: found[asked][1],
        "how often it occurs": lambda q, found, asked: q.count(asked) % 7,
    }  # fmt: skip
    hits, answers, count = Counter(), Counter(), 1500
    for row in rows(f"igsm_{operations}", seq_len=400, count=count):
        question, answer = parts(row, igsm.SYMBOLS)
        found, asked = read(question)
        answers[answer] += 1
        for name, shortcut in shortcuts.items():
            hits[name] += str(shortcut(question, found, asked)) == answer
    assert len(answers) == 7 and max(answers.values()) < 1.25 * count / 7
    assert max(hits.values()) < 1.4 * count / 7, hits


def test_statements_stand_in_any_order():
    forward = 0
    for row in rows("igsm_8", seq_len=250):
        found, _ = read(parts(row, igsm.SYMBOLS)[0])
        order = list(found)
        pairs = [(order.index(p), order.index(n)) for n in found for p in found[n][0]]
        forward += np.mean([p < n for p, n in pairs])
    assert 0.4 < forward / 200 < 0.6


def test_what_is_longer_than_the_row_is_left_out_unless_it_is_most():
    free, bound = ([length(r) for r in rows("igsm_8", seq_len=T)] for T in (250, 130))
    assert max(bound) <= 130 < max(free)
    with pytest.raises(UserError, match=r"config.seq_len=90 is too short for igsm_8: half of its"):
        rows("igsm_8", seq_len=90)


# --- p-hop -------------------------------------------------------------------------------------


def hop_back(letters, i, p):
    """The letter p hops back from position i, by walking; None where a hop does not exist."""
    for _ in range(p):
        i = max((j for j in range(1, i + 1) if letters[j - 1] == letters[i]), default=None)
        if i is None:
            return None
    return letters[i]


@pytest.mark.parametrize(("p", "n"), [(1, 4), (2, 6), (3, 20), (16, 256), (32, 256), (32, 66)])
def test_a_chain_holds_its_hops_and_asks_where_they_end(p, n):
    answers = Counter()
    for row in rows(f"hops_{p}x{n}", seq_len=n + 2, count=150):
        (place,) = np.flatnonzero(row["targets"] >= 0)
        assert place == n and row["inputs"][0] == 4 + p - 1
        letters = row["inputs"][1 : n + 1].tolist()
        assert set(letters) <= {0, 1, 2, 3}
        answer = hop_back(letters, n - 1, p)
        assert answer == row["targets"][n]
        answers[answer] += 1
    assert len(answers) == 4 and max(answers.values()) < 65


def test_the_places_of_a_chain_are_uniform():
    chains = Counter()
    for i in range(1200):
        letters, _ = hops.chain(instance_rng(0, "train", i, 0), 2, 8)
        pointers = hops.hop_pointers(letters).tolist()
        chains[pointers[8], pointers[pointers[8]]] += 1
    # Two hops from position 8, each of two or more, to position 2 or behind it.
    assert set(chains) == {(a, b) for a in range(4, 7) for b in range(2, a - 1)}
    assert 160 < min(chains.values()) <= max(chains.values()) < 240


@pytest.mark.parametrize("p", [0, 1, 2, 5, 16])
def test_sanford_asks_every_position_and_scores_those_that_have_the_hop(p):
    none = hops.Sanford.none
    for split in ("train", "heldout"):
        for row in rows(f"sanford_{p}", split, seq_len=99, count=20):
            letters, targets = row["inputs"][1:].tolist(), row["targets"]
            assert row["inputs"][0] == 5 + p and len(letters) == 98
            assert all(a != b for a, b in itertools.pairwise(letters))
            found = [hop_back(letters, i, p) for i in range(98)]
            missing = none if split == "train" else -1
            assert targets.tolist() == [-1, *(missing if f is None else f for f in found)]
            assert sum(f is None for f in found) == (
                3 * p + 1 if p else 0
            )  # as the shortest T has it


# --- mistakes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "seq_len", "says"),
    [
        ("addition_1", 99, "source addition_1: the number of operands must lie within 2..32"),
        ("addition_33", 999, "source addition_33: the number of operands must lie within 2..32"),
        ("igsm_0", 99, "source igsm_0: the number of operations must lie within 1..21"),
        ("hops_33x256", 999, "source hops_33x256: the number of hops must lie within 1..32"),
        ("hops_16x33", 99, "source hops_16x33: 16 hops need at least 34 letters"),
        ("hops_16x256", 256, "config.seq_len=256 is too short for hops_16x256, which takes 257 tokens"),
        ("sanford_17", 99, "source sanford_17: the number of hops must lie within 0..16"),
        ("sanford_16", 50, "config.seq_len=50 is too short for sanford_16, which takes 51 tokens"),
    ],
)  # fmt: skip
def test_a_task_that_cannot_be_is_told(name, seq_len, says):
    with pytest.raises(UserError) as error:
        registry.open_source(name, "train", seq_len, 0, None)
    assert str(error.value) == says


def test_tasks_of_different_symbols_do_not_mix(tiny_config):
    tiny_config.seq_len = 99
    with pytest.raises(UserError, match="sources of different tokenizers"):
        pipeline.open_sources(tiny_config, ["p_hop_1", "sanford_1"], "train")
    assert len(pipeline.open_sources(tiny_config, ["p_hop_2", "hops_2x9"], "train")) == 2
