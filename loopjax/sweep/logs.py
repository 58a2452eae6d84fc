"""What the files of a run say of its progress, read from their ends; half-written lines are left out."""

import contextlib
import json
import pathlib

from loopjax.files import read_range, size

TAIL = 16_384  # bytes read from the end of a log: a few dozen rows


def tail(path: pathlib.Path) -> list[str]:
    """The last complete lines of a file; [] if there is no file."""
    try:
        length = size(path)
        if length is None:
            return []
        start = max(0, length - TAIL)
        lines = read_range(path, start, length).decode(errors="replace").split("\n")
    except OSError:
        return []
    return lines[bool(start) : -1]


def last_rows(workdir: pathlib.Path) -> list[dict]:
    """The last rows of a run's metrics.jsonl; lines that are no rows are passed over."""
    rows = []
    for line in tail(workdir / "metrics.jsonl"):
        with contextlib.suppress(ValueError, RecursionError):
            row = json.loads(line)
            if isinstance(row, dict) and type(row.get("step")) is int:
                rows.append(row)
    return rows


def position(workdir: pathlib.Path, total: int) -> dict:
    """Where a run is: "step" (0 before the first), and as far as known "loss" and "eta_s", seconds."""
    rows = last_rows(workdir)
    if not rows:
        return {"step": 0}
    row = rows[-1]
    found = {"step": row["step"]}
    if isinstance(row.get("loss"), float):
        found["loss"] = row["loss"]
    speeds = [r.get("tokens_per_s") for r in rows if "compile_s" not in r]
    speeds = [s for s in speeds or [row.get("tokens_per_s")] if isinstance(s, float) and s > 0]
    if speeds and row["step"] and isinstance(row.get("tokens"), int):
        per_step = row["tokens"] / row["step"]
        seconds = sum(per_step / speed for speed in speeds) / len(speeds)
        found["eta_s"] = max(0, total - row["step"]) * seconds
    return found


def how_ended(code: int) -> str:
    """ "exit code 2", or "signal 9" for -9."""
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def last_line(log: pathlib.Path) -> str:
    """The last line of output in a log that is not empty."""
    lines = (line.strip() for line in reversed(tail(log)))
    return next((line for line in lines if line), "(no output)")


def failure_in(log: pathlib.Path) -> str | None:
    """The error that ended the last process in a log: one of the user, or with a traceback.

    For a process whose exit code nobody has seen. None for one that was stopped or killed.
    """
    lines = tail(log)
    starts = [k for k, line in enumerate(lines) if line.startswith("$ ")]
    lines = [line for line in lines[starts[-1] + 1 if starts else 0 :] if line.strip()]
    if not lines:
        return None
    mistake = lines[-1].startswith("loopjax train: ") and "stopped by SIG" not in lines[-1]
    crash = any(line.startswith("Traceback (most recent call last)") for line in lines)
    return lines[-1].strip() if mistake or crash else None
