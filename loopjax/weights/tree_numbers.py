"""The numbers of a checkpoint that another program wrote, as one dict that JSON can hold.

Every array is read once, in blocks, and summed in float64. What is not finite is counted, and left out
of the sums.
"""

import contextlib
import itertools
import math
import re

import numpy as np

from loopjax.checkpoint_files import Damaged
from loopjax.progress import Progress
from loopjax.weights import structure, tree_compare
from loopjax.weights.arrays import Tree, matching, open_tree
from loopjax.weights.stored import Array, reason
from loopjax.weights.structure import Stack
from loopjax.weights.sums import Sums, inner, measure, value_of


def inspect(source, step: int | None = None, *, layers=False, other=None, grep=None) -> dict:
    """What a checkpoint holds.

    Args:
      source: "DIR" or "DIR@STEP".
      step: which checkpoint; the newest by default.
      layers: norms by layer and cosines of neighbors, for every stack.
      other: "DIR" or "DIR@STEP", a checkpoint to compare with.
      grep: regular expression; only arrays whose path it matches (anywhere) are read.

    Raises UserError when there is no checkpoint, or no such array. What is damaged is listed in
    "unreadable".
    """
    tree = open_tree(source, step)
    other = open_tree(other) if other else None
    found = structure.roles(tree.arrays)
    stacks = structure.stacks(tree.arrays, found)
    chosen = matching(tree.arrays, grep, tree.path)
    total = sum(array.bytes for array in chosen.values())
    passes = 1 + sum(stack.axis is None for stack in stacks) * layers + 2 * (other is not None)
    progress = Progress(total * passes, "reading", in_bytes=True)
    axes = {a.name: s.axis for s in stacks for kind in s.kinds.values() for a in kind}
    unreadable = {k: v for k, v in tree.unreadable.items() if not grep or re.search(grep, k)}
    sums = {}
    for name, array in chosen.items():
        try:
            sums[name] = measure(array, axes.get(name), neighbors=layers, progress=progress)
        except Damaged as error:
            unreadable[name] = reason(error, name)
    rows = [about_array(array, found[name], sums.get(name)) for name, array in chosen.items()]
    result = {
        "checkpoint": about(tree, rows),
        "arrays": rows,
        "others": {k: v for k, v in tree.others.items() if not grep or re.search(grep, k)},
        "unreadable": unreadable,
        "stacks": [about_stack(stack, sums, layers, progress) for stack in stacks],
    }
    result["stacks"] = [stack for stack in result["stacks"] if stack["arrays"]]
    if other:
        result["against"] = tree_compare.compare(tree, other, grep, progress)
    progress.close()
    return result


def about(tree: Tree, rows: list[dict]) -> dict:
    meta = tree.metadata
    mesh = next(
        (a.sharding.mesh for a in tree.arrays.values() if a.sharding and a.sharding.mesh), {}
    )
    counts = {}
    for section in dict.fromkeys(row["role"] for row in rows):
        part = [row for row in rows if row["role"] == section]
        counts[section] = {
            "arrays": len(part),
            "elements": sum(math.prod(row["shape"]) for row in part),
            "bytes": sum(row["bytes"] for row in part),
            "stored": sum(row["stored"] or 0 for row in part),
            "below": _common([row["name"] for row in part]) if section.endswith("moment") else "",
        }
    return {
        "path": str(tree.path),
        "step": tree.step if tree.step is not None else _step(tree),
        "items": {
            name: {"kind": item.kind, "handler": item.handler} for name, item in tree.items.items()
        },
        "format": meta["format"],
        "begun": meta["begun"],
        "written": meta["written"],
        "custom": meta["custom"],
        "root": meta["root"],
        "metrics": meta["metrics"],
        "mesh": mesh,
        "totals": counts,
    }


def _common(names: list[str]) -> str:
    """The folder that all paths are below, as deep as possible."""
    first, *rest = (name.split("/")[:-1] for name in names)
    for k, folder in enumerate(first):
        if any(other[k : k + 1] != [folder] for other in rest):
            return "/".join(first[:k])
    return "/".join(first)


def _step(tree: Tree) -> int | None:
    """The value of the leaf "step", where the directory is not named after it."""
    for name, path in structure.paths_of(tree.arrays).items():
        array = tree.arrays[name]
        if path[-1] == "step" and len(path) <= 2 and array.size == 1:
            try:
                return int(array.read().ravel()[0])
            except (Damaged, TypeError):
                return None
    return None


def about_array(array: Array, role, sums: Sums | None) -> dict:
    sharding = None
    if array.sharding is not None:
        sharding = {
            "spec": [axes(axis) for axis in array.sharding.spec],
            "mesh": array.sharding.mesh,
        }
    row = {
        "name": array.name,
        "keys": list(array.keys),
        "item": array.item,
        "kind": array.kind,
        "shape": list(array.shape),
        "dtype": array.dtype,
        "sharding": sharding,
        "bytes": array.bytes,
        "stored": array.stored,
        "role": role.section,
        "parameter": role.parameter or None,
        "of": role.of or None,
        "norm": None,
        "rms": None,
        "largest": None,
        "not_finite": None,
        "value": None,
    }
    if sums is not None:
        bad = int(sums.bad.sum())
        counted = array.size - bad
        norm = math.sqrt(float(sums.squares.sum()))
        row |= {"norm": norm, "rms": norm / math.sqrt(counted) if counted else None}
        row |= {"largest": sums.largest, "not_finite": bad}
    elif array.size == 1:
        with contextlib.suppress(Damaged):
            row["value"] = value_of(array)
    return row


def axes(axis) -> list[str]:
    """The mesh axes that shard one axis of an array."""
    if axis is None:
        return []
    return [axis] if isinstance(axis, str) else list(axis)


def about_stack(stack: Stack, sums: dict[str, Sums], layers: bool, progress=None) -> dict:
    """A stack; with `layers` norms by layer, and cosines of neighbors.

    "matrices" takes the matrices of a layer as one vector; scales and biases are left out of it, since
    scales near 1 would make any two layers look alike.
    """
    kinds = {kind: a for kind, a in stack.kinds.items() if all(sums.get(x.name) for x in a)}
    known = [a.name for kind in stack.kinds.values() for a in kind if a.name in sums]
    out = {"name": stack.name, "axis": stack.axis, "layers": stack.layers, "arrays": known}
    if not layers or not kinds:
        return out
    squares, products = {}, {}
    for kind, arrays in kinds.items():
        if stack.axis is not None:
            squares[kind] = sums[arrays[0].name].squares
            products[kind] = sums[arrays[0].name].neighbors
        else:
            squares[kind] = np.array([sums[a.name].squares.sum() for a in arrays])
            pairs = itertools.pairwise(arrays)
            products[kind] = np.array([inner(a, b, progress) for a, b in pairs])
    matrices = [k for k, a in kinds.items() if len(a[0].shape) - (stack.axis is not None) >= 2]
    if matrices:
        for part in (squares, products):
            part["matrices"] = sum(part[kind] for kind in matrices)
    out["norms"] = {kind: np.sqrt(s).tolist() for kind, s in squares.items() if kind != "matrices"}
    out["neighbors"] = [
        {"layers": [i, i + 1],
         "cosine": {k: _cosine(p[i], squares[k][i], squares[k][i + 1]) for k, p in products.items()}}
        for i in range(stack.layers - 1)
    ]  # fmt: skip
    return out


def _cosine(product: float, a: float, b: float) -> float | None:
    """The cosine, to the 12 digits that sums in float64 hold; None if one norm is zero."""
    return round(max(-1.0, min(1.0, product / math.sqrt(a * b))), 12) if a and b else None
