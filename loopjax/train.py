"""The training loop: from a config to its result."""

import contextlib
import dataclasses
import functools
import json
import math
import pathlib
import tempfile

import jax

from loopjax import callbacks as callbacks_lib
from loopjax import devices, flops, host, outputs, paths, resume, same
from loopjax.ahead import Ahead
from loopjax.checkpoint import Checkpoints, versions
from loopjax.compilation import Programs
from loopjax.curriculum import Phase
from loopjax.early_stopping import EarlyStopping
from loopjax.errors import UserError
from loopjax.files import write_json
from loopjax.heldout import HeldoutEvaluation
from loopjax.host import say
from loopjax.ledger import Ledger
from loopjax.lock import Lock, lock_of
from loopjax.log import NoLog, RunLog, open_log
from loopjax.processes import Processes
from loopjax.profile import Profile
from loopjax.progress import duration
from loopjax.run import Run, on_mesh, plan_run
from loopjax.signals import Signals
from loopjax.step_grid import Kept
from loopjax.step_metrics import StepMetrics, all_finite, trailing_bad_steps, utilization
from loopjax.text_table import quantity, span
from loopjax.watchdog import Watchdog


def train(
    config, workdir, callbacks=(), processes: Processes | None = None,
    profile_steps: str | None = None,
) -> dict | None:  # fmt: skip
    """Trains to the end of the curriculum and returns the result, also saved as `result.json`.

    Resumes from the newest checkpoint in `workdir`, if there is one. Returns None when SIGTERM,
    SIGHUP or SIGINT stopped the run; it is saved then, and the same call resumes it.

    Args:
      config: a config as of `config.default`.
      workdir: directory of the run, created if needed.
      callbacks: `callbacks.Callback`s that get every row of metrics.jsonl, besides the config's.
      processes: the processes of the run, which have met; by default this one alone.
      profile_steps: steps to trace into `workdir`/profile, "FIRST:LAST", both included.

    Raises UserError, one sentence, for mistakes in the config and for damaged files.
    """
    if processes is None:
        if jax.process_count() > 1:
            raise UserError(
                "train() in several processes needs processes=loopjax.processes.Group(...), which "
                "`loopjax train --coordinator=...` makes"
            )
        with Signals() as signals:
            return train(config, workdir, callbacks, Processes(signals), profile_steps)
    ledger = Ledger()
    workdir = paths.location(workdir, "--workdir").absolute()
    same.check_program(processes, config)
    run = plan_run(config)
    config = run.config
    callbacks_lib.check(config)
    # What is written without the network: traces, and the stacks of a process that hangs.
    folder = pathlib.Path(tempfile.gettempdir()) if paths.is_remote(workdir) else workdir
    profile = Profile(profile_steps, config.steps, folder / "profile")
    processes.silence_s = config.watchdog.silence_s
    processes.outlook = lambda: host.last_good(host.saved_steps(workdir))
    with (
        on_mesh(run),
        lock_of(workdir) as lock,
        host.disk_errors_explained(workdir, lock),
        contextlib.ExitStack() as stack,
    ):
        source = resume.find_source(run, workdir)  # before anything is written
        if host.is_main():
            outputs.check_directory(workdir, "--workdir")
            workdir.mkdir(parents=True, exist_ok=True)
            lock.take()
        same.check_data(processes, run)
        same.check_workdir(processes, lock)
        kept = Kept(config.keep_last, config.keep_every, config.keep_per_decade)
        checkpoints = Checkpoints(workdir / "checkpoints", kept)
        stack.enter_context(contextlib.closing(checkpoints))
        start = resume.start(run, workdir, checkpoints, source)
        say(start.message)
        if run.attention_note:
            say(run.attention_note)
        ledger.add({**start.time_s, "lost": resume.lost_s(workdir, start)})
        _describe_run(run, workdir)
        early = EarlyStopping(config, start.step, start.heldout)
        result = _saved_result(workdir)
        if early.is_final(result):
            return result
        log = open_log(config, workdir, start.step, callbacks)
        stack.enter_context(contextlib.closing(log))
        stacks = folder / f"stacks.{processes.index}.txt"
        watchdog = Watchdog(config.watchdog.medians, config.watchdog.least_s, stacks)
        stack.enter_context(watchdog)
        ahead = stack.enter_context(Ahead(functools.partial(on_mesh, run)))
        stack.enter_context(profile)
        stack.enter_context(ledger.during("steps"))
        return _Training(
            run=run, workdir=workdir, lock=lock, start=start, checkpoints=checkpoints, early=early,
            log=log, processes=processes, watchdog=watchdog, profile=profile, ahead=ahead,
            ledger=ledger,
        ).loop()  # fmt: skip


