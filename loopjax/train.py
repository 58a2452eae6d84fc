"""The training loop: from a config to its result."""

import contextlib
import json
import pathlib
import time

import jax

from loopjax import callbacks as callbacks_lib
from loopjax import flops, growth, host, paths, resume
from loopjax.checkpoint import Checkpoints, versions
from loopjax.curriculum import Phase
from loopjax.early_stopping import EarlyStopping
from loopjax.files import read_rows, write_json
from loopjax.heldout import HeldoutEvaluation
from loopjax.host import say
from loopjax.lock import Lock
from loopjax.log import open_log
from loopjax.progress import duration
from loopjax.run import Run, on_mesh, plan_run
from loopjax.step_metrics import StepMetrics


def train(config, workdir, callbacks=()) -> dict | None:
    """Trains to the end of the curriculum and returns the result, also saved as `result.json`.

    Resumes from the newest checkpoint in `workdir`, if there is one. Returns None when SIGTERM or
    SIGINT stopped the run; it is saved then, and the same call resumes it.

    Args:
      config: a config as of `config.default`.
      workdir: directory of the run, created if needed.
      callbacks: `callbacks.Callback`s that get every row of metrics.jsonl, besides the config's.

    Raises UserError, one sentence, for mistakes in the config and for damaged files.
    """
    run = plan_run(config)
    config = run.config
    callbacks_lib.check(config)
    workdir = paths.local(workdir, "--workdir").absolute()
    with (
        on_mesh(run),
        host.stop_on_signal() as stop,
        host.full_disk_explained(workdir),
        Lock(workdir) as lock,
        contextlib.ExitStack() as stack,
    ):
        source = resume.find_source(run, workdir)  # before anything is written
        host.check_writable(workdir)
        if host.is_main():
            lock.take()
        checkpoints = Checkpoints(workdir / "checkpoints", config.keep_last, config.keep_every)
        stack.enter_context(contextlib.closing(checkpoints))
        start = resume.start(run, workdir, checkpoints, source)
        say(start.message)
        _describe_run(run, workdir)
        early = EarlyStopping(config, start.step, start.heldout)
        result = _saved_result(workdir)
        if early.is_final(result):
            return result
        log = open_log(config, workdir, start.step, callbacks)
        stack.enter_context(contextlib.closing(log))
        return _loop(run, workdir, start, checkpoints, early, log, stop)


def _loop(run: Run, workdir, start: resume.Start, checkpoints, early, log, stop) -> dict | None:
    """Trains from `start` to the end; the result, or None when `stop(step)` asked to stop."""
    config = run.config
    state, step = start.state, start.step
    evaluate = HeldoutEvaluation(run)
    step_metrics = StepMetrics(run, checkpoints)
    update, compiled_plan = None, None
    for phase in run.phases:
        if step >= phase.stop:
            continue
        if step == phase.start and phase.order is not None:
            state = growth.grow(state, phase, run.optimizer, config.seed)
            say(f"step {step}: {phase.operator} to {phase.plan.n_unique} layers")
        batches = run.stream.batches(run.rows, step)
        batch = run.to_device(next(batches))
        compile_s = None
        if phase.plan != compiled_plan:
            update, compile_s = _compile(run, phase, step, state, batch)
            compiled_plan = phase.plan
        _describe_parameters(phase, state.params, workdir)
        step_metrics.start_phase(phase, compile_s)
        while step < phase.stop and not early.exhausted(step):
            state, metrics = update(state, batch)
            step += 1
            if step < phase.stop:
                batch = run.to_device(next(batches))
            # The device works on this step while the host logs the one before.
            if row := step_metrics.push(step, metrics):
                log.row(row)
            stopping = stop(step)
            evaluating = early.evaluates(step)
            saving = early.saves(step, stopping)
            if saving or evaluating or step == phase.stop:
                row = step_metrics.flush()
                heldout = evaluate(state.params, phase.plan) if evaluating else {}
                log.row({**row, **heldout})
                if saving or early.improves(step, heldout):
                    meta = resume.checkpoint_meta(run, start, step, heldout)
                    checkpoints.save(step, state, meta)
                step_metrics.restart_clock()
            if stopping and step < config.steps:
                checkpoints.wait()
                say(_stopped(checkpoints.saved_step))
                return None
    if early.enabled:
        heldout = early.best
    else:
        checkpoints.save(step, state, resume.checkpoint_meta(run, start, step, {}))
        heldout = evaluate(state.params, run.phases[-1].plan)
    checkpoints.wait()
    result = _result(run, workdir, start, step, early, heldout)
    if host.is_main():
        write_json(workdir / "result.json", result)
    nll = f"held-out NLL {heldout['eval/nll']:.4f}, " if heldout else ""
    say(f"done: {nll}{result['training_flops']:.3g} FLOPs, {duration(result['wall_clock_s'])}")
    return result


