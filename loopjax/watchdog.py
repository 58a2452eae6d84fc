"""Ends a process that hangs: no step for many times the time of a step."""

import collections
import contextlib
import faulthandler
import pathlib
import statistics
import threading
import time
from collections.abc import Callable

from loopjax.processes import RESTART
from loopjax.progress import duration
from loopjax.signals import end_process

KNOWN = 5  # steps before the time of a step counts as known


class Watchdog:
    """A thread that ends the process when no step is finished for too long. A context manager.

    What takes long for good reasons (compilation, evaluation, checkpoints, callbacks) is done
    within `off()`.

    Args:
      medians: median step times without a step that count as a hang; 0: never.
      least_s: but at least this many seconds.
      file: file that the stacks of all threads are written to.
      end: function of a sentence and an exit code that ends this process.
    """

    def __init__(
        self, medians: float, least_s: float, file: pathlib.Path,
        end: Callable[[str, int], None] = end_process,
    ):  # fmt: skip
        self.medians, self.least_s, self.file = medians, least_s, file
        self._end = end
        self._times: collections.deque[float] = collections.deque(maxlen=100)
        self._step = 0
        self._since: float | None = None  # when the last step was finished; None: off
        self._closed = threading.Event()

    def __enter__(self) -> "Watchdog":
        if self.medians:
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._closed.set()

    def step(self, step: int) -> None:
        """Tells that the process goes on: `step` updates are dispatched."""
        now = time.monotonic()
        if self._since is not None:
            self._times.append(now - self._since)
        self._step, self._since = step, now

    @contextlib.contextmanager
    def off(self):
        """A block whose time does not count."""
        since, begun = self._since, time.monotonic()
        self._since = None
        yield
        if since is not None:
            self._since = since + time.monotonic() - begun

    def _hangs(self, now: float, since: float | None) -> bool:
        if since is None or len(self._times) < KNOWN:
            return False
        return now - since > max(self.least_s, self.medians * statistics.median(self._times))

    def _watch(self) -> None:
        interval = min(1.0, self.least_s / 10)
        last = time.monotonic()
        while not self._closed.wait(interval):
            now, since = time.monotonic(), self._since
            if now - last > 10 * interval and since is not None:
                self._since = since + now - last  # the whole process was stopped meanwhile
            elif self._hangs(now, since):
                self._bark(now - since)
                return
            last = now

    def _bark(self, seconds: float) -> None:
        with open(self.file, "w") as file:
            faulthandler.dump_traceback(file, all_threads=True)
        self._end(
            f"loopjax: no step for {duration(seconds)} after step {self._step}, where a step takes "
            f"{statistics.median(self._times):.3g} s; the stacks of all threads are in {self.file}; "
            f"this process ends with exit code {RESTART}, rerun the same command to resume",
            RESTART,
        )
