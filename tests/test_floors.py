"""Floors of tasks agree with an enumeration of all instances, and with exact probabilities."""

import itertools

import pytest

from loopjax.data import registry
from loopjax.data.floors import ITEMS, Floors, floors, mean_floors


def hop(letters: str, i: int, p: int) -> int:
    """The position, from 0, that p hops lead to from i, or -1; by the definition of find_1."""
    for _ in range(p):
        i = max((j for j in range(1, i + 1) if letters[j - 1] == letters[i]), default=-1)
        if i < 0:
            return -1
    return i


def enumerated(strings, p: int, scored) -> Floors:
    """The floors over all strings; `scored(n)` are the positions that count."""
    right = {"repeat the last letter": 0.0, "the most frequent letter": 0.0}
    short = {q: 0 for q in (p - 2, p - 1) if q > 0}
    n = 0
    for letters in strings:
        for i in scored(len(letters)):
            if (end := hop(letters, i, p)) < 0:
                continue
            n += 1
            answer, seen = letters[end], letters[: i + 1]
            right["repeat the last letter"] += letters[i] == answer
            most = [c for c in "abcd" if seen.count(c) == max(map(seen.count, "abcd"))]
            right["the most frequent letter"] += (answer in most) / len(most)
            for q in short:
                short[q] += letters[hop(letters, i, q)] == answer
    named = {f"{q} hop{'s' * (q > 1)} instead of {p}": k / n for q, k in short.items()}
    return Floors(0.25, {rule: k / n for rule, k in right.items()}, named)


@pytest.mark.parametrize("task, p", [("p_hop_1", 1), ("p_hop_3", 3), ("hop_text_4", 4)])
def test_floors_of_hops_are_those_of_all_strings(task, p):
    strings = map("".join, itertools.product("abcd", repeat=7))
    exact = enumerated(strings, p, lambda n: [n - 1])
    found = floors(task, 8)
    assert found.chance == 0.25
    error = 4 * (0.25 / ITEMS) ** 0.5
    assert found.rules == pytest.approx(exact.rules, abs=error)
    assert found.short == pytest.approx(exact.short, abs=error)


def test_where_no_neighbors_are_alike_one_hop_never_ends_at_the_same_letter():
    assert floors("sanford_1").rules["repeat the last letter"] == 0
    strings = ("".join(s) for s in itertools.product("abcd", repeat=8))
    walks = (s for s in strings if all(a != b for a, b in itertools.pairwise(s)))
    exact = enumerated(walks, 2, range)
    assert floors("sanford_2", 9).rules == pytest.approx(exact.rules, abs=0.02)


def test_half_of_the_four_hop_items_are_solved_by_repeating_the_last_letter():
    rule, accuracy = floors("hop_text_4").best
    assert rule == "repeat the last letter"
    assert accuracy == pytest.approx(0.51, abs=0.03)


def test_no_digit_is_often_the_end_of_a_trail():
    items = registry.items("trail_4", "heldout", 1, 500)
    digits = [[c for c in item.prompt if c.isdigit()] for item in items]
    last = sum(d[-1] == item.answer for d, item in zip(digits, items, strict=True))
    most = 0
    for found, item in zip(digits, items, strict=True):
        top = [d for d in {*found} if found.count(d) == max(map(found.count, found))]
        most += (item.answer in top) / len(top)
    found = floors("trail_4")
    assert found.chance == 0.1 and found.best[1] < 0.3
    assert found.rules["repeat the last digit"] == pytest.approx(last / 500, abs=0.06)
    assert found.rules["the most frequent digit"] == pytest.approx(most / 500, abs=0.06)
    assert floors("trail_code_4") == found


def test_floors_of_other_tasks_are_exact():
    assert floors("copying_random").best == ("a word that was not repeated", 0.2)
    assert floors("var_assign_code_2").best == ("chance", 0.2)
    # Of two uniform numbers 0..999, 1000 of a million pairs have the sum 999.
    assert floors("addition_2").best == ("the most frequent sum", pytest.approx(1000 / 10**6))
    assert floors("addition_2").chance == 1 / 1999
    # The text of a problem with one operation has its few numbers, one of which is the answer.
    assert floors("igsm_1", 88).best[1] == pytest.approx(0.40, abs=0.03)
    assert floors("igsm_1", 88).chance == 1 / 7


@pytest.mark.parametrize("name", ["stdlib", "lambada_openai", "hop_text_4 (f1)"])
def test_a_text_or_a_task_that_is_not_built_in_has_no_floors(name):
    assert floors(name) is None


def test_the_floor_of_a_mean_is_the_mean_of_the_floors():
    name, best = mean_floors(["copying_random", "var_assign_basic_0"]).best
    assert (name, best) == ("the best trivial rules", pytest.approx(0.2))
    assert mean_floors(["copying_random"]).best == floors("copying_random").best
    assert mean_floors(["copying_random", "lambada_openai"]) is None
