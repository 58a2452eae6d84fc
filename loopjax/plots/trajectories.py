"""The figure of `loopjax analyze --what trajectories`, for one model or several.

A result has the attributes of `analysis.trajectories.Trajectories`; a list of the results of several seeds is
drawn as mean and standard deviation.
"""

import numpy as np

from loopjax.plots import figure, spread
from loopjax.plots.spread import several

ACROSS = {
    "distance": "relative distance to the state before",
    "angle": "angle of successive updates, degrees",
    "second": "relative second difference",
    "flips": "answers that change",
    "right": "answers that are right",
}
BY_LAYER = "distance in the plan's last repetition"


def plot(results: dict, colors: dict | None = None):
    """Movement of the state after the loop and its answers by repetition; distance by layer of the loop."""
    results = {label: several(result) for label, result in results.items()}
    fig, axes = figure.grid(len(ACROSS) + 1, 3, 3.3, 2.5, 0.4)
    looks, lines, shifts = figure.looks(results, colors), {}, figure.shifts(results)
    for axis, (name, title) in zip(axes, ACROSS.items(), strict=False):
        for label, seeds in results.items():
            values = _spreads([_of_loop(one, name) for one in seeds])
            R = len(seeds[0].right)
            x = range(R - len(values) + 1, R + 1)
            about = {"ends": spread.ends(values), "shift": shifts[label] / 2, "markersize": 4}
            means = [one.mean for one in values]
            lines[label] = figure.curve(axis, x, means, label, looks[label], **about)
        figure.plain(axis)
        figure.title(axis, title)
        figure.labels(axis, "repetition")
        figure.ticks(axis, range(1, 1 + max(len(seeds[0].right) for seeds in results.values())))
        _scale(axis, name)
        edges = {label: [seeds[0].planned + 0.5] for label, seeds in results.items()}
        marks = figure.edges(axis, edges, looks)
    _by_layer(axes[-1], results, looks, shifts)
    named = {
        text.replace("edges of blocks", "end of the plan's repetitions"): x
        for text, x in marks.items()
    }
    figure.legend(fig, lines | named, spread.note(map(len, results.values())))
    return fig


def _of_loop(result, name: str) -> np.ndarray:
    """A field by repetition: of the state after the last layer of the loop, where it is one by layer."""
    values = np.asarray(getattr(result, name), float)
    return values[:, -1] if values.ndim == 2 else values


def _spreads(curves: list[np.ndarray]) -> list:
    """`spread.of` at each place that all seeds have."""
    n = min(map(len, curves))
    return [spread.of([float(curve[i]) for curve in curves]) for i in range(n)]


def _scale(axis, name: str) -> None:
    if name in ("distance", "second"):
        low = axis.dataLim.y0
        if 0 < low < axis.dataLim.y1 / 10:
            axis.set_yscale("log")
        else:
            axis.set_ylim(bottom=0)
    elif name == "angle":
        axis.set_ylim(0, max(90, min(180, 1.05 * axis.dataLim.y1)))
    else:
        figure.shares(axis)


def _by_layer(axis, results: dict, looks: dict, shifts: dict) -> None:
    most = 0
    for label, seeds in results.items():
        at = [np.asarray(one.distance, float)[one.planned - 2] for one in seeds]
        values = _spreads(at)
        about = {"ends": spread.ends(values), "shift": shifts[label] / 2, "markersize": 4}
        means = [one.mean for one in values]
        figure.curve(axis, range(len(means)), means, label, looks[label], **about)
        most = max(most, len(means))
    figure.plain(axis)
    figure.title(axis, BY_LAYER)
    figure.layers(axis, most, "layer of the loop")
    axis.set_ylim(bottom=0)
