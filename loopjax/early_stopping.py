"""Early stopping: `config.patience` evaluations without a better one end the run."""

import math

from loopjax.step_grid import due, log_spaced


class EarlyStopping:
    """Decides after each step whether to evaluate, to save and to stop.

    With patience, a run saves the states of its best evaluations only, so that its newest
    checkpoint is its best one, and a resumed run counts from there. Without (0), it evaluates and
    saves at regular intervals and never stops early.

    Args:
      config: config of the run.
      step: updates done at the start of the run or, for a resumed run, at its newest checkpoint.
      heldout: evaluation saved with that checkpoint; {} if there is none.

    Attributes:
      best_step: step of the best evaluation so far.
      best: metrics of that evaluation.
    """

    def __init__(self, config, step: int, heldout: dict):
        self.config = config
        self.best_step = step
        self.best = heldout

    @property
    def enabled(self) -> bool:
        return self.config.patience > 0

    def evaluates(self, step: int) -> bool:
        """Whether to evaluate after `step` updates."""
        return step == self.config.steps or self.scheduled(step)

    def scheduled(self, step: int) -> bool:
        """Whether an evaluation after `step` updates is one of a run of any length."""
        config = self.config
        return due(step, config.eval_every) or log_spaced(step, config.eval_per_decade)

    def saves(self, step: int, stopping: bool) -> bool:
        """Whether to save after `step` updates, whatever their evaluation."""
        config = self.config
        return not self.enabled and (
            stopping
            or due(step, config.checkpoint_every)
            or log_spaced(step, config.keep_per_decade)
        )

    def improves(self, step: int, heldout: dict) -> bool:
        """Whether an evaluation is the best one so far, which is then to be saved."""
        if not self.enabled or not heldout:
            return False
        if not heldout["eval/nll"] < self.best.get("eval/nll", math.inf):  # nan is no improvement
            return False
        self.best_step = step
        self.best = heldout
        return True

    def exhausted(self, step: int) -> bool:
        """Whether to stop after `step` updates, the best evaluation being too long ago."""
        return self.enabled and step - self.best_step >= self._steps

    def is_final(self, result: dict) -> bool:
        """Whether a result is the end of this run, which is at its best step."""
        if not self.enabled or result.get("steps") != self.best_step:
            return False
        stopped_at = result.get("stopped_at", 0)
        return stopped_at - self.best_step >= self._steps or stopped_at == self.config.steps

    @property
    def _steps(self) -> int:
        """Patience in steps."""
        return self.config.patience * self.config.eval_every
