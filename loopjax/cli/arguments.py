"""Parts shared by the commands: argparse whose mistakes are `UserError`s, and types of values."""

import argparse
import inspect
import json
import re
import sys

from loopjax.errors import UserError

UNITS = {"kB": 10**3, "MB": 10**6, "MiB": 2**20, "GB": 10**9, "GiB": 2**30, "TB": 10**12}


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(message)


class _Help(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog):
        super().__init__(prog, max_help_position=32)


def parser(command: str, text: str) -> argparse.ArgumentParser:
    """The parser of `loopjax COMMAND`; `text` is the description in its help."""
    return _Parser(
        prog=f"loopjax {command}", description=inspect.cleandoc(text), formatter_class=_Help
    )


def say(text: str) -> None:
    """Prints a message to standard error; standard output is for results."""
    print(text, file=sys.stderr, flush=True)


def use_cpu() -> None:
    """Keeps this process off the accelerators, which may belong to a run on this machine."""
    import jax

    jax.config.update("jax_platforms", "cpu")


def size(text: str) -> int:
    """ "80GB" -> 80,000,000,000 bytes."""
    match = re.fullmatch(rf"(\d+(?:\.\d+)?) ?({'|'.join(UNITS)})", text)
    if not match:
        raise argparse.ArgumentTypeError(
            f"invalid size {text!r}: use e.g. 80GB (units: {', '.join(UNITS)})"
        )
    return round(float(match[1]) * UNITS[match[2]])


def whole(text: str) -> int:
    """A whole number from 0 to 2^63 - 1."""
    if not re.fullmatch("[0-9]{1,19}", text) or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 0")
    return int(text)


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return int(text)


def positives(text: str) -> list[int]:
    """Whole numbers of at least 1, joined by commas; each once, in ascending order."""
    return sorted({positive(part) for part in text.split(",")})


def mixture(text: str | None) -> dict | None:
    """The weights of a data mixture from JSON; None for None."""
    if text is None:
        return None
    try:
        weights = json.loads(text)
        if weights and all(isinstance(w, int | float) and w > 0 for w in weights.values()):
            return weights
    except (ValueError, AttributeError):
        pass
    raise UserError(f'--mixture {text!r} must be like \'{{"web": 0.7, "math": 0.3}}\'')
