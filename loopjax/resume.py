"""Where a run begins: resumed, branched, initialized from a checkpoint, or fresh.

A run whose directory has checkpoints resumes from the newest one. Otherwise `config.init_from`
may name a checkpoint of another run, or an imported one, and `config.init` says what is taken over:

    "state"    everything: the run branches off, with the same steps before and others after
    "weights"  the parameters; step, data, schedule and optimizer start anew
    "moments"  the parameters and the optimizer's moments

With "weights" and "moments", `config.init_operator` may change the layers first (untie, tie or
grow them); running the same layers by another plan needs no operator.
"""

import dataclasses
import json
import pathlib

import numpy as np

from loopjax import (
    config_saved,
    curriculum,
    loop_checks,
    optim,
    paths,
)
from loopjax.checkpoint import Checkpoints, newest_note, versions
from loopjax.checkpoint_files import locate, read_meta, steps_in
from loopjax.data import pipeline
from loopjax.errors import UserError
from loopjax.files import read_rows
from loopjax.host import is_complete, say
from loopjax.initialize import Source, abstract, inherited, initial_state, order_of
from loopjax.lineage import Ancestry
from loopjax.losses import check_gate
from loopjax.mixture_update import History
from loopjax.model_config import ModelConfig
from loopjax.run import Run
from loopjax.step import TrainState, sharded_init

# Fields of the architecture in which a run may differ from the checkpoint it is initialized from.
FREE = ("init_depth", "dtype", "attention", "remat", "rope_theta", "rope_scaling")

NO_CHANGES = History().to_json()  # of the weights, in a checkpoint that records none


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
    """The beginning of a run in this process.

    Attributes:
      state: train state on the mesh.
      message: one line about where the run begins; empty for a fresh run.
      ancestry: lineage and FLOPs inherited from another run.
      step: updates done.
      time_s: wall-clock seconds of the earlier processes of this run by kind (`ledger.KINDS`).
      heldout: evaluation saved with the checkpoint, which early stopping compares with.
    """

    state: TrainState
    message: str = ""
    ancestry: Ancestry = dataclasses.field(default_factory=Ancestry)
    step: int = 0
    time_s: dict = dataclasses.field(default_factory=dict)
    heldout: dict = dataclasses.field(default_factory=dict)


def start(
    run: Run, workdir: pathlib.Path, checkpoints: Checkpoints, source: Source | None
) -> Start:
    """The state to train on, and how it came about.

    Args:
      checkpoints: checkpoints of this run, empty for a new one.
      source: result of `find_source`.

    Raises UserError when the directory belongs to a different run.
    """

    def accept(meta: dict) -> TrainState:
        check_same_run(run, meta, workdir)
        return abstract(run, run.phase_of(meta["step"]).plan)

    restored = checkpoints.restore_latest(accept, report=say)
    if restored:
        state, meta = restored
        return Start(
            state=state,
            message=f"resuming from step {meta['step']} of {workdir}",
            ancestry=Ancestry.saved(run.phases, meta),
            step=meta["step"],
            time_s=_time_s(meta),
            heldout=meta.get("heldout", {}),
        )
    if source is None:
        plan = run.phases[0].plan
        shapes = abstract(run, plan)
        return Start(
            state=sharded_init(run.cfg, shapes, plan.n_unique, run.optimizer, run.config.seed)
        )
    state, ancestry = initial_state(run, source), inherited(run, source)
    if run.config.init != "state":
        message = f"initialized from the {run.config.init} of {source}"
        return Start(state=state, message=message, ancestry=ancestry)
    return Start(
        state=state,
        message=f"branching from step {source.step} of {source.directory}",
        ancestry=ancestry,
        step=source.step,
        time_s=_time_s(source.meta),
    )


def _time_s(meta: dict) -> dict[str, float]:
    """Seconds by kind up to a checkpoint."""
    return meta.get("time_s") or {"unrecorded": meta["wall_clock_s"]}


def lost_s(workdir: pathlib.Path, begin: Start) -> float:
    """Seconds from the checkpoint that a run resumes from to the last row of the killed process."""
    rows = read_rows(workdir / "metrics.jsonl")
    last = rows[-1].get("wall_clock_s", 0.0) if rows else 0.0
    return max(0.0, last - sum(begin.time_s.values()))


