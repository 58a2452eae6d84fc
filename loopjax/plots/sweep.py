"""Figures of a sweep: a metric against a field of the config or a cost, means with intervals.

The numbers are those of `sweep.compare`: a panel has an axis and lines of cells.
"""

import dataclasses
import itertools
import math
from typing import Any

from loopjax.plots import figure
from loopjax.plots.roles import Look

# Okabe and Ito 2008, without yellow, which white paper swallows: any two differ to every eye.
CATEGORIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#1f2937")
# The part of viridis that is not pale on white.
SCALE = ("#440154", "#443b84", "#2f6c8e", "#1f968b", "#44bf70")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h")
SPREAD = 0.16  # of the distance of two neighbors on the axis, that the lines at one value take
CATEGORY_SPREAD = 0.5
AMOUNT_SPREAD = 0.05  # of the whole axis
MOST_TICKS = 8  # values of an axis that are all written on it
RUNS_BESIDE = 5  # points between the bar of a mean and its single runs


@dataclasses.dataclass(frozen=True)
class Panel:
    """A metric against one axis.

    Attributes:
      xlabel, ylabel: titles of the axes.
      along: `sweep.axis.Axis` of the values.
      lines: `sweep.compare.Line`s.
      best: {label: cell to mark as the best}.
      lower: whether less of the metric is better.
      amounts: whether the axis is an amount like parameters, written with SI prefixes.
    """

    xlabel: str
    ylabel: str
    along: Any
    lines: list
    best: dict
    lower: bool
    amounts: bool = False


def categorical(k: int) -> Look:
    """The look of the k-th of several lines in no order."""
    return Look(CATEGORIES[k % len(CATEGORIES)], MARKERS[k % len(MARKERS)])


def ordered(k: int, n: int) -> Look:
    """The look of the k-th of n lines of ascending numbers: from dark to light."""
    place = (len(SCALE) - 1) * k / max(1, n - 1)
    low = min(int(place), len(SCALE) - 2)
    ends = (bytes.fromhex(SCALE[i][1:]) for i in (low, low + 1))
    mixed = (round(a + (place - low) * (b - a)) for a, b in zip(*ends, strict=True))
    return Look("#" + bytes(mixed).hex(), MARKERS[k % len(MARKERS)])


def plot_sweep(panels: list[Panel], looks: dict[str, Look], columns: int, over: list[str]):
    """Panels in rows of `columns`, with one legend.

    Large marks are means, with 95% intervals where there are several runs; small, pale ones are
    runs; a ring is the best point of a line. Lines at one value stand side by side.

    Args:
      looks: {label of a line: how it is drawn}.
      over: fields that are averaged over.
    """
    width, height = (4.2, 3.2) if columns > 1 else (6.3, 3.9)
    fig, axes = figure.grid(len(panels), columns, width, height, 0.5)
    entries = {}
    for k, (axis, panel) in enumerate(zip(axes, panels, strict=True)):
        entries |= _panel(axis, panel, looks, first=k % columns == 0)
    shown = entries if len(looks) > 1 else {}
    figure.legend(fig, shown, _caption(panels, over))
    return fig


def _panel(axis, panel: Panel, looks: dict[str, Look], first: bool) -> dict:
    """Draws a panel, the first of its row or another; returns {label: line}."""
    figure.plain(axis)
    axis.set_xlabel(figure.literal(panel.xlabel), color=figure.INK, fontsize=9)
    if first:
        axis.set_ylabel(figure.literal(panel.ylabel), color=figure.INK, fontsize=9)
    if panel.along.scale == "log":
        axis.set_xscale("log")
    axis.set_ylim(*_limits(panel))
    drawn = {}
    for k, line in enumerate(panel.lines):
        places = [_beside(panel, cell.x, k) for cell in line.cells]
        drawn[line.label] = _line(axis, panel, line, places, looks[line.label])
    _ticks(axis, panel)
    return drawn


def _line(axis, panel: Panel, line, places: list[float], look: Look):
    """Draws the cells of a line; returns the artist of their means."""
    pairs = list(zip(places, line.cells, strict=True))
    low, high = axis.get_ylim()
    for x, cell in pairs:
        if len(cell.values) > 1:
            runs = [value for value in cell.values if math.isfinite(value)]
            style = {"color": look.color, "marker": look.marker, "alpha": 0.45, "linestyle": ""}
            beside = figure.shifted(axis, RUNS_BESIDE)
            axis.plot(
                [x] * len(runs), runs, markersize=4, markeredgewidth=0, transform=beside, **style
            )
            _interval(axis, x, cell.mean, look.color)
        if cell.values and not cell.finite:  # at the end where it is worse
            worst = high - (high - low) / 40 if panel.lower else low + (high - low) / 40
            axis.plot([x], [worst], "x", color=look.color, markersize=7, clip_on=False, zorder=5)
        if cell is panel.best.get(line.label):
            ring = {"markerfacecolor": "none", "markeredgecolor": figure.INK, "markersize": 12}
            axis.plot([x], [cell.mean.mean], "o", **ring, zorder=2)
    known = [(x, cell.mean.mean) for x, cell in pairs if cell.finite]
    fill = {"markeredgecolor": "white", "markeredgewidth": 0.6}
    if not look.filled:
        fill = {"markerfacecolor": "white", "markeredgewidth": 1.4}
    (drawn,) = axis.plot(
        [x for x, _ in known], [mean for _, mean in known], color=look.color, marker=look.marker,
        linestyle=look.linestyle if panel.along.numeric else "", linewidth=1.5, markersize=6.5,
        zorder=4, clip_on=not known, **fill,  # an empty line that is not clipped spoils the layout
    )  # fmt: skip
    return figure.own(drawn, line.label)


