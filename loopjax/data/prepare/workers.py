"""Pieces handed to processes; their progress; what becomes of the others when one fails."""

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
    """Writes the pieces, `processes` at a time; in this process if that is one."""
    if min(processes, len(pieces)) > 1:
        _run_in_processes(task, pieces, processes, progress)
        return
    for piece in pieces:
        report = functools.partial(progress.reading, piece)
        progress.done(piece, shards.write_piece(task, piece, codec, _seldom(report)))


def _run_in_processes(task, pieces, processes, progress) -> None:
    # A forked child would hold the locks of this process's threads (and JAX, where it is used).
    context = multiprocessing.get_context("spawn")
    todo, busy = list(reversed(pieces)), {}
    workers = {}
    try:
        for _ in range(min(processes, len(pieces))):
            ours, theirs = context.Pipe()
            worker = context.Process(target=_work, args=(task, theirs), daemon=True)
            worker.start()
            theirs.close()  # so that the end of the process is the end of the pipe
            workers[ours] = worker
            _give(ours, busy, todo)
        while busy:
            for ours in connection.wait(list(busy), timeout=1.0):
                _hear(ours, workers[ours], busy, todo, progress)
            progress.say()
    finally:
        for worker in workers.values():
            worker.kill()
        for worker in workers.values():
            worker.join()


def _hear(ours, worker, busy: dict, todo: list, progress) -> None:
    """One message of a worker: how far it is, that it is done, or what went wrong."""
    piece = busy[ours]
    try:
        kind, *said = ours.recv()
    except (EOFError, ConnectionError):
        worker.join()
        raise UserError(
            f"a process ended without a word (exit code {worker.exitcode}) at piece {piece.name}, "
            "perhaps for want of memory: the same command goes on, with fewer --processes if need be"
        ) from None
    if kind == "mistake":
        raise UserError(said[0])
    if kind == "crash":
        raise RuntimeError(f"piece {piece.name}:\n{said[0]}")
    if kind == "reading":
        progress.reading(piece, *said)
        return
    progress.done(piece, *said)
    _give(ours, busy, todo)


def _give(ours, busy: dict, todo: list) -> None:
    """The next piece for a worker, if there is one."""
    busy.pop(ours, None)
    if todo:
        busy[ours] = todo.pop()
        with contextlib.suppress(ConnectionError):  # it has ended: that is heard when reading
            ours.send(busy[ours])


def _work(task: shards.Task, theirs) -> None:
    """A process: pieces in, messages out, until the parent is gone or has no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent decides
    # As many processes as were asked for, not as many times the threads of the library.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["RAYON_NUM_THREADS"] = "1"
    with contextlib.suppress(EOFError, ConnectionError):  # the parent was killed
        codec = tokenizers.load(task.tokenizer, task.eos)
        report = _seldom(lambda read, taken: theirs.send(("reading", read, taken)))
        while True:
            piece = theirs.recv()
            try:
                message = "done", shards.write_piece(task, piece, codec, report)
            except UserError as error:
                message = "mistake", str(error)
            except Exception:
                message = "crash", traceback.format_exc()
            theirs.send(message)


def _seldom(report):
    """The same report, at most every REPORT_SECONDS."""
    said = time.monotonic()

    def seldom(read, taken):
        nonlocal said
        if time.monotonic() - said >= REPORT_SECONDS:
            said = time.monotonic()
            report(read, taken)

    return seldom
