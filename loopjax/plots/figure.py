"""Pictures by matplotlib, which is an extra: axes, looks of models, marks, legends, PNG and PDF."""

import io
import textwrap

import numpy as np

from loopjax import paths
from loopjax.errors import UserError, require
from loopjax.plots import roles
from loopjax.plots.roles import Look

COLORS = ("#2563eb", "#dc2626", "#059669", "#9333ea", "#d97706", "#0891b2", "#be185d", "#4d7c0f")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")
INK, PALE = "#1f2937", "#e5e7eb"
FAINT = "#9ca3af"
SMALL = 8  # points, of ticks and legends
STEP = 3.2  # points between the marks of two models at one place
DPI = 200


def installed() -> bool:
    """Whether matplotlib is there."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        return False
    return True


def new(width: float, height: float):
    """An empty figure, in inches; raises UserError if matplotlib is not installed."""
    require("matplotlib.figure", "report", "a figure")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    fig = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(fig)
    return fig


def grid(n: int, columns: int, width: float, height: float, more: float = 0.0):
    """(figure, n axes) in rows of `columns`.

    Args:
      width, height: inches of one axis.
      more: inches added to the height of the figure.
    """
    columns = max(1, min(n, columns))
    rows = -(-n // columns)
    fig = new(width * columns, height * rows + more)
    fig.get_layout_engine().set(h_pad=0.04, hspace=0.05)
    cells = fig.add_gridspec(rows, columns)
    return fig, [fig.add_subplot(cells[divmod(k, columns)]) for k in range(n)]


# Looks of models


def looks(labels, chosen: dict | None = None) -> dict[str, Look]:
    """{label: look} of models.

    Args:
      labels: a label that is a role ("lidas", "lidas, cooldown") has the look of the role; those beside
        it get the looks of `roles.OTHERS`. Where none is a role, each gets the next of COLORS and
        MARKERS, then shades of them.
      chosen: {label: Look or "#rrggbb"}, for labels that do not get these.
    """
    chosen, found, others = chosen or {}, {}, 0
    named = {label: roles.named(str(label)) for label in labels}
    for k, (label, one) in enumerate(named.items()):
        one = chosen.get(label) or one
        if not one and any(named.values()):
            one, others = roles.look("other", repeated=others), others + 1
        one = one or _shade(k)
        found[label] = one if isinstance(one, Look) else Look(one, MARKERS[k % len(MARKERS)])
    return found


def colors(labels, chosen: dict | None = None) -> dict[str, str]:
    """{label: color} of `looks`."""
    return {label: look.color for label, look in looks(labels, chosen).items()}


def _shade(k: int) -> str:
    base = COLORS[k % 8]
    target, share = ((0, 0.0), (255, 0.5), (0, 0.45))[k // 8 % 3]
    parts = (int(base[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(part + share * (target - part)):02x}" for part in parts)


def own(artist, label: str):
    """Marks a line, an image or a whole axis as a model's, so that the report can hide and show it."""
    artist.set_gid(label)
    return artist


def marked(look: Look, size: float = 5) -> dict:
    """The style of the markers of a model."""
    face = look.color if look.filled else "white"
    style = {"color": look.color, "marker": look.marker, "markersize": size}
    return style | {"markerfacecolor": face, "markeredgecolor": look.color}


def shifts(labels) -> dict[str, float]:
    """{label: points to the right} that keep the marks of several models at one place apart."""
    labels = list(labels)
    step = min(STEP, 20 / max(len(labels), 1))
    return {label: step * (k - (len(labels) - 1) / 2) for k, label in enumerate(labels)}


def shifted(axis, points: float):
    """The transform of data that is drawn this many points to the right of its place."""
    from matplotlib.transforms import ScaledTranslation

    return axis.transData + ScaledTranslation(points / 72, 0, axis.figure.dpi_scale_trans)


# Marks


