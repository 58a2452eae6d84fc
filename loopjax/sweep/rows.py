"""The runs below a directory as rows: config, costs, metrics."""

import json
import os
import pathlib

from loopjax import paths, run_record
from loopjax.depth import DepthPlan
from loopjax.errors import UserError
from loopjax.files import walk
from loopjax.results import reader
from loopjax.sweep.directory import FILE
from loopjax.sweep.logs import last_rows

LONGEST_CHAIN = 8  # runs that are branches of branches


def runs_below(directory) -> list[pathlib.Path]:
    """The directories of runs at or below a directory, sorted; raises UserError if there are none."""
    runs = []
    for folder, below, files in walk(directory):
        below.sort()
        if {"config.json", "phases.json"} <= set(files):
            runs.append(folder)
            below.clear()
    if not runs and not (paths.of(directory) / FILE).is_file():
        raise UserError(f"{directory} contains no runs")
    return runs


def rows(directories) -> list[dict]:
    """A row for each directory of a run.

    Keys: `name` (the directory, relative to the common parent of all), `directory`, `finished`,
    `step` and `steps` (done and total), `saved` (its config, nested), `config` ({field: value} of
    the fields that have an effect on the run); for finished runs also `plan`,
    `unique_layers`, `effective_layers`, `parameters`, `training_flops` (including the run it was
    initialized from), `inference_flops_per_token`, `wall_clock_s` and `metrics`: the held-out
    metrics of `result.json` ("nll", "p_hop_2/accuracy", ...) and those in the files of
    `loopjax eval` and `loopjax nll` below the directory ("copying_real/acc", "bits_per_byte";
    " at PLAN" if evaluated with another plan than trained with).
    """
    directories = [paths.of(directory) for directory in directories]
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
        "saved": run.config,
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
    """Scores in the files that `loopjax eval` and `loopjax nll` wrote below a run's directory.

    The names of two files' scores are told apart by the names of the files. Of a file with the NLL
    of all checkpoints only that of the run's last step is a score.
    """
    scores = {}
    for evaluated in reader.evaluations(directory):
        suffix = "" if evaluated.plan == result["plan"] else f" at {evaluated.plan}"
        if evaluated.step != result["steps"]:
            if evaluated.kind == "nll":
                continue
            suffix += f" @{evaluated.step}"
        for key, value in _named(evaluated).items():
            key += suffix
            taken = key in scores or key in result["heldout"]
            scores[f"{key} ({evaluated.file.stem})" if taken else key] = value
    return scores


def _named(evaluated: reader.Result) -> dict[str, float]:
    """{group, task/metric or source/metric: value} of an evaluation."""
    value = evaluated.value
    if evaluated.kind == "nll":
        sources = value.get("sources", {})
        return {
            f"{source}{name}": of[name]
            for source, of in [("", value), *((f"{s}/", of) for s, of in sources.items())]
            for name in ("nll", "accuracy", "bits_per_byte")
            if name in of and (not source or len(sources) > 1)
        }
    out = {group: score["value"] for group, score in value["groups"].items()}
    for task, of_task in value["tasks"].items():
        for metric, (score, _) in run_record.scores(of_task).items():
            out.setdefault(f"{task}/{metric}", score)
    return out


def changed(runs: list[dict]) -> list[str]:
    """The config fields in which runs differ, without fields that do not change the result.

    Fields that have no effect on some of the runs come last.
    """
    fields = run_record.differing(row["config"] for row in runs)
    return sorted(fields, key=lambda field: any(field not in row["config"] for row in runs))


def metrics(runs: list[dict]) -> list[str]:
    """The metrics of all finished runs, in order of appearance."""
    return list(dict.fromkeys(name for row in runs for name in row.get("metrics", ())))


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


def with_sources(runs: list[dict], over: list[str]) -> list[dict]:
    """Rows whose `init_from` names the group of the run that it points to: "lidas@850".

    Branches of runs that differ only in the fields `over`, such as one base per seed, are then alike.
    Runs that are not among the rows keep their path.
    """
    for _ in range(LONGEST_CHAIN):
        names = {row["name"]: name for name, group in groups(runs, over).items() for row in group}
        found = [row | {"config": row["config"] | _source(row, runs, names)} for row in runs]
        if found == runs:
            break
        runs = found
    return runs


def _source(row: dict, runs: list[dict], names: dict[str, str]) -> dict:
    """{"init_from": its short form} of a row; {} if it has none, or of a run that is not there."""
    path = row["saved"].get("init_from", "")
    text, _, step = path.rpartition("@")
    if step.isdecimal() and text:
        path = text
    else:
        step = ""
    if not path or "init_from" not in row["config"]:
        return {}
    place = paths.of(path)
    place = place.parent if place.name == "checkpoints" else place
    same = [r for r in runs if paths.of(r["directory"]).resolve() == place.resolve()]
    same = same or [r for r in runs if paths.of(r["directory"]).name == place.name]  # moved
    if len(same) != 1:
        return {}
    return {"init_from": names[same[0]["name"]] + (f"@{step}" if step else "")}
