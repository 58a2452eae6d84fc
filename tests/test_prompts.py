"""Prompt sets: what is taken of public files, what is made here, where an answer begins."""

import gzip
import json
import pathlib
import random
import re

import datasets
import pytest
import tokenizers as library

from loopjax.analysis import prompts
from loopjax.data.tokenizers import ByteTokenizer, FileTokenizer
from loopjax.errors import UserError

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join(json.dumps(row) for row in rows) if ".jsonl" in path.name else json.dumps(rows)
    with (gzip.open if path.suffix == ".gz" else open)(path, "wt") as file:
        file.write(text)


def gsm8k(n):
    return [{"question": f"What is {i} + 1?", "answer": f"It is {i}+1.\n#### {i + 1}"} for i in range(n)]  # fmt: skip


def math_rows(n, kind="Intermediate Algebra"):
    """n problems of each level, and one of a level that is not known."""
    levels = [f"Level {level}" for level in (1, 2, 3, 4, 5) for _ in range(n)] + ["Level ?"]
    return [
        {"problem": f"p{i} of {level}", "level": level, "type": kind, "solution": f"s{i}"}
        for i, level in enumerate(levels)
    ]


def mquake(counts):
    """Questions of so many hops."""
    hops = [hop for hop, n in counts.items() for _ in range(n)]
    return [
        {"questions": [f"q{i}?", "another?"], "answer": f"a{i}", "orig": {"triples": [["s"]] * hop}}
        for i, hop in enumerate(hops)
    ]


def test_gsm8k_is_the_first_problems_with_their_solution(tmp_path):
    write(tmp_path / "x" / "gsm8k" / "test.jsonl", gsm8k(30))
    write(tmp_path / "aaa" / "test.jsonl", [{"question": "not of the set"}])
    found = prompts.load("gsm8k", tmp_path)
    assert len(found.prompts) == 20 and len(prompts.load("gsm8k", tmp_path, 3).prompts) == 3
    one = found.prompts[7]
    assert one.text == (
        f"{prompts.SOLVE}\nProblem: What is 7 + 1?\n{prompts.END}\n\nIt is 7+1.\n{prompts.FINAL} 8"
    )
    assert one.answer == f"It is 7+1.\n{prompts.FINAL} 8" and one.group is None
    assert found.source.endswith("gsm8k/test.jsonl") and not found.notes and not found.grouped_by


@pytest.mark.parametrize(
    "form", ["MATH/test/intermediate_algebra", "MATH/test.jsonl", "math_test.json.gz"]
)
def test_math_is_a_draw_of_each_level_of_intermediate_algebra(tmp_path, form):
    rows = math_rows(25)
    if form.endswith("algebra"):
        for i, row in enumerate(rows):
            write(tmp_path / form / f"{i:04}.json", row)
        write(tmp_path / "MATH/train/intermediate_algebra/0.json", math_rows(1)[0])
    else:
        write(tmp_path / form, rows + math_rows(5, "Geometry"))
    found = prompts.load("math", tmp_path)
    assert found.grouped_by == "level" and not found.notes
    assert [p.group for p in found.prompts] == [level for level in range(1, 6) for _ in range(20)]
    third = [row for row in rows if row["level"] == "Level 3"]
    random.Random(42).shuffle(third)
    assert [p.text for p in found.prompts if p.group == 3] == [
        f"Problem: {row['problem']}\nAnswer: {row['solution']}" for row in third[:20]
    ]


def test_levels_may_be_numbers_and_what_is_missing_is_noted(tmp_path):
    rows = [row | {"level": i % 4 + 1} for i, row in enumerate(math_rows(4))]
    write(tmp_path / "math" / "test.jsonl", rows[:20])
    found = prompts.load("math", tmp_path, 5)
    assert [p.group for p in found.prompts] == [level for level in range(1, 5) for _ in range(5)]
    assert found.notes == ("level 5: 0 prompts, not 5",)


def test_mquake_is_a_draw_of_each_number_of_hops(tmp_path):
    write(tmp_path / "MQuAKE-hard.json", mquake({4: 30}))
    hard = prompts.load("mquake", tmp_path)
    assert len(hard.prompts) == 20 and {p.group for p in hard.prompts} == {4}
    assert hard.notes == ("hops 2: 0 prompts, not 20", "hops 3: 0 prompts, not 20")
    write(tmp_path / "later" / "MQuAKE-CF-3k.json", mquake({2: 22, 3: 21, 4: 23}))
    found = prompts.load("mquake", tmp_path)
    assert [p.group for p in found.prompts] == [2] * 20 + [3] * 20 + [4] * 20 and not found.notes
    assert re.fullmatch(r"Question: q(\d+)\?\nAnswer: a\1", found.prompts[0].text)
    assert found.prompts[0].answer == " " + found.prompts[0].text.split()[-1]


