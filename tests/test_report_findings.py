"""The sentences of a page: what they say follows from the numbers, in both directions."""

import json
import re

import numpy as np
import pytest

from loopjax.plots import roles
from loopjax.report import collect, cuts, diagnostic_findings, estimates, families, findings, page
from loopjax.report.context import Context, Group
from loopjax.report.estimates import NLL, SHARE, Estimate, compared, difference, over
from tests import report_material as material


def seeded(directory, seed, phases=material.STANDARD, nll=2.0, **fields):
    """A run of a seed."""
    run = material.run(directory, phases, nll)
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"seed": seed} | fields))
    return run


def context_of(paths) -> Context:
    models = collect.collect(paths)
    return Context(models, families.looks(families.families(models.entries)), Group("", "", paths))


def page_of(tmp_path, paths, **group):
    page.write_report(tmp_path / "r.html", [Group("", "", paths, **group)])
    return (tmp_path / "r.html").read_text()


def said(text):
    """The computed sentences of a page."""
    blocks = re.findall(r'<div class="finding">(.*?)</div>', text, re.S)
    return [sentence for block in blocks for sentence in re.findall(r"<p>(.*?)</p>", block)]


# Numbers and their differences


def test_an_interval_over_seeds_is_students_and_over_items_normal():
    seeds = over([1.0, 2.0, 3.0])
    assert (seeds.value, seeds.n) == (2.0, 3)
    assert seeds.half == pytest.approx(4.302653 / np.sqrt(3))
    items = over([0.5], [0.05], 100)
    assert items.half == pytest.approx(1.959964 * 0.05) and items.items == 100
    assert over([0.5]).half is None
    # Seeds that agree by accident are not exact.
    assert over([0.5, 0.5], [0.05, 0.05]).half == pytest.approx(1.959964 * 0.05 / np.sqrt(2))
    assert over([0.1, 0.9], [0.05, 0.05]).half == over([0.1, 0.9]).half


def test_a_difference_is_that_of_welch_and_needs_an_interval_on_both_sides():
    from scipy import stats

    one, other = [1.0, 1.2, 1.1], [2.0, 2.4, 2.1, 2.3]
    found = difference(over(one), over(other))
    expected = stats.ttest_ind(one, other, equal_var=False).confidence_interval(0.95)
    assert found.value - found.half == pytest.approx(expected.low)
    assert found.value + found.half == pytest.approx(expected.high)
    assert found.beyond
    assert difference(over([1.0]), over([2.0])).beyond is None
    assert difference(over([1.0], [0.1]), over([2.0, 2.1])).beyond is None


@pytest.mark.parametrize(("gap", "word"), [(0.5, "higher"), (-0.5, "lower")])
def test_a_difference_is_named_by_its_sign_and_only_beyond_its_interval(gap, word):
    other = {"higher": "lower", "lower": "higher"}[word]
    sure = {"a": Estimate(2.0, 0.01, 3), "b": Estimate(2.0 + gap, 0.01, 3)}
    text = compared(sure, "a", NLL)
    assert text.startswith(f"Compared with a, b is 0.500 {word} (95% interval ")
    assert other not in text and "No difference" not in text
    unsure = {"a": Estimate(2.0, 0.5, 3), "b": Estimate(2.0 + gap, 0.5, 3)}
    text = compared(unsure, "a", NLL)
    assert text.startswith("No difference from a is shown for b (")
    assert word not in text and other not in text
    unknown = {"a": Estimate(2.0), "b": Estimate(2.0 + gap)}
    text = compared(unknown, "a", NLL)
    assert f"b is 0.500 {word}; there is no interval" in text and other not in text


def test_accuracies_differ_in_points_and_level_ones_are_level():
    text = compared({"a": Estimate(0.5), "b": Estimate(0.534)}, "a", SHARE)
    assert "b is 3.4 points higher" in text
    assert "b is level" in compared({"a": Estimate(0.5), "b": Estimate(0.5)}, "a", SHARE)


# Runs


def curve(values, flops):
    steps = tuple(range(10, 10 * len(values) + 1, 10))
    return steps, tuple(flops * step for step in steps), tuple(values)


