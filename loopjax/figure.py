"""Pictures by matplotlib, which is an extra: colours, axes, PNG."""

import io
import pathlib

from loopjax.errors import UserError

COLOURS = ("#2563eb", "#dc2626", "#059669", "#9333ea", "#d97706", "#0891b2", "#be185d", "#4d7c0f")
INK, PALE = "#1f2937", "#e5e7eb"


def new(width: float, height: float):
    """An empty figure, in inches; raises UserError where matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("a picture needs matplotlib: pip install 'loopjax[report]'") from None
    fig = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(fig)
    return fig


def plain(axis) -> None:
    """An axis for curves: a pale grid, no box."""
    axis.grid(color=PALE, linewidth=0.8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(PALE)
    axis.tick_params(colors=INK, labelsize=9, length=0)


def png(fig) -> bytes:
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=140)
    return buffer.getvalue()


def save(fig, path) -> None:
    """Writes a PNG; raises UserError where that cannot be."""
    path = pathlib.Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(fig))
    except OSError as error:
        raise UserError(f"--plot {path} cannot be written: {error.strerror}") from None
