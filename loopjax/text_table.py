"""Tables of text: aligned columns for a terminal, and Markdown."""


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
