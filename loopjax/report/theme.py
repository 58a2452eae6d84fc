"""The colors of a page, light and dark.

The page and its figures name colors by CSS variables, which have a light and a dark value. The dark
values hold where the reader's system is dark, or where the page's button says so; print is light. A
color of a figure keeps its hue in both: it is made darker or lighter until it stands out from the
page.
"""

from loopjax.plots.figure import FAINT, INK, PALE

LIGHT = {
    "paper": "#ffffff", "ink": INK, "soft": "#5b6472", "grid": PALE, "line": "#d1d5db",
    "code": "#f6f7f9", "faint": FAINT, "area": "#f1f2f4", "focus": "#2563eb", "shade": "rgb(0 0 0 / .16)",
}  # fmt: skip
DARK = {
    "paper": "#14171c", "ink": "#e3e6ea", "soft": "#a3abb8", "grid": "#343a44", "line": "#4b5260",
    "code": "#1d2127", "faint": "#6b7380", "area": "#22272f", "focus": "#8ab4f8", "shade": "rgb(0 0 0 / .55)",
}  # fmt: skip
# Contrast of a color of a figure with the page, at least; WCAG 2.2 asks for 3 (criterion 1.4.11).
CONTRAST = 3.2
DARK_CONTRAST = 4.8
# Colors of figures that are those of the page: text, grid, areas, background.
_OF_PAGE = {
    INK: "ink", "#000000": "ink", PALE: "grid", FAINT: "faint", LIGHT["area"]: "area", "#ffffff": "paper",
}  # fmt: skip


def variable(color: str) -> str:
    """The CSS value for a color of a figure ("#rrggbb"), which follows the theme."""
    return f"var(--{_OF_PAGE.get(color, 'c' + color[1:])})"


def css(colors) -> str:
    """The rules that define all variables; `colors` are the colors of the figures, "#rrggbb"."""
    own = sorted({color for color in colors if color not in _OF_PAGE})
    light = LIGHT | {f"c{c[1:]}": readable(c, LIGHT["paper"], CONTRAST) for c in own}
    dark = DARK | {f"c{c[1:]}": readable(c, DARK["paper"], DARK_CONTRAST) for c in own}
    return "\n".join([
        f":root {{ color-scheme: light; {_declared(light)} }}",
        f'@media (prefers-color-scheme: dark) {{ :root:not([data-theme="light"]) '
        f"{{ color-scheme: dark; {_declared(dark)} }} }}",
        f':root[data-theme="dark"] {{ color-scheme: dark; {_declared(dark)} }}',
        f"@media print {{ :root, :root:not([data-theme]), :root[data-theme] "
        f"{{ color-scheme: light; {_declared(light)} }} }}",
    ])  # fmt: skip


def _declared(values: dict[str, str]) -> str:
    return " ".join(f"--{name}: {value};" for name, value in values.items())


def readable(color: str, paper: str, least: float) -> str:
    """The color, or the nearest mixture of it with black or white whose contrast is at least `least`."""
    target = "#ffffff" if luminance(paper) < 0.2 else "#000000"
    for percent in range(0, 101, 2):
        mixed = mix(color, target, percent / 100)
        if contrast(mixed, paper) >= least:
            return mixed
    return target


def mix(color: str, other: str, share: float) -> str:
    """`share` of another color in a color."""
    pairs = zip(_channels(color), _channels(other), strict=True)
    return "#" + "".join(f"{round(a + share * (b - a)):02x}" for a, b in pairs)


def contrast(a: str, b: str) -> float:
    """The contrast ratio of two colors, 1 to 21 (WCAG 2.2)."""
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def luminance(color: str) -> float:
    """Relative luminance, 0 to 1 (WCAG 2.2)."""
    parts = [c / 255 for c in _channels(color)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _channels(color: str) -> tuple[int, int, int]:
    return tuple(int(color[i : i + 2], 16) for i in (1, 3, 5))
