"""One training process in a directory: a lock that the kernel gives back when the process ends."""

import json
import os
import pathlib
import socket
import time

from loopjax.errors import UserError

try:
    import fcntl
except ImportError:  # no such locks on this platform: nothing is held, nothing refused
    fcntl = None

NAME = "lock"
PATIENCE_S = 1.0  # `holder` has the lock for an instant while it looks


class Lock:
    """The right to train in a directory, from `take` to the end of the `with` block.

    It is `flock` on DIR/lock, so it ends with the process, however that ends. Between machines it
    holds where the file system passes such locks on (NFS version 4, Lustre mounted with `flock`);
    where it does not, nothing keeps two
    machines apart.
    """

    def __init__(self, directory):
        self.path = pathlib.Path(directory) / NAME
        self._file: int | None = None

    def take(self) -> None:
        """Takes the lock; raises UserError where another process has it."""
        self._file, deadline = (
            os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666),
            _now() + PATIENCE_S,
        )
        while not grab(self._file):
            if _now() > deadline:
                by = _read(self._file)
                raise UserError(
                    f"--workdir {self.path.parent} is being trained by another process"
                    + (f" ({by['pid']} on {by['host']})" if by else "")
                    + "; wait for it or stop it"
                )
            time.sleep(0.05)
        devices = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        about = {"host": socket.gethostname(), "pid": os.getpid(), "devices": devices}
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, json.dumps(about).encode(), 0)

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *_) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def holder(directory) -> dict | None:
    """Who trains in a directory ("host", "pid", "devices"; {} where it does not say), if any does."""
    path = pathlib.Path(directory) / NAME
    if not held(path):
        return None
    try:
        with open(path) as file:
            return _read(file.fileno())
    except OSError:
        return {}


def held(path) -> bool:
    """Whether some process has the lock of a file."""
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        return not grab(file, shared=True)
    finally:
        os.close(file)


def grab(file: int, *, shared: bool = False) -> bool:
    """Takes the lock of an open file, which ends when no process has it open any more.

    Returns False where another has it, True also where there are no locks.
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # the file system has none
        pass
    return True


def _read(file: int) -> dict:
    try:
        return json.loads(os.pread(file, 4096, 0))
    except ValueError:
        return {}


def _now() -> float:
    return time.monotonic()
