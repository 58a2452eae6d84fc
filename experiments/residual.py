"""Figures 3 and 14: the residual stream, and what attention, MLP and layers add to it."""

import common

TITLE = "Residual stream and contributions of sublayers (Figures 3 and 14)"
PAPER = (
    "The residual norm of grown and looped models grows more slowly until the last layers, and the "
    "contribution of attention has a cycle of the block's length; the standard model has none."
)
ROLES = ("standard", "midas", "lidas", "loop", "middle loop")


def runs(study) -> dict:
    return {role: study.model(role) for role in ROLES}


def outcome(study) -> common.Outcome:
    from loopjax.plots.diagnostics import PLOTS

    models = runs(study)
    norms = {role: common.diagnostic(study, run, "norms") for role, run in models.items()}
    rows, cycles = [], {}
    for role, run in models.items():
        cycles[role] = common.cycle_of(study, run, [None, *norms[role].attention[1:]])
        growth = norms[role].residual[-1] / norms[role].residual[1]
        rows.append((role, f"{growth:.1f}", *common.about_cycle(cycles[role])))
    heads = ("model", "last norm / norm after layer 0", *common.CYCLE)
    found, verdict = common.cycle_finding(cycles, "the contribution of attention")
    return common.Outcome(found, verdict, heads, rows, {"residual": PLOTS["norms"](norms)})


if __name__ == "__main__":
    common.start(__file__)
