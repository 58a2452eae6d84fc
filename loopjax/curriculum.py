"""A run as a list of phases: their steps, depth plans, growth operators and data mixtures."""

import dataclasses
import math
from collections.abc import Mapping

from loopjax.depth import GROWTH_OPERATORS, DepthPlan, prop_schedule, restack
from loopjax.errors import UserError, field
from loopjax.growth import MOMENTS, TRANSFORMS


@dataclasses.dataclass(frozen=True)
class Phase:
    """Updates `start` .. `stop` - 1 of a run.

    Attributes:
      start: updates done before the phase begins.
      stop: updates done when it ends.
      plan: order in which the layers run.
      operator: how the plan was reached: "init"; a growth operator, "untie" or "tie" (the stack is
        gathered by `order`); "retrofit" (other plan, same stack); "data" (only the mixture changes).
      order: old index of each unique layer if the stack is gathered; else None.
      mixture: sampling weight of each data source.
      transform: change of new layers after the gather, a key of `growth.TRANSFORMS`; "" for none.
      noise: relative standard deviation of the transform "noise".
      moments: optimizer moments at a growth step: "copy" (along with the layers) or "reset".
    """

    start: int
    stop: int
    plan: DepthPlan
    operator: str
    order: tuple[int, ...] | None
    mixture: Mapping[str, float]
    transform: str = ""
    noise: float = 0.0
    moments: str = "copy"

    def to_json(self) -> dict:
        out = {"start": self.start, "stop": self.stop, "plan": str(self.plan)}
        order = None if self.order is None else list(self.order)
        out |= {"operator": self.operator, "order": order, "mixture": dict(self.mixture)}
        # Only if they are set: phases are compared with those saved by earlier versions.
        defaults = {"transform": "", "noise": 0.0, "moments": "copy"}
        return out | {k: v for k in defaults if (v := getattr(self, k)) != defaults[k]}


def build(config) -> list[Phase]:
    """The phases of a config; raises UserError when depth, growth and cooldown do not fit."""
    if config.steps < 1:
        raise UserError(f"config.steps={config.steps} must be at least 1")
    if not 0 <= config.cooldown.steps <= config.steps:
        raise UserError(
            f"config.cooldown.steps={config.cooldown.steps} must lie within 0..config.steps="
            f"{config.steps}"
        )
    with field("depth"):
        plan = DepthPlan.parse(config.depth)
    mixture = _mixture("mixture", config.mixture)
    cooldown_start = config.steps - config.cooldown.steps
    if config.growth.operator:
        phases = _growth_phases(config, plan, mixture, cooldown_start)
    else:
        phases = [Phase(0, config.steps, plan, "init", None, mixture)]
    return _with_cooldown(config, phases, cooldown_start)


def _growth_phases(config, plan, mixture, cooldown_start) -> list[Phase]:
    growth = config.growth
    if growth.operator not in GROWTH_OPERATORS:
        raise UserError(
            f"config.growth.operator={growth.operator!r} must be one of "
            f"{', '.join(GROWTH_OPERATORS)}, or empty for no growth"
        )
    if plan.is_looped:
        raise UserError(
            f"config.depth={config.depth!r} is looped; growth requires a plan without loops"
        )
    for name, allowed in (("transform", ("", *TRANSFORMS)), ("moments", MOMENTS)):
        if growth[name] not in allowed:
            raise UserError(
                f"config.growth.{name}={growth[name]!r} must be one of {', '.join(map(repr, allowed))}"
            )
    if not 0 < growth.noise < math.inf:
        raise UserError(f"config.growth.noise={growth.noise} must be positive")
    depths = _stage_depths(growth, plan.n_unique)
    total = growth.steps or cooldown_start
    if not 1 <= total <= cooldown_start:
        raise UserError(
            f"config.growth.steps={growth.steps} must lie within 1..{cooldown_start}, the steps "
            "before the cooldown (0: all of them)"
        )
    with field("growth.alpha"):
        lengths = prop_schedule(total, len(depths), growth.alpha)
    if min(lengths) < 1:
        raise UserError(
            f"config.growth.steps={growth.steps} leaves too few steps for {len(depths)} stages: they "
            f"would get {lengths}"
        )
    plans = [DepthPlan.of([(depth, 1)]) for depth in depths]
    phases = [Phase(0, lengths[0], plans[0], "init", None, mixture)]
    for before, after, length in zip(plans, plans[1:], lengths[1:], strict=False):
        start = phases[-1].stop
        with field("growth.depths" if growth.depths else "growth.block"):
            order = restack(growth.operator, before, after)
        phases.append(
            Phase(
                start, start + length, after, growth.operator, order, mixture, growth.transform,
                growth.noise if growth.transform == "noise" else 0.0, growth.moments,
            )
        )  # fmt: skip
    phases[-1] = dataclasses.replace(phases[-1], stop=config.steps)
    return phases


