"""At most one training process per directory, ensured by a lock that the kernel releases when the process ends.

In a bucket it is a lease (`lease.py`).
"""

import json
import os
import pathlib
import socket
import time

from loopjax import paths
from loopjax.errors import UserError

try:
    import fcntl
except (
    ImportError
):  # a platform without file locks: every lock is granted, none is reported as held
    fcntl = None

NAME = "lock"
PATIENCE_S = 1.0  # `holder` takes the lock for an instant to test it


def lock_of(directory):
    """The lock of a directory, not taken: a `Lock`, or a `lease.Lease` for one of a bucket."""
    path = paths.of(directory) / NAME
    if not paths.is_remote(path):
        return Lock(directory)
    from loopjax.lease import Lease  # imports TensorStore

    return Lease(path)


class Lock:
    """The right to train in a directory, from `take` to the end of the `with` block.

    It is `flock` on DIR/lock, so it is released however the process ends. It works across
    machines if the file system forwards such locks (NFS version 4, Lustre mounted with `flock`);
    otherwise two machines can train in one directory.
    """

    def __init__(self, directory):
        self.path = pathlib.Path(directory) / NAME
        self._file: int | None = None

    def take(self) -> None:
        """Takes the lock; raises UserError when another process has it."""
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        deadline = time.monotonic() + PATIENCE_S
        while not grab(self._file):
            if time.monotonic() > deadline:
                owner = _read(self._file)
                raise UserError(
                    f"--workdir {self.path.parent} is being trained by another process"
                    + (f" ({owner['pid']} on {owner['host']})" if owner else "")
                    + "; wait for it or stop it"
                )
            time.sleep(0.05)
        owner = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "devices": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
        }
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, json.dumps(owner).encode(), 0)

    def check(self) -> None:
        """Raises UserError when the directory of a lock that was taken is not there any more."""
        if self._file is None:
            return
        try:
            there = os.stat(self.path)
        except OSError:
            there = None
        if there is None or not os.path.samestat(there, os.fstat(self._file)):
            raise UserError(
                f"--workdir {self.path.parent} was removed or replaced while the run was training "
                "in it; start the run again"
            )

    def owner(self) -> dict:
        """What the process that has the lock wrote into the file; {} if it cannot be read."""
        try:
            return json.loads(self.path.read_text())
        except (OSError, ValueError):
            return {}

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *_) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def holder(directory) -> dict | None:
    """The process that trains in a directory: {"host", "pid", "devices"}, {} if unknown.

    None if no process does.
    """
    path = paths.of(directory) / NAME
    if paths.is_remote(path):
        from loopjax import lease  # imports TensorStore

        return lease.holder(path)
    if not held(path):
        return None
    try:
        with open(path) as file:
            return _read(file.fileno())
    except OSError:
        return {}


def held(path) -> bool:
    """Whether a process has the lock of a file."""
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        return not grab(file, shared=True)
    finally:
        os.close(file)


def grab(file: int, *, shared: bool = False) -> bool:
    """Takes the lock of an open file, which is released when no process has the file open.

    Returns False if another process has the lock; True if locks are not supported.
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        pass
    return True


def _read(file: int) -> dict:
    try:
        owner = json.loads(os.pread(file, 4096, 0))
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}
