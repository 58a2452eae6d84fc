"""Work that is done before its result is needed, in a thread."""

import concurrent.futures
import contextlib
import threading
from collections.abc import Callable

_THREAD = "loopjax-ahead"


class Ahead:
    """Does pieces of work ahead of time, one after another, in one thread. A context manager.

    At its end, work that has not begun is dropped, and nothing waits for what is going on: see
    `in_progress`. The work must not run on the devices of a run: programs that several processes
    run together have to be started in one order.

    Args:
      inside: function that returns the context manager in which the thread works; those of JAX and
        flax hold for one thread only.
    """

    def __init__(self, inside: Callable[[], contextlib.AbstractContextManager]):
        self._inside = inside
        self._pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix=_THREAD)
        self._begun: dict[object, concurrent.futures.Future] = {}

    def __enter__(self) -> "Ahead":
        return self

    def __exit__(self, *_) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def begin(self, key, work: Callable) -> None:
        """Calls `work` in the thread, after all that was begun before."""
        if key not in self._begun:
            self._begun[key] = self._pool.submit(self._do, work)

    def _do(self, work: Callable):
        with self._inside():
            return work()

    def get(self, key, work: Callable):
        """What `work` returns, or raises; waits for the thread if that is at it.

        The caller does what the thread has not come to or was not told of, and tries once more what
        failed in the thread, where memory may have been short while a run used the devices.
        """
        future = self._begun.pop(key, None)
        if future is not None and not future.cancel():
            with contextlib.suppress(Exception):
                return future.result()
        return work()


def in_progress() -> bool:
    """Whether such a thread still works.

    A compilation by XLA cannot be interrupted, and an interpreter that ends in the usual way waits
    for its threads.
    """
    return any(thread.name.startswith(_THREAD) for thread in threading.enumerate())
