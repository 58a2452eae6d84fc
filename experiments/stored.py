"""Numbers of figures as JSON: what an experiment writes beside its table, to be drawn again."""

import dataclasses
import types

import numpy as np

from loopjax import lineage
from loopjax.analysis import periodicity
from loopjax.checkpoint import locate, read_meta
from loopjax.depth import DepthPlan

DIGITS = 5  # significant digits of stored numbers


def plain(value):
    """A result of a diagnostic, or any part of one, as JSON with rounded numbers."""
    if dataclasses.is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(one) for one in value]
    if isinstance(value, float | np.floating):
        return float(f"{value:.{DIGITS}g}") if np.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value


def results(by_role: dict) -> dict:
    """{role: results of its seeds} of a diagnostic, as figures take them, from what `plain` made."""
    return {
        role: [types.SimpleNamespace(**seed) for seed in seeds] for role, seeds in by_role.items()
    }


def edited(result: dict) -> dict:
    """What figures need of a file of `loopjax intervene`."""

    def score(found: dict) -> dict:
        return {"accuracy": found["accuracy"], "stderr": found.get("stderr")}

    return plain(
        {
            "settings": {"op": result["settings"]["op"]},
            "metrics": result["metrics"],
            "chance": result["chance"],
            "unmodified": {task: score(one) for task, one in result["unmodified"].items()},
            "rows": [
                {"size": row["size"], "start": row["start"], "times": row["times"],
                 "tasks": {task: score(one) for task, one in row["tasks"].items()}}
                for row in result["rows"]
            ],
        }
    )  # fmt: skip


def blocks(runs: dict) -> dict[str, list[int]]:
    """{role: executed layers at which a block begins}, the first aside; models without blocks left out."""
    starts = {}
    for role, directories in runs.items():
        meta = read_meta(*locate(directories[0]))
        plan = DepthPlan.parse(meta["plan"])
        if begins := periodicity.starts(lineage.stages(meta["lineage"]), plan):
            starts[role] = begins
    return starts
