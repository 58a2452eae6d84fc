"""Runs of fine-tuning on a page: which are drawn together, and what of them is shown where."""

import json
import re

import pytest

from loopjax.plots import accuracy, figure, roles
from loopjax.report import collect, finetune_curves, page, theme
from tests import report_material as material


def lines_of(paths):
    return {line.label: line for line in finetune_curves.lines(collect.collect(paths)[0])}


def values_of(line, of="2 shots, first 40 items"):
    return {n: scores["copying_real"] for n, scores in line.values(of).items()}


def page_of(tmp_path, paths):
    page.write_report(tmp_path / "r.html", [page.Group("", "", paths)])
    return (tmp_path / "r.html").read_text()


def section_of(text, title):
    found = re.search(rf"<h2>{title}</h2>.*?</section>", text, re.S)
    return found and found[0]


def change(run, **fields):
    """Other fields of a run's config."""
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | fields))
    return run


@pytest.fixture
def study(tmp_path):
    """Two models, evaluated, and runs of two seeds from each; the loop also untied first."""
    standard = material.run(tmp_path / "standard")
    loop = material.run(tmp_path / "loop", material.LOOP)
    material.evaluated(standard / "eval.json", standard, value=0.2)
    material.evaluated(loop / "eval.json", loop, "4x3", value=0.3)
    runs = []
    for name, base, operator, plan, gain in (
        ("standard", standard, "", "12", 0.0),
        ("loop", loop, "", "4x3", 0.1),
        ("untied", loop, "untie", "12", 0.2),
    ):
        for n in (64, 128):
            for seed in (0, 1):
                place, value = tmp_path / f"{name}-{n}-{seed}", 0.4 + gain + n / 1280 + seed / 50
                runs.append(material.tuned(place, base, n, seed, value, operator, plan))
    return standard, loop, runs


def test_a_line_is_a_base_model_in_one_way_and_a_point_its_runs_of_all_seeds(study):
    standard, loop, runs = study
    found = lines_of([standard, loop, *runs])
    assert list(found) == ["standard", "loop", "loop, untied"]
    assert values_of(found["standard"]) == {
        0: [0.2], 64: pytest.approx([0.45, 0.47]), 128: pytest.approx([0.5, 0.52]),
    }  # fmt: skip
    assert values_of(found["loop, untied"])[0] == [0.3]
    assert [line.base for line in found.values()] == ["standard", "loop", "loop"]


def test_base_models_that_are_not_on_the_page_are_called_by_their_directories(study, tmp_path):
    standard, _, runs = study
    found = lines_of(runs)
    assert list(found) == ["loop", "loop, untied", "standard"]
    assert [min(values_of(line)) for line in found.values()] == [64, 64, 64]
    text = page_of(tmp_path, runs)
    assert re.findall(r"<h2>(.*?)</h2>", text) == ["Fine-tuning"]
    assert text.count('type="checkbox"') == 2
    # One that is on the page under the same name is another one.
    other = material.run(tmp_path / "elsewhere" / "standard")
    assert str(standard) in lines_of([other, *runs])


def test_results_that_were_moved_find_their_base_model_by_its_name(study, tmp_path):
    standard, _, runs = study
    standard.rename(tmp_path / "s")
    (tmp_path / "new").mkdir()
    (tmp_path / "s").rename(tmp_path / "new" / "standard")
    found = lines_of([tmp_path / "new" / "standard", *runs[:4]])
    assert list(found) == ["standard"] and values_of(found["standard"])[0] == [0.2]


def test_runs_that_differ_in_more_than_the_seed_are_lines_apart(study, tmp_path):
    standard, _, runs = study
    more = [
        material.tuned(tmp_path / f"fast-{seed}", standard, 64, seed, 0.9, learning_rate=0.01)
        for seed in (0, 1)
    ]
    found = lines_of([standard, *runs[:4], *more])
    assert {*found} == {"standard, learning_rate=0.0005", "standard, learning_rate=0.01"}
    assert values_of(found["standard, learning_rate=0.01"]) == {0: [0.2], 64: [0.9, 0.9]}


