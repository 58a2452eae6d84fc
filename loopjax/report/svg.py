"""A figure as inline SVG, its legend as HTML, and its numbers as JSON for tooltips.

Parts marked by `figure.own` get the attribute `data-model="..."`, with which the page hides and
shows them. Colors become CSS variables, so that the page can be light or dark (`theme.py`). The
numbers of a figure are its axes: their position in the SVG, their limits, their lines in data
coordinates, and the values of their images.
"""

import dataclasses
import html
import io
import math
import re

import numpy as np

from loopjax.plots.figure import INK
from loopjax.report import legends, theme

POINTS = 1000  # points of a line; longer lines are thinned
PIXELS = 1.25  # pixels of the page for a point of a figure, and at least
LEAST = 1.2
_OWNER = "owner-"
# Colors of text on images and boxes, which do not follow the theme.
_ON_FILL = {"#ffffff": "#fefefe", "#000000": "#010101", INK: "#1f2938"}


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A figure as parts of a page.

    Attributes:
      svg: the element.
      width: its width on a wide page, in pixels.
      legend: the entries of its legends, which are not in the SVG.
      numbers: {"axes": [...]}, for JSON.
      colors: the colors of its lines and areas, "#rrggbb"; `theme.css` defines their variables.
      thinned: whether a line was thinned.
    """

    svg: str
    width: int
    legend: list[legends.Key]
    numbers: dict
    colors: set[str]
    thinned: bool


def convert(fig, owners: dict[str, str], alt: str, key: str) -> Drawing:
    """A figure for a page. The figure loses its legends, and long lines are thinned.

    Args:
      owners: {label that an artist was marked with: value of `data-model`}.
      alt: alternative text.
      key: a word that is unique on the page.
    """
    thinned = [thin(line) for axis in fig.axes for line in axis.lines]
    kept = {}
    for artist in fig.findobj(lambda artist: artist.get_gid() in owners):
        kept[artist] = artist.get_gid()
    legend = legends.taken_from(fig, owners)
    colors = _colors(fig)
    for axis in fig.axes:
        for text in axis.texts if axis.images or _boxes(axis) else ():
            text.set_color(_ON_FILL.get(_hex(text.get_color()), text.get_color()))
        for image in axis.images:  # cells without a value show the page
            image.set_cmap(image.get_cmap().with_extremes(bad=(0, 0, 0, 0)))
    for artist, label in kept.items():
        artist.set_gid(_OWNER + owners[label])
    svg = _inline(_themed(_draw(fig, key), colors), alt)
    height, width = (72 * size for size in (fig.get_figheight(), fig.get_figwidth()))
    for artist, label in kept.items():
        artist.set_gid(label)
    axes = [_numbers(axis, width, height, owners) for axis in fig.axes]
    numbers = {"axes": [axis for axis in axes if axis]}
    return Drawing(svg, round(PIXELS * width), legend, numbers, colors, any(thinned))


def _hex(color) -> str | None:
    """ "#rrggbb" of a color of matplotlib; None for "none" and transparent ones."""
    from matplotlib import colors

    red, green, blue, alpha = colors.to_rgba(color)
    return colors.to_hex((red, green, blue)) if alpha else None


def _boxes(axis) -> bool:
    """Whether an axis has boxes with text, as a lineage has."""
    from matplotlib.patches import FancyBboxPatch

    return any(isinstance(patch, FancyBboxPatch) for patch in axis.patches)


def _colors(fig) -> set[str]:
    """The colors of a figure, except those of images, color bars and boxes with text."""
    from matplotlib.collections import Collection, QuadMesh
    from matplotlib.lines import Line2D
    from matplotlib.patches import FancyBboxPatch, Patch
    from matplotlib.text import Text

    found = {"#000000", "#ffffff"}
    for artist in fig.findobj():
        if isinstance(artist, Line2D):
            colors = [
                artist.get_color(),
                artist.get_markerfacecolor(),
                artist.get_markeredgecolor(),
            ]
        elif isinstance(artist, Patch) and not isinstance(artist, FancyBboxPatch):
            colors = [artist.get_facecolor(), artist.get_edgecolor()]
        elif isinstance(artist, Text):
            colors = [artist.get_color()]
        elif isinstance(artist, Collection) and not isinstance(artist, QuadMesh):
            colors = [*artist.get_facecolor(), *artist.get_edgecolor()]
        else:
            continue
        found |= {_hex(color) for color in colors}
    return found - {None}


def _themed(text: str, colors: set[str]) -> str:
    """An SVG whose colors are CSS variables."""
    return re.sub(
        r"(?<=: )(#[0-9a-f]{6})\b",
        lambda found: theme.variable(found[1]) if found[1] in colors else found[1],
        text,
    )


def thin(line) -> bool:
    """Thins a line to POINTS points, keeping extremes; returns whether it had more."""
    x, y = (np.asarray(values, float) for values in line.get_data())
    if len(x) <= POINTS:
        return False
    kept = {0, len(x) - 1}
    for part in np.array_split(np.arange(len(x)), POINTS // 2 - 1):
        if np.isfinite(y[part]).any():
            kept |= {int(part[np.nanargmin(y[part])]), int(part[np.nanargmax(y[part])])}
    kept = sorted(kept)
    line.set_data(x[kept], y[kept])
    return True


def _draw(fig, key: str) -> str:
    import matplotlib as mpl

    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": key}):
        fig.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    return buffer.getvalue()


def _inline(text: str, alt: str) -> str:
    """An SVG file as an HTML element: without prolog, namespaces and unused ids."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(rf'id="{_OWNER}([^"]*)"', r'data-model="\1"', text)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", text)
    width = float(re.search(r'width="([\d.]+)pt"', text)[1])
    # It may shrink to the page, but its letters stay legible: a narrow page scrolls it.
    sides = f"max-width:{PIXELS * width:.0f}px;min-width:{LEAST * width:.0f}px"
    head = f'<svg role="img" aria-label="{html.escape(alt)}" style="{sides}"'
    text = re.sub(r'(width|height)="[\d.]+pt" ?', "", text, count=2)
    text = text.replace("<svg", head, 1)
    return re.sub(r">\s+<", "><", text)


def _numbers(axis, width: float, height: float, owners: dict) -> dict | None:
    """The numbers of an axis for tooltips; None if it has none."""
    box = axis.get_position()
    lines = []
    for line in axis.lines:
        x, y = (np.asarray(values, float) for values in line.get_data())
        label = line.get_label()
        if line.get_gid() not in owners or label.startswith("_child"):  # a line without a label
            continue
        about = {"model": owners[line.get_gid()], "label": label}
        if line.get_linestyle() == "None":
            # Set by `tradeoffs`: the interval in words, and how far the marker was moved aside.
            note, shift = getattr(line, "note", ""), getattr(line, "shift", 0)
            more = {"note": note} | ({"shift": round(shift, 1)} if shift else {})
            lines.append(
                about | {"spot": [_plain(x)[0], _plain(y)[0]]} | (more if note or shift else {})
            )
        elif line.get_transform() == axis.transData or getattr(line, "shifted", False):
            lines.append(about | {"points": [_plain(x), _plain(y)]})
    images = []
    for image in axis.images:
        x0, x1, y0, y1 = image.get_extent()
        owner = axis.get_gid()
        images.append({"model": owners.get(owner), "label": owner or "", "extent": [x0, x1, y0, y1],
                       "values": [_plain(row) for row in _values(image)]})  # fmt: skip
    if not lines and not images:
        return None
    return {
        "box": [_short(v) for v in (width * box.x0, height * (1 - box.y1),
                                    width * box.x1, height * (1 - box.y0))],
        "x": [*map(float, axis.get_xlim()), axis.get_xscale()],
        "y": [*map(float, axis.get_ylim()), axis.get_yscale()],
        "title": axis.get_title(loc="left").replace(r"\$", "$"), "xlabel": axis.get_xlabel(),
        "ylabel": axis.get_ylabel(), "lines": lines, "images": images,
    }  # fmt: skip


def _values(image) -> np.ndarray:
    return np.ma.filled(np.ma.asarray(image.get_array(), float), np.nan)


def _plain(values) -> list:
    """As JSON, rounded; None for values that are not finite."""
    return [_short(v) if math.isfinite(v) else None for v in values]


def _short(value: float) -> float:
    return float(f"{value:.5g}") if abs(value) < 1e5 and value != int(value) else float(value)