@pytest.mark.parametrize(("grown", "word"), [([3.0, 2.0], "lower"), ([3.0, 2.4], "higher")])
def test_training_curves_are_compared_at_equal_steps_and_at_equal_flops(grown, word):
    curves = {"standard": [curve([3.0, 2.2], 100.0)], "lidas": [curve(grown, 75.0)]}
    steps, flops = findings.training(curves, "standard", "Held-out NLL", NLL)
    assert steps.startswith("Held-out NLL at step 20: standard 2.200, lidas")
    assert f"lidas is 0.200 {word}" in steps
    # The standard model has spent as much at step 15, where it is half way.
    assert flops.startswith(
        "Held-out NLL at 1.50k training FLOPs, the end of lidas: standard 2.600"
    )
    assert "Before the end of training there: standard (step 15 of 20)." in flops
    assert f"lidas is {abs(grown[1] - 2.6):.3f} lower" in flops


def test_curves_of_equal_cost_are_compared_once():
    curves = {"a": [curve([3.0, 2.2], 100.0)], "b": [curve([3.0, 2.0], 100.0)]}
    steps, flops = findings.training(curves, "a", "NLL", NLL)
    assert "b is 0.200 lower" in steps
    assert flops == "At the end, all have the same training FLOPs (2.00k)."
    assert findings.training({"a": curves["a"]}, "a", "NLL", NLL) == []


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ((0.6, 0.7), "All are above the floor of 52.0% (repeat) beyond its interval."),
        ((0.5, 0.53), "None is above the floor of 52.0% (repeat) beyond its interval: their order"),
        ((0.5, 0.7), "Not above the floor of 52.0% (repeat) beyond its interval: a."),
    ],
)
def test_accuracies_are_held_against_their_floor(values, verdict):
    known = {k: Estimate(v, 0.01, 1, 100) for k, v in zip("ab", values, strict=True)}
    text = findings.scores("hops", known, "a", SHARE, False, (0.52, "repeat"))
    assert verdict in text
    best = max(known, key=lambda k: known[k].value)
    assert text.startswith(f"hops, highest first: {best} ")


def test_costs_that_are_equal_are_named_in_place_of_a_panel():
    costs = {"x": {"a": 1e9, "b": 1.001e9}, "y": {"a": 1.0, "b": 2.0}, "z": {"a": 1.0}}
    text = findings.equal_costs(costs)
    assert "x (1.00G)" in text and "y" not in text.split(":")[1] and "z" not in text.split(":")[1]
    assert findings.equal_costs({"y": costs["y"]}) == ""


def test_runs_that_differ_only_in_their_seed_are_one_model(tmp_path):
    paths = [seeded(tmp_path / f"base__seed-{k}", k, nll=2.0 + k / 100) for k in range(3)]
    paths += [seeded(tmp_path / f"loop__seed-{k}", k, material.LOOP, 2.5) for k in range(3)]
    paths += [seeded(tmp_path / "fast", 0, learning_rate=0.1)]
    context = context_of(paths)
    assert [family.label for family in context.families] == ["base", "loop", "fast"]
    assert context.families[0].title == "base (3 seeds)" and context.reference == "base"
    looks = context.looks
    assert looks["base__seed-0"] == looks["base__seed-2"] == roles.look("standard")
    assert looks["fast"].color != looks["base__seed-0"].color
    assert looks["loop__seed-1"] == roles.look("loop")
    text = " ".join(said(page_of(tmp_path, paths)))
    assert (
        "base 2.010 ± 0.025 (3 seeds)" in text
        and "Compared with base, loop is 0.490 higher" in text
    )
    # Two runs of one seed differ in something that the config does not say.
    again = [*paths, seeded(tmp_path / "other", 1)]
    assert "base__seed-0" in [family.label for family in context_of(again).families]


@pytest.mark.parametrize(("loop", "word"), [(1.8, "lower"), (2.2, "higher")])
def test_the_page_says_what_its_numbers_say(loop, word, tmp_path):
    paths = [
        material.run(tmp_path / "standard"),
        material.run(tmp_path / "loop", material.LOOP, loop),
    ]
    text = " ".join(said(page_of(tmp_path, paths)))
    other = {"higher": "lower", "lower": "higher"}[word]
    assert f"loop is 0.200 {word}" in text and f"loop is 0.200 {other}" not in text
    assert "loop has 33% of its parameters and equal training FLOPs" in text


