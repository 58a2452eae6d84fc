"""The user's mistakes, told in one sentence."""

import contextlib


class UserError(ValueError):
    """Something the user can mend: the command line prints it and exits with code 2."""


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
    """What a library says of an error, as far as it fits in a sentence."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
