"""Figures of runs: training curves, and a metric against the cost of each model."""

import dataclasses

import numpy as np

from loopjax.plots import figure

OFF_SCALE = 0.05  # share of the first steps, whose losses would flatten all others


@dataclasses.dataclass(frozen=True)
class Row:
    """Curves of one quantity.

    Attributes:
      title: title of the panels.
      label: label of their vertical axis.
      curves: {label of the model: (steps, FLOPs, values)}.
      cut: whether the first steps may be above the panel.
    """

    title: str
    label: str
    curves: dict
    cut: bool = False


def plot_training(rows: list[Row], colors: dict | None = None):
    """A row for each quantity, against steps (left) and training FLOPs (right).

    If no model is in two rows, each row has its own legend.
    """
    labels = list(dict.fromkeys(label for row in rows for label in row.curves))
    apart = len(rows) > 1 and len(labels) == sum(len(row.curves) for row in rows)
    fig, axes = figure.grid(2 * len(rows), 2, 5.5, 3.2, 0.3 * (not apart))
    colors, lines = figure.colors(labels, colors), {}
    for row, pair in zip(rows, zip(axes[::2], axes[1::2], strict=True), strict=True):
        for label, (*places, values) in row.curves.items():
            dense = len(values) > 100
            style = {"color": colors[label], "linewidth": 1 if dense else 2, "label": label}
            for axis, x in zip(pair, places, strict=True):
                (line,) = axis.plot(x, values, **style)
                lines[label] = figure.own(line, label)
                (end,) = axis.plot(x[-1:], values[-1:], "o", color=colors[label], markersize=5)
                figure.own(end, label)
        top = _top(row.curves) if row.cut else None
        for axis, xlabel in zip(pair, ("training steps", "training FLOPs"), strict=True):
            figure.plain(axis)
            axis.set_xlabel(xlabel, color=figure.INK, fontsize=9)
            axis.set_ylim(top=top)
        figure.amounts(pair[1])
        figure.title(pair[0], row.title)
        pair[0].set_ylabel(row.label, color=figure.INK, fontsize=9)
        if apart:  # no model is in two rows
            pair[1].legend(frameon=False, fontsize=9, labelcolor=figure.INK)
    if not apart:
        figure.legend(fig, lines)
    return fig


def _top(curves: dict) -> float:
    """The largest value after the first steps, and a margin."""
    late = [np.asarray(v, float)[int(np.ceil(len(v) * OFF_SCALE)) :] for *_, v in curves.values()]
    values = np.concatenate(late)
    low, high = values.min(), values.max()
    return float(high + 0.05 * (high - low))


def plot_trade_off(values: dict, costs: dict, ylabel: str, colors: dict | None = None):
    """A metric of each model against each of its costs; a panel for each cost.

    Args:
      values: {label: value}.
      costs: {name of the cost: {label: cost}}; a model without the cost is not in that panel.
    """
    fig, axes = figure.grid(len(costs), 3, 4.2, 3.2, 0.3)
    colors, lines = figure.colors(values, colors), {}
    for axis, (name, known) in zip(axes, costs.items(), strict=True):
        for label in filter(known.__contains__, values):
            style = {"color": colors[label], "markersize": 8, "alpha": 0.8, "label": label}
            (line,) = axis.plot([known[label]], [values[label]], "o", **style)
            lines[label] = figure.own(line, label)
        figure.plain(axis)
        axis.margins(0.12)
        figure.amounts(axis)
        axis.set_xlabel(name, color=figure.INK, fontsize=9)
    axes[0].set_ylabel(ylabel, color=figure.INK, fontsize=9)
    figure.legend(fig, lines)
    return fig
