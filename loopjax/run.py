"""A config resolved and validated, before anything is compiled or allocated.

`outline` needs the config alone; `plan_run` adds what needs devices and data. Every mistake in a
config is reported here. Where the run begins is decided in `resume.py`.
"""

import contextlib
import dataclasses
import functools
import math

import flax.linen as nn
import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from loopjax import (
    attention,
    curriculum,
    flops,
    kernels,
    loop_checks,
    losses,
    mixture_update,
    model,
    sharding,
)
from loopjax import config as config_lib
from loopjax.checkpoint import locate, read_meta, tokenizer_of
from loopjax.curriculum import Phase
from loopjax.data import pipeline, tokenizers
from loopjax.depth import DepthPlan
from loopjax.errors import UserError
from loopjax.optim import make_optimizer
from loopjax.step import train_step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outline:
    """The part of a run that follows from its config alone.

    Attributes:
      config: config with all derived values filled in.
      phases: phases of the curriculum, in order.
      cfg: architecture.
      plan: `config.depth` parsed; the plan at the end of growth, before any cooldown.
    """

    config: ConfigDict
    phases: list[Phase]
    cfg: model.ModelConfig
    plan: DepthPlan


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placed(Outline):
    """An outline on a mesh of devices, which need not be present.

    Attributes:
      mesh: devices by mesh axis.
      rules: mesh axes of each logical axis.
      optimizer: gradient transformation.
      schedule: learning rate as a function of the step.
      batch_sharding: sharding of a batch [B, T].
    """

    mesh: jax.sharding.Mesh
    rules: tuple
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    batch_sharding: jax.sharding.NamedSharding

    @property
    def tokens_per_step(self) -> int:
        return self.config.batch_size * self.config.seq_len

    def flops_per_step(self, phase: Phase, *, causal: bool = False) -> int:
        """FLOPs of an update, as `flops.training_flops_per_token` counts them."""
        return flops.training_flops(self.cfg, phase.plan, self.config, causal=causal)

    def flops_until(self, step: int, *, causal: bool = False) -> int:
        """Training FLOPs of the first `step` updates."""
        spans = ((p, min(p.stop, step) - p.start) for p in self.phases if p.start < step)
        return sum(self.flops_per_step(phase, causal=causal) * n for phase, n in spans)

    def phase_of(self, step: int) -> Phase:
        """The phase that made the state after `step` updates."""
        return next(p for p in reversed(self.phases) if p.start < max(step, 1))

    def jitted_update(self, plan: DepthPlan, state):
        """Jitted `train_step` of a plan, for a state (or its shapes), which it donates."""
        update = functools.partial(
            train_step,
            cfg=self.cfg,
            plan=plan,
            optimizer=self.optimizer,
            schedule=self.schedule,
            microbatches=self.config.microbatches,
            seed=self.config.seed,
            skip_bad=self.config.skip_bad_steps > 0,
            added=losses.of(self.config),
            ema=self.config.ema,
        )
        shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
        # Metrics are replicated, so that every process can read them.
        replicated = jax.sharding.NamedSharding(self.mesh, jax.sharding.PartitionSpec())
        return jax.jit(update, donate_argnums=0, out_shardings=(shardings, replicated))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run(Placed):
    """An outline on these devices with its data: all that the training loop needs.

    Attributes:
      stream: training batches from any step.
      heldout: held-out data by source; empty without evaluation.
      attention_note: why attention is not the platform's flash attention; "" if it is.
    """

    stream: pipeline.TrainStream
    heldout: dict
    attention_note: str

    @functools.cached_property
    def rows(self) -> np.ndarray:
        """Rows of a batch that this process reads."""
        return sharding.local_rows(self.batch_sharding, self.config.batch_size)

    def to_device(self, local_batch: dict) -> dict:
        """The global batch on the mesh, of the rows that this process read."""
        size = self.config.batch_size
        return sharding.global_batch(local_batch, self.rows, self.batch_sharding, size)


def outline(config) -> Outline:
    """The outline of a config, without devices or data; raises UserError for invalid values."""
    config = config_lib.resolved(config)
    config_lib.check(config)
    phases = curriculum.build(config)
    mixture_update.check(config, [phase.mixture for phase in phases])
    plans = [phase.plan for phase in phases]
    cfg = config_lib.model_config(config, plans)
    loop_checks.check_plans(config, cfg.loop, phases)
    losses.check_plans(losses.of(config), plans, cfg.loop)
    return Outline(config=config, phases=phases, cfg=cfg, plan=DepthPlan.parse(config.depth))


