"""Reading a finished run back: its config, cost and metrics.

`loopjax report` and `loopjax results` both take a run's costs and metrics from here.
"""

import dataclasses
import json
import math
import statistics
from collections.abc import Iterable

from ml_collections import ConfigDict

from loopjax import config as config_lib
from loopjax import config_saved, flops, json_shapes, paths
from loopjax.depth import DepthPlan
from loopjax.files import read_json, read_rows
from loopjax.json_shapes import count, number, plan
from loopjax.model_config import ModelConfig

# What is read of the files of a run.
CONFIG = {"model?": dict, "depth?": str, "seq_len?": count, "steps?": count}
RESULT = {
    "steps": count, "plan": plan, "heldout": {...: number}, "training_flops": number,
    "parameters?": number, "flops_before?": number, "wall_clock_s?": number, "device?": str,
}  # fmt: skip
_NUMBERS = ("eval/", "train/", "mixture/")  # names of columns that are numbers where they are
ROW = {"step": count, "flops": number, "loss?": number}

# The costs that models are compared by: key of `Record.costs`, title.
COSTS = {
    "parameters": "unique parameters",
    "inference_flops_per_token": "inference FLOPs per token",
    "training_flops": "training FLOPs",
}


@dataclasses.dataclass(kw_only=True)
class Record:
    """A run up to a step, as far as it is known.

    Attributes:
      config: resolved config as nested dicts; {} if unknown.
      cfg: architecture; None if unknown.
      result: content of result.json; {} for an unfinished run or an earlier checkpoint.
      rows: rows of metrics.jsonl, up to the step.
      flops_before: training FLOPs of the model that the run was initialized from.
      seconds: wall-clock of the training, or None.
    """

    config: dict = dataclasses.field(default_factory=dict)
    cfg: ModelConfig | None = None
    result: dict = dataclasses.field(default_factory=dict)
    rows: list[dict] = dataclasses.field(default_factory=list)
    flops_before: float = 0.0
    seconds: float | None = None

    @property
    def finished(self) -> bool:
        """Whether the result belongs to the config: an extended run still has the result of the first."""
        return bool(self.result) and (
            bool(self.config.get("patience")) or self.result["steps"] == self.config["steps"]
        )

    @property
    def training_flops(self) -> float | None:
        """Training FLOPs, including those of the model that the run was initialized from."""
        own = self.result.get("training_flops") or (self.rows[-1]["flops"] if self.rows else None)
        return own and own + self.flops_before

    def costs(self, plan: DepthPlan | str) -> dict:
        """{key of COSTS: value or None} of the model run by a plan; inference at its context."""
        plan = DepthPlan.parse(plan)
        cfg = self.cfg
        length = self.config.get("seq_len")
        forward = None
        if cfg and length:
            forward = flops.inference_flops_per_token(cfg, plan, length)
        counted = flops.count_params(cfg, plan.n_unique) if cfg else None
        return {
            "parameters": self.result.get("parameters") or counted,
            "inference_flops_per_token": forward,
            "training_flops": self.training_flops,
        }

    def heldout(self) -> dict:
        """Held-out metrics of the training at its last step; {} if there are none."""
        if self.result:
            return self.result["heldout"]
        last = self.rows[-1] if self.rows else {}
        return {k.removeprefix("eval/"): v for k, v in last.items() if k.startswith("eval/")}

    def curve(self, metric: str):
        """(steps, FLOPs, values) of a column of metrics.jsonl, the final evaluation included."""
        points = [(r["step"], r["flops"], r[metric]) for r in self.rows if metric in r]
        final = self.result.get("heldout", {}).get(metric.removeprefix("eval/"))
        # Runs of earlier versions have it in their result only; that of an early-stopped run has
        # always been one of its rows, the best one.
        last = "stopped_at" not in self.result and (
            not points or points[-1][0] < self.result.get("steps", 0)
        )
        if metric.startswith("eval/") and final is not None and last:
            points.append((self.result["steps"], self.result["training_flops"], final))
        return list(zip(*points, strict=True)) if points else None


