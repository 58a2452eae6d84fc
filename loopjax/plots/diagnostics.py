"""Figures of the diagnostics of `loopjax analyze`, for one model or several.

`analysis/diagnostics.py` names the function of each diagnostic. A function takes {label: result}, where
a result has the attributes of the diagnostic's dataclass, or is a list of the results of several
seeds, which are drawn as mean and standard deviation.
"""

import math

import numpy as np

from loopjax.plots import figure, spread
from loopjax.plots.spread import several

COLUMNS = 3  # heat maps side by side
# Titles of the panels of `plot_norms`, by the attribute that each shows.
NORMS = {
    "residual": "norm of the residual stream",
    "next_cosine": "cosine of one residual with the next",
    "attention": "attention / residual",
    "attention_cosine": "cosine of attention with the residual",
    "mlp": "MLP / residual",
    "mlp_cosine": "cosine of the MLP with the residual",
    "layer": "layer / residual",
    "layer_cosine": "cosine of the layer with the residual",
}
AGREEMENT = {
    "overlap": "overlap of the 5 most likely tokens",
    "kl_final_early": "KL(model ‖ exit), nats",
    "kl_early_final": "KL(exit ‖ model), nats",
}
OVER = "#f59e0b"  # of cells above the color scale
RANGE = 98  # percentile of the effects of a figure up to which the color scale reaches, at least


def plot_norms(results: dict, colors: dict | None = None, *, blocks: dict | None = None):
    """Residual norm, and contributions and cosines of attention, MLP and layer, by executed layer.

    Args:
      blocks: {label: executed layers at which a block begins}, to be marked; see `figure.edges`.
    """
    results = {label: several(result) for label, result in results.items()}
    fig, axes = figure.grid(len(NORMS), 2, 3.9, 2.1, 0.5)
    looks, shown = figure.looks(results, colors), {}
    for axis, (name, title) in zip(axes, NORMS.items(), strict=True):
        curves = {label: spread.arrays(seeds, name) for label, seeds in results.items()}
        shown |= _curves(axis, title, curves, looks)
        if name in ("attention", "mlp", "layer"):
            # The first layer reads the bare embedding; its value is far above all others.
            rest = [one.mean + (one.deviation or 0) for each in curves.values() for one in each[1:]]
            axis.set_ylim(0, 1.1 * max([*rest, 1e-3]))
            shown |= figure.clipped(axis)
        between = {label: [at - 0.5 for at in places] for label, places in (blocks or {}).items()}
        shown |= figure.edges(axis, between, looks)
    models = {label: shown[label] for label in results}
    figure.legend(fig, models | shown, spread.note(map(len, results.values())))
    return fig


def plot_agreement(results: dict, colors: dict | None = None):
    """Overlap with the model, and KL divergence in both directions, at each exit."""
    results = {label: several(result) for label, result in results.items()}
    fig, axes = figure.grid(len(AGREEMENT), 3, 3.3, 2.6, 0.4)
    looks = figure.looks(results, colors)
    for axis, (name, title) in zip(axes, AGREEMENT.items(), strict=True):
        curves = {label: spread.arrays(seeds, name) for label, seeds in results.items()}
        shown = _curves(axis, title, curves, looks, "exit before layer")
        if name == "overlap":
            figure.shares(axis)
        else:
            axis.set_ylim(bottom=0)
    figure.legend(fig, shown, spread.note(map(len, results.values())))
    return fig


def _curves(axis, title, curves: dict, looks: dict, xlabel="executed layer") -> dict:
    """Values by layer, as {label: spreads}; returns the lines by label."""
    lines, shifts = {}, figure.shifts(curves)
    for label, values in curves.items():
        means, ends = [one.mean for one in values], spread.ends(values)
        about = {"ends": ends, "shift": shifts[label] / 2, "markersize": 4}
        lines[label] = figure.curve(axis, range(len(values)), means, label, looks[label], **about)
    figure.plain(axis)
    figure.title(axis, title)
    figure.layers(axis, max(map(len, curves.values())), xlabel)
    return lines


def plot_depth_score(results: dict, colors: dict | None = None):
    """m(s) by layer, and the score as a mark on the axis."""
    results = {label: several(result) for label, result in results.items()}
    fig = figure.new(6.2, 3.4)
    axis = fig.subplots()
    looks, lines, shifts = figure.looks(results, colors), {}, figure.shifts(results)
    for label, seeds in results.items():
        effect = spread.arrays(seeds, "effect")
        score = spread.of([one.score for one in seeds])
        text = f"{label}: {score.mean:.2f}"
        if score.deviation is not None and math.isfinite(score.deviation):
            text += f" ± {score.deviation:.2f}"
        about = {"ends": spread.ends(effect), "shift": shifts[label] / 2}
        means = [one.mean for one in effect]
        lines[text] = figure.curve(axis, range(len(means)), means, label, looks[label], **about)
        if math.isfinite(score.mean):
            mark = {"ymin": 0, "ymax": 0.09, "color": looks[label].color, "linewidth": 2.4}
            figure.own(axis.axvline(score.mean, zorder=4, **mark), label)
    figure.plain(axis)
    axis.set_ylim(bottom=0)
    axis.set_ylabel("change of later distributions (L2)", color=figure.INK, fontsize=9)
    most = max(len(seeds[0].effect) for seeds in results.values())
    figure.layers(axis, most, "ablated layer")
    note = "depth scores, also as bars on the axis"
    seeds = spread.note(map(len, results.values()))
    figure.legend(fig, lines, f"{note}; {seeds}" if seeds else note)
    return fig


