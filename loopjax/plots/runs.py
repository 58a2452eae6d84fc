"""Figures of runs: training curves, and a metric against the cost of each model."""

import dataclasses

import numpy as np

from loopjax.data.floors import floors
from loopjax.plots import figure, spread

OFF_SCALE = 0.05  # share of the first steps, whose losses would flatten all others
DENSE = 100  # points of a curve from which on it is drawn without markers


@dataclasses.dataclass(frozen=True)
class Row:
    """Curves of one quantity.

    Attributes:
      title: title of the panels.
      label: label of their vertical axis.
      curves: {label of the model: (steps, FLOPs, values)}.
      cut: whether the first steps may be above the panel.
      task: the built-in task whose accuracy it is; its floors are drawn. "" for none.
    """

    title: str
    label: str
    curves: dict
    cut: bool = False
    task: str = ""


def plot_training(rows: list[Row], colors: dict | None = None):
    """A row for each quantity, against steps (left) and training FLOPs (right).

    If no model is in two rows, each row has its own legend.
    """
    labels = list(dict.fromkeys(label for row in rows for label in row.curves))
    apart = len(rows) > 1 and len(labels) == sum(len(row.curves) for row in rows)
    fig, axes = figure.grid(2 * len(rows), 2, 4.6 if apart else 4.0, 2.7, 0.3 * (not apart))
    looks, lines = figure.looks(labels, colors), {}
    for row, pair in zip(rows, zip(axes[::2], axes[1::2], strict=True), strict=True):
        drawn = {}
        for label, (*places, values) in row.curves.items():
            style = {"linewidth": 0.9, "marker": ""} if len(values) > DENSE else {"markersize": 4}
            for axis, x in zip(pair, places, strict=True):
                drawn[label] = figure.curve(axis, x, values, label, looks[label], **style)
                if len(values) > DENSE:  # the marker at the end stands for all of them
                    end = figure.marked(looks[label], 6)
                    (mark,) = axis.plot(x[-1:], values[-1:], linestyle="none", zorder=4, **end)
                    figure.own(mark, label)
        for axis, xlabel in zip(pair, ("training steps", "training FLOPs"), strict=True):
            figure.plain(axis)
            axis.set_xlabel(xlabel, color=figure.INK, fontsize=9)
            drawn |= _vertical(axis, row)
        figure.amounts(pair[1])
        figure.title(pair[0], row.title)
        pair[0].set_ylabel(row.label, color=figure.INK, fontsize=9)
        lines |= drawn
        if apart:  # no model is in two rows
            pair[1].legend(
                drawn.values(), map(figure.literal, drawn), loc="upper left",
                bbox_to_anchor=(1.02, 1.02), frameon=False, fontsize=figure.SMALL,
                labelcolor=figure.INK, handlelength=3.2,
            )  # fmt: skip
    if not apart:
        figure.legend(fig, lines)
    return fig


def _vertical(axis, row: Row) -> dict:
    """Limits of a vertical axis, and what marks them; returns entries of the legend."""
    if row.cut:
        axis.set_ylim(top=_top(row.curves))
        # What is above the panel is the beginning of the training, as the caption says.
        for line in axis.lines:
            line.set_clip_on(True)
        return {}
    return figure.skill(axis, floors(row.task)) if row.task else {}


def _top(curves: dict) -> float:
    """The largest value after the first steps, and a margin."""
    late = [np.asarray(v, float)[int(np.ceil(len(v) * OFF_SCALE)) :] for *_, v in curves.values()]
    values = np.concatenate(late)
    low, high = values.min(), values.max()
    return float(high + 0.05 * (high - low))


def draw_trade_off(
    axis, values: dict, costs: dict, ylabel: str, colors=None, *, errors=None, floor=None
) -> dict:
    """A metric of each model against its cost, in one panel; returns {entry of the legend: artist}.

    Args:
      values: {label: value}, or what `spread.of` takes.
      costs: {label: cost}; a model without one is left out.
      errors: {label: half of the interval of its value}; by default a standard deviation over seeds.
      floor: floors to draw below accuracies.
    """
    looks, lines = figure.looks(values, colors), {}
    shown = [label for label in values if label in costs]
    shifts = _shifts(shown, values, costs)
    for label in shown:
        found = spread.of(values[label])
        half = (errors or {}).get(label) or found.deviation
        ends = None if half is None else ([found.mean - half], [found.mean + half])
        lines[label] = figure.curve(
            axis, [costs[label]], [found.mean], label, looks[label], ends=ends,
            shift=shifts[label], markersize=7, linestyle="none",
        )  # fmt: skip
    figure.plain(axis)
    figure.better(axis, ylabel)
    axis.margins(0.12)
    axis.locator_params(axis="y", nbins=6)
    if floor:
        lines |= figure.skill(axis, floor)
    return lines


def _shifts(shown: list, values: dict, costs: dict) -> dict[str, float]:
    """Points to the right that keep models apart that are about the same in cost and metric."""
    means = {label: spread.of(values[label]).mean for label in shown}
    wide = max((costs[label] for label in shown), default=1) or 1
    high = (max(means.values(), default=1) - min(means.values(), default=0)) or 1
    groups: list[list] = []
    for label in sorted(shown, key=lambda label: (round(40 * costs[label] / wide), means[label])):
        last = groups[-1][-1] if groups else None
        alike = last and round(40 * costs[label] / wide) == round(40 * costs[last] / wide)
        if alike and means[label] - means[last] < 0.12 * high:
            groups[-1].append(label)
        else:
            groups.append([label])
    return {
        label: 1.5 * figure.STEP * (k - (len(group) - 1) / 2)
        for group in groups
        for k, label in enumerate(group)
    }
