"""Figures 8 and 15: fine-tuning on variable assignment in code, from few examples."""

import itertools
import statistics

import common

TITLE = "Fine-tuning from few examples (Figures 8 and 15)"
PAPER = (
    "Trained on Variable Assignment Code of depth 1 and 2 in equal numbers, grown and looped models "
    "learn from fewer examples than the standard model; untying the loop first changes little."
)
ROLES = ("standard", "lidas", "loop", "loop, untied")


def runs(study) -> dict:
    """Directories by (role, examples), one for each seed, which draws the examples.

    Where there are several models of a role, each seed takes another, in turn.
    """
    made, scale = {}, study.scale
    for role in ROLES:
        untied = role.endswith(", untied")
        bases = study.models(role.removesuffix(", untied"))
        overrides = list(scale.overrides)
        if untied:
            overrides += ["init_operator=untie", f"depth={scale.depth}"]
        for n in scale.examples:
            pairs = ",".join(f"{task}:{n // len(scale.tuning)}" for task in scale.tuning)
            made[role, n] = [
                study.finetuned(
                    f"{base.name}-{'untied-' * untied}sft{n}-e{seed}", base, pairs, *overrides,
                    f"seed={seed}",
                )
                for seed, base in zip(scale.tuning_seeds, itertools.cycle(bases), strict=False)
            ]  # fmt: skip
    return made


def outcome(study) -> common.Outcome:
    from loopjax.plots import figure
    from loopjax.plots.accuracy import plot_finetuning

    tasks, rows, curves = study.scale.tuning, [], {}
    for (role, n), directories in runs(study).items():
        found = [study.evaluate(run, tasks, name="tuned", shots=0) for run in directories]
        values = {task: [common.accuracy(each, task) for each in found] for task in tasks}
        curves.setdefault(role, {})[n] = values
        rows.append((role, n, *(common.spread(v, 1, percent=True) for v in values.values())))
    mean = {
        role: statistics.fmean(value for n in by_n.values() for v in n.values() for value in v)
        for role, by_n in curves.items()
    }
    said = ", ".join(f"{role} {value:.1%}" for role, value in mean.items())
    found = (
        f"Mean accuracy of both tasks and all numbers of examples: {said}. Each seed has other examples"
        f"{', and another model' if len(study.scale.seeds) > 1 else ''}."
    )
    better = sum(mean[role] > mean["standard"] + 0.03 for role in ROLES[1:])
    verdict = {3: "shows", 0: "does not show"}.get(better, "shows in part")
    colors = figure.colors(ROLES[:-1])
    colors |= {"loop, untied": colors["loop"]}
    picture = plot_finetuning(curves, colors)
    heads = ("model", "examples", *tasks)
    return common.Outcome(found, verdict, heads, rows, {"finetune": picture})


if __name__ == "__main__":
    common.start(__file__)
