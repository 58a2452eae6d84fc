"""A run from config to result: phases, updates, evaluation, checkpoints.

    config -> plan_run -> [Phase...]; for each phase: (growth) -> compile -> updates

`plan_run` decides everything that can be decided without compiling or allocating, and it is where
every mistake in a config is found.
"""

import contextlib
import dataclasses
import functools
import pathlib
import signal
import sys
import time

import flax.linen as nn
import jax
import numpy as np
import optax
from jax.experimental import multihost_utils

from loopjax import curriculum, flops, model, sharding, surgery
from loopjax import config as config_lib
from loopjax.checkpoint import Checkpoints, versions
from loopjax.curriculum import Phase
from loopjax.data import pipeline
from loopjax.errors import UserError
from loopjax.log import NoLog, RunLog, duration, read_rows, write_json
from loopjax.optim import make_optimizer
from loopjax.step import abstract_state, eval_step, sharded_init, train_step


@dataclasses.dataclass(frozen=True)
class Run:
    """What a config comes down to."""

    config: object
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
        per_token = flops.training_flops_per_token(self.cfg, phase.plan, self.config.seq_len)
        return per_token * self.tokens_per_step

    def flops_until(self, step: int) -> int:
        """Training FLOPs of the first `step` updates."""
        spans = ((p, min(p.stop, step) - p.start) for p in self.phases if p.start < step)
        return sum(self.flops_per_step(phase) * n for phase, n in spans)

    def phase_of(self, step: int) -> Phase:
        """The phase that made the state after `step` updates."""
        return next(p for p in reversed(self.phases) if p.start < max(step, 1))

    def to_device(self, local_batch: dict) -> dict:
        size = self.config.batch_size
        return sharding.global_batch(local_batch, self.rows, self.batch_sharding, size)


