"""Figures of the diagnostics of `loopjax analyze`, for one model or several.

`analysis/diagnostics.py` names the function of each diagnostic. A function takes
{label: result}, where a result has the attributes of the diagnostic's dataclass.
"""

import math

import numpy as np

from loopjax.plots import figure

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


def plot_norms(results: dict, colors: dict | None = None):
    """Residual norm, and contributions and cosines of attention, MLP and layer, by executed layer."""
    fig, axes = figure.grid(len(NORMS), 2, 5.5, 2.4, 0.4)
    for axis, (name, title) in zip(axes, NORMS.items(), strict=True):
        curves = {label: getattr(result, name) for label, result in results.items()}
        shown = _curves(axis, title, curves, colors)
        if name in ("attention", "mlp", "layer"):
            # The first layer reads the bare embedding; its value is far above all others.
            rest = np.concatenate([values[1:] for values in curves.values()])
            axis.set_ylim(0, 1.1 * max(rest.max(initial=0), 1e-3))
    figure.legend(fig, shown)
    return fig


def plot_agreement(results: dict, colors: dict | None = None):
    """Overlap with the model, and KL divergence in both directions, at each exit."""
    fig, axes = figure.grid(len(AGREEMENT), 3, 4.2, 3.2, 0.3)
    for axis, (name, title) in zip(axes, AGREEMENT.items(), strict=True):
        curves = {label: getattr(result, name) for label, result in results.items()}
        shown = _curves(axis, title, curves, colors, "exit before layer")
        axis.set_ylim(0, 1.02 * axis.get_ylim()[1])
    figure.legend(fig, shown)
    return fig


def _curves(axis, title, curves: dict, colors, xlabel="executed layer") -> dict:
    """Values by layer; returns the lines by label."""
    colors = figure.colors(curves, colors)
    lines = {}
    for label, values in curves.items():
        (line,) = axis.plot(range(len(values)), values, ".-", color=colors[label], label=label)
        lines[label] = figure.own(line, label)
    figure.plain(axis)
    figure.title(axis, title)
    figure.layers(axis, max(map(len, curves.values())), xlabel)
    return lines


def plot_depth_score(results: dict, colors: dict | None = None):
    """m(s) by layer, and the score as a dashed line."""
    fig = figure.new(9, 4.2)
    axis = fig.subplots()
    colors = figure.colors(results, colors)
    lines = {}
    for label, result in results.items():
        style = {"color": colors[label]}
        text = f"{label}: {result.score:.2f}"
        layers = range(len(result.effect))
        (line,) = axis.plot(layers, result.effect, ".-", label=label, **style)
        lines[text] = figure.own(line, label)
        if math.isfinite(result.score):
            figure.own(axis.axvline(result.score, linestyle="--", linewidth=1, **style), label)
    figure.plain(axis)
    axis.set_ylim(bottom=0)
    axis.set_ylabel("change of later distributions (L2)", color=figure.INK, fontsize=9)
    most = max(len(result.effect) for result in results.values())
    figure.layers(axis, most, "ablated layer")
    figure.legend(fig, lines)
    return fig


def plot_effects(results: dict, colors: dict | None = None, *, title: str = ""):
    """A heat map for each model; the color scale is 0 to 1 in all."""
    fig, axes = figure.grid(len(results), COLUMNS, 4.1, 3.8, 0.3 * bool(title))
    for axis, (label, result) in zip(axes, results.items(), strict=True):
        image = _heat_map(axis, label, result.matrix)
        axis.set_xlabel("measured layer", color=figure.INK, fontsize=9)
        axis.set_ylabel("ablated layer", color=figure.INK, fontsize=9)
    _scale(fig, image)
    if title:
        fig.suptitle(title, x=0.01, ha="left", color=figure.INK, fontsize=12, fontweight="bold")
    return fig


def plot_future_local(results: dict, colors: dict | None = None):
    return plot_effects(results, colors, title="Effects on future tokens, local")


def plot_future(results: dict, colors: dict | None = None):
    return plot_effects(results, colors, title="Effects on future tokens")


def plot_current_attention(results: dict, colors: dict | None = None):
    return plot_effects(results, colors, title="Effects of ablating attention")


def plot_similarity(results: dict, colors: dict | None = None):
    """A heat map of the pairs i < j for each model; a model of one block, which has none, is left out."""
    results = {k: result for k, result in results.items() if len(result.matrix) > 1} or results
    fig, axes = figure.grid(len(results), COLUMNS, 4.1, 3.8)
    for axis, (label, result) in zip(axes, results.items(), strict=True):
        n = len(result.matrix)
        shown = np.where(np.tri(n, dtype=bool), np.nan, result.matrix)
        image = _heat_map(axis, label, shown)
        for i, j in zip(*np.triu_indices(n, 1) if n <= 12 else ((), ()), strict=True):
            shade = "white" if result.matrix[i, j] < 0.6 else "black"
            text = f"{result.matrix[i, j]:.2f}"
            axis.text(j, i, text, ha="center", va="center", fontsize=8, color=shade)
        unit = f"block of {result.block} layers" if result.block > 1 else "layer"
        axis.set_xlabel(unit, color=figure.INK, fontsize=9)
        axis.set_ylabel(unit, color=figure.INK, fontsize=9)
    _scale(fig, image)
    return fig


def _heat_map(axis, label: str, matrix):
    image = axis.imshow(matrix, vmin=0, vmax=1, cmap="viridis", interpolation="none")
    ticks = range(0, len(matrix), 1 if len(matrix) <= 12 else 4)
    axis.set_xticks(ticks)
    axis.set_yticks(ticks)
    axis.tick_params(colors=figure.INK, labelsize=9, length=0)
    axis.spines[:].set_visible(False)
    figure.title(axis, label)
    figure.own(axis, label)
    return image


def _scale(fig, image) -> None:
    rows = -(-len(fig.axes) // COLUMNS)
    bar = fig.colorbar(image, ax=fig.axes, shrink=0.8 / rows, anchor=(0, 1), pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=figure.INK, labelsize=9, length=0)
