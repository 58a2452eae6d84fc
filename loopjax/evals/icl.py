"""`loopjax icl`: accuracy against the number of shots, up to the limit of the context.

The limit is found for each task: the most shots with which every evaluated prompt still fits (Kapl
et al. 2026, Figures 7 and 16).
"""

import math

from loopjax import outputs, paths
from loopjax.errors import UserError
from loopjax.evals import suite
from loopjax.evals.evaluate import begin, chance, metric_of, run_task
from loopjax.evals.harness import LoopjaxLM
from loopjax.lm.loaded_model import LanguageModel

GRID = (0, 1, 2, 4, 5)  # and multiples of 8, and the limit


def sweep(
    lm: LanguageModel,
    tasks: list[str],
    output,
    *,
    shots: list[int] | None = None,
    limit: int | None = None,
    data_dir=None,
    batch_tokens: int | None = None,
    say=print,
) -> dict:
    """Evaluates each task with each number of shots; returns what `output` (JSON) holds.

    Args:
      tasks: names of tasks and groups whose metric is an accuracy of choices or words.
      shots: numbers of shots; by default 0, 1, 2, 4, 5, multiples of 8, and the limit.
      limit: number of items of each task, from the first.
    """
    output = paths.of(output)
    loaded = suite.load(tasks, data_dir)["tasks"]
    suite.check_metric(loaded, "acc")
    names = list(loaded)
    result = begin("icl", output, lm, shots=shots, limit=limit, data_dir=data_dir)
    curves = result.setdefault("curves", {})
    result["model"] = lm.describe()
    chances = {name: chance(task, "acc", limit) for name, task in loaded.items()}
    result.setdefault("chance", {}).update(chances)
    harness = LoopjaxLM(lm, batch_tokens=batch_tokens)
    for name in names:
        curve = curves.setdefault(name, {"rows": []})
        if "most_shots" not in curve:
            curve["most_shots"] = most_shots(harness, name, limit, data_dir, max(shots or [512]))
        most = curve["most_shots"]
        wanted = [k for k in shots if k <= most] if shots else grid(most)
        for k in sorted(set(wanted) - {row["shots"] for row in curve["rows"]}):
            task = suite.load([name], data_dir, k)["tasks"][name]
            row = _point(run_task(harness, name, task, limit), k)
            curve["rows"].append(row)
            outputs.write_json(output, result)
            low, high = row["interval"]
            say(
                f"{name}  {k} of at most {most} shots  {row['accuracy']:.4f} ({low:.4f} to {high:.4f})"
            )
    return result


def grid(most: int) -> list[int]:
    """0, 1, 2, 4, 5, 8, 16, 24, ..., and the limit."""
    return sorted({k for k in (*GRID, *range(8, most + 1, 8), most) if k <= most})


def most_shots(harness: LoopjaxLM, name: str, limit, data_dir, upper: int) -> int:
    """The largest number of shots, at most `upper`, with which all prompts fit the context."""
    low, high = 0, 1
    while high <= upper and _fits(harness, name, high, limit, data_dir):
        low, high = high, 2 * high
    high = min(high, upper + 1)
    while high - low > 1:
        middle = (low + high) // 2
        if _fits(harness, name, middle, limit, data_dir):
            low = middle
        else:
            high = middle
    return low


def _fits(harness: LoopjaxLM, name: str, shots: int, limit, data_dir) -> bool:
    try:
        task = suite.load([name], data_dir, shots)["tasks"][name]
    except UserError:
        if not shots:
            raise
        return False  # the task has fewer documents to draw shots from
    task.build_all_requests(limit=limit, rank=0, world_size=1)
    texts = {"".join(instance.args[:2]) for instance in task.instances}
    return all(len(harness.tok_encode(text)) <= harness.max_length + 1 for text in texts)


def _point(result: dict, shots: int) -> dict:
    accuracy = metric_of(result["metrics"], "acc")
    n = result["n_samples"]
    return {
        "shots": shots, "accuracy": accuracy, "interval": wilson(accuracy, n), "n": n,
        "truncated": result["truncated"], "seconds": result["seconds"],
    }  # fmt: skip


def wilson(share: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95% confidence interval of a binomial share (Wilson 1927)."""
    center = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, center - half), min(1.0, center + half)
