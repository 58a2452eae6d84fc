"""Reasoning primitives: every question has one answer, and no item is in the training data."""

import collections
import itertools
import re
import zlib

import pytest

from loopjax.data import instances, items, text_tasks
from loopjax.evals import primitives, suite

VARIABLES = [f"var_assign_{style}_{depth}" for style in ("basic", "math", "code") for depth in (0, 1, 2)]  # fmt: skip
ALL = ["copying_random", "copying_real", *VARIABLES]
# One prompt of each kind as the papers (copying, basic) and the sources of math and code print it.
PRINTED = {
    "copying": "Fill in the blank:\n\njic dqy sof uzg ewr oxw osp tkj rvw mnu jic dqy sof uzg ewr ___. ->",
    "basic": "Fill in blank:\n\no=23\nk=3\nt=13\na=1\ne=9\no=___. ->",
    "math": "The following is a set of simple mathematical equations.\n\nn=22\nb=1\nc=2\nd=3\ne=4\n"
    "What is the numerical value of n?\nAnswer:",
    "code": "The following is a very short Python program. Use the program to resolve the value of the "
    "variable in the question.\nProgram:\nn = 22\nb = 1\nc = 2\nd = 3\ne = 4\n\nQuestion:\n"
    "What is the value of n?\nAnswer:",
}


def solve(prompt: str) -> tuple[str, list[str]]:
    """The answer and the options, from the text of the prompt alone."""
    if prompt.startswith("Fill in the blank"):
        words = prompt.splitlines()[2].removesuffix(" ___. ->").split()
        shown, repeated = words[:10], words[10:]
        follow = [
            b
            for *run, b in itertools.zip_longest(*(shown[i:] for i in range(6)))
            if run == repeated
        ]
        return follow[0], shown
    lines = re.findall(r"^([a-z]) ?= ?(\w+)$", prompt, re.M)
    value = dict(lines)
    asked = re.search(r"value of ([a-z])\?|^([a-z])=___", prompt, re.M)
    name = asked[1] or asked[2]
    while not name.isdigit():
        name = value[name]
    return name, [v for _, v in lines if v.isdigit()]


def depth_of(prompt: str) -> int:
    """Number of references between the queried variable and its value."""
    value = dict(re.findall(r"^([a-z]) ?= ?(\w+)$", prompt, re.M))
    asked = re.search(r"value of ([a-z])\?|^([a-z])=___", prompt, re.M)
    return len(list(itertools.takewhile(str.isalpha, iterates(value, asked[1] or asked[2])))) - 1


def iterates(value, name):
    while True:
        yield name
        name = value[name]


@pytest.mark.parametrize("name", ALL)
def test_the_prompt_alone_gives_the_answer_and_the_options(name):
    for split in ("heldout", "train"):
        for item in primitives.items(name, split, 0, 100):
            answer, options = solve(item.prompt)
            assert item.answer == answer
            assert list(item.options) == options
            assert len(set(options)) == (10 if name.startswith("copying") else 5)
            if name in VARIABLES:
                assert depth_of(item.prompt) == int(name[-1])


@pytest.mark.parametrize("name", ["copying_random", "copying_real", *VARIABLES[::3]])
def test_prompts_are_the_printed_ones_but_for_names_and_values(name):
    def template(prompt):
        *heading, words = prompt.removesuffix(" ___. ->").split("\n")
        if heading[0] == "Fill in the blank:":
            return [*heading, len(words.split()), prompt[-8:]]
        return re.sub(r"\b[a-z]\b|\d+", "_", prompt)

    printed = PRINTED[name.split("_")[2 if name in VARIABLES else 0]]
    for item in primitives.items(name, "heldout", 0, 100):
        assert template(item.prompt) == template(printed)


