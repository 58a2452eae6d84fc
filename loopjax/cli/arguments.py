"""Command lines without a config: argparse whose mistakes are `UserError`s."""

import argparse
import inspect
import re

from loopjax.errors import UserError

UNITS = {"kB": 10**3, "MB": 10**6, "MiB": 2**20, "GB": 10**9, "GiB": 2**30, "TB": 10**12}


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(message)


def parser(verb: str, text: str) -> argparse.ArgumentParser:
    """The parser of `loopjax VERB`; `text` is its help."""
    keep_lines = argparse.RawDescriptionHelpFormatter
    return _Parser(
        prog=f"loopjax {verb}", description=inspect.cleandoc(text), formatter_class=keep_lines
    )


def size(text: str) -> int:
    """ "80GB" -> 80,000,000,000 bytes."""
    match = re.fullmatch(rf"(\d+(?:\.\d+)?) ?({'|'.join(UNITS)})", text)
    if not match:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no size; write 80GB, say ({', '.join(UNITS)})"
        )
    return round(float(match[1]) * UNITS[match[2]])


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return int(text)
