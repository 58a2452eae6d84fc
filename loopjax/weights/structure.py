"""What the arrays of any checkpoint are, by their names: parameters, optimizer moments, stacks of layers.

Programs name alike what is alike: parameters are below "params", Adam's moments are "mu" and "nu" (or "m"
and "v", "exp_avg" and "exp_avg_sq") followed by the path of a parameter, a stack of layers is below
"layers" or "blocks". A name alone is not enough: a moment has the shape of its parameter, and all arrays
of a stack have an axis of the same size.
"""

import collections
import dataclasses
import re

import jax.numpy as jnp

from loopjax.weights.stored import Array

ROOTS = ("params", "target")
OPTIMIZERS = (
    "opt_state", "opt_states", "optimizer", "optimizer_state", "opt", "optim", "param_states",
)  # fmt: skip
# (first, second) moment in Optax, Flax's and T5X's optimizers, and PyTorch.
MOMENTS = (("mu", "nu"), ("m", "v"), ("exp_avg", "exp_avg_sq"), ("grad_ema", "grad_sq_ema"),
           ("momentum", ""), ("trace", ""), ("momentum_buffer", ""))  # fmt: skip
FIRST, SECOND = ({pair[k] for pair in MOMENTS} - {""} for k in (0, 1))
OTHER_MOMENT = {a: b for pair in MOMENTS for a, b in (pair, pair[::-1])}
_STACK = re.compile(r"(?:.*_)?(?:layers?|blocks?|stack|scan)|h", re.IGNORECASE)
_NUMBERED = re.compile(r"(.*?)_?(\d+)")

PARAMETER, OPTIMIZER, OTHER = "parameter", "optimizer", "other"


@dataclasses.dataclass(frozen=True)
class Role:
    """What an array is.

    Attributes:
      section: "parameter", "first moment", "second moment", "optimizer" or "other".
      parameter: path of the parameter that it is or belongs to, without item, "params" and NNX's "value":
        the same in checkpoints of different programs; "" for the rest.
      of: name of the array that a moment belongs to.
    """

    section: str
    parameter: str = ""
    of: str = ""


@dataclasses.dataclass(frozen=True)
class Stack:
    """Layers of the same shape.

    Attributes:
      name: path of the stack, "state/params/layers", or "params/layer_*" if each layer has arrays of its
        own.
      axis: the axis of the layers; None if each layer has arrays of its own.
      layers: number of layers.
      kinds: {path below the stack: its one array, or those of the layers}.
    """

    name: str
    axis: int | None
    layers: int
    kinds: dict[str, list[Array]]


def paths_of(arrays: dict[str, Array]) -> dict[str, tuple[str, ...]]:
    """Item and keys of every array, split at slashes.

    Without Orbax's own name of an item, and without the "value" in which NNX wraps an array: one that is
    alone below its key, unlike the "value" of an attention layer.
    """
    siblings = collections.Counter((array.item, array.keys[:-1]) for array in arrays.values())
    found = {}
    for name, array in arrays.items():
        keys, item = array.keys, array.item
        if keys[-1:] in (("value",), ("raw_value",)) and siblings[item, keys[:-1]] == 1:
            keys = keys[:-1]
        found[name] = tuple(
            "/".join((item, *keys) if item not in ("", "default") else keys).split("/")
        )
    return found


def _below_root(path: tuple[str, ...]) -> tuple[str, ...] | None:
    """The part after the last "params" (or a "target" in front); None if there is none."""
    if "params" in path:
        return path[len(path) - path[::-1].index("params") :]
    return path[1:] if path[:1] == ("target",) else None


def roles(arrays: dict[str, Array]) -> dict[str, Role]:
    """The role of every array."""
    paths = paths_of(arrays)
    optimizer = {name for name, path in paths.items() if not set(path).isdisjoint(OPTIMIZERS)}
    below = {name: _below_root(path) for name, path in paths.items()}
    rooted = {name for name in arrays if below[name] is not None} - optimizer
    moments = _moments(arrays, paths, optimizer, rooted)
    found = {}
    for name, array in arrays.items():
        is_number = jnp.issubdtype(array.dtype, jnp.number) and not array.kind.startswith("random")
        if name in moments:
            continue
        if name in optimizer:
            found[name] = Role(OPTIMIZER)
        elif name in rooted or (not rooted and array.shape and is_number):
            path = below[name] if name in rooted else paths[name]
            found[name] = Role(PARAMETER, "/".join(path) or name)
        else:
            found[name] = Role(OTHER)
    for name, (kind, of) in moments.items():
        found[name] = Role(kind, found[of].parameter, of) if of in found else Role(OPTIMIZER)
    return {name: found[name] for name in arrays}


