"""Figures of accuracies: against shots, training examples, edited layers, exits.

A model is one result, or a list of the results of its seeds, which are drawn as mean and standard
deviation. Below the gray area of each panel are rules that do not do the task (`data.floors`).
"""

import numpy as np

from loopjax.data.floors import floors
from loopjax.plots import figure, spread
from loopjax.plots.spread import several

COLUMNS = 4  # panels side by side, at most
DASHES = ("-", "--", ":", "-.")  # line styles of lines in one color
# Titles of the panels of an intervention: one layer, several ones; and the name of the axis.
EDITS = {
    "swap": (
        "swap two layers",
        "swap blocks of {n} layers",
        "first swapped layer",
    ),
    "skip": ("skip one layer", "skip {n} layers", "first skipped layer"),
    "reverse": ("reverse one layer", "reverse {n} layers", "first reversed layer"),
    "repeat": ("repeat one layer", "repeat {n} layers", "first repeated layer"),
}
MORE = {1: "once", 2: "twice"}
ITEMS = "one model of each; bars: 95% intervals over the items"


def plot_icl(results: dict, colors: dict | None = None):
    """Accuracy with its interval against the number of shots; a panel for each task.

    A result is what `loopjax icl` writes: {"curves": {task: {"rows": [...], ...}}, "chance": {task:
    accuracy}, ...}.
    """
    results = {label: several(result) for label, result in results.items()}
    tasks = _union(one["curves"] for each in results.values() for one in each)
    fig, axes = figure.grid(len(tasks), 3, *_size(len(tasks)))
    looks, shifts, lines = figure.looks(results, colors), figure.shifts(results), {}
    for axis, task in zip(axes, tasks, strict=True):
        shown = set()
        for label, seeds in results.items():
            rows = _by_shots(
                [one["curves"][task]["rows"] for one in seeds if task in one["curves"]]
            )
            if not rows:
                continue
            if len(seeds) == 1:
                values = [found[0]["accuracy"] for found in rows.values()]
                ends = zip(*(found[0]["interval"] for found in rows.values()), strict=True)
            else:
                spreads = [spread.of([row["accuracy"] for row in f]) for f in rows.values()]
                values, ends = [one.mean for one in spreads], spread.ends(spreads)
            about = {"ends": ends, "shift": shifts[label]}
            lines[label] = figure.curve(axis, list(rows), values, label, looks[label], **about)
            shown |= rows.keys()
        _panel(axis, task, "shots")
        figure.ticks(axis, shown)
        axis.margins(x=0.08 if len(shown) > 2 else 0.35)
        lines |= _floors(axis, task, _chance(results, task))
    figure.labels(axes[0], "shots", "accuracy")
    figure.legend(fig, _last(lines, results), spread.note(map(len, results.values()), ITEMS))
    return fig


def _by_shots(curves: list[list[dict]]) -> dict[int, list[dict]]:
    """{shots: the row of each seed}, for numbers of shots that all seeds have."""
    tables = [{row["shots"]: row for row in rows} for rows in curves]
    common = sorted(set.intersection(*map(set, tables))) if tables else []
    return {shots: [table[shots] for table in tables] for shots in common}


def plot_finetuning(
    results: dict,
    colors: dict | None = None,
    owners: dict | None = None,
    counted: str = "training examples",
):
    """Mean accuracy after fine-tuning against the number of examples; a panel for each task.

    Args:
      results: {label: {examples: {task: values}}}: the value of each run, or what `spread.of` takes.
        The runs of a mean differ in their seed. A label without values for a task has no line in
        its panel.
      colors: {label: look or color}; lines of one color differ in their dashes.
      owners: {label: label of the model that the line belongs to}; its own label by default.
      counted: what the numbers of examples are, the name of the axis.
    """
    tasks = _union(scores for by_n in results.values() for scores in by_n.values())
    fig, axes = figure.grid(len(tasks), 3, *_size(len(tasks)))
    looks, shifts, lines = figure.looks(results, colors), figure.shifts(results), {}
    counts = sorted({n for by_n in results.values() for n in by_n})
    used = [(looks[label].color, looks[label].linestyle) for label in results]
    dashes = {
        label: DASHES[same % len(DASHES)]
        for k, label in enumerate(results)
        if (same := used[:k].count(used[k]))
    }
    seeds = []
    for axis, task in zip(axes, tasks, strict=True):
        for label, by_n in results.items():
            values = {n: scores[task] for n, scores in sorted(by_n.items()) if scores.get(task)}
            if not values:
                continue
            spreads = list(map(spread.of, values.values()))
            seeds += [one.n for one in spreads]
            style = {"linestyle": dashes[label]} if label in dashes else {}
            lines[label] = figure.curve(
                axis, list(values), [one.mean for one in spreads], label, looks[label],
                ends=spread.ends(spreads), shift=shifts[label],
                owner=(owners or {}).get(label, label), **style,
            )  # fmt: skip
        _panel(axis, task, counted)
        if counts[0] > 0 and len(counts) > 2:
            axis.set_xscale("log")
        figure.ticks(axis, counts)
        axis.margins(x=0.08 if len(counts) > 2 else 0.35)
        lines |= _floors(axis, task)
    figure.labels(axes[0], counted, "accuracy")
    figure.legend(fig, _last(lines, results), spread.note(seeds))
    return fig


