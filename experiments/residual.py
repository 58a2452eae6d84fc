"""Figures 3 and 14: the residual stream, and the contributions of attention, MLP and layers."""

import cycles
import experiment
import stored
from study import diagnostic

from loopjax.plots.diagnostics import plot_norms
from loopjax.run_record import spread

TITLE = "Residual stream and contributions of sublayers (Figures 3 and 14)"
PAPER = (
    "The residual norm of grown and looped models grows more slowly until the last layers, and the "
    "contribution of attention has a cycle of the block's length; the standard model has none."
)
ROLES = ("standard", "midas", "lidas", "loop", "middle loop")


def runs(study) -> dict:
    return {role: study.models(role) for role in ROLES}


def outcome(study) -> experiment.Outcome:
    models = runs(study)
    norms = {role: [diagnostic(study, run, "norms") for run in models[role]] for role in ROLES}
    rows, by_role = [], {}
    for role, results in norms.items():
        by_role[role] = [
            cycles.of(study, run, [None, *result.attention[1:]])
            for run, result in zip(models[role], results, strict=True)
        ]
        growth = spread([result.residual[-1] / result.residual[1] for result in results], 1)
        rows.append((role, growth, *cycles.cells(by_role[role])))
    heads = ("model", "last norm / norm after layer 0", *cycles.HEADS)
    finding, claims = cycles.finding(by_role, "the contribution of attention")
    data = {"blocks": stored.blocks(models), "norms": norms}
    return experiment.Outcome(finding, claims, heads, rows, data)


def figures(data: dict) -> dict:
    return {"residual": plot_norms(stored.results(data["norms"]), blocks=data["blocks"])}


if __name__ == "__main__":
    experiment.main(__file__)
