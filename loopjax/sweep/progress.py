"""The progress of the runs of a sweep, on standard error."""

import json
import os
import pathlib
import shutil
import sys
import time

from loopjax.progress import duration, print_line
from loopjax.sweep.points import Point

TAIL = 16_384  # bytes read from the end of a log: a few dozen rows
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


def tail(path: pathlib.Path) -> list[str]:
    """The last complete lines of a file; [] if there is no file."""
    try:
        with open(path, "rb") as file:
            start = max(0, file.seek(0, os.SEEK_END) - TAIL)
            file.seek(start)
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return []
    return lines[bool(start) : -1]


def last_rows(workdir: pathlib.Path) -> list[dict]:
    """The last rows of a run's metrics.jsonl."""
    return [json.loads(line) for line in tail(workdir / "metrics.jsonl")]


def status(point: Point) -> str:
    """ "lidas__seed-1  step 40/100  loss 3.2100  ETA 0:12"."""
    rows = last_rows(point.workdir)
    total = point.config.steps
    if not rows:
        return f"{point.name}  step 0/{total}"
    row = rows[-1]
    per_step = row["tokens"] / row["step"]
    speeds = [r["tokens_per_s"] for r in rows if "compile_s" not in r] or [row["tokens_per_s"]]
    seconds = sum(per_step / speed for speed in speeds) / len(speeds)
    left = duration((total - row["step"]) * seconds)
    return f"{point.name}  step {row['step']}/{total}  loss {row['loss']:.4f}  ETA {left}"


def done(point: Point, result: dict) -> str:
    """The line of a finished run."""
    nll = result["heldout"].get("nll")
    heldout = f"held-out NLL {nll:.4f}  " if nll is not None else ""
    return f"done     {point.name}  {heldout}{duration(result['wall_clock_s'])}"


def failure(point: Point, code: int) -> str:
    """Why a run ended without a result: its last line of output, and the path of the whole log."""
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    last = next((line for line in reversed(tail(point.log)) if line.strip()), "(no output)")
    return f"{how}: {last.strip()} (log: {point.log})"
