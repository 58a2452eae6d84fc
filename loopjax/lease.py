"""At most one training process per directory of a bucket: an object with an owner that expires.

`flock` is of one machine's kernel. Here DIR/lock is an object that names its owner and the time
at which the lease expires; the owner renews it every RENEW_S. Each write says which generation of the
object it replaces, and the storage refuses it when another process was faster.
"""

import contextlib
import json
import os
import secrets
import socket
import threading
import time

import tensorstore as ts

from loopjax.errors import UserError, first_line
from loopjax.progress import print_line
from loopjax.remote import kvstore

LEASE_S = 30.0
RENEW_S = 8.0
POLL_S = 1.0  # between two looks at the lease of another process
# TensorStore's own number of retries would hold up a renewal for minutes.
_CONTEXT = {"gcs_request_retries": {"max_retries": 4, "initial_delay": "500ms", "max_delay": "4s"}}


class Lease:
    """The right to train in a directory of a bucket, from `take` to the end of the `with` block.

    A process that is killed keeps it until it expires, LEASE_S after the last renewal.
    """

    def __init__(self, path):
        self.path = path
        self._generation: bytes | None = None  # of the object, while it is ours
        self._renewed = 0.0  # time.monotonic()
        self._lost = False
        self._changing = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew_on, daemon=True)
        self._me = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "devices": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
            "id": secrets.token_hex(8),
        }

    def take(self) -> None:
        """Takes the lease; waits for one that is not renewed to expire.

        Raises UserError when another process holds and renews it, or when it cannot be written.
        """
        begun, first = time.monotonic(), None
        while True:
            with self._explained():
                record, generation = _read(self.path)
                free = not record or time.time() >= record["expires"]
                # By the clock of this machine only, should those of the two differ.
                free |= time.monotonic() - begun > LEASE_S and generation == first
                if free and self._write(generation):
                    break
            if first is None:
                first = generation
                print_line(f"waiting for the lease of {self._of(record)}")
            elif generation != first:
                raise UserError(
                    f"--workdir {self.path.parent} is being trained by another process: its lease is "
                    f"that of {self._of(record)}, and is being renewed; wait for it or stop it"
                )
            time.sleep(POLL_S)
        self._thread.start()

    def check(self) -> None:
        """Raises UserError when the lease that was taken is not ours any more."""
        if self._generation is None:
            return
        if not self._lost and time.monotonic() - self._renewed > 2 * RENEW_S:
            with self._explained():
                self._renew()
        if not self._lost:
            return
        with self._explained():
            record, _ = _read(self.path)
        if record:
            raise UserError(
                f"--workdir {self.path.parent} was taken over by {self._of(record)}, when this "
                f"process had not renewed its lease for {LEASE_S:.0f} s"
            )
        raise UserError(
            f"--workdir {self.path.parent} was removed or replaced while the run was training in it; "
            "start the run again"
        )

    def owner(self) -> dict:
        """Who holds the lease, without its time; {} if nobody does."""
        try:
            record, _ = _read(self.path)
        except ValueError:
            return {}
        return {key: value for key, value in (record or {}).items() if key != "expires"}

    def __enter__(self) -> "Lease":
        return self

    def __exit__(self, *_) -> None:
        self._ended.set()
        with self._changing:
            if self._generation is not None and not self._lost:
                with contextlib.suppress(ValueError):
                    _store(self.path).write(
                        self.path.name, None, if_equal=self._generation
                    ).result()
            self._generation = None

    def _renew_on(self) -> None:
        while not self._ended.wait(RENEW_S) and not self._lost:
            with contextlib.suppress(ValueError):  # `check` reports what lasts
                self._renew()

    def _renew(self) -> None:
        with self._changing:
            if self._generation is None or self._write(self._generation):
                return
            # The answer to a write may be lost, and a repeated one be refused.
            record, generation = _read(self.path)
            if record and record["id"] == self._me["id"]:
                self._generation, self._renewed = generation, time.monotonic()
            else:
                self._lost = True

    def _write(self, generation: bytes) -> bool:
        """Writes the object if it has this generation; whether it had."""
        begun = time.monotonic()
        record = {**self._me, "expires": time.time() + LEASE_S}
        content = json.dumps(record).encode()
        stamp = _store(self.path).write(self.path.name, content, if_equal=generation).result()
        if not stamp.generation:
            return False
        self._generation, self._renewed = stamp.generation, begun
        return True

    def _of(self, record: dict) -> str:
        expires = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(record["expires"]))
        return f"process {record['pid']} on {record['host']}, which expires at {expires}"

    @contextlib.contextmanager
    def _explained(self):
        try:
            yield
        except UserError:
            raise
        except ValueError as error:
            raise UserError(
                f"--workdir {self.path.parent}: its lease cannot be read or written "
                f"({first_line(error).split(' [')[0]})"
            ) from error


def holder(path) -> dict | None:
    """The owner of a lease that has not expired; None if there is none."""
    record, _ = _read(path)
    return record if record and time.time() < record["expires"] else None


def _store(path) -> ts.KvStore:
    spec = {**kvstore(path.parent), "context": _CONTEXT}
    return ts.KvStore.open(spec).result()


def _read(path) -> tuple[dict | None, bytes]:
    """(content of the object, its generation); None for one that is missing or no lease."""
    found = _store(path).read(path.name).result()
    try:
        record = json.loads(found.value)
        known = {"host": str, "pid": int, "id": str, "expires": float}
        valid = all(isinstance(record[key], kind) for key, kind in known.items())
    except (ValueError, TypeError, KeyError):
        valid = False
    return (record if valid else None), found.stamp.generation
