"""The page in a real browser: pointing, keys, hiding, sorting."""

import functools
import html
import json
import re
import shutil
import subprocess

import pytest

from loopjax.report import page
from tests import report_material as material

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason=f"none of {', '.join(BROWSERS)} is there")

# Before everything else: whatever goes wrong is kept. After it: what a test does, and what it sees.
WATCH = """<script>
window.wrong = [];
addEventListener("error", (event) => wrong.push(event.message));
console.error = console.warn = (...said) => wrong.push(said.join(" "));
</script>"""
ACT = """<script>
const seen = {};
const tip = document.getElementById("tip");
const said = () => tip.hidden ? null : {
  head: tip.querySelector("b").textContent,
  rows: [...tip.querySelectorAll("div")].map((row) => [...row.children].map((part) => part.textContent)),
};
function point(key, box, x, y) {
  const svg = document.querySelector(`#${key} .drawing svg`);
  svg.scrollIntoView({ block: "center" });
  const [left, top, right, bottom] = box;
  const at = new DOMPoint(left + x * (right - left), top + y * (bottom - top)).matrixTransform(svg.getScreenCTM());
  svg.dispatchEvent(new PointerEvent("pointermove", { clientX: at.x, clientY: at.y, bubbles: true }));
  return said();
}
function press(key, name) {
  document.querySelector(`#${key} .drawing`).dispatchEvent(new KeyboardEvent("keydown", { key: name }));
  return said();
}
const shownOf = (model) => [...document.querySelectorAll(`[data-model=${model}]`)]
  .filter((part) => getComputedStyle(part).display !== "none").length;
try { ACTION } catch (error) { wrong.push(String(error)); }
const out = document.createElement("pre");
out.id = "seen";
out.textContent = JSON.stringify({ ...seen, wrong: window.wrong ?? [] });
document.body.append(out);
</script>"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A page of three models with a few results of every form of picture."""
    place = tmp_path_factory.mktemp("page")
    kinds = {"standard": material.STANDARD, "loop": material.LOOP, "lidas": material.LIDAS}
    for k, (name, phases) in enumerate(kinds.items()):
        run, plan = material.run(place / name, phases, 2 + k / 10), phases[-1]["plan"]
        which = {"norms", "future_local"}
        material.diagnose(run / "signature", run, plan, shift=k / 10, which=which)
        material.evaluated(run / "eval.json", run, plan, 0.5 + k / 10)
    page.write_report(place / "r.html", [page.Group("", "", [place / name for name in kinds])])
    return place


@pytest.fixture(scope="module")
def numbers(place):
    return json.loads(re.search(r'id="numbers">(.*?)</script>', (place / "r.html").read_text())[1])


@pytest.fixture
def act(place, tmp_path):
    return functools.partial(_act, (place / "r.html").read_text(), tmp_path)


def _act(text, folder, action, scripts=True):
    """What a script sees that runs at the end of the page; without the page's own on demand."""
    if not scripts:
        text = re.sub(r"<script.*?</script>", "", text, flags=re.S)
    text = text.replace("<head>", "<head>" + WATCH).replace(
        "</body>", ACT.replace("ACTION", action) + "</body>"
    )
    (folder / "page.html").write_text(text)
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1300,900",
        f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=3000", "--dump-dom",
        (folder / "page.html").as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.S)[1]
    for name, sign in (("lt", "<"), ("gt", ">"), ("amp", "&")):
        found = found.replace(f"&{name};", sign)
    seen = json.loads(found)
    assert seen.pop("wrong") == []
    return seen


def panel(numbers, title=None, xlabel=None):
    """(id of the figure, its axis) of the first panel of that title or label."""
    return next(
        (key, axis)
        for key, one in numbers.items()
        for axis in one["axes"]
        if axis["title"] == title or axis["xlabel"] == xlabel
    )


def values(axis, place):
    return [dict(zip(*line["points"], strict=True))[place] for line in axis["lines"]]


