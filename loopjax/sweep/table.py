"""Runs as tables: the best points, all runs, means over seeds; Markdown and CSV."""

import csv
import io
import json
import statistics

from loopjax import config as config_lib
from loopjax import run_record
from loopjax.errors import UserError
from loopjax.progress import duration
from loopjax.sweep import axis, compare, metric
from loopjax.sweep.axis import Axis
from loopjax.sweep.compare import COSTS, Best, Cell, Choice
from loopjax.sweep.rows import changed, groups, metrics
from loopjax.text_table import markdown, prefixed

# Columns of every finished run besides the costs: key, title, format in Markdown.
COLUMNS = (
    ("plan", "plan", str),
    ("unique_layers", "unique layers", str),
    ("effective_layers", "effective layers", str),
)
TIME = ("wall_clock_s", "wall-clock", duration)


def check_over(runs: list[dict], over: list[str]) -> None:
    """Raises UserError unless `over` are fields of the config."""
    known = {*config_lib.flatten(config_lib.default().to_dict())}.union(
        *(r["config"] for r in runs)
    )
    for name in over:
        if name not in known:
            raise UserError("--over: " + config_lib.unknown_field(config_lib.default(), name))


def ordered(rows: list[dict], choice: Choice, by: str | None) -> list[dict]:
    """Rows sorted by a metric, best first, a field or a column; by default by lines, then the axis.

    Rows without the metric or the field come last. Raises UserError for an unknown name.
    """
    fields = [*choice.by, choice.x, *(f for f in changed(rows) if f not in choice.over)]
    fields += choice.over

    def place(row: dict) -> tuple:
        return tuple(axis.order(axis.value(row, field)) for field in fields)

    rows = sorted(rows, key=place)
    if by is None:
        return rows
    finished = [row for row in rows if row["finished"]]
    if by in metrics(finished):
        return sorted(rows, key=lambda row: metric.rank(by, row.get("metrics", {}).get(by)))
    if not any(axis.value(row, by) is not None for row in rows):
        raise UserError(
            f"--sort={by} must be a metric or a field of the runs: "
            f"{', '.join(metrics(finished))}, {axis.listed(rows)}"
        )
    known = {row["name"]: axis.value(row, by) for row in rows}
    return sorted(
        rows, key=lambda row: (known[row["name"]] is None, axis.order(known[row["name"]]))
    )


def _notes(finished: list[dict], choice: Choice) -> list[str]:
    """What a reader of the means must know: runs that are not on the axis, runs that count twice."""
    notes = []
    off = [row["name"] for row in finished if axis.value(row, choice.x) is None]
    if off and choice.x != COSTS:
        notes.append(
            f"{choice.x} has no effect on these runs, which are in no mean over it: {', '.join(off)}."
        )
    alike: dict[str, list[str]] = {}
    for row in finished:
        values = {field: row["config"].get(field) for field in changed(finished)}
        alike.setdefault(json.dumps(values), []).append(row["name"])
    for names in alike.values():
        if len(names) > 1:
            notes.append(
                f"Warning: {', '.join(names)} have the same config, and all count in a mean."
            )
    return notes


def best_points(bests: list[Best], along: Axis, choice: Choice, name: str) -> str:
    """The best point of each line by the metric `name`, with its neighbors, and warnings."""
    points = [(best, cell) for best in bests for cell in best.shown]
    alone = all(len(cell.values) < 2 for _, cell in points)
    heads = [choice.x, "n", name, "95% interval", "to the best", "intervals overlap"]
    if alone:
        heads = [choice.x, "n", name, "to the best"]
    body = []
    for best, cell in points:
        cells = _best_cells(best, cell, choice.x, name)
        body.append([*map(axis.text, best.line.key), *(cells[head] for head in heads)])
    over = f", mean over {', '.join(choice.over)}" if choice.over and not alone else ""
    others = "its neighbors" if along.numeric else "the next best"
    title = f"Best {choice.x} by {name} ({metric.direction(name)}{over}), with {others}:"
    notes = [f"Warning: {best.warning}." for best in bests if best.warning]
    if alone:
        notes.append("Each point is one run: without more seeds a difference may be noise.")
    return "\n\n".join([title, markdown([*choice.by, *heads], body), *notes])


def _best_cells(best: Best, cell: Cell, x: str, name: str) -> dict[str, str]:
    """{title: cell} of the best point, or of one that it is compared with."""
    is_best, mean = cell is best.cell, cell.mean
    place = axis.text(cell.x) or "none"
    cells = dict.fromkeys((name, "95% interval", "to the best", "intervals overlap"), "")
    cells |= {x: f"**{place}**" if is_best else place, "n": cell.count}
    if mean is None:
        return cells
    cells[name] = f"{mean.mean:.4f}"
    if mean.half is not None:
        cells["95% interval"] = f"{mean.low:.4f} to {mean.high:.4f}"
    if is_best:
        return cells | {"to the best": "best"}
    if cell.finite:
        cells["to the best"] = f"{best.difference(cell):+.4f}".replace("-0.0000", "+0.0000")
        cells["intervals overlap"] = {None: "", True: "yes", False: "no"}[best.overlaps(cell)]
    return cells


