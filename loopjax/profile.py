"""A trace of some steps of a run, to be read with XProf."""

import pathlib
import re

import jax

from loopjax.errors import UserError
from loopjax.host import is_main, say


class Profile:
    """Traces the steps FIRST to LAST of a run in process 0. A context manager.

    The trace is written when it is left, or by `stop` after the last step.

    Args:
      steps: "FIRST:LAST", both included; None for no trace.
      last_step: steps of the run.
      directory: directory that the trace is written to.

    Raises UserError for text that does not name steps of the run.
    """

    def __init__(self, steps: str | None, last_step: int, directory: pathlib.Path):
        self.first, self.last = parsed(steps, last_step) if steps is not None else (1, 0)
        self.directory = directory
        self._tracing = False

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def starts(self, step: int) -> bool:
        """Whether to start before this step; a run that resumes between the two traces the rest."""
        return is_main() and not self._tracing and self.first <= step <= self.last

    def stops(self, step: int) -> bool:
        """Whether to stop after this step."""
        return self._tracing and step >= self.last

    def start(self) -> None:
        """Starts the trace."""
        jax.profiler.start_trace(self.directory)
        self._tracing = True

    def stop(self) -> None:
        """Writes the trace, if there is one; wait for the device before."""
        if not self._tracing:
            return
        self._tracing = False
        jax.profiler.stop_trace()
        say(f"the trace is in {self.directory}")


def parsed(steps: str, last_step: int) -> tuple[int, int]:
    """(FIRST, LAST) of "FIRST:LAST"; raises UserError unless they are steps of the run, in order."""
    match = re.fullmatch("([0-9]{1,18}):([0-9]{1,18})", steps)
    first, last = map(int, match.groups()) if match else (0, 0)
    if not 1 <= first <= last <= last_step:
        raise UserError(
            f"--profile_steps={steps!r} must be FIRST:LAST, two of the steps 1 to {last_step} of the "
            "run in this order, like 10:15"
        )
    return first, last
