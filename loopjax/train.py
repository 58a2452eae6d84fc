"""A run from config to result: phases, updates, evaluation, checkpoints.

config -> plan_run -> [Phase...]; for each phase: (growth) -> compile -> updates
"""

import contextlib
import dataclasses
import errno
import functools
import json
import os
import pathlib
import signal
import sys
import time

import jax
import numpy as np
from jax.experimental import multihost_utils

from loopjax import curriculum, flops, growth, resume
from loopjax.checkpoint import Checkpoints, versions
from loopjax.curriculum import Phase
from loopjax.data import pipeline
from loopjax.errors import UserError
from loopjax.files import read_rows, write_json
from loopjax.lock import Lock
from loopjax.log import NoLog, RunLog
from loopjax.progress import duration
from loopjax.run import Run, check_same_directory, check_same_run, on_mesh, plan_run
from loopjax.step import abstract_state, eval_step, sharded_init


def train(config, workdir) -> dict | None:
    """Trains to the end of the curriculum and returns the result, which `result.json` holds too.

    Goes on from the newest checkpoint in `workdir` if there is one. Returns None when a SIGTERM
    or SIGINT stopped it; the state is saved then, and the same call goes on.
    """
    run = plan_run(config)
    workdir = pathlib.Path(workdir).absolute()
    with (
        on_mesh(run),
        _stop_on_signal() as stop,
        _full_disk_told(workdir),
        Lock(workdir) as lock,
        contextlib.closing(Trainer(run, workdir, lock)) as trainer,
    ):
        if trainer.ended:
            return trainer.ended
        for phase in run.phases:
            if trainer.step < phase.stop and not trainer.run_phase(phase, stop):
                say(
                    f"stopped and saved at step {trainer.saved_step or 0}; the same command goes on"
                )
                return None
        return trainer.finish()