@dataclasses.dataclass(kw_only=True)
class _Training:
    """What the training loop works with, from `start` to the end."""

    run: Run
    workdir: pathlib.Path
    lock: Lock
    start: resume.Start
    checkpoints: Checkpoints
    early: EarlyStopping
    log: RunLog | NoLog
    processes: Processes
    watchdog: Watchdog
    profile: Profile
    ahead: Ahead
    ledger: Ledger

    def loop(self) -> dict | None:
        """Trains to the end; the result, or None when a signal asked to stop."""
        run, early, profile = self.run, self.early, self.profile
        config, state, step = run.config, self.start.state, self.start.step
        evaluate = HeldoutEvaluation(run, self.ahead)
        programs = Programs(run, state, self.ahead)
        bad = trailing_bad_steps(self.workdir, step) if config.skip_bad_steps else 0
        step_metrics = StepMetrics(run, self.checkpoints, self.ledger, bad)
        update, batches, heldout = None, None, None
        for phase in run.phases:
            if step >= phase.stop:
                continue
            compile_s = None
            with self.watchdog.off():
                if step == phase.start and phase.order is not None:
                    state = self._grow(programs, phase, state)
                if batches is None:  # one for all phases: the next has read ahead when it begins
                    batches = run.stream.batches(run.rows, step)
                batch = self._next(batches)
                if phase.plan != programs.plan:
                    update, compile_s = self._compile(programs, phase, step, batch)
                if any(map(early.evaluates, range(step + 1, phase.stop + 1))):
                    evaluate.begin(state.params, phase.plan)
                programs.begin_next(phase, batch)
            _describe_parameters(phase, state.params, self.workdir)
            step_metrics.start_phase(phase, compile_s)
            while step < phase.stop and not early.exhausted(step):
                if profile.starts(step + 1):
                    with self._aside("log"):
                        profile.start()
                self.processes.signals.something_to_save()
                with jax.profiler.StepTraceAnnotation("train", step_num=step + 1):
                    state, metrics = update(state, batch)
                step += 1
                if step < phase.stop:
                    batch = self._next(batches)
                # The device works on this step while the host logs the one before.
                row = step_metrics.push(step, metrics)
                self.watchdog.step(step)
                if row:
                    self._log(row)
                stopping = self.processes.stops(step)
                evaluating = early.evaluates(step)
                saving = early.saves(step, stopping)
                if saving or evaluating or profile.stops(step) or step == phase.stop:
                    row = step_metrics.flush()
                    if profile.stops(step):
                        with self._aside("log"):
                            profile.stop()
                    heldout, besides = {}, {}
                    if evaluating:
                        with self._aside("evaluation"):
                            heldout = evaluate.of_state(state, phase.plan)
                            besides = evaluate.of_training(state.params, phase.plan)
                            besides |= self._reweigh(step, heldout)
                    self._log({**row, **heldout, **besides})
                    self._check_heldout(step, heldout, state)
                    if saving or early.improves(step, heldout):
                        self._save(step, state, heldout)
                    step_metrics.restart_clock()
                if stopping and step < config.steps:
                    self._wait()
                    say(_stopped(self.checkpoints.saved_step))
                    return None
        if early.enabled:
            heldout = early.best
        else:
            if heldout is None:  # the run was complete, or branched at its end
                with self._aside("evaluation"):
                    heldout = evaluate.of_state(state, run.phases[-1].plan)
                self._check_heldout(step, heldout, state)
            self._save(step, state, heldout)
        return self._finish(step, heldout)

    def _reweigh(self, step: int, heldout: dict) -> dict[str, float]:
        """Lets the mixture follow an evaluation; its weights as columns of the row, {} without any."""
        config, stream = self.run.config, self.run.stream
        # The evaluation at the end is not one of a longer run; a loss that is nan ends this one.
        finite = all(map(math.isfinite, heldout.values()))
        if not (config.mixture_update.rate and finite and self.early.scheduled(step)):
            return {}
        mixture, update = self.run.phases[0].mixture, config.mixture_update
        change = stream.history.next(step, mixture, heldout, update)
        # Machines may round exponentials differently: all take the weights of process 0.
        change = self.processes.exchange(f"weights after step {step}", change)[0]
        stream.follow(stream.history.plus(*change))
        return stream.history.columns()

    @contextlib.contextmanager
    def _aside(self, kind: str):
        """A block besides the updates, of a kind of the ledger; the watchdog does not count it."""
        with self.watchdog.off(), self.ledger.during(kind):
            yield

    def _next(self, batches):
        """The next batch, on the devices."""
        with self.ledger.during("data"):
            return self.run.to_device(next(batches))

    def _log(self, row: dict) -> None:
        with self._aside("log"):
            self.log.row(row)

    def _wait(self) -> None:
        """Waits until the last checkpoint is complete."""
        with self._aside("save"):
            self.checkpoints.wait()

    def _grow(self, programs: Programs, phase: Phase, state):
        """The state at the start of a phase that changes the stack."""
        with self.ledger.during("compile"):
            grow = programs.growth(phase)
        with self.ledger.during("growth"):
            state = grow(state)
        say(f"step {phase.start}: {phase.operator} to {phase.plan.n_unique} layers")
        return state

    def _compile(self, programs: Programs, phase: Phase, step: int, batch):
        """(compiled update for the plan of a phase, seconds that the training waited for it)."""
        how = "compiled in" if programs.plan is None else "compiled ahead, waited"
        begun = self.ledger.total()
        with self.ledger.during("compile"):
            update = programs.update(phase.plan, batch)
        seconds = self.ledger.total() - begun
        n = flops.count_params(self.run.cfg, phase.plan.n_unique)
        say(f"step {step}: plan {phase.plan}, {n:,} parameters, {how} {seconds:.1f} s")
        return update, seconds

    def _save(self, step: int, state, heldout: dict) -> None:
        """Starts to save a checkpoint, which is finite and in a directory that is still there."""
        with self._aside("save"):
            self.lock.check()
            if step == self.checkpoints.saved_step:
                return
            self._check_parameters(step, state)
            self.log.settle()
            time_s = self.ledger.so_far()
            meta = resume.checkpoint_meta(self.run, self.start, step, heldout, time_s)
            self.checkpoints.save(step, state, meta)

    def _check_parameters(self, step: int, state) -> None:
        """Raises UserError when an update has spoiled the weights."""
        if not all_finite(state.params):
            self._wait()
            raise UserError(
                f"step {step}: parameters that are nan or infinite after the update; stopped, "
                f"{host.last_good(self.checkpoints.steps())}"
            )

    def _check_heldout(self, step: int, heldout: dict, state) -> None:
        """Raises UserError for a loss that is not finite."""
        bad = [name for name, value in heldout.items() if not math.isfinite(value)]
        if bad:
            self._check_parameters(step, state)
            self._wait()
            earlier = [saved for saved in self.checkpoints.steps() if saved < step]
            raise UserError(
                f"step {step}: {bad[0]} is {heldout[bad[0]]}; stopped, {host.last_good(earlier)}"
            )

    def _finish(self, step: int, heldout: dict) -> dict:
        """Writes and returns the result of a run that ended after `step` updates."""
        self._wait()
        self.lock.check()
        time_s = self.ledger.so_far()
        result = _result(self.run, self.start, step, self.early, heldout, time_s)
        if host.is_main():
            write_json(self.workdir / "result.json", result)
        self.log.result(result)
        nll = f"held-out NLL {heldout['eval/nll']:.4f}, " if heldout else ""
        say(
            f"done: {nll}{quantity(result['training_flops'], 'FLOPs')}, {duration(result['wall_clock_s'])}"
        )
        say(f"time: {_shares(time_s)}")
        return result


