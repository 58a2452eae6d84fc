"""A run as a list of phases: their steps, depth plans, growth operators and data mixtures."""

import dataclasses
import math
from collections.abc import Mapping

from loopjax import growth_schedule
from loopjax.depth import DepthPlan, restack
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
        gathered by `order`); "loops" (growth to another plan, same stack), "retrofit" (the same in the
        cooldown); "data" (only the mixture changes).
      order: old index of each unique layer if the stack is gathered; else None.
      mixture: sampling weight of each data source.
      transform: change of new layers after the gather, a key of `growth.TRANSFORMS`; "" for none.
      noise: relative standard deviation of the transform "noise".
      moments: optimizer moments at a growth step: "copy" (along with the layers), "zero" (those of
        the new layers) or "reset" (all).
      rewarm_steps: updates from `start` on over which the learning rate rises again; 0 for none.
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
    rewarm_steps: int = 0

    def to_json(self) -> dict:
        out = {"start": self.start, "stop": self.stop, "plan": str(self.plan)}
        order = None if self.order is None else list(self.order)
        out |= {"operator": self.operator, "order": order, "mixture": dict(self.mixture)}
        # Only if they are set: phases are compared with those saved by earlier versions.
        defaults = {"transform": "", "noise": 0.0, "moments": "copy", "rewarm_steps": 0}
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
        plan = DepthPlan.parse(config.depth).trainable()
    mixture = _mixture("mixture", config.mixture)
    cooldown_start = config.steps - config.cooldown.steps
    if growth_schedule.grows(config):
        phases = _growth_phases(config, mixture)
    else:
        phases = [Phase(0, config.steps, plan, "init", None, mixture)]
    return _with_cooldown(config, phases, cooldown_start)


def _growth_phases(config, mixture) -> list[Phase]:
    growth, steps = config.growth, config.steps
    for name, allowed in (("transform", ("", *TRANSFORMS)), ("moments", MOMENTS)):
        if growth[name] not in allowed:
            raise UserError(
                f"config.growth.{name}={growth[name]!r} must be one of {', '.join(map(repr, allowed))}"
            )
    if not 0 < growth.noise < math.inf:
        raise UserError(f"config.growth.noise={growth.noise} must be positive")
    if growth.transform == "random" and growth.moments == "copy":
        raise UserError(
            "config.growth.moments='copy' must be 'zero' or 'reset' with config.growth.transform="
            "'random': new layers that are initialized afresh have no moments to copy"
        )
    stages = growth_schedule.stages(config)
    phases = []
    for stage, stop in zip(stages, [*(s.start for s in stages[1:]), steps], strict=True):
        phase = Phase(stage.start, stop, stage.plan, stage.operator, stage.order, mixture)
        if phases:
            phase = dataclasses.replace(phase, rewarm_steps=growth.rewarm_steps)
        if stage.order is not None:
            phase = dataclasses.replace(
                phase, transform=growth.transform, moments=growth.moments,
                noise=growth.noise if growth.transform == "noise" else 0.0,
            )  # fmt: skip
        phases.append(phase)
    return phases


def _with_cooldown(config, phases, start) -> list[Phase]:
    """Splits the last phase at the cooldown, if the cooldown changes the plan or the data."""
    last, cooldown = phases[-1], config.cooldown
    plan, mixture = last.plan, last.mixture
    if cooldown.depth:
        with field("cooldown.depth"):
            plan = DepthPlan.parse(cooldown.depth).trainable()
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
    if start <= last.start:
        grown = f"between the last growth step, {last.start}, and" if last.start else "before"
        raise UserError(
            f"config.cooldown.steps={cooldown.steps} leaves no step {grown} the cooldown"
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


def mixtures(phases: list[Phase], changes=()) -> list[tuple[int, Mapping[str, float]]]:
    """(number of the first batch, mixture) wherever the mixture changes, the first one included.

    Args:
      changes: those made after evaluations (`mixture_update.History`), each for the mixture of the
        batch before it; a phase with another mixture begins with its own.
    """
    by_phase = [(p.start, p.mixture) for p in phases]
    made = []
    for start, weights in changes:
        evaluated, first = (mixture_at(phases, max(batch, 0)) for batch in (start - 2, start))
        if evaluated == first:
            made.append((start, weights))
    out = []
    for start, mixture in by_phase:
        if not out or mixture != out[-1][1]:
            out.append((start, mixture))
    both = sorted([*out, *made], key=lambda change: change[0])
    return [c for i, c in enumerate(both) if i == 0 or c[1] != both[i - 1][1]]


def lineage(phases: list[Phase], step: int) -> list[dict]:
    """Changes of the plan, the stack or the data up to `step`, oldest first."""
    keys = ("start", "operator", "plan", "order", "transform", "moments", "rewarm_steps")
    events = [
        {key: phase[key] for key in keys if key in phase} for phase in past(phases, max(step, 1))
    ]
    return [{"step": event.pop("start"), **event} for event in events]
