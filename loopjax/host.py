"""The training process and its machine: messages, the disk."""

import contextlib
import errno
import os
import pathlib

import jax

from loopjax import paths
from loopjax.errors import UserError
from loopjax.lock import Lock
from loopjax.progress import print_line

COMMITTED = "commit_success.txt"  # Orbax writes it last


def is_main() -> bool:
    """Whether this is process 0, the one that writes logs and messages."""
    return jax.process_index() == 0


def say(text: str) -> None:
    """Prints one line on standard error, from process 0 only; nothing for an empty text."""
    if text and is_main():
        print_line(text)


@contextlib.contextmanager
def disk_errors_explained(workdir: pathlib.Path, lock: Lock):
    """Turns the error of a full disk, or of a directory that is gone, into one sentence."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, UserError):
            lock.check()
        full = os.strerror(errno.ENOSPC)
        # TensorStore and Orbax report it as text in errors of their own.
        if full not in str(error) and getattr(error, "errno", None) != errno.ENOSPC:
            raise
        raise UserError(
            f"--workdir {workdir}: {full}; {last_good(saved_steps(workdir))}; free some space and rerun the same "
            "command to resume"
        ) from error


def saved_steps(workdir: pathlib.Path) -> list[int]:
    """Steps of the complete checkpoints of a run, ascending."""
    folders = (workdir / "checkpoints").glob("*")
    return sorted(int(f.name) for f in folders if f.name.isdecimal() and is_complete(f))


def is_complete(checkpoint: pathlib.Path) -> bool:
    """Whether the save of a checkpoint that has its final name came to its end.

    A local one gets the name when it is complete. Objects cannot be renamed together: in a bucket
    Orbax writes one more when all others are there.
    """
    return not paths.is_remote(checkpoint) or (checkpoint / COMMITTED).is_file()


def last_good(steps: list[int]) -> str:
    """The part of an error message that names the newest of the saved steps."""
    return f"the last good checkpoint is step {steps[-1]}" if steps else "no checkpoint is saved"
