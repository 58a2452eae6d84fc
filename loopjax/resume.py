"""Where a run begins when not from nothing: at a checkpoint, of ours or imported.

`config.init` says what is kept of it. "state": everything; the run goes on as that one was then,
with the same past and another future. "weights": the parameters; step, data, schedule and
optimizer are new. "moments": those of AdamW too. In the last two `config.init_operator` may make
another stack of the layers first, as growth does; another plan for the same stack needs none.
"""

import contextlib
import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from loopjax import curriculum, flops, optim, surgery
from loopjax.checkpoint import Checkpoints, load_params, locate, reading
from loopjax.config import from_saved
from loopjax.depth import DepthPlan, restack
from loopjax.errors import UserError
from loopjax.model_config import ModelConfig
from loopjax.run import Run, check_same_run
from loopjax.step import TrainState, abstract_state

# Fields of the architecture in which a model may differ from the one whose weights it takes.
FREE = ("init_depth", "dtype", "attention", "remat", "rope_theta", "rope_scaling")


@dataclasses.dataclass(frozen=True)
class Source:
    """The checkpoint that a run begins from: where it lies, and what it says about itself."""

    directory: pathlib.Path
    step: int
    meta: dict

    def __str__(self) -> str:
        return f"{self.directory}@{self.step}"


def find(config) -> Source:
    """The checkpoint that `config.init_from` names; raises UserError where there is none."""
    try:
        directory, step = locate(config.init_from)
        checkpoints = Checkpoints(directory, read_only=True)
        with reading(directory / str(step)), contextlib.closing(checkpoints):
            return Source(directory, step, checkpoints.meta(step))
    except UserError as error:
        raise UserError(f"config.init_from={config.init_from!r}: {error}") from None


def check(run: Run, source: Source) -> None:
    """Raises UserError when a run cannot begin from this checkpoint."""
    config, meta = run.config, source.meta
    if (
        config.init != "weights"
        and not (source.directory / str(source.step) / "optimizer").is_dir()
    ):
        raise UserError(
            f"config.init={config.init!r}, but {source} holds parameters alone; it must be 'weights'"
        )
    if config.init == "state":
        check_same_run(run, meta, branch=True)
        return
    if config.init == "moments":
        made_by = from_saved(meta["config"]).optimizer.name
        if made_by != config.optimizer.name:
            raise UserError(
                f"config.optimizer.name={config.optimizer.name!r}, but config.init_from="
                f"{config.init_from!r} has the moments of {made_by!r}; set config.init='weights'"
            )
    theirs, ours = (dataclasses.asdict(c) for c in (ModelConfig(**meta["model"]), run.cfg))
    for name in ours.keys() - {*FREE}:
        if ours[name] != theirs[name]:
            raise UserError(
                f"config.model.{name}={ours[name]}, but config.init_from={config.init_from!r} has "
                f"{theirs[name]}"
            )
    made_with, read_with = meta.get("tokenizer"), run.stream.tokenizer
    if made_with and read_with and made_with != read_with:
        raise UserError(
            f"config.mixture is text of another tokenizer ({read_with}) than that of "
            f"config.init_from={config.init_from!r} ({made_with})"
        )
    _order(run, source)


def _order(run: Run, source: Source) -> tuple[int, ...] | None:
    """Old index of each layer of the first stack; None when it is the checkpoint's."""
    operator = run.config.init_operator
    try:
        return restack(operator, DepthPlan.parse(source.meta["plan"]), run.phases[0].plan)
    except ValueError as error:
        name = f"init_operator={operator!r}" if operator else f"depth={run.config.depth!r}"
        raise UserError(
            f"config.{name} does not fit config.init_from={run.config.init_from!r}: {error}"
        ) from None


def begin(run: Run, source: Source) -> TrainState:
    """The state that a run begins with, on its mesh."""

    def abstract(n_layers: int) -> TrainState:
        return abstract_state(run.cfg, n_layers, run.optimizer, run.mesh, run.rules)

    if run.config.init == "state":
        return _restored(source, abstract(run.phase_of(source.step).plan.n_unique))
    order, new = _order(run, source), abstract(run.phases[0].plan.n_unique)
    old = abstract(DepthPlan.parse(source.meta["plan"]).n_unique)
    if run.config.init == "moments":
        state = _restored(source, old)
        zero = jax.device_put(np.int32(0), new.step.sharding)
        state = TrainState(zero, state.params, optim.rescheduled(state.opt_state))
        return state if order is None else surgery.grow(state, order, donate=True)
    where = jax.tree.map(lambda leaf: leaf.sharding, (old.params, new))
    params, _ = load_params(source.directory, source.step, lambda meta: where[0])
    if order is not None:
        params = surgery.grow(params, order, donate=True)

    def fresh(params):
        return TrainState(jnp.zeros((), jnp.int32), params, run.optimizer.init(params))

    return jax.jit(fresh, out_shardings=where[1], donate_argnums=0)(params)


def _restored(source: Source, abstract: TrainState) -> TrainState:
    checkpoints = Checkpoints(source.directory, read_only=True)
    with reading(source.directory / str(source.step)), contextlib.closing(checkpoints):
        return checkpoints.restore(source.step, abstract)


@dataclasses.dataclass(frozen=True)
class Ancestry:
    """What a run takes over from where it began, and hands on with its checkpoints.

    Attributes:
      events: lineage of the stack before the run; empty for one that began with a fresh model.
      branched_from: "DIR@STEP", empty for a run that began by itself.
      flops: training FLOPs spent on it before the run.
    """

    events: tuple[dict, ...] = ()
    branched_from: str = ""
    flops: float = 0.0

    @classmethod
    def of(cls, run: Run, source: Source) -> "Ancestry":
        """Of a run that begins from a checkpoint now."""
        meta = source.meta
        if run.config.init == "state":
            return dataclasses.replace(cls.saved(run, meta), branched_from=str(source))
        order, plan = _order(run, source), str(run.phases[0].plan)
        operator = run.config.init_operator or ("data" if plan == meta["plan"] else "retrofit")
        event = {"step": 0, "operator": operator, "plan": plan, "order": order and [*order],
                 "from": str(source)}  # fmt: skip
        spent = meta.get("flops_before", 0.0) + _flops(meta)
        return cls((*meta["lineage"], event), str(source), spent)

    @classmethod
    def saved(cls, run: Run, meta: dict) -> "Ancestry":
        """Of a run that goes on from a checkpoint with the same past."""
        own = curriculum.lineage(run.phases, meta["step"])
        before = meta["lineage"][: len(meta["lineage"]) - len(own) + 1]
        events = tuple(before) if "from" in before[-1] else ()
        return cls(events, meta["branched_from"], meta.get("flops_before", 0.0))

    def lineage(self, run: Run, step: int) -> list[dict]:
        """Of the stack after `step` updates, oldest first."""
        own = curriculum.lineage(run.phases, step)
        return [*self.events, *own[1:]] if self.events else own


def _flops(meta: dict) -> float:
    """Training FLOPs of the run that made a checkpoint, up to it; 0 for an imported one."""
    cfg, config = ModelConfig(**meta["model"]), ConfigDict(meta["config"])
    return float(
        sum(
            flops.training_flops(cfg, DepthPlan.parse(phase["plan"]), config)
            * (phase["stop"] - phase["start"])
            for phase in meta["phases"]
        )
    )
