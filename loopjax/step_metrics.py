"""The metrics of an update, from the device to a row of metrics.jsonl."""

import collections
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

from loopjax import devices
from loopjax.checkpoint import Checkpoints
from loopjax.curriculum import Phase
from loopjax.errors import UserError
from loopjax.files import read_rows
from loopjax.host import last_good, say
from loopjax.ledger import Ledger
from loopjax.run import Run


class StepMetrics:
    """Turns the metrics of updates into rows, one step late.

    Reading a metric waits for the device. `push` therefore returns the row of the step before,
    which is complete or nearly so, while the device works on the step that was just dispatched.

    Args:
      checkpoints: checkpoints of the run, named when it has to stop.
      ledger: clock of the run.
      bad_steps: updates in a row that were skipped before the first one.
    """

    def __init__(self, run: Run, checkpoints: Checkpoints, ledger: Ledger, bad_steps: int = 0):
        self.run = run
        self.ledger = ledger
        self.bad_steps = bad_steps
        self.checkpoints = checkpoints
        self.chip = devices.of(jax.devices()[0])
        self._pending: tuple | None = None

    def start_phase(self, phase: Phase, compile_s: float | None) -> None:
        """Begins a phase; `compile_s` is added to its first row, None if nothing was compiled."""
        self.phase = phase
        self._compile_s = compile_s
        self.restart_clock()

    def restart_clock(self) -> None:
        """Excludes the time since the last row from the speed of the next one."""
        self._time = time.monotonic()

    def push(self, step: int, metrics: dict) -> dict | None:
        """Takes the metrics of a step, still on the device; returns the row before, if any."""
        row = self.flush() if self._pending else None
        self._pending = step, metrics
        return row

    def flush(self) -> dict:
        """The row of the last step; waits for the device.

        Raises UserError when its loss or gradient is not finite, unless the update was skipped and
        `config.skip_bad_steps` in a row are not reached.
        """
        step, metrics = self._pending
        self._pending = None
        run = self.run
        loss, grad_norm = float(metrics["loss"]), float(metrics["grad_norm"])
        now = time.monotonic()
        speed = run.tokens_per_step / max(now - self._time, 1e-9)
        self._time = now
        skipped = bool(metrics.get("skipped", False))
        self.bad_steps = self.bad_steps + 1 if skipped else 0
        if skipped or not (np.isfinite(loss) and np.isfinite(grad_norm)):
            reason = f"step {step}: loss {loss}, {largest_gradient(metrics['grad_norms'])}"
            if not skipped or self.bad_steps >= run.config.skip_bad_steps:
                # The save of an earlier step may still be under way.
                self.checkpoints.wait()
                many = f"{self.bad_steps} such steps in a row; " if skipped else ""
                raise UserError(f"{reason}; {many}stopped, {last_good(self.checkpoints.steps())}")
            say(f"{reason}; this update is skipped, {self.bad_steps} in a row")
        row = {
            "step": step,
            "loss": loss,
            "grad_norm": grad_norm,
            "learning_rate": float(metrics["learning_rate"]),
            # Additional terms of the loss, if the model has any.
            **{key: float(value) for key, value in metrics.items() if key.startswith("losses/")},
            "tokens": step * run.tokens_per_step,
            "tokens_per_s": speed,
            "flops": float(run.flops_until(step)),
            "wall_clock_s": self.ledger.total(),
            "plan": str(self.phase.plan),
        }
        if skipped:
            row["skipped"] = 1.0
        if "repeats" in metrics:
            row["repeats"] = int(metrics["repeats"])
        seconds = run.tokens_per_step / speed
        row |= utilization(self.chip, seconds, lambda **k: run.flops_per_step(self.phase, **k))
        if step % run.config.log_every == 0 or step == run.config.steps:
            row |= norms_by_part(metrics["grad_norms"])
        if self._compile_s is not None:
            row["compile_s"] = self._compile_s
            self._compile_s = None
        return row


def utilization(chip: devices.Chip | None, seconds: float, count) -> dict[str, float]:
    """{"mfu", "mfu_causal"}: model FLOPs per second over the peak of all devices; {} if unknown.

    "mfu" counts attention to the whole context, "mfu_causal" to the half that is not masked.

    Args:
      count: function of `causal` that returns the FLOPs of `seconds`.
    """
    if chip is None:
        return {}
    peak = chip.peak_flops * jax.device_count() * seconds
    return {"mfu": count(causal=False) / peak, "mfu_causal": count(causal=True) / peak}


def norms_by_part(grad_norms) -> dict[str, float]:
    """Norms of the gradient by layer and by kind of parameter; waits for the device.

    {"grad_norm/layer_00": ..., "grad_norm/query": ... of all layers, "grad_norm/embed": ...}. The
    squares of the layers add up to those of the kinds that layers have, and the squares of all
    kinds to that of "grad_norm".

    Args:
      grad_norms: norms of every parameter; [U] for stacked ones.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(jax.device_get(grad_norms))
    layers: dict[int, float] = collections.defaultdict(float)
    kinds = {}
    for path, leaf in leaves:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        squares = np.square(np.asarray(leaf, np.float64))
        kinds[name.removeprefix("layers/")] = float(np.sqrt(squares.sum()))
        for layer, square in enumerate(squares) if squares.ndim else ():
            layers[layer] += float(square)
    by_layer = {f"layer_{i:02d}": float(np.sqrt(square)) for i, square in layers.items()}
    return {f"grad_norm/{name}": norm for name, norm in (by_layer | kinds).items()}


@jax.jit
def _all_finite(tree):
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def all_finite(params) -> bool:
    """Whether no parameter is nan or infinite; waits for the device."""
    return bool(_all_finite(params))


def trailing_bad_steps(workdir: pathlib.Path, step: int) -> int:
    """How many of the last updates before a resumed `step` were skipped, by metrics.jsonl."""
    count = 0
    for row in read_rows(workdir / "metrics.jsonl"):
        if row["step"] <= step:
            count = count + 1 if "skipped" in row else 0
    return count


def largest_gradient(grad_norms) -> str:
    """Names the parameter and layer of the largest gradient norm; nan counts as the largest."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(grad_norms)
    candidates = []
    for path, leaf in leaves:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        norms = np.asarray(leaf).reshape(-1)
        worst = int(np.argmax(np.where(np.isnan(norms), np.inf, norms)))
        layer = f" of layer {worst}" if leaf.ndim else ""
        candidates.append((float(norms[worst]), f"{name}{layer}"))
    if all(np.isnan(norm) for norm, _ in candidates):
        return "all gradients are nan"
    norm, name = max(candidates, key=lambda item: np.inf if np.isnan(item[0]) else item[0])
    return f"the largest gradient is that of {name} (norm {norm:.3g})"
