"""When a run grows, and to which plan: `config.growth` as a list of stages. No JAX here.

A stage has a plan. What leads to it is a growth operator, where the stack gains layers, or only the
new plan over the same stack: "2-2x2-2" becomes "2-2x4-2" by running its loop more often.
"""

import dataclasses
import itertools
import re
from fractions import Fraction

from loopjax.depth import GROWTH_OPERATORS, DepthPlan, prop_schedule, written
from loopjax.errors import UserError, field


@dataclasses.dataclass(frozen=True)
class Stage:
    """A part of a run with one plan.

    Attributes:
      start: updates done before it begins.
      plan: order in which the layers run.
      operator: "init" for the first stage, a growth operator, or "loops" (same stack, other plan).
      order: old index of each layer if the stack has grown; else None.
    """

    start: int
    plan: DepthPlan
    operator: str
    order: tuple[int, ...] | None


def stages(config) -> list[Stage]:
    """The stages of a config; one without growth. Raises UserError if its fields do not fit."""
    growth = config.growth
    with field("depth"):
        final = DepthPlan.parse(config.depth)
    if not grows(config):
        return [Stage(0, final, "init", None)]
    if growth.operator and growth.operator not in GROWTH_OPERATORS:
        raise UserError(
            f"config.growth.operator={growth.operator!r} must be one of "
            f"{', '.join(GROWTH_OPERATORS)}, or empty to keep the stack"
        )
    plans = _plans(growth, config.depth, final)
    orders = [_order(growth, *pair) for pair in itertools.pairwise(plans)]
    if growth.plans and growth.operator and not any(orders):
        raise UserError(
            f"config.growth.operator={growth.operator!r} must be empty: the plans of "
            f"config.growth.plans={growth.plans!r} have equally many layers"
        )
    found = [Stage(0, DepthPlan.parse(plans[0]), "init", None)]
    for plan, order, start in zip(plans[1:], orders, _starts(config, len(plans)), strict=True):
        operator = "loops" if order is None else growth.operator
        found.append(Stage(start, DepthPlan.parse(plan), operator, order))
    return found


def grows(config) -> bool:
    return bool(config.growth.operator or config.growth.plans)


def switches(config) -> list[int]:
    """The updates done before each change of the plan by growth, ascending."""
    return [stage.start for stage in stages(config)[1:]]


def _plans(growth, depth: str, final: DepthPlan) -> list[str]:
    """The plan of each stage as it is written: `growth.plans`, or one `growth.block` more each."""
    if not growth.plans:
        if final.is_looped:
            raise UserError(
                f"config.depth={depth!r} is looped, so config.growth.plans must name the plan of each "
                f"stage, like '2-2x2-2,2-2x4-2'"
            )
        if growth.block < 1 or final.n_unique % growth.block:
            raise UserError(
                f"config.growth.block={growth.block} does not divide config.depth={final.n_unique}"
            )
        return [str(n) for n in range(growth.block, final.n_unique + 1, growth.block)]
    plans = [part.strip() for part in growth.plans.split(",")]
    with field("growth.plans"):
        parsed = [DepthPlan.parse(plan) for plan in plans]
    if len(plans) < 2 or parsed[-1] != final:
        raise UserError(
            f"config.growth.plans={growth.plans!r} must be at least two plans, the last of them "
            f"config.depth={depth!r}"
        )
    return plans


def _order(growth, before: str, after: str) -> tuple[int, ...] | None:
    """The order between the plans of two stages; UserError if they do not fit or are the same."""
    if DepthPlan.parse(before) == DepthPlan.parse(after):
        raise UserError(
            f"config.growth.plans={growth.plans!r} has two stages of one plan in a row: {before}, {after}"
        )
    with field("growth.plans" if growth.plans else "growth.block"):
        return grown(growth.operator, before, after)


def _starts(config, n_stages: int) -> list[int]:
    """The step at which each stage but the first starts."""
    growth = config.growth
    if growth.starts:
        if growth.steps:
            raise UserError(
                f"config.growth.steps={growth.steps} must be 0 with config.growth.starts="
                f"{growth.starts!r}, which says when the stages begin"
            )
        return _named_starts(growth.starts, config.steps, n_stages)
    before_cooldown = config.steps - config.cooldown.steps
    total = growth.steps or before_cooldown
    if not 1 <= total <= before_cooldown:
        raise UserError(
            f"config.growth.steps={growth.steps} must lie within 1..{before_cooldown}, the steps "
            "before the cooldown (0: all of them)"
        )
    with field("growth.alpha"):
        lengths = prop_schedule(total, n_stages, growth.alpha)
    if min(lengths) < 1:
        raise UserError(
            f"config.growth.steps={growth.steps} leaves too few steps for {n_stages} stages: they "
            f"would get {lengths}"
        )
    return [sum(lengths[:i]) for i in range(1, n_stages)]


def _named_starts(text: str, steps: int, n_stages: int) -> list[int]:
    """Steps ("150000"), or fractions of all steps ("0.75", rounded down), joined by commas."""
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"[0-9]{1,10}|0?\.[0-9]{1,10}", part) for part in parts):
        raise UserError(
            f"config.growth.starts={text!r} must be steps or fractions of config.steps below 1, joined "
            "by commas, like '0.75' or '1000,3000'"
        )
    found = [int(Fraction(part) * (steps if "." in part else 1)) for part in parts]
    if len(found) != n_stages - 1:
        raise UserError(
            f"config.growth.starts={text!r} must name the start of every stage but the first, "
            f"{n_stages - 1} in all"
        )
    if not all(a < b for a, b in zip([0, *found], [*found, steps], strict=True)):
        raise UserError(
            f"config.growth.starts={text!r} are the steps {', '.join(map(str, found))}, which must ascend "
            f"within 1..{steps - 1}"
        )
    return found


def grown(operator: str, before: str, after: str) -> tuple[int, ...] | None:
    """The order that grows the stack of plan `before` to that of plan `after`; None if it stays.

    Plans with equally many segments as they are written ("2-4-2" and "2-8-2", "2-2x2-2" and
    "2-4x2-2") grow within them: the operator acts on each segment that gains layers as on a stack of
    its own, so a loop keeps its prelude and its coda. Otherwise it acts on the whole stack, over which
    the new plan is laid; `before` must have no loop then, since the operator does not know of one.
    Raises ValueError if the plans do not fit.
    """
    old, new = written(before), written(after)
    n_old, n_new = (sum(layers for layers, _ in segments) for segments in (old, new))
    if n_new == n_old:
        return None
    if n_new < n_old:
        raise ValueError(f"plan {after} has fewer layers than plan {before}")
    if not operator:
        raise ValueError(
            f"plan {after} has more layers than plan {before}, so a growth operator is needed"
        )
    if len(old) != len(new):
        if DepthPlan.parse(before).is_looped:
            raise ValueError(
                f"the loop of plan {before} has no counterpart in plan {after}; write both with equally "
                'many segments, like "2-2x2-2" and "2-4-2"'
            )
        old, new = ((n_old, 1),), ((n_new, 1),)
    order: list[int] = []
    start = 0  # of the segment in the old stack
    for (layers, _), (wanted, _) in zip(old, new, strict=True):
        if wanted < layers:
            raise ValueError(f"a segment of plan {before} has fewer layers in plan {after}")
        added = wanted - layers
        own = GROWTH_OPERATORS[operator](layers, added) if added else range(layers)
        order += [start + i for i in own]
        start += layers
    return tuple(order)
