"""Figures of accuracies: against shots, training examples, edited layers, exits."""

import statistics

import numpy as np

from loopjax.plots import figure

COLUMNS = 4  # panels side by side
DASHES = ("-", "--", ":", "-.")  # line styles of lines in one color


def plot_icl(results: dict, colors: dict | None = None):
    """Accuracy with its confidence interval against the number of shots; a panel for each task.

    A result is what `loopjax icl` writes: {"curves": {task: {"rows": [...], ...}}, "chance": {task:
    accuracy}, ...}. Chance is a dotted line.
    """
    tasks = _union(result["curves"] for result in results.values())
    fig, axes = figure.grid(len(tasks), 3, 4.2, 3.2, 0.3)
    colors, lines = figure.colors(results, colors), {}
    for axis, task in zip(axes, tasks, strict=True):
        for label, result in results.items():
            if task not in result["curves"]:
                continue
            rows = sorted(result["curves"][task]["rows"], key=lambda row: row["shots"])
            shots = [row["shots"] for row in rows]
            low, high = zip(*(row["interval"] for row in rows), strict=True)
            band = {"color": colors[label], "alpha": 0.13, "linewidth": 0}
            figure.own(axis.fill_between(shots, low, high, **band), label)
            values = [row["accuracy"] for row in rows]
            lines[label] = _line(axis, shots, values, label, colors)
        chances = [
            value for result in results.values() if (value := result.get("chance", {}).get(task))
        ]
        lines |= _chance(axis, chances[0]) if chances else {}
        _panel(axis, task, "shots")
        axis.set_ylim(0, 1)
        if axis.dataLim.width == 0:
            axis.set_xlim(axis.dataLim.x0 - 1, axis.dataLim.x0 + 1)
    axes[0].set_ylabel("accuracy", color=figure.INK, fontsize=9)
    figure.legend(fig, lines)
    return fig


def plot_finetuning(results: dict, colors: dict | None = None, owners: dict | None = None):
    """Mean accuracy after fine-tuning against the number of examples; a panel for each task.

    Args:
      results: {label: {examples: {task: [value of each run]}}}. The runs of a mean differ in their
        seed; the band is their range. A label without values for a task has no line in its panel.
      colors: {label: color}; lines of one color differ in their dashes.
      owners: {label: label of the model that the line belongs to}; its own label by default.
    """
    tasks = _union(scores for by_n in results.values() for scores in by_n.values())
    width = 4.2 if len(tasks) > 1 else 6.3
    fig, axes = figure.grid(len(tasks), 3, width, 3.2, 0.3)
    colors, lines = figure.colors(results, colors), {}
    counts = sorted({n for by_n in results.values() for n in by_n})
    margin = (counts[-1] - counts[0]) / 20 or 1
    used = [colors[label] for label in results]
    dashes = {
        label: DASHES[used[:k].count(used[k]) % len(DASHES)] for k, label in enumerate(results)
    }
    for axis, task in zip(axes, tasks, strict=True):
        for label, by_n in results.items():
            values = {n: scores[task] for n, scores in sorted(by_n.items()) if scores.get(task)}
            if not values:
                continue
            owner = (owners or {}).get(label, label)
            low, high = (list(map(end, values.values())) for end in (min, max))
            band = {"color": colors[label], "alpha": 0.13, "linewidth": 0}
            figure.own(axis.fill_between(list(values), low, high, **band), owner)
            means = list(map(statistics.fmean, values.values()))
            lines[label] = _line(axis, list(values), means, label, colors)
            lines[label].set_linestyle(dashes[label])
            figure.own(lines[label], owner)
        _panel(axis, task, "training examples")
        axis.set_xticks(counts)
        axis.set_xlim(counts[0] - margin, counts[-1] + margin)
        axis.set_ylim(0, 1)
    axes[0].set_ylabel("accuracy", color=figure.INK, fontsize=9)
    figure.legend(fig, lines)
    return fig


