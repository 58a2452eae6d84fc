"""SIGTERM, SIGHUP and Ctrl-C: a run saves its state and ends; before its first step it ends at once.

A Python signal handler runs only between two bytecodes, so not while XLA compiles. A thread that
the kernel's signals reach through a pipe therefore ends a process that has nothing to save.
"""

import os
import signal
import socket
import threading
from collections.abc import Callable

from loopjax.progress import print_line

STOPS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


class Signals:
    """The requests to stop that this process has received. A context manager of the main thread.

    The first signal requests a stop; after it, SIGINT interrupts at once (KeyboardInterrupt).

    Args:
      command: name of the command, such as "train", for a process of its own: a signal ends it,
        with exit code 128 + signal, as long as there is nothing to save. None for a function called
        from other code, which is only asked to stop.

    Attributes:
      requested: the signal that requested the stop; None without a request.
      on_end: called with the sentence and the exit code before the process ends.
    """

    def __init__(self, command: str | None = None):
        self.command = command
        self.requested: signal.Signals | None = None
        self.on_end: Callable[[str, int], None] | None = None
        self._to_save = False
        self._lock = threading.Lock()

    def something_to_save(self) -> None:
        """From now on, a signal requests a stop instead of ending the process."""
        with self._lock:
            self._to_save = True

    def __enter__(self) -> "Signals":
        # nohup ignores SIGHUP, and so does what it starts.
        ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        stops = [signum for signum in STOPS if not (signum == signal.SIGHUP and ignored)]
        self._handlers = {signum: signal.signal(signum, self._received) for signum in stops}
        if self.command is not None:
            reading, self._pipe = socket.socketpair()
            self._pipe.setblocking(False)
            threading.Thread(target=self._watch, args=[reading], daemon=True).start()
            signal.set_wakeup_fd(self._pipe.fileno(), warn_on_full_buffer=False)
        return self

    def __exit__(self, *_) -> None:
        if self.command is not None:
            signal.set_wakeup_fd(-1)
            self._pipe.close()  # which ends the thread
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler)

    def _received(self, signum, frame) -> None:
        if self.requested is not None and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = self.requested or signal.Signals(signum)

    def _watch(self, pipe: socket.socket) -> None:
        with pipe:
            while received := pipe.recv(64):
                for signum in received:
                    self._end(signum)

    def _end(self, signum: int) -> None:
        with self._lock:
            if self._to_save or signum not in STOPS:
                return
            text = f"stopped by {signal.Signals(signum).name} before the first step"
            code = 128 + signum
            if self.on_end is not None:
                self.on_end(text, code)
            end_process(f"loopjax {self.command}: {text}; nothing to save", code)


def end_process(text: str, code: int) -> None:
    """Prints a line and ends the process, from any thread.

    An interpreter that ends in the usual way waits for other threads, and for XLA.
    """
    print_line(text)
    os._exit(code)
