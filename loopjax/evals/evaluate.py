"""`loopjax eval`: tasks of lm-evaluation-harness on a checkpoint, run by one plan or several.

The output is written after every task; rerunning the same command resumes.
"""

import contextlib
import dataclasses
import io
import itertools
import json
import math
import os
import pathlib
import random
import time
from importlib import metadata

import numpy as np

from loopjax import exits, outputs, paths, run_record
from loopjax.checkpoint import versions
from loopjax.errors import UserError
from loopjax.evals import suite
from loopjax.evals.harness import LoopjaxLM
from loopjax.lm.loaded_model import LanguageModel
from loopjax.progress import duration
from loopjax.results import schema

PACKAGES = ("lm-eval", "datasets", "tokenizers")
BOOTSTRAP = 1000  # resamples for standard errors without a closed form
MAIN = "main"  # the metric that stands for a task, `run_record.score`
SEEDS = {"random": 0, "numpy": 1234, "fewshot": 1234}


def evaluate(
    lm: LanguageModel,
    depths: list[str],
    tasks: list[str],
    output,
    *,
    num_fewshot: int | None = None,
    limit: int | None = None,
    data_dir=None,
    batch_tokens: int | None = None,
    exit: exits.Rule | None = None,
    max_repeats: int | None = None,
    by_item: bool = False,
    say=print,
) -> dict:
    """Evaluates every task at every plan and returns what `output` (a JSON file) holds.

    Args:
      depths: plans, each with as many unique layers as the checkpoint has.
      tasks: names of tasks and groups.
      num_fewshot: shots; by default those of each task.
      limit: number of items of each task, from the first.
      data_dir: a directory of files to read instead of the hub.
      exit, max_repeats: rule by which tokens leave the loop early, and its repetitions at most; tasks
        then have "exits", the fields of `exits.Saving`.
      by_item: whether tasks have "values": their main metric (`run_record.score`) of each item, in the
        order of the task, where an item has one.
    """
    models = {depth: lm.with_plan(depth) for depth in depths}
    if exit or max_repeats:
        models = {depth: m.with_exit(exit, max_repeats) for depth, m in models.items()}
    loaded = suite.load(tasks, data_dir, num_fewshot)["tasks"]
    output = paths.of(output)
    settings = {"num_fewshot": num_fewshot, "limit": limit, "data_dir": data_dir}
    if exit:
        settings["exit"] = str(exit)
    if by_item:
        settings["by_item"] = True
    result = begin("eval", output, lm, **settings)
    plans = result.setdefault("plans", {})
    for depth, at_plan in models.items():
        plan = plans.setdefault(
            str(at_plan.plan), {"model": at_plan.describe(), "tasks": {}, "groups": {}}
        )
        todo = [name for name in loaded if name not in plan["tasks"]]
        harness = LoopjaxLM(at_plan, batch_tokens=batch_tokens) if todo else None
        for name in todo:
            plan["tasks"][name] = run_task(
                harness, name, loaded[name], limit, metric=MAIN if by_item else None
            )
            plan["groups"] = group_scores(plan["tasks"])
            outputs.write_json(output, result)
            say(f"{depth}  {name}  {_summary(plan['tasks'][name])}")
        for name, score in plan["groups"].items():
            error = "" if score["stderr"] is None else f" ± {score['stderr']:.4f}"
            say(f"{depth}  {name}  {score['metric']} {score['value']:.4f}{error}")
    return result


