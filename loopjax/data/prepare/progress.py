"""The progress line of `loopjax prepare`: pieces, input, speed, time left."""

import time

from loopjax.progress import Line, duration


class Progress:
    """Counts the bytes that the workers have read, and shows them on one line.

    Args:
      pieces: all pieces of the job.
      done: pieces that are finished already; they do not count for the speed.
    """

    def __init__(self, pieces: list, done: list):
        self.n_pieces = len(pieces)
        self.bytes = sum(piece.bytes for piece in pieces)
        self.bytes_before = sum(piece.bytes for piece in done)
        self.read = {piece.name: piece.bytes for piece in done}  # bytes of input by piece
        self.text = {}  # bytes of text by piece, in UTF-8
        self.finished = len(done)
        self.begun = time.monotonic()
        self.line = Line()

    def reading(self, piece, read: int, text: int) -> None:
        """Counts a piece up to the bytes that were read of it."""
        self.read[piece.name] = min(read, piece.bytes)
        self.text[piece.name] = text
        self.show()

    def done(self, piece, text: int) -> None:
        """Counts a finished piece."""
        self.read[piece.name] = piece.bytes
        self.text[piece.name] = text
        self.finished += 1
        self.show()

    def show(self, *, last: bool = False) -> None:
        """Prints the line if it is due, or if it is the last one."""
        if not (last or self.line.due(self.begun)):
            return
        read = sum(self.read.values())
        seconds = max(time.monotonic() - self.begun, 1e-9)
        speed = (read - self.bytes_before) / seconds
        left = duration((self.bytes - read) / speed) if speed else "unknown"
        self.line.show(
            f"pieces {self.finished}/{self.n_pieces}  {read / 1e6:,.0f}/{self.bytes / 1e6:,.0f} MB  "
            f"{speed / 1e6:.1f} MB/s (text {sum(self.text.values()) / 1e6 / seconds:.1f} MB/s)  "
            f"ETA {left}",
            last=last,
        )
