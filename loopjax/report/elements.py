"""The elements of a section: pictures, tables and sentences."""

import dataclasses
import html
from typing import Any

from loopjax.plots.roles import Look
from loopjax.report import legends


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure of matplotlib.

    Attributes:
      name: file name, if figures are written to files.
      caption: one sentence that says what it shows.
      figure: the figure; `figure.own` marks which parts belong to which model.
    """

    name: str
    caption: str
    figure: Any


@dataclasses.dataclass(frozen=True)
class Text:
    """Sentences that are computed from the numbers of the picture before them; empty ones are left out."""

    sentences: list[str]


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of cells.

    Attributes:
      caption: one sentence that says what it shows.
      heads: titles of the columns.
      rows: (label of the model or None, cells); a cell is a text, (number, text), or None.
    """

    caption: str
    heads: list[str]
    rows: list[tuple[str | None, list]]


def number(value: float | None, form: str) -> tuple[float, str] | None:
    """A cell that is sorted by its value, for example number(0.5, ".1%")."""
    return None if value is None else (value, format(value, form))


def table_html(table: Table, owners: dict[str, str], looks: dict[str, Look]) -> str:
    """A table as HTML; rows are marked with their model, and can be sorted by any column."""
    words = [
        any(isinstance(cells[k], str) for _, cells in table.rows) for k in range(len(table.heads))
    ]
    kinds = [' class="words"' if word else "" for word in words]
    heads = "".join(
        f'<th scope="col"{kind}>{html.escape(text)}</th>'
        for kind, text in zip(kinds, table.heads, strict=True)
    )
    rows = []
    for label, cells in table.rows:
        owner = f' data-model="{owners[label]}"' if label in owners else ""
        first, *rest = map(_cell, cells)
        sign = legends.marker(looks[label]) if owner else ""
        head = f'<th scope="row">{sign}{first[1]}</th>'
        tail = "".join(
            f"<td{kind}{value}>{text}</td>"
            for kind, (value, text) in zip(kinds[1:], rest, strict=True)
        )
        rows.append(f"<tr{owner}>{head}{tail}</tr>")
    return (
        '<figure class="table"><div class="wide" tabindex="0"><table>'
        f"<thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        f"<figcaption>{html.escape(table.caption)}</figcaption></figure>"
    )


def text_html(text: Text) -> str:
    kept = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in text.sentences if sentence)
    return f'<div class="finding">{kept}</div>' if kept else ""


def _cell(cell) -> tuple[str, str]:
    """(HTML attribute with the value to sort by, text)."""
    if cell is None:
        return "", "–"
    if isinstance(cell, tuple):
        return f' data-value="{cell[0]:.17g}"', html.escape(cell[1])
    return "", html.escape(str(cell))
