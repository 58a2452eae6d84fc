"""The page that compares models: what it finds, what it shows, what can be done with it."""

import html.parser
import json
import re
import shutil
import sys

import pytest

from loopjax import checkpoint_files, run_record
from loopjax.cli import main as cli
from loopjax.errors import UserError
from loopjax.files import write_json
from loopjax.plots import figure, roles
from loopjax.report import collect, page, svg, theme
from loopjax.report.sections import sections
from loopjax.results import reader
from tests import report_material as material

OWN = {"depth_score", "norms"}


def labels(paths):
    return [entry.label for entry in collect.collect(paths)[0]]


def written(tmp_path, paths, **kwargs):
    out = tmp_path / "new" / "report.html"
    page.write_report(out, [page.Group("", "", paths)], **kwargs)
    return out.read_text()


def numbers_of(text):
    return json.loads(re.search(r'id="numbers">(.*?)</script>', text, re.S)[1])


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Three runs with all results."""
    place = tmp_path_factory.mktemp("three")
    kinds = {"standard": material.STANDARD, "loop": material.LOOP, "lidas": material.LIDAS}
    for k, (name, phases) in enumerate(kinds.items()):
        run = material.run(place / name, phases, 2 + k / 10)
        material.everything(run, phases[-1]["plan"], k / 10)
    material.tuned(place / "tuned", place / "lidas", 64)
    return place


@pytest.fixture(scope="module")
def full(three):
    """Their page."""
    out = three / "report.html"
    paths = [str(three / name) for name in ("standard", "loop", "lidas", "tuned")]
    page.write_report(out, [page.Group("", "", paths)], "Three & <models>")
    return out.read_text()


# Finding


def test_results_below_a_run_are_its_own_and_runs_below_it_are_not(tmp_path):
    run, other = material.run(tmp_path / "a"), material.run(tmp_path / "a" / "b")
    material.diagnose(run / "signature", run, which=OWN)
    material.diagnose(other / "signature", other, which={"future"})
    (run / "checkpoints.damaged").mkdir()
    (run / "checkpoints.damaged" / "x.json").write_text("{}")
    (entry,), notes = collect.collect([run])
    assert set(entry.results) == OWN and notes == []
    assert list(entry.results["norms"]) == ["arithmetic, 20 prompts"]


def test_results_elsewhere_go_to_the_model_that_they_are_of(tmp_path):
    run, other = material.run(tmp_path / "a"), material.run(tmp_path / "b")
    material.diagnose(tmp_path / "results", other, which=OWN)
    material.evaluated(tmp_path / "e.json", run)
    entries, _ = collect.collect([run, other, tmp_path / "results", tmp_path / "e.json"])
    assert [set(entry.results) for entry in entries] == [{"eval"}, OWN]


def test_another_plan_is_a_variant_and_an_unnamed_model_one_of_its_own(tmp_path):
    run, other = material.run(tmp_path / "a"), tmp_path / "gone"
    material.diagnose(run / "signature", run, which=OWN)
    material.diagnose(run / "looped", run, "4-4x2-4", 16, which=OWN)
    material.shown_examples(tmp_path / "icl.json", other)
    assert labels([run, tmp_path / "icl.json"]) == ["a", "a at 4-4x2-4", "gone@20"]
    entries, _ = collect.collect([f"mine={tmp_path / 'icl.json'}"])
    assert [entry.label for entry in entries] == ["mine"]
    assert entries[0].parameters and entries[0].costs["inference_flops_per_token"]
    assert entries[0].model.training_flops is None and entries[0].nll is None


def test_a_variant_costs_what_it_executes_and_has_no_loss_of_the_training(tmp_path):
    run = material.run(tmp_path / "a")
    material.diagnose(run / "looped", run, "4-4x2-4", 16, which=OWN)
    own, looped = collect.collect([run])[0]
    assert own.parameters == looped.parameters and own.nll == 2.0 and looped.nll is None
    forward = "inference_flops_per_token"
    assert looped.costs[forward] > 1.2 * own.costs[forward]


def test_labels_are_given_or_made_distinct(tmp_path):
    for place in ("x", "y"):
        material.run(tmp_path / place / "a")
    paths = [tmp_path / "x" / "a", tmp_path / "y" / "a"]
    assert labels(paths) == ["x/a", "y/a"]
    assert labels([f"one={paths[0]}", f"one={paths[1]}"]) == ["x/one", "y/one"]
    assert labels([f"one={paths[0]}", paths[1]]) == ["one", "a"]
    entries, notes = collect.collect([paths[0], paths[0]])
    assert len(entries) == 1 and "is the same model as" in notes[0]


def test_results_of_other_prompts_or_settings_are_kept_apart_and_other_tasks_joined(tmp_path):
    run = material.run(tmp_path / "a")
    material.diagnose(run / "s", run, which=OWN)
    material.diagnose(run / "s", run, which=OWN, prompts="chains", n=7)
    material.intervened(run / "swap.json", run, sizes=(1,))
    material.intervened(run / "swap4.json", run, sizes=(4,))
    (entry,), notes = collect.collect([run])
    assert set(entry.results["norms"]) == {"arithmetic, 20 prompts", "chains, 7 prompts"}
    (swaps,) = entry.results["intervene swap"].values()
    assert {row["size"] for row in swaps["rows"]} == {1, 4} and notes == []
    shutil.copytree(run / "s", run / "twice")
    assert len(collect.collect([run])[1]) == 4


def test_foreign_files_are_noted_where_found_and_refused_where_named(tmp_path):
    run = material.run(tmp_path / "a")
    (run / "notes.json").write_text('{"a": 1}')
    (run / "cut.json").write_text('{"kind": "Norms", "about"')
    (run / "list.json").write_text("[]")
    entries, notes = collect.collect([run])
    assert len(entries) == 1
    assert sorted(note.split("/")[-1] for note in notes) == [
        "cut.json was skipped: it is not JSON",
        "list.json was skipped: it is not a result of loopjax",
        "notes.json was skipped: it is not a result of loopjax",
    ]
    assert "notes.json was skipped" in written(tmp_path, [run])
    with pytest.raises(
        UserError, match=r"notes.json cannot be read as a result: it is not a result of loopjax"
    ):
        collect.collect([run, run / "notes.json"])


def test_a_path_that_exists_is_a_path_before_it_is_a_label(tmp_path, monkeypatch):
    name = "loop,learning_rate=0.001,seed=1"
    run = material.run(tmp_path / name, material.LIDAS)
    material.saved(run, 6, "8", material.LIDAS)
    monkeypatch.chdir(tmp_path)
    for path in (name, f"{name}@6", f"./{name}@6", str(run)):
        assert labels([path]) == [f"{name}@6" if path.endswith("@6") else name]
    assert labels([f"mine={name}@6"]) == ["mine"]


def damaged(nested: dict, *keys):
    """The content with a text, "x", in place of one value."""
    whole = inner = json.loads(json.dumps(nested))
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = "x"
    return whole


@pytest.mark.parametrize(
    ("file", "keys", "says"),
    [
        ("nll.json", ("rows", 0, "nll"), "rows[0].nll is 'x', not a number"),
        ("nll.json", ("rows", 0, "depth"), "rows[0].depth is 'x', not a depth plan"),
        ("icl.json", ("curves", "copying_real", "rows", 0, "interval", 1),
         "curves.copying_real.rows[0].interval[1] is 'x', not a number"),
        ("eval.json", ("plans", "12", "tasks", "copying_real", "metrics", "acc,none"),
         "plans.12.tasks.copying_real.metrics.acc,none is 'x', not a number"),
        ("swap.json", ("rows", 0, "tasks"), "rows[0].tasks is 'x', not an object"),
        ("signature/norms-arithmetic.json", ("result", "layer"), None),
        ("signature/norms-arithmetic.json", ("result", "layer", 2),
         "layer is not an array of numbers"),
        ("signature/depth_score-arithmetic.json", ("result", "score"),
         "score is 'x', not a number"),
    ],
)  # fmt: skip
def test_a_text_for_a_number_is_told_with_its_file(three, file, keys, says, tmp_path):
    (source,) = (p for p in (three / "standard").rglob("*.json") if str(p).endswith(file))
    path = tmp_path / source.name
    path.write_text(json.dumps(damaged(json.loads(source.read_text()), *keys)))
    with pytest.raises(UserError) as told:
        collect.collect([path])
    start = f"{path} cannot be read as a result: "
    assert str(told.value).startswith(start) and "\n" not in str(told.value)
    assert says is None or str(told.value) == f"{start}it is damaged or incomplete: {says}"


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("result.json", {"heldout": {"nll": "x"}}, "heldout.nll is 'x', not a number"),
        ("result.json", {"steps": True}, "steps is True, not a whole number"),
        ("result.json", {"training_flops": [10**400]}, "training_flops is [1000"),
        ("config.json", {"model": 3}, "model is 3, not an object"),
        ("phases.json", None, "[0].start is 'x', not a whole number"),
        ("metrics.jsonl", None, "[0].eval/nll is 'x', not a number"),
    ],
)
def test_a_damaged_file_of_a_run_is_told(file, content, says, tmp_path):
    run = material.run(tmp_path / "a")
    path = run / file
    if file == "phases.json":
        write_json(path, damaged(material.STANDARD, 0, "start"))
    elif file == "metrics.jsonl":
        path.write_text('{"step": 1, "flops": 2.0, "loss": 1.0, "eval/nll": "x"}\n')
    else:
        write_json(path, json.loads(path.read_text()) | content)
    with pytest.raises(UserError) as told:
        collect.collect([run])
    assert str(told.value).startswith(f"{path} is damaged or incomplete: {says}")


def test_nested_json_is_told_and_leaves_no_page(tmp_path, capsys):
    run = material.run(tmp_path / "a")
    (tmp_path / "nll.json").write_text("[" * 100_000 + "]" * 100_000)
    assert cli.main(["report", str(tmp_path / "r.html"), str(run), str(tmp_path / "nll.json")]) == 2
    says = f"{tmp_path}/nll.json cannot be read as a result: it is nested too deeply"
    assert capsys.readouterr().err == f"loopjax report: {says}\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "nll.json"]


def test_a_report_that_fails_leaves_nothing_behind(tmp_path, capsys):
    run = material.run(tmp_path / "a")
    (tmp_path / "folder").mkdir()
    assert cli.main(["report", str(tmp_path / "folder"), str(run)]) == 2
    says = f"{tmp_path}/folder cannot be written: it is a directory"
    assert capsys.readouterr().err == f"loopjax report: {says}\n"
    argv = ["report", str(tmp_path / "new/deep/r.html"), str(tmp_path / "none")]
    assert cli.main([*argv, "--figures", str(tmp_path / "figures")]) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "folder"]


@pytest.mark.parametrize("nll", [float("nan"), float("inf")])
def test_a_model_without_a_finite_loss_is_shown_as_such(nll, tmp_path):
    run = material.run(tmp_path / "a", nll=nll)
    other = material.run(tmp_path / "b", material.LOOP)
    text = written(tmp_path, [run, other])
    Outline(text)
    assert f'<td data-value="{nll}">{nll}</td>' in text


@pytest.mark.parametrize("path", ["nowhere", "empty", "other"])
def test_no_report_for_nothing(path, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "manifest.json").write_text("{}")
    assert cli.main(["report", "out.html", path]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"loopjax report: {path} is not the directory of a run")
    assert said.count("\n") == 1 and not (tmp_path / "out.html").exists()


def test_a_run_with_checkpoints_is_known_by_its_weights_wherever_it_lies(tmp_path):
    run = material.run(tmp_path / "run", material.LIDAS)
    material.saved(run, 6, "8", material.LIDAS)
    material.saved(run, material.STEPS, "12", material.LIDAS, seed=1)
    last, before = collect.open_model(str(run)), collect.open_model(f"{run}@6")
    assert (last.step, str(last.plan), last.way) == (20, "12", "4 → 8 → 12 (lidas)")
    assert len(last.stages) == 3 and last.training_flops == 2000 and last.seconds == 61
    assert (before.name, str(before.plan), before.way) == ("run@6", "8", "4 → 8 (lidas)")
    assert before.training_flops == 600 and before.seconds == 30 and not before.result
    assert before.weights != last.weights
    material.diagnose(run / "s", run, which=OWN, weights=last.weights)
    material.diagnose(run / "t", run, "8", 8, which={"future"}, weights=before.weights, step=6)
    material.measured(run / "nll.json", run)
    run.rename(tmp_path / "moved")
    entries, notes = collect.collect([tmp_path / "moved"])
    assert [entry.label for entry in entries] == ["moved", "run@6"] and notes == []
    assert [set(entry.results) for entry in entries] == [OWN | {"nll"}, {"future"}]
    assert list(entries[0].model.history) == [10]
    both, _ = collect.collect([tmp_path / "moved", f"half={tmp_path / 'moved'}@6"])
    assert [entry.label for entry in both] == ["moved", "half"]
    assert [set(entry.results) for entry in both] == [OWN | {"nll"}, {"future"}]


def test_an_unfinished_run_is_shown_as_far_as_it_is(tmp_path):
    run = material.run(tmp_path / "run")
    material.saved(run, 10)
    (run / "result.json").unlink()
    (entry,), _ = collect.collect([run])
    assert (entry.label, entry.model.step, entry.nll) == ("run", 10, 2.5)
    assert entry.model.training_flops == 1000 and entry.parameters
    material.saved(run, 15, flops_before=500.0)
    assert collect.open_model(str(run)).training_flops == 2000


def test_a_run_that_ended_by_its_patience_ends_where_it_stopped_and_costs_what_it_began_from(
    tmp_path,
):
    run = material.run(tmp_path / "run")
    result = json.loads((run / "result.json").read_text())
    change = {"steps": 10, "stopped_at": 20, "heldout": {"nll": 2.5}, "flops_before": 500.0}
    (run / "result.json").write_text(json.dumps(result | change))
    model = collect.open_model(str(run))
    steps, _, values = model.curve("eval/nll")
    assert (steps, values) == ((10,), (2.5,)) and model.heldout()["nll"] == 2.5
    assert model.training_flops == 2500.0


def test_the_final_evaluation_is_once_in_a_curve_whether_or_not_it_is_in_a_row():
    rows = [{"step": 10, "flops": 1.0, "eval/nll": 3.0}, {"step": 20, "flops": 2.0}]
    result = {"steps": 20, "training_flops": 2.0, "heldout": {"nll": 2.5}}
    curve = [(10, 20), (1.0, 2.0), (3.0, 2.5)]
    assert run_record.Record(rows=rows, result=result).curve("eval/nll") == curve
    rows[1]["eval/nll"] = 2.5
    assert run_record.Record(rows=rows, result=result).curve("eval/nll") == curve


def test_the_digest_is_that_of_the_results():
    meta = {"checksums": {"params/a": 1, "optimizer/b": 2}}
    same = {"checksums": {"params/a": 1, "optimizer/b": 3}}
    other = {"checksums": {"params/a": 2}}
    assert checkpoint_files.weights_digest(meta) == checkpoint_files.weights_digest(same)
    assert checkpoint_files.weights_digest(meta) != checkpoint_files.weights_digest(other)


def test_all_kinds_of_files_are_read(three):
    kinds = {result.kind for file in reader.below(three / "lidas") for result in reader.read(file)}
    needed = {kind for section in sections() for kind in section.needs}
    assert needed == kinds


# Showing


class Outline(html.parser.HTMLParser):
    """Checks that elements are closed in order, and keeps what tests ask for."""

    VOID = ("meta", "link", "input", "br", "img")

    def __init__(self, text):
        super().__init__()
        self.open, self.figures, self.counts, self.ids = [], [], {}, []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.ids += [attrs["id"]] if "id" in attrs else []
        if tag == "figure":
            self.figures.append({})
        if tag == "svg" and "aria-hidden" not in attrs:
            self.counts["drawing"] = self.counts.get("drawing", 0) + 1
            self.figures[-1]["alt"] = attrs["aria-label"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "figcaption":
            self.figures[-1]["caption"] = data


@pytest.mark.slow
def test_a_page_has_every_section_with_its_sentences(full):
    for section in sections():
        assert f"<h2>{section.title}</h2>" in full
        assert section.shows in full or section.shows.replace("'", "&#x27;") in full
    assert full.count("How to read it:") == len(sections())
    assert "Missing results" not in full and "Skipped files" not in full
    assert "Three &amp; &lt;models&gt;" in full


def test_the_html_is_whole_and_every_figure_says_what_it_is(full):
    outline = Outline(full)
    assert outline.counts["drawing"] == len(numbers_of(full)) >= 17
    assert len(set(outline.ids)) == len(outline.ids)
    for drawn in outline.figures:
        assert drawn["caption"].endswith(".") and len(drawn["caption"]) > 20
        assert drawn.get("alt", "Models: standard, loop, lidas.").endswith("loop, lidas.")
    assert full.count("<text") > 100  # text stays text


def test_nothing_is_loaded_from_elsewhere(full):
    assert "http" not in full and "@import" not in full and "//www" not in full
    sources = re.findall(r'(?:src|href)="([^"]*)"|url\(([^)]*)\)', full)
    assert all(a.startswith(("data:", "#")) or b.startswith("#") for a, b in sources)


def test_a_section_without_data_is_left_out_and_its_command_told(tmp_path):
    run = material.run(tmp_path / "a run")
    material.diagnose(run / "signature", run, which={"norms"})
    material.diagnose(run / "looped", run, "4-4x2-4", 16, which={"norms"})
    text = written(tmp_path, [run])
    assert "<h2>Residual stream</h2>" in text and "<h2>Early exits</h2>" not in text
    place = f"'{run}" if " " in str(run) else str(run)
    for command in (
        f"loopjax analyze --checkpoint {place}' --what depth_score --output {place}/signature'",
        f"loopjax analyze --checkpoint {place}' --depth 4-4x2-4 --what overlap,exit_accuracy "
        f"--output {place}/signature-4-4x2-4'",
        f"loopjax intervene --checkpoint {place}' --op swap --size 1,2,4 --output {place}/swap.json'",
        f"loopjax eval --checkpoint {place}' --tasks paper_suite --output {place}/eval.json'",
        f"loopjax nll --checkpoint {place}' --depth 4-4x2-4 --output {place}/nll-4-4x2-4.json'",
    ):
        assert command.replace("'", "&#x27;") in text
    assert f"nll --checkpoint &#x27;{run}&#x27; --output" not in text


def test_the_commands_that_are_told_can_be_parsed(tmp_path):
    from loopjax.cli.analysis import _analyze_parser, _intervene_parser

    entry = collect.collect([material.run(tmp_path / "a")])[0][0]
    told = [c.split() for lines in page.wanted(entry and [entry]).values() for c in lines]
    assert {words[1] for words in told} == {"analyze", "intervene", "eval", "icl"}
    for _, verb, *flags in told:
        if verb in ("analyze", "intervene"):
            {"analyze": _analyze_parser, "intervene": _intervene_parser}[verb]().parse_args(flags)


def test_a_color_belongs_to_a_model_in_all_figures(tmp_path):
    a, b = material.run(tmp_path / "a"), material.run(tmp_path / "b")
    material.diagnose(b / "signature", b, which={"norms"})
    material.evaluated(a / "eval.json", a)
    text = written(tmp_path, [a, b])
    lines = re.findall(r'<g data-model="(m\d)">.{0,400}?stroke: (var\(--c\w+\))', text, re.S)
    first, second = ({c for m, c in lines if m == model} for model in ("m0", "m1"))
    assert len(first) == len(second) == 1 and first != second
    assert first == {theme.variable(roles.look("standard").color)}
    shades = list(figure.colors(range(24)).values())
    assert len(set(shades)) == 24 and tuple(shades[:8]) == figure.COLORS


def test_colors_follow_the_theme_and_stand_out_in_light_and_dark(full):
    drawings = re.findall(r'<svg role="img".*?</svg>', full, re.S)
    assert len(drawings) == len(numbers_of(full))
    texts = re.findall(r"<text[^>]*>", "".join(drawings))
    # Text on heat maps and boxes has one color in both themes, all other text the page's ink.
    fixed = {color for text in texts for color in re.findall(r"fill: (#\w+)", text)}
    assert fixed <= {"#fefefe", "#010101", "#1f2938"} and len(texts) > 100
    assert not re.search(r"(fill|stroke): (#1f2937|#e5e7eb|#000000|#ffffff)", "".join(drawings))
    light, *dark, printed = re.findall(r":root[^{]*{ color-scheme: (?:light|dark);([^}]*)}", full)
    assert len(dark) == 2 and dark[0] == dark[1] and printed == light != dark[0]
    used = set(re.findall(r"var\((--[\w-]+)\)", full))
    for rules, least in ((light, 3), (dark[0], 4.5)):
        values = dict(re.findall(r"(--[\w-]+): ([^;]+);", rules))
        assert used <= values.keys()
        for name in used:
            if name.startswith("--c") and name != "--code":
                assert theme.contrast(values[name], values["--paper"]) >= least, name
        assert theme.contrast(values["--ink"], values["--paper"]) > 10
        assert theme.contrast(values["--soft"], values["--paper"]) > 4.5


def test_figures_with_one_legend_in_a_row_show_it_once_and_the_drawing_has_none(tmp_path):
    run = material.run(tmp_path / "a")
    material.diagnose(run / "s", run, which={"norms"})
    material.diagnose(run / "s", run, which={"norms"}, prompts="chains", n=7)
    section = re.search(r"<h2>Residual stream</h2>.*?</section>", written(tmp_path, [run]), re.S)[0]
    assert section.count('role="img"') == 2 and section.count('<ul class="keys">') == 1
    assert re.search(
        r'<li data-model="m0"><svg class="key".*?<span data-model=m0>a</span>', section
    )


def test_figures_and_tables_are_reached_by_the_keyboard_and_named(full):
    assert full.count('class="drawing" tabindex="0" role="group" aria-label="') == len(
        numbers_of(full)
    )
    for heading, word in re.findall(r'<a href="#(s\d+)">([^<]*)</a>', full):
        assert f'id="{heading}"' in full and f">{word}</h2>" in full
    assert '<html lang="en">' in full and 'href="#main"' in full and '<main id="main">' in full


def test_numbers_lie_where_the_figure_draws_them(full):
    for key, drawn in numbers_of(full).items():
        svg_text = re.search(rf'<figure id="{key}".*?</figure>', full, re.S)[0]
        for axis in drawn["axes"]:
            left, top, right, bottom = axis["box"]
            (x0, x1, _), (y0, y1, _) = axis["x"], axis["y"]
            for line in (line for line in axis["lines"] if "points" in line):
                x, y = (values[-1] for values in line["points"])
                if y is None or not y0 <= y <= y1:
                    continue
                at = (left + (x - x0) / (x1 - x0) * (right - left),
                      bottom - (y - y0) / (y1 - y0) * (bottom - top))  # fmt: skip
                ends = re.findall(
                    rf'data-model="{line["model"]}">\s*<path d="[^"]*?([\d.]+) ([\d.]+)\s*"',
                    svg_text,
                )
                # Models at one place are drawn up to 10 points beside it.
                gaps = [(abs(float(a) - at[0]) - 10, abs(float(b) - at[1])) for a, b in ends]
                assert min(map(max, gaps)) < 0.5, (key, axis["title"], line["label"])


def test_cycles_and_depth_scores_are_numbers_of_the_page(full):
    rows = re.findall(r"<tr data-model=.*?</tr>", full)
    loop = next(row for row in rows if "mean of a column" in row and ">loop<" in row)
    assert '<td data-value="4">4</td>' in loop and '<td data-value="3">3</td>' in loop
    assert re.search(r"Depth scores.*", full) and "3.25" in full and "3.35" in full


def test_a_model_without_costs_is_in_no_panel_of_them(tmp_path):
    run = material.run(tmp_path / "a")
    material.evaluated(run / "eval.json", run)
    for name, plan in (("x", "12"), ("y", "4x3")):
        material.evaluated(tmp_path / f"{name}.json", tmp_path / name, plan, value=0.7)
    text = written(tmp_path, [run, tmp_path / "x.json", tmp_path / "y.json"])
    drawn = numbers_of(text)
    spots = [axis for one in drawn.values() for axis in one["axes"] if axis["lines"][:1]
             and "spot" in axis["lines"][0]]  # fmt: skip
    panels = {axis["xlabel"]: [line["label"] for line in axis["lines"]] for axis in spots}
    assert panels == {"unique parameters": ["a", "x@20", "y@20 at 4x3"]}
    # Of what is equal for all there is a sentence instead of a panel.
    assert "without a panel: inference FLOPs per token (" in text


def test_long_lines_keep_their_extremes(tmp_path):
    run = material.run(tmp_path / "a")
    rows = [{"step": s, "loss": 2.0, "flops": 1.0 * s, "eval/nll": 2.0} for s in range(1, 5001)]
    rows[1234]["eval/nll"], rows[4321]["eval/nll"] = 9.0, 0.5
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = written(tmp_path, [run])
    assert "points are thinned; extremes are kept" in text
    x, y = numbers_of(text)["f1"]["axes"][0]["lines"][0]["points"]
    assert len(x) <= svg.POINTS and max(y) == 9.0 and min(y) == 0.5 and x[y.index(9.0)] == 1235


@pytest.mark.slow
def test_a_label_may_hold_anything(tmp_path):
    run = material.run(tmp_path / "a")
    material.diagnose(run / "s", run, which=OWN)
    text = written(tmp_path, [f'<b>"x" & <i>={run}'])
    Outline(text)
    assert "<b>&quot;" not in text and '<b>"' not in text
    assert numbers_of(text)["f1"]["axes"][0]["lines"][0]["label"] == '<b>"x" & <i>'
    # Neither the end of the page's script nor a formula of matplotlib.
    for label in ("<!--<script>", "$\\frac{$ a$ $"):
        text = written(tmp_path, [f"{label}={run}"])
        Outline(text)
        assert numbers_of(text)["f1"]["axes"][0]["lines"][0]["label"] == label
        inside = re.search(r'id="numbers">(.*?)</script>', text, re.S)[1]
        assert "<" not in inside


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A run with one diagnostic."""
    run = material.run(tmp_path_factory.mktemp("small") / "lidas", material.LIDAS)
    material.diagnose(run / "signature", run, which={"depth_score"})
    return run