def curve(
    axis, x, y, label: str, look: Look, *, ends=None, shift: float = 0.0, owner=None, **style
):
    """A line with markers, and the intervals of its points; returns the line.

    Args:
      ends: (lower ends, upper ends) of the intervals.
      shift: points to the right at which marks are drawn; the line's data stay where they are.
      owner: label of the model that it belongs to; `label` by default.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    place = shifted(axis, shift)
    style = {"linestyle": look.linestyle, "linewidth": 1.4, "label": label, "zorder": 3} | style
    if len(x) > 12:  # as many markers as can be told apart, those of several models at other points
        step = -(-len(x) // 8)
        start = (len(axis.lines) * step // 3) % step
        style["markevery"] = sorted({*range(start, len(x), step), len(x) - 1})
    (line,) = axis.plot(x, y, transform=place, clip_on=False, **(marked(look) | style))
    line.shifted = True  # its data are those of the axis all the same, for the page's tooltips
    axis.update_datalim(np.column_stack([x, y])[np.isfinite(y)])
    if ends is not None:
        low, high = (np.asarray(end, float) for end in ends)
        bars = axis.vlines(
            x, low, high, color=look.color, linewidth=1.1, transform=place, zorder=2.5, alpha=0.8
        )
        axis.update_datalim(np.column_stack([[*x, *x], [*low, *high]]))
        own(bars, owner or label)
    axis.autoscale_view()
    return own(line, owner or label)


def floors(axis, chance: float | None = None, best: tuple[str, float] | None = None) -> dict:
    """What takes no skill: chance as a dotted line, the best rule as a gray area.

    Args:
      best: (rule, accuracy) as `data.floors` has it; left out if it is chance.

    Returns {entry of the legend: artist}.
    """
    drawn, kept = {}, axis.dataLim.frozen()
    if best and best[1] > (chance or 0) + 1e-3:
        area = axis.axhspan(
            -1, best[1], facecolor="#f1f2f4", edgecolor=FAINT, linewidth=1, zorder=0
        )
        drawn[f"{best[0]}: {best[1]:.0%}"] = area
    if chance:
        style = {"color": INK, "linestyle": ":", "linewidth": 1.2, "zorder": 1}
        drawn[f"chance: {chance:.0%}"] = axis.axhline(chance, **style)
    axis.dataLim.set(kept)  # the limits of the axis are those of the models and of `shares`
    return drawn


def skill(axis, known) -> dict:
    """Fits an axis of accuracies and draws its floors (`data.floors.Floors`, or None).

    Returns {entry of the legend: artist}.
    """
    if known is None or known.best[1] < 0.01:
        shares(axis)
        return {}
    shares(axis, known.chance, known.best[1])
    return floors(axis, known.chance, known.best)


def shares(axis, low: float | None = None, high: float | None = None) -> None:
    """A vertical axis of accuracies: fitted to what is drawn, within 0..1, in percent.

    Args:
      low, high: values that must be inside.
    """
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    values = [v for v in (axis.dataLim.y0, axis.dataLim.y1, low, high) if v is not None]
    values = [value for value in values if np.isfinite(value)] or [0, 1]
    least, most = min(values), max(values)
    margin = 0.06 * (most - least) or 0.02
    axis.set_ylim(max(least - margin, -0.01), min(most + margin, max(1.01, most)))
    axis.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    spread = axis.get_ylim()[1] - axis.get_ylim()[0]
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=1 if spread < 0.04 else 0))


def clipped(axis) -> dict:
    """Marks values of models beyond the vertical axis by a caret at its edge, in the model's color.

    Call it when the limits are final. Returns {entry of the legend: artist}, empty if there are none.
    """
    from matplotlib.lines import Line2D

    low, high = axis.get_ylim()
    found = False
    for line in list(axis.lines):
        x, y = (np.asarray(values, float) for values in line.get_data())
        if line.get_gid() is None:  # not a model's
            continue
        for beyond, edge, marker in ((y > high, 1, 6), (y < low, 0, 7)):
            if beyond.any():
                line.set_clip_on(True)
                _carets(axis, line, x[beyond], edge, marker)
                found = True
    mark = Line2D([], [], color=INK, marker=6, linestyle="none", markersize=6)
    return {"beyond the axis": mark} if found else {}


def _carets(axis, line, x, edge: int, marker: int) -> None:
    from matplotlib.transforms import blended_transform_factory

    place = blended_transform_factory(line.get_transform(), axis.transAxes)
    style = {"color": line.get_color(), "marker": marker, "markersize": 6, "linestyle": "none"}
    (caret,) = axis.plot(x, [edge] * len(x), transform=place, clip_on=False, zorder=5, **style)
    own(caret, line.get_gid())


def edges(axis, places: dict[str, list[float]], chosen: dict) -> dict:
    """The edges of blocks: lines where most models have them, ticks in their color for the others.

    Args:
      places: {label: places on the horizontal axis}; models without blocks are left out.
      chosen: {label: Look}.

    Returns {entry of the legend: artist}.
    """
    places = {label: tuple(at) for label, at in places.items() if len(at)}
    if not places:
        return {}
    every = list(places.values())
    common = max(every, key=every.count)  # of most models: lines
    style = {"color": FAINT, "linewidth": 0.8, "linestyle": (0, (2, 2)), "zorder": 0}
    lines = [axis.axvline(x, **style) for x in common]
    drawn = {"edges of blocks": lines[0]}
    others = [label for label, at in places.items() if at != common]
    for k, label in enumerate(others):
        about = {
            "color": chosen[label].color,
            "linewidth": 1.8,
            "transform": axis.get_xaxis_transform(),
        }
        ticks = axis.vlines(places[label], 0.05 * k, 0.05 * k + 0.045, zorder=1, **about)
        own(ticks, label)
        drawn[f"those of {label}"] = ticks
    return drawn


def better(axis, metric: str, cost: bool = True) -> None:
    """An arrow above the axis to where models are better: fewer costs, and the better metric.

    Args:
      metric: label of the vertical axis; NLL, losses and nats are better if low, accuracies if high.
      cost: whether the horizontal axis is a cost.
    """
    words = metric.lower()
    low = any(word in words for word in ("nll", "nats", "loss", "bits", "perplexity"))
    high = any(word in words for word in ("acc", "f1", "exact_match", "reasoning"))
    if low or high:
        arrow = ("↙" if low else "↖") if cost else ("↓" if low else "↑")
        axis.set_title(f"better {arrow}", loc="right", color=INK, fontsize=SMALL)


# Texts and axes


def literal(text: str) -> str:
    """A text as matplotlib must get it to draw its dollar signs, which would start a formula."""
    return text.replace("$", r"\$")


def title(axis, text: str) -> None:
    axis.set_title(literal(text), loc="left", color=INK, fontsize=9.5, fontweight="bold")


def heading(fig, text: str) -> None:
    """A title above all axes."""
    fig.suptitle(literal(text), x=0.01, ha="left", color=INK, fontsize=11, fontweight="bold")


def labels(axis, x: str = "", y: str = "") -> None:
    """The names of the axes."""
    axis.set_xlabel(literal(x), color=INK, fontsize=9)
    axis.set_ylabel(literal(y), color=INK, fontsize=9)


def layers(axis, n: int, label: str = "executed layer") -> None:
    """The horizontal axis of n executed layers; a tick every four layers if there are more than 12."""
    axis.set_xticks(range(0, n, 1 if n <= 12 else 4))
    axis.set_xlabel(label, color=INK, fontsize=9)


def ticks(axis, values, texts=None) -> None:
    """Ticks at these places of the horizontal axis alone, thinned if there are many."""
    values = sorted(set(values)) if texts is None else list(values)
    if texts is None:
        step = -(-len(values) // 10)
        values = values[::step]
        texts = [f"{value:,}" if isinstance(value, int) else f"{value:g}" for value in values]
    axis.set_xticks(values, texts)
    axis.minorticks_off()


def amounts(axis) -> None:
    """A horizontal axis of parameters or FLOPs: few ticks, like "1.5M"."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(4))
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))