def test_pointing_at_a_curve_tells_the_values_of_all_models(act, numbers):
    key, axis = panel(numbers, "attention / residual")
    low, high, _ = axis["x"]
    where = (7 - low) / (high - low) + 0.01
    seen = act(f"seen.at = point('{key}', {axis['box']}, {where}, 0.5);"
               f"seen.marks = document.querySelectorAll('.mark').length;"
               f"document.querySelector('#{key} .drawing svg').dispatchEvent(new PointerEvent('pointerleave'));"
               "seen.after = said();")  # fmt: skip
    assert seen["at"]["head"] == "executed layer 7" and seen["marks"] == 1
    assert [name for name, _ in seen["at"]["rows"]] == ["standard", "loop", "lidas"]
    told = [float(text) for _, text in seen["at"]["rows"]]
    assert told == pytest.approx(values(axis, 7), rel=1e-3) and len(set(told)) == 3
    assert seen["after"] is None


def test_pointing_at_a_heat_map_tells_the_cell(act, numbers):
    key, axis = panel(numbers, "loop")
    seen = act(
        f"seen.cell = point('{key}', {axis['box']}, {6.4 / 12}, {3.6 / 12});"
        f"seen.zero = point('{key}', {axis['box']}, {0.5 / 12}, {11.5 / 12});"
    )
    matrix = axis["images"][0]["values"]
    assert seen["cell"]["head"] == "loop" and matrix[3][6] > 1
    assert [text for _, text in seen["cell"]["rows"]] == ["3", "6", f"{matrix[3][6]:g}"]
    assert [text for _, text in seen["zero"]["rows"]] == ["11", "0", "–"]


def test_pointing_at_a_trade_off_tells_the_nearest_model(act, numbers):
    key, axis = panel(numbers, xlabel="unique parameters")
    seen = act(f"seen.at = point('{key}', {axis['box']}, 0.02, 0.5);")
    assert seen["at"]["head"] == "loop"
    assert [text for _, text in seen["at"]["rows"]] == ["400", "2.1"]


def test_a_hidden_model_is_hidden_everywhere_and_told_no_more(act, numbers):
    key, axis = panel(numbers, "attention / residual")
    heat, first = panel(numbers, "loop")
    seen = act(
        "seen.before = ['m0', 'm1', 'm2'].map(shownOf);"
        "document.getElementById('m1').click();"
        "seen.hidden = ['m0', 'm1', 'm2'].map(shownOf);"
        f"seen.at = point('{key}', {axis['box']}, 0.5, 0.5);"
        f"seen.cell = point('{heat}', {first['box']}, 0.5, 0.5);"
        "document.getElementById('m1').click();"
        "seen.again = ['m0', 'm1', 'm2'].map(shownOf);"
    )
    assert min(seen["before"]) > 20 and seen["again"] == seen["before"]
    assert seen["hidden"] == [seen["before"][0], 0, seen["before"][2]]
    assert [name for name, _ in seen["at"]["rows"]] == ["standard", "lidas"]
    assert seen["cell"] is None


def test_figures_can_be_read_by_keys(act, numbers):
    key, _ = panel(numbers, "attention / residual")
    heat, _ = panel(numbers, "standard")
    seen = act(
        f"seen.first = press('{key}', 'ArrowRight'); seen.second = press('{key}', 'ArrowRight');"
        f"seen.panel = press('{key}', 'PageDown'); seen.none = press('{key}', 'Escape');"
        f"press('{heat}', 'ArrowDown'); press('{heat}', 'ArrowDown');"
        f"seen.cell = press('{heat}', 'ArrowRight');"
        f"seen.focus = document.querySelector('#{key} .drawing').tabIndex;"
    )
    assert [seen[k]["head"] for k in ("first", "second")] == [
        "executed layer 0",
        "executed layer 1",
    ]
    assert seen["panel"]["head"] == "executed layer 1" and seen["none"] is None
    assert [text for _, text in seen["cell"]["rows"]] == ["1", "1", "–"]
    assert seen["focus"] == 0