def _moments(arrays, paths, optimizer, rooted) -> dict[str, tuple[str, str]]:
    """{array: ("first moment" or "second moment", name of its parameter)}."""
    parameters: dict[tuple[str, ...], list[str]] = {}
    for name, path in paths.items():
        if name not in optimizer and (name in rooted or (FIRST | SECOND).isdisjoint(path)):
            for start in range(len(path)):
                parameters.setdefault(path[start:], []).append(name)
    every = set(paths.values())
    found = {}
    for name, path in paths.items():
        if name in rooted:
            continue
        for k, key in enumerate(path):
            if key not in FIRST | SECOND:
                continue
            other = (*path[:k], OTHER_MOMENT[key], *path[k + 1 :])
            if name not in optimizer and key in ("m", "v") and other not in every:
                continue  # a letter alone is too little
            of = _parameter_of(path, k, arrays[name], arrays, parameters, paths)
            if of is not None:
                found[name] = ("first moment" if key in FIRST else "second moment", of)
                break
    return found


def _parameter_of(path, k, array, arrays, parameters, paths) -> str | None:
    """The only parameter whose path ends like that of a moment, without its key number `k`."""
    rest = path[k + 1 :]
    below = _below_root(rest) or rest
    # "mu/PATH" (Optax), then "PATH/m", whose start belongs to the optimizer.
    for end in (below, *(path[start:k] + rest for start in range(k))):
        names = [n for n in parameters.get(end, ()) if end and arrays[n].shape == array.shape]
        if len(names) > 1:
            # Exactly this path below "params", if there are longer ones that end in it.
            exact = [n for n in names if _below_root(paths[n]) == end]
            names = exact or [n for n in names if _below_root(paths[n])] or names
        if len(names) == 1:
            return names[0]
    return None


def stacks(arrays: dict[str, Array], found: dict[str, Role]) -> list[Stack]:
    """The stacks of layers among the parameters."""
    scanned: dict[tuple, dict[str, Array]] = {}
    numbered: dict[tuple, dict[str, dict[int, Array]]] = {}
    paths = paths_of(arrays)
    for name, array in arrays.items():
        path = paths[name]
        if found[name].section != PARAMETER:
            continue
        for k, key in enumerate(path[:-1]):
            below, number = path[k + 1 :], _NUMBERED.fullmatch(key)
            if _STACK.fullmatch(key) and below[0].isdecimal():
                kinds = numbered.setdefault((*path[: k + 1], "*"), {})
                kinds.setdefault("/".join(below[1:]), {})[int(below[0])] = array
            elif _STACK.fullmatch(key):
                scanned.setdefault(path[: k + 1], {})["/".join(below)] = array
            elif number and _STACK.fullmatch(number[1]):
                kinds = numbered.setdefault((*path[:k], key[: -len(number[2])] + "*"), {})
                kinds.setdefault("/".join(below), {})[int(number[2])] = array
            else:
                continue
            break
    out = []
    for path, kinds in scanned.items():
        axis = layers_axis([array.shape for array in kinds.values()])
        if axis is not None:
            layers = next(iter(kinds.values())).shape[axis]
            out.append(Stack("/".join(path), axis, layers, {k: [a] for k, a in kinds.items()}))
    for path, kinds in numbered.items():
        indices = sorted(set().union(*kinds.values()))
        whole = {
            kind: [layers[i] for i in indices]
            for kind, layers in kinds.items()
            if len(layers) == len(indices) and len({a.shape for a in layers.values()}) == 1
        }
        # Modules in a list ("layers/0") may have little in common.
        if len(indices) > 1 and 2 * len(whole) >= len(kinds):
            out.append(Stack("/".join(path), None, len(indices), whole))
    return sorted(out, key=lambda stack: stack.name)


def layers_axis(shapes: list[tuple[int, ...]]) -> int | None:
    """The axis, 0 or 1, along which all arrays below "layers" have the same size; None if neither.

    MaxText scans along axis 1 (`param_scan_axis`). If both fit, the shorter one: there are fewer layers
    than there are features.
    """
    fitting = {}
    for axis in (0, 1):
        sizes = {shape[axis] if len(shape) > axis else None for shape in shapes}
        if len(sizes) == 1 and None not in sizes:
            fitting[axis] = sizes.pop()
    return min(fitting, key=fitting.get) if fitting else None
