"""Runs as rows of a table: changed fields, costs, metrics."""

import csv
import io
import json
import os
import pathlib

from loopjax import config as config_lib
from loopjax import run_record
from loopjax.depth import DepthPlan
from loopjax.errors import UserError
from loopjax.files import read_json, write_text
from loopjax.progress import duration
from loopjax.results import reader
from loopjax.sweep.points import FILE
from loopjax.sweep.progress import last_rows
from loopjax.text_table import markdown, quantity

# Columns of every finished run: key, title, format in Markdown.
COLUMNS = (
    ("plan", "plan", str),
    ("unique_layers", "unique layers", str),
    ("effective_layers", "effective layers", str),
    *(
        (key, title, "{:,}".format if key == "parameters" else quantity)
        for key, title in run_record.COSTS.items()
    ),
    ("wall_clock_s", "wall-clock", duration),
)


def runs_below(directory) -> list[pathlib.Path]:
    """The directories of runs at or below a directory, sorted; raises UserError if there are none."""
    runs = []
    for folder, below, files in os.walk(directory):
        below.sort()
        if {"config.json", "phases.json"} <= set(files):
            runs.append(pathlib.Path(folder))
            below.clear()
    if not runs and not (pathlib.Path(directory) / FILE).is_file():
        raise UserError(f"{directory} contains no runs")
    return runs


def rows(directories) -> list[dict]:
    """A row for each directory of a run.

    Keys: `name` (the directory, relative to the common parent of all), `directory`, `finished`,
    `step` and `steps` (done and total), `config` ({field: value}); for finished runs also `plan`,
    `unique_layers`, `effective_layers`, `parameters`, `training_flops` (including the run it was
    initialized from), `inference_flops_per_token`, `wall_clock_s` and `metrics`: the held-out
    metrics of `result.json` ("nll", "p_hop_2/accuracy", ...) and the scores of `loopjax eval` files
    below the directory ("copying_real/acc", "reasoning_primitives"; " at PLAN" if evaluated with
    another plan than trained with).
    """
    directories = [pathlib.Path(directory) for directory in directories]
    if not directories:
        return []
    root = os.path.commonpath([directory.absolute().parent for directory in directories])
    return [_row(directory, os.path.relpath(directory, root)) for directory in directories]


def _row(directory: pathlib.Path, name: str) -> dict:
    run = run_record.of_directory(directory)
    if run is None or not run.config:
        raise UserError(f"{directory} is not the directory of a run")
    rows = last_rows(directory)
    result = run.result
    row = {
        "name": name,
        "directory": str(directory),
        "finished": run.finished,
        "step": rows[-1]["step"] if rows else 0,
        "steps": run.config["steps"],
        "config": run_record.fields(run.config),
    }
    if not run.finished:
        return row
    return row | {
        **{key: result[key] for key in ("plan", "unique_layers", "effective_layers")},
        **run.costs(DepthPlan.parse(result["plan"])),
        "wall_clock_s": run.seconds,
        "metrics": {**run.heldout(), **_scores(directory, result)},
    }


def _scores(directory: pathlib.Path, result: dict) -> dict[str, float]:
    """Scores of the files that `loopjax eval` wrote below a run's directory."""
    scores = {}
    for evaluated in reader.evaluations(directory):
        suffix = "" if evaluated.plan == result["plan"] else f" at {evaluated.plan}"
        if evaluated.step != result["steps"]:
            suffix += f" @{evaluated.step}"
        for key, value in _named(evaluated.value).items():
            key += suffix
            scores[key if key not in scores else f"{key} ({evaluated.file.stem})"] = value
    return scores


def _named(evaluated: dict) -> dict[str, float]:
    """{group, or task/metric: value} of an evaluation."""
    out = {group: score["value"] for group, score in evaluated["groups"].items()}
    for task, of_task in evaluated["tasks"].items():
        for metric, (value, _) in run_record.scores(of_task).items():
            out.setdefault(f"{task}/{metric}", value)
    return out


def not_started(directory) -> list[str]:
    """The points of a sweep's directory that have no run yet."""
    sweep = read_json(pathlib.Path(directory) / FILE) or {"points": []}
    names = [point["name"] for point in sweep["points"]]
    return [n for n in names if not (pathlib.Path(directory) / n / "config.json").is_file()]


def changed(runs: list[dict]) -> list[str]:
    """The config fields in which runs differ, without fields that do not change the result."""
    return run_record.differing(row["config"] for row in runs)


