"""What a run writes while it runs: metrics.jsonl, TensorBoard events, a progress line."""

import json
import pathlib
import sys
import time

from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from loopjax.files import read_rows, write_text
from loopjax.progress import duration


class RunLog:
    """The log of one run; what a run that was cut off wrote after `step` is dropped first."""

    def __init__(self, workdir: pathlib.Path, step: int, total_steps: int, tensorboard_every: int):
        self.total, self.every = total_steps, tensorboard_every
        path = workdir / "metrics.jsonl"
        kept = [row for row in read_rows(path) if row["step"] <= step]
        write_text(path, "".join(json.dumps(row) + "\n" for row in kept))
        # Line buffered: what was logged before a checkpoint is on disk before it.
        self.file = open(path, "a", buffering=1)  # noqa: SIM115
        self.events = EventFileWriter(str(workdir / "tensorboard"))
        restart = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self.events.add_event(
            event_pb2.Event(wall_time=time.time(), step=step + 1, session_log=restart)
        )
        self.first: tuple[int, float] | None = None  # step and time, once the first one is done
        self.said = 0.0

    def row(self, row: dict) -> None:
        """One step: its row, its events every so often, and the progress line."""
        self.file.write(json.dumps(row) + "\n")
        step = row["step"]
        if step % self.every == 0 or step == self.total or "eval/nll" in row:
            values = [
                summary_pb2.Summary.Value(tag=tag, simple_value=value)
                for tag, value in row.items()
                if isinstance(value, float)
            ]
            event = event_pb2.Event(wall_time=time.time(), step=step)
            event.summary.CopyFrom(summary_pb2.Summary(value=values))
            self.events.add_event(event)
        self._progress(row)

    def _progress(self, row: dict) -> None:
        tty, now = sys.stderr.isatty(), time.monotonic()
        last = row["step"] == self.total
        if self.first is None:
            # The first step waits for compilation: it says nothing about those to come.
            self.first = row["step"], now
            return
        if now - self.said < (0.2 if tty else 10.0) and not last:
            return
        self.said = now
        per_step = (now - self.first[1]) / (row["step"] - self.first[0])
        left = (self.total - row["step"]) * per_step
        text = (
            f"step {row['step']}/{self.total}  {row['plan']}  loss {row['loss']:.4f}  "
            f"{row['tokens_per_s']:,.0f} tokens/s"
        )
        if "mfu" in row:
            text += f"  MFU {row['mfu']:.1%}"
        text += f"  ETA {duration(left)}"
        end = "\r" if tty and not last else "\n"
        print(f"{text:<79}", end=end, file=sys.stderr, flush=True)

    def close(self) -> None:
        self.file.close()
        self.events.close()


class NoLog:
    """The log of the processes that do not write."""

    def row(self, row: dict) -> None:
        pass

    def close(self) -> None:
        pass