def checkpoint_meta(run: Run, begin: Start, step: int, heldout: dict, time_s: dict) -> dict:
    """Metadata to save with the state after `step` updates: what a later `start` reads.

    Args:
      heldout: evaluation of this state; {} if there is none.
      time_s: wall-clock seconds of the run so far by kind.
    """
    history = run.stream.history
    return {
        "plan": str(run.phase_of(step).plan),
        "lineage": begin.ancestry.lineage(run.phases, step),
        "phases": curriculum.past(run.phases, step),
        "data": run.stream.fingerprint(step),
        **({"mixture_history": history.to_json()} if history.changes else {}),
        "tokenizer": run.stream.tokenizer,
        "add_bos": run.stream.add_bos,
        "model": dataclasses.asdict(run.cfg),
        "config": run.config.to_dict(),
        "branched_from": begin.ancestry.branched_from,
        "flops_before": begin.ancestry.flops,
        "context": max(begin.ancestry.context, run.config.seq_len),
        "heldout": heldout,
        "wall_clock_s": sum(time_s.values()),
        "time_s": time_s,
        "versions": versions(),
    }


def find(config) -> Source:
    """The checkpoint that `config.init_from` names; raises UserError when there is none."""
    try:
        directory, step = locate(config.init_from)
        return Source(directory, step, read_meta(directory, step))
    except UserError as error:
        raise UserError(f"config.init_from={config.init_from!r}: {error}") from None


def find_source(run: Run, workdir: pathlib.Path) -> Source | None:
    """The checkpoint that a new run is initialized from, checked; None for a fresh or resumed run.

    It writes nothing, so that a mistake leaves no trace.

    Raises UserError when `workdir` belongs to another program, or has a past but no checkpoint.
    """
    # A run with checkpoints of its own resumes from those, even when its source is gone.
    if _has_checkpoints(workdir):
        return None
    check_same_directory(run, workdir)
    check_no_past(workdir)
    if not run.config.init_from:
        return None
    source = find(run.config)
    check(run, source)
    return source


def _has_checkpoints(workdir: pathlib.Path) -> bool:
    """Whether a directory has checkpoints to resume from; raises UserError for those of others.

    What another program wrote is neither read, nor moved, nor cleaned up.
    """
    directory = workdir / "checkpoints"
    try:
        found = sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []
        ours = (workdir / "phases.json").is_file() or (found and steps_in(directory))
    except OSError as error:
        raise UserError(f"{directory} cannot be read: {error.strerror}") from error
    if found and not ours:
        raise UserError(
            f"{directory} has {found[0]!r}, but no checkpoint of loopjax; use another --workdir"
        )
    numbered = [directory / name for name in found if name.isdecimal()]
    return any(path.is_dir() and is_complete(path) for path in numbered)


def check_no_past(workdir: pathlib.Path) -> None:
    """Raises UserError when a run without checkpoints has had some: it would start at step 0.

    A run that was stopped before its first checkpoint has lost nothing, and starts again.
    """
    checkpoints = workdir / "checkpoints"
    damaged = workdir / "checkpoints.damaged"
    signs = {
        newest_note(checkpoints): newest_note(checkpoints).is_file(),
        damaged: damaged.is_dir() and any(damaged.iterdir()),
        workdir / "result.json": (workdir / "result.json").is_file(),
        # Earlier versions did not note that a checkpoint was saved.
        workdir / "metrics.jsonl": not paths.is_remote(workdir)
        and not checkpoints.is_dir()
        and _has_rows(workdir),
    }
    found = [str(path) for path, there in signs.items() if there]
    if found:
        raise UserError(
            f"--workdir {workdir} has no checkpoint to resume from, but a past ({found[0]}); to "
            f"start anew at step 0, use another --workdir or remove {', '.join(found)}"
        )


def _has_rows(workdir: pathlib.Path) -> bool:
    file = workdir / "metrics.jsonl"
    return file.is_file() and file.stat().st_size > 0


