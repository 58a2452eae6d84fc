"""The log of a run: metrics.jsonl, callbacks, the progress line."""

import contextlib
import json
import pathlib
import time

from loopjax import callbacks as callbacks_lib
from loopjax.files import appended, read_rows, settle, write_text
from loopjax.host import is_main
from loopjax.progress import Line, duration


def open_log(config, workdir: pathlib.Path, step: int, callbacks=()) -> "RunLog | NoLog":
    """The log of a run that begins after `step` updates, with the config's and more callbacks."""
    if not is_main():
        return NoLog()
    built_in = callbacks_lib.built_in(config, workdir, step)
    return RunLog(workdir, step, config.steps, [*built_in, *callbacks])


class RunLog:
    """Writes each row to metrics.jsonl, hands it to the callbacks and shows progress.

    Rows after `step`, which a killed run wrote after its last checkpoint, are dropped first.
    """

    def __init__(self, workdir: pathlib.Path, step: int, total_steps: int, callbacks):
        self.callbacks = list(callbacks)
        path = workdir / "metrics.jsonl"
        rows = [row for row in read_rows(path) if row["step"] <= step]
        write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
        self.file = appended(path)
        self.progress = _Progress(total_steps)

    def row(self, row: dict) -> None:
        """Logs one step."""
        self.file.write(json.dumps(row) + "\n")
        for callback in self.callbacks:
            callback.on_step(row)
        self.progress.show(row)

    def settle(self) -> None:
        """Returns when the rows so far outlast this process: before the checkpoint that they lead to."""
        settle(self.file)

    def result(self, result: dict) -> None:
        """Hands the result of the finished run to the callbacks."""
        for callback in self.callbacks:
            callback.on_result(result)

    def close(self) -> None:
        """Closes the file and the callbacks, all of them even when one of them raises."""
        with contextlib.ExitStack() as stack:
            for callback in self.callbacks:
                stack.callback(callback.close)
            self.file.close()


class NoLog:
    """The log of the processes that do not write."""

    def row(self, row: dict) -> None:
        pass

    def settle(self) -> None:
        pass

    def result(self, result: dict) -> None:
        pass

    def close(self) -> None:
        pass


class _Progress:
    """The progress line of a run."""

    def __init__(self, total_steps: int):
        self.total = total_steps
        self.line = Line()
        self.first: tuple[int, float] | None = None  # step and time of the first row

    def show(self, row: dict) -> None:
        """Shows a row if a line is due; the last step always is."""
        step, now = row["step"], time.monotonic()
        if self.first is None:
            # The first step includes compilation, so the speed is measured from its end.
            self.first = step, now
            return
        first_step, begun = self.first
        last = step == self.total
        if not (last or self.line.due(begun)):
            return
        left = (self.total - step) * (now - begun) / (step - first_step)
        mfu = f"  MFU {row['mfu']:.1%}" if "mfu" in row else ""
        text = (
            f"step {step}/{self.total}  {row['plan']}  loss {row['loss']:.4f}  "
            f"{row['tokens_per_s']:,.0f} tokens/s{mfu}  ETA {duration(left)}"
        )
        self.line.show(text, last=last)