@pytest.mark.skipif(not SHARED.is_dir(), reason="the files are not on this machine")
@pytest.mark.parametrize(("name", "count"), [("gsm8k", 20), ("mquake", 20), ("aqua", 100)])
def test_the_public_files_are_read(name, count):
    found = prompts.load(name, SHARED)
    assert len(found.prompts) == count == len({p.text for p in found.prompts})
    assert all(p.prompt and p.answer.strip() and "####" not in p.text for p in found.prompts)


def test_the_hub_is_asked_for_what_the_papers_take(monkeypatch):
    asked = []

    def load_dataset(path, subset, split):
        asked.append((path, subset, split))
        if "gsm8k" in path:
            return datasets.Dataset.from_list(gsm8k(25))
        raise ConnectionError("no route to host\nand more")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    found = prompts.load("gsm8k")
    assert found.source == "openai/gsm8k" and found.prompts[0].answer.startswith("It is 0+1.")
    with pytest.raises(
        UserError, match=r"hendrycks_math .* \(ConnectionError: no route to host\); "
    ):
        prompts.load("math")
    assert asked == [
        ("openai/gsm8k", "main", "test"),
        ("EleutherAI/hendrycks_math", "intermediate_algebra", "test"),
    ]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("[" * 100_000, "cannot be read (RecursionError: "),
        ('{"text": "a b", "group": [1]}', "(ValueError: a group is not a text or a whole number)"),
        ('{"text": 5}', "(ValueError: not a text)"),
    ],
)
def test_odd_lines_of_a_file_of_prompts_are_told(line, says, tmp_path):
    (tmp_path / "p.jsonl").write_text(line + "\n")
    with pytest.raises(UserError) as told:
        prompts.load(f"file:{tmp_path}/p.jsonl")
    assert says in str(told.value) and f"{tmp_path}/p.jsonl" in str(told.value)


def test_a_byte_order_mark_is_no_part_of_a_prompt(tmp_path):
    (tmp_path / "p.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a b"}\n')
    assert [p.text for p in prompts.load(f"file:{tmp_path}/p.jsonl").prompts] == ["a b"]


# A row of each repository, with the columns that it has on the hub.
ON_THE_HUB = {
    "gsm8k": {"question": "q?", "answer": "one\n#### 1"},
    "math": {
        "problem": "p", "level": "Level 3", "type": "Intermediate Algebra", "solution": "s",
    },
    "mquake": {
        "case_id": 1, "questions": ["q?", "r?"], "answer": "a", "answer_alias": ["A"],
        "new_answer": "b", "orig_triples": [["Q1", "P1", "Q2"], ["Q2", "P2", "Q3"]],
        "new_triples": [["Q1", "P1", "Q2"], ["Q2", "P2", "Q4"]],
    },
    "aqua": {"question": "q?", "options": ["A)1", "B)2"], "rationale": "r", "correct": "A"},
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text", "group"),
    [
        ("gsm8k", f"{prompts.FINAL} 1", None),
        ("math", "Problem: p\nAnswer: s", 3),
        ("mquake", "Question: q?\nAnswer: a", 2),
        ("aqua", "Problem: q?\nOptions: A)1, B)2\nAnswer: r", None),
    ],
)
def test_the_columns_of_the_hub_are_read(name, text, group, monkeypatch):
    rows = datasets.Dataset.from_list([ON_THE_HUB[name]])
    monkeypatch.setattr(datasets, "load_dataset", lambda path, subset, split: rows)
    (one,) = prompts.load(name).prompts
    assert one.text.endswith(text) and one.group == group


SIGNS = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__, "/": int.__floordiv__}


def test_word_problems_are_solved_step_by_step():
    found = prompts.load("arithmetic")
    assert found == prompts.load("arithmetic", "a directory that is not looked at")
    assert [p.group for p in found.prompts] == [2] * 7 + [3] * 7 + [4] * 7
    assert len({p.text for p in found.prompts}) == 21
    for one in found.prompts:
        assert 60 <= len(one.text.split()) <= 150
        steps = re.findall(r"(\d+) ([-+*/]) (\d+) = (\d+)", one.answer)
        assert len(steps) == one.group
        asked = [int(number) for number in re.findall(r"\d+", one.prompt)]
        value, numbers = asked[0], asked[1:]  # every number of the problem is used, in its order
        for (x, sign, k, y), number in zip(steps, numbers, strict=True):
            assert (int(x), int(k)) == (value, number)
            assert sign != "/" or value % number == 0
            value = SIGNS[sign](value, number)
            assert int(y) == value >= 0
        assert one.answer.endswith(f" {prompts.FINAL} {value}.")


