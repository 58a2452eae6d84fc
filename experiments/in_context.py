"""Figures 7 and 16: accuracy against the number of shots."""

import experiment
import numpy as np
import summary
from claims import Claim, effect, missing

from loopjax.plots.accuracy import plot_finetuning

TITLE = "Examples in the prompt (Figures 7 and 16)"
PAPER = (
    "With more solved examples in the prompt, up to the limit of the context, grown and looped models "
    "gain more on the primitives than the standard model."
)
ROLES = ("standard", "lidas", "loop", "middle loop")


def runs(study) -> dict:
    return {role: study.models(role) for role in ROLES}


def outcome(study) -> experiment.Outcome:
    tasks = study.scale.words
    curves = {
        role: [study.icl(run, tasks) for run in directories]
        for role, directories in runs(study).items()
    }
    rows, gains = [], {}
    for role, results in curves.items():
        cells, by_task = [], []
        for task in tasks:
            ends = [_ends(result["curves"][task]["rows"]) for result in results]
            first, last = ([row["accuracy"] for row in end] for end in zip(*ends, strict=True))
            shots = ends[0][1]["shots"]
            cells.append(f"{summary.percent(first)} → {summary.percent(last)} ({shots})")
            by_task.append(summary.differences(last, first))
        gains[role] = np.mean(by_task, axis=0)  # [seeds]
        rows.append((role, *cells))
    by_role = ", ".join(f"{role} {effect(gain).text()}" for role, gain in gains.items())
    finding = f"Gain from 0 to as many shots as fit, mean over tasks: {by_role}."
    blocked = missing(effect(gains["standard"]), "the standard model's gain from examples")
    claims = [
        Claim(f"{summary.capital(summary.NAMED[role])} gains more from examples than the standard model", "more",
              effect(gains[role] - gains["standard"]), 0.02, blocked=blocked)
        for role in ROLES[1:]
    ]  # fmt: skip
    data = {"curves": {role: _by_shots(results, tasks) for role, results in curves.items()}}
    return experiment.Outcome(finding, claims, ("model", *tasks), rows, data)


def figures(data: dict) -> dict:
    curves = {
        role: {int(n): scores for n, scores in by_n.items()}
        for role, by_n in data["curves"].items()
    }
    return {"in_context": plot_finetuning(curves, counted="shots")}


def _by_shots(results: list[dict], tasks) -> dict[int, dict[str, list[float]]]:
    """{shots: {task: accuracy of each seed}}."""
    by_shots: dict[int, dict[str, list[float]]] = {}
    for task in tasks:
        for row in (row for result in results for row in result["curves"][task]["rows"]):
            by_shots.setdefault(row["shots"], {}).setdefault(task, []).append(row["accuracy"])
    return by_shots


def _ends(points: list[dict]) -> tuple[dict, dict]:
    """The rows with 0 shots and with as many as fit."""
    points = sorted(points, key=lambda row: row["shots"])
    return points[0], points[-1]


if __name__ == "__main__":
    experiment.main(__file__)
