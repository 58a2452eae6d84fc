"""The launcher on this machine: points one after another, or several at a time.

A point is trained by the command that a user would type, in its own process, so a failure ends only
one run. The process that trains in a directory holds its lock (`loopjax.lock`): the sweep waits for
a point that another process is training (the child of a killed sweep, or another sweep) instead of
starting it again. A point that branches from another waits for it. With `--halving`, a point that may
not go on (`loopjax.sweep.halving`) is stopped as by SIGTERM, with a checkpoint.
"""

import contextlib
import dataclasses
import os
import shlex
import signal
import socket
import subprocess
import time
from typing import NamedTuple

from loopjax import lock
from loopjax.signals import STOPS
from loopjax.sweep import branches, directory
from loopjax.sweep.halving import Halving, at_random
from loopjax.sweep.logs import how_ended, last_line, last_rows
from loopjax.sweep.points import Point
from loopjax.sweep.progress import Screen, done, failure, status

POLL_S = 0.5


class Slot(NamedTuple):
    """What one of several concurrent runs uses.

    Attributes:
      gpus: CUDA_VISIBLE_DEVICES; empty for the devices of the sweep itself.
      cores: numbers of the CPU cores; empty for all.
    """

    gpus: str = ""
    cores: tuple[int, ...] = ()


ANY = Slot()


@dataclasses.dataclass
class _Training:
    point: Point
    process: subprocess.Popen
    slot: Slot
    halted: bool = False  # stopped at a rung


