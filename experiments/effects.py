"""Figures 4 and 13: effects of ablating a layer on later layers at later tokens."""

import cycles
import experiment
import stored
from study import diagnostic

from loopjax.analysis import periodicity
from loopjax.plots import diagnostics

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
    finding, claims = cycles.finding(by_role, "the mean local effect on a layer")
    data = {"blocks": stored.blocks(models), "local": local, "attention": attention}
    return experiment.Outcome(finding, claims, ("model", *cycles.HEADS), rows, data)


def figures(data: dict) -> dict:
    local, attention = (stored.results(data[name]) for name in ("local", "attention"))
    return {
        "effects": diagnostics.plot_future_local(local, blocks=data["blocks"]),
        "effects-attention": diagnostics.plot_current_attention(attention, blocks=data["blocks"]),
    }


if __name__ == "__main__":
    experiment.main(__file__)
