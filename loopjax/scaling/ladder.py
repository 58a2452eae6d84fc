"""The runs of a sweep as points of the scaling laws."""

from loopjax import flops, run_record
from loopjax.depth import DepthPlan
from loopjax.errors import UserError
from loopjax.scaling.recurrence import Point


def points(rows: list[dict], metric: str) -> list[Point]:
    """A `recurrence.Point` for each of the rows (of `sweep.rows.rows`)."""
    return [_point(row, metric) for row in rows]


def _point(row: dict, metric: str) -> Point:
    one = flops.layer_params(run_record.of_directory(row["directory"]).cfg)
    segments = tuple((s.repeats, s.layers * one) for s in DepthPlan.parse(row["plan"]).segments)
    tokens = row["steps"] * row["config"]["batch_size"] * row["config"]["seq_len"]
    return Point(row["name"], segments, tokens, row["metrics"][metric])


def arms(rows: list[dict], by: list[str]) -> dict[str, list[dict]]:
    """Rows grouped by the values of fields: {"growth.operator=lidas": [...], ...}."""
    out: dict[str, list[dict]] = {}
    for row in rows:
        label = " ".join(f"{name}={row['config'].get(name, '')}" for name in by)
        out.setdefault(label, []).append(row)
    return out


def baseline_of(arms: dict[str, list[dict]], wanted: str) -> str:
    """The arm that --baseline names, by its label or, of one field, by its value; else UserError."""
    found = [label for label in arms if wanted in (label, label.partition("=")[2])]
    if len(found) != 1:
        known = ", ".join(repr(label) for label in arms)
        raise UserError(f"--baseline={wanted!r} must be one of {known}")
    return found[0]
