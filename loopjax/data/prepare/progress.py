"""How far `loopjax prepare` is, on stderr."""

import sys
import time

from loopjax.progress import duration

SAY_SECONDS = 5.0


class Progress:
    """A line a few seconds apart: pieces, input, speed, time left."""

    def __init__(self, pieces: list, done: list):
        self.total = len(pieces), sum(piece.bytes for piece in pieces)
        self.before = sum(piece.bytes for piece in done)
        self.read, self.taken = {piece.name: piece.bytes for piece in done}, {}
        self.finished = len(done)
        self.begun = self.said = time.monotonic()

    def reading(self, piece, read: int, taken: int) -> None:
        self.read[piece.name], self.taken[piece.name] = min(read, piece.bytes), taken
        self.say()

    def done(self, piece, taken: int) -> None:
        self.read[piece.name], self.taken[piece.name] = piece.bytes, taken
        self.finished += 1
        self.say()

    def say(self, *, last: bool = False) -> None:
        now = time.monotonic()
        if now - self.said < SAY_SECONDS and not last:
            return
        self.said = now
        pieces, total = self.total
        read, seconds = sum(self.read.values()), max(now - self.begun, 1e-9)
        speed = (read - self.before) / seconds
        left = duration((total - read) / speed) if speed else "unknown"
        print(
            f"pieces {self.finished}/{pieces}  {read / 1e6:,.0f}/{total / 1e6:,.0f} MB  "
            f"{speed / 1e6:.1f} MB/s (text {sum(self.taken.values()) / 1e6 / seconds:.1f} MB/s)  "
            f"ETA {left}",
            file=sys.stderr,
            flush=True,
        )
