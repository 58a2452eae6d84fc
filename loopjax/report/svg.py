"""A figure as SVG inside a page, and its numbers as JSON for whoever points at it.

Whatever `figure.own` marked becomes `data-model="..."`, by which the page hides and shows it. The
numbers of a figure are its axes: where they lie in the SVG, their limits, their lines in data
coordinates and the values of their images.
"""

import io
import math
import re

import numpy as np

POINTS = 1000  # of a line; more are thinned
_OWNER = "owner-"


def convert(fig, owners: dict[str, str], alt: str, key: str) -> tuple[str, dict, bool]:
    """(SVG, numbers, whether a line was thinned) of a figure.

    Args:
      owners: {label that an artist was marked with: word for `data-model`}.
      alt: what the picture shows, for those who do not see it.
      key: a word that no other figure of the page has.
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
    """Leaves a line so many points that a screen shows, extremes among them; says if it had more."""
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
    """What a legend says of a model belongs to the model too."""
    label_of = {line: kept[line] for line in kept if hasattr(line, "get_color")}
    for legend in [*fig.legends, *(a.get_legend() for a in fig.axes if a.get_legend())]:
        for text, handle in zip(legend.get_texts(), legend.legend_handles, strict=True):
            said = text.get_text()
            # The longest: "a" and "a at 4x2" are two models.
            fitting = [label for label in label_of.values() if said.startswith(label)]
            if fitting:
                kept[text] = kept[handle] = max(fitting, key=len)


def _draw(fig, key: str) -> str:
    import matplotlib as mpl

    made = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": key}):
        fig.savefig(made, format="svg", metadata={"Date": None}, transparent=True)
    return made.getvalue()


def _inline(text: str, alt: str) -> str:
    """An SVG file as an element of HTML: no prolog, no namespaces, no names that nobody uses."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(rf'id="{_OWNER}([^"]*)"', r'data-model="\1"', text)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", text)
    width = float(re.search(r'width="([\d.]+)pt"', text)[1])
    alt = alt.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    head = f'<svg role="img" aria-label="{alt}" style="max-width:{1.25 * width:.0f}px"'
    text = re.sub(r'(width|height)="[\d.]+pt" ?', "", text, count=2)
    text = text.replace("<svg", head, 1)
    return re.sub(r">\s+<", "><", text)


def _numbers(axis, width: float, height: float, owners: dict) -> dict | None:
    """What can be pointed at in an axis; None where there is nothing."""
    box = axis.get_position()
    lines = []
    for line in axis.lines:
        x, y = (np.asarray(values, float) for values in line.get_data())
        label = line.get_label()
        if line.get_gid() not in owners or label.startswith("_child"):  # it has none
            continue
        said = {"model": owners[line.get_gid()], "label": label}
        if line.get_linestyle() == "None":
            lines.append(said | {"spot": [_plain(x)[0], _plain(y)[0]]})
        elif line.get_transform() == axis.transData:
            lines.append(said | {"points": [_plain(x), _plain(y)]})
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
        "title": axis.get_title(loc="left"), "xlabel": axis.get_xlabel(),
        "ylabel": axis.get_ylabel(), "lines": lines, "images": images,
    }  # fmt: skip


def _values(image) -> np.ndarray:
    return np.ma.filled(np.ma.asarray(image.get_array(), float), np.nan)


def _plain(values) -> list:
    """As JSON, with as many digits as a reader wants; None for what is no number."""
    return [_short(v) if math.isfinite(v) else None for v in values]


def _short(value: float) -> float:
    return float(f"{value:.5g}") if abs(value) < 1e5 and value != int(value) else float(value)