def _compile(run: Run, phase: Phase, step: int, state, batch):
    """(compiled update for the plan of a phase, seconds it took)."""
    begun = time.monotonic()
    update = run.jitted_update(phase.plan, state).lower(state, batch).compile()
    seconds = time.monotonic() - begun
    n = flops.count_params(run.cfg, phase.plan.n_unique)
    say(f"step {step}: plan {phase.plan}, {n:,} parameters, compiled in {seconds:.1f} s")
    return update, seconds


def _stopped(saved_step: int | None) -> str:
    if saved_step is None:
        return "stopped before the first checkpoint. Rerun the same command to start again"
    return f"stopped; saved step {saved_step}. Rerun the same command to resume"


def _result(run: Run, workdir, start: resume.Start, step: int, early, heldout: dict) -> dict:
    """The content of result.json; with early stopping, "steps" is that of the saved, best state."""
    plan = run.phases[-1].plan
    rows = read_rows(workdir / "metrics.jsonl")
    return {
        "steps": early.best_step if early.enabled else step,
        **({"stopped_at": step} if early.enabled else {}),
        "tokens": step * run.tokens_per_step,
        "plan": str(plan),
        "unique_layers": plan.n_unique,
        "effective_layers": plan.n_effective,
        "parameters": flops.count_params(run.cfg, plan.n_unique),
        "training_flops": float(run.flops_until(step)),
        "flops_before": start.ancestry.flops,  # spent on the checkpoint it was initialized from
        "wall_clock_s": start.wall_clock_s(),
        "compile_s": sum(row.get("compile_s", 0.0) for row in rows),
        "heldout": {key.removeprefix("eval/"): value for key, value in heldout.items()},
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "versions": versions(),
    }


def _saved_result(workdir: pathlib.Path) -> dict:
    """The content of result.json; {} if there is none, or a damaged one that will be rewritten."""
    try:
        return json.loads((workdir / "result.json").read_text())
    except (OSError, ValueError):
        return {}


def _describe_run(run: Run, workdir: pathlib.Path) -> None:
    """Writes the config, the phases and the tokenizer to the run's directory."""
    if host.is_main():
        write_json(workdir / "config.json", run.config.to_dict())
        write_json(workdir / "phases.json", [phase.to_json() for phase in run.phases])
        run.stream.leave_tokenizer(workdir)


def _describe_parameters(phase: Phase, params, workdir: pathlib.Path) -> None:
    """Writes parameters.txt: path, shape, type and sharding of each parameter."""
    if not host.is_main():
        return
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    lines = [f"# plan {phase.plan}, from step {phase.start}: path, shape, dtype, sharding"]
    for path, leaf in leaves:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        lines.append(f"{name}\t{leaf.shape}\t{leaf.dtype}\t{tuple(leaf.sharding.spec)}")
    (workdir / "parameters.txt").write_text("\n".join(lines) + "\n")