def check(run: Run, source: Source) -> None:
    """Raises UserError when a run cannot be initialized from this checkpoint."""
    config, meta = run.config, source.meta
    has_optimizer = (source.directory / str(source.step) / "optimizer").is_dir()
    if config.init != "weights" and not has_optimizer:
        raise UserError(
            f"config.init={config.init!r}, but {source} has no optimizer state; use 'weights'"
        )
    if config.init == "state":
        check_same_run(run, meta)
        return
    if config.init == "moments":
        theirs = config_saved.from_saved(meta["config"]).optimizer.name
        if theirs != config.optimizer.name:
            raise UserError(
                f"config.optimizer.name={config.optimizer.name!r}, but config.init_from="
                f"{config.init_from!r} has the moments of {theirs!r}; set config.init='weights'"
            )
    theirs = dataclasses.asdict(ModelConfig(**meta["model"]))
    ours = dataclasses.asdict(run.cfg)
    loop_checks.check_origin(config, run.cfg, ModelConfig(**meta["model"]))
    check_gate(config, theirs["exit_gate"])
    for name in ours.keys() - {*FREE, "loop", "exit_gate"}:
        if ours[name] != theirs[name]:
            raise UserError(
                f"config.model.{name}={ours[name]}, but config.init_from={config.init_from!r} has "
                f"{theirs[name]}"
            )
    their_tokenizer, our_tokenizer = meta.get("tokenizer"), run.stream.tokenizer
    if their_tokenizer and our_tokenizer and their_tokenizer != our_tokenizer:
        raise UserError(
            f"config.mixture has text of another tokenizer ({our_tokenizer}) than "
            f"config.init_from={config.init_from!r} ({their_tokenizer})"
        )
    order_of(run, source)


def check_same_run(run: Run, meta: dict, workdir: pathlib.Path | None = None) -> None:
    """Raises UserError when a checkpoint is not one that this config would have saved.

    Config, phases, learning rates and data must agree on the steps before the checkpoint; they may
    differ after it. `workdir` is the directory of the run's own checkpoint, None for a checkpoint
    that the run branches from.
    """
    step, branch = meta["step"], workdir is None
    run.stream.follow(History.of_json(meta.get("mixture_history", NO_CHANGES)))
    problems = config_saved.contradictions(meta["config"], run.config.to_dict(), branch=branch)
    if step > run.config.steps:
        problems.append(f"config.steps={run.config.steps} (the run is at step {step})")
    if not problems and meta["phases"] != curriculum.past(run.phases, step):
        problems.append("depth, growth or mixture differ in the steps already done")
    saved = config_saved.from_saved(meta["config"])
    if not problems and step:
        steps = np.arange(step, dtype=np.float32)
        if not np.array_equal(optim.make_optimizer(saved)[1](steps), run.schedule(steps)):
            problems.append("the learning rate differs in the steps already done")
    if problems and branch:
        raise UserError(
            f"config.init_from={run.config.init_from!r} does not match this run's history up to "
            f"step {step}: " + "; ".join(problems)
        )
    if problems:
        raise _different_run(workdir, problems)
    # Branches may continue with another mixture; then the next example differs too.
    saved_next = curriculum.mixture_at(curriculum.build(saved), step)
    same_next = saved_next == curriculum.mixture_at(run.phases, step)
    pipeline.check_fingerprint(meta["data"], run.stream.fingerprint(step), probe=same_next)


def check_same_directory(run: Run, workdir: pathlib.Path) -> None:
    """Raises UserError when a directory without checkpoints has the config of a different run."""
    try:
        saved = json.loads((workdir / "config.json").read_text())
        phases = json.loads((workdir / "phases.json").read_text())
    except (OSError, ValueError):
        return
    problems = config_saved.contradictions(saved, run.config.to_dict())
    if phases != [phase.to_json() for phase in run.phases]:
        problems.append("the phases differ")
    if problems:
        raise _different_run(workdir, problems)


def _different_run(workdir: pathlib.Path, problems: list[str]) -> UserError:
    return UserError(
        f"--workdir {workdir} belongs to a different run: {'; '.join(problems)}; use another "
        "--workdir"
    )
