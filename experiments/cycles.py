"""Whether values by layer repeat with the length of a block: shared by residual.py and effects.py."""

import statistics

import numpy as np
import summary

from loopjax import lineage
from loopjax.analysis import periodicity
from loopjax.checkpoint import locate, read_meta
from loopjax.depth import DepthPlan
from loopjax.run_record import spread

HEADS = ("strongest at position", "contrast", "share of the variance (by chance)")


def of(study, run, values):
    """The cycle in values by executed layer, over blocks of the model.

    A standard model has no block; the study's block is used for it.
    """
    meta = read_meta(*locate(run))
    block = periodicity.block_of(lineage.stages(meta["lineage"]), DepthPlan.parse(meta["plan"]))
    values = np.array([np.nan if v is None else v for v in values], float)
    return periodicity.cycle(values, block or periodicity.Block(study.scale.block))


def cells(cycles: list) -> tuple[str, ...]:
    """Cells of the columns HEADS for the seeds of a model."""
    if None in cycles:
        return ("–",) * len(HEADS)
    return (
        " ".join(str(cycle.strongest) for cycle in cycles),
        spread([cycle.contrast for cycle in cycles], 3),
        f"{spread([cycle.share for cycle in cycles], 2)} ({cycles[0].by_chance:.2f})",
    )


def finding(cycles: dict, what: str) -> tuple[str, str]:
    """(finding, verdict) of {role: cycles of its seeds}.

    A model has a cycle if the mean share over seeds is more than half of the way from its value by
    chance to 1. Reproduced: all models but the standard one have a cycle.
    """
    share = {r: statistics.fmean(c.share for c in cs) for r, cs in cycles.items() if None not in cs}
    by_chance = {role: cycles[role][0].by_chance for role in share}
    has_cycle = {role: role in share and share[role] > (1 + by_chance[role]) / 2 for role in cycles}
    shares = ", ".join(f"{role} {value:.2f}" for role, value in share.items())
    others = [has_cycle[role] for role in cycles if role != "standard"]
    verdict = summary.verdict(others)
    if has_cycle["standard"]:
        verdict = summary.PARTLY if all(others) else summary.NOT_REPRODUCED
    chance = max(by_chance.values())
    return (
        f"Share of the variance of {what} that is explained by the position in the block: {shares}; "
        f"the share by chance is {chance:.2f} in stacks this short (a cycle counts above "
        f"{(1 + chance) / 2:.2f}).",
        verdict,
    )