def _stage_depths(growth, depth: int) -> list[int]:
    """Layers of each stage: `growth.depths`, or one `growth.block` more per stage."""
    if not growth.depths:
        if growth.block < 1 or depth % growth.block:
            raise UserError(
                f"config.growth.block={growth.block} does not divide config.depth={depth}"
            )
        return list(range(growth.block, depth + 1, growth.block))
    parts = [part.strip() for part in growth.depths.split(",")]
    depths = [int(part) for part in parts if part.isdecimal()]
    growing = all(a < b for a, b in zip([0, *depths], depths, strict=False))
    if len(depths) < len(parts) or not growing or depths[-1] != depth:
        raise UserError(
            f"config.growth.depths={growth.depths!r} must be increasing whole numbers ending in "
            f"config.depth={depth}, like '4,8,{depth}'"
        )
    return depths


def _with_cooldown(config, phases, start) -> list[Phase]:
    """Splits the last phase at the cooldown, if the cooldown changes the plan or the data."""
    last, cooldown = phases[-1], config.cooldown
    plan, mixture = last.plan, last.mixture
    if cooldown.depth:
        with field("cooldown.depth"):
            plan = DepthPlan.parse(cooldown.depth)
    with field("cooldown.operator" if cooldown.operator else "cooldown.depth"):
        order = restack(cooldown.operator, last.plan, plan)
    if cooldown.mixture:
        mixture = _mixture("cooldown.mixture", cooldown.mixture)
    if (plan, mixture, order) == (last.plan, last.mixture, None):
        return phases
    if cooldown.steps < 1:
        raise UserError(
            "config.cooldown.steps=0 must be positive: the cooldown changes the depth or the mixture"
        )
    if start == last.start:
        raise UserError(
            f"config.cooldown.steps={cooldown.steps} leaves no step before the cooldown"
        )
    operator = cooldown.operator or ("data" if plan == last.plan else "retrofit")
    changed = Phase(start, config.steps, plan, operator, order, mixture)
    return [*phases[:-1], dataclasses.replace(last, stop=start), changed]


def _mixture(name: str, weights) -> dict[str, float]:
    """The positive weights by source, not normalized; sources with weight 0 are left out."""
    weights = dict(weights)
    numbers = (int, float)
    # Far below infinity, so that their sum is finite too.
    bad = {k: v for k, v in weights.items() if not isinstance(v, numbers) or not 0 <= v < 1e100}
    if bad or not any(weights.values()):
        raise UserError(
            f"config.{name}={bad or weights} must map sources to weights of at least 0, not all of them 0"
        )
    return {key: float(value) for key, value in sorted(weights.items()) if value > 0}


def past(phases: list[Phase], step: int) -> list[dict]:
    """The phases of the first `step` updates, as JSON; equal for runs that agree on these updates."""
    return [
        {**phase.to_json(), "stop": min(phase.stop, step)} for phase in phases if phase.start < step
    ]


def mixture_at(phases: list[Phase], step: int) -> Mapping[str, float]:
    """The mixture of the next batch after `step` updates."""
    return next((p.mixture for p in phases if step < p.stop), phases[-1].mixture)


def lineage(phases: list[Phase], step: int) -> list[dict]:
    """Changes of the plan, the stack or the data up to `step`, oldest first."""
    keys = ("start", "operator", "plan", "order", "transform", "moments")
    events = [
        {key: phase[key] for key in keys if key in phase} for phase in past(phases, max(step, 1))
    ]
    return [{"step": event.pop("start"), **event} for event in events]
