"""The progress line on standard error, used by all long-running commands."""

import os
import sys
import time

from loopjax.text_table import quantity

WIDTH = 79
TERMINAL_S, FILE_S = 0.2, 10.0  # seconds between two lines: redrawn on a terminal, kept in a file


def duration(seconds: float) -> str:
    """3723 -> "1:02:03"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def print_line(text: str, end: str = "\n") -> None:
    """Prints on standard error, if anybody still reads it.

    A reader that is gone (`2>&1 | head -1`, a closed terminal) must not end a training.
    """
    try:
        print(text, end=end, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        # What is buffered would fail again, at the latest when the interpreter ends.
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115


class Line:
    """A line that is redrawn on a terminal, and printed every 10 seconds elsewhere."""

    def __init__(self):
        self.terminal = sys.stderr.isatty()
        self.interval = TERMINAL_S if self.terminal else FILE_S
        self.shown_at: float | None = None

    def due(self, since: float) -> bool:
        """Whether it is time for another line; the first is due an interval after `since`."""
        return time.monotonic() - max(since, self.shown_at or since) >= self.interval

    def show(self, text: str, *, last: bool = False) -> None:
        """Prints the line; the last one stays on a terminal too."""
        self.shown_at = time.monotonic()
        end = "\r" if self.terminal and not last else "\n"
        print_line(f"{text:<{WIDTH}}" if self.terminal else text, end)


class Progress:
    """The progress of a job: count, speed and time left. A context manager.

    A job that ends before the first line is due prints nothing.

    Args:
      total: units of work.
      text: start of the line; if it is empty, nothing is printed.
      done: units finished by an earlier, interrupted run; not counted in the speed.
      in_bytes: whether the units are bytes, shown as GB and MB/s.
    """

    def __init__(self, total: int, text: str, *, done: int = 0, in_bytes: bool = False):
        self.total, self.text, self.in_bytes = total, text, in_bytes
        self.done = self.done_before = done
        self.note = ""
        self.begun = time.monotonic()
        self.line = Line()

    def update(self, n: int = 1, note: str = "") -> None:
        """Counts `n` more units, and prints a line, ending in `note`, if one is due."""
        self.done += n
        self.note = f"  {note}" if note else ""
        if self.text and self.line.due(self.begun):
            self.line.show(self._text())

    def close(self) -> None:
        """Prints the final line, if any line was printed before."""
        if self.line.shown_at is not None:
            self.line.show(self._text(), last=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _text(self) -> str:
        seconds = max(time.monotonic() - self.begun, 1e-9)
        speed = (self.done - self.done_before) / seconds
        if self.in_bytes:
            count = f"{quantity(self.done, 'B')} of {quantity(self.total, 'B')}  {quantity(speed, 'B/s')}"
        else:
            per = f"{speed:,.1f}/s" if speed >= 1 or not speed else f"{1 / speed:,.1f} s each"
            count = f"{self.done:,}/{self.total:,}  {per}"
        if self.done >= self.total:
            return f"{self.text}  {count}  {duration(seconds)}{self.note}"
        left = duration((self.total - self.done) / speed) if speed else "unknown"
        return f"{self.text}  {count}  ETA {left}{self.note}"