def plot_effects(
    results: dict, colors: dict | None = None, *, title: str = "", blocks: dict | None = None
):
    """A heat map for each model, with one color scale from 0; layers before the ablated one are white.

    Args:
      blocks: {label: executed layers at which a block begins}, to be marked.
    """
    results = {label: several(result) for label, result in results.items()}
    matrices = {
        label: np.mean([np.asarray(one.matrix, float) for one in seeds], axis=0)
        for label, seeds in results.items()
    }
    later = {label: _later(matrix) for label, matrix in matrices.items()}
    top = _top(later.values())
    fig, axes = figure.grid(len(results), COLUMNS, 3.1, 2.9, 0.3 * bool(title))
    for axis, (label, matrix) in zip(axes, later.items(), strict=True):
        image = _heat_map(axis, label, matrix, top)
        for at in (blocks or {}).get(label, ()):
            for line in (axis.axhline, axis.axvline):
                line(at - 0.5, color=figure.FAINT, linewidth=0.8, linestyle=(0, (2, 2)))
        figure.labels(axis, "measured layer", "ablated layer")
    _scale(fig, image, any(np.nanmax(m, initial=0) > top for m in later.values()))
    _seeds(fig, results)
    if title:
        figure.heading(fig, title)
    return fig


def _later(matrix) -> np.ndarray:
    """The effects on layers after the ablated one; NaN elsewhere, where there can be none."""
    return np.where(np.tri(len(matrix), dtype=bool), np.nan, matrix)


def _top(matrices) -> float:
    """The upper end of the color scale: the largest value, or less if a few are far above the rest."""
    values = np.concatenate([matrix[np.isfinite(matrix)] for matrix in matrices])
    if not len(values) or not values.max():
        return 1.0
    most = float(np.percentile(values, RANGE))
    return float(values.max()) if values.max() < 1.3 * most else most


def plot_future_local(results: dict, colors: dict | None = None, **more):
    return plot_effects(results, colors, title="Local effects on later tokens", **more)


def plot_future(results: dict, colors: dict | None = None, **more):
    return plot_effects(results, colors, title="Effects on later tokens", **more)


def plot_current_attention(results: dict, colors: dict | None = None, **more):
    return plot_effects(results, colors, title="Effects of ablating attention, all tokens", **more)


def plot_similarity(results: dict, colors: dict | None = None):
    """A heat map of the pairs i < j for each model; a model of one block, which has none, is left out."""
    results = {label: several(result) for label, result in results.items()}
    results = {k: seeds for k, seeds in results.items() if len(seeds[0].matrix) > 1} or results
    fig, axes = figure.grid(len(results), COLUMNS, 3.1, 2.9)
    matrices = {
        label: np.mean([np.asarray(one.matrix, float) for one in seeds], axis=0)
        for label, seeds in results.items()
    }
    for axis, (label, matrix) in zip(axes, matrices.items(), strict=True):
        image = _heat_map(axis, label, _later(matrix), 1.0)
        few = len(matrix) <= 12
        for i, j in zip(*np.triu_indices(len(matrix), 1) if few else ((), ()), strict=True):
            shade = "white" if matrix[i, j] > 0.5 else "black"
            value = f"{matrix[i, j]:.2f}".replace("-0.00", "0.00")
            axis.text(j, i, value, ha="center", va="center", fontsize=figure.SMALL, color=shade)
        block = results[label][0].block
        unit = f"block of {block} layers" if block > 1 else "layer"
        figure.labels(axis, unit, unit)
    below = any(np.nanmin(_later(m), initial=0) < -0.005 for m in matrices.values())
    _scale(fig, image, False, below)
    _seeds(fig, results)
    return fig


def _heat_map(axis, label: str, matrix, top: float):
    from matplotlib import colormaps
    from matplotlib.colors import LinearSegmentedColormap

    # From a yellow that is no white, which means "no value".
    parts = colormaps["YlGnBu"](np.linspace(0.08, 1, 64))
    shades = LinearSegmentedColormap.from_list("", parts).with_extremes(over=OVER, bad="white")
    image = axis.imshow(matrix, vmin=0, vmax=top, cmap=shades, interpolation="none")
    for i, j in zip(*np.nonzero(np.nan_to_num(matrix) > top), strict=True):
        axis.plot(j, i, marker=6, color="white", markersize=5, zorder=3)
    ticks = range(0, len(matrix), 1 if len(matrix) <= 12 else 4)
    axis.set_xticks(ticks)
    axis.set_yticks(ticks)
    axis.tick_params(colors=figure.INK, labelsize=figure.SMALL, length=0)
    axis.spines[:].set_color(figure.PALE)
    figure.title(axis, label)
    figure.own(axis, label)
    return image


def _seeds(fig, results: dict) -> None:
    """Says below several heat maps how many seeds they are means of."""
    if len(results) > 1:
        text = spread.note(map(len, results.values()), bars=False)
        fig.supxlabel(text, x=0.01, ha="left", fontsize=figure.SMALL, color=figure.INK)


def _scale(fig, image, over: bool, below: bool = False) -> None:
    """The color bar; its ends are pointed where values lie beyond it."""
    rows = -(-len(fig.axes) // COLUMNS)
    extend = {(True, True): "both", (True, False): "max", (False, True): "min"}.get((over, below))
    bar = fig.colorbar(
        image, ax=fig.axes, shrink=0.8 / rows, anchor=(0, 1), pad=0.02, extend=extend or "neither"
    )
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=figure.INK, labelsize=figure.SMALL, length=0)
