"""Figures: models look alike in all of them, and what a reader could miss is marked."""

import importlib
import json
import pathlib
from types import SimpleNamespace

import numpy as np
import pytest

from loopjax.data.floors import floors
from loopjax.plots import accuracy, diagnostics, figure, roles, runs, spread

ROOT = pathlib.Path(__file__).resolve().parent.parent
TASK = "hop_text_4"
MODELS = ("standard", "lidas", "loop", "middle loop")


def intervened(op: str, times=None, value: float = 0.6) -> dict:
    found = {"accuracy": value, "stderr": 0.02}
    rows = [
        {"size": 2, "start": start, "times": times, "tasks": {TASK: found}} for start in range(4)
    ]
    return {
        "settings": {"op": op}, "metrics": {TASK: "acc"}, "chance": {TASK: 0.25},
        "unmodified": {TASK: {"accuracy": 0.8}}, "rows": rows,
    }  # fmt: skip


def norms(first: float = 9.0) -> SimpleNamespace:
    return SimpleNamespace(**{name: np.array([first, 1, 2, 1]) for name in diagnostics.NORMS})


def exits() -> SimpleNamespace:
    return SimpleNamespace(
        tasks=(TASK,), accuracy=np.array([[0.5, 0.6, 0.7]]), unmodified=np.array([0.8])
    )


def shots() -> dict:
    rows = [{"shots": k, "accuracy": 0.6, "interval": [0.5, 0.7]} for k in (0, 1)]
    return {"curves": {TASK: {"rows": rows}}, "chance": {TASK: 0.25}}


def trade_off(models, metric, floor=None):
    fig, (axis,) = figure.grid(1, 1, 3.2, 2.7)
    values, costs = dict.fromkeys(models, 0.7), dict.fromkeys(models, 1e9)
    figure.legend(fig, runs.draw_trade_off(axis, values, costs, metric, floor=floor))
    return fig


ACCURACIES = {
    "interventions": lambda: accuracy.plot_interventions(dict.fromkeys(MODELS, intervened("skip"))),
    "exits": lambda: accuracy.plot_exit_accuracy(dict.fromkeys(MODELS, exits())),
    "shots": lambda: accuracy.plot_icl(dict.fromkeys(MODELS, shots())),
    "examples": lambda: accuracy.plot_finetuning(
        {role: {8: {TASK: [0.5, 0.6]}, 64: {TASK: [0.7, 0.8]}} for role in MODELS}
    ),
    "training": lambda: runs.plot_training(
        [runs.Row("", "accuracy", dict.fromkeys(MODELS, ([1, 2], [1, 2], [0.6, 0.7])), task=TASK)]
    ),
    "costs": lambda: trade_off(MODELS, "accuracy", floors(TASK)),
}
OTHERS = {
    "norms": lambda: diagnostics.plot_norms(dict.fromkeys(MODELS, norms())),
    "depth": lambda: diagnostics.plot_depth_score(
        dict.fromkeys(MODELS, SimpleNamespace(score=1.5, effect=np.ones(4)))
    ),
}


@pytest.mark.parametrize("name", [*ACCURACIES, *OTHERS])
def test_a_role_has_one_color_and_marker_in_every_figure(name):
    fig = (ACCURACIES | OTHERS)[name]()
    for role in MODELS:
        look = roles.look(role)
        lines = [line for line in fig.axes[0].lines if line.get_label() == role]
        assert {(line.get_color(), line.get_marker()) for line in lines} == {
            (look.color, look.marker)
        }


@pytest.mark.parametrize("name", ACCURACIES)
def test_chance_and_the_best_trivial_rule_are_drawn_where_accuracies_are(name):
    fig = ACCURACIES[name]()
    axis = fig.axes[0]
    dotted = [line for line in axis.lines if line.get_linestyle() == ":"]
    assert [line.get_ydata()[0] for line in dotted] == [0.25]
    tops = [patch.get_y() + patch.get_height() for patch in axis.patches]
    assert tops == [pytest.approx(0.51, abs=0.03)]
    low, high = axis.get_ylim()
    assert low < 0.25 and high < 1.02, "the axis shows the floors, and no more than it needs"
    texts = [text.get_text() for text in fig.legends[0].get_texts()]
    assert any(text.startswith("repeat the last letter") for text in texts)


def test_models_with_equal_numbers_are_drawn_side_by_side_and_keep_their_numbers():
    axis = accuracy.plot_icl(dict.fromkeys(MODELS, shots())).axes[0]
    lines = [line for line in axis.lines if line.get_gid()]
    assert all(line.get_xdata().tolist() == [0, 1] for line in lines)
    pixels = [line.get_transform().transform(line.get_xydata())[0] for line in lines]
    gaps = np.diff([x for x, _ in pixels]) * 72 / axis.figure.dpi
    assert gaps == pytest.approx([figure.STEP] * 3)
    assert np.ptp([y for _, y in pixels]) < 1e-6


