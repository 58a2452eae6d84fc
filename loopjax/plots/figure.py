"""Pictures by matplotlib, which is an extra: colors, axes, PNG."""

import io
import pathlib

from loopjax.errors import UserError, require

COLORS = ("#2563eb", "#dc2626", "#059669", "#9333ea", "#d97706", "#0891b2", "#be185d", "#4d7c0f")
INK, PALE = "#1f2937", "#e5e7eb"


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
    fig.get_layout_engine().set(h_pad=0.09)
    cells = fig.add_gridspec(rows, columns)
    return fig, [fig.add_subplot(cells[divmod(k, columns)]) for k in range(n)]


def colors(labels, chosen: dict | None = None) -> dict[str, str]:
    """{label: color}: the chosen one, else the next of the palette.

    The first eight are easy to tell apart; sixteen more are lighter and darker shades of them.
    """
    chosen = chosen or {}
    return {label: chosen.get(label) or _shade(k) for k, label in enumerate(labels)}


def _shade(k: int) -> str:
    base = COLORS[k % 8]
    target, share = ((0, 0.0), (255, 0.5), (0, 0.45))[k // 8 % 3]
    parts = (int(base[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(part + share * (target - part)):02x}" for part in parts)


def own(artist, label: str):
    """Marks a line, an image or a whole axis as a model's, so that the report can hide and show it."""
    artist.set_gid(label)
    return artist


def literal(text: str) -> str:
    """A text as matplotlib must get it to draw its dollar signs, which would start a formula."""
    return text.replace("$", r"\$")


def title(axis, text: str) -> None:
    axis.set_title(literal(text), loc="left", color=INK, fontsize=10, fontweight="bold")


def layers(axis, n: int, label: str = "executed layer") -> None:
    """The horizontal axis of n executed layers; a tick every four layers if there are more than 10."""
    axis.set_xticks(range(0, n, 1 if n <= 10 else 4))
    axis.set_xlabel(label, color=INK, fontsize=9)


def amounts(axis) -> None:
    """A horizontal axis of parameters or FLOPs: few ticks, like "1.5M"."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(5))
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))


def legend(fig, lines: dict) -> None:
    """A legend of {text: line} below all axes; a long one makes the figure taller, not the axes."""
    longest = max(map(len, lines), default=0)
    # An inch holds about 14 characters of this size, or five lines.
    columns = max(1, int(fig.get_figwidth() / (longest / 14 + 0.6)))
    fig.set_figheight(fig.get_figheight() + max(0, -(-len(lines) // columns) - 2) / 5)
    fig.legend(
        lines.values(), map(literal, lines), loc="outside lower left", ncols=min(columns, len(lines)),
        frameon=False, fontsize=9, labelcolor=INK,
    )  # fmt: skip


def plain(axis) -> None:
    """An axis for curves: a light grid, no box."""
    axis.grid(color=PALE, linewidth=0.8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(PALE)
    axis.tick_params(colors=INK, labelsize=9, length=0)


def png(fig) -> bytes:
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=140)
    return buffer.getvalue()


def save(fig, path) -> None:
    """Writes a PNG; raises UserError if it cannot be written."""
    path = pathlib.Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(fig))
    except OSError as error:
        raise UserError(f"--plot {path} cannot be written: {error.strerror}") from None
