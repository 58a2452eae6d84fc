"""Figure 2: how much of its depth a model uses: depth score, early exits."""

import statistics

import experiment
import stored
import summary
from claims import Claim, effect
from study import diagnostic

from loopjax.plots import accuracy, diagnostics
from loopjax.run_record import spread

TITLE = "How much of its depth a model uses (Figure 2)"
PAPER = (
    "Depth scores of grown and looped models are above the standard model's (MATH: standard 6.6, "
    "LIDAS 8.7, loop 9.1); their Tuned-Lens exits agree with the final prediction later, and their "
    "accuracy on variable assignment jumps later, the loops' right after a completed pass."
)
ROLES = ("standard", "lidas", "loop", "middle loop")


def runs(study) -> dict:
    return {role: study.models(role) for role in ROLES}


def outcome(study) -> experiment.Outcome:
    models = runs(study)
    prompts = study.scale.prompts[-2:]
    task = study.scale.tasks[-1]
    lens = (*study.scale.lens, f"--tasks={task}", "--limit=200")
    scores = {
        name: {
            role: [diagnostic(study, run, "depth_score", name) for run in models[role]]
            for role in ROLES
        }
        for name in prompts
    }
    overlap, exits = (
        {role: [diagnostic(study, run, name, "", *lens) for run in models[role]] for role in ROLES}
        for name in ("overlap", "exit_accuracy")
    )
    rows, by_seed = [], {}
    for role in ROLES:
        late = zip(*(_late(result.overlap) for result in overlap[role]), strict=True)
        by_prompts = [[result.score for result in scores[name][role]] for name in prompts]
        by_seed[role] = by_prompts[0]
        rows.append(
            (
                role,
                *(spread(values, 2) for values in by_prompts),
                " ".join(f"{statistics.fmean(values):.2f}" for values in late),
                " ".join(str(_first(result.relative[0])) for result in exits[role]),
            )
        )
    heads = (
        "model",
        *(f"depth score ({_stem(name)})" for name in prompts),
        "overlap at 1/2, 3/4 and all of the exits",
        f"first exit with 90% of {task}",
    )
    name = prompts[0]
    by_role = ", ".join(f"{role} {statistics.fmean(by_seed[role]):.2f}" for role in ROLES)
    uniform = (len(scores[name]["standard"][0].effect) - 1) / 2
    finding = (
        f"Depth scores on {_stem(name)}: {by_role}; a model that uses all layers alike has "
        f"{uniform:.1f}."
    )
    published = {
        "lidas": "8.7 (standard 6.6)",
        "loop": "9.1 (standard 6.6)",
        "middle loop": "above",
    }
    claims = [
        Claim(f"The depth score of {summary.NAMED[role]} is above the standard model's",
              published[role], effect(summary.differences(by_seed[role], by_seed["standard"])), 0.1,
              unit="layers")
        for role in ROLES[1:]
    ]  # fmt: skip
    data = {"scores": scores[name], "overlap": overlap, "exits": exits}
    return experiment.Outcome(finding, claims, heads, rows, data)


def figures(data: dict) -> dict:
    scores, overlap, exits = (stored.results(data[name]) for name in ("scores", "overlap", "exits"))
    return {
        "depth_use": diagnostics.plot_depth_score(scores),
        "depth_use-overlap": diagnostics.plot_agreement(overlap),
        "depth_use-exits": accuracy.plot_exit_accuracy(exits),
    }


def _late(overlap) -> list[float]:
    last = len(overlap) - 1
    return [float(overlap[round(share * last)]) for share in (0.5, 0.75, 1)]


def _first(relative) -> int:
    """The first exit with 90% of the model's accuracy."""
    return next((i for i, value in enumerate(relative) if value >= 0.9), len(relative))


def _stem(prompts: str) -> str:
    return prompts.split("/")[-1].removesuffix(".jsonl")


if __name__ == "__main__":
    experiment.main(__file__)