def test_what_goes_with_the_number_of_examples_makes_no_other_line(study):
    standard, _, runs = study
    for run in runs[:4]:
        change(run, steps=10 if "-64-" in run.name else 20)
    assert list(lines_of([standard, *runs[:4]])) == ["standard"]
    change(runs[0], mixture={"var_assign_code_1:48+var_assign_code_2:16": 1.0})
    assert len(lines_of([standard, *runs[:4]])) == 2  # 3:1, and 1:1
    change(runs[0], mixture={"var_assign_code_1:64": 1.0})
    assert {"standard, var_assign_code_1", "standard, var_assign_code_1 + var_assign_code_2"} == {
        *lines_of([standard, *runs[:4]])
    }


def test_base_models_that_differ_in_their_seed_are_one_line(study, tmp_path):
    standard, loop, runs = study
    for k in (1, 2):
        base = change(material.run(tmp_path / f"standard-{k}"), seed=k)
        material.evaluated(base / "eval.json", base, value=0.2 + k / 10)
        runs.append(material.tuned(tmp_path / f"more-{k}", base, 64, k, 0.6))
    bases = [standard, loop, tmp_path / "standard-1", tmp_path / "standard-2"]
    found = lines_of([*bases, *runs])
    line = found["standard (3 seeds)"]
    assert line.base == "standard"
    assert values_of(line)[0] == pytest.approx([0.2, 0.3, 0.4]) and len(values_of(line)[64]) == 4
    assert "standard (3 seeds)" in lines_of(runs)  # by their config.json
    change(bases[2], seed=2)
    assert {"standard", "standard-1", "standard-2"} < {*lines_of([*bases, *runs])}
    change(bases[2], seed=1, learning_rate=0.5)
    assert {"standard (2 seeds)", "standard-1"} < {*lines_of([*bases, *runs])}


def test_only_what_the_layers_computed_before_stands_at_no_examples(study, tmp_path):
    standard, _, _ = study
    grown = material.tuned(tmp_path / "grown", standard, 64, operator="lidas", plan="12")
    assert values_of(lines_of([standard, grown])["standard, grown by lidas"]) == {64: [0.5]}
    material.evaluated(standard / "looped.json", standard, "4-4x2-4", value=0.25)
    events = [
        {"step": 0, "operator": "init", "plan": "12", "order": None},
        {"step": 0, "operator": "retrofit", "plan": "4-4x2-4", "order": None,
         "from": f"{standard / 'checkpoints'}@{material.STEPS}"},
    ]  # fmt: skip
    run = material.tuned(tmp_path / "looped", standard, 64, plan="4-4x2-4")
    config = json.loads((run / "config.json").read_text())
    material.saved(run, material.STEPS, "4-4x2-4", lineage=events, config=config)
    line = lines_of([standard, run])["standard, retrofitted"]
    assert values_of(line) == {0: [0.25], 64: [0.5]}


def test_only_runs_whose_config_counts_their_pairs_are_runs_of_fine_tuning(study):
    standard, _, runs = study
    (entry,), _ = collect.collect([runs[0]])
    assert finetune_curves.sources(entry) == {"var_assign_code_1": 32, "var_assign_code_2": 32}
    assert finetune_curves.examples(entry) == 64
    for fields in (
        {"mixture": {"chat": 1.0}}, {"mixture": {"chat:8": 0.5, "stdlib": 0.5}}, {"mixture": {}},
        {"init": "state"},
    ):  # fmt: skip
        kept = json.loads((runs[0] / "config.json").read_text())
        assert finetune_curves.sources(collect.collect([change(runs[0], **fields)])[0][0]) is None
        (runs[0] / "config.json").write_text(json.dumps(kept))
    assert finetune_curves.sources(collect.collect([standard])[0][0]) is None


def test_a_page_shows_fine_tuning_in_its_section_and_models_in_theirs(study, tmp_path):
    standard, loop, runs = study
    text = page_of(tmp_path, [standard, loop, *runs])
    assert text.count('type="checkbox"') == 2
    for title in ("Models", "Lineage", "Training", "Trade-offs"):
        assert "-64-" not in section_of(text, title)
    drawn = section_of(text, "Fine-tuning")
    for cell in ("<td data-value=\"64\">64</td><td data-value=\"2\">2</td>", "0.460 ± 0.014",
                 "loop, untied</th>", ">20 ± 0</td>"):  # fmt: skip
        assert cell in drawn, cell
    numbers = json.loads(re.search(r'id="numbers">(.*?)</script>', text, re.S)[1])
    (axis,) = numbers[re.search(r'<figure id="(\w+)"', drawn)[1]]["axes"]
    assert [(line["label"], line["model"]) for line in axis["lines"]] == [
        ("standard", "m0"), ("loop", "m1"), ("loop, untied", "m1"),
    ]  # fmt: skip
    assert axis["lines"][0]["points"] == [[0, 64, 128], [0.2, 0.46, 0.51]]
    # Three curves and three entries of the legend, in the colors of two models.
    found = r'data-model="(m\d)">\s*<path d="M[^"]*L[^"]*"[^>]*stroke: (var\(--c\w+\))'
    assert {*re.findall(found, drawn)} == {
        ("m0", theme.variable(roles.look("standard").color)),
        ("m1", theme.variable(roles.look("loop").color)),
    }


