import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopjax.depth import (
    INTERVENTIONS,
    DepthPlan,
    lidas,
    midas,
    prop_schedule,
    repeat,
    starts,
    swap,
)

parts = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 5)), min_size=1, max_size=5)
depths = st.tuples(st.integers(1, 12), st.integers(1, 8)).map(lambda nb: (nb[0] * nb[1], nb[1]))


@pytest.mark.parametrize(
    ("text", "unique", "effective", "order"),
    [
        ("24", 24, 24, tuple(range(24))),
        ("4x6", 4, 24, tuple(range(4)) * 6),
        ("4-4x4-4", 12, 24, (*range(4), *(tuple(range(4, 8)) * 4), *range(8, 12))),
        ("8-4x2-12", 24, 28, (*range(12), *range(8, 24))),
        ("2x2-1-3x2", 6, 11, (0, 1, 0, 1, 2, 3, 4, 5, 3, 4, 5)),
    ],
)
def test_a_plan_says_what_runs_in_which_order(text, unique, effective, order):
    plan = DepthPlan.parse(text)
    assert (plan.n_unique, plan.n_effective, plan.order) == (unique, effective, order)
    assert str(plan) == text


@given(parts)
def test_a_plan_survives_being_written_and_read(parts):
    plan = DepthPlan.parse("-".join(f"{layers}x{repeats}" for layers, repeats in parts))
    again = DepthPlan.parse(str(plan))
    assert again == plan and hash(again) == hash(plan) and again.order == plan.order
    assert plan.n_effective == len(plan.order)
    assert plan.n_unique == len(set(plan.order)) == max(plan.order) + 1


@given(parts, parts)
def test_plans_are_equal_exactly_when_they_execute_the_same_order(a, b):
    a, b = DepthPlan.of(a), DepthPlan.of(b)
    assert (a == b) == (a.order == b.order)


def test_segments_that_run_once_are_one():
    assert DepthPlan.parse("4-4x1-4") == DepthPlan.parse("12")
    assert str(DepthPlan.parse("2-2-3x2-1-1")) == "4-3x2-2"


@pytest.mark.parametrize(
    "junk",
    [
        "",
        "-",
        "0",
        "4x0",
        "x4",
        "4x",
        "-4",
        "4--4",
        "4.5",
        "4 x 6",
        "four",
        "4x6x2",
        "04",
        "4\n",
        "٤",
    ],
)
def test_junk_is_refused_in_one_sentence(junk):
    with pytest.raises(ValueError, match="invalid depth plan .*: write segments") as error:
        DepthPlan.parse(junk)
    assert repr(junk) in str(error.value)


@pytest.mark.parametrize(
    ("depth", "by_midas", "by_lidas"),
    [
        (4, [*range(4), *range(4)], [*range(4), *range(4)]),
        (8, [*range(4), *range(8)], [*range(6), *range(2, 8)]),
        (12, [*range(8), *range(4, 12)], [*range(8), *range(4, 12)]),
        (16, [*range(8), *range(4, 16)], [*range(10), *range(6, 16)]),
        (20, [*range(12), *range(8, 20)], [*range(12), *range(8, 20)]),
    ],
)
def test_growth_orders_are_those_of_the_paper(depth, by_midas, by_lidas):
    assert midas(depth, 4) == tuple(by_midas)
    assert lidas(depth, 4) == tuple(by_lidas)


@given(depths)
def test_growth_inserts_a_copy_of_a_run_of_layers_right_behind_it(depth_and_block):
    depth, block = depth_and_block
    for operator in (midas, lidas):
        order = operator(depth, block)
        assert len(order) == depth + block and set(order) == set(range(depth))
        jump = next(i for i in range(len(order)) if i == len(order) - 1 or order[i + 1] <= order[i])
        assert order[jump + 1 : jump + 1 + block] == order[jump + 1 - block : jump + 1]
        assert order[: jump + 1] + order[jump + 1 + block :] == tuple(range(depth))


