"""Figures 4 and 13: what removing a layer does to later layers at later tokens."""

import common
import cycles

TITLE = "Local effects of layers on later tokens (Figures 4 and 13)"
PAPER = (
    "In grown and looped models one position of each block gathers what layers before it left at "
    "earlier tokens (the third layer of a block in MIDAS and LIDAS, the fourth of a pass in 4x6, the "
    "second in 4-4x4-4); in the standard model the effect decays without a cycle."
)
ROLES = ("standard", "midas", "lidas", "loop", "middle loop")


def runs(study) -> dict:
    return {role: study.models(role) for role in ROLES}


def outcome(study) -> common.Outcome:
    from loopjax.analysis import periodicity
    from loopjax.analysis.diagnostics import DIAGNOSTICS

    models = runs(study)
    local, attention = (
        {role: [common.diagnostic(study, run, name) for run in models[role]] for role in ROLES}
        for name in ("future_local", "current_attention")
    )
    rows, of_role = [], {}
    for role, results in local.items():
        of_role[role] = [
            cycles.of(study, run, periodicity.column_means(found.matrix))
            for run, found in zip(models[role], results, strict=True)
        ]
        rows.append((role, *cycles.about(of_role[role])))
    found, verdict = cycles.finding(of_role, "the mean local effect on a layer")
    figures = {
        "effects": DIAGNOSTICS["future_local"].draw(common.first_of(local)),
        "effects-attention": DIAGNOSTICS["current_attention"].draw(common.first_of(attention)),
    }
    return common.Outcome(found, verdict, ("model", *cycles.HEADS), rows, figures)


if __name__ == "__main__":
    common.start(__file__)
