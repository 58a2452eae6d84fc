"""Two checkpoints of any programs compared, array by array."""

import re

import jax.numpy as jnp
import numpy as np

from loopjax.checkpoint_files import Damaged
from loopjax.weights import structure
from loopjax.weights.arrays import Tree
from loopjax.weights.compare import differences, distance, times
from loopjax.weights.stored import Array, reason
from loopjax.weights.sums import parts, value_of, wide


def compare(a: Tree, b: Tree, grep: str | None, progress=None) -> dict:
    """The differences of two checkpoints.

    Arrays correspond if they are the same parameter (or its moment) by path, else by full path. The
    distance is ||a - b|| / ||a||, over elements that are finite in both. Stacks of different depth are
    compared layer i with layer i.

    Raises UserError when an array cannot be read; a damaged one is not compared.
    """
    roles_a, roles_b = structure.roles(a.arrays), structure.roles(b.arrays)
    axes_a, axes_b = _axes(a, roles_a), _axes(b, roles_b)
    theirs: dict[tuple, list[str]] = {}
    for name, role in roles_b.items():
        theirs.setdefault((role.section, role.parameter or name), []).append(name)
    arrays, values, not_compared, depths = [], [], [], {}
    layers: dict[str, np.ndarray] = {}
    left = set(b.arrays)
    for name, x in a.arrays.items():
        role = roles_a[name]
        names = theirs.get((role.section, role.parameter or name), [])
        match = name if name in b.arrays else names[0] if len(names) == 1 else None
        left.discard(match)
        if grep and not re.search(grep, name):
            continue
        y = b.arrays.get(match)
        axis = axes_a.get(name, (None, None))[1]
        same_axis = y is not None and axis == axes_b.get(match, (None, None))[1]
        if why := _incomparable(x, y, axis if same_axis else None):
            not_compared.append({"name": name, "why": why})
            continue
        try:
            if x.size == y.size == 1:
                pair = [value_of(x), value_of(y)]
                if pair[0] != pair[1]:
                    values.append({"name": name, "values": pair})
                continue
            sums = _products(x, y, axis if same_axis else None, progress)
        except Damaged as error:
            not_compared.append({"name": name, "why": reason(error, name)})
            continue
        arrays.append({"name": name, "other": match, **distance(*sums.sum(axis=1))})
        if axis is not None and same_axis:
            stack = axes_a[name][0]
            depths[stack] = [x.shape[axis], y.shape[axis]]
            if role.section == structure.PARAMETER and len(x.shape) >= 3:
                layers[stack] = layers.get(stack, 0) + sums
    not_compared += [
        {"name": name, "why": "only in the second"}
        for name in sorted(left)
        if not grep or re.search(grep, name)
    ]
    return {
        "path": str(b.path),
        "step": b.step,
        "custom": differences(a.metadata["custom"], b.metadata["custom"]),
        "depths": depths,
        "arrays": arrays,
        "values": values,
        "layers": [
            {"stack": stack, "layers": [i, i], **distance(*column)}
            for stack, sums in layers.items()
            for i, column in enumerate(sums.T)
        ],
        "not_compared": not_compared,
    }


def _axes(tree: Tree, roles) -> dict[str, tuple[str, int]]:
    """{array: (stack, axis of the layers)}, for the moments of its parameters too."""
    found = {}
    for stack in structure.stacks(tree.arrays, roles):
        for arrays in stack.kinds.values() if stack.axis is not None else ():
            found[arrays[0].name] = (stack.name, stack.axis)
    moments = {name: found[role.of] for name, role in roles.items() if role.of in found}
    return found | moments


def _incomparable(x: Array, y: Array | None, axis: int | None) -> str | None:
    """Why two arrays cannot be compared; `axis` may differ in size."""
    if y is None:
        return "only in the first"
    rests = [list(array.shape) for array in (x, y)]
    if axis is not None and len(rests[0]) == len(rests[1]):
        for rest in rests:
            del rest[axis]
    if rests[0] != rests[1]:
        return f"{times(x.shape)} in the first and {times(y.shape)} in the second"
    numbers = (jnp.issubdtype(array.dtype, jnp.number) for array in (x, y))
    return None if all(numbers) else "no numbers"


def _products(x: Array, y: Array, axis: int | None, progress) -> np.ndarray:
    """Sums of x^2, y^2, (x - y)^2 and x y for each layer that both have, [4, layers] ([4, 1])."""
    layers = 1 if axis is None else min(x.shape[axis], y.shape[axis])
    sums = np.zeros((4, layers))
    cuts_x = x.blocks(axis)
    cuts_y = cuts_x
    if axis is not None:
        everything = slice(0, y.shape[axis])
        cuts_y = [(*cut[:axis], everything, *cut[axis + 1 :]) for cut in cuts_x]
    for ours, theirs in zip(x.pieces(cuts_x), y.pieces(cuts_y), strict=True):
        for pair in parts(axis, ours, theirs):
            u, v = (wide(part[:layers]).astype(np.float64) for part in pair)
            finite = np.isfinite(u) & np.isfinite(v)
            if not finite.all():
                u, v = np.where(finite, u, 0), np.where(finite, v, 0)
            for row, (p, q) in zip(sums, ((u, u), (v, v), (u - v, u - v), (u, v)), strict=True):
                row += np.einsum("ln,ln->l", p, q)
        if progress:
            progress.update(ours.nbytes + theirs.nbytes)
    return sums
