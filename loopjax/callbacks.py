"""Where the rows of a run go besides metrics.jsonl: TensorBoard, Weights & Biases, your own.

A callback gets every row of metrics.jsonl, in order and right after it is written: numbers on the
host, read one step late, so that no callback makes the training loop wait for the device. Pass
your own to `train(config, workdir, callbacks=[...])`. They are called on process 0 only.

A resumed run calls them with the rows after its checkpoint. Rows that a killed run wrote after
its last checkpoint are dropped from metrics.jsonl, and come again, with the same values. An
exception in a callback ends the run with that exception; the checkpoints are complete, and the
same command resumes.
"""

import contextlib
import itertools
import os
import pathlib
import secrets
import socket
import tempfile
import time

from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer.record_writer import RecordWriter

from loopjax import paths
from loopjax.errors import UserError, first_line, require
from loopjax.files import Growing
from loopjax.progress import print_line
from loopjax.sweep import directory as sweep_directory
from loopjax.sweep import hparams

WANDB_ID = "wandb_id"  # file in the run's directory


class Callback:
    """What `train` calls; a subclass overrides the methods it needs."""

    def on_step(self, row: dict) -> None:
        """Called once per row of metrics.jsonl; "eval/..." keys are in the rows of evaluations."""

    def on_result(self, result: dict) -> None:
        """Called once with the content of result.json when the run is finished, before `close`."""

    def close(self) -> None:
        """Called once at the end of the run or when it is stopped, also after an error."""


def built_in(config, workdir: pathlib.Path, step: int) -> list[Callback]:
    """The callbacks that a config asks for, for a run that begins after `step` updates."""
    wandb = [WeightsAndBiases(config, workdir)] if config.wandb else []
    return [*wandb, TensorBoard(config, workdir, step)]


def check(config) -> None:
    """Raises MissingPackage when a callback of the config needs a package that is not installed."""
    if config.wandb:
        require("wandb", "wandb", f"config.wandb={config.wandb!r}")


class TensorBoard(Callback):
    """Event files: every `config.log_every` steps, evaluations, the last step.

    They are in DIR/tensorboard; those of a point of a sweep in the sweep's tensorboard/LABEL, since
    TensorBoard names a run by its directory, with the fields of the sweep as hyperparameters.

    Each number of these rows of metrics.jsonl is a scalar of the same name.

    The file is written here, not by TensorBoard's thread, whose errors would end the run: curves
    that cannot be written are a warning, and metrics.jsonl has the same rows. In a bucket, where a
    file cannot grow, it is written again as a whole every minute or more.
    """

    def __init__(self, config, workdir: pathlib.Path, step: int):
        self.config = config
        self.point, points = sweep_directory.point_of(workdir)
        directory = workdir / "tensorboard"
        # A run that an earlier version began goes on where its curves are.
        if self.point and not directory.exists():
            directory = workdir.parent / "tensorboard" / self.point.label
        now = time.time()
        name = f"events.out.tfevents.{int(now):010d}.{socket.gethostname()}.{os.getpid()}"
        self.file = None
        try:
            directory.mkdir(parents=True, exist_ok=True)
            path = _unused(directory / name)
            self.file = Growing(path) if paths.is_remote(path) else open(path, "wb")  # noqa: SIM115
        except OSError as error:
            self._give_up(error.strerror)
        self._write(event_pb2.Event(wall_time=now, file_version="brain.Event:2"))
        # TensorBoard then hides what a killed run wrote after its last checkpoint.
        restart = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(event_pb2.Event(wall_time=now, step=step + 1, session_log=restart))
        if self.point:
            fields = hparams.fields(config, points, self.point)
            self._summary(0, hparams.start(fields, self.point.label))

    def on_step(self, row: dict) -> None:
        if _shown(self.config, row):
            self._summary(row["step"], _scalars(row))

    def on_result(self, result: dict) -> None:
        if self.point:
            self._summary(result["steps"], hparams.end())

    def _summary(self, step: int, values: list) -> None:
        event = event_pb2.Event(wall_time=time.time(), step=step)
        event.summary.CopyFrom(summary_pb2.Summary(value=values))
        self._write(event)

    def _write(self, event) -> None:
        if self.file is None:
            return
        try:
            RecordWriter(self.file).write(event.SerializeToString())
            if isinstance(self.file, Growing):
                return
            self.file.flush()
            if not os.fstat(self.file.fileno()).st_nlink:
                self._give_up("its file was removed")
        except OSError as error:
            self._give_up(error.strerror)

    def _give_up(self, reason: str) -> None:
        print_line(f"TensorBoard is not written any more: {reason}; metrics.jsonl has all rows")
        self.close()

    def close(self) -> None:
        file, self.file = self.file, None
        if file is not None:
            # What the full disk did not take is still in its buffer.
            with contextlib.suppress(OSError, UserError):
                file.close()


def _scalars(row: dict) -> list:
    return [
        summary_pb2.Summary.Value(tag=tag, simple_value=value)
        for tag, value in row.items()
        if isinstance(value, int | float) and tag != "step"
    ]


def _unused(path: pathlib.Path) -> pathlib.Path:
    """The path with a number that no file has: a process may train twice within a second."""
    paths = (path.with_name(f"{path.name}.{n}") for n in itertools.count())
    return next(path for path in paths if not path.exists())


class WeightsAndBiases(Callback):
    """A W&B run in the project `config.wandb`, with the same rows as TensorBoard.

    The runs of a sweep are a group of the name of its directory, each with its short name.

    Its id is kept in DIR/wandb_id, so that a resumed run continues the same W&B run. W&B sends
    rows from a process of its own, so the training loop never waits for the network; WANDB_MODE,
    WANDB_API_KEY and its other environment variables work as usual.
    """

    def __init__(self, config, workdir: pathlib.Path):
        import wandb

        self.config = config
        point, _ = sweep_directory.point_of(workdir)
        id_file = workdir / WANDB_ID
        if not id_file.is_file():
            id_file.write_text(secrets.token_hex(4) + "\n")
        try:
            self.run = wandb.init(
                project=config.wandb,
                id=id_file.read_text().strip(),
                name=point.label if point else workdir.name,
                group=workdir.parent.name if point else None,
                dir=tempfile.mkdtemp() if paths.is_remote(workdir) else str(workdir),
                config=config.to_dict(),
                resume="allow",
                allow_val_change=True,  # of runtime options, on a resumed run
                settings=wandb.Settings(console="off", silent=True),
            )
        except wandb.Error as error:
            raise UserError(f"config.wandb={config.wandb!r}: {first_line(error)}") from error

    def on_step(self, row: dict) -> None:
        if _shown(self.config, row):
            # A step that W&B has from before a kill is ignored: it had the same values.
            self.run.log(row, step=row["step"])

    def close(self) -> None:
        self.run.finish()


def _shown(config, row: dict) -> bool:
    """Whether a row is for curves: every `log_every` steps, with an evaluation, or the last."""
    step = row["step"]
    return step % config.log_every == 0 or step == config.steps or "eval/nll" in row
