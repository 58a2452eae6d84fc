"""Whether values by layer repeat with the length of a block: shared by residual.py and effects.py."""

import statistics

import numpy as np
import summary
from claims import Claim, effect

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


def finding(cycles: dict, what: str) -> tuple[str, list[Claim]]:
    """(finding, claims) of {role: cycles of its seeds}.

    A model has a cycle if the share is more than half of the way from its value by chance to 1.
    """
    known = {role: ones for role, ones in cycles.items() if None not in ones}
    shares = ", ".join(
        f"{role} {statistics.fmean(one.share for one in ones):.2f}" for role, ones in known.items()
    )
    chance = max(ones[0].by_chance for ones in known.values())
    text = (
        f"Share of the variance of {what} that is explained by the position in the block: {shares}; "
        f"the share by chance is {chance:.2f} in stacks this short (a cycle counts above "
        f"{(1 + chance) / 2:.2f})."
    )
    return text, [_claim(role, ones) for role, ones in cycles.items()]


def _claim(role: str, ones: list) -> Claim:
    """That the share is above the limit of a cycle; of the standard model, that it is below."""
    name = summary.NAMED[role]
    if role == "standard":
        sentence, paper, sign = f"There is no cycle in {name} (limit less share)", "none", -1
    else:
        sentence, paper, sign = f"There is a cycle in {name} (share less limit)", "yes", 1
    if None in ones:
        blocked = "Its stack has too few blocks."
        return Claim(sentence, paper, effect([0.0]), 0.0, blocked=blocked, unit="")
    above = [sign * (one.share - (1 + one.by_chance) / 2) for one in ones]
    return Claim(sentence, paper, effect(above), 0.0, unit="")
