"""What a config comes down to, worked out before anything is compiled or allocated.

`plan_run` is where every mistake in a config is found; `check_same_run` holds a checkpoint
against the run that wants to go on from it.
"""

import contextlib
import dataclasses
import functools
import json
import pathlib

import flax.linen as nn
import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from loopjax import config as config_lib
from loopjax import curriculum, flops, model, sharding
from loopjax.checkpoint import locate, run_directory
from loopjax.curriculum import Phase
from loopjax.data import pipeline, tokenizers
from loopjax.depth import DepthPlan
from loopjax.errors import UserError
from loopjax.optim import make_optimizer
from loopjax.step import train_step


@dataclasses.dataclass(frozen=True)
class Run:
    """A config, checked, and all that follows from it."""

    config: ConfigDict
    phases: list[Phase]
    cfg: model.ModelConfig
    mesh: jax.sharding.Mesh
    rules: tuple
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    stream: pipeline.TrainStream
    heldout: dict
    batch_sharding: jax.sharding.NamedSharding

    @property
    def tokens_per_step(self) -> int:
        return self.config.batch_size * self.config.seq_len

    @functools.cached_property
    def rows(self) -> np.ndarray:
        """Rows of a batch that this process reads."""
        return sharding.local_rows(self.batch_sharding, self.config.batch_size)

    def flops_per_step(self, phase: Phase) -> int:
        return flops.training_flops(self.cfg, phase.plan, self.config)

    def flops_until(self, step: int) -> int:
        """Training FLOPs of the first `step` updates."""
        spans = ((p, min(p.stop, step) - p.start) for p in self.phases if p.start < step)
        return sum(self.flops_per_step(phase) * n for phase, n in spans)

    def phase_of(self, step: int) -> Phase:
        """The phase that made the state after `step` updates."""
        return next(p for p in reversed(self.phases) if p.start < max(step, 1))

    def jitted_update(self, plan: DepthPlan, state):
        """`train_step` of a plan, jitted for a state (or its shapes) that it uses up."""
        update = functools.partial(
            train_step,
            cfg=self.cfg,
            plan=plan,
            optimizer=self.optimizer,
            schedule=self.schedule,
            microbatches=self.config.microbatches,
        )
        shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
        # Metrics are whole on every process, so that each can read them.
        whole = jax.sharding.NamedSharding(self.mesh, jax.sharding.PartitionSpec())
        return jax.jit(update, donate_argnums=0, out_shardings=(shardings, whole))

    def to_device(self, local_batch: dict) -> dict:
        size = self.config.batch_size
        return sharding.global_batch(local_batch, self.rows, self.batch_sharding, size)


def outline(config) -> tuple[ConfigDict, list[Phase], model.ModelConfig]:
    """The config with nothing left open, its phases and architecture; no device, no data."""
    config = config_lib.resolved(config)
    config_lib.check(config)
    return config, curriculum.build(config), config_lib.model_config(config)


def plan_run(config) -> Run:
    """The run of a config; raises UserError with one sentence about what is wrong with it."""
    config, phases, cfg = outline(config)
    if config.patience and len(phases) > 1:
        raise UserError(
            f"config.patience={config.patience} goes with a run of one plan and mixture; this one "
            f"has {len(phases)} phases"
        )
    if cfg.attention == "cudnn" and jax.default_backend() != "gpu":
        raise UserError(f"config.model.attention='cudnn' wants a GPU, not {jax.default_backend()}")
    mesh, rules = sharding.make_mesh(config.mesh), sharding.axis_rules(config.mesh)
    sharding.check_divisible(cfg, config.batch_size // config.microbatches, mesh, rules)
    optimizer, schedule = make_optimizer(config)
    tokenizer, heldout = _tokenizer(config), {}
    if config.eval_batches:
        names = list(phases[-1].mixture)
        heldout = pipeline.open_sources(config, names, "heldout", tokenizer)
    return Run(
        config=config,
        phases=phases,
        cfg=cfg,
        mesh=mesh,
        rules=rules,
        optimizer=optimizer,
        schedule=schedule,
        stream=pipeline.TrainStream(config, phases, tokenizer),
        heldout=heldout,
        batch_sharding=sharding.batch_sharding(mesh, rules),
    )


def _tokenizer(config) -> str:
    """What text that is not prepared is tokenised by: as told, else as where the run began."""
    if config.tokenizer or not config.init_from:
        return config.tokenizer
    try:
        beside = run_directory(locate(config.init_from)[0])
    except UserError:
        return ""  # it is gone: text would be bytes, and then the data not what they were
    return str(beside) if (beside / tokenizers.FILE).is_file() else ""


@contextlib.contextmanager
def on_mesh(run: Run):
    """The context in which the functions of a run are traced and executed."""
    with jax.set_mesh(run.mesh), nn.logical_axis_rules(run.rules):
        yield


def check_same_run(run: Run, meta: dict, *, branch: bool = False) -> None:
    """Raises UserError when a checkpoint's past is not the past that the config describes.

    `branch`: the checkpoint is of the run that `config.init_from` names.
    """
    step = meta["step"]
    problems = config_lib.contradictions(meta["config"], run.config.to_dict(), branch=branch)
    if step > run.config.steps:
        problems.append(f"config.steps={run.config.steps} (the run is at step {step})")
    if not problems and meta["phases"] != curriculum.past(run.phases, step):
        problems.append("another depth, growth or mixture in the steps already made")
    saved = config_lib.from_saved(meta["config"])
    if not problems and step:
        steps = np.arange(step, dtype=np.float32)
        if not np.array_equal(make_optimizer(saved)[1](steps), run.schedule(steps)):
            problems.append("another learning rate in the steps already made")
    if problems and branch:
        raise UserError(
            f"config.init_from={run.config.init_from!r} has not the past of this run at step {step}: "
            + "; ".join(problems)
        )
    if problems:
        raise UserError(
            "the checkpoint is of another run: " + "; ".join(problems) + "; take another --workdir"
        )
    # Another mixture from here on is another future, not another past.
    saved_next = curriculum.mixture_at(curriculum.build(saved), step)
    same_next = saved_next == curriculum.mixture_at(run.phases, step)
    pipeline.check_fingerprint(meta["data"], run.stream.fingerprint(step), probe=same_next)


def check_same_directory(run: Run, workdir: pathlib.Path) -> None:
    """Raises UserError when a directory without checkpoints holds the traces of another run."""
    try:
        saved = json.loads((workdir / "config.json").read_text())
        phases = json.loads((workdir / "phases.json").read_text())
    except (OSError, ValueError):
        return
    problems = config_lib.contradictions(saved, run.config.to_dict())
    if phases != [phase.to_json() for phase in run.phases]:
        problems.append("other phases")
    if problems:
        raise UserError(f"--workdir {workdir} holds another run: " + "; ".join(problems))
