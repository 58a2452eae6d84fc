"""The worker processes of `loopjax prepare`: pieces out, progress and errors back."""

import contextlib
import functools
import multiprocessing
import os
import signal
import time
import traceback
from multiprocessing import connection

from loopjax.data import tokenizers
from loopjax.data.prepare import shards
from loopjax.errors import UserError

REPORT_SECONDS = 0.5


def run(task: shards.Task, pieces: list[shards.Piece], codec, processes: int, progress) -> None:
    """Writes the pieces with a number of processes; one process is this one."""
    if min(processes, len(pieces)) > 1:
        _run_in_processes(task, pieces, processes, progress)
        return
    for piece in pieces:
        report = functools.partial(progress.reading, piece)
        progress.done(piece, shards.write_piece(task, piece, codec, _throttled(report)))


def _run_in_processes(task, pieces, processes, progress) -> None:
    # A forked child would hold the locks of this process's threads (and JAX, where it is used).
    context = multiprocessing.get_context("spawn")
    todo = list(reversed(pieces))
    busy = {}  # connection: the piece that its worker writes
    workers = {}  # connection: process
    try:
        for _ in range(min(processes, len(pieces))):
            ours, theirs = context.Pipe()
            worker = context.Process(target=_work, args=(task, theirs), daemon=True)
            worker.start()
            theirs.close()  # so that the pipe closes when the process ends
            workers[ours] = worker
            _send_next(ours, busy, todo)
        while busy:
            for ours in connection.wait(list(busy), timeout=1.0):
                _receive(ours, workers[ours], busy, todo, progress)
            progress.show()
    finally:
        for worker in workers.values():
            worker.kill()
        for worker in workers.values():
            worker.join()


def _receive(ours, worker, busy: dict, todo: list, progress) -> None:
    """Handles one message of a worker: its progress, a finished piece or an error."""
    piece = busy[ours]
    try:
        kind, *values = ours.recv()
    except (EOFError, ConnectionError):
        worker.join()
        raise UserError(
            f"a worker process died (exit code {worker.exitcode}) at piece {piece.name}, possibly out "
            "of memory; rerun the same command to resume, with fewer --processes if necessary"
        ) from None
    if kind == "mistake":
        raise UserError(values[0])
    if kind == "crash":
        raise RuntimeError(f"piece {piece.name}:\n{values[0]}")
    if kind == "reading":
        progress.reading(piece, *values)
        return
    progress.done(piece, *values)
    _send_next(ours, busy, todo)


def _send_next(ours, busy: dict, todo: list) -> None:
    """Sends a worker its next piece, if there is one."""
    busy.pop(ours, None)
    if todo:
        busy[ours] = todo.pop()
        with contextlib.suppress(ConnectionError):  # it has ended, which `_receive` reports
            ours.send(busy[ours])


def _work(task: shards.Task, theirs) -> None:
    """The loop of a worker: receives pieces, sends messages, until the parent closes the pipe."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches all processes; the parent handles it
    # --processes is the number of cores to use: no further threads of the tokenizer in each.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["RAYON_NUM_THREADS"] = "1"
    with contextlib.suppress(EOFError, ConnectionError):  # the parent was killed
        codec = tokenizers.load(task.tokenizer, task.eos)
        report = _throttled(lambda read, text: theirs.send(("reading", read, text)))
        while True:
            piece = theirs.recv()
            try:
                message = ("done", shards.write_piece(task, piece, codec, report))
            except UserError as error:
                message = ("mistake", str(error))
            except Exception:
                message = ("crash", traceback.format_exc())
            theirs.send(message)


def _throttled(report):
    """`report`, called at most every REPORT_SECONDS."""
    reported_at = time.monotonic()

    def throttled(read, text):
        nonlocal reported_at
        if time.monotonic() - reported_at >= REPORT_SECONDS:
            reported_at = time.monotonic()
            report(read, text)

    return throttled
