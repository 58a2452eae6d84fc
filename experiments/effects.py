"""Figures 4 and 13: effects of ablating a layer on later layers at later tokens."""

import cycles
import experiment
import summary
from study import diagnostic

from loopjax.analysis import periodicity
from loopjax.analysis.diagnostics import DIAGNOSTICS

TITLE = "Local effects of layers on later tokens (Figures 4 and 13)"
PAPER = (
    "In grown and looped models one position of each block reads the output of earlier layers at "
    "earlier tokens (the third layer of a block in MIDAS and LIDAS, the fourth of a pass in 4x6, the "
    "second in 4-4x4-4); in the standard model the effect decays without a cycle."
)
ROLES = ("standard", "midas", "lidas", "loop", "middle loop")


def runs(study) -> dict:
    return {role: study.models(role) for role in ROLES}


def outcome(study) -> experiment.Outcome:
    models = runs(study)
    local, attention = (
        {role: [diagnostic(study, run, name) for run in models[role]] for role in ROLES}
        for name in ("future_local", "current_attention")
    )
    rows, by_role = [], {}
    for role, results in local.items():
        by_role[role] = [
            cycles.of(study, run, periodicity.column_means(result.matrix))
            for run, result in zip(models[role], results, strict=True)
        ]
        rows.append((role, *cycles.cells(by_role[role])))
    finding, verdict = cycles.finding(by_role, "the mean local effect on a layer")
    figures = {
        "effects": DIAGNOSTICS["future_local"].draw(summary.first_seeds(local)),
        "effects-attention": DIAGNOSTICS["current_attention"].draw(summary.first_seeds(attention)),
    }
    return experiment.Outcome(finding, verdict, ("model", *cycles.HEADS), rows, figures)


if __name__ == "__main__":
    experiment.main(__file__)