def of_directory(directory) -> Record | None:
    """The record of a run from config.json and result.json; None if neither exists.

    The rows of metrics.jsonl, which may be many, are not read. Raises UserError for a damaged file.
    """
    place = paths.of(directory)
    config, result = (read_json(place / name) or {} for name in ("config.json", "result.json"))
    if not config and not result:
        return None
    json_shapes.check_file(place / "config.json", config, CONFIG)
    if result:
        json_shapes.check_file(place / "result.json", result, RESULT)
    return Record(
        config=config, cfg=_architecture(config) if "model" in config else None, result=result,
        flops_before=result.get("flops_before", 0.0), seconds=result.get("wall_clock_s"),
    )  # fmt: skip


def metrics_of(directory) -> list[dict]:
    """The rows of metrics.jsonl; raises UserError for a damaged one."""
    path = paths.of(directory) / "metrics.jsonl"
    rows = read_rows(path)
    json_shapes.check_file(path, rows, [ROW])
    evaluated = [{k: v for k, v in row.items() if k.startswith(_NUMBERS)} for row in rows]
    json_shapes.check_file(path, evaluated, [{...: number}])
    return rows


def _architecture(config: dict) -> ModelConfig:
    # A field that did not exist yet had the value that is its default now.
    whole = config_lib.default()
    known = ("model", "depth", "growth", "cooldown", "loop")
    whole.update(ConfigDict({name: config[name] for name in known if name in config}))
    return config_lib.model_config(whole)


def score(task: dict | None) -> dict | None:
    """{"metric", "value", "stderr"} of a task: F1, else exact match, else accuracy, else its first."""
    if task is None:
        return None
    metrics = scores(task)
    name = next((n for n in ("f1", "exact_match", "acc", *metrics) if n in metrics), None)
    if name is None:
        return None
    return {"metric": name, "value": metrics[name][0], "stderr": metrics[name][1]}


def scores(task: dict) -> dict[str, tuple[float, float | None]]:
    """{metric: (value, its standard error or None)} of a task in a file of `loopjax eval`."""
    values = {key.partition(",")[0]: value for key, value in task["metrics"].items()}
    return {
        name: (value, values.get(f"{name}_stderr"))
        for name, value in values.items()
        if not name.endswith("_stderr")
    }


def fields(config: dict) -> dict:
    """{field: value} of the fields of a config that have an effect on its run.

    Fields that did not exist in its run have their default.
    """
    known = config_lib.flatten(config_lib.default().to_dict())
    saved = config_lib.flatten(config_saved.upgraded(config))
    values = {f: v for f, v in known.items() if not config_lib.is_by_source(f)} | saved
    unused = config_lib.unused(values)
    return {field: value for field, value in values.items() if field not in unused}


def differing(configs: Iterable[dict]) -> list[str]:
    """Fields in which configs (as from `fields`) differ, except those that do not change a run.

    A field that has no effect on some runs differs if it differs among the others. A source that a
    mixture lacks is a difference.
    """
    configs = list(configs)
    free = config_lib.RUNTIME_FIELDS

    def values(field: str) -> set[str]:
        having = [c for c in configs if field in c or config_lib.is_by_source(field)]
        return {json.dumps(config.get(field)) for config in having}

    return [
        field
        for field in dict.fromkeys(field for config in configs for field in config)
        if not any(f"{field}.".startswith(f"{name}.") for name in free) and len(values(field)) > 1
    ]


def mean_and_deviation(values: list[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (None of a single value); NaN where a value is NaN."""
    if len(values) < 2:
        return statistics.fmean(values), None
    finite = all(map(math.isfinite, values))  # `stdev` fails for others
    return statistics.fmean(values), statistics.stdev(values) if finite else math.nan


def spread(values: list[float], digits: int) -> str:
    """ "0.412 ± 0.031"; without deviation for a single value, and "nan" where a value is NaN."""
    mean, deviation = mean_and_deviation(values)
    known = deviation is not None and math.isfinite(deviation)
    return f"{mean:.{digits}f}" + (f" ± {deviation:.{digits}f}" if known else "")