def plan_run(config) -> Run:
    """Checks a config and works out the run; raises UserError, compiles and allocates nothing."""
    config_lib.check(config)
    phases = curriculum.build(config)
    cfg = config_lib.model_config(config)
    mesh, rules = sharding.make_mesh(config.mesh), sharding.axis_rules(config.mesh)
    sharding.check_divisible(cfg, config.batch_size // config.microbatches, mesh, rules)
    optimizer, schedule = make_optimizer(config)
    heldout = {}
    if config.eval_batches:
        heldout = pipeline.open_sources(config, list(phases[-1].mixture), "heldout")
    return Run(
        config=config,
        phases=phases,
        cfg=cfg,
        mesh=mesh,
        rules=rules,
        optimizer=optimizer,
        schedule=schedule,
        stream=pipeline.TrainStream(config, phases),
        heldout=heldout,
        batch_sharding=sharding.batch_sharding(mesh, rules),
    )


@contextlib.contextmanager
def on_mesh(run: Run):
    """The context in which the functions of a run are traced and executed."""
    with jax.set_mesh(run.mesh), nn.logical_axis_rules(run.rules):
        yield


def train(config, workdir) -> dict | None:
    """Trains to the end of the curriculum and returns the result, which `result.json` holds too.

    Goes on from the newest checkpoint in `workdir` if there is one. Returns None when a SIGTERM
    or SIGINT stopped it; the state is saved then, and the same call goes on.
    """
    run = plan_run(config)
    workdir = pathlib.Path(workdir).absolute()
    with on_mesh(run), contextlib.ExitStack() as stack:
        trainer = Trainer(run, workdir)
        stack.callback(trainer.close)
        with _stop_on_signal() as stop:
            for phase in run.phases:
                if trainer.step < phase.stop and not trainer.run_phase(phase, stop):
                    say(f"stopped and saved at step {trainer.step}; the same command goes on")
                    return None
        return trainer.finish()


class Trainer:
    """The moving parts of a run: state, step, checkpoints, log."""

    def __init__(self, run: Run, workdir: pathlib.Path):
        self.run, self.config, self.workdir = run, run.config, workdir
        self.writes = jax.process_index() == 0
        _check_workdir(run, workdir)
        config = run.config
        self.checkpoints = Checkpoints(workdir / "checkpoints", config.keep_last, config.keep_every)
        restored = self.checkpoints.restore_latest(self._accept, report=say)
        if restored:
            self.state, meta = restored
            self.step, self.seconds_before = meta["step"], meta["wall_clock_s"]
            say(f"going on from step {self.step} of {workdir}")
        else:
            depth = run.phases[0].plan.n_unique
            abstract = self._abstract(depth)
            self.state = sharded_init(run.cfg, abstract, depth, run.optimizer, config.seed)
            self.step, self.seconds_before = 0, 0.0
        self.saved_step = self.step if restored else None
        self.begun = time.monotonic()
        if self.writes:
            write_json(workdir / "config.json", config.to_dict())
            write_json(workdir / "phases.json", [phase.to_json() for phase in run.phases])
        log_args = (workdir, self.step, config.steps, config.log_every)
        self.log = RunLog(*log_args) if self.writes else NoLog()
        self.eval_sets: dict[str, list] = {}
        self.updates: dict = {}  # the compiled update of the current plan

    def _abstract(self, n_layers: int):
        run = self.run
        return abstract_state(run.cfg, n_layers, run.optimizer, run.mesh, run.rules)

    def _accept(self, meta: dict):
        """The abstract state of a checkpoint; raises UserError if it is not of this run."""
        run = self.run
        check_same_run(run, meta)
        return self._abstract(run.phase_of(meta["step"]).plan.n_unique)

    def run_phase(self, phase: Phase, stop) -> bool:
        """Runs the updates of a phase that are left; False when it was stopped."""
        run, config = self.run, self.config
        if self.step == phase.start and phase.order is not None:
            self.state = surgery.grow(self.state, phase.order, donate=True)
            say(f"step {self.step}: {phase.operator} to {phase.plan.n_unique} layers")
        batches = run.stream.batches(run.rows, self.step)
        batch = run.to_device(next(batches))
        compile_s = None
        if phase.plan not in self.updates:
            self.updates = {phase.plan: self._compile(phase, batch)}
            compile_s = self.compile_s
        update = self.updates[phase.plan]
        if self.writes:
            self._describe_parameters(phase)
        pending, last_time = None, time.monotonic()
        while self.step < phase.stop:
            self.state, metrics = update(self.state, batch)
            self.step += 1
            if self.step < phase.stop:
                batch = run.to_device(next(batches))
            # The device works on this step while the host writes down the one before.
            if pending:
                last_time = self._log_step(*pending, phase, last_time)
            pending = (self.step, metrics, compile_s)
            compile_s = None
            stopping = stop(self.step)
            saving = stopping or _due(self.step, config.checkpoint_every)
            evaluating = _due(self.step, config.eval_every) and self.step < config.steps
            if saving or evaluating or self.step == phase.stop:
                extra = self.evaluate(phase) if evaluating else {}
                last_time = self._log_step(*pending, phase, last_time, extra)
                pending = None
            if saving:
                self.save(phase)
            if stopping and self.step < config.steps:
                self.checkpoints.wait()
                return False
        return True

    def _compile(self, phase: Phase, batch):
        run = self.run
        begun = time.monotonic()
        fn = functools.partial(
            train_step,
            cfg=run.cfg,
            plan=phase.plan,
            optimizer=run.optimizer,
            schedule=run.schedule,
            microbatches=self.config.microbatches,
        )
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.state)
        jitted = jax.jit(fn, donate_argnums=0, out_shardings=(shardings, None))
        compiled = jitted.lower(self.state, batch).compile()
        seconds = time.monotonic() - begun
        n = flops.count_params(run.cfg, phase.plan.n_unique)
        say(
            f"step {self.step}..{phase.stop}: plan {phase.plan}, {n:,} parameters, "
            f"compiled in {seconds:.1f} s"
        )
        self.compile_s = seconds
        return compiled

    def _log_step(self, step, metrics, compile_s, phase, last_time, extra=()) -> float:
        """Writes the row of a step; raises UserError when its loss is not finite."""
        run = self.run
        loss, grad_norm = float(metrics["loss"]), float(metrics["grad_norm"])
        now = time.monotonic()
        if not (np.isfinite(loss) and np.isfinite(grad_norm)):
            self.checkpoints.wait()
            steps = self.checkpoints.steps()
            raise UserError(
                f"step {step}: loss {loss}, gradient norm {grad_norm}; stopped. "
                + (f"The last good checkpoint is of step {steps[-1]}" if steps else "None is saved")
            )
        speed = run.tokens_per_step / max(now - last_time, 1e-9)
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
        self.log.row({**row, **dict(extra)})
        return now

    def evaluate(self, phase: Phase) -> dict[str, float]:
        """Held-out negative log-likelihood (nats per token) and argmax accuracy.

        By source, and over all of them weighted by the mixture.
        """
        run, config = self.run, self.config
        step = jax.jit(functools.partial(eval_step, cfg=run.cfg, plan=phase.plan))
        out, total = {}, {"nll": 0.0, "accuracy": 0.0}
        weights = run.phases[-1].mixture
        for name, source in run.heldout.items():
            if name not in self.eval_sets:
                args = (config.batch_size, config.eval_batches, run.rows)
                self.eval_sets[name] = list(pipeline.heldout_batches(source, *args))
            sums = [step(self.state.params, run.to_device(b)) for b in self.eval_sets[name]]
            nll, hits, n = (sum(float(s[k]) for s in sums) for k in ("nll", "hits", "targets"))
            out[f"eval/{name}/nll"], out[f"eval/{name}/accuracy"] = nll / n, hits / n
            share = weights[name] / sum(weights.values())
            total["nll"] += share * nll / n
            total["accuracy"] += share * hits / n
        if not out:
            return {}
        return {"eval/nll": total["nll"], "eval/accuracy": total["accuracy"], **out}

    def save(self, phase: Phase) -> None:
        """Begins to save the state, unless this step is saved already."""
        if self.saved_step == self.step:
            return
        run = self.run
        self.checkpoints.save(
            self.step,
            self.state,
            {
                "plan": str(phase.plan),
                "lineage": curriculum.lineage(run.phases, self.step),
                "phases": curriculum.past(run.phases, self.step),
                "data": run.stream.fingerprint(self.step),
                "model": dataclasses.asdict(run.cfg),
                "config": self.config.to_dict(),
                "wall_clock_s": self.seconds(),
                "versions": versions(),
            },
        )
        self.saved_step = self.step

    def seconds(self) -> float:
        """Wall-clock of the run so far, earlier starts included."""
        return self.seconds_before + time.monotonic() - self.begun

    def finish(self) -> dict:
        """Saves, evaluates and writes result.json."""
        run, phase = self.run, self.run.phases[-1]
        self.save(phase)
        metrics = self.evaluate(phase)
        self.checkpoints.wait()
        rows = read_rows(self.workdir / "metrics.jsonl")
        result = {
            "steps": self.step,
            "tokens": self.step * run.tokens_per_step,
            "plan": str(phase.plan),
            "unique_layers": phase.plan.n_unique,
            "effective_layers": phase.plan.n_effective,
            "parameters": flops.count_params(run.cfg, phase.plan.n_unique),
            "training_flops": float(run.flops_until(self.step)),
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
        leaves, _ = jax.tree_util.tree_flatten_with_path(self.state.params)
        lines = [f"# plan {phase.plan}, from step {phase.start}: path, shape, dtype, sharding"]
        for path, leaf in leaves:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            lines.append(f"{name}\t{leaf.shape}\t{leaf.dtype}\t{tuple(leaf.sharding.spec)}")
        (self.workdir / "parameters.txt").write_text("\n".join(lines) + "\n")

    def close(self) -> None:
        self.log.close()
        self.checkpoints.close()


def check_same_run(run: Run, meta: dict) -> None:
    """Raises UserError when a checkpoint's past is not the past that the config describes."""
    step = meta["step"]
    problems = config_lib.contradictions(meta["config"], run.config.to_dict())
    if step > run.config.steps:
        problems.append(f"config.steps={run.config.steps} (the run is at step {step})")
    if not problems and meta["phases"] != curriculum.past(run.phases, step):
        problems.append("another depth, growth or mixture in the steps already made")
    saved = type(run.config)(meta["config"])
    if not problems and step:
        steps = np.arange(step, dtype=np.float32)
        if not np.array_equal(make_optimizer(saved)[1](steps), run.schedule(steps)):
            problems.append("another learning rate in the steps already made")
    if problems:
        raise UserError(
            "the checkpoint is of another run: " + "; ".join(problems) + "; take another --workdir"
        )
    # Another mixture from here on is another future, not another past.
    saved_next = curriculum.mixture_at(curriculum.build(saved), step)
    same_next = saved_next == curriculum.mixture_at(run.phases, step)
    pipeline.check_fingerprint(meta["data"], run.stream.fingerprint(step), probe=same_next)


def _check_workdir(run: Run, workdir: pathlib.Path) -> None:
    """Makes the directory, or checks that what it holds is this run."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / ".writable").touch()
        (workdir / ".writable").unlink()
    except OSError as error:
        raise UserError(f"--workdir {workdir} cannot be written: {error.strerror}") from None


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