def _shares(time_s: dict[str, float]) -> str:
    """ "steps 31.2 s (66%), compile 8.4 s (18%), ...", the largest first, those of at least 1%."""
    total = max(sum(time_s.values()), 1e-9)
    largest = sorted(time_s.items(), key=lambda item: -item[1])
    return ", ".join(
        f"{kind} {span(seconds)} ({seconds / total:.0%})"
        for kind, seconds in largest
        if seconds >= total / 100
    )


def _stopped(saved_step: int | None) -> str:
    if saved_step is None:
        return "stopped before the first checkpoint. Rerun the same command to start again"
    return f"stopped; saved step {saved_step}. Rerun the same command to resume"


def _result(
    run: Run, start: resume.Start, step: int, early, heldout: dict, time_s: dict[str, float]
) -> dict:
    """The content of result.json; with early stopping, "steps" is that of the saved, best state."""
    plan = run.phases[-1].plan
    at_work = time_s.get("steps", 0.0) + time_s.get("data", 0.0)
    chip = devices.of(jax.devices()[0]) if at_work and "unrecorded" not in time_s else None
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
        "wall_clock_s": sum(time_s.values()),
        "time_s": time_s,
        **utilization(chip, at_work, lambda causal: run.flops_until(step, causal=causal)),
        "compile_s": time_s.get("compile", 0.0),
        "heldout": _below("eval/", heldout),
        **({"heldout_ema": _below("eval_ema/", heldout)} if run.config.ema and heldout else {}),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "versions": versions(),
    }


def _below(prefix: str, values: dict) -> dict:
    return {k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)}


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
