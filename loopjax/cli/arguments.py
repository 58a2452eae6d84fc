"""Parts shared by the commands: argparse whose mistakes are `UserError`s, and types of values."""

import argparse
import inspect
import json
import math
import re
import sys

from loopjax import paths
from loopjax.errors import UserError

UNITS = {"kB": 10**3, "MB": 10**6, "MiB": 2**20, "GB": 10**9, "GiB": 2**30, "TB": 10**12}


# Metavars of flags that take a path, alone or besides names: DIR[@STEP], FILE.json, bytes|PATH|ID.
_PATH = re.compile(r"(?<!:)\b(DIR|CHECKPOINT_DIR|FILE|PATH|OUT)\b")


class _Parser(argparse.ArgumentParser):
    """Reports mistakes as `UserError`s, and refuses what no flag for a path can mean.

    Attributes:
      buckets: whether paths may be of a bucket, gs://...
    """

    buckets = True

    def error(self, message):
        raise UserError(" ".join(message.split()))

    def parse_known_args(self, args=None, namespace=None):
        found, rest = super().parse_known_args(args, namespace)
        for action in self._actions:
            if isinstance(action.metavar, str) and _PATH.search(action.metavar):
                value = getattr(found, action.dest, None)
                for text in value if isinstance(value, list) else [value]:
                    if text is not None:
                        name = action.option_strings[0] if action.option_strings else action.metavar
                        labeled = "LABEL=" in action.metavar and "://" not in text.partition("=")[0]
                        accept = paths.location if self.buckets else paths.local
                        accept(text.rpartition("=")[2] if labeled else text, name)
        return found, rest


class _Help(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog):
        super().__init__(prog, max_help_position=32)


def parser(command: str, text: str, *, buckets: bool = True) -> argparse.ArgumentParser:
    """The parser of `loopjax COMMAND`.

    Args:
      text: the description in its help.
      buckets: whether its paths may be of a bucket.
    """
    made = _Parser(
        prog=f"loopjax {command}", description=inspect.cleandoc(text), formatter_class=_Help
    )
    made.buckets = buckets
    return made


def say(text: str) -> None:
    """Prints a message to standard error; standard output is for results."""
    print(text, file=sys.stderr, flush=True)


def use_cpu() -> None:
    """Keeps this process off the accelerators, which may belong to a run on this machine."""
    import jax

    jax.config.update("jax_platforms", "cpu")


MOST = 2**31 - 1


def size(text: str) -> int:
    """ "80GB" -> 80,000,000,000 bytes."""
    match = re.fullmatch(rf"(\d{{1,9}}(?:\.\d{{1,9}})?) ?({'|'.join(UNITS)})", text)
    count = round(float(match[1]) * UNITS[match[2]]) if match else 0
    if not count:
        raise argparse.ArgumentTypeError(
            f"invalid size {text!r}: use e.g. 80GB (units: {', '.join(UNITS)})"
        )
    return count


def whole(text: str, least: int = 0, most: int = MOST) -> int:
    """A whole number within bounds."""
    digits = re.fullmatch("[0-9]{1,18}", text)
    if not digits or not least <= int(text) <= most:
        bounds = f"within {least}..{most}" if most != MOST else f"of at least {least}"
        if digits and int(text) > most:
            bounds = f"of at most {most}"
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number {bounds}")
    return int(text)


def positive(text: str) -> int:
    """A whole number of at least 1."""
    return whole(text, 1)


def seed(text: str) -> int:
    """A seed of random numbers, 0..2^32-1."""
    return whole(text, most=2**32 - 1)


def number(text: str) -> float:
    """A finite number of at least 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} must be a finite number of at least 0")
    return value


def positives(text: str) -> list[int]:
    """Whole numbers of at least 1, joined by commas; each once, in ascending order."""
    return sorted({positive(part) for part in text.split(",")})


def mixture(text: str | None) -> dict | None:
    """The weights of a data mixture from JSON; None for None."""
    if text is None:
        return None
    try:
        weights = json.loads(text)
        if weights and all(type(w) in (int, float) and 0 < w < math.inf for w in weights.values()):
            return {name: float(weight) for name, weight in weights.items()}
    except (ValueError, AttributeError, RecursionError, OverflowError):
        pass
    raise UserError(f'--mixture {text!r} must be like \'{{"web": 0.7, "math": 0.3}}\'')
