"""Two checkpoints compared: their metadata, and the distance of their weights."""

import math

import numpy as np

from loopjax import lineage
from loopjax.config import flatten
from loopjax.weights.saved import Leaf, Saved
from loopjax.weights.stored import columns


def compare(a: Saved, b: Saved, progress=None, names=None) -> dict:
    """The differences of two checkpoints.

    A field is [value in a, value in b], None for a missing one. The distance of weights is
    ||a - b|| / ||a||, over the pairs of corresponding layers (`lineage.match`), for all parameters or
    those with these names.
    """
    rule, pairs = lineage.match(*(lineage.stages(s.meta["lineage"]) for s in (a, b)))
    modules = []
    layers = np.zeros((4, len(pairs)))  # the sums of `_products` over all matrices
    not_compared = []
    leaves_a = a.params()
    leaves_b = b.params()
    for name in (*leaves_a, *(leaves_b.keys() - leaves_a.keys())):
        if names is not None and name not in names:
            continue
        x = leaves_a.get(name)
        y = leaves_b.get(name)
        reason = _incomparable(x, y, pairs)
        if reason:
            not_compared.append({"name": name, "why": reason})
            continue
        sums = _products(a, x, b, y, pairs, progress)
        modules.append({"name": name, **distance(*sums.sum(axis=1))})
        if len(x.shape) == 3:
            layers += sums
    fields = ("model", "config", "data")
    return {
        "directory": str(b.path.parent),
        "step": b.meta["step"],
        "plan": _pair(a, b, "plan"),
        "lineage": _pair(a, b, "lineage"),
        **{field: differences(a.meta[field], b.meta[field]) for field in fields},
        "rule": rule,
        "modules": modules,
        "layers": [
            {"layers": [i, j], **distance(*column)}
            for (i, j), column in zip(pairs, layers.T, strict=True)
        ],
        "not_compared": not_compared,
    }


def _pair(a: Saved, b: Saved, key: str) -> list | None:
    return None if a.meta[key] == b.meta[key] else [a.meta[key], b.meta[key]]


def differences(a: dict, b: dict) -> dict[str, list]:
    """The fields in which two nested dicts differ: {"model.d_model": [64, 128]}."""
    a = flatten(a)
    b = flatten(b)
    names = sorted({**a, **b})
    return {name: [a.get(name), b.get(name)] for name in names if a.get(name) != b.get(name)}


def _incomparable(x: Leaf | None, y: Leaf | None, pairs) -> str | None:
    """Why two parameters cannot be compared."""
    if x is None or y is None:
        return f"only in the {'second' if x is None else 'first'}"
    if x.shape[x.stacked :] != y.shape[y.stacked :]:
        return f"{times(x.shape)} in the first and {times(y.shape)} in the second"
    if x.stacked and not pairs:
        return "no layers correspond"
    return None


def times(shape) -> str:
    return "x".join(map(str, shape))


def _products(a: Saved, x: Leaf, b: Saved, y: Leaf, pairs, progress) -> np.ndarray:
    """Sums of x^2, y^2, (x - y)^2 and x y for each pair of layers, [4, pairs] ([4, 1])."""
    rows = np.array(pairs).T if x.stacked else np.zeros((2, 1), int)
    sums = np.zeros((4, rows.shape[1]))
    blocks = x.blocks()
    of_y = [(slice(0, y.shape[0]), *block[1:]) for block in blocks] if x.stacked else blocks
    readers = a.read(x, blocks, progress), b.read(y, of_y, progress)
    for ours, theirs in zip(*readers, strict=True):
        ours = ours.reshape(x.shape[0] if x.stacked else 1, -1)
        theirs = theirs.reshape(y.shape[0] if x.stacked else 1, -1)
        for k, (i, j) in enumerate(rows.T):
            for pair in columns(ours[i : i + 1], theirs[j : j + 1]):
                u, v = (part[0].astype(np.float64) for part in pair)
                sums[:, k] += u @ u, v @ v, (u - v) @ (u - v), u @ v
    return sums


def distance(ours: float, theirs: float, apart: float, inner: float) -> dict:
    """Relative distance and cosine; None where a norm of zero leaves them undefined."""
    cosine = inner / math.sqrt(ours * theirs) if ours and theirs else None
    return {
        "distance": math.sqrt(apart / ours) if ours else None,
        "cosine": None if cosine is None else round(max(-1.0, min(1.0, cosine)), 12),
    }
