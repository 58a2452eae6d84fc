"""Figure 2: how deep answers are made: depth score, early exits."""

import statistics

import common

TITLE = "How much of its depth a model uses (Figure 2)"
PAPER = (
    "Depth scores of grown and looped models lie above the standard model's (MATH: standard 6.6, "
    "LIDAS 8.7, loop 9.1); their Tuned-Lens exits agree with the final prediction later, and their "
    "accuracy on variable assignment jumps later, the loops' right after a completed pass."
)
ROLES = ("standard", "lidas", "loop", "middle loop")


def runs(study) -> dict:
    return {role: study.models(role) for role in ROLES}


def outcome(study) -> common.Outcome:
    from loopjax.analysis.diagnostics import DIAGNOSTICS

    models, prompts = runs(study), study.scale.prompts[-2:]
    task = study.scale.tasks[-1]
    lens = (*study.scale.lens, f"--tasks={task}", "--limit=200")
    scores = {
        name: {
            role: [common.diagnostic(study, run, "depth_score", name) for run in models[role]]
            for role in ROLES
        }
        for name in prompts
    }
    overlap, exits = (
        {
            role: [common.diagnostic(study, run, name, "", *lens) for run in models[role]]
            for role in ROLES
        }
        for name in ("overlap", "exit_accuracy")
    )
    rows, mean = [], {}
    for role in ROLES:
        late = zip(*(_late(found.overlap) for found in overlap[role]), strict=True)
        by_prompts = [[found.score for found in scores[name][role]] for name in prompts]
        mean[role] = statistics.fmean(by_prompts[0])
        rows.append((
            role, *(common.spread(values, 2) for values in by_prompts),
            " ".join(f"{statistics.fmean(values):.2f}" for values in late),
            " ".join(str(_first(found.relative[0])) for found in exits[role]),
        ))  # fmt: skip
    heads = ("model", *(f"depth score ({_stem(name)})" for name in prompts),
             "overlap at 1/2, 3/4 and all of the exits", f"first exit with 90% of {task}")  # fmt: skip
    name = prompts[0]
    above = [mean[role] > mean["standard"] + 0.1 for role in ROLES[1:]]  # layers
    said = ", ".join(f"{role} {mean[role]:.2f}" for role in ROLES)
    found = (
        f"Depth scores on {_stem(name)}: {said}; a model that uses all layers alike has "
        f"{(len(scores[name]['standard'][0].effect) - 1) / 2:.1f}."
    )
    verdict = {3: "shows", 0: "does not show"}.get(sum(above), "shows in part")
    figures = {
        "depth_use": DIAGNOSTICS["depth_score"].draw(common.first_of(scores[name])),
        "depth_use-overlap": DIAGNOSTICS["overlap"].draw(common.first_of(overlap)),
        "depth_use-exits": DIAGNOSTICS["exit_accuracy"].draw(common.first_of(exits)),
    }
    return common.Outcome(found, verdict, heads, rows, figures)


def _late(overlap) -> list[float]:
    last = len(overlap) - 1
    return [float(overlap[round(share * last)]) for share in (0.5, 0.75, 1)]


def _first(relative) -> int:
    """The first exit with 90% of the model's accuracy."""
    return next((i for i, value in enumerate(relative) if value >= 0.9), len(relative))


def _stem(prompts: str) -> str:
    return prompts.split("/")[-1].removesuffix(".jsonl")


if __name__ == "__main__":
    common.start(__file__)