def plot_interventions(results: dict, colors: dict | None = None):
    """Accuracy against the start of the edited sub-block: a panel for each task and edit.

    A result is what `loopjax intervene` writes, all of one operation. The unmodified model is a
    dashed line in its color.
    """
    results = {label: several(result) for label, result in results.items()}
    every = [one for seeds in results.values() for one in seeds]
    panels = _union(
        ((task, *_edit(row)) for task in result["metrics"] for row in result["rows"])
        for result in every
    )
    tasks = _union(result["metrics"] for result in every)
    panels.sort(key=lambda panel: (tasks.index(panel[0]), panel[1], panel[2] or 0))
    # The sizes of a task are side by side, and so are tasks if there is room.
    per_task = len(panels) // len(tasks)
    columns = min(max(1, COLUMNS // per_task) * per_task if per_task else 1, COLUMNS, len(panels))
    fig, axes = figure.grid(len(panels), columns, min(4.2, max(10 / columns, 2.9)), 2.4, 0.4)
    looks, lines = figure.looks(results, colors), {}
    for axis, panel in zip(axes, panels, strict=True):
        lines |= _edited(axis, panel, results, looks)
    for task in tasks:
        same = [axis for axis, panel in zip(axes, panels, strict=True) if panel[0] == task]
        low = min(axis.dataLim.y0 for axis in same)
        high = max(axis.dataLim.y1 for axis in same)
        for axis in same:
            lines |= _floors(axis, task, _chance(results, task), low, high)
    for axis in axes[::columns]:
        axis.set_ylabel("accuracy", color=figure.INK, fontsize=9)
    from matplotlib.lines import Line2D

    lines["unmodified model"] = Line2D([], [], color=figure.INK, linestyle="--", linewidth=1)
    figure.legend(fig, _last(lines, results), spread.note(map(len, results.values()), ITEMS))
    return fig


def _edit(row: dict) -> tuple:
    """(size, extra passes, how they are applied) of a row of a result."""
    return row["size"], row["times"], row.get("passes", "plain")


def _edited(axis, panel, results: dict, looks: dict) -> dict:
    """Draws the curves of a task and an edit (`_edit`); returns {label: line}."""
    task, size, times, passes = panel
    lines, starts, shifts = {}, set(), figure.shifts(results)
    for k, (label, seeds) in enumerate(results.items()):
        seeds = [one for one in seeds if task in one["metrics"]]
        by_start: dict[int, list[dict]] = {}
        for row in (row for one in seeds for row in one["rows"]):
            if _edit(row) == (size, times, passes) and task in row["tasks"]:
                by_start.setdefault(row["start"], []).append(row["tasks"][task])
        by_start = {start: by_start[start] for start in sorted(by_start)}
        if by_start:
            spreads = [spread.of([one["accuracy"] for one in each]) for each in by_start.values()]
            about = {"ends": _interval(by_start, spreads), "shift": shifts[label]}
            means = [one.mean for one in spreads]
            lines[label] = figure.curve(axis, list(by_start), means, label, looks[label], **about)
            starts |= by_start.keys()
        if plain := [
            one["unmodified"][task]["accuracy"] for one in seeds if task in one["unmodified"]
        ]:
            value = spread.of(plain).mean
            # The dashes of several models at one place take turns, so none hides another.
            dash = (4 * k, (4, 4 * max(1, len(results) - 1)))
            style = {"color": looks[label].color, "linestyle": dash, "linewidth": 1.2}
            figure.own(axis.axhline(value, zorder=2, **style), label)
            axis.update_datalim([(axis.dataLim.x0, value)])
    op = next(one["settings"]["op"] for seeds in results.values() for one in seeds)
    single, many, xlabel = EDITS[op]
    text = (many if size > 1 else single).format(n=size)
    text += f" {MORE.get(times, f'{times} times')} more" if times else ""
    text += "" if passes == "plain" else f", {passes}"
    _panel(axis, f"{task}\n{text}", xlabel)
    figure.ticks(axis, starts)
    return lines


def _interval(by_start: dict, spreads: list):
    """Ends of the intervals: over seeds, else 95% over the items if their errors are known."""
    if ends := spread.ends(spreads):
        return ends
    errors = [each[0].get("stderr") for each in by_start.values()]
    if any(error is None for error in errors):
        return None
    low, high = ([one.mean + sign * 1.96 * error for one, error in zip(spreads, errors, strict=True)]
                 for sign in (-1, 1))  # fmt: skip
    return low, high


def plot_exit_accuracy(results: dict, colors: dict | None = None):
    """Accuracy at each exit, and of the whole model at the right end; a panel for each task.

    A result has the attributes of `early_exit.ExitAccuracy`.
    """
    results = {label: several(result) for label, result in results.items()}
    tasks = _union(one.tasks for seeds in results.values() for one in seeds)
    fig, axes = figure.grid(len(tasks), 2, *_size(len(tasks)))
    looks, shifts, lines = figure.looks(results, colors), figure.shifts(results), {}
    for axis, task in zip(axes, tasks, strict=True):
        most = 0
        for label, seeds in results.items():
            values = [
                [*np.asarray(one.accuracy[list(one.tasks).index(task)], float),
                 float(one.unmodified[list(one.tasks).index(task)])]
                for one in seeds if task in one.tasks
            ]  # fmt: skip
            if not values:
                continue
            spreads = [spread.of(column) for column in zip(*values, strict=True)]
            about = {"ends": spread.ends(spreads), "shift": shifts[label]}
            means = [one.mean for one in spreads]
            lines[label] = figure.curve(
                axis, range(len(means)), means, label, looks[label], **about
            )
            most = max(most, len(means) - 1)
        _panel(axis, task, "")
        figure.layers(axis, most, "exit before layer (last: the whole model)")
        figure.ticks(axis, [*axis.get_xticks(), most], [*map(int, axis.get_xticks()), "whole"])
        lines |= _floors(axis, task)
    axes[0].set_ylabel("accuracy", color=figure.INK, fontsize=9)
    figure.legend(fig, _last(lines, results), spread.note(map(len, results.values())))
    return fig


def _floors(axis, task: str, chance: float | None = None, low=None, high=None) -> dict:
    """Draws the floors of a task and fits the axis; returns entries of the legend.

    Args:
      chance: where the task is not a built-in one.
      low, high: values that the axis must show.
    """
    known = floors(task)
    if known and known.best[1] < 0.01:
        known = None
    best = known.best if known else None
    chance = known.chance if known else chance
    values = [value for value in (chance, best and best[1], low, high) if value]
    figure.shares(axis, min(values, default=None), max(values, default=None))
    return figure.floors(axis, chance, best)


def _chance(results: dict, task: str) -> float | None:
    """Chance on a task, by the first result that knows it."""
    every = (one for seeds in results.values() for one in seeds)
    return next((c for one in every if (c := one.get("chance", {}).get(task))), None)


def _last(lines: dict, models) -> dict:
    """The entries of the legend with the models first. Floors that differ by task lose their value."""
    of_models = {label: lines[label] for label in models if label in lines}
    rest = {text: artist for text, artist in lines.items() if text not in of_models}
    names: dict[str, list[str]] = {}
    for text in rest:
        names.setdefault(text.partition(": ")[0], []).append(text)
    return of_models | {
        (texts[0] if len(texts) == 1 else name): rest[texts[0]] for name, texts in names.items()
    }


def _size(panels: int) -> tuple[float, float, float]:
    """Width and height of a panel, and more height of the figure, in inches."""
    return (3.4 if panels > 1 else 5.4), 2.6, 0.4


def _panel(axis, title: str, xlabel: str) -> None:
    figure.plain(axis)
    figure.title(axis, title)
    axis.set_xlabel(xlabel, color=figure.INK, fontsize=9)


def _union(lists) -> list:
    """The items of all lists, each once, in order."""
    return list(dict.fromkeys(item for one in lists for item in one))
