"""The launcher on a Slurm cluster, by submitit: one array, a job for each point.

The jobs belong to the cluster: a stopped sweep leaves them queued or running, and finds them again
by DIR/slurm/jobs.json when it is rerun. `slurm_job` is what runs in a job. The state of the jobs
comes from squeue (`slurm_queue`).
"""

import ast
import collections
import contextlib
import io
import os
import pathlib
import time

from loopjax.errors import UserError, first_line, require
from loopjax.files import write_json
from loopjax.sweep import branches, directory
from loopjax.sweep.local import stop_signals, summary, trainer_of
from loopjax.sweep.logs import how_ended, last_line
from loopjax.sweep.points import Point, read_if_complete
from loopjax.sweep.progress import Screen, done, status
from loopjax.sweep.slurm_job import GRACE_S, POLL_S, Job
from loopjax.sweep.slurm_queue import ENDED, JOBS, listed_jobs

QUEUE_S = 10.0  # between two calls of squeue
REQUEUES = 1000  # time limits that a job may reach
LATE_S = 60.0  # that a file may take to be seen on another machine
# Settings that submitit has for every cluster; others are passed to sbatch.
SHARED = (
    "name", "timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node", "tasks_per_node",
    "stderr_to_stdout",
)  # fmt: skip
NEVER = "DependencyNeverSatisfied"  # the reason of a cancelled job


