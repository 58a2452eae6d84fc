"""Figures 8 and 15: fine-tuning on variable assignment in code, from few examples."""

import itertools
import statistics

import experiment
import summary

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
    rows, curves = [], {}
    for (role, n), directories in runs(study).items():
        evaluations = [study.evaluate(run, tasks, name="tuned", shots=0) for run in directories]
        accuracies = {
            task: [summary.accuracy(each, task) for each in evaluations] for task in tasks
        }
        curves.setdefault(role, {})[n] = accuracies
        rows.append((role, n, *map(summary.percent, accuracies.values())))
    mean = {
        role: statistics.fmean(value for n in by_n.values() for v in n.values() for value in v)
        for role, by_n in curves.items()
    }
    by_role = ", ".join(f"{role} {value:.1%}" for role, value in mean.items())
    seeds = "other examples and another model" if len(study.scale.seeds) > 1 else "other examples"
    finding = f"Mean accuracy over both tasks and all numbers of examples: {by_role}. Each seed has {seeds}."
    verdict = summary.verdict(mean[role] > mean["standard"] + 0.03 for role in ROLES[1:])
    heads = ("model", "examples", *tasks)
    return experiment.Outcome(finding, verdict, heads, rows, {"curves": curves})


def figures(data: dict) -> dict:
    curves = {
        role: {int(n): scores for n, scores in by_n.items()}
        for role, by_n in data["curves"].items()
    }
    return {"finetune": plot_finetuning(curves)}


if __name__ == "__main__":
    experiment.main(__file__)
