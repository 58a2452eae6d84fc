"""Figure 2: how deep answers are made: depth score, early exits."""

import common

TITLE = "How much of its depth a model uses (Figure 2)"
PAPER = (
    "Depth scores of grown and looped models lie above the standard model's (MATH: standard 6.6, "
    "LIDAS 8.7, loop 9.1); their Tuned-Lens exits agree with the final prediction later, and their "
    "accuracy on variable assignment jumps later, the loops' right after a completed pass."
)
ROLES = ("standard", "lidas", "loop", "middle loop")


def runs(study) -> dict:
    return {role: study.model(role) for role in ROLES}


def outcome(study) -> common.Outcome:
    from loopjax.plots.diagnostics import PLOTS

    models, prompts = runs(study), study.scale.prompts[-2:]
    task = study.scale.tasks[-1]
    lens = (*study.scale.lens, f"--tasks={task}", "--limit=200")
    scores = {
        name: {
            role: common.diagnostic(study, run, "depth_score", name) for role, run in models.items()
        }
        for name in prompts
    }
    overlap, exits = (
        {role: common.diagnostic(study, run, name, "", *lens) for role, run in models.items()}
        for name in ("overlap", "exit_accuracy")
    )
    rows = []
    for role in models:
        E = len(overlap[role].overlap)
        late = [float(overlap[role].overlap[round(share * (E - 1))]) for share in (0.5, 0.75, 1)]
        relative = exits[role].relative[0]
        first = next((i for i, value in enumerate(relative) if value >= 0.9), E)
        rows.append((
            role, *(f"{scores[name][role].score:.2f}" for name in prompts),
            " ".join(f"{value:.2f}" for value in late), first,
        ))  # fmt: skip
    heads = ("model", *(f"depth score ({_stem(name)})" for name in prompts),
             "overlap at 1/2, 3/4 and all of the exits", f"first exit with 90% of {task}")  # fmt: skip
    name = prompts[0]
    above = {role: scores[name][role].score > scores[name]["standard"].score for role in ROLES[1:]}
    said = ", ".join(f"{role} {scores[name][role].score:.2f}" for role in ROLES)
    found = (
        f"Depth scores on {_stem(name)}: {said}; a model that uses all layers alike has "
        f"{(len(scores[name]['standard'].effect) - 1) / 2:.1f}. One seed."
    )
    verdict = {3: "shows", 0: "does not show"}.get(sum(above.values()), "shows in part")
    figures = {
        "depth_use": PLOTS["depth_score"](scores[name]),
        "depth_use-overlap": PLOTS["overlap"](overlap),
        "depth_use-exits": PLOTS["exit_accuracy"](exits),
    }
    return common.Outcome(found, verdict, heads, rows, figures)


def _stem(prompts: str) -> str:
    return prompts.split("/")[-1].removesuffix(".jsonl")


if __name__ == "__main__":
    common.start(__file__)