def plain(axis) -> None:
    """An axis for curves: a light grid, no box."""
    axis.grid(color=PALE, linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(PALE)
    axis.tick_params(colors=INK, labelsize=SMALL, length=0)


def legend(fig, lines: dict, note: str = "") -> None:
    """A legend of {text: artist} below all axes; a long one makes the figure taller, not the axes.

    Args:
      note: sentences above it, for example what the intervals are.
    """
    columns = _columns([len(text) for text in lines], fig.get_figwidth())
    words = textwrap.wrap(note, int(16 * fig.get_figwidth() - 5))
    rows = -(-len(lines) // columns) + len(words)
    fig.set_figheight(fig.get_figheight() + max(0, rows - 2) / 5)
    drawn = fig.legend(
        lines.values(), map(literal, lines), loc="outside lower left", ncols=columns,
        frameon=False, fontsize=SMALL, labelcolor=INK, title=literal("\n".join(words)) or None, borderaxespad=0.2,
        title_fontproperties={"size": SMALL}, alignment="left", handlelength=3.2,
    )  # fmt: skip
    drawn.get_title().set_color(INK)


def _columns(lengths: list[int], width: float) -> int:
    """The most columns of a legend that fit a width in inches, from the lengths of its texts."""
    for columns in range(len(lengths), 1, -1):
        parts = np.array_split(lengths, columns)  # as matplotlib fills its columns
        # An inch holds about 15 characters of this size.
        if sum(max(part) / 15 + 0.7 for part in parts) <= width:
            return columns
    return 1


def png(fig) -> bytes:
    return _image(fig, "png")


def save(fig, path, flag: str = "--plot") -> None:
    """Writes a PDF if the path ends in .pdf, else a PNG; raises UserError if it cannot be written."""
    path = paths.of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_image(fig, "pdf" if path.suffix == ".pdf" else "png"))
    except OSError as error:
        raise UserError(f"{flag} {path} cannot be written: {error.strerror}") from None


def _image(fig, kind: str) -> bytes:
    buffer = io.BytesIO()
    # Without the time: the same figure is the same file.
    fig.savefig(
        buffer, format=kind, dpi=DPI, metadata={"CreationDate": None} if kind == "pdf" else {}
    )
    return buffer.getvalue()
