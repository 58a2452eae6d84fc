"""Figures 7 and 16: accuracy against the examples in the prompt."""

import common

TITLE = "Examples in the prompt (Figures 7 and 16)"
PAPER = (
    "With more solved examples in the prompt, up to the limit of the context, grown and looped models "
    "gain more on the primitives than the standard model."
)
ROLES = ("standard", "lidas", "loop", "middle loop")


def runs(study) -> dict:
    return {role: study.model(role) for role in ROLES}


def outcome(study) -> common.Outcome:
    from loopjax.plots.accuracy import icl

    found = {role: study.icl(run, study.scale.words) for role, run in runs(study).items()}
    rows, gains = [], {}
    for role, result in found.items():
        cells = []
        for task in study.scale.words:
            points = sorted(result["curves"][task]["rows"], key=lambda row: row["shots"])
            first, last = points[0], points[-1]
            cells.append(f"{first['accuracy']:.1%} → {last['accuracy']:.1%} ({last['shots']})")
            gains.setdefault(role, []).append(last["accuracy"] - first["accuracy"])
        rows.append((role, *cells))
    mean = {role: sum(values) / len(values) for role, values in gains.items()}
    said = ", ".join(f"{role} {100 * value:+.1f}" for role, value in mean.items())
    text = f"Points from no example to as many as fit, mean over tasks: {said}. One seed."
    more = sum(mean[role] > mean["standard"] + 0.02 for role in ROLES[1:])
    verdict = {3: "shows", 0: "does not show"}.get(more, "shows in part")
    return common.Outcome(
        text, verdict, ("model", *study.scale.words), rows, {"in_context": icl(found)}
    )


if __name__ == "__main__":
    common.start(__file__)
