"""Errors of the user, reported in one sentence."""

import contextlib
import importlib


class UserError(ValueError):
    """A mistake that the user can fix; the command line prints it and exits with code 2."""


class MissingPackage(UserError):
    """An optional package is not installed; the message names the extra that installs it."""


def require(module: str, extra: str, what: str = ""):
    """Imports and returns an optional package or a module of it.

    Args:
      module: its name, such as "matplotlib.figure".
      extra: the extra of loopjax that installs the package.
      what: the subject of the sentence: what needs the package, if not the command itself.

    Raises MissingPackage: "needs pip install 'loopjax[eval]' (lm_eval is not installed)".
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = (error.name or module).partition(".")[0]
        sentence = f"{what} needs pip install 'loopjax[{extra}]' ({package} is not installed)"
        raise MissingPackage(sentence.strip()) from None


@contextlib.contextmanager
def field(name: str):
    """Turns a ValueError about a value into a UserError that names the config field."""
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"config.{name}: {error}") from None


def first_line(error: Exception) -> str:
    """First line of the message of an error, for use in a sentence; its type if it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