class Trainer:
    """The moving parts of a run: state, step, checkpoints, log."""

    def __init__(self, run: Run, workdir: pathlib.Path, lock: Lock):
        self.run, self.config, self.workdir = run, run.config, workdir
        self.writes = jax.process_index() == 0
        config = run.config
        source, self.ancestry = None, resume.Ancestry()
        if config.init_from and not any((workdir / "checkpoints").glob("[0-9]*")):
            source = resume.find(config)  # before anything is made
            resume.check(run, source)
        _check_writable(workdir)
        if self.writes:
            lock.take()
        self.checkpoints = Checkpoints(workdir / "checkpoints", config.keep_last, config.keep_every)
        restored = self.checkpoints.restore_latest(self._accept, report=say)
        self.step, self.seconds_before = 0, 0.0
        self.saved_step, self.best = None, {}
        if restored:
            self.state, meta = restored
            self.saved_step, self.best = meta["step"], meta.get("heldout", {})
            self.ancestry = resume.Ancestry.saved(run, meta)
        else:
            check_same_directory(run, workdir)
            self.state, meta = self._first(source)
        if meta:
            self.step, self.seconds_before = meta["step"], meta["wall_clock_s"]
            say(f"going on from step {self.step} of {self.ancestry.branched_from or workdir}")
        self.begun = self.last_time = time.monotonic()
        if self.writes:
            write_json(workdir / "config.json", config.to_dict())
            write_json(workdir / "phases.json", [phase.to_json() for phase in run.phases])
            run.stream.leave_tokenizer(workdir)
        self.ended = self._ended()
        done = self.ended["stopped_at"] if self.ended else self.step
        log_args = (workdir, done, config.steps, config.log_every)
        self.log = RunLog(*log_args) if self.writes else NoLog()
        self.eval_sets: dict[str, list] = {}
        self.plan, self.update = None, None  # the compiled update, and the plan it is for
        self.eval_steps: dict = {}

    def _abstract(self, n_layers: int):
        run = self.run
        return abstract_state(run.cfg, n_layers, run.optimizer, run.mesh, run.rules)

    def _accept(self, meta: dict):
        """The abstract state of a checkpoint; raises UserError if it is not of this run."""
        run = self.run
        check_same_run(run, meta)
        return self._abstract(run.phase_of(meta["step"]).plan.n_unique)

    def _first(self, source: resume.Source | None):
        """(state, meta) that a new run begins with; the meta of the run that it goes on from, if any."""
        run = self.run
        if source is None:
            depth = run.phases[0].plan.n_unique
            args = run.cfg, self._abstract(depth), depth, run.optimizer, self.config.seed
            return sharded_init(*args), None
        self.ancestry = resume.Ancestry.of(run, source)
        state = resume.begin(run, source)
        if self.config.init == "state":
            return state, source.meta
        say(f"begins with the {self.config.init} of {source}")
        return state, None

    def run_phase(self, phase: Phase, stop) -> bool:
        """Runs the updates of a phase that are left; False when it was stopped."""
        run, config = self.run, self.config
        if self.step == phase.start and phase.order is not None:
            self.state = growth.grow(self.state, phase, run.optimizer, config.seed)
            say(f"step {self.step}: {phase.operator} to {phase.plan.n_unique} layers")
        batches = run.stream.batches(run.rows, self.step)
        batch = run.to_device(next(batches))
        compile_s = self._compile(phase, batch)
        self._describe_parameters(phase)
        pending, self.last_time = None, time.monotonic()
        while self.step < phase.stop:
            self.state, metrics = self.update(self.state, batch)
            self.step += 1
            if self.step < phase.stop:
                batch = run.to_device(next(batches))
            # The device works on this step while the host writes down the one before.
            if pending:
                self.log.row(self._row(*pending))
            pending = (self.step, metrics, phase, compile_s)
            compile_s = None
            stopping = stop(self.step)
            evaluating = _due(self.step, config.eval_every) and self.step < config.steps
            if config.patience:  # checkpoints are of the best evaluations alone
                saving, evaluating = False, evaluating or self.step == config.steps
            else:
                saving = stopping or _due(self.step, config.checkpoint_every)
            if saving or evaluating or self.step == phase.stop:
                row, found = self._row(*pending), self.evaluate(phase) if evaluating else {}
                self.log.row({**row, **found})
                if saving or (config.patience and self._is_best(found)):
                    self.save(phase, found)
                pending, self.last_time = None, time.monotonic()
            if stopping and self.step < config.steps:
                self.checkpoints.wait()
                return False
            if config.patience and self.step - (self.saved_step or 0) >= self._patience:
                break
        return True

    @property
    def _patience(self) -> int:
        """Steps without a better evaluation after which the run ends."""
        return self.config.patience * self.config.eval_every

    def _is_best(self, found: dict) -> bool:
        better = bool(found) and not found["eval/nll"] >= self.best.get("eval/nll", np.inf)
        if better:
            self.best = found
        return better

    def _ended(self) -> dict | None:
        """The result of a run that ended by its patience."""
        if not (self.config.patience and self.saved_step):
            return None
        try:
            result = json.loads((self.workdir / "result.json").read_text())
        except (OSError, ValueError):
            return None
        stopped = result.get("stopped_at", 0)
        over = stopped - self.step >= self._patience or stopped == self.config.steps
        return result if result["steps"] == self.step and over else None

    def _compile(self, phase: Phase, batch) -> float | None:
        """Compiles the update of a plan; the seconds it took, None if it is there already."""
        if phase.plan == self.plan:
            return None
        run, begun = self.run, time.monotonic()
        self.update = run.jitted_update(phase.plan, self.state).lower(self.state, batch).compile()
        self.plan = phase.plan
        seconds = time.monotonic() - begun
        n = flops.count_params(run.cfg, phase.plan.n_unique)
        say(f"step {self.step}: plan {phase.plan}, {n:,} parameters, compiled in {seconds:.1f} s")
        return seconds

    def _row(self, step: int, metrics: dict, phase: Phase, compile_s: float | None) -> dict:
        """What metrics.jsonl says of a step; raises UserError when its loss is not finite."""
        run = self.run
        loss, grad_norm = float(metrics["loss"]), float(metrics["grad_norm"])
        now = time.monotonic()
        speed = run.tokens_per_step / max(now - self.last_time, 1e-9)
        self.last_time = now
        if not (np.isfinite(loss) and np.isfinite(grad_norm)):
            self.checkpoints.wait()
            steps = self.checkpoints.steps()
            raise UserError(
                f"step {step}: loss {loss}, {_largest(metrics['grad_norms'])}; stopped, "
                + (f"the last good checkpoint is of step {steps[-1]}" if steps else "none is saved")
            )
        row = {
            "step": step,
            "loss": loss,
            "grad_norm": grad_norm,
            "learning_rate": float(metrics["learning_rate"]),
            "tokens": step * run.tokens_per_step,
            "tokens_per_s": speed,
            "flops": float(run.flops_until(step)),
            "plan": str(phase.plan),
        }
        peak = flops.peak_flops(jax.devices()[0])
        if peak:
            flops_per_s = run.flops_per_step(phase) * speed / run.tokens_per_step
            row["mfu"] = flops_per_s / (peak * jax.device_count())
        if compile_s is not None:
            row["compile_s"] = compile_s
        return row

    def evaluate(self, phase: Phase) -> dict[str, float]:
        """Held-out negative log-likelihood (nats per token) and argmax accuracy.

        By source, and over all of them weighted by the mixture; "exact" is the share of rows whose
        answer is right in every token, for sources of one answer a row (`one_answer`).
        """
        run, config = self.run, self.config
        fn = functools.partial(eval_step, cfg=run.cfg, plan=phase.plan)
        step = self.eval_steps.setdefault(phase.plan, jax.jit(fn))
        out, total = {}, {"nll": 0.0, "accuracy": 0.0}
        weights = run.phases[-1].mixture
        for name, source in run.heldout.items():
            if name not in self.eval_sets:
                args = (config.batch_size, config.eval_batches, run.rows)
                self.eval_sets[name] = list(pipeline.heldout_batches(source, *args))
            batches = map(run.to_device, self.eval_sets[name])
            sums = [step(self.state.params, batch) for batch in batches]
            nll, hits, n = (sum(float(s[k]) for s in sums) for k in ("nll", "hits", "targets"))
            out[f"eval/{name}/nll"], out[f"eval/{name}/accuracy"] = nll / n, hits / n
            if source.one_answer:
                exact, rows = (sum(float(s[k]) for s in sums) for k in ("exact", "rows"))
                out[f"eval/{name}/exact"] = exact / rows
            share = weights[name] / sum(weights.values())
            total["nll"] += share * nll / n
            total["accuracy"] += share * hits / n
        if not out:
            return {}
        return {"eval/nll": total["nll"], "eval/accuracy": total["accuracy"], **out}

    def save(self, phase: Phase, heldout: dict | None = None) -> None:
        """Begins to save the state, unless this step is saved already."""
        if self.saved_step == self.step:
            return
        run = self.run
        self.checkpoints.save(
            self.step,
            self.state,
            {
                "plan": str(phase.plan),
                "lineage": self.ancestry.lineage(run, self.step),
                "phases": curriculum.past(run.phases, self.step),
                "data": run.stream.fingerprint(self.step),
                "tokenizer": run.stream.tokenizer,
                "model": dataclasses.asdict(run.cfg),
                "config": self.config.to_dict(),
                "branched_from": self.ancestry.branched_from,
                "flops_before": self.ancestry.flops,
                "heldout": heldout or {},
                "wall_clock_s": self.seconds(),
                "versions": versions(),
            },
        )
        self.saved_step = self.step

    def seconds(self) -> float:
        """Wall-clock of the run so far, earlier starts included."""
        return self.seconds_before + time.monotonic() - self.begun

    def finish(self) -> dict:
        """Saves, evaluates and writes result.json; with patience, of the best evaluation."""
        run, phase, patience = self.run, self.run.phases[-1], self.config.patience
        if not patience:
            self.save(phase)
        metrics = self.best if patience else self.evaluate(phase)
        self.checkpoints.wait()
        rows = read_rows(self.workdir / "metrics.jsonl")
        result = {
            "steps": self.saved_step,
            **({"stopped_at": self.step} if patience else {}),
            "tokens": self.step * run.tokens_per_step,
            "plan": str(phase.plan),
            "unique_layers": phase.plan.n_unique,
            "effective_layers": phase.plan.n_effective,
            "parameters": flops.count_params(run.cfg, phase.plan.n_unique),
            "training_flops": float(run.flops_until(self.step)),
            "flops_before": self.ancestry.flops,  # spent on what it began from
            "wall_clock_s": self.seconds(),
            "compile_s": sum(row.get("compile_s", 0.0) for row in rows),
            "heldout": {key.removeprefix("eval/"): value for key, value in metrics.items()},
            "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
            "versions": versions(),
        }
        if self.writes:
            write_json(self.workdir / "result.json", result)
        heldout = f"held-out NLL {metrics['eval/nll']:.4f}, " if metrics else ""
        say(f"done: {heldout}{result['training_flops']:.3g} FLOPs, {duration(self.seconds())}")
        return result

    def _describe_parameters(self, phase: Phase) -> None:
        if not self.writes:
            return
        leaves, _ = jax.tree_util.tree_flatten_with_path(self.state.params)
        lines = [f"# plan {phase.plan}, from step {phase.start}: path, shape, dtype, sharding"]
        for path, leaf in leaves:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            lines.append(f"{name}\t{leaf.shape}\t{leaf.dtype}\t{tuple(leaf.sharding.spec)}")
        (self.workdir / "parameters.txt").write_text("\n".join(lines) + "\n")

    def close(self) -> None:
        self.log.close()
        self.checkpoints.close()