def groups(runs: list[dict], over: list[str]) -> dict[str, list[dict]]:
    """Finished runs that differ only in the fields `over`, grouped by name.

    The name of a group is the common part of its names: "lidas" of "lidas__seed-0" and
    "lidas__seed-1" (in earlier versions "lidas,seed=0").
    """
    fields = [field for field in changed(runs) if field not in over]
    by_key: dict[str, list[dict]] = {}
    for row in runs:
        by_key.setdefault(json.dumps([row["config"].get(f) for f in fields]), []).append(row)
    named: dict[str, list[dict]] = {}
    for group in by_key.values():
        name = first = group[0]["name"]
        if len(group) > 1:
            between, equals = (",", "=") if "=" in first else ("__", "-")
            parts = [p for p in first.split(between) if p.partition(equals)[0] not in over]
            name = between.join(parts) or "default"
        named[first if name in named else name] = group
    return named


def metrics(runs: list[dict]) -> list[str]:
    """The metrics of all finished runs, in order of appearance."""
    return list(dict.fromkeys(name for row in runs for name in row.get("metrics", ())))


def check_over(runs: list[dict], over: list[str]) -> None:
    """Raises UserError unless `over` are fields of the config."""
    for name in over:
        if runs and not any(name in row["config"] for row in runs):
            raise UserError("--over: " + config_lib.unknown_field(config_lib.default(), name))


def report(runs: list[dict], missing: list[str], over: list[str]) -> str:
    """The table of runs, the table of means over fields, and the unfinished runs."""
    check_over(runs, over)
    finished = [row for row in runs if row["finished"]]
    parts = []
    if finished:
        parts.append(markdown(*_by_run(finished, shown=True)))
    if any(len(group) > 1 for group in groups(finished, over).values()):
        parts.append(f"Mean ± standard deviation over {', '.join(over)}:")
        parts.append(markdown(*_by_group(finished, over)))
    left = [f"- {r['name']}: step {r['step']} of {r['steps']}" for r in runs if not r["finished"]]
    left += [f"- {name}: not started" for name in missing]
    if left:
        parts.append("\n".join(["Not finished:", "", *left]))
    return "\n\n".join(parts) + "\n"


def _by_run(finished: list[dict], *, shown: bool) -> tuple[list[str], list[list]]:
    """(titles, rows) of the runs: formatted for display, or with all digits and keys as titles."""
    fields, scores = changed(finished), metrics(finished)
    heads = ["run", *fields, *(title if shown else key for key, title, _ in COLUMNS), *scores]
    body = [
        [
            row["name"],
            *(row["config"].get(field, "") for field in fields),
            *(show(row[key]) if shown else row[key] for key, _, show in COLUMNS),
            *(_cell(row["metrics"].get(name), shown) for name in scores),
        ]
        for row in finished
    ]
    return heads, body


def _cell(value: float | None, shown: bool):
    if value is None:
        return ""
    return f"{value:.4f}" if shown else value


def _by_group(finished: list[dict], over: list[str]) -> tuple[list[str], list[list[str]]]:
    fields, scores = [f for f in changed(finished) if f not in over], metrics(finished)
    costs = [cost for cost in COLUMNS if cost[0] != "wall_clock_s"]
    heads = ["runs", "n", *fields, *(title for _, title, _ in costs), *scores]
    body = []
    for name, group in groups(finished, over).items():
        cells = [name, str(len(group))]
        cells += [group[0]["config"].get(field, "") for field in fields]
        cells += [show(group[0][key]) for key, _, show in costs]
        for score in scores:
            values = [row["metrics"][score] for row in group if score in row["metrics"]]
            cells.append(run_record.spread(values, 4) if values else "")
        body.append(cells)
    return heads, body


def write(prefix, runs: list[dict], text: str) -> None:
    """Writes PREFIX.csv, with all digits, and PREFIX.md."""
    finished = [row for row in runs if row["finished"]]
    heads, body = _by_run(finished, shown=False)
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator="\n").writerows([heads, *body])
    try:
        pathlib.Path(prefix).parent.mkdir(parents=True, exist_ok=True)
        for suffix, content in ((".csv", buffer.getvalue()), (".md", text)):
            write_text(pathlib.Path(f"{prefix}{suffix}"), content)
    except OSError as error:
        raise UserError(f"--output {prefix} cannot be written: {error.strerror}") from None
