"""Errors of the user, reported in one sentence."""

import contextlib


class UserError(ValueError):
    """A mistake that the user can fix; the command line prints it and exits with code 2."""


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