def shares_of_cores(jobs: int) -> list[tuple[int, ...]]:
    """The cores of each of several concurrent runs; all (an empty tuple) where they cannot be divided.

    The threads of a run wait for each other in every operation, so runs that share all cores stop each
    other: two small models on two cores are several times slower than with a core each.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if jobs == 1 or jobs > len(cores):
        return [()] * jobs
    return [
        tuple(cores[i * len(cores) // jobs : (i + 1) * len(cores) // jobs]) for i in range(jobs)
    ]


def start(point: Point, slot: Slot = ANY, log=None) -> subprocess.Popen | None:
    """Starts to train a point; None if another process is training it, or has finished it.

    The output of the training is appended to the log of the point. The process holds the lock of
    the log from its start to its end, even if the sweep is killed.
    """
    point.workdir.mkdir(parents=True, exist_ok=True)
    with open(log or point.log, "a") as file:
        if not lock.grab(file.fileno()) or point.result() is not None:
            return None
        directory.forget(point.workdir)
        print(f"$ {shlex.join(point.command)}", file=file, flush=True)
        # In its own session, so that Ctrl-C reaches only the sweep, which forwards it.
        gpus = {"CUDA_VISIBLE_DEVICES": slot.gpus} if slot.gpus else {}
        process = subprocess.Popen(
            point.command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
            env=os.environ | gpus, start_new_session=True,
        )  # fmt: skip
    if slot.cores:
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(
                process.pid, slot.cores
            )  # before it has threads, which inherit them
    return process


def trainer_of(point: Point) -> dict | None:
    """The process training a point: "host", "pid", "devices", as far as known; else None."""
    holder = lock.holder(point.workdir)
    return {} if holder is None and lock.held(point.log) else holder


def run(
    points: list[Point], slots: list[Slot], screen: Screen, halving: Halving | None = None
) -> bool:
    """Trains the unfinished points; returns whether all points are finished, or halved, at the end.

    Args:
      points: all points of the sweep.
      slots: what each of the runs at a time uses.
      screen: where progress is shown.
      halving: the rungs, to stop points that may not go on.
    """
    with stop_signals() as signals:
        return _Sweep(points, slots, screen, signals, halving).run()


class _Sweep:
    def __init__(
        self,
        points: list[Point],
        slots: list[Slot],
        screen: Screen,
        signals: list[int],
        halving: Halving | None = None,
    ):
        self.points = points
        self.slots = slots
        self.screen = screen
        self.signals = signals  # received so far; grows while the sweep runs
        self.pending = [point for point in points if point.result() is None]
        self.running: list[_Training] = []
        self.failed: dict[str, str] = {}
        self.blocked: dict[str, str] = {}  # points that wait for one that will not be there
        self.halving = halving
        self.forwarded = 0  # number of signals forwarded to the runs

    def run(self) -> bool:
        n = len(self.points)
        finished = n - len(self.pending)
        self.screen.say(f"{n} points: {finished} finished, {len(self.pending)} to run")
        before = [p.name for p in self.pending if _halved(p)]
        if before and not self.halving:
            self.screen.say(f"without --halving, {len(before)} halved points go on to the end")
        while self.pending or self.running:
            self._reap()
            if self.signals:
                self._forward()
                if not self.running:
                    break
            else:
                self._halt()
                if not self._start() and not self.running:
                    break  # those that are left stand at a rung
            if self.running or self.pending:
                self._show()
                time.sleep(POLL_S)
        halved = [] if self.signals else self._left()
        stopped = "stopped; rerun the same command to resume" if self.signals else ""
        return summary(self.points, self.failed, self.screen, stopped, self.blocked, halved)

    def _reap(self) -> None:
        for training in [t for t in self.running if t.process.poll() is not None]:
            self.running.remove(training)
            point, code = training.point, training.process.returncode
            result = point.result()
            if result is not None:
                self.screen.say(done(point, result))
            elif self.signals or training.halted or trainer_of(point) is not None:
                self.pending.append(point)  # stopped, or started by another process
                if training.halted:
                    self._record_halved(point)
            else:
                why = failure(point, code)
                self.failed[point.name] = why
                directory.record(
                    point.workdir, directory.FAILED, exit_code=code, reason=last_line(point.log)
                )
                self.screen.say(f"failed   {point.name}  {why}")

    def _halt(self) -> None:
        """Promotes the runs that are among the best of their rung, and stops the others there."""
        if self.halving is None:
            return
        for point in self.points:
            self.halving.read(point)
        for training in self.running:
            name = training.point.name
            if training.halted or not self.halving.stands(name):
                continue
            place = _place(self.halving.standing(name))
            if self.halving.can_go_on(name):
                self.halving.promote(name)
                self.screen.say(f"promoted {name}  {place}")
            else:
                training.halted = True
                training.process.send_signal(signal.SIGTERM)
                self.screen.say(f"halved   {name}  {place}")

    def _record_halved(self, point: Point) -> None:
        """Records where a point stands that was stopped at a rung, for other processes."""
        directory.record(point.workdir, directory.HALVED, **self.halving.standing(point.name))

    def _left(self) -> list[str]:
        """Names of the points that stand at a rung at the end; what waits for them is blocked."""
        standing = [p for p in self.pending if self.halving and self.halving.stands(p.name)]
        for point in standing:
            self._record_halved(point)
        for point in self.pending:
            if not branches.ready(point):
                self.blocked[point.name] = f"waits for {point.base}, which is halved"
        return [p.name for p in standing]

    def _start(self) -> bool:
        """Starts as many points as devices are free; returns whether there is one to wait for."""
        holders = {}
        for point in list(self.pending):
            result = point.result()
            if result is not None:
                self.pending.remove(point)
                self.screen.say(done(point, result))
            else:
                holders[point.name] = trainer_of(point)
        self._set_aside()
        free = self._free([holder for holder in holders.values() if holder is not None])
        idle = [p for p in self.pending if holders[p.name] is None and branches.ready(p)]
        idle = self._in_order(idle)
        for point in idle[: len(free)]:
            slot = free.pop(0)
            self.pending.remove(point)
            before = directory.ended(point.workdir)
            process = start(point, slot)
            if process is None:
                self.pending.append(point)  # another process has just started it
                continue
            self.running.append(_Training(point, process, slot))
            again = f"  again: {_failed_before(before)}" if before.get("failures") else ""
            where = f"  on devices {slot.gpus}" if slot.gpus else ""
            if self.halving and self.halving.stands(point.name):
                again = f"  promoted: {_place(self.halving.standing(point.name))}"
                self.halving.promote(point.name)
            self.screen.say(f"training {point.name}{where}{again}")
        return bool(idle) or any(holders.get(p.name) is not None for p in self.pending)

    def _in_order(self, idle: list[Point]) -> list[Point]:
        """The points that may be trained, in the order in which free devices take them."""
        if self.halving is None:
            return idle
        by_name = {p.name: p for p in idle}
        begun = {p.name for p in idle if last_rows(p.workdir)}
        return [by_name[name] for name in self.halving.order(at_random([*by_name]), begun)]

    def _set_aside(self) -> None:
        """Moves points that branch from one that will not be there from `pending` to `blocked`."""
        to_come = {p.name for p in self.pending} | {t.point.name for t in self.running}
        while True:
            lost = [
                p for p in self.pending
                if not branches.ready(p) and p.base.name not in to_come - self.blocked.keys()
                and not _locked(p.workdir.with_name(p.base.name))
            ]  # fmt: skip
            if not lost:
                return
            for point in lost:
                self.pending.remove(point)
                base = point.base.name
                why = "failed" if base in self.failed else "is not finished"
                why = "waits too" if base in self.blocked else why
                self.blocked[point.name] = f"waits for {point.base}, which {why}"
                self.screen.say(f"waits    {point.name}  for {point.base}, which {why}")

    def _free(self, holders: list[dict]) -> list[Slot]:
        """The slots used neither by our runs nor by runs of other processes on this machine."""
        free = list(self.slots)
        for training in self.running:
            free.remove(training.slot)
        for holder in holders:
            if holder.get("host", socket.gethostname()) != socket.gethostname() or not free:
                continue
            theirs = set(filter(None, holder.get("devices", "").split(",")))
            same = [slot for slot in free if theirs & set(slot.gpus.split(","))]
            for slot in same or free[:1]:
                free.remove(slot)
        return free

    def _forward(self) -> None:
        """Sends SIGTERM first, so that runs save and exit; forwards later signals unchanged."""
        for signum in self.signals[self.forwarded :]:
            for training in self.running:
                training.process.send_signal(signum if self.forwarded else signal.SIGTERM)
            if not self.forwarded and self.running:
                self.screen.say(
                    f"stopping: waiting for {len(self.running)} run(s) to save and exit"
                )
            self.forwarded += 1

    def _show(self) -> None:
        lines = [f"  {status(training.point)}" for training in self.running]
        elsewhere = [p for p in self.pending if trainer_of(p) is not None]
        lines += [f"  {status(point)}  (by another process)" for point in elsewhere]
        waiting = len(self.pending) - len(elsewhere)
        if waiting:
            lines.append(f"  {waiting} waiting")
        self.screen.show(lines)


def _locked(workdir) -> bool:
    """Whether a process trains in a directory, or is about to."""
    return lock.held(workdir / lock.NAME) or lock.held(workdir / directory.LOG)


def _halved(point: Point) -> bool:
    return directory.ended(point.workdir).get("how") == directory.HALVED


def _place(standing: dict) -> str:
    """ "eval/nll 3.2100 at step 100, 3 of 7"."""
    return (
        f"{standing['metric']} {standing['value']:.4f} at step {standing['step']}, "
        f"{standing['rank']} of {standing['of']}"
    )


def _failed_before(ended: dict) -> str:
    """ "failed 2 times, the last with exit code 2"."""
    count, code = ended["failures"], ended.get("exit_code")
    times = "once" if count == 1 else f"{count} times"
    return f"failed {times}" + (f", the last with {how_ended(code)}" if code is not None else "")


def summary(
    points: list[Point], failed: dict[str, str], screen: Screen, more: str, blocked=None, halved=()
) -> bool:
    """Prints the outcome of a sweep; returns whether every point is finished, or was halved.

    `failed` and `blocked` (points that wait for a failed one) have the reason of each; `halved` are
    the names of the points that stand at a rung.
    """
    finished = [p for p in points if p.result() is not None]
    ending = f", {len(failed)} failed" if failed else ""
    ending += f", {len(halved)} halved" if halved else ""
    ending += f", {len(blocked)} waiting for others" if blocked else ""
    screen.say(f"{len(finished)} of {len(points)} points finished{ending}")
    for name, why in {**failed, **(blocked or {})}.items():
        screen.say(f"  {name}  {why}")
    if more:
        screen.say(more)
    return len(finished) + len(halved) == len(points)


@contextlib.contextmanager
def stop_signals():
    """Collects signals in a list that grows, instead of stopping the process."""
    received: list[int] = []
    # nohup ignores SIGHUP, and so do the runs.
    stops = [s for s in STOPS if s != signal.SIGHUP or signal.getsignal(s) != signal.SIG_IGN]
    handlers = {s: signal.signal(s, lambda signum, _: received.append(signum)) for s in stops}
    try:
        yield received
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