def test_diagnostics_of_a_fine_tuned_run_are_shown_where_there_are_some(study, tmp_path):
    standard, loop, runs = study
    material.diagnose(runs[0] / "signature", runs[0], which={"norms"})
    text = page_of(tmp_path, [standard, loop, *runs])
    assert text.count('type="checkbox"') == 3
    assert runs[0].name in section_of(text, "Residual stream")
    assert runs[0].name not in section_of(text, "Models")
    assert str(runs[0]) not in text[text.index("Missing results") :]


def test_commands_are_told_for_evaluations_that_a_line_lacks(study, tmp_path):
    standard, loop, runs = study
    assert "Fine-tuning" not in page.wanted(collect.collect([standard, loop, *runs])[0])
    (loop / "eval.json").unlink()
    (runs[0] / "tuned.json").unlink()
    entries, _ = collect.collect([standard, loop, *runs])
    end = "--tasks copying_real --num-fewshot 2 --limit 40 --output {}"
    file = "finetuning-2-shots-first-40-items.json"
    assert page.wanted(entries)["Fine-tuning"] == [
        f"loopjax eval --checkpoint {run} {end.format(run / file)}" for run in (loop, runs[0])
    ]
    assert "1 of 2" in section_of(page_of(tmp_path, [standard, loop, *runs]), "Fine-tuning")
    for run in runs:
        (run / "tuned.json").unlink(missing_ok=True)
    told = page.wanted(collect.collect(runs)[0])
    assert list(told) == ["Fine-tuning"] and len(told["Fine-tuning"]) == len(runs)
    assert told["Fine-tuning"][-1].startswith(
        f"loopjax eval --checkpoint {runs[3]} --tasks var_assign_code_1,var_assign_code_2 "
        "--num-fewshot 0 --output "
    )
    drawn = section_of(page_of(tmp_path, runs), "Fine-tuning")
    assert 'role="img"' not in drawn and "0 of 2" in drawn


def test_the_picture_takes_plain_numbers():
    results = {
        "a": {64: {"x": [0.1, 0.3], "y": [0.5]}, 8: {"x": [0.0, 0.1]}},
        "b": {64: {"x": [0.4]}},
        "b, untied": {64: {"x": [0.6]}},
    }
    shared = {"a": "#111111", "b": "#222222", "b, untied": "#222222"}
    fig = accuracy.plot_finetuning(results, shared, {"b, untied": "b"})
    first, second = fig.axes
    a, b, untied = first.lines
    assert (first.get_title(loc="left"), second.get_title(loc="left")) == ("x", "y")
    assert a.get_xydata().tolist() == [[8, 0.05], [64, 0.2]] and len(second.lines) == 1
    assert (b.get_linestyle(), untied.get_linestyle()) == ("-", "--")
    assert (untied.get_label(), untied.get_gid(), b.get_gid()) == ("b, untied", "b", "b")
    bars = [path.vertices[:, 1].tolist() for path in first.collections[0].get_paths()]
    spread = 0.2 / 2**0.5  # the standard deviation of 0.1 and 0.3
    assert bars[1] == pytest.approx([0.2 - spread, 0.2 + spread])
    assert len({line.get_color() for line in accuracy.plot_finetuning(results).axes[0].lines}) == 3


@pytest.mark.parametrize("n", [2, 30, 120])
def test_a_long_legend_leaves_the_axes_their_height(n):
    fig, axes = figure.grid(3, 3, 4.2, 3.2, 0.3)
    lines = {f"standard-math-by-2-2x2-4-s{k}": axes[0].plot([k, 1])[0] for k in range(n)}
    figure.legend(fig, lines)
    figure.png(fig)  # lays it out
    for axis in axes:
        assert axis.get_position().height * fig.get_figheight() > 2.3