def begin(name: str, output: pathlib.Path, lm: LanguageModel, **settings) -> dict:
    """A new result, or the one in the file if it is of the same model and settings.

    Args:
      name: of the schema, as `schema.header` takes it.
    """
    settings = {
        "checkpoint": str(lm.path),
        "weights": lm.digest,
        "dtype": lm.cfg.dtype,
        "context": lm.context,
        "seeds": SEEDS,
        **settings,
    }
    settings = json.loads(json.dumps(settings, default=str))
    outputs.check_file(output, "--output")
    if output.exists():
        return _resumed(name, output, settings)
    return {
        **schema.header(name),
        "settings": settings,
        "versions": versions() | {name: metadata.version(name) for name in PACKAGES},
        "begun": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _resumed(name: str, output: pathlib.Path, settings: dict) -> dict:
    """The result in a file; raises UserError if it is of something else."""
    try:
        result = json.loads(output.read_text())
        stored = result["settings"]
        identity = schema.identify(output, result)
    except schema.Unreadable as error:
        raise UserError(f"--output {output} cannot be resumed: {error}") from None
    except (ValueError, KeyError, TypeError, OSError, RecursionError):
        stored = identity = None
    if stored != settings or identity["schema"] != f"loopjax.{name}":
        raise UserError(
            f"--output {output} is a result of another model, command or settings; choose a new file"
        )
    return schema.with_header(name, result)


def run_task(
    harness: LoopjaxLM, name: str, task, limit, *, items=None, metric: str | None = None
) -> dict:
    """One task: its metrics with standard errors, and the settings needed to repeat it.

    Args:
      limit: number of items, from the first; None for all.
      items: indices of the items instead, ascending.
      metric: a metric whose values by item are returned as "values"; MAIN for that of the summary.
    """
    from lm_eval.evaluator import evaluate as harness_evaluate

    random.seed(SEEDS["random"])
    np.random.seed(SEEDS["numpy"])
    task.set_fewshot_seed(seed=SEEDS["fewshot"])
    begun = time.monotonic()
    harness.truncated = 0
    harness.cut_items = set()
    harness.exited = [0, 0]
    # The harness prints, and would fork this process, which is unsafe with JAX's threads.
    os.environ.setdefault("DISABLE_MULTIPROC", "1")
    with contextlib.redirect_stdout(io.StringIO()):
        result = harness_evaluate(
            harness, {"tasks": {name: task}}, limit=None if items else limit,
            samples={name: list(items)} if items else None, log_samples=metric is not None,
            bootstrap_iters=BOOTSTRAP,
        )  # fmt: skip
    metrics = {
        key: value
        for key, value in result["results"][name].items()
        if isinstance(value, int | float) and key != "sample_len"
    }
    values = {}
    if metric is not None:
        if metric == MAIN:
            metric = run_record.score({"metrics": metrics})["metric"]
        if (found := _by_item(result["samples"][name], metric, metrics)) is not None:
            values["values"] = found
    return {
        "metrics": {k: v for k, v in metrics.items() if math.isfinite(v)},
        **values,
        "n_samples": len(items) if items else result["n-samples"][name]["effective"],
        "n_shot": result["n-shot"][name],
        "version": result["versions"][name],
        "truncated": harness.truncated,
        "items_truncated": len(harness.cut_items),
        "seconds": time.monotonic() - begun,
        **_exits(harness),
    }


def _by_item(samples: list[dict], metric: str, metrics: dict) -> list[float] | None:
    """The values of a metric in the order of the items; its last filter, as in `run_record.scores`.

    None if items have no number of their own, like a perplexity over all words.
    """
    filters = [key.partition(",")[2] for key in metrics if key.partition(",")[0] == metric]
    kept = [one for one in samples if one["filter"] == filters[-1]]
    values = [one[metric] for one in sorted(kept, key=lambda one: one["doc_id"])]
    return [*map(float, values)] if all(np.isscalar(value) for value in values) else None


def _exits(harness: LoopjaxLM) -> dict:
    """{"exits": fields of `exits.Saving`}; {} at full depth."""
    lm, (tokens, repeats) = harness.lm, harness.exited
    if not lm.exit or not tokens:
        return {}
    saving = exits.saving(lm.cfg, lm.plan, lm.exit, lm.context, tokens, repeats)
    return {"exits": dataclasses.asdict(saving)}


def _summary(task: dict) -> str:
    metrics = [
        f"{key.removesuffix(',none')} {value:.4f}"
        for key, value in task["metrics"].items()
        if "stderr" not in key
    ]
    n, cut = task["n_samples"], task["items_truncated"]
    warning = f"  {cut} of {n} prompts cut at the start to fit the context" if cut else ""
    saved = f"  {exits.Saving(**task['exits']).as_text()}" if "exits" in task else ""
    return f"{'  '.join(metrics)}  ({n} items, {duration(task['seconds'])}){saved}{warning}"


def group_scores(tasks: dict) -> dict:
    """Unweighted means, with standard errors, of the paper's groups whose tasks are all evaluated."""
    out = {}
    for group, metric in suite.METRICS.items():
        names = suite.GROUPS[group]
        if not all(name in tasks for name in names):
            continue
        rows = [tasks[name]["metrics"] for name in names]
        errors = [metric_of(row, f"{metric}_stderr") for row in rows]
        # One item alone has no standard error.
        error = None if None in errors else np.sqrt(np.sum(np.square(errors))) / len(errors)
        out[group] = {
            "metric": metric,
            "value": float(np.mean([metric_of(row, metric) for row in rows])),
            "stderr": error,
        }
    return out


def metric_of(metrics: dict, name: str) -> float | None:
    """The value of a metric, whichever filter it was computed with; None if there is none."""
    return next((value for key, value in metrics.items() if key.partition(",")[0] == name), None)


def chance(task, metric: str, limit: int | None) -> float | None:
    """Chance accuracy of a multiple-choice task over its first `limit` items, else None."""
    if task.OUTPUT_TYPE != "multiple_choice" or metric != "acc":
        return None
    documents = itertools.islice(task.eval_docs, limit)
    return float(np.mean([1 / len(task.doc_to_choice(document)) for document in documents]))