def _largest(grad_norms) -> str:
    """Where the largest gradient is, those that are no number before all others."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(grad_norms)
    found = []
    for path, leaf in leaves:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        norms = np.asarray(leaf).reshape(-1)
        worst = int(np.argmax(np.where(np.isnan(norms), np.inf, norms)))
        layer = f" of layer {worst}" if leaf.ndim else ""
        found.append((float(norms[worst]), f"{name}{layer}"))
    if all(np.isnan(norm) for norm, _ in found):
        return "all gradients nan"
    norm, name = max(found, key=lambda item: np.inf if np.isnan(item[0]) else item[0])
    return f"the largest gradient is that of {name} (norm {norm:.3g})"


def _check_writable(workdir: pathlib.Path) -> None:
    """Makes the directory; raises UserError when it cannot be written."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / ".writable").touch()
        (workdir / ".writable").unlink()
    except OSError as error:
        raise UserError(f"--workdir {workdir} cannot be written: {error.strerror}") from None


@contextlib.contextmanager
def _full_disk_told(workdir: pathlib.Path):
    """A full disk, whichever library met it, in one sentence."""
    try:
        yield
    except Exception as error:
        full = os.strerror(errno.ENOSPC)
        if full not in str(error) and getattr(error, "errno", None) != errno.ENOSPC:
            raise
        saved = sorted(
            int(p.name) for p in (workdir / "checkpoints").glob("*") if p.name.isdecimal()
        )
        raise UserError(
            f"--workdir {workdir}: {full}; "
            + (f"the last good checkpoint is of step {saved[-1]}" if saved else "nothing is saved")
            + "; make room and start the same command again"
        ) from error


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def say(text: str) -> None:
    """One line for the person who watches, from one process."""
    if jax.process_index() == 0:
        print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def _stop_on_signal():
    """Gives a function of the step that tells whether to save and stop now.

    SIGTERM and the first SIGINT ask for it. With several processes all of them have to stop
    after the same step; JAX's preemption service agrees on one.
    """
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    asked = []

    def ask(signum, frame):
        asked.append(signum)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {s: signal.signal(s, ask) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda step: bool(asked)
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
