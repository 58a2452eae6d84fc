"""Figures 8 and 15: fine-tuning on variable assignment in code, from few examples."""

import common

TITLE = "Fine-tuning from few examples (Figures 8 and 15)"
PAPER = (
    "Trained on Variable Assignment Code of depth 1 and 2 in equal numbers, grown and looped models "
    "learn from fewer examples than the standard model; untying the loop first changes little."
)
ROLES = ("standard", "lidas", "loop", "loop, untied")


def runs(study) -> dict:
    """Directories by (role, examples), one for each seed, which draws the examples."""
    made, scale = {}, study.scale
    for role in ROLES:
        untied = role.endswith(", untied")
        base = study.model(role.removesuffix(", untied"))
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
                for seed in scale.tuning_seeds
            ]  # fmt: skip
    return made


def outcome(study) -> common.Outcome:
    rows, curves = [], {}
    for (role, n), directories in runs(study).items():
        found = [
            study.evaluate(run, study.scale.tuning, name="tuned", shots=0) for run in directories
        ]
        values = [[common.accuracy(each, task) for each in found] for task in study.scale.tuning]
        curves.setdefault(role, {})[n] = values
        rows.append((role, n, *(common.spread(v, 1, percent=True) for v in values)))
    heads = ("model", "examples", *study.scale.tuning)
    most = max(study.scale.examples)
    mean = {role: _mean(by_n[most]) for role, by_n in curves.items()}
    said = ", ".join(f"{role} {value:.1%}" for role, value in mean.items())
    found = (
        f"Mean accuracy of both tasks after {most} examples: {said}. Of one model "
        "each, over seeds of the examples."
    )
    better = sum(mean[role] > mean["standard"] + 0.03 for role in ROLES[1:])
    verdict = {3: "shows", 0: "does not show"}.get(better, "shows in part")
    return common.Outcome(
        found, verdict, heads, rows, {"finetune": _picture(curves, study.scale.tuning)}
    )


def _mean(values) -> float:
    return sum(sum(v) / len(v) for v in values) / len(values)


def _picture(curves: dict, tasks):
    from loopjax import figure

    fig, axes = figure.grid(2, 2, 4.6, 3.2, 0.4)
    colours, lines = figure.colours(curves), {}
    for k, axis in enumerate(axes):
        for role, by_n in curves.items():
            means = [sum(v[k]) / len(v[k]) for v in by_n.values()]
            low, high = ([f(v[k]) for v in by_n.values()] for f in (min, max))
            (lines[role],) = axis.plot(by_n.keys(), means, "o-", color=colours[role])
            axis.fill_between(list(by_n), low, high, color=colours[role], alpha=0.13, linewidth=0)
        figure.plain(axis)
        figure.title(axis, tasks[k])
        axis.set_xlabel("training examples", color=figure.INK, fontsize=9)
        axis.set_ylim(0, 1)
    axes[0].set_ylabel("accuracy", color=figure.INK, fontsize=9)
    figure.legend(fig, lines)
    return fig


if __name__ == "__main__":
    common.start(__file__)