def place(planned: Outline, devices=None) -> Placed:
    """An outline on all available devices, or on `devices`; raises UserError if it does not fit."""
    config, cfg = planned.config, planned.cfg
    if cfg.remat == "offload" and kernels.platform() == "cpu":
        raise UserError(
            "config.model.remat='offload' requires a GPU or TPU: the memory of a CPU is the host's; "
            "'full' saves the same values"
        )
    mesh = _mesh(config.mesh, devices)
    rules = sharding.axis_rules(config.mesh)
    batch = config.batch_size // config.microbatches
    sharding.check_divisible(cfg, batch, mesh, rules, config.seq_len)
    attention_note(planned, mesh, rules)
    optimizer, schedule = make_optimizer(config)
    return Placed(
        **vars(planned),
        mesh=mesh,
        rules=rules,
        optimizer=optimizer,
        schedule=schedule,
        batch_sharding=sharding.batch_sharding(mesh, rules),
    )


def _mesh(config_mesh, devices):
    """The mesh; raises UserError where JAX cannot lay it out on a slice of TPUs."""
    try:
        return sharding.make_mesh(config_mesh, devices)
    except NotImplementedError:
        coordinates = zip(*(device.coords for device in devices or jax.devices()), strict=True)
        shape = "x".join(str(1 + max(places)) for places in coordinates)
        sizes = ", ".join(f"{axis}={config_mesh[axis]}" for axis in sharding.MESH_AXES)
        raise UserError(
            f"config.mesh ({sizes}) does not fit a TPU slice of {shape}: the size of each axis must "
            "be one of these dimensions or a product of them, and each dimension is used once"
        ) from None


def plan_run(config) -> Run:
    """The run of a config; raises UserError, one sentence about what is wrong with the config."""
    planned = outline(config)
    config, phases = planned.config, planned.phases
    if config.patience and config.keep_per_decade:
        raise UserError(
            f"config.patience={config.patience} keeps the checkpoints of the best evaluations only, "
            f"and config.keep_per_decade={config.keep_per_decade} is for others"
        )
    if config.patience and len(phases) > 1:
        raise UserError(
            f"config.patience={config.patience} requires a run of one plan and one mixture; this "
            f"run has {len(phases)} phases"
        )
    placed = place(planned)
    tokenizer = _tokenizer(config)  # and whether it adds BOS
    heldout = {}
    if config.eval_batches:
        names = list(phases[-1].mixture)
        heldout = pipeline.open_sources(config, names, "heldout", *tokenizer)
    stream = pipeline.TrainStream(config, phases, *tokenizer)
    note = attention_note(planned, placed.mesh, placed.rules, packed=stream.packed)
    return Run(**vars(placed), stream=stream, heldout=heldout, attention_note=note)


def attention_note(outline: Outline, mesh, rules, packed: bool = False) -> str:
    """Why attention is not flash attention on `kernels.platform()`; "" if it is, or is named.

    Raises UserError if `config.model.attention` names an implementation that cannot run.

    Args:
      mesh: the devices, which need not exist.
      packed: whether rows have segments.
    """
    cfg, axes = outline.cfg, dict(rules)["seq"] or ()
    inputs = {
        "T": outline.config.seq_len, "head_size": cfg.head_size, "dtype": cfg.dtype,
        "packed": packed, "seq_parts": math.prod(mesh.shape[axis] for axis in axes),
    }  # fmt: skip
    if cfg.attention == "auto":
        name, why = attention.chosen(kernels.platform(), **inputs)
        return why and f"attention is {name!r}: {why}"
    if missing := attention.requirement(cfg.attention, kernels.platform(), **inputs):
        raise UserError(f"config.model.attention={cfg.attention!r} requires {missing}")
    return ""


def _tokenizer(config) -> tuple[str, bool | None]:
    """Tokenizer of text that is not prepared: the configured one, else that of `init_from`.

    Also whether that checkpoint was trained with the BOS of the tokenizer's template.
    """
    if config.tokenizer:
        tokenizers.load(config.tokenizer)  # also where no source is going to use it
    if config.tokenizer or not config.init_from:
        return config.tokenizer, None
    try:
        directory, step = locate(config.init_from)
    except UserError:
        # A resumed run does not need its source any more. Should it need the tokenizer, the check
        # of the data fingerprint fails.
        return "", None
    file = tokenizer_of(directory)
    return file, read_meta(directory, step).get("add_bos") if file else None


@contextlib.contextmanager
def on_mesh(run: Placed):
    """Context in which the functions of a run are traced and executed."""
    with jax.set_mesh(run.mesh), nn.logical_axis_rules(run.rules):
        yield
