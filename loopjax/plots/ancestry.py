"""The figure of a lineage: which layers were copied from which, and in which order they run.

Shades from light to dark are the layers of the first stack, so that they cannot be taken for the
colors of models; where no layer is a copy and none runs twice, all are gray.
"""

import dataclasses

from loopjax.depth import DepthPlan
from loopjax.lineage import Stage
from loopjax.plots import figure
from loopjax.plots.figure import FAINT, INK

BOX = 0.36  # half the width of a box, in layers


@dataclasses.dataclass(frozen=True)
class Ancestry:
    """The stacks and plans of a model.

    Attributes:
      stages: stacks of layers, oldest first.
      plans: plans that the last stack is run by.
    """

    stages: list[Stage]
    plans: list[DepthPlan]

    @property
    def looped(self) -> list[DepthPlan]:
        """The plans that do not just execute the stack in order, each once."""
        return [plan for plan in dict.fromkeys(self.plans) if plan.is_looped]

    @property
    def columns(self) -> int:
        """Number of boxes of the longest row."""
        stacks = [len(stage.order) for stage in self.stages]
        return max(*stacks, *(plan.n_effective for plan in self.looped), 1)

    @property
    def rows(self) -> int:
        return len(self.stages) + len(self.looped)

    @property
    def origins(self) -> list[tuple[int, ...]]:
        """For each stage, the ancestor of each layer in the first stack."""
        found = [self.stages[0].order]
        for stage in self.stages[1:]:
            found.append(tuple(found[-1][i] for i in stage.order))
        return found


def plot_lineages(models: dict[str, Ancestry]):
    """A panel for each model, one below the other."""
    rows = [model.rows + 0.7 for model in models.values()]
    columns = max(model.columns for model in models.values())
    fig = figure.new(min(12.5, max(4.5, 0.36 * columns + 2)), 0.62 * sum(rows))
    axes = fig.subplots(len(models), 1, height_ratios=rows, squeeze=False)[:, 0]
    for axis, (label, model) in zip(axes, models.items(), strict=True):
        draw_lineage(axis, model, columns)
        figure.title(axis, label)
        figure.own(axis, label)
    return fig


def draw_lineage(axis, model: Ancestry, columns: int | None = None) -> None:
    """Stacks as rows of boxes in the color of their ancestor, with lines to their copies.

    Below them, what each looped plan executes, with each pass underlined. `columns` is the width
    of the axis in boxes.
    """
    columns = columns or model.columns
    origins = model.origins
    colors = _shades(model)
    # The font has to fit a narrow box: the axis has about 11 inches of 72 points.
    size = min(8.0, 72 * 11 / columns / 2.4)

    def left(n):
        return (columns - n) / 2

    for k, stage in enumerate(model.stages):
        n = len(stage.order)
        for i, parent in enumerate(stage.order if k else ()):
            original = i == stage.order.index(parent)
            before = left(len(model.stages[k - 1].order))
            axis.plot(
                [before + parent, left(n) + i], [1 - k - 0.26, -k + 0.26],
                color=FAINT if original else INK, linewidth=1 if original else 2,
                solid_capstyle="round",
            )  # fmt: skip
        for i, origin in enumerate(origins[k]):
            _box(axis, left(n) + i, -k, i, colors[origin], size)
    labels = [f"step {stage.step:,}\n{stage.operator}" for stage in model.stages]
    for k, plan in enumerate(model.looped, len(model.stages)):
        _executed(axis, plan, left(plan.n_effective), -k, origins[-1], colors, size)
        labels.append(f"executed\nby {plan}")
    axis.set_yticks([-k for k in range(len(labels))], labels)
    axis.set_xticks([])
    axis.tick_params(colors=INK, labelsize=9, length=0)
    axis.spines[:].set_visible(False)
    axis.set_xlim(-0.7, columns - 0.3)
    axis.set_ylim(-len(labels) + 0.4, 0.5)


def _executed(axis, plan: DepthPlan, x: float, y: float, origins, colors, size) -> None:
    for e, layer in enumerate(plan.order):
        _box(axis, x + e, y, layer, colors[origins[layer]], size)
    for segment in plan.segments:
        for _ in range(segment.repeats):
            if segment.repeats > 1:
                ends = [x - BOX, x + segment.layers - 1 + BOX]
                axis.plot(ends, [y - 0.34] * 2, color=INK, linewidth=1.6)
            x += segment.layers


def _box(axis, x: float, y: float, text, color, size: float) -> None:
    from matplotlib.patches import FancyBboxPatch

    box = FancyBboxPatch(
        (x - BOX, y - 0.2), 2 * BOX, 0.4, boxstyle="round,pad=0,rounding_size=0.12",
        mutation_aspect=0.5, facecolor=color, edgecolor="none",
    )  # fmt: skip
    axis.add_patch(box)
    dark = sum(c * w for c, w in zip(color, (0.3, 0.59, 0.11), strict=False)) < 0.58
    shade = "white" if dark else INK
    axis.text(x, y - 0.01, text, ha="center", va="center", color=shade, fontsize=size)


def _shades(model: Ancestry) -> list[tuple]:
    """A shade for each layer of the first stack, light to dark, as RGB."""
    n = len(model.stages[0].order)
    if len(model.stages) == 1 and not model.looped:
        return [(0.42, 0.45, 0.5)] * n
    from matplotlib import colormaps

    return [colormaps["YlGnBu"](0.25 + 0.7 * i / max(n - 1, 1))[:3] for i in range(n)]
