"""Options of loops that the plans of a run, or the checkpoint it begins with, cannot have."""

from ml_collections import ConfigDict

from loopjax.depth import DepthPlan
from loopjax.errors import UserError
from loopjax.loop_config import ACTIVE, TRAINING, LoopConfig
from loopjax.model_config import ModelConfig


def check_plans(config: ConfigDict, loop: LoopConfig, phases) -> None:
    """Raises UserError for options of loops that the plans of a run cannot have."""
    plans = [phase.plan for phase in phases]
    options = loop.options((*ACTIVE, *TRAINING))
    if not options:
        return
    if not any(plan.is_looped for plan in plans):
        raise UserError(
            f"config.{options[0]} requires a plan that loops; config.depth={config.depth!r} runs every "
            "layer once"
        )
    for plan in plans:
        if plan.n_loops > 1 and (of_one := loop.weighted() + loop.options(("repeats",))):
            raise UserError(
                f"config.{of_one[0]} requires plans with one loop; plan {plan} has {plan.n_loops}"
            )
    between = loop.of_repetitions()
    for phase in phases:
        if between and phase.operator in ("untie", "tie"):
            raise UserError(
                f"config.{between[0]} does not fit operator {phase.operator!r}: layers alone do not "
                "compute what it does between repetitions (`surgery.untie` merges what can be merged)"
            )


def check_origin(config: ConfigDict, our_model: ModelConfig, their_model: ModelConfig) -> None:
    """Raises UserError when options of loops are not those of the checkpoint.

    A checkpoint without any may get some: their weights start at their initial values.
    """
    ours, theirs = our_model.loop, their_model.loop
    if config.init_operator in ("untie", "tie") and (ours.is_active or theirs.is_active):
        option = (ours.of_repetitions() or theirs.of_repetitions())[0]
        raise UserError(
            f"config.init_operator={config.init_operator!r} does not fit {option}: layers alone do not "
            "compute what it does between repetitions"
        )
    if config.init == "weights" and not theirs.options(ACTIVE):
        return
    if our_model.alpha != their_model.alpha and ours.residual_scale == theirs.residual_scale:
        raise UserError(
            f"config.model.init_depth={our_model.init_depth}, but config.init_from={config.init_from!r} has "
            f"{their_model.init_depth}, which loop.residual_scale='deeploop' is of"
        )
    for name in (*ACTIVE, "inject_scale", "residual_lambda", "own"):
        if getattr(ours, name) != getattr(theirs, name):
            raise UserError(
                f"config.loop.{name}={getattr(ours, name)!r}, but config.init_from="
                f"{config.init_from!r} has {getattr(theirs, name)!r}"
            )


def check_depth(depth: str, plan: DepthPlan, meta: dict) -> None:
    """Raises UserError when a checkpoint with these metadata cannot be run by another plan."""
    weighted = LoopConfig(**meta["model"].get("loop", {})).weighted()
    if plan.n_loops > 1 and weighted:
        raise UserError(
            f"--depth={depth} has {plan.n_loops} loops, but {weighted[0]} of the checkpoint has weights "
            "of one"
        )
