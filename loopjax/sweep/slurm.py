"""The launcher on a Slurm cluster, by submitit: one array, a job for each point.

The jobs belong to the cluster: a stopped sweep leaves them queued or running, and finds them again
by DIR/slurm/jobs.json when it is rerun. A job that is preempted or reaches its time limit saves a
checkpoint and is queued again.
"""

import ast
import contextlib
import dataclasses
import os
import pathlib
import signal
import subprocess
import threading
import time

from loopjax.errors import UserError, first_line, require
from loopjax.files import write_json
from loopjax.sweep.local import start, stop_signals, summary, trainer_of
from loopjax.sweep.points import Point, read_if_complete
from loopjax.sweep.progress import Screen, done, failure, status

POLL_S = 5.0
REQUEUES = 1000  # time limits that a job may reach
GRACE_S = 300  # at most, between Slurm's signal and the end of the job
# Settings that submitit has for every cluster; others are passed to sbatch.
SHARED = (
    "name", "timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node", "tasks_per_node",
    "stderr_to_stdout",
)  # fmt: skip


@dataclasses.dataclass
class Job:
    """The function of a job: trains a point.

    With several tasks (`--slurm nodes=2`, `tasks_per_node=8`) each task is a process of the run.
    """

    point: Point
    grace_s: float = GRACE_S
    _process: subprocess.Popen | None = None

    def __call__(self) -> None:
        import submitit

        here, point = submitit.JobEnvironment(), self.point
        if here.num_tasks > 1:
            point = dataclasses.replace(point, command=[*point.command, "--distributed"])
        log = point.log.with_suffix(f".{here.global_rank}.log") if here.global_rank else point.log
        while point.result() is None:
            with _signal_held_back():
                self._process = start(point, log=log)
            if self._process is not None:
                break
            time.sleep(POLL_S)  # another process trains it
        else:
            return
        # Wait in a thread: `checkpoint` runs in a signal handler and must see the end too.
        waiting = threading.Thread(target=self._process.wait)
        waiting.start()
        while waiting.is_alive():
            time.sleep(0.2)
        code = self._process.returncode
        if code or (point.result() is None and not here.global_rank):
            raise RuntimeError(failure(point, code))

    def checkpoint(self):
        """Called by submitit before the job is queued again: the run saves and stops."""
        import submitit

        deadline = time.monotonic() + 0.8 * self.grace_s
        if self._process is not None:
            self._process.terminate()
            while self._process.returncode is None and time.monotonic() < deadline:
                time.sleep(0.1)
        return submitit.helpers.DelayedSubmission(Job(self.point, self.grace_s))


@contextlib.contextmanager
def _signal_held_back():
    """Blocks Slurm's signal, which is meant for the job alone, in processes started here."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def executor(directory: pathlib.Path, settings: list[str]):
    """submitit's executor; raises UserError if there is no Slurm or a setting is invalid.

    Args:
      directory: directory of the sweep.
      settings: "KEY=VALUE" for submitit: timeout_min, nodes, tasks_per_node, gpus_per_node,
        cpus_per_task, mem_gb, and options of sbatch: partition, account, array_parallelism, ...
    """
    submitit = _submitit()
    values = dict(_setting(text) for text in settings)
    limit = values.get("timeout_min")
    if not isinstance(limit, int) or limit < 1:
        raise UserError(
            "--slurm timeout_min=MINUTES (a whole number) is required: the time limit of a job, after "
            "which it is queued again"
        )
    grace = min(GRACE_S, 15 * limit)  # at most a quarter of the limit
    values = {"name": directory.absolute().name, "signal_delay_s": grace} | values
    named = {key if key in SHARED else f"slurm_{key}": value for key, value in values.items()}
    try:
        slurm = submitit.AutoExecutor(
            directory / "slurm", cluster="slurm", slurm_max_num_timeout=REQUEUES
        )
        slurm.update_parameters(**named)
    except RuntimeError:
        raise UserError("--launcher=slurm: srun was not found; is this a Slurm cluster?") from None
    except (NameError, ValueError, TypeError, AssertionError) as error:
        raise UserError(f"--slurm: {first_line(error)}") from None
    return slurm


def _submitit():
    """submitit, kept from setting up the logging of this process; UserError where it is missing."""
    name = "SUBMITIT_LOG_LEVEL"
    before = os.environ.get(name)
    os.environ[name] = "NOCONFIG"
    try:
        return require("submitit", "sweep", "--launcher=slurm")
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def _setting(text: str) -> tuple[str, object]:
    key, equals, value = text.partition("=")
    if not (key.isidentifier() and equals):
        raise UserError(f"--slurm {text!r} must be KEY=VALUE, such as partition=gpu")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


def run(points: list[Point], slurm, screen: Screen) -> bool:
    """Submits the unfinished points and watches them; returns whether all are finished at the end.

    `slurm` is the executor returned by `executor`.
    """
    import submitit

    record = pathlib.Path(slurm.folder) / "jobs.json"
    ids = read_if_complete(record) or {}
    todo = [point for point in points if point.result() is None]
    jobs = {p.name: submitit.SlurmJob(slurm.folder, ids[p.name]) for p in todo if p.name in ids}
    jobs = {name: job for name, job in jobs.items() if not job.done(force_check=True)}
    new = [p for p in todo if p.name not in jobs and trainer_of(p) is None]
    screen.say(
        f"{len(points)} points: {len(points) - len(todo)} finished, {len(todo) - len(new)} queued "
        f"or running, {len(new)} to submit"
    )
    if new:
        grace = slurm.parameters["signal_delay_s"]
        try:
            submitted = slurm.submit_array([Job(point, grace) for point in new])
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as e:
            raise UserError(f"--launcher=slurm: sbatch refused: {first_line(e)}") from None
        jobs |= {point.name: job for point, job in zip(new, submitted, strict=True)}
        write_json(record, ids | {name: job.job_id for name, job in jobs.items()})
        screen.say(
            f"submitted {', '.join(job.job_id for job in submitted)}; Ctrl-C does not stop the jobs"
        )
    with stop_signals() as asked:
        failed = _follow(todo, jobs, screen, asked)
    ending = "no longer watching; the jobs keep running" if asked else ""
    return summary(points, failed, screen, ending)


def _follow(todo: list[Point], jobs: dict, screen: Screen, asked: list[int]) -> dict[str, str]:
    """Watches until all points have ended or a signal arrives; returns {failed point: reason}."""
    failed = {}
    waiting = list(todo)
    while waiting and not asked:
        for point in list(waiting):
            job = jobs.get(point.name)
            over = trainer_of(point) is None if job is None else job.done()
            result = point.result()
            if result is not None:
                screen.say(done(point, result))
            elif over:
                failed[point.name] = _why(point, job)
                screen.say(f"failed   {point.name}  {failed[point.name]}")
            else:
                continue
            waiting.remove(point)
        screen.show([f"  {status(point)}" for point in waiting])
        deadline = time.monotonic() + POLL_S
        while waiting and not asked and time.monotonic() < deadline:
            time.sleep(0.1)
    return failed


def _why(point: Point, job) -> str:
    if job is None:
        return "stopped by the process that was training it"
    error = job.exception() if job.paths.result_pickle.exists() else None
    lines = [line for line in str(error or "").splitlines() if line.startswith("RuntimeError: ")]
    if lines:
        return lines[-1].removeprefix("RuntimeError: ")
    return f"job {job.job_id} ended without a result ({job.state}; {job.paths.stderr})"
