"""Whether values by layer repeat with the block by which a model was made: residual.py, effects.py."""

import statistics

import common

HEADS = ("strongest at position", "contrast", "share of the variance (by chance)")


def of(study, run, values):
    """The cycle of a block's length in values by executed layer; the standard model's block is the
    scale's."""
    import numpy as np

    from loopjax import lineage
    from loopjax.analysis import periodicity
    from loopjax.checkpoint import locate, read_meta
    from loopjax.depth import DepthPlan

    meta = read_meta(*locate(run))
    block = periodicity.block_of(lineage.stages(meta["lineage"]), DepthPlan.parse(meta["plan"]))
    values = np.array([np.nan if v is None else v for v in values], float)
    return periodicity.cycle(values, block or periodicity.Block(study.scale.block))


def about(cycles: list) -> tuple[str, ...]:
    """Cells of the columns HEADS, of the seeds of a model."""
    if None in cycles:
        return ("–",) * len(HEADS)
    return (
        " ".join(str(cycle.strongest) for cycle in cycles),
        common.spread(cycle.contrast for cycle in cycles),
        f"{common.spread((cycle.share for cycle in cycles), 2)} ({cycles[0].by_chance:.2f})",
    )


def finding(cycles: dict, what: str) -> tuple[str, str]:
    """(found, verdict) of {role: cycles of its seeds}.

    A cycle counts where the share is more than half of the way from what chance gives to 1, in the
    mean of seeds.
    """
    share = {r: statistics.fmean(c.share for c in cs) for r, cs in cycles.items() if None not in cs}
    by_chance = {role: cycles[role][0].by_chance for role in share}
    has = {role: role in share and share[role] > (1 + by_chance[role]) / 2 for role in cycles}
    said = ", ".join(f"{role} {value:.2f}" for role, value in share.items())
    others = [has[role] for role in cycles if role != "standard"]
    verdict = "shows" if all(others) and not has["standard"] else "shows in part"
    if not any(others) or (has["standard"] and not all(others)):
        verdict = "does not show"
    return (
        f"Share of the variance of {what} that the position in the block explains: {said}; by chance "
        f"it would be {max(by_chance.values()):.2f} in stacks as short as these (a cycle counts above "
        f"{(1 + max(by_chance.values())) / 2:.2f}).",
        verdict,
    )
