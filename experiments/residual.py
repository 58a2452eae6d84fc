"""Figures 3 and 14: the residual stream, and what attention, MLP and layers add to it."""

import common
import cycles

TITLE = "Residual stream and contributions of sublayers (Figures 3 and 14)"
PAPER = (
    "The residual norm of grown and looped models grows more slowly until the last layers, and the "
    "contribution of attention has a cycle of the block's length; the standard model has none."
)
ROLES = ("standard", "midas", "lidas", "loop", "middle loop")


def runs(study) -> dict:
    return {role: study.models(role) for role in ROLES}


def outcome(study) -> common.Outcome:
    from loopjax.analysis.diagnostics import DIAGNOSTICS

    models = runs(study)
    norms = {
        role: [common.diagnostic(study, run, "norms") for run in models[role]] for role in ROLES
    }
    rows, of_role = [], {}
    for role, results in norms.items():
        of_role[role] = [
            cycles.of(study, run, [None, *found.attention[1:]])
            for run, found in zip(models[role], results, strict=True)
        ]
        growth = common.spread((found.residual[-1] / found.residual[1] for found in results), 1)
        rows.append((role, growth, *cycles.about(of_role[role])))
    heads = ("model", "last norm / norm after layer 0", *cycles.HEADS)
    found, verdict = cycles.finding(of_role, "the contribution of attention")
    picture = DIAGNOSTICS["norms"].draw(common.first_of(norms))
    return common.Outcome(found, verdict, heads, rows, {"residual": picture})


if __name__ == "__main__":
    common.start(__file__)
