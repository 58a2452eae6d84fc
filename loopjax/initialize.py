"""A run that is initialized from a checkpoint: its first state, and what it inherits."""

import dataclasses
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from loopjax import flops, model, optim, surgery
from loopjax.checkpoint import load_params, restore
from loopjax.checkpoint_files import context_of
from loopjax.depth import DepthPlan, restack
from loopjax.errors import UserError
from loopjax.lineage import Ancestry
from loopjax.model_config import ModelConfig
from loopjax.run import Run
from loopjax.step import TrainState, abstract_state, state_of


@dataclasses.dataclass(frozen=True)
class Source:
    """The checkpoint that `config.init_from` names.

    Attributes:
      directory: directory of checkpoints.
      step: step of the checkpoint.
      meta: its metadata.
    """

    directory: pathlib.Path
    step: int
    meta: dict

    def __str__(self) -> str:
        return f"{self.directory}@{self.step}"


def abstract(run: Run, plan: DepthPlan, source: Source | None = None) -> TrainState:
    """Shapes and shardings of the train state for the stack of a plan.

    With `source`, without the weights of loops that the run adds to those of this checkpoint.
    """
    cfg = run.cfg
    if source:
        saved = ModelConfig(**source.meta["model"])
        cfg = dataclasses.replace(cfg, loop=saved.loop, exit_gate=saved.exit_gate)
    parts = cfg, plan.n_unique, run.optimizer, run.mesh, run.rules
    return abstract_state(*parts, ema=run.config.ema > 0)


def order_of(run: Run, source: Source) -> tuple[int, ...] | None:
    """Old index of each layer of the first stack; None if the stack is the checkpoint's."""
    operator = run.config.init_operator
    try:
        return restack(operator, DepthPlan.parse(source.meta["plan"]), run.phases[0].plan)
    except ValueError as error:
        name = f"init_operator={operator!r}" if operator else f"depth={run.config.depth!r}"
        raise UserError(
            f"config.{name} does not fit config.init_from={run.config.init_from!r}: {error}"
        ) from None


def initial_state(run: Run, source: Source) -> TrainState:
    """The train state of a run initialized from a checkpoint, on the run's mesh."""
    if run.config.init == "state":
        return restore(source.directory, source.step, abstract(run, run.phase_of(source.step).plan))
    order = order_of(run, source)
    new = abstract(run, run.phases[0].plan)
    old = abstract(run, DepthPlan.parse(source.meta["plan"]), source)
    if run.config.init == "moments":
        state = restore(source.directory, source.step, old.replace(ema=None))
        zero = jax.device_put(np.int32(0), new.step.sharding)
        state = TrainState(zero, state.params, optim.rescheduled(state.opt_state))
        state = state if order is None else surgery.grow(state, order, donate=True)
        average = jax.tree.map(jnp.copy, state.params) if run.config.ema else None
        return state.replace(ema=average)
    old_shardings = jax.tree.map(lambda leaf: leaf.sharding, old.params)
    params, _ = load_params(source.directory, source.step, old_shardings)
    if order is not None:
        params = surgery.grow(params, order, donate=True)

    def fresh(params):
        key = jax.random.key(run.config.seed)
        initial = nn.meta.unbox(model.init_params(run.cfg, run.phases[0].plan.n_unique, key))
        return state_of(surgery.updated(initial, params), run.optimizer, run.config.ema > 0)

    new_shardings = jax.tree.map(lambda leaf: leaf.sharding, new)
    return jax.jit(fresh, out_shardings=new_shardings, donate_argnums=0)(params)


def inherited(run: Run, source: Source) -> Ancestry:
    """Ancestry of a run that is initialized from a checkpoint now."""
    meta = source.meta
    if run.config.init == "state":
        # A branch shares the steps before the checkpoint, and so inherits what that run inherited.
        return dataclasses.replace(Ancestry.saved(run.phases, meta), branched_from=str(source))
    order, plan = order_of(run, source), str(run.phases[0].plan)
    event = {
        "step": 0,
        "operator": run.config.init_operator or ("data" if plan == meta["plan"] else "retrofit"),
        "plan": plan,
        "order": order and [*order],
        "from": str(source),
    }
    spent = meta.get("flops_before", 0.0) + _flops_of(meta)
    return Ancestry((*meta["lineage"], event), str(source), spent, _context(run, meta))


def _context(run: Run, meta: dict) -> int:
    """Tokens of the context that a run takes over; 0 with other rotary frequencies than before."""
    theirs = ModelConfig(**meta["model"])
    same = all(getattr(theirs, k) == getattr(run.cfg, k) for k in ("rope_theta", "rope_scaling"))
    return context_of(meta) if same else 0


def _flops_of(meta: dict) -> float:
    """Training FLOPs from the start of a checkpoint's run to the checkpoint; 0 if imported."""
    cfg, config = ModelConfig(**meta["model"]), ConfigDict(meta["config"])
    return float(
        sum(
            flops.training_flops(cfg, DepthPlan.parse(phase["plan"]), config)
            * (phase["stop"] - phase["start"])
            for phase in meta["phases"]
        )
    )
