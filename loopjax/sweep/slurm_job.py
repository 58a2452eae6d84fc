"""What runs in a Slurm job: the training of a point, stopped and queued again when its time is over.

Slurm ends a job in two ways. At the time limit it first sends SIGUSR2: submitit's handler calls
`Job.checkpoint` and queues the job again. For `scancel`, a preemption or `scontrol requeue` it sends
SIGTERM, and SIGKILL after KillWait seconds; whether the job runs again is then up to Slurm.
"""

import contextlib
import dataclasses
import pathlib
import signal
import subprocess
import sys
import threading
import time

from loopjax.processes import RESTART
from loopjax.sweep import directory
from loopjax.sweep.local import start
from loopjax.sweep.logs import last_line
from loopjax.sweep.points import Point, read_if_complete

POLL_S = 5.0
GRACE_S = 300  # at most, between Slurm's signal and the end of the job
TRIES = 3  # times in a row that a job may end without having saved a step


@dataclasses.dataclass
class Job:
    """The function of a job: trains a point.

    With several tasks (`--slurm nodes=2`, `tasks_per_node=8`) each task is a process of the run.

    Attributes:
      point: the point.
      grace_s: seconds between Slurm's SIGUSR2 and the end of the job.
      saved: newest saved step when the job was queued again; -1 before.
      stalled: times that the job was queued again since that step was saved.
    """

    point: Point
    grace_s: float = GRACE_S
    saved: int = -1
    stalled: int = 0
    _task: int = 0
    _process: subprocess.Popen | None = None
    _terminated: bool = False

    def __call__(self) -> None:
        import submitit

        here, point = submitit.JobEnvironment(), self.point
        self._task = here.global_rank
        signal.signal(signal.SIGTERM, self._terminate)  # submitit ignores it
        if here.num_tasks > 1:
            point = dataclasses.replace(point, command=[*point.command, "--distributed"])
        log = point.log.with_suffix(f".{self._task}.log") if self._task else point.log
        code = self._train(point, log)
        if code == 0 and (self._task or point.result() is not None):
            return
        if not self._terminated and (code == RESTART or (code < 0 and here.num_tasks > 1)):
            # A process was lost. In task 0 submitit's handler queues the job again and exits; the
            # others wait until Slurm ends them.
            signal.raise_signal(signal.SIGUSR2)
            deadline = time.monotonic() + self.grace_s
            while not self._terminated and time.monotonic() < deadline:
                time.sleep(0.2)
        if self._terminated:  # no failure: the job may be queued again
            sys.exit(128 + signal.SIGTERM)
        self._fail(code, last_line(log))

    def _train(self, point: Point, log: pathlib.Path) -> int:
        """The exit code of the training; 0 if another process has finished the point."""
        while point.result() is None and not self._terminated:
            with _signal_held_back():
                self._process = start(point, log=log)
            if self._process is not None:
                break
            time.sleep(POLL_S)  # another process trains it
        else:
            return 0
        if self._terminated:  # while it was started
            self._process.terminate()
        # Wait in a thread: `checkpoint` runs in a signal handler and must see the end too.
        waiting = threading.Thread(target=self._process.wait)
        waiting.start()
        while waiting.is_alive():
            time.sleep(0.2)
        return self._process.returncode

    def _terminate(self, signum, frame) -> None:
        """The job ends: the run saves and stops. Slurm may have sent it the signal, too."""
        self._terminated = True
        if self._process is not None:
            self._process.terminate()

    def _fail(self, code: int | None, reason: str) -> None:
        """Ends the job and says why, for the sweep and for whoever asks without one."""
        if self._task == 0:
            directory.record(self.point.workdir, directory.FAILED, exit_code=code, reason=reason)
        raise RuntimeError(reason)

    def checkpoint(self):
        """Called by submitit before the job is queued again: the run saves and stops.

        Raises RuntimeError if the job has ended `TRIES` times in a row without saving a step.
        """
        import submitit

        deadline = time.monotonic() + 0.8 * self.grace_s
        if self._process is not None:
            self._process.terminate()
            while self._process.returncode is None and time.monotonic() < deadline:
                time.sleep(0.1)
        newest = read_if_complete(self.point.workdir / "checkpoints.json") or {}
        saved = newest.get("newest", -1)
        stalled = 0 if saved > self.saved else self.stalled + 1
        if stalled == TRIES:
            code = self._process.returncode if self._process else None
            last = last_line(self.point.log)
            self._fail(code, f"ended {TRIES} times in a row without saving a step; {last}")
        return submitit.helpers.DelayedSubmission(Job(self.point, self.grace_s, saved, stalled))


@contextlib.contextmanager
def _signal_held_back():
    """Blocks Slurm's signal, which is meant for the job alone, in processes started here."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
