"""What a JSON file must contain for the code that reads it, so that damage is reported as such."""

import contextlib
import math

from loopjax.depth import DepthPlan
from loopjax.errors import UserError


def number(value) -> bool:
    """A number, also NaN or infinite, that fits a float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    with contextlib.suppress(OverflowError):
        return math.isnan(value) or float(value) is not None
    return False


def count(value) -> bool:
    """A whole number from 0."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def plan(value) -> bool:
    """A depth plan."""
    try:
        return bool(DepthPlan.parse(value))
    except ValueError:
        return False


NAMES = {number: "a number", count: "a whole number", plan: "a depth plan", str: "a text",
         dict: "an object", list: "a list", None: "null"}  # fmt: skip


def check(value, shape, where: str = "") -> None:
    """Raises ValueError, "nll is 'x', not a number", if a value has not the shape.

    Args:
      shape: a function of this module, str, dict or list; [shape] for a list of such values;
        {"key": shape} for an object with these keys, optional where the key ends in "?", others
        being free or, with the key ..., of its shape; a tuple of shapes for any one of them.
      where: what the value is called in the message.
    """
    if isinstance(shape, tuple):
        _any(value, shape, where)
    elif isinstance(shape, list):
        check(value, list, where)
        for i, part in enumerate(value):
            check(part, shape[0], f"{where}[{i}]")
    elif isinstance(shape, dict):
        check(value, dict, where)
        _keys(value, shape, f"{where}." if where else "")
    elif not _is(value, shape):
        raise ValueError(f"{where or 'it'} is {value!r:.60}, not {NAMES[shape]}")


def _keys(value: dict, shape: dict, before: str) -> None:
    for key, part in shape.items():
        if key is ...:
            named = {k.removesuffix("?") for k in shape if k is not ...}
            for other in value.keys() - named:
                check(value[other], part, f"{before}{other}")
        elif (name := key.removesuffix("?")) in value:
            check(value[name], part, f"{before}{name}")
        elif name == key:
            raise ValueError(f"it has no {before}{key}")


def _any(value, shapes: tuple, where: str) -> None:
    for shape in shapes[:-1]:
        with contextlib.suppress(ValueError):
            return check(value, shape, where)
    return check(value, shapes[-1], where)


def _is(value, shape) -> bool:
    if shape is None:
        return value is None
    return isinstance(value, shape) if isinstance(shape, type) else shape(value)


def check_file(path, value, shape) -> None:
    """`check` of the content of a file; raises UserError that names it."""
    try:
        check(value, shape)
    except ValueError as error:
        raise UserError(f"{path} is damaged or incomplete: {error}") from None