def test_figures_are_written_for_publication_too(small, tmp_path, capsys):
    argv = ["report", str(tmp_path / "r.html"), str(small), "--title", "Mine"]
    assert cli.main([*argv, "--figures", str(tmp_path / "figures")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'r.html'}\n"
    assert "<title>Mine</title>" in (tmp_path / "r.html").read_text()
    names = {path.stem for path in (tmp_path / "figures").glob("*.pdf")}
    assert names == {path.stem for path in (tmp_path / "figures").glob("*.png")}
    assert names == {"lineage", "training", "mixture", "depth_score-arithmetic-20-prompts"}
    for path in (tmp_path / "figures").iterdir():
        assert path.read_bytes()[:4] in (b"%PDF", b"\x89PNG")


def test_groups_have_their_own_models_and_titles(small, tmp_path):
    loop = material.run(tmp_path / "loop", material.LOOP)
    groups = [
        page.Group("First", "some <b>text</b>", [loop], accuracies=(("web", "of web"),)),
        page.Group("Second", "", [small], metric="loss", label="the loss", wanted=False),
    ]
    page.write_report(tmp_path / "r.html", groups)
    text = (tmp_path / "r.html").read_text()
    assert ">First</h2>\n<p>some <b>text</b></p>" in text and "<h3>Models</h3>" in text
    assert text.index(">First</h2>") < text.index(">Second</h2>") and "The loss, and" in text
    assert text.count(">Missing results</h3>") == 1
    models_of = {
        line["model"] for one in numbers_of(text).values() for axis in one["axes"]
        for line in axis["lines"]
    }  # fmt: skip
    assert models_of == {"m0", "m1"}


def test_a_page_needs_matplotlib_and_a_place(small, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    group = page.Group("", "", [small])
    with pytest.raises(UserError, match=r"file/r.html cannot be written: "):
        page.write_report(tmp_path / "file" / "r.html", [group])
    with pytest.raises(UserError, match=r"--figures .*file/f cannot be written: Not a directory"):
        page.write_report(tmp_path / "r.html", [group], figures=tmp_path / "file" / "f")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match="a report needs matplotlib"):
        page.write_report(tmp_path / "r.html", [group])


@pytest.mark.slow
def test_a_page_does_not_need_the_harness(three, tmp_path):
    """Results that were computed elsewhere can be looked at without `loopjax[eval]`."""
    import subprocess

    code = (
        "import sys; sys.modules['lm_eval'] = None\n"
        "from loopjax.cli import main as cli; sys.exit(cli.main(sys.argv[1:]))"
    )
    argv = [sys.executable, "-c", code, "report", str(tmp_path / "r.html"), str(three / "loop")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "Layer interventions" in (tmp_path / "r.html").read_text()