def plot_interventions(results: dict, colors: dict | None = None):
    """Accuracy against the start of the edited sub-block: a panel for each task and size.

    A result is what `loopjax intervene` writes, all of one operation. The unmodified model is a
    dashed line in its color, chance a dotted one.
    """
    panels = _union(
        ((task, row["size"], row["times"]) for task in result["metrics"] for row in result["rows"])
        for result in results.values()
    )
    tasks = _union(result["metrics"] for result in results.values())
    panels.sort(key=lambda panel: (tasks.index(panel[0]), panel[1], panel[2] or 0))
    # The sizes of a task are side by side, and so are tasks if there is room.
    per_task = len(panels) // len(tasks)
    columns = min(len(panels), max(1, COLUMNS // per_task) * per_task if per_task else 1)
    columns = min(columns, COLUMNS)
    fig, axes = figure.grid(len(panels), columns, min(5, 13 / columns), 3, 0.3)
    colors, lines = figure.colors(results, colors), {}
    for axis, panel in zip(axes, panels, strict=True):
        lines |= _edited(axis, panel, results, colors)
    for task in tasks:
        same = [axis for axis, panel in zip(axes, panels, strict=True) if panel[0] == task]
        top = 1.05 * max((axis.dataLim.y1 for axis in same), default=1)
        for axis in same:
            axis.set_ylim(0, top or 1)
    for axis in axes[::columns]:
        axis.set_ylabel("accuracy", color=figure.INK, fontsize=9)
    figure.legend(fig, lines)
    return fig


def _edited(axis, panel, results: dict, colors: dict) -> dict:
    """Draws the curves of a task, a size and a number of extra passes; returns {label: line}."""
    task, size, times = panel
    lines, chance = {}, None
    for label, result in results.items():
        if task not in result["metrics"]:
            continue
        points = sorted(
            (row["start"], row["tasks"][task]["accuracy"])
            for row in result["rows"]
            if (row["size"], row["times"]) == (size, times) and task in row["tasks"]
        )
        if points:
            lines[label] = _line(axis, *zip(*points, strict=True), label, colors)
        if task in result["unmodified"]:
            plain = result["unmodified"][task]["accuracy"]
            style = {"color": colors[label], "linestyle": "--", "linewidth": 1}
            figure.own(axis.axhline(plain, **style), label)
        chance = result["chance"].get(task) or chance
    lines |= _chance(axis, chance) if chance else {}
    text = f"{size} layer{'s' * (size > 1)}" + (f", {times} more" if times else "")
    _panel(axis, f"{task}\n{text}", "")
    most = max(result["model"]["effective_layers"] for result in results.values())
    figure.layers(axis, most, "first layer of the sub-block")
    return lines


def plot_exit_accuracy(results: dict, colors: dict | None = None):
    """Accuracy at each exit relative to the whole model's; a panel for each task.

    A result has the attributes of `early_exit.ExitAccuracy`.
    """
    tasks = _union(result.tasks for result in results.values())
    fig, axes = figure.grid(len(tasks), 2, 6.3, 3.4, 0.3)
    colors, lines = figure.colors(results, colors), {}
    for axis, task in zip(axes, tasks, strict=True):
        most = 0
        for label, result in results.items():
            if task in result.tasks:
                values = np.asarray(result.relative[list(result.tasks).index(task)], float)
                lines[label] = _line(axis, range(len(values)), values, label, colors)
                most = max(most, len(values))
        axis.axhline(1, color=figure.PALE, linewidth=1.5, zorder=0)
        _panel(axis, task, "exit before layer")
        figure.layers(axis, most, "exit before layer")
        axis.set_ylim(0, 1.02 * axis.get_ylim()[1])
    axes[0].set_ylabel("accuracy / whole model's accuracy", color=figure.INK, fontsize=9)
    figure.legend(fig, lines)
    return fig


def _chance(axis, chance: float) -> dict:
    style = {"color": figure.INK, "linestyle": ":", "linewidth": 1.2}
    return {"chance": axis.axhline(chance, **style)}


def _line(axis, x, y, label: str, colors: dict):
    style = {"color": colors[label], "markersize": 4, "clip_on": False, "label": label}
    (line,) = axis.plot(x, y, "o-", **style)
    return figure.own(line, label)


def _panel(axis, title: str, xlabel: str) -> None:
    figure.plain(axis)
    figure.title(axis, title)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set_xlabel(xlabel, color=figure.INK, fontsize=9)


def _union(lists) -> list:
    """The items of all lists, each once, in order."""
    return list(dict.fromkeys(item for one in lists for item in one))