def executor(workdir: pathlib.Path, settings: list[str]):
    """submitit's executor; raises UserError if there is no Slurm or a setting is invalid.

    Args:
      workdir: directory of the sweep.
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
    values = {"name": workdir.absolute().name, "signal_delay_s": grace} | values
    # Clusters with JobRequeue=0 queue a job again only if it asks for it. A job whose base has
    # failed would stay in the queue.
    ours = {"requeue": True, "kill-on-invalid-dep": "yes"}
    more = values.get("additional_parameters", {})
    values["additional_parameters"] = ours | more if isinstance(more, dict) else more
    if "cpus_per_task" in values:  # srun does not take it from sbatch, since Slurm 22.05
        values.setdefault("srun_args", [f"--cpus-per-task={values['cpus_per_task']}"])
    named = {key if key in SHARED else f"slurm_{key}": value for key, value in values.items()}
    try:
        slurm = submitit.AutoExecutor(
            workdir / "slurm", cluster="slurm", slurm_max_num_timeout=REQUEUES
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

    ids = read_if_complete(slurm.folder / JOBS) or {}
    todo = branches.in_order([point for point in points if point.result() is None])
    listed = listed_jobs()
    jobs = {
        point.name: submitit.SlurmJob(slurm.folder, ids[point.name])
        for point in todo
        if listed.get(ids.get(point.name), ("COMPLETED", ""))[0] not in ENDED
    }
    new = [p for p in todo if p.name not in jobs and trainer_of(p) is None]
    screen.say(
        f"{len(points)} points: {len(points) - len(todo)} finished, {len(todo) - len(new)} queued "
        f"or running, {len(new)} to submit"
    )
    with stop_signals() as asked:
        held = _submit_all(new, jobs, slurm, screen)
        watched = [point for point in todo if point not in held]
        failed, blocked = _Watch(watched, jobs, screen, asked).run()
    blocked |= {point.name: f"waits for {point.base}, which has no job" for point in held}
    ending = "no longer watching; the jobs keep running" if asked else ""
    return summary(points, failed, screen, ending, blocked)


def _submit_all(points: list[Point], jobs: dict, slurm, screen: Screen) -> list[Point]:
    """Submits points and adds their jobs to `jobs`, {name: job}.

    A point that branches from another waits in the queue for the success of its job. Returns the
    points that cannot be submitted, because there is no such job.
    """
    while groups := _groups(points, jobs):
        for after, group in groups.items():
            submitted = _submit(group, slurm, after)
            jobs |= submitted
            ids = {name: job.job_id for name, job in submitted.items()}
            write_json(slurm.folder / JOBS, (read_if_complete(slurm.folder / JOBS) or {}) | ids)
            points = [point for point in points if point.name not in submitted]
            behind = f", after {after}" if after else ""
            screen.say(
                f"submitted {', '.join(ids.values())}{behind}; Ctrl-C does not stop the jobs"
            )
    return points


def _groups(points: list[Point], jobs: dict) -> dict[str, list[Point]]:
    """The points that can be submitted, by the job that they must wait for ("" for none)."""
    groups: dict[str, list[Point]] = {}
    for point in points:
        if branches.ready(point):
            groups.setdefault("", []).append(point)
        elif point.base.name in jobs:
            groups.setdefault(jobs[point.base.name].job_id, []).append(point)
    return groups


def _submit(points: list[Point], slurm, after: str = "") -> dict:
    """Submits an array of points, which waits for the success of the job `after`.

    Returns {name: job}; raises UserError if sbatch refuses.
    """
    import submitit

    given = slurm.parameters.get("dependency")
    terms = ([given] if given else []) + ([f"afterok:{after}"] if after else [])
    slurm.parameters["dependency"] = ",".join(terms) or None
    grace = slurm.parameters["signal_delay_s"]
    try:
        # submitit prints what sbatch says, too.
        with _outside_of_a_job(), contextlib.redirect_stderr(io.StringIO()):
            jobs = slurm.submit_array([Job(point, grace) for point in points])
    except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
        says = first_line(error).removeprefix("sbatch: ").removeprefix("error: ")
        raise UserError(f"--launcher=slurm: sbatch refused {len(points)} job(s): {says}") from None
    finally:
        slurm.parameters["dependency"] = given
    return {point.name: job for point, job in zip(points, jobs, strict=True)}


@contextlib.contextmanager
def _outside_of_a_job():
    """Hides the variables of a job that the sweep itself runs in, which sbatch would pass on."""
    hidden = {}
    if "SLURM_JOB_ID" in os.environ:
        names = [n for n in os.environ if n.startswith(("SLURM_", "SRUN_")) and n != "SLURM_CONF"]
        hidden = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(hidden)


class _Watch:
    """Watches points until all have ended or a signal arrives."""

    def __init__(self, todo: list[Point], jobs: dict, screen: Screen, asked: list[int]):
        self.waiting = list(todo)
        self.jobs = jobs
        self.screen = screen
        self.asked = asked  # signals received so far
        self.listed: dict[str, tuple[str, str]] = {}
        self.listed_at = float("-inf")
        self.silent = False  # whether squeue failed last
        self.completed: dict[str, float] = {}  # when the job of a point without a result was done

    def run(self) -> tuple[dict[str, str], dict[str, str]]:
        """Returns the failed points and those that wait for a failed one, each with the reason."""
        failed, blocked = {}, {}
        while self.waiting and not self.asked:
            fresh = self._ask()
            for point in list(self.waiting):
                result = point.result()
                if result is not None:
                    self.screen.say(done(point, result))
                elif not self._over(point, fresh):
                    continue
                elif point.name in self.jobs and self._state(point)[1] == NEVER:
                    blocked[point.name] = f"waits for {point.base}, which failed"
                else:
                    failed[point.name] = self._why(point)
                    if directory.ended(point.workdir).get("how") != directory.FAILED:
                        reason = failed[point.name]
                        directory.record(point.workdir, directory.FAILED, reason=reason)
                    self.screen.say(f"failed   {point.name}  {failed[point.name]}")
                self.waiting.remove(point)
            self.screen.show(self._lines())
            deadline = time.monotonic() + POLL_S
            while self.waiting and not self.asked and time.monotonic() < deadline:
                time.sleep(0.1)
        return failed, blocked

    def _ask(self) -> bool:
        """Asks Slurm for the states of the jobs when it is time; whether it answered."""
        if time.monotonic() < self.listed_at + QUEUE_S:
            return False
        self.listed_at = time.monotonic()
        try:
            self.listed = listed_jobs()
        except UserError as error:
            if not self.silent:
                self.screen.say(f"{error}; asking again every {QUEUE_S:g} s")
            self.silent = True
            return False
        self.silent = False
        return True

    def _state(self, point: Point) -> tuple[str, str]:
        """(state, reason) of the job of a point; a job that Slurm has forgotten is completed."""
        return self.listed.get(self.jobs[point.name].job_id, ("COMPLETED", ""))

    def _over(self, point: Point, fresh: bool) -> bool:
        """Whether a point without a result will not get one; jobs are judged by fresh states."""
        if point.name not in self.jobs:
            return trainer_of(point) is None
        if not fresh:
            return False
        state, _ = self._state(point)
        if state == "COMPLETED":  # so the result was written, but is not seen here yet
            now = time.monotonic()
            return now - self.completed.setdefault(point.name, now) >= LATE_S
        return state in ENDED

    def _lines(self) -> list[str]:
        """The runs that have begun, and how many have not, with Slurm's reason."""
        lines, queued = [], collections.Counter()
        for point in self.waiting:
            state, reason = self._state(point) if point.name in self.jobs else ("RUNNING", "")
            waits = "" if state in ("RUNNING", "COMPLETED") else f"{state.lower()} ({reason})"
            if waits and not point.log.exists():
                queued[waits] += 1
            else:
                lines.append(f"  {status(point)}  {waits}".rstrip())
        return lines + [f"  {n} {waits}" for waits, n in queued.items()]

    def _why(self, point: Point) -> str:
        if point.name not in self.jobs:
            return "stopped by the process that was training it"
        job, (state, _) = self.jobs[point.name], self._state(point)
        ended = directory.ended(point.workdir)
        if state == "FAILED" and ended.get("how") == directory.FAILED:  # as the job has written
            code = ended.get("exit_code")
            how = "" if code is None else f"{how_ended(code)}: "
            return f"{how}{ended.get('reason')} (log: {point.log})"
        more = f": {last_line(job.paths.stderr)}" if state == "FAILED" else ""
        return f"job {job.job_id} {ENDED[state]}{more} (log: {job.paths.stderr})"