def _interval(axis, x: float, mean, color: str) -> None:
    """The interval of a mean; an arrow where it goes beyond the axis."""
    if mean.half is None:
        return
    low, high = axis.get_ylim()
    ends = [max(mean.low, low), min(mean.high, high)]
    axis.plot([x, x], ends, color=color, linewidth=1.3, solid_capstyle="butt", zorder=3)
    for end, beyond, cap in ((ends[0], mean.low < low, "v"), (ends[1], mean.high > high, "^")):
        style = {"marker": cap if beyond else "_", "markersize": 5 if beyond else 7}
        axis.plot([x], [end], color=color, **style, clip_on=False, zorder=3)


def _limits(panel: Panel) -> tuple[float, float]:
    """The range of the metric: all runs, and their intervals unless these are far wider."""
    cells = [cell for line in panel.lines for cell in line.cells]
    values = [v for cell in cells for v in cell.values if math.isfinite(v)] or [0.0, 1.0]
    cells = [cell for cell in cells if cell.finite]
    low, high = min(values), max(values)
    size = high - low or abs(high) / 10 or 1.0
    low = min([low, *(max(cell.mean.low, low - size / 2) for cell in cells)])
    high = max([high, *(min(cell.mean.high, high + size / 2) for cell in cells)])
    margin = 0.06 * (high - low or size)
    return low - margin, high + margin


def _beside(panel: Panel, value, k: int) -> float:
    """Where the k-th line has its mark for a value: the lines at one value stand side by side."""
    along, lines = panel.along, range(len(panel.lines))
    place = along.place(value)
    places = sorted({along.place(cell.x) for line in panel.lines for cell in line.cells})
    if along.scale == "log":
        places = [math.log(one) for one in places]
    gap = min((b - a for a, b in itertools.pairwise(places)), default=0.0)
    share = min(SPREAD, 0.05 * len(lines)) if along.numeric else CATEGORY_SPREAD
    if panel.amounts:  # neighbors may be arbitrarily near
        gap, share = places[-1] - places[0], AMOUNT_SPREAD
        lines = [i for i in lines if any(cell.x == value for cell in panel.lines[i].cells)]
    n = len(lines)
    shift = (lines.index(k) - (n - 1) / 2) / max(1, n - 1) * share * gap
    return place * math.exp(shift) if along.scale == "log" else place + shift


def _ticks(axis, panel: Panel) -> None:
    """Ticks at the values that were tried, if they are few; categories are named."""
    from matplotlib.ticker import NullFormatter, NullLocator

    along = panel.along
    axis.margins(x=0.06)
    if panel.amounts:
        figure.amounts(axis)
        return
    if along.numeric and len(along.values) > MOST_TICKS:
        return
    names = [figure.literal(_tick(value)) for value in along.values]
    slanted = sum(map(len, names)) > 12 * axis.figure.get_figwidth()
    style = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if slanted else {}
    axis.set_xticks([along.place(value) for value in along.values], names, **style)
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_minor_formatter(NullFormatter())
    if not along.numeric:
        axis.set_xlim(-0.5, len(along.values) - 0.5)


def _tick(value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}".replace("e-0", "e-").replace("e+0", "e")
    return str(value) or "none"


def _caption(panels: list[Panel], over: list[str]) -> str:
    """What the marks mean."""
    cells = [cell for panel in panels for line in panel.lines for cell in line.cells]
    counts = sorted({len(cell.values) for cell in cells if cell.values})
    many = [n for n in counts if n > 1]
    parts = []
    if many:
        n = f"n = {many[0]}" if len(many) == 1 else f"n = {many[0]} to {many[-1]}"
        parts.append(
            f"Large marks: mean over {', '.join(over)}; bars: 95% interval of the mean "
            f"(Student's t, {n}); small marks: single runs"
        )
    if 1 in counts:
        parts.append("without a bar: one run" if many else "One run per point, no interval")
    if any(_beyond(panel) for panel in panels):
        parts.append("arrow: the interval goes on")
    if any(panel.best for panel in panels):
        several = any(len(panel.lines) > 1 for panel in panels)
        parts.append(f"ring: best{' of each line' if several else ''}")
    if any(cell.values and not cell.finite for cell in cells):
        parts.append("×: nan or infinite")
    missing = sum(cell.known - len(cell.values) for line in panels[0].lines for cell in line.cells)
    if missing:
        parts.append(f"{missing} run{'s' * (missing > 1)} without a result")
    return "; ".join(parts)


def _beyond(panel: Panel) -> bool:
    """Whether an interval goes beyond the axis."""
    low, high = _limits(panel)
    cells = [cell for line in panel.lines for cell in line.cells if cell.finite]
    return any(cell.mean.low < low or cell.mean.high > high for cell in cells)
