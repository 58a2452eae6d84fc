"""`loopjax eval`: tasks of lm-evaluation-harness on a checkpoint, run by one plan or several.

Every task is written to the output when it is finished; the same command goes on after it was
stopped.
"""

import contextlib
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

from loopjax import checkpoint
from loopjax.checkpoint import versions
from loopjax.errors import UserError
from loopjax.evals import suite
from loopjax.evals.harness import LoopjaxLM
from loopjax.files import write_json
from loopjax.lm.loaded_model import LanguageModel
from loopjax.progress import duration

FORMAT = 1
PACKAGES = ("lm-eval", "datasets", "tokenizers")
BOOTSTRAP = 1000  # resamples for standard errors that have no closed form
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
    say=print,
) -> dict:
    """Evaluates every task at every plan and returns what `output` (a JSON file) holds.

    Args:
      depths: plans, each with as many unique layers as the checkpoint has.
      tasks: names of tasks and groups.
      num_fewshot: examples in the prompt; what each task says by default.
      limit: the first so many items of each task.
      data_dir: a directory of files to read instead of the hub.
    """
    models = {depth: lm.with_plan(depth) for depth in depths}
    loaded = suite.load(tasks, data_dir, num_fewshot)["tasks"]
    output = pathlib.Path(output)
    result = begin(output, lm, num_fewshot=num_fewshot, limit=limit, data_dir=data_dir)
    plans = result.setdefault("plans", {})
    for depth, at_plan in models.items():
        plan = plans.setdefault(
            str(at_plan.plan), {"model": at_plan.describe(), "tasks": {}, "groups": {}}
        )
        todo = [name for name in loaded if name not in plan["tasks"]]
        harness = LoopjaxLM(at_plan, batch_tokens=batch_tokens) if todo else None
        for name in todo:
            plan["tasks"][name] = run_task(harness, name, loaded[name], limit)
            plan["groups"] = group_scores(plan["tasks"])
            write_json(output, result)
            say(f"{depth}  {name}  {_told(plan['tasks'][name])}")
        for name, score in plan["groups"].items():
            error = "" if score["stderr"] is None else f" ± {score['stderr']:.4f}"
            say(f"{depth}  {name}  {score['metric']} {score['value']:.4f}{error}")
    return result


def begin(output: pathlib.Path, lm: LanguageModel, **settings) -> dict:
    """A new result, or the one that the file holds if it is of the same model and settings."""
    settings = {
        "checkpoint": str(lm.path),
        "weights": checkpoint.weights_digest(lm.meta),
        "dtype": lm.cfg.dtype,
        "context": lm.context,
        "seeds": SEEDS,
        **settings,
    }
    settings = json.loads(json.dumps(settings, default=str))
    if output.exists():
        try:
            found = json.loads(output.read_text())
            same = found["settings"] == settings
        except (ValueError, KeyError, TypeError, OSError):
            same = False
        if not same:
            raise UserError(f"--output {output} holds something else; name a new file")
        return found
    try:
        if not output.parent.is_dir():
            output.parent.mkdir(parents=True)
        output.touch()
        output.unlink()
    except FileExistsError:
        raise UserError(f"--output {output} cannot be written: {output.parent} is a file") from None
    except OSError as error:
        raise UserError(f"--output {output} cannot be written: {error.strerror}") from None
    return {
        "format": FORMAT,
        "settings": settings,
        "versions": versions() | {name: metadata.version(name) for name in PACKAGES},
        "begun": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def run_task(harness: LoopjaxLM, name: str, task, limit) -> dict:
    """One task: its metrics with standard errors, and what is needed to repeat it."""
    from lm_eval.evaluator import evaluate as harness_evaluate

    random.seed(SEEDS["random"])
    np.random.seed(SEEDS["numpy"])
    task.set_fewshot_seed(seed=SEEDS["fewshot"])
    begun, harness.truncated = time.monotonic(), 0
    # The harness prints, and would fork this process, in which JAX has its threads.
    os.environ.setdefault("DISABLE_MULTIPROC", "1")
    with contextlib.redirect_stdout(io.StringIO()):
        found = harness_evaluate(
            harness, {"tasks": {name: task}}, limit=limit, log_samples=False,
            bootstrap_iters=BOOTSTRAP,
        )  # fmt: skip
    metrics = {
        key: value
        for key, value in found["results"][name].items()
        if isinstance(value, int | float) and key != "sample_len"
    }
    return {
        "metrics": {k: v for k, v in metrics.items() if math.isfinite(v)},
        "n_samples": found["n-samples"][name]["effective"],
        "n_shot": found["n-shot"][name],
        "version": found["versions"][name],
        "truncated": harness.truncated,
        "seconds": time.monotonic() - begun,
    }


def _told(task: dict) -> str:
    shown = [
        f"{key.removesuffix(',none')} {value:.4f}"
        for key, value in task["metrics"].items()
        if "stderr" not in key
    ]
    cut = f"  {task['truncated']} requests cut" if task["truncated"] else ""
    return f"{'  '.join(shown)}  ({task['n_samples']} items, {duration(task['seconds'])}){cut}"


def group_scores(tasks: dict) -> dict:
    """Unweighted means of the groups of the paper whose tasks are all there, with standard errors."""
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
    """The value of a metric, whatever the filter it was computed behind; None if it is not there."""
    return next((value for key, value in metrics.items() if key.partition(",")[0] == name), None)


def chance(task, metric: str, limit: int | None) -> float | None:
    """The accuracy of guessing, where there are choices, over the first `limit` items."""
    if task.OUTPUT_TYPE != "multiple_choice" or metric != "acc":
        return None
    documents = itertools.islice(task.eval_docs, limit)
    return float(np.mean([1 / len(task.doc_to_choice(document)) for document in documents]))
