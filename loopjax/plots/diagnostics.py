"""Pictures of the diagnostics of `loopjax analyze`, of one model or of several.

They need the numbers alone, neither a model nor the evaluation harness: a result is anything with
the attributes that the diagnostic's dataclass has.
"""

import functools
import math

import numpy as np

from loopjax.plots import accuracy, figure

COLUMNS = 3  # heat maps side by side
# Panels of the norms, by the attribute that they show.
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
    "overlap": "overlap of the 5 likeliest tokens",
    "kl_final_early": "KL(model ‖ exit), nats",
    "kl_early_final": "KL(exit ‖ model), nats",
}


def norms(results: dict, colors: dict | None = None):
    """Residual norm, and contribution and cosine of attention, MLP and layer, by executed layer."""
    fig, axes = figure.grid(len(NORMS), 2, 5.5, 2.4, 0.4)
    for axis, (name, title) in zip(axes, NORMS.items(), strict=True):
        curves = {label: getattr(result, name) for label, result in results.items()}
        shown = _curves(axis, title, curves, colors)
        if name in ("attention", "mlp", "layer"):
            # The first layer, which reads the bare embedding, is off the scale of all others.
            rest = np.concatenate([values[1:] for values in curves.values()])
            axis.set_ylim(0, 1.1 * max(rest.max(initial=0), 1e-3))
    figure.legend(fig, shown)
    return fig


def agreement(results: dict, colors: dict | None = None):
    """Overlap with the model and both divergences from it, against the exit."""
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


def depth_score(results: dict, colors: dict | None = None):
    """m(s) by layer, and the score as a line."""
    fig = figure.new(9, 4.2)
    axis, colors, lines = fig.subplots(), figure.colors(results, colors), {}
    for label, result in results.items():
        style, text = {"color": colors[label]}, f"{label}: {result.score:.2f}"
        layers = range(len(result.effect))
        (line,) = axis.plot(layers, result.effect, ".-", label=label, **style)
        lines[text] = figure.own(line, label)
        if math.isfinite(result.score):
            figure.own(axis.axvline(result.score, linestyle="--", linewidth=1, **style), label)
    figure.plain(axis)
    axis.set_ylim(bottom=0)
    axis.set_ylabel("change of later distributions (L2)", color=figure.INK, fontsize=9)
    most = max(len(result.effect) for result in results.values())
    figure.layers(axis, most, "executed layer that is erased")
    figure.legend(fig, lines)
    return fig


def effects(results: dict, colors: dict | None = None, *, title: str = ""):
    """A heat map for each model; the colors run from 0 to 1 in all."""
    fig, axes = figure.grid(len(results), COLUMNS, 4.1, 3.8, 0.3 * bool(title))
    for axis, (label, result) in zip(axes, results.items(), strict=True):
        image = _heat_map(axis, label, result.matrix)
        axis.set_xlabel("layer that changes", color=figure.INK, fontsize=9)
        axis.set_ylabel("layer that is erased", color=figure.INK, fontsize=9)
    _scale(fig, image)
    if title:
        fig.suptitle(title, x=0.01, ha="left", color=figure.INK, fontsize=12, fontweight="bold")
    return fig


def similarity(results: dict, colors: dict | None = None):
    """A heat map of i < j for each model."""
    fig, axes = figure.grid(len(results), COLUMNS, 4.1, 3.8)
    for axis, (label, result) in zip(axes, results.items(), strict=True):
        n = len(result.matrix)
        shown = np.where(np.tri(n, dtype=bool), np.nan, result.matrix)
        image = _heat_map(axis, label, shown)
        for i, j in zip(*np.triu_indices(n, 1) if n <= 12 else ((), ()), strict=True):
            shade = "white" if result.matrix[i, j] < 0.6 else "black"
            text = f"{result.matrix[i, j]:.2f}"
            axis.text(j, i, text, ha="center", va="center", fontsize=8, color=shade)
        said = f"block of {result.block} layers" if result.block > 1 else "layer"
        axis.set_xlabel(said, color=figure.INK, fontsize=9)
        axis.set_ylabel(said, color=figure.INK, fontsize=9)
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


# The picture of each diagnostic of `loopjax analyze`, by name.
PLOTS = {
    "norms": norms,
    "future_local": functools.partial(effects, title="Effects on future tokens, local"),
    "future": functools.partial(effects, title="Effects on future tokens"),
    "current_attention": functools.partial(effects, title="Effects of erasing attention"),
    "depth_score": depth_score,
    "similarity": similarity,
    "overlap": agreement,
    "exit_accuracy": accuracy.exits,
}
