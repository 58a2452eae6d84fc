"""A figure as inline SVG, and its numbers as JSON for tooltips.

Parts marked by `figure.own` get the attribute `data-model="..."`, with which the page hides and
shows them. The numbers of a figure are its axes: their position in the SVG, their limits, their
lines in data coordinates, and the values of their images.
"""

import io
import math
import re

import numpy as np

POINTS = 1000  # points of a line; longer lines are thinned
_OWNER = "owner-"


def convert(fig, owners: dict[str, str], alt: str, key: str) -> tuple[str, dict, bool]:
    """(SVG, numbers, whether a line was thinned) of a figure.

    Args:
      owners: {label that an artist was marked with: value of `data-model`}.
      alt: alternative text.
      key: a word that is unique on the page.
    """
    thinned = [thin(line) for axis in fig.axes for line in axis.lines]
    kept = {}
    for artist in fig.findobj(lambda artist: artist.get_gid() in owners):
        kept[artist] = artist.get_gid()
    _mark_legends(fig, kept)
    for artist, label in kept.items():
        artist.set_gid(_OWNER + owners[label])
    svg = _inline(_draw(fig, key), alt)
    height, width = (72 * size for size in (fig.get_figheight(), fig.get_figwidth()))
    for artist, label in kept.items():
        artist.set_gid(label)
    axes = [_numbers(axis, width, height, owners) for axis in fig.axes]
    return svg, {"axes": [axis for axis in axes if axis]}, any(thinned)


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


def _mark_legends(fig, kept: dict) -> None:
    """Marks the legend entries of a model as the model's."""
    label_of = {line: kept[line] for line in kept if hasattr(line, "get_color")}
    for legend in [*fig.legends, *(a.get_legend() for a in fig.axes if a.get_legend())]:
        for text, handle in zip(legend.get_texts(), legend.legend_handles, strict=True):
            entry = text.get_text()
            # The longest match: "a" and "a at 4x2" are two models.
            matches = [label for label in label_of.values() if entry.startswith(label)]
            if matches:
                kept[text] = kept[handle] = max(matches, key=len)


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
    alt = alt.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    head = f'<svg role="img" aria-label="{alt}" style="max-width:{1.25 * width:.0f}px"'
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
            lines.append(about | {"spot": [_plain(x)[0], _plain(y)[0]]})
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
