"""The loop of a plan that is analyzed, and the plan with more repetitions of it."""

import dataclasses

from loopjax.depth import MOST_LAYERS, DepthPlan, Window
from loopjax.errors import UserError

LEAST = 4  # repetitions that a trajectory needs
KINDS = ("settling", "drifting", "rotating")  # of trajectories, see `trajectories.py`


def longest(plan: DepthPlan) -> int:
    """Index of the repeated segment that executes most layers; UserError if none is repeated."""
    segments = plan.segments
    repeated = [i for i, segment in enumerate(segments) if segment.repeats > 1]
    if not repeated:
        raise UserError(
            f"trajectories needs a plan with a loop or a window, not {plan} (see --depth)"
        )
    return max(repeated, key=lambda i: segments[i].layers * segments[i].repeats)


def start(plan: DepthPlan, index: int) -> int:
    """The first executed layer of a segment."""
    return sum(segment.layers * segment.repeats for segment in plan.segments[:index])


def extended(plan: DepthPlan, index: int, repetitions: int | None) -> DepthPlan:
    """The plan with more repetitions of a segment, which compute the same up to those of the plan.

    Args:
      repetitions: all in all; by default twice as many, at least 8.

    Raises UserError if they are fewer than those of the plan or than 4, or too many.
    """
    segment = plan.segments[index]
    wanted = max(2 * segment.repeats, 8) if repetitions is None else repetitions
    least = max(segment.repeats, LEAST)
    most = segment.repeats + (MOST_LAYERS - plan.n_effective) // segment.layers
    if not least <= wanted <= most:
        raise UserError(
            f"--repetitions {wanted} must lie within {least}..{most:,} for the loop {segment} of plan {plan}"
        )
    changes = {"repeats": wanted}
    if isinstance(segment, Window):  # the factor 1 / R stays that of the plan
        changes["passes"] = dataclasses.replace(segment.passes, damping=segment.damping)
    longer = dataclasses.replace(segment, **changes)
    return DepthPlan((*plan.segments[:index], longer, *plan.segments[index + 1 :]))
