"""Runs as lines over an axis: means over seeds with their intervals, and the best point of a line.

A cell is the runs with one value of the axis and of the fields that tell lines apart; they differ in
the fields that are averaged over, and in nothing else.
"""

import dataclasses
import math
import re
import statistics

from loopjax import run_record
from loopjax.errors import UserError
from loopjax.intervals import Mean, mean_of
from loopjax.sweep import axis, metric
from loopjax.sweep.axis import Axis
from loopjax.sweep.rows import changed

COSTS = "costs"  # --x of a metric against parameters and FLOPs


@dataclasses.dataclass(frozen=True)
class Choice:
    """What is compared.

    Attributes:
      x: field of the axis.
      by: fields of the lines.
      over: fields that are averaged over.
      named: whether lines may have names of runs instead of values of `by`.
    """

    x: str
    by: list[str]
    over: list[str]
    named: bool = False

    @property
    def is_cost(self) -> bool:
        """Whether the axis is a cost, which may differ between the runs of a cell."""
        return self.x in run_record.COSTS


@dataclasses.dataclass(frozen=True)
class Cell:
    """Runs that are averaged.

    Attributes:
      x: value of the axis.
      values: metric of each finished run that has it.
      known: number of runs in the directory, finished or not.
    """

    x: object
    values: list[float]
    known: int

    @property
    def mean(self) -> Mean | None:
        """None without a finished run."""
        return mean_of(self.values) if self.values else None

    @property
    def finite(self) -> bool:
        return bool(self.values) and math.isfinite(self.mean.mean)

    @property
    def count(self) -> str:
        """ "3", or "2 of 3" if some of the runs are not finished."""
        n = len(self.values)
        return str(n) if n == self.known else f"{n} of {self.known}"


@dataclasses.dataclass(frozen=True)
class Line:
    """The cells of one value of each field of `Choice.by`, in the order of the axis.

    Attributes:
      label: the values in words; "" for the only line.
      key: the values.
      cells: at least one.
      rows: the finished runs.
    """

    label: str
    key: tuple
    cells: list[Cell]
    rows: list[dict]


def choose(rows: list[dict], x: str, by: list[str] | None, over: list[str] | None) -> Choice:
    """What to compare, for fields of the command line.

    Args:
      rows: all runs.
      x: field of the axis, or COSTS.
      by: fields of the lines; None for those in which runs of the same x differ.
      over: fields to average over; None for the seed.

    Raises UserError for fields in which the runs do not differ, a field in two roles, and runs that
    would be averaged although they differ in other fields too.
    """
    known = axis.swept(rows)
    for flag, names in (("x", [x] if x != COSTS else []), ("by", by or [])):
        for name in names:
            if name not in known:
                raise UserError(
                    f"--{flag}={name} must be a field in which the runs differ: {axis.listed(rows)}"
                )
    if x in (by or []):
        raise UserError(f"--by={','.join(by)} must not contain the field of --x={x}")
    taken = {x, *(by or [])}
    for name in over or []:
        if name in taken:
            raise UserError(
                f"--over={','.join(over)} must not contain the field {name} of --x or --by"
            )
    over = [name for name in ["seed"] if name not in taken] if over is None else over
    finished = [row for row in rows if row["finished"]]
    if by is None:
        kept = [] if x == COSTS or x in run_record.COSTS else [x]
        return Choice(x, _telling_apart(finished, kept, over), over, named=True)
    choice = Choice(x, by, over)
    if x != COSTS and not choice.is_cost:
        _check_alike(finished, choice)
    return choice


def default_axis(finished: list[dict], over: list[str]) -> str:
    """The only numeric config field in which runs differ, else COSTS.

    Fields that follow from others do not count, nor those that are averaged over. Depths, which are
    texts ("4", "8"), count only if no other field is numeric. Where the costs are all the same, it
    is the field with the most values.
    """
    fields = _telling_apart(finished, [], over)
    axes = {field: axis.axis_of(finished, field) for field in fields}
    numeric = [field for field in fields if axes[field].numeric]
    numbers = [f for f in numeric if not any(isinstance(v, str) for v in axes[f].values)]
    if len(numbers or numeric) == 1:
        return (numbers or numeric)[0]
    if fields and not any(
        len(axis.axis_of(finished, cost).values) > 1 for cost in run_record.COSTS
    ):
        return max(fields, key=lambda field: len(axes[field].values))
    return COSTS


def _check_alike(finished: list[dict], choice: Choice) -> None:
    """Raises UserError if runs that would be averaged differ in other fields too."""
    fields = [choice.x, *choice.by]
    for cell in _split(finished, fields).values():
        others = [field for field in changed(cell) if field not in choice.over]
        if others:
            where = " ".join(f"{f}={axis.text(axis.value(cell[0], f))}" for f in fields)
            raise UserError(
                f"the runs with {where} also differ in {', '.join(others)}: add it to --by, or to "
                "--over to average over it"
            )


def _telling_apart(rows: list[dict], fields: list[str], over: list[str]) -> list[str]:
    """The fewest fields, in order, that tell runs with the same values of `fields` apart."""
    by: list[str] = []
    for field in changed(rows):
        if field in over or field in fields:
            continue
        if len(_split(rows, [*fields, *by, field])) > len(_split(rows, [*fields, *by])):
            by.append(field)
    return by