def report(
    rows: list[dict], left: list[str], choice: Choice, names: list[str], by: str | None
) -> str:
    """The best points, the table of runs, that of means over fields, and the unfinished runs.

    Args:
      rows: all runs, in the order of the table.
      left: a line for each run without a result.
      names: metrics of the best points.
      by: what the rows are sorted by, if it was chosen.
    """
    finished = [row for row in rows if row["finished"]]
    parts = []
    for name in names if choice.x != COSTS and not choice.is_cost else ():
        along, lines = compare.lines(rows, choice, name)
        bests = [compare.best_of(line, along, name) for line in lines]
        if bests := [best for best in bests if best and len(best.line.cells) > 1]:
            parts.append(best_points(bests, along, choice, name))
    if finished:
        parts += [of_runs(finished), of_means(finished, choice.over, by), _shared(finished)]
        parts += _notes(finished, choice)
    if left:
        note = "Means are of finished runs only. " if finished else ""
        parts.append("\n".join([f"{note}Not finished:", "", *(f"- {line}" for line in left)]))
    return "\n\n".join(filter(None, parts)) + "\n"


def of_runs(finished: list[dict]) -> str:
    """The table of finished runs in Markdown."""
    heads, body = _by_run(finished, shown=True)
    return markdown(heads, body)


def csv_of(finished: list[dict]) -> str:
    """The table of finished runs as CSV, with all digits."""
    heads, body = _by_run(finished, shown=False)
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator="\n").writerows([heads, *body])
    return buffer.getvalue()


def of_means(finished: list[dict], over: list[str], by: str | None = None) -> str:
    """The table of means over fields; "" if no runs differ in these fields alone.

    Sorted like the rows, or by the mean of the metric `by`.
    """
    together = groups(finished, over)
    if all(len(group) == 1 for group in together.values()):
        return ""
    fields, scores = [f for f in changed(finished) if f not in over], _shown_metrics(finished)
    if by in metrics(finished):
        ranks = {name: metric.rank(by, _mean(group, by)) for name, group in together.items()}
        together = {name: together[name] for name in sorted(together, key=ranks.__getitem__)}
    costs = _differing(finished)
    heads = ["runs", "n", *fields, *(title for _, title, _ in costs), *scores]
    body = []
    for name, group in together.items():
        cells = [name, str(len(group))]
        cells += [axis.text(axis.value(group[0], field)) for field in fields]
        cells += [show(group[0][key]) for key, _, show in costs]
        body.append([*cells, *(_spread(group, score) for score in scores)])
    return f"Mean ± standard deviation over {', '.join(over)}:\n\n{markdown(heads, body)}"


def _mean(group: list[dict], name: str) -> float | None:
    values = [row["metrics"][name] for row in group if name in row["metrics"]]
    return statistics.fmean(values) if values else None


def _spread(group: list[dict], name: str) -> str:
    """ "0.41 ± 0.03" of a metric, with the number of values if not all runs have it."""
    values = [row["metrics"][name] for row in group if name in row["metrics"]]
    if not values:
        return ""
    n = f" (n = {len(values)})" if len(values) < len(group) else ""
    return run_record.spread(values, 4) + n


def _by_run(finished: list[dict], *, shown: bool) -> tuple[list[str], list[list]]:
    """(titles, rows) of the runs: formatted for display, or with all digits and keys as titles."""
    fields, scores = changed(finished), _shown_metrics(finished) if shown else metrics(finished)
    columns = [*(_differing(finished) if shown else _columns(finished)), TIME]
    heads = ["run", *fields, *(title if shown else key for key, title, _ in columns), *scores]
    body = []
    for row in finished:
        known = [axis.value(row, field) for field in fields]
        cells = (
            [axis.text(one) for one in known] if shown else ["" if v is None else v for v in known]
        )
        cells += [show(row[key]) if shown else row[key] for key, _, show in columns]
        body.append([row["name"], *cells, *(_score(row["metrics"].get(s), shown) for s in scores)])
    return heads, body


def _columns(finished: list[dict]) -> list[tuple]:
    """(key, title, format) of plan, layers and costs, each cost in a unit that fits its column."""
    costs = []
    for key, title in run_record.COSTS.items():
        unit, show = prefixed([row[key] for row in finished if row[key] is not None])
        if "FLOPs" in title:
            title = title.replace("FLOPs", f"{unit}FLOPs")
        elif unit:
            title = f"{title} ({unit})"
        costs.append((key, title, lambda known, show=show: "" if known is None else show(known)))
    return [*COLUMNS, *costs]


def _differing(finished: list[dict]) -> list[tuple]:
    """The columns in which runs differ; not the plan where it is the field `depth` of each run."""
    by_depth = all(row["plan"] == row["config"].get("depth") for row in finished)
    return [
        one
        for one in _columns(finished)
        if len({row[one[0]] for row in finished}) > 1 and not (one[0] == "plan" and by_depth)
    ]


def _shared(finished: list[dict]) -> str:
    """The columns that have one value, as a sentence; "" if there are none."""
    words = [
        f"{title} {show(finished[0][key])}"
        for key, title, show in _columns(finished)
        if len({row[key] for row in finished}) == 1
    ]
    return f"All runs: {', '.join(words)}." if words else ""


def _shown_metrics(finished: list[dict]) -> list[str]:
    """The metrics of the tables: those of the only source of a run are the run's own."""
    known = metrics(finished)

    def repeats(name: str) -> bool:
        own = name.rpartition("/")[2]
        pairs = [(row["metrics"].get(name), row["metrics"].get(own)) for row in finished]
        return own != name and all(a == b or a != a for a, b in pairs)

    return [name for name in known if not repeats(name)]


def _score(known: float | None, shown: bool):
    if known is None:
        return ""
    return f"{known:.4f}" if shown else known