def test_prompts_that_were_cut_are_counted_by_task(tmp_path):
    run = material.run(tmp_path / "a")
    material.evaluated(run / "eval.json", run)
    result = json.loads((run / "eval.json").read_text())
    task = result["plans"]["12"]["tasks"]["copying_real"]

    def sentence(**counts):
        task.update(counts)
        (run / "eval.json").write_text(json.dumps(result))
        return cuts.finding(collect.collect([run]), ("eval", "icl"))

    assert sentence() == ""  # of a version that did not count
    assert sentence(truncated=0, n_samples=40) == "All prompts fit the context; none was cut."
    assert "Requests that did not fit the context" in (text := sentence(truncated=70))
    assert "copying_real (70 for a)" in text
    assert "Prompts that did not fit" in (text := sentence(items_truncated=7))
    assert "copying_real (7 of 40 for a)" in text and text in said(page_of(tmp_path, [run]))


def test_an_evaluation_shows_its_floor_and_its_items(tmp_path):
    paths = []
    for name, phases in (("standard", material.STANDARD), ("loop", material.LOOP)):
        run = material.run(tmp_path / name, phases)
        material.evaluated(run / "eval.json", run, phases[-1]["plan"], 0.15)
        result = json.loads((run / "eval.json").read_text())
        for plan in result["plans"].values():
            plan["groups"] = {}
        (run / "eval.json").write_text(json.dumps(result))
        paths.append(run)
    text = page_of(tmp_path, paths)
    assert "None is above the floor of 20.0% (a word that was not repeated)" in text
    assert "a word that was not repeated: 20%" in text  # in the legend
    assert "Bars are 95% intervals over items (single runs)." in text


# Diagnostics


def groups_of(paths):
    return context_of(paths).families


@pytest.fixture
def groups(tmp_path):
    runs = [material.run(tmp_path / "standard"), material.run(tmp_path / "loop", material.LOOP)]
    return groups_of(runs)


class Named(dict):
    """A result with any attributes."""

    __getattr__ = dict.__getitem__


@pytest.mark.parametrize("cyclic", ["standard", "loop"])
def test_a_cycle_is_called_one_only_beyond_chance(cyclic, groups):
    rng = np.random.default_rng(0)
    results = {}
    for label in ("standard", "loop"):
        values = rng.normal(size=24)
        if label == cyclic:
            values = np.linspace(0, 1, 24) + 5 * (np.arange(24) % 4 == 2)
        results[label] = Named(attention=values, layer=rng.normal(size=24))
    text = diagnostic_findings.norms(results, groups)
    other = {"standard": "loop", "loop": "standard"}[cyclic]
    assert f"Attention / residual repeats with the block beyond chance in {cyclic} (" in text
    assert f"Attention / residual shows no repetition beyond chance in {other} (" in text


@pytest.mark.parametrize(("loop", "word"), [(5.0, "higher"), (3.0, "lower")])
def test_depth_scores_are_compared_at_equal_depth(loop, word, groups):
    effect = np.ones(12)
    results = {
        "standard": Named(score=4.0, effect=effect),
        "loop": Named(score=loop, effect=effect),
    }
    assert f"loop is 1.00 layers {word}" in diagnostic_findings.depth_score(results, groups)
    results["loop"]["effect"] = np.ones(16)
    text = diagnostic_findings.depth_score(results, groups)
    assert word not in text and "16 executed layers (0 to 15): loop" in text


def test_an_intervention_says_what_it_costs_and_where(groups):
    rows = [
        {"size": 1, "start": k, "times": None, "tasks": {"t": {"accuracy": accuracy}}}
        for k, accuracy in enumerate((0.2, 0.6, 0.5))
    ]
    result = {"metrics": {"t": "acc"}, "unmodified": {"t": {"accuracy": 0.5}}, "rows": rows}
    text = diagnostic_findings.interventions("skip")({"loop": result}, groups)
    minus = estimates.MINUS
    assert f"{minus}6.7 on average, {minus}30.0 at layer 0 to +10.0 at layer 1" in text


def test_more_shots_are_compared_with_none(groups):
    def shown(values):
        rows = [
            {"shots": k, "accuracy": v, "interval": [v - 0.05, v + 0.05], "n": 300}
            for k, v in values.items()
        ]
        return {"curves": {"t": {"rows": rows}}}

    results = {"standard": shown({0: 0.3, 4: 0.6, 8: 0.7}), "loop": shown({0: 0.3, 4: 0.31})}
    text = diagnostic_findings.icl(results, groups)
    assert text.startswith("t with 4 shots: standard 60.0%")
    assert "Compared with standard, loop is 29.0 points lower" in text
    assert "Compared with 0 shots, standard with 4 is 30.0 points higher" in text
    assert "No difference from 0 shots is shown for loop with 4" in text
