"""Numbers and tables as text: units that fit, aligned columns for a terminal, Markdown."""

import math
from collections.abc import Callable

PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z", "Y")
DIGITS = 4  # significant ones of the smallest value of a column


def quantity(value: float, unit: str = "") -> str:
    """A number with three significant digits and the prefix that fits: "118 MFLOPs", "34.4 GB".

    Without a unit the prefix follows the digits: "1.50M". Whole numbers below 1000 stay as they are.
    """
    if not math.isfinite(value):
        return f"{value} {unit}".rstrip()
    index, digits = 0, f"{value:.3g}"
    if not (abs(value) < 1000 and value == int(value)):
        # Rounded first: 999,600 is 1.00 M, not 1000 k.
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        index = min(max(int(exponent) // 3, 0), len(PREFIXES) - 1)
        shift = int(exponent) - 3 * index
        digits = f"{float(mantissa) * 10**shift:.{max(2 - shift, 0)}f}"
    return f"{digits}{' ' if unit else ''}{PREFIXES[index]}{unit}"


def span(seconds: float) -> str:
    """An estimated time with three digits and the unit that fits: "1.49 µs", "12 min", "1,420 h"."""
    units = (("h", 3600), ("min", 60), ("s", 1), ("ms", 1e-3), ("µs", 1e-6))
    unit, size = next((u for u in units if seconds >= u[1]), units[-1])
    value = seconds / size
    return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"


def prefixed(values: list[float]) -> tuple[str, Callable[[float], str]]:
    """The SI prefix of a column, and the function that formats its values in that unit.

    The smallest positive value is at least 1 in the unit: [1.2e9, 3.4e10] are "1.200" and "34.000"
    with the prefix "G".
    """
    low = min((value for value in values if value > 0), default=1.0)
    power = min(max(0, math.floor(math.log10(low)) // 3), len(PREFIXES) - 1)
    unit = 1000.0**power
    decimals = max(0, DIGITS - 1 - max(0, math.floor(math.log10(low / unit))))
    whole = not power and all(value == round(value) for value in values)
    return PREFIXES[power], lambda value: f"{value / unit:,.{0 if whole else decimals}f}"


def aligned(rows, left: int = 1, gap: int = 2) -> list[str]:
    """Rows of cells as lines of aligned columns, `gap` spaces apart; the first row is the header.

    The first `left` columns are flush left, the others flush right.
    """
    rows = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        (" " * gap)
        .join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        .rstrip()
        for row in rows
    ]


def markdown(head: list[str], rows) -> str:
    """A Markdown table in columns of equal width."""
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in [head, *rows]]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(head))]
    cells.insert(1, ["-" * width for width in widths])
    lines = [" | ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)) for row in cells]
    return "\n".join(f"| {line} |" for line in lines)