@given(depths)
def test_midas_copies_a_whole_block_and_lidas_the_layers_around_the_middle(depth_and_block):
    depth, block = depth_and_block
    copied = {i for i in midas(depth, block) if midas(depth, block).count(i) == 2}
    assert min(copied) % block == 0 and min(copied) // block == math.ceil(depth / block / 2) - 1
    copied = {i for i in lidas(depth, block) if lidas(depth, block).count(i) == 2}
    below, above = min(copied), depth - 1 - max(copied)
    assert abs(below - above) <= 1
    if (depth // block) % 2:
        assert midas(depth, block) == lidas(depth, block)


@pytest.mark.parametrize("operator", [midas, lidas])
@pytest.mark.parametrize(
    ("depth", "block", "says"),
    [(10, 4, "block=4 does not divide"), (0, 4, "n_layers=0"), (8, 0, "block=0"), (-8, -4, "-8")],
)
def test_impossible_growth_is_refused(operator, depth, block, says):
    with pytest.raises(ValueError, match=says):
        operator(depth, block)


# An intervention that fits: (op, layers, start, size).
edits = (
    st.tuples(st.sampled_from(sorted(INTERVENTIONS)), st.integers(2, 40), st.integers(1, 40))
    .filter(lambda edit: starts(*edit))
    .flatmap(lambda e: st.sampled_from(starts(*e)).map(lambda start: (e[0], e[1], start, e[2])))
)


def edited(op, n_layers, start, size, times=1):
    more = (times,) if op == "repeat" else ()
    return INTERVENTIONS[op](n_layers, start, size, *more)


@pytest.mark.parametrize(
    ("op", "order"),
    [
        ("swap", [0, 1, 4, 5, 2, 3, 6, 7]),
        ("skip", [0, 1, 4, 5, 6, 7]),
        ("reverse", [0, 1, 3, 2, 4, 5, 6, 7]),
        ("repeat", [0, 1, 2, 3, 2, 3, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_interventions_are_those_of_the_paper(op, order):
    assert edited(op, 8, 2, 2, times=2) == tuple(order)


@pytest.mark.parametrize(
    ("op", "counts"),
    [("skip", {1: 24, 2: 23, 4: 21, 8: 17}), ("swap", {1: 23, 2: 21, 4: 17, 8: 9}),
     ("reverse", {4: 21}), ("repeat", {4: 21})],
)  # fmt: skip
def test_there_are_as_many_starts_as_the_papers_plot(op, counts):
    assert {size: len(starts(op, 24, size)) for size in counts} == counts


@given(edits)
def test_swap_and_reverse_undo_themselves_and_only_move_layers(edit):
    op, n_layers, _, _ = edit
    order = edited(*edit)
    if op in ("swap", "reverse"):
        assert tuple(order[e] for e in order) == tuple(range(n_layers))
    assert set(order) <= set(range(n_layers))


@given(edits, st.integers(0, 5))
def test_an_intervention_touches_its_sub_blocks_alone_and_has_their_length(edit, times):
    op, n_layers, start, size = edit
    order = edited(*edit, times=times)
    change = {"swap": 0, "skip": -size, "reverse": 0, "repeat": times * size}[op]
    assert len(order) == n_layers + change >= 1
    stop = start + (2 * size if op == "swap" else size)
    assert order[:start] == tuple(range(start))
    assert order[len(order) - n_layers + stop :] == tuple(range(stop, n_layers))


@given(edits)
def test_repeating_no_times_changes_nothing(edit):
    _, n_layers, start, size = edit
    if start in starts("repeat", n_layers, size):
        assert repeat(n_layers, start, size, 0) == tuple(range(n_layers))


@given(st.integers(1, 5), st.integers(2, 8), st.integers(1, 4), st.data())
def test_a_swap_by_whole_passes_changes_nothing_inside_a_tied_loop(layers, passes, n, data):
    plan = DepthPlan.of([(layers, passes)])
    if valid := starts("swap", plan.n_effective, n * layers):
        order = swap(plan.n_effective, data.draw(st.sampled_from(valid)), n * layers)
        assert tuple(plan.order[e] for e in order) == plan.order


@given(edits)
def test_an_intervention_beyond_the_last_start_is_refused(edit):
    op, n_layers, _, size = edit
    for start in (-1, starts(op, n_layers, size)[-1] + 1):
        with pytest.raises(ValueError, match=f"{op} of size={size} at start={start} does not fit"):
            edited(op, n_layers, start, size)


@pytest.mark.parametrize(
    ("op", "args", "says"),
    [
        ("swap", (4, 0, 3), "no start fits"),
        ("skip", (4, 0, 4), "no start fits"),
        ("reverse", (4, 1, 0), "size=0 must be a positive"),
        ("repeat", (0, 0, 1, 1), "n_layers=0 must be a positive"),
        ("repeat", (4, 0, 1, -1), "times=-1 must be a whole number of at least 0"),
    ],
)
def test_impossible_interventions_are_refused(op, args, says):
    with pytest.raises(ValueError, match=says):
        INTERVENTIONS[op](*args)


def test_prop_schedule_of_the_paper():
    assert prop_schedule(170_000, 6) == (8095, 16191, 24286, 32381, 40476, 48571)


@given(st.integers(1, 10**6), st.integers(1, 40), st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.7]))
def test_stages_sum_to_the_whole_and_keep_their_proportions(total, stages, alpha):
    steps = prop_schedule(total, stages, alpha)
    weights = [i**alpha for i in range(1, stages + 1)]
    assert sum(steps) == total
    assert all(abs(s - total * w / sum(weights)) < 1 for s, w in zip(steps, weights, strict=True))


@pytest.mark.parametrize("bad", [(0, 4, 1.0), (10, 0, 1.0), (10, 4, math.inf), (10, 4, math.nan)])
def test_impossible_schedules_are_refused(bad):
    with pytest.raises(ValueError, match="must be"):
        prop_schedule(*bad)
