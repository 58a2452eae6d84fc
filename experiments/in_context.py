"""Figures 7 and 16: accuracy against the examples in the prompt."""

import statistics

import common

TITLE = "Examples in the prompt (Figures 7 and 16)"
PAPER = (
    "With more solved examples in the prompt, up to the limit of the context, grown and looped models "
    "gain more on the primitives than the standard model."
)
ROLES = ("standard", "lidas", "loop", "middle loop")


def runs(study) -> dict:
    return {role: study.models(role) for role in ROLES}


def outcome(study) -> common.Outcome:
    from loopjax.plots.accuracy import plot_icl

    found = {
        role: [study.icl(run, study.scale.words) for run in directories]
        for role, directories in runs(study).items()
    }
    rows, mean, best = [], {}, []  # best: above guessing, with all examples
    for role, results in found.items():
        cells, gains = [], []
        for task in study.scale.words:
            ends = [_ends(result["curves"][task]["rows"]) for result in results]
            first, last = ([row["accuracy"] for row in end] for end in zip(*ends, strict=True))
            cells.append(
                f"{common.spread(first, 1, percent=True)} → "
                f"{common.spread(last, 1, percent=True)} ({ends[0][1]['shots']})"
            )
            gains += [b - a for a, b in zip(first, last, strict=True)]
            best += [statistics.fmean(last) - results[0]["chance"][task]]
        mean[role] = statistics.fmean(gains)
        rows.append((role, *cells))
    said = ", ".join(f"{role} {100 * value:+.1f}" for role, value in mean.items())
    text = f"Points from no example to as many as fit, mean over tasks: {said}."
    more = sum(mean[role] > max(mean["standard"], 0) + 0.02 for role in ROLES[1:])
    verdict = {3: "shows", 0: "does not show"}.get(more, "shows in part")
    if unlearned := common.floor(best):
        verdict, text = "cannot show", f"{text} {unlearned}"
    heads = ("model", *study.scale.words)
    picture = plot_icl(common.first_of(found))
    return common.Outcome(text, verdict, heads, rows, {"in_context": picture})


def _ends(points: list[dict]) -> tuple[dict, dict]:
    """No example, and as many as fit."""
    points = sorted(points, key=lambda row: row["shots"])
    return points[0], points[-1]


if __name__ == "__main__":
    common.start(__file__)