def test_a_table_is_sorted_by_a_click(act):
    seen = act(
        "const table = document.querySelector('figure.table table');"
        "const names = () => [...table.tBodies[0].rows].map((row) => row.cells[0].textContent);"
        "const head = [...table.tHead.rows[0].cells].find((c) => c.textContent === 'held-out NLL');"
        "seen.before = names(); head.querySelector('button').click(); seen.up = names();"
        "seen.sort = head.getAttribute('aria-sort');"
        "head.querySelector('button').click(); seen.down = names();"
    )
    assert seen["before"] == seen["up"] == ["standard", "loop", "lidas"]
    assert seen["sort"] == "ascending" and seen["down"] == ["lidas", "loop", "standard"]


def test_without_javascript_all_figures_and_tables_are_there_and_models_can_be_hidden(act, numbers):
    seen = act(
        "seen.figures = [...document.querySelectorAll('.drawing svg')]"
        ".map((svg) => svg.getBoundingClientRect().height);"
        "seen.tables = [...document.querySelectorAll('figure.table table')]"
        ".map((table) => table.getBoundingClientRect().height);"
        "seen.hint = document.querySelector('.hint').hidden;"
        "seen.before = shownOf('m2'); document.getElementById('m2').click();"
        "seen.after = shownOf('m2');",
        scripts=False,
    )
    assert len(seen["figures"]) == len(numbers) and min(seen["figures"]) > 100
    assert len(seen["tables"]) == 4 and min(seen["tables"]) > 60
    assert seen["hint"] and seen["before"] > 20 and seen["after"] == 0


def test_the_button_changes_the_theme_and_the_choice_is_remembered(act):
    seen = act(
        "const colors = () => [getComputedStyle(document.body).backgroundColor,"
        " getComputedStyle(document.querySelector('.drawing text')).fill];"
        "const button = document.getElementById('theme');"
        "seen.before = colors(); seen.label = button.textContent; button.click();"
        "seen.after = colors(); seen.other = button.textContent;"
        "seen.stored = localStorage.getItem('theme'); localStorage.removeItem('theme');"
    )
    assert seen["before"][0] != seen["after"][0] and seen["before"][1] != seen["after"][1]
    assert {seen["label"], seen["other"]} == {"Dark page", "Light page"}
    assert seen["stored"] == seen["label"].split()[0].lower()


@pytest.mark.parametrize("width", [360, 768])
def test_a_narrow_page_scrolls_figures_and_tables_and_not_itself(width, place, tmp_path):
    inner = html.escape((place / "r.html").read_text())
    text = (
        f'<html><head></head><body><iframe style="width:{width}px;height:900px" srcdoc="{inner}">'
        "</iframe></body></html>"
    )
    seen = _act(text, tmp_path, """
      document.querySelector('iframe').addEventListener('load', ({ target }) => {
        const page = target.contentDocument, root = page.documentElement;
        const sizes = [...page.querySelectorAll('.drawing text')].map((t) => t.getBoundingClientRect().height);
        const table = page.querySelector('figure.table .wide');
        table.scrollLeft = 1000;
        const head = table.querySelector('tbody th').getBoundingClientRect().left;
        Object.assign(seen, {
          page: root.scrollWidth - root.clientWidth, smallest: Math.min(...sizes.filter(Boolean)),
          moved: table.scrollLeft, stays: Math.abs(head - table.getBoundingClientRect().left),
        });
        document.getElementById('seen').textContent = JSON.stringify({ ...seen, wrong });
      });""")  # fmt: skip
    assert seen["page"] == 0
    assert seen["smallest"] > 8.5  # pixels
    assert seen["stays"] < 1 and (seen["moved"] > 100 or width > 400)


@pytest.mark.parametrize("label", ["<!--<script>", "<script>x"])
def test_a_label_does_not_end_the_scripts_of_the_page(label, place, tmp_path):
    page.write_report(tmp_path / "r.html", [page.Group("", "", [f"{label}={place / 'loop'}"])])
    text = (tmp_path / "r.html").read_text()
    seen = _act(text, tmp_path, "seen.buttons = document.querySelectorAll('button').length;"
                "seen.label = document.querySelector('label').textContent;")  # fmt: skip
    assert seen["buttons"] > 0 and seen["label"].strip() == label
