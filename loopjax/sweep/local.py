"""The launcher on this machine: points one after another, or several at a time.

A point is trained by the command that a user would type, in a process of its own, so that what
fails or is killed is one run. Who trains in a directory holds its lock (`loopjax.lock`): a point
that another process trains (a sweep that was killed leaves such ones, or one that runs beside this
one) is waited for, not started again.
"""

import contextlib
import dataclasses
import os
import shlex
import signal
import socket
import subprocess
import time

from loopjax import lock
from loopjax.sweep.points import Point
from loopjax.sweep.progress import Screen, done, failure, status

POLL_S = 0.5


@dataclasses.dataclass
class _Training:
    point: Point
    process: subprocess.Popen
    slot: str


def start(point: Point, env: dict | None = None, log=None) -> subprocess.Popen | None:
    """Starts to train a point; None where another process does so, or has finished it.

    What it says is added to its log, whose lock it has from its first moment to its last, also when
    the sweep is gone.
    """
    point.workdir.mkdir(parents=True, exist_ok=True)
    with open(log or point.log, "a") as file:
        if not lock.grab(file.fileno()) or point.result() is not None:
            return None
        print(f"$ {shlex.join(point.command)}", file=file, flush=True)
        # A session of its own: Ctrl-C reaches the sweep alone, which passes on what is meant.
        return subprocess.Popen(
            point.command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})}, start_new_session=True,
        )  # fmt: skip


def trainer_of(point: Point) -> dict | None:
    """Who trains a point: "host", "pid" and "devices", as far as it is known; None: nobody."""
    who = lock.holder(point.workdir)
    return {} if who is None and lock.held(point.log) else who


def run(points: list[Point], slots: list[str], screen: Screen) -> bool:
    """Trains the points that are not finished; returns whether all of them are in the end.

    Args:
      points: those of the sweep.
      slots: one for each run at a time: its CUDA_VISIBLE_DEVICES, empty for those of the sweep.
    """
    with stop_signals() as asked:
        return _Sweep(points, slots, screen, asked).run()


class _Sweep:
    def __init__(self, points: list[Point], slots: list[str], screen: Screen, asked: list[int]):
        self.points, self.slots, self.screen, self.asked = points, slots, screen, asked
        self.pending = [point for point in points if point.result() is None]
        self.running: list[_Training] = []
        self.failed: dict[str, str] = {}
        self.passed_on = 0  # signals

    def run(self) -> bool:
        n = len(self.points)
        finished = n - len(self.pending)
        self.screen.say(f"{n} points: {finished} finished, {len(self.pending)} to run")
        while self.pending or self.running:
            self._reap()
            if self.asked:
                self._pass_on()
                if not self.running:
                    break
            else:
                self._start()
            if self.running or self.pending:
                self._show()
                time.sleep(POLL_S)
        stopped = "stopped; the same command goes on" if self.asked else ""
        return summary(self.points, self.failed, self.screen, stopped)

    def _reap(self) -> None:
        for training in [t for t in self.running if t.process.poll() is not None]:
            self.running.remove(training)
            point, code = training.point, training.process.returncode
            result = point.result()
            if result is not None:
                self.screen.say(done(point, result))
            elif self.asked or trainer_of(point) is not None:
                self.pending.append(point)  # stopped, or another process was faster
            else:
                why = failure(point, code)
                self.failed[point.name] = why
                self.screen.say(f"failed   {point.name}  {why}")

    def _start(self) -> None:
        holders = {}
        for point in list(self.pending):
            result = point.result()
            if result is not None:
                self.pending.remove(point)
                self.screen.say(done(point, result))
            else:
                holders[point.name] = trainer_of(point)
        free = self._free([holder for holder in holders.values() if holder is not None])
        for point in [p for p in self.pending if holders[p.name] is None][: len(free)]:
            slot = free.pop(0)
            self.pending.remove(point)
            process = start(point, {"CUDA_VISIBLE_DEVICES": slot} if slot else None)
            if process is None:
                self.pending.append(point)  # another was faster
                continue
            self.running.append(_Training(point, process, slot))
            self.screen.say(f"training {point.name}" + (f"  on devices {slot}" if slot else ""))

    def _free(self, holders: list[dict]) -> list[str]:
        """The slots that neither our runs take nor those of others on this machine."""
        free = list(self.slots)
        for training in self.running:
            free.remove(training.slot)
        for holder in holders:
            if holder.get("host", socket.gethostname()) != socket.gethostname() or not free:
                continue
            theirs = set(filter(None, holder.get("devices", "").split(",")))
            same = [slot for slot in free if theirs & set(slot.split(","))]
            for slot in same or free[:1]:
                free.remove(slot)
        return free

    def _pass_on(self) -> None:
        """SIGTERM first, on which runs save and exit; what comes after it as it is."""
        for signum in self.asked[self.passed_on :]:
            for training in self.running:
                training.process.send_signal(signum if self.passed_on else signal.SIGTERM)
            if not self.passed_on and self.running:
                self.screen.say(f"stopping: {len(self.running)} run(s) save and exit")
            self.passed_on += 1

    def _show(self) -> None:
        lines = [f"  {status(training.point)}" for training in self.running]
        elsewhere = [p for p in self.pending if trainer_of(p) is not None]
        lines += [f"  {status(point)}  (by another process)" for point in elsewhere]
        waiting = len(self.pending) - len(elsewhere)
        self.screen.show([*lines, *([f"  {waiting} more to come"] if waiting else [])])


def summary(points: list[Point], failed: dict[str, str], screen: Screen, more: str) -> bool:
    """Tells what came of a sweep; returns whether every point is finished."""
    finished = [p for p in points if p.result() is not None]
    ending = f", {len(failed)} failed" if failed else ""
    screen.say(f"{len(finished)} of {len(points)} points finished{ending}")
    for name, why in failed.items():
        screen.say(f"  {name}  {why}")
    if more:
        screen.say(more)
    return len(finished) == len(points)


@contextlib.contextmanager
def stop_signals():
    """Collects SIGTERM and SIGINT, in a list that grows."""
    asked: list[int] = []
    handlers = {s: signal.signal(s, lambda signum, _: asked.append(signum)) for s in _STOPS}
    try:
        yield asked
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)


_STOPS = (signal.SIGTERM, signal.SIGINT)
