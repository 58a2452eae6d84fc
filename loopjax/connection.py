"""A connection between two processes of a run: JSON lines over TCP, and the patience to wait for it."""

import contextlib
import json
import socket
import threading
import time

from loopjax.errors import UserError

PATIENCE_S = 10.0  # of waiting, before the first line about it


class Connection:
    """The line to another process."""

    def __init__(self, sock: socket.socket):
        sock.settimeout(None)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self.file = sock.makefile("r", encoding="utf-8")
        self.heard = time.monotonic()
        self.step = 0
        self.left = False  # it has said goodbye
        self.seen = False  # it has read the last message from here
        self._lock = threading.Lock()

    def send(self, **message) -> None:
        # The reader notices a broken connection.
        with self._lock, contextlib.suppress(OSError):
            self.sock.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> dict | None:
        """The next message; None at the end of the connection."""
        try:
            message = json.loads(self.file.readline())
        except (OSError, ValueError):
            return None
        return message if isinstance(message, dict) else None

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()
        self.file.close()


class Patience:
    """How long something may take, and when to print a line about it."""

    def __init__(self, seconds: float = float("inf")):
        self.begun = time.monotonic()
        self.seconds = seconds
        self.next_line = PATIENCE_S

    def over(self) -> bool:
        return time.monotonic() - self.begun > self.seconds

    def line_due(self) -> bool:
        due = time.monotonic() - self.begun > self.next_line
        if due:
            self.next_line *= 2
        return due


def split_address(address: str) -> tuple[str, int]:
    """("host", 1234) of "host:1234"; raises UserError for anything else."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(f"--coordinator={address} must be HOST:PORT, with a port of 1 to 65535")
    return host.strip("[]"), int(port)


def free_port() -> int:
    """A port that no process listens at, at this moment."""
    with socket.socket() as sock:
        sock.bind(("", 0))
        return sock.getsockname()[1]
