"""Figures 8 and 15: fine-tuning on variable assignment in code, from few examples."""

import itertools

import experiment
import numpy as np
import summary
from claims import Claim, effect, missing

from loopjax.data.floors import mean_floors
from loopjax.plots.accuracy import plot_finetuning

TITLE = "Fine-tuning from few examples (Figures 8 and 15)"
PAPER = (
    "Trained on Variable Assignment Code of depth 1 and 2 in equal numbers, grown and looped models "
    "learn from fewer examples than the standard model; untying the loop first changes little."
)
ROLES = ("standard", "lidas", "loop", "loop, untied")


def runs(study) -> dict:
    """Directories by (role, number of examples), one per seed; the seed draws the examples.

    If there are several models of a role, the seeds take them in turn.
    """
    directories, scale = {}, study.scale
    for role in ROLES:
        untied = role.endswith(", untied")
        bases = study.models(role.removesuffix(", untied"))
        overrides = list(scale.overrides)
        if untied:
            overrides += ["init_operator=untie", f"depth={scale.depth}"]
        for n in scale.examples:
            pairs = ",".join(f"{task}:{n // len(scale.tuning)}" for task in scale.tuning)
            directories[role, n] = [
                study.finetuned(
                    f"{base.name}-{'untied-' * untied}sft{n}-e{seed}",
                    base,
                    pairs,
                    *overrides,
                    f"seed={seed}",
                )
                for seed, base in zip(scale.tuning_seeds, itertools.cycle(bases), strict=False)
            ]
    return directories


def outcome(study) -> experiment.Outcome:
    tasks = study.scale.tuning
    rows, curves, items = [], {}, {}
    for (role, n), directories in runs(study).items():
        evaluations = [study.evaluate(run, tasks, name="tuned", shots=0) for run in directories]
        accuracies = {
            task: [summary.accuracy(each, task) for each in evaluations] for task in tasks
        }
        curves.setdefault(role, {})[n] = accuracies
        items.setdefault(role, []).append(summary.values(evaluations))
        rows.append((role, n, *map(summary.percent, accuracies.values())))
    mean = {role: np.mean(by_n, axis=0) for role, by_n in items.items()}  # [seeds, items]
    by_role = ", ".join(f"{role} {values.mean():.1%}" for role, values in mean.items())
    seeds = "other examples and another model" if len(study.scale.seeds) > 1 else "other examples"
    finding = f"Mean accuracy over both tasks and all numbers of examples: {by_role}. Each seed has {seeds}."
    floor = mean_floors(tasks)
    learned = effect(mean["standard"] - (floor.best[1] if floor else 0.0))
    blocked = missing(learned, "the standard model above the best trivial rule")
    untied = effect(mean["loop, untied"] - mean["loop"])
    claims = [
        Claim(f"{summary.capital(summary.NAMED[role])} learns more from few examples than the standard model",
              "more", effect(mean[role] - mean["standard"]), 0.03, blocked=blocked)
        for role in ("lidas", "loop")
    ] + [
        Claim("Untying the loop first loses little", "little", untied, -0.03, blocked=blocked)
    ]  # fmt: skip
    heads = ("model", "examples", *tasks)
    return experiment.Outcome(finding, claims, heads, rows, {"curves": curves})


def figures(data: dict) -> dict:
    curves = {
        role: {int(n): scores for n, scores in by_n.items()}
        for role, by_n in data["curves"].items()
    }
    return {"finetune": plot_finetuning(curves)}


if __name__ == "__main__":
    experiment.main(__file__)
