"""A figure of a checkpoint: cosines of its layers, and their lineage."""

import pathlib

import numpy as np

from loopjax import lineage
from loopjax.depth import DepthPlan
from loopjax.plots import ancestry, figure
from loopjax.plots.figure import COLORS, INK, PALE


def write(path, result: dict) -> None:
    """Writes a PNG of a result of `numbers.inspect` with `layers=True`."""
    plan = DepthPlan.parse(result["plan"]["text"])
    events = result["lineage"]["events"]
    plans = [DepthPlan.parse(event["plan"]) for event in lineage.loops(events)]
    family = ancestry.Ancestry(lineage.stages(events), [*plans, plan])
    width = max(5.0, 0.3 * family.columns + 1.6)
    fig = figure.new(5.6 + width, max(4.6, 0.9 * family.rows + 1.4))
    left, right = fig.subplots(1, 2, width_ratios=(5.6, width))
    _similarity(fig, left, result)
    ancestry.draw_lineage(right, family)
    right.set_ylim(min(right.get_ylim()[0], -2.3), 0.7)
    copies = " (bold lines: copies)" if len(family.stages) > 1 else ""
    right.set_title(f"Lineage{copies}", loc="left", color=INK, fontsize=11, fontweight="bold")
    about = result["checkpoint"]
    name = "/".join(pathlib.Path(about["directory"]).parts[-2:]).removesuffix("/checkpoints")
    title = f"{name}, step {about['step']:,}: plan {result['plan']['text']}"
    fig.suptitle(title, x=0.01, ha="left", color=INK, fontsize=12, fontweight="bold")
    figure.save(fig, path)


def boundaries(result: dict) -> list[int]:
    """The ends of blocks: segments of a looped plan, else the blocks that growth added."""
    depth = result["plan"]["unique"]
    stages = result["lineage"]["stages"]
    if result["plan"]["executed"] > depth:
        return [segment["start"] for segment in result["plan"]["segments"][1:]]
    if len(stages) == 1:
        return []
    block = stages[1]["layers"] - stages[0]["layers"]
    return list(range(block, depth, block))


def _similarity(fig, axis, result: dict) -> None:
    """Heat map of the cosines between layers, all matrices of a layer as one vector."""
    from matplotlib.colors import LinearSegmentedColormap

    values = np.array(result["layers"]["similarity"], float)
    depth = len(values)
    axis.set_anchor("N")
    shades = LinearSegmentedColormap.from_list("", ("#ffffff", COLORS[0], "#172554"))
    picture = axis.imshow(values, cmap=shades, vmin=0, vmax=1)
    for edge in boundaries(result):
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
