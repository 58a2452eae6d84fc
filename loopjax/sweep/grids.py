"""Combinations of field values, for the function sweep(add) of a config file.

from loopjax.sweep import product, zipped

def sweep(add):
    for fields in product(learning_rate=[1e-4, 1e-3], seed=range(3)):
        add(**fields)
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping

from loopjax.errors import UserError


def product(*groups, **values) -> Iterator[dict]:
    """Every combination of field values, as dicts for `add(**fields)`; the last field varies fastest.

    Args:
      groups: {field: values} for fields with a dot, such as {"model.d_model": [64, 128]}, or the
        result of `zipped` or `product`, whose dicts are combined as they are.
      values: values of each field: a list, range or other iterable, but no text.

    Raises UserError for a field without values and for one that is given twice.
    """
    axes = []
    for group in [*groups, values]:
        if isinstance(group, Mapping):
            axes += [
                [{field: value} for value in _values("product", field, values)]
                for field, values in group.items()
            ]
        else:
            axes.append(_dicts(group))
    return iter([_merged(parts) for parts in itertools.product(*axes)])


def zipped(fields: Mapping | None = None, /, **values) -> Iterator[dict]:
    """Field values side by side, as dicts for `add(**fields)`: the first of each, the second, ...

    Args:
      fields: {field: values} for fields with a dot.
      values: values of each field, all of the same number.

    Raises UserError for different numbers of values.
    """
    columns = {
        field: _values("zipped", field, column)
        for group in (fields or {}, values)
        for field, column in _fields(group).items()
    }
    counts = {field: len(column) for field, column in columns.items()}
    if len(set(counts.values())) > 1:
        given = ", ".join(f"{count} of {field}" for field, count in counts.items())
        raise UserError(f"zipped() must get as many values of each field; there are {given}")
    return iter(
        [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    )


def _fields(group) -> Mapping:
    if not isinstance(group, Mapping):
        raise UserError(f"zipped() takes {{field: values}}, not {group!r}")
    return group


def _values(function: str, field, values) -> list:
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise UserError(f"{function}(): {field}={values!r} must be a list of values")
    values = list(values)
    if not values:
        raise UserError(f"{function}(): {field} has no values")
    return values


def _dicts(group) -> list[dict]:
    dicts = list(group) if isinstance(group, Iterable) and not isinstance(group, str) else None
    if not dicts or not all(isinstance(one, Mapping) for one in dicts):
        raise UserError(
            f"product() takes {{field: values}} or the result of zipped() or product(), not {group!r}"
        )
    return dicts


def _merged(parts: tuple[dict, ...]) -> dict:
    merged = {}
    for part in parts:
        twice = sorted(merged.keys() & part.keys())
        if twice:
            raise UserError(f"product(): {twice[0]} is given twice")
        merged |= part
    return merged