def test_words_are_of_three_letters_or_real():
    for name, legal in (
        ("random", re.compile("[a-z]{3}").fullmatch),
        ("real", text_tasks.WORDS.__contains__),
    ):
        drawn = primitives.items(f"copying_{name}", "heldout", 0, 100)
        assert all(legal(word) for item in drawn for word in item.options)
    values = {
        int(v) for i in primitives.items("var_assign_basic_0", "heldout", 0, 100) for v in i.options
    }
    assert values == set(range(1, 26))


@pytest.mark.parametrize("name", ["copying_random", "copying_real", "var_assign_basic_0", "var_assign_math_1", "var_assign_code_2"])  # fmt: skip
def test_a_thousand_items_differ_and_none_is_ever_trained_on(name):
    drawn = primitives.items(name, "heldout", primitives.SEED)
    prompts = {item.prompt for item in drawn}
    assert len(prompts) == len(drawn) == 1000
    # `instances.draw` gives training, of any seed, what lies on the other side of this hash.
    assert all(zlib.crc32(p.encode()) % instances.HELDOUT_EVERY == 0 for p in prompts)
    pool = {item.prompt for item in primitives.items(name, "train", primitives.SEED)}
    assert len(pool) == 1000 and not pool & prompts

    # The place of the answer is uniform: the chi-squared statistic has four degrees of freedom, and
    # is above 18.5 once in a thousand. The run that is copied ends before words 5 to 9.
    places = collections.Counter(item.options.index(item.answer) for item in drawn)
    legal = range(5, 10) if name.startswith("copying") else range(5)
    assert set(places) == set(legal)
    assert sum((places[place] - 200) ** 2 / 200 for place in legal) < 18.5


def test_an_item_that_is_drawn_again_does_not_count():
    def number(rng):
        return items.Item(str(rng.integers(0, 100)), "a", ("a",))

    prompts = [item.prompt for item in items.distinct(number, "train", 0, 50)]
    assert len(set(prompts)) == len(prompts) == 50


def test_a_seed_gives_the_same_items_always_and_another_seed_others():
    first = primitives.items("var_assign_math_1", "heldout", 0, 50)
    primitives.items.cache_clear()
    assert primitives.items("var_assign_math_1", "heldout", 0, 50) == first
    assert not set(primitives.items("var_assign_math_1", "heldout", 1, 50)) & set(first)
    task = suite.load(["var_assign_basic_0"], primitives_seed=3)["tasks"]["var_assign_basic_0"]
    drawn = primitives.items("var_assign_basic_0", "heldout", 3)
    assert task.eval_docs["prompt"][:] == [item.prompt for item in drawn]


def test_a_prompt_is_five_solved_items_and_one_to_solve():
    name = "copying_real"
    task = suite.load([name])["tasks"][name]
    task.build_all_requests(limit=20)
    solved = {f"{i.prompt} {i.answer}" for i in primitives.items(name, "train", 0)}
    asked = primitives.items(name, "heldout", 0)
    assert len(task.instances) == 200
    for number, instance in enumerate(task.instances):
        context, continuation = instance.args
        examples = re.split(r"\n\n(?=Fill)", context)
        assert examples.pop() == asked[number // 10].prompt
        assert len(set(examples)) == 5 and set(examples) <= solved
        assert continuation == f" {asked[number // 10].options[number % 10]}"


def test_the_harness_alone_loads_the_same_items():
    from lm_eval.tasks import TaskManager

    # Arguments of a model come along as metadata: none may be taken for one of a primitive.
    metadata = {"depth": "4x2", "seed": 5, "words": "real"}
    manager = TaskManager(include_path=suite.TASKS, include_defaults=False, metadata=metadata)
    loaded = manager.load(["reasoning_primitives"])
    ours = suite.load(["reasoning_primitives"])
    assert loaded["group_map"] == ours["group_map"]
    for name, task in loaded["tasks"].items():
        assert task.eval_docs["prompt"][:] == ours["tasks"][name].eval_docs["prompt"][:]
        assert task.config.num_fewshot == 5
