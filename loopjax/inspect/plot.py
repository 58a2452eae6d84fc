"""The picture of a checkpoint: how alike its layers are, and where they come from."""

import pathlib

import numpy as np

from loopjax import figure
from loopjax.figure import COLOURS, INK, PALE


def write(path, found: dict) -> None:
    """Writes a PNG of what `numbers.inspect` found with `layers=True`."""
    depth, stages = found["plan"]["unique"], len(found["lineage"]["stages"])
    wide = max(5.0, 0.3 * depth + 1.6)
    fig = figure.new(5.6 + wide, max(4.6, 0.9 * stages + 1.4))
    left, right = fig.subplots(1, 2, width_ratios=(5.6, wide))
    _similarity(fig, left, found)
    _lineage(right, found)
    about = found["checkpoint"]
    name = "/".join(pathlib.Path(about["directory"]).parts[-2:]).removesuffix("/checkpoints")
    title = f"{name}, step {about['step']:,}: plan {found['plan']['text']}"
    fig.suptitle(title, x=0.01, ha="left", color=INK, fontsize=12, fontweight="bold")
    figure.save(fig, path)


def boundaries(found: dict) -> list[int]:
    """Where blocks end: the segments of a looped plan, else the blocks that growth added."""
    depth, stages = found["plan"]["unique"], found["lineage"]["stages"]
    if found["plan"]["executed"] > depth:
        return [segment["start"] for segment in found["plan"]["segments"][1:]]
    if len(stages) == 1:
        return []
    block = stages[1]["layers"] - stages[0]["layers"]
    return list(range(block, depth, block))


def _similarity(fig, axis, found: dict) -> None:
    """Heat map of the cosines between layers, matrices as one vector."""
    from matplotlib.colors import LinearSegmentedColormap

    values = np.array(found["layers"]["similarity"], float)
    depth = len(values)
    axis.set_anchor("N")
    shades = LinearSegmentedColormap.from_list("", ("#ffffff", COLOURS[0], "#172554"))
    picture = axis.imshow(values, cmap=shades, vmin=0, vmax=1)
    for edge in boundaries(found):
        axis.axhline(edge - 0.5, color=INK, linewidth=1)
        axis.axvline(edge - 0.5, color=INK, linewidth=1)
    if depth <= 12:
        for (i, j), value in np.ndenumerate(values):
            shade = "white" if value > 0.4 else INK
            text = f"{value:.2f}".replace("-0.00", "0.00")
            axis.text(j, i, text, ha="center", va="center", fontsize=7, color=shade)
    ticks = range(0, depth, max(1, depth // 12))
    axis.set_xticks(ticks)
    axis.set_yticks(ticks)
    axis.tick_params(colors=INK, labelsize=9, length=0)
    axis.spines[:].set_color(PALE)
    axis.set_xlabel("layer", color=INK)
    axis.set_ylabel("layer", color=INK)
    axis.set_title("Cosine of layers", loc="left", color=INK, fontsize=11, fontweight="bold")
    bar = fig.colorbar(picture, ax=axis, shrink=0.8, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=INK, labelsize=9, length=0)


def _lineage(axis, found: dict) -> None:
    """Stages as rows, layers as boxes in the colour of their ancestor, lines to their copies."""
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import FancyBboxPatch

    stages, chains = found["lineage"]["stages"], found["lineage"]["descent"]
    depth, first = len(chains), stages[0]["layers"]
    colours = COLOURS[:first]
    if first > len(COLOURS):
        shades = LinearSegmentedColormap.from_list("", COLOURS)
        colours = [shades(i / (first - 1)) for i in range(first)]
    ancestor = {(k, chain[k]): chain[0] for chain in chains for k in range(len(stages))}

    def x_of(stage, layer):
        return layer + (depth - stages[stage]["layers"]) / 2

    links = {(k, chain[k - 1], chain[k]) for chain in chains for k in range(1, len(stages))}
    for k, parent, child in sorted(links):
        original = child == min(c for s, p, c in links if (s, p) == (k, parent))
        axis.plot(
            [x_of(k - 1, parent), x_of(k, child)],
            [1 - k - 0.26, -k + 0.26],
            color=colours[ancestor[k, child]],
            linewidth=1.2 if original else 2,
            alpha=0.3 if original else 1,
            solid_capstyle="round",
        )
    for (k, layer), origin in ancestor.items():
        x = x_of(k, layer)
        box = FancyBboxPatch(
            (x - 0.36, -k - 0.2), 0.72, 0.4, boxstyle="round,pad=0,rounding_size=0.12",
            mutation_aspect=0.5, facecolor=colours[origin], edgecolor="none",
        )  # fmt: skip
        axis.add_patch(box)
        axis.text(x, -k - 0.01, layer, ha="center", va="center", color="white", fontsize=8)
    _loops(axis, found["plan"]["segments"], 1 - len(stages))
    labels = [f"step {stage['step']:,}\n{stage['operator']}" for stage in stages]
    axis.set_yticks([-k for k in range(len(stages))], labels)
    axis.set_xticks([])
    axis.tick_params(colors=INK, labelsize=9, length=0)
    axis.spines[:].set_visible(False)
    axis.set_xlim(-0.7, depth - 0.3)
    axis.set_ylim(-max(len(stages), 2.4) + 0.1, 0.7)
    title = "Lineage" + (" (bold lines: copies)" if links else "")
    axis.set_title(title, loc="left", color=INK, fontsize=11, fontweight="bold")


def _loops(axis, segments: list[dict], y: float) -> None:
    """An arrow back below the layers that a plan repeats."""
    for segment in segments:
        if segment["repeats"] == 1:
            continue
        first, last = segment["start"], segment["start"] + segment["layers"] - 1
        axis.plot([last, last, first], [y - 0.24, y - 0.4, y - 0.4], color=INK, linewidth=1.4)
        arrow = {"arrowstyle": "-|>", "color": INK, "linewidth": 1.4, "shrinkA": 0, "shrinkB": 0}
        axis.annotate("", (first, y - 0.22), (first, y - 0.41), arrowprops=arrow)
        middle = (first + last) / 2
        label = f"× {segment['repeats']}"
        axis.text(middle, y - 0.46, label, ha="center", va="top", color=INK, fontsize=10)
