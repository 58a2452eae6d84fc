"""The metrics of an update, from the device to a row of metrics.jsonl."""

import time

import jax
import numpy as np

from loopjax import flops
from loopjax.checkpoint import Checkpoints
from loopjax.curriculum import Phase
from loopjax.errors import UserError
from loopjax.host import last_good
from loopjax.run import Run


class StepMetrics:
    """Turns the metrics of updates into rows, one step late.

    Reading a metric waits for the device. `push` therefore returns the row of the step before,
    which is complete or nearly so, while the device works on the step that was just dispatched.
    """

    def __init__(self, run: Run, checkpoints: Checkpoints):
        self.run = run
        self.checkpoints = checkpoints
        self.peak_flops = flops.peak_flops(jax.devices()[0])
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

        Raises UserError when its loss or gradient is not finite.
        """
        step, metrics = self._pending
        self._pending = None
        run = self.run
        loss, grad_norm = float(metrics["loss"]), float(metrics["grad_norm"])
        now = time.monotonic()
        speed = run.tokens_per_step / max(now - self._time, 1e-9)
        self._time = now
        if not (np.isfinite(loss) and np.isfinite(grad_norm)):
            # The save of an earlier step may still be under way.
            self.checkpoints.wait()
            raise UserError(
                f"step {step}: loss {loss}, {largest_gradient(metrics['grad_norms'])}; stopped, "
                f"{last_good(self.checkpoints.steps())}"
            )
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
            "plan": str(self.phase.plan),
        }
        if self.peak_flops:
            flops_per_s = run.flops_per_step(self.phase) * speed / run.tokens_per_step
            row["mfu"] = flops_per_s / (self.peak_flops * jax.device_count())
        if self._compile_s is not None:
            row["compile_s"] = self._compile_s
            self._compile_s = None
        return row


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
