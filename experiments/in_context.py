"""Figures 7 and 16: accuracy against the number of shots."""

import statistics

import experiment
import summary

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
    rows, mean, above_chance = [], {}, []
    for role, results in curves.items():
        cells, gains = [], []
        for task in tasks:
            ends = [_ends(result["curves"][task]["rows"]) for result in results]
            first, last = ([row["accuracy"] for row in end] for end in zip(*ends, strict=True))
            shots = ends[0][1]["shots"]
            cells.append(f"{summary.percent(first)} → {summary.percent(last)} ({shots})")
            gains += [b - a for a, b in zip(first, last, strict=True)]
            above_chance.append(statistics.fmean(last) - results[0]["chance"][task])
        mean[role] = statistics.fmean(gains)
        rows.append((role, *cells))
    by_role = ", ".join(f"{role} {100 * value:+.1f}" for role, value in mean.items())
    finding = f"Gain from 0 to as many shots as fit, mean over tasks, in points: {by_role}."
    verdict = summary.verdict(mean[role] > max(mean["standard"], 0) + 0.02 for role in ROLES[1:])
    if unlearned := summary.floor(above_chance):
        verdict = summary.INCONCLUSIVE
        finding = f"{finding} {unlearned}"
    data = {"curves": {role: _by_shots(results, tasks) for role, results in curves.items()}}
    return experiment.Outcome(finding, verdict, ("model", *tasks), rows, data)


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
