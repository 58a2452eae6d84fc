"""The training process and its machine: messages, signals, the disk."""

import contextlib
import errno
import os
import pathlib
import signal
import sys

import jax
from jax.experimental import multihost_utils

from loopjax.errors import UserError


def is_main() -> bool:
    """Whether this is process 0, the one that writes logs and messages."""
    return jax.process_index() == 0


def say(text: str) -> None:
    """Prints one line on standard error, from process 0 only; nothing for an empty text."""
    if text and is_main():
        print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def stop_on_signal():
    """Yields a function of the step that returns whether to save and stop now.

    SIGTERM and the first SIGINT request a stop; a second SIGINT interrupts at once.
    """
    if jax.process_count() > 1:
        # All processes have to stop after the same step; JAX's preemption service agrees on one.
        yield multihost_utils.reached_preemption_sync_point
        return
    requests = []

    def request(signum, frame):
        requests.append(signum)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    handlers = {s: signal.signal(s, request) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda step: bool(requests)
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)


def check_writable(workdir: pathlib.Path) -> None:
    """Creates the directory; raises UserError when it cannot be written."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / ".writable").touch()
        (workdir / ".writable").unlink()
    except OSError as error:
        raise UserError(f"--workdir {workdir} cannot be written: {error.strerror}") from None


@contextlib.contextmanager
def full_disk_explained(workdir: pathlib.Path):
    """Turns the error of a full disk, from whichever library, into one sentence."""
    try:
        yield
    except Exception as error:
        full = os.strerror(errno.ENOSPC)
        # TensorStore and Orbax report it as text in errors of their own.
        if full not in str(error) and getattr(error, "errno", None) != errno.ENOSPC:
            raise
        folders = (workdir / "checkpoints").glob("*")
        steps = sorted(int(folder.name) for folder in folders if folder.name.isdecimal())
        raise UserError(
            f"--workdir {workdir}: {full}; {last_good(steps)}; free some space and rerun the same "
            "command to resume"
        ) from error


def last_good(steps: list[int]) -> str:
    """The part of an error message that names the newest of the saved steps."""
    return f"the last good checkpoint is step {steps[-1]}" if steps else "no checkpoint is saved"
