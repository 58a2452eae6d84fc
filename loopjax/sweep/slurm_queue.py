"""The jobs that Slurm knows, as squeue lists them: unlike sacct, it needs no accounting database."""

import os
import subprocess

from loopjax.errors import UserError, first_line

JOBS = "jobs.json"  # {point: job}, in the directory "slurm" of a sweep
TIMEOUT_S = 60.0
# What became of a job in each state that is final; in any other it is queued or running.
ENDED = {
    "BOOT_FAIL": "got no node that starts",
    "CANCELLED": "was cancelled",
    "COMPLETED": "ended without a result",
    "DEADLINE": "reached its deadline",
    "FAILED": "failed",
    "NODE_FAIL": "lost its node",
    "OUT_OF_MEMORY": "ran out of memory",
    "PREEMPTED": "was preempted",
    "REVOKED": "was revoked",
    "TIMEOUT": "was ended at its time limit",
}


def listed_jobs() -> dict[str, tuple[str, str]]:
    """{job: (state, reason)} of the jobs of this user, as long as Slurm remembers them.

    It forgets a job MinJobAge seconds after its end (by default 300). Raises UserError if squeue
    fails.
    """
    command = [
        "squeue", "--noheader", "--array", "--states=all", f"--user={os.getuid()}",
        "--format=%i|%T|%r",
    ]  # fmt: skip
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"--launcher=slurm: squeue: {first_line(error)}") from None
    if answer.returncode:
        says = answer.stderr.strip().splitlines() or [f"exit code {answer.returncode}"]
        raise UserError(f"--launcher=slurm: squeue: {says[-1].removeprefix('squeue: ')}")
    rows = [line.split("|") for line in answer.stdout.splitlines()]
    return {row[0]: (row[1], row[2]) for row in rows if len(row) == 3}
