"""The progress of the runs of a sweep, on standard error."""

import shutil
import sys
import time

from loopjax.progress import duration, print_line
from loopjax.sweep.logs import how_ended, last_line, position
from loopjax.sweep.logs import last_rows as last_rows  # for other modules
from loopjax.sweep.points import Point

EVERY_S = 30.0  # between two reports if standard error is not a terminal


class Screen:
    """Lines that stay, and below them, on a terminal, a block of lines that is redrawn.

    `progress.Line` is the same for a single line; a sweep has one line per run.
    """

    def __init__(self):
        self.terminal = sys.stderr.isatty()
        self.drawn = 0  # lines of the block
        self.shown_at = time.monotonic()

    def say(self, text: str) -> None:
        """Prints a line that stays."""
        self._clear()
        print_line(text)

    def show(self, lines: list[str]) -> None:
        """Shows the current state of the runs; without a terminal only every 30 seconds."""
        if self.terminal:
            self._clear()
            size = shutil.get_terminal_size()
            lines = [line[: size.columns - 1] for line in lines[: size.lines - 2]]
            self.drawn = len(lines)
        elif time.monotonic() - self.shown_at < EVERY_S:
            return
        self.shown_at = time.monotonic()
        if lines:
            print_line("\n".join(lines))

    def _clear(self) -> None:
        if self.drawn:
            print_line(f"\x1b[{self.drawn}F\x1b[J", end="")
            self.drawn = 0


def status(point: Point) -> str:
    """ "lidas__seed-1  step 40/100  loss 3.2100  ETA 0:12"."""
    total = point.config.steps
    found = position(point.workdir, total)
    text = f"{point.name}  step {found['step']}/{total}"
    text += f"  loss {found['loss']:.4f}" if "loss" in found else ""
    return text + (f"  ETA {duration(found['eta_s'])}" if "eta_s" in found else "")


def done(point: Point, result: dict) -> str:
    """The line of a finished run."""
    nll = result["heldout"].get("nll")
    heldout = f"held-out NLL {nll:.4f}  " if nll is not None else ""
    return f"done     {point.name}  {heldout}{duration(result['wall_clock_s'])}"


def failure(point: Point, code: int) -> str:
    """Why a run ended without a result: its last line of output, and the path of the whole log."""
    return f"{how_ended(code)}: {last_line(point.log)} (log: {point.log})"