def test_dashes_of_unmodified_models_at_one_place_take_turns():
    axis = accuracy.plot_interventions(dict.fromkeys(MODELS[:2], intervened("skip"))).axes[0]
    dashes = [line for line in axis.lines if line.get_ydata()[0] == 0.8]
    patterns = [line._unscaled_dash_pattern for line in dashes]
    assert patterns == [(0, (4, 4)), (4, (4, 4))]


@pytest.mark.parametrize(
    "op, times, text",
    [
        ("swap", None, "swap blocks of 2 layers"),
        ("skip", None, "skip 2 layers"),
        ("repeat", 1, "repeat 2 layers once more"),
        ("repeat", 3, "repeat 2 layers 3 times more"),
    ],
)
def test_a_panel_says_what_was_done_and_has_ticks_where_it_was_done(op, times, text):
    fig = accuracy.plot_interventions({"lidas": intervened(op, times)})
    axis = fig.axes[0]
    assert axis.get_title(loc="left") == f"{TASK}\n{text}"
    assert axis.get_xticks().tolist() == [0, 1, 2, 3]
    texts = [one.get_text() for one in fig.legends[0].get_texts()]
    assert "unmodified model" in texts
    assert "one model of each" in fig.legends[0].get_title().get_text()


def test_values_beyond_an_axis_are_marked_at_its_edge():
    fig = diagnostics.plot_norms({"standard": norms(), "lidas": norms(1.5)})
    axis = next(a for a in fig.axes if a.get_title(loc="left") == "attention / residual")
    carets = [line for line in axis.lines if line.get_marker() == 6]
    assert [(line.get_gid(), *line.get_xydata().tolist()) for line in carets] == [
        ("standard", [0, 1])
    ]
    assert axis.get_ylim()[1] < 9
    assert "beyond the axis" in [one.get_text() for one in fig.legends[0].get_texts()]


def test_edges_of_blocks_are_lines_where_models_share_them_and_ticks_where_not():
    blocks = {"lidas": [2], "loop": [2], "middle loop": [1, 3]}
    results = dict.fromkeys(("standard", *blocks), norms())
    fig = diagnostics.plot_norms(results, blocks=blocks)
    axis = fig.axes[0]
    assert [line.get_xdata()[0] for line in axis.lines if line.get_gid() is None] == [1.5]
    (ticks,) = (one for one in axis.collections if one.get_gid() == "middle loop")
    assert [path.vertices[0][0] for path in ticks.get_paths()] == [0.5, 2.5]


def test_cells_without_a_value_are_white_and_those_above_the_scale_are_marked():
    matrix = np.triu(np.ones((8, 8)))
    matrix[0, 1] = 50
    fig = diagnostics.plot_future_local({"loop": SimpleNamespace(matrix=matrix)})
    (image,) = fig.axes[0].images
    shown = np.ma.filled(np.ma.asarray(image.get_array(), float), np.nan)
    assert np.isnan(shown[np.tril_indices(8)]).all() and not np.isnan(shown[0, 1])
    assert image.cmap.get_bad().tolist() == [1, 1, 1, 1]
    assert image.get_clim()[1] < 50
    assert [line.get_xydata().tolist() for line in fig.axes[0].lines] == [[[1, 0]]]


def test_seeds_are_a_mean_and_a_standard_deviation():
    assert spread.of([1.0, 3.0]) == (2.0, 2**0.5, 2)
    assert spread.of({"mean": 2.0, "deviation": 0.5, "n": 3}) == (2.0, 0.5, 3)
    assert spread.ends([spread.of([1.0, 3.0]), spread.of(4.0)]) == (
        [2 - 2**0.5, 4.0], [2 + 2**0.5, 4.0],
    )  # fmt: skip
    assert spread.note([3, 3]).startswith("means of 3 seeds")
    several = {"lidas": [norms(), norms(3.0)]}
    (line, *_) = diagnostics.plot_norms(several).axes[0].lines
    assert line.get_ydata().tolist() == [6, 1, 2, 1]


@pytest.mark.parametrize(
    "metric, arrow",
    [("held-out NLL (nats per byte)", "↙"), ("accuracy", "↖"), ("executed layers", "")],
)
def test_a_trade_off_says_where_models_are_better(metric, arrow):
    fig = trade_off(["loop"], metric)
    assert fig.axes[0].get_title(loc="right").removeprefix("better ") == arrow


@pytest.mark.parametrize(
    "path", sorted((ROOT / "docs/results").glob("*.json")), ids=lambda p: p.stem
)
def test_stored_numbers_are_drawn_again(path, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    record = json.loads(path.read_text())
    if "data" not in record:
        pytest.skip("only its table is stored")
    everything = importlib.import_module("everything")
    (tmp_path / path.name).write_text(path.read_text())
    drawn = everything.redraw(tmp_path)
    assert {*drawn} <= {*record["figures"]} and drawn[0] == path.stem
    assert all((tmp_path / f"{name}.png").stat().st_size > 5000 for name in drawn)


def test_models_beside_a_role_do_not_take_its_color_or_marker():
    found = figure.looks(["lidas", "grown at once", "middle loop", "other"])
    assert found["lidas"] == roles.look("lidas")
    assert len({one.color for one in found.values()}) == len(found)
    assert len({one.marker for one in found.values()}) == len(found)