def _split(rows: list[dict], fields: list[str]) -> dict[tuple, list[dict]]:
    """Rows by their values of fields."""
    found: dict[tuple, list[dict]] = {}
    for row in rows:
        found.setdefault(tuple(axis.value(row, field) for field in fields), []).append(row)
    return found


def lines(rows: list[dict], choice: Choice, name: str) -> tuple[Axis, list[Line]]:
    """The axis and the lines of the metric `name`; runs without the field of the axis are in no line.

    A line has a cell for every value of the axis with a run, even if no run of it is finished. On
    an axis of a cost a cell is at the mean cost of its runs.
    """
    rows = [row for row in rows if axis.value(row, choice.x) is not None]
    apart = [field for field in changed(rows) if field not in choice.over]
    groups = _split(rows, choice.by)
    found = []
    for key in sorted(groups, key=lambda key: tuple(map(axis.order, key))):
        finished = [row for row in groups[key] if name in row.get("metrics", ())]
        if not finished:
            continue
        split = _split(groups[key], apart if choice.is_cost else [choice.x])
        cells = [_cell(cell, choice, name) for cell in split.values()]
        cells.sort(key=lambda cell: axis.order(cell.x))
        found.append(Line(label(choice.by, key), key, cells, finished))
    labels = _names(found) if choice.named else None
    if labels is None and len({line.label for line in found}) < len(found):
        labels = [", ".join(map("{}={}".format, choice.by, line.key)) for line in found]
    if labels:
        pairs = zip(found, labels, strict=True)
        found = [dataclasses.replace(line, label=label) for line, label in pairs]
    return axis.axis_of(rows, choice.x), found


def _cell(rows: list[dict], choice: Choice, name: str) -> Cell:
    having = [row for row in rows if name in row.get("metrics", ())]
    places = [axis.value(row, choice.x) for row in rows]
    x = statistics.fmean(places) if choice.is_cost else places[0]
    return Cell(x, [row["metrics"][name] for row in having], len(rows))


def label(fields: list[str], key: tuple) -> str:
    """The values of a line in words: "depth 4x3", "depth 12, lidas"; those that are empty left out.

    Words stand alone, numbers, plans and booleans after the last part of the name of their field.
    """
    parts = []
    for field, known in zip(fields, key, strict=True):
        name, shown = field.rpartition(".")[2], axis.text(known)
        word = isinstance(known, str) and not known[:1].isdigit()
        if shown:
            parts.append(shown if word else f"{name} {shown}")
    return ", ".join(parts) or ", ".join(f"no {field}" for field in fields)


def _names(found: list[Line]) -> list[str] | None:
    """Names for lines, of the parts of their runs' names that are no fields: "loop", "lidas".

    None unless every line has one of its own.
    """
    names = []
    for line in found:
        parts = [re.split("__|,", row["name"]) for row in line.rows]
        fields = line.rows[0]["config"]
        names.append(
            ", ".join(
                part for part in parts[0]
                if all(part in other for other in parts) and re.split("[-=]", part)[0] not in fields
            )
        )  # fmt: skip
    return names if all(names) and len(set(names)) == len(names) else None


@dataclasses.dataclass(frozen=True)
class Best:
    """The best cell of a line, and the cells that it is compared with.

    Attributes:
      cell: the cell with the best mean.
      others: the neighbors on a numeric axis, or the second best category, in order of the axis.
      warning: a sentence if it lies at the edge of the range; else "".
    """

    line: Line
    cell: Cell
    others: list[Cell]
    warning: str

    @property
    def shown(self) -> list[Cell]:
        """The cell and the others in the order of the axis."""
        return [cell for cell in self.line.cells if cell is self.cell or cell in self.others]

    def difference(self, other: Cell) -> float:
        return other.mean.mean - self.cell.mean.mean

    def overlaps(self, other: Cell) -> bool | None:
        """Whether the 95% intervals overlap; None if one of them is not known."""
        one, two = self.cell.mean, other.mean
        if two is None or one.half is None or two.half is None:
            return None
        return one.low <= two.high and two.low <= one.high


def best_of(line: Line, along: Axis, name: str) -> Best | None:
    """The best point of a line by the metric `name`; None if no mean is finite."""
    ranked = [cell for cell in line.cells if cell.finite]
    ranked.sort(key=lambda cell: metric.rank(name, cell.mean.mean))
    if not ranked:
        return None
    best = ranked[0]
    if not along.numeric:
        return Best(line, best, ranked[1:2], "")
    at = line.cells.index(best)
    others = line.cells[max(0, at - 1) : at] + line.cells[at + 1 : at + 2]
    return Best(line, best, others, _edge(line, along, at))


def _edge(line: Line, along: Axis, at: int) -> str:
    """The warning about the best cell, at index `at`; "" if worse cells are on both sides."""
    if len(line.cells) < 2:
        return ""
    x, cell = along.field, line.cells[at]
    who = f"{line.label}: " if line.label else ""
    for beyond, end in ((line.cells[:at], "smallest"), (line.cells[at + 1 :], "largest")):
        missing = [axis.text(c.x) for c in beyond if not c.values]
        if not beyond:
            return f"{who}the best {x}, {axis.text(cell.x)}, is the {end} that was tried; extend the range"
        if len(missing) == len(beyond):
            return (
                f"{who}the best {x}, {axis.text(cell.x)}, is the {end} with a finished run; no run of "
                f"{', '.join(missing)} is finished"
            )
    return ""
