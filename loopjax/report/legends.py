"""The legend of a figure as HTML, so that it wraps on a narrow page instead of shrinking."""

import html
from typing import NamedTuple

from loopjax.plots import roles
from loopjax.report import theme

WIDTH, HEIGHT = 30, 14  # pixels of a key
SIZE = 8.0  # pixels of a marker, at most


class Key(NamedTuple):
    """An entry of a legend.

    Attributes:
      model: value of `data-model`; "" for an entry that belongs to no model.
      text: what it says.
      drawing: the line, marker or area, as SVG; "" for a note on all of them.
    """

    model: str
    text: str
    drawing: str


def taken_from(fig, owners: dict[str, str]) -> list[Key]:
    """The entries of the legends of a figure, which loses its legends and their height.

    Args:
      owners: {label of a model: value of `data-model`}. An entry belongs to the model whose label it
        begins with; to the longest of them, since "a" and "a at 4x2" are two models.
    """
    keys = {}
    for legend in [*fig.legends, *(a.get_legend() for a in fig.axes if a.get_legend())]:
        for text, handle in zip(legend.get_texts(), legend.legend_handles, strict=True):
            entry = text.get_text().replace(r"\$", "$")
            matches = [label for label in owners if entry.startswith(label)]
            model = owners[max(matches, key=len)] if matches else ""
            keys[entry] = Key(model, entry, _drawing(handle))
        if note := legend.get_title().get_text():
            keys[note] = Key("", note.replace(r"\$", "$"), "")
    if fig.legends:
        fig.draw_without_rendering()
        high = sum(legend.get_window_extent().height for legend in fig.legends) / fig.dpi
        fig.set_figheight(fig.get_figheight() - high)
    fig.legends.clear()
    for axis in fig.axes:
        if axis.get_legend():
            axis.get_legend().remove()
    return list(keys.values())


def as_html(keys: list[Key]) -> str:
    """Entries that look the same, as the seeds of one configuration do, are one entry."""
    alike: dict[str, list[Key]] = {}
    for key in keys:
        alike.setdefault(key.drawing, []).append(key)
    items = [f'<li class="note">{html.escape(key.text)}</li>' for key in alike.pop("", ())]
    for drawing, same in alike.items():
        size = f'width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
        sign = f'<svg class="key" {size} aria-hidden="true">{drawing}</svg>'
        names = "".join(
            f"<span{key.model and f' data-model={key.model}'}>{html.escape(key.text)}</span>"
            for key in same
        )
        owner = f' data-model="{same[0].model}"' if len(same) == 1 and same[0].model else ""
        items.append(f"<li{owner}>{sign}{names}</li>")
    return f'<ul class="keys">{"".join(items)}</ul>' if items else ""


def _drawing(handle) -> str:
    """A handle of a legend as SVG: a line with its marker, or an area."""
    from matplotlib import colors
    from matplotlib.lines import Line2D

    middle = HEIGHT / 2
    if not isinstance(handle, Line2D):
        color = handle.get_facecolor()
        color = color[0] if getattr(color, "ndim", 1) == 2 else color
        fill = theme.variable(colors.to_hex(color[:3]))
        opacity = f' fill-opacity="{color[3]:.2g}"' if color[3] < 1 else ""
        return (
            f'<rect x="2" y="2" width="{WIDTH - 4}" height="{HEIGHT - 4}" fill="{fill}"{opacity}/>'
        )
    parts = []
    color = theme.variable(colors.to_hex(handle.get_color()))
    if handle.get_linestyle() not in ("None", "none", " ", ""):
        _, dashes = handle._dash_pattern  # matplotlib has no public way to ask for them
        dashed = f' stroke-dasharray="{" ".join(f"{d:.2g}" for d in dashes)}"' if dashes else ""
        width = max(1.5, handle.get_linewidth())
        parts.append(
            f'<path d="M1 {middle:g}H{WIDTH - 1}" stroke="{color}" stroke-width="{width:g}"{dashed}/>'
        )
    if handle.get_marker() not in ("None", "none", " ", "", None):
        face, edge = (
            theme.variable(colors.to_hex(one))
            for one in (handle.get_markerfacecolor(), handle.get_markeredgecolor())
        )
        parts.append(f'<path d="{_marker(handle)}" fill="{face}" stroke="{edge}"/>')
    return "".join(parts)


def _marker(handle) -> str:
    size = min(SIZE, max(4.0, handle.get_markersize() * 1.25))
    return outline(handle.get_marker(), size, WIDTH / 2, HEIGHT / 2)


def marker(look: roles.Look) -> str:
    """The marker of a model alone, for its check box and the rows of tables."""
    color = theme.variable(look.color)
    face = color if look.filled else "none"
    path = outline(look.marker, 9.0, 6, 6)
    return (
        '<svg class="sign" width="12" height="12" viewBox="0 0 12 12" aria-hidden="true">'
        f'<path d="{path}" fill="{face}" stroke="{color}" stroke-width="1.3"/></svg>'
    )


def outline(name, size: float, x: float, y: float) -> str:
    """A marker of matplotlib around (x, y) as the data of an SVG path."""
    from matplotlib.markers import MarkerStyle

    style = MarkerStyle(name)
    path = style.get_path().transformed(style.get_transform())
    commands = {1: "M", 2: "L", 3: "Q", 4: "C"}
    data = []
    for points, code in path.iter_segments():
        if code == 79:
            data.append("Z")
            continue
        places = zip(points[::2], points[1::2], strict=True)
        text = " ".join(f"{x + a * size:.1f} {y - b * size:.1f}" for a, b in places)
        data.append(commands[code] + text)
    return "".join(data)
