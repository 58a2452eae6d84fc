"""Where the wall-clock time of a run goes."""

import contextlib
import time

# What a process is doing, one of these at any time.
KINDS = {
    "start": "reading config and data, restoring or initializing the state",
    "compile": "waiting for compiled updates and growth steps",
    "growth": "growing the stack",
    "data": "waiting for a batch (the device may still be busy with the step before)",
    "steps": "waiting for the device to finish updates, and all that has no kind of its own",
    "evaluation": "held-out evaluation, and waiting for its compilation",
    "save": "waiting for checkpoints",
    "log": "metrics.jsonl and callbacks",
    "lost": "steps of a killed process after its last checkpoint, up to its last row",
    "unrecorded": "processes of a version without this ledger",
}


class Ledger:
    """Seconds by kind (KINDS), of this process and of those before it.

    Exactly one kind is counted at any time, so that the parts add up to the wall-clock time.
    """

    def __init__(self):
        self._seconds: dict[str, float] = {}
        self._kind, self._since = "start", time.monotonic()

    @contextlib.contextmanager
    def during(self, kind: str):
        """A block that is counted as one kind; blocks may be nested, the innermost counts."""
        before = self._switch(kind)
        try:
            yield
        finally:
            self._switch(before)

    def _switch(self, kind: str) -> str:
        now = time.monotonic()
        self.add({self._kind: now - self._since})
        before, self._kind, self._since = self._kind, kind, now
        return before

    def add(self, seconds: dict[str, float]) -> None:
        """Adds time that was spent before, such as that of earlier processes of the run."""
        for kind, value in seconds.items():
            self._seconds[kind] = self._seconds.get(kind, 0.0) + value

    def so_far(self) -> dict[str, float]:
        """Seconds of each kind until now, without kinds that did not occur."""
        self._switch(self._kind)
        return {kind: self._seconds[kind] for kind in KINDS if kind in self._seconds}

    def total(self) -> float:
        """Wall-clock seconds until now."""
        return sum(self.so_far().values())
