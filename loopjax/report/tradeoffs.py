"""A metric of each model against its costs: markers kept apart, with their uncertainty."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from loopjax.plots import figure
from loopjax.report import findings
from loopjax.report.context import Context
from loopjax.report.elements import Picture, Text
from loopjax.report.estimates import Estimate, Measure
from loopjax.run_record import COSTS

SIZE = 8.0  # points of a marker
SEED_SIZE = 4.5  # of a single seed
RARE = 3  # seeds from which on a mean has a bar: of two, the interval is wider than any panel


@dataclasses.dataclass(frozen=True)
class Metric:
    """What is drawn against the costs.

    Attributes:
      name: of the metric and its conditions.
      label: of the vertical axis.
      measure: how its values are written.
      values: {label of an entry: its value}.
      errors: {label of an entry: standard error over items}; those that are known.
      items: {label of an entry: number of items}; those that are known.
      lower: whether lower values are better; None if neither is.
      floor: (value that needs no ability, how it is reached), or None.
    """

    name: str
    label: str
    measure: Measure
    values: Mapping[str, float]
    errors: Mapping[str, float] = dataclasses.field(default_factory=dict)
    items: Mapping[str, int] = dataclasses.field(default_factory=dict)
    lower: bool | None = None
    floor: tuple[float, str] | None = None

    def estimates(self, context: Context) -> dict[str, Estimate]:
        """{label of a family: estimate}."""
        found = {
            family.label: family.estimate(
                lambda e: self.values.get(e.label), lambda e: self.errors.get(e.label),
                lambda e: self.items.get(e.label),
            )
            for family in context.families
        }  # fmt: skip
        return {label: estimate for label, estimate in found.items() if estimate}


def elements(context: Context, metrics: list[Metric]) -> list:
    """A picture for each metric that two models have, with its sentences."""
    costs = {
        title: {e.label: e.costs[key] for e in context.models.entries if e.costs[key]}
        for key, title in COSTS.items()
    }
    shown, said = [], set()
    for metric in metrics:
        if len(metric.values) < 2:
            continue
        among = {
            title: {label: cost for label, cost in known.items() if label in metric.values}
            for title, known in costs.items()
        }
        panels = {
            title: known
            for title, known in among.items()
            if len(known) > 1 and not findings.equal(known.values())
        }
        if panels:
            fig = draw(context, metric, panels)
            caption = f"{metric.name} against {_listed(panels)}. {_bars(metric, context)}".strip()
            shown.append(Picture(f"trade-off-{metric.name}", caption, fig))
        equal = findings.equal_costs(among)
        shown.append(Text([_sentence(context, metric), equal if equal not in said else ""]))
        said.add(equal)
    return shown


def _listed(panels) -> str:
    return ", ".join(panels)


def _sentence(context: Context, metric: Metric) -> str:
    return findings.scores(
        metric.name, metric.estimates(context), context.reference, metric.measure,
        metric.lower, metric.floor,
    )  # fmt: skip


def _bars(metric: Metric, context: Context) -> str:
    """What the bars and markers of a picture are."""
    sizes = [sum(e.label in metric.values for e in f.entries) for f in context.families]
    words = []
    if max(sizes, default=0) > 1:
        words.append("Large markers are means over seeds, small ones single seeds")
    bars = []
    if any(metric.errors.values()) and min(sizes) <= 1:
        bars.append("over items (single runs)")
    if max(sizes, default=0) >= RARE:
        bars.append("over seeds")
    if bars:
        words.append(f"{'bars' if words else 'Bars'} are 95% intervals {' and '.join(bars)}")
    return "; ".join(words) + "." * bool(words)


def draw(context: Context, metric: Metric, panels: Mapping[str, Mapping[str, float]]):
    """A panel for each cost.

    Args:
      panels: {title of the cost: {label of an entry: cost}}.
    """
    fig, axes = figure.grid(len(panels), 3, 4.2, 3.2, 0.3)
    handles, estimates = {}, metric.estimates(context)
    for axis, (title, costs) in zip(axes, panels.items(), strict=True):
        groups = []
        for family in context.families:
            known = [e for e in family.entries if e.label in metric.values and e.label in costs]
            if known:
                estimate = estimates[family.label]
                groups.append(_marks(axis, context, metric, known, estimate, costs))
                label = family.label + f" ({len(known)} seeds)" * (len(known) > 1)
                groups[-1][0].set_label(label)
                handles.setdefault(label, groups[-1][0])
        figure.plain(axis)
        handles |= _limits(axis, metric)
        if metric.lower is not None:
            figure.better(axis, "nll" if metric.lower else "accuracy")
        figure.amounts(axis)
        axis.set_xlabel(title, color=figure.INK, fontsize=9)
        _keep_apart(fig, axis, groups)
    axes[0].set_ylabel(metric.label, color=figure.INK, fontsize=9)
    figure.legend(fig, handles)
    return fig


def _marks(axis, context: Context, metric: Metric, known, estimate: Estimate, costs) -> list:
    """The marks of a family: its value, with a bar, and its seeds, if there are several."""
    look, label = context.looks[known[0].label], known[0].label
    x = float(np.mean([costs[entry.label] for entry in known]))
    marks = [figure.own(_marker(axis, x, estimate.value, look, SIZE), label)]
    if estimate.half and (estimate.n == 1 or estimate.n >= RARE):
        ends = [[estimate.value - estimate.half], [estimate.value + estimate.half]]
        bar = axis.vlines([x], *ends, color=look.color, linewidth=1.4, zorder=1.5)
        marks.append(figure.own(bar, label))
        marks[0].note = f"± {format(estimate.half, metric.measure.form)} (95%)"
    for entry in known if len(known) > 1 else ():
        spot = _marker(axis, costs[entry.label], metric.values[entry.label], look, SEED_SIZE)
        spot.set_label(entry.label)
        marks.append(figure.own(spot, entry.label))
    return marks


def _marker(axis, x: float, y: float, look, size: float):
    face = look.color if look.filled else "#ffffff"
    (line,) = axis.plot(
        [x], [y], linestyle="None", marker=look.marker, color=look.color, markerfacecolor=face,
        markersize=size, alpha=1.0 if size == SIZE else 0.55, clip_on=False, zorder=3,
    )  # fmt: skip
    return line


def _limits(axis, metric: Metric) -> dict:
    """Fits the panel to its values and bars, and draws its floor; returns entries of the legend."""
    axis.margins(0.12)
    axis.autoscale_view()
    if metric.measure.scale != 100:
        return {}
    if not metric.floor:
        figure.shares(axis)
        return {}
    level, how = metric.floor
    figure.shares(axis, level, level)
    return (
        figure.floors(axis, level) if how == "chance" else figure.floors(axis, None, (how, level))
    )


def _keep_apart(fig, axis, groups: list[list]) -> None:
    """Gives models that would lie on one another lanes side by side, some points of the page apart."""
    from matplotlib.transforms import ScaledTranslation

    fig.draw_without_rendering()
    boxes = []  # of each model, in points of the page: x, lowest y, highest y
    for marks in groups:
        ends = np.concatenate([_ends(mark) for mark in marks])
        x, y = (72 / fig.dpi * axis.transData.transform(ends)).T
        boxes.append((x.mean(), y.min() - SIZE / 2, y.max() + SIZE / 2))
    lanes: list[list[int]] = []
    for k in sorted(range(len(groups)), key=lambda k: boxes[k][0]):
        lane = next((g for g in lanes if any(_touch(boxes[k], boxes[i]) for i in g)), None)
        lane.append(k) if lane else lanes.append([k])
    for lane in lanes:
        for place, k in enumerate(lane):
            shift = (place - (len(lane) - 1) / 2) * (SIZE + 3)
            for mark in groups[k] if shift else ():
                moved = ScaledTranslation(shift / 72, 0, fig.dpi_scale_trans)
                mark.set_transform(axis.transData + moved)
                mark.shift = shift


def _ends(mark) -> np.ndarray:
    """The points of a marker or of a bar, in data coordinates, [n, 2]."""
    return mark.get_xydata() if hasattr(mark, "get_xydata") else np.concatenate(mark.get_segments())


def _touch(one, other) -> bool:
    near = abs(one[0] - other[0]) < SIZE
    return near and one[1] < other[2] and other[1] < one[2]