def test_word_problems_are_always_the_same():
    assert prompts.arithmetic(3, 5) == prompts.load("arithmetic", n=6).prompts[11]
    assert prompts.arithmetic(2, 0).text == (
        "Problem: Tomas works at an old bicycle workshop and looks after the bells "
        "there. On the first day there are 5 drawers with 7 bells in each of them. Then "
        "13 of the bells turn out to be broken and are thrown away. How many bells does "
        "Tomas have in the end?\nAnswer: At first there are 5 * 7 = 35 bells. Without the "
        "13 bells that are gone there are 35 - 13 = 22. The final answer is 22."
    )


def test_chains_lead_back_to_a_value_in_so_many_hops():
    found = prompts.load("chains", n=3)
    assert (
        found.grouped_by == "hops"
        and [p.group for p in found.prompts] == [2] * 3 + [3] * 3 + [4] * 3
    )
    for one in found.prompts:
        means = dict(re.findall(r"^(\w)=(\w+)$", one.prompt, re.M))
        name, hops = re.search(r"value of (\w)\?", one.prompt)[1], -1
        while name in means:
            name, hops = means[name], hops + 1
        assert (hops, f" {name}") == (one.group, one.answer)


def test_an_answer_begins_where_the_last_tokens_are_its_own(tmp_path):
    write(tmp_path / "own.jsonl", [
        {"prompt": "What? ", "answer": "42"}, {"prompt": "Why?", "answer": "So.", "group": 2},
        {"text": "No answer"},
    ])  # fmt: skip
    found = prompts.load(f"file:{tmp_path}/own.jsonl")
    assert [p.text for p in found.prompts] == ["What? 42", "Why? So.", "No answer"]
    rows = prompts.tokenize(found, ByteTokenizer(), 100)
    assert [(len(ids), start, group) for ids, start, group in rows] == [
        (8, 6, None),
        (8, 4, 2),
        (9, 9, None),
    ]
    assert bytes(rows[1].ids[rows[1].answer_start :]) == b" So."
    said = []
    cut = prompts.tokenize(found, ByteTokenizer(), 6, said.append)
    assert [(bytes(ids), start) for ids, start, _ in cut] == [
        (b"What? ", 6), (b"Why? S", 4), (b"No ans", 6)
    ]  # fmt: skip
    assert said == [
        f"prompts file:{tmp_path}/own.jsonl: 3 of 3 are truncated to the context of 6 "
        "tokens; answers lost completely: 1"
    ]


def test_the_answer_is_counted_alone_whatever_its_first_token_is_in_the_text(tmp_path):
    vocabulary = {"<s>": 0, "</s>": 1, "a": 2, "b": 3, " ": 4, "a ": 5}
    codec = library.Tokenizer(library.models.BPE(vocabulary, [("a", " ")]))
    codec.post_processor = library.processors.TemplateProcessing("<s> $A", None, [("<s>", 0)])
    codec.save(str(tmp_path / "tokenizer.json"))
    write(tmp_path / "own.jsonl", [{"prompt": "b a", "answer": "b"}])
    found = prompts.load(f"file:{tmp_path}/own.jsonl")
    (row,) = prompts.tokenize(found, FileTokenizer(tmp_path / "tokenizer.json"), 9)
    # "b a b" is <s> "b" " " "a " "b"; the answer alone is " " "b".
    assert row == ([0, 3, 4, 5, 3], 3, None)


@pytest.mark.parametrize(
    ("name", "files", "says"),
    [
        ("gsm8k", {}, "prompts gsm8k: no file gsm8k/"),
        ("math", {"MATH/test.jsonl": [{"problem": "p"}]}, r"lacks the expected fields \(KeyError"),
        ("math", {"MATH/test.jsonl": math_rows(2, "Geometry")}, "MATH/test.jsonl contains no prompts"),
        ("mquake", {"MQuAKE-CF.json": "text"}, "lacks the expected fields"),
        ("gsm9k", {}, "prompts 'gsm9k' do not exist; did you mean gsm8k?"),
        ("file:{}/lost.jsonl", {}, r"lost.jsonl cannot be read \(FileNotFoundError"),
        ("file:{}/own.jsonl", {"own.jsonl": [{"prompt": "p"}]}, 'must have "text", or "prompt" and'),
        ("file:{}/own.jsonl", {"own.jsonl": [{"text": 3}]}, 'must have "text", or "prompt" and'),
        ("file:{}/own.jsonl", {"own.jsonl": []}, "own.jsonl contains no prompts"),
    ],
)  # fmt: skip
def test_mistakes_are_told_in_a_sentence(tmp_path, name, files, says):
    for path, rows in files.items():
        write(tmp_path / path, rows)
    with pytest.raises(UserError, match=says) as error:
        prompts.load(name.format(tmp_path), tmp_path)
    assert "\n" not in str(error.value)


def test_every_name_is_listed_and_a_number_is_at_least_one():
    assert prompts.names() == ["gsm8k", "math", "mquake", "aqua", "arithmetic", "chains"]
    with pytest.raises(UserError, match="n=0 must be at least 1"):
        prompts.load("chains", n=0)
