"""A field of the runs as an axis: its values, their order, and whether they are numbers."""

import dataclasses
import itertools
import json
import math
import re

from loopjax import run_record
from loopjax.sweep.rows import changed

# Columns of the table that can be an axis besides the fields of the config.
COLUMNS = ("plan", "unique_layers", "effective_layers", *run_record.COSTS)
DECADE = 10.0


def value(row: dict, field: str):
    """The value of a config field or a column in a row of `rows.rows`: number, bool or text.

    None if the field has no effect on the run.
    """
    known = row["config"].get(field, 0.0 if field.startswith("mixture.") else None)
    if field in COLUMNS:
        known = row.get(field)
    return known if isinstance(known, str | int | float | None) else json.dumps(known)


def text(known) -> str:
    """A value as text: "0.001", "true", "" for None."""
    if known is None:
        return ""
    if isinstance(known, bool):
        return str(known).lower()
    return f"{known:.6g}" if isinstance(known, float) else str(known)


def order(known) -> tuple:
    """A sort key of values: numbers by size, texts by the numbers in them ("4x3" before "12")."""
    if known is None:
        return (0,)
    if isinstance(known, int | float):
        return (1, float(known))
    parts = re.split(r"(\d+)", known)
    return (2, *((1, int(part)) if part.isdigit() else (0, part) for part in parts if part))


@dataclasses.dataclass(frozen=True)
class Axis:
    """A field and its values in some runs.

    Attributes:
      field: name of the field.
      values: its values, each once, in order; None is not among them.
      scale: "linear" or "log" for numbers, "categories" for all others.
    """

    field: str
    values: tuple
    scale: str

    @property
    def numeric(self) -> bool:
        return self.scale != "categories"

    def place(self, known) -> float:
        """Where a value is: the number itself, or the index of its category."""
        return float(known) if self.numeric else float(self.values.index(known))


def axis_of(rows: list[dict], field: str) -> Axis:
    """The axis of a field of rows. Depths without loops ("4", "8") are numbers too."""
    found = {value(row, field) for row in rows} - {None}
    values = tuple(sorted(found, key=order))
    if not all(map(_is_number, values)):
        return Axis(field, values, "categories")
    return Axis(
        field, values, "log" if _is_logarithmic([float(one) for one in values]) else "linear"
    )


def _is_logarithmic(numbers: list[float]) -> bool:
    """Whether numbers span a decade, or are three or more in equal ratios (2, 4, 8)."""
    if not numbers or numbers[0] <= 0:
        return False
    steps = [math.log(b / a) for a, b in itertools.pairwise(numbers)]
    equal = len(steps) > 1 and max(steps) - min(steps) < 0.01 * max(steps)
    return numbers[-1] / numbers[0] >= DECADE or equal


def swept(rows: list[dict]) -> list[str]:
    """The fields and columns in which runs differ: what an axis can be."""
    fields = changed(rows)
    columns = [name for name in COLUMNS if len({value(row, name) for row in rows} - {None}) > 1]
    return [*fields, *(name for name in columns if name not in fields)]


def listed(rows: list[dict]) -> str:
    """The fields and columns in which runs differ, for a sentence."""
    known = swept(rows)
    fields = [name for name in known if name not in COLUMNS]
    columns = [name for name in known if name in COLUMNS]
    return (", ".join(fields) or "none") + (
        f", or a column: {', '.join(columns)}" if columns else ""
    )


def _is_number(known) -> bool:
    if isinstance(known, bool):
        return False
    return isinstance(known, int | float) or known.isdecimal()
