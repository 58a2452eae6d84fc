"""Axes by name: how a foreign array is laid out, and which sizes its shape shows.

A layout names the axes of one layer's array, in order, separated by spaces: "D H C". Names are the
shape letters of `model.py` (V, D, H, K, C, F), and G for the H / K query heads of one key/value head.

    H*C     axes merged into one, the last name varying fastest
    H+K+K   arrays joined along an axis: one term for each target of the rule
    2       as many arrays stacked along an axis, one for each target; 1 is an axis of length 1
    ()      around a sum in a product: (H+K+K)*C

The layers axis of a stacked array is not part of a layout; its name here is `LAYERS`.
"""

import dataclasses
import math
import re

import numpy as np

from loopjax.errors import UserError

LAYERS = "layers"
LETTERS = {
    "V": "vocab_size", "D": "d_model", "F": "d_ff", "H": "n_heads", "K": "n_kv_heads",
    "C": "head_dim", "G": "n_heads / n_kv_heads", LAYERS: "n_layers",
}  # fmt: skip
# Axes of the parameters of `model.py`: of one layer, below "layers".
_QUERY, _KEY = ("H", "C"), ("K", "C")
CANONICAL: dict[str, tuple[tuple[str, ...], ...]] = {
    "embed": (("V",), ("D",)),
    "layers/attention_norm": (("D",),),
    "layers/query": (("D",), _QUERY),
    "layers/key": (("D",), _KEY),
    "layers/value": (("D",), _KEY),
    "layers/query_bias": (_QUERY,),
    "layers/key_bias": (_KEY,),
    "layers/value_bias": (_KEY,),
    "layers/query_norm": (("C",),),
    "layers/key_norm": (("C",),),
    "layers/output": (_QUERY, ("D",)),
    "layers/mlp_norm": (("D",),),
    "layers/gate": (("D",), ("F",)),
    "layers/up": (("D",), ("F",)),
    "layers/down": (("F",), ("D",)),
    "final_norm": (("D",),),
    "head": (("D",), ("V",)),
}

# A term is a product of names, a factor a sum of terms, an axis a product of factors.
Term = tuple[str, ...]
Factor = tuple[Term, ...]
Axis = tuple[Factor, ...]


def canonical(leaf: str, letters) -> tuple[tuple[str, ...], ...]:
    """The axes of one layer of a parameter as products of names; H is K*G where G is used."""
    split = {"H": ("K", "G")} if "G" in letters else {}
    return tuple(
        tuple(name for letter in axis for name in split.get(letter, (letter,)))
        for axis in CANONICAL[leaf]
    )


@dataclasses.dataclass(frozen=True)
class Layout:
    """The axes of an array, parsed.

    Attributes:
      axes: the axes, in the order of the array.
    """

    axes: tuple[Axis, ...]

    @classmethod
    def parse(cls, text: str, targets: tuple[str, ...]) -> "Layout":
        """Raises ValueError when the text is no layout, or not one of these parameters."""
        axes = tuple(_axis(word, len(targets)) for word in text.split())
        sums = [factor for axis in axes for factor in axis if len(factor) > 1]
        if len(targets) > 1 and len(sums) != 1:
            raise ValueError(
                f"axes {text!r} must join its {len(targets)} parameters once, by a sum such as "
                f"H+K+K or by the number {len(targets)}"
            )
        if sums and len(sums[0]) != len(targets):
            raise ValueError(
                f"axes {text!r} joins {len(sums[0])} arrays, but 'to' has {len(targets)}"
            )
        layout = cls(axes)
        for part, leaf in enumerate(targets):
            names = layout.names(part)
            wanted = [name for axis in canonical(leaf, names) for name in axis]
            if sorted(names) != sorted(wanted):
                raise ValueError(
                    f"axes {text!r} gives {leaf} the axes {' '.join(names) or 'none'}; it has "
                    f"{' '.join(wanted)}"
                )
        return layout

    def __str__(self) -> str:
        return " ".join(map(_text, self.axes))

    @property
    def parts(self) -> int:
        """Number of parameters that are joined in the array."""
        return max((len(factor) for axis in self.axes for factor in axis), default=1)

    def names(self, part: int) -> list[str]:
        """The names of the axes of a part, in the order of the array."""
        return [name for axis in self.axes for f in axis for name in _term(f, part) if name != "1"]

    def stacked(self, position: int) -> "Layout":
        """With the axis of the layers at a position, as in `numpy.insert`."""
        return Layout((*self.axes[:position], (((LAYERS,),),), *self.axes[position:]))

    def chunk(self, part: int, name: str, lengths, sizes: dict[str, int]) -> int | None:
        """How many of a name lie in one chunk of the array; None if the name is not outermost.

        Args:
          lengths: shape of the chunk.
        """
        for (outer, *inner), n in zip(self.axes, lengths, strict=True):
            term = _term(outer, part)
            if term[0] == name:
                return max(1, n // (_product(term[1:], sizes) * _length(inner, sizes)))
        return None

    def reading(self, part: int, sizes: dict[str, int], ranges: dict[str, tuple[int, int]]):
        """What to read of an array for a part, and how to cut the part out of it.

        Args:
          sizes: of all names.
          ranges: (start, stop) of names of which only a range is needed.

        Returns:
          (slices of the array, function of what they hold). The function returns the part with an
          axis for each of `names(part)`.
        """
        cut = _Cut()
        slices = tuple(cut.axis(axis, part, sizes, ranges) for axis in self.axes)
        return slices, cut


class _Cut:
    """Cuts a part out of a block that was read: two reshapes, each followed by slices."""

    def __init__(self):
        self.joined: list[int] = []  # shape with the arrays that are joined along an inner axis
        self.part: list[slice] = []  # what of it is the part
        self.shape: list[int] = []  # an axis for each name
        self.ranges: list[slice] = []

    def __call__(self, block: np.ndarray) -> np.ndarray:
        part = block.reshape(self.joined)[tuple(self.part)]
        return part.reshape(self.shape)[tuple(self.ranges)]

    def axis(self, axis: Axis, part: int, sizes: dict, ranges: dict) -> slice:
        """Adds an axis; returns the slice of it to read, which can only cut its outermost name."""
        outer, inner = axis[0], axis[1:]
        (lead, *rest), within = _term(outer, part), _length(inner, sizes)
        before = sum(_product(term, sizes) for term in outer[:part]) if len(outer) > 1 else 0
        stride = _product(rest, sizes)
        low, high = ranges.get(lead, (0, _product((lead,), sizes)))
        self._names((lead,), {lead: high - low}, {})
        self._names(rest, sizes, ranges)
        for factor in inner:
            if len(factor) == 1:
                self._names(factor[0], sizes, ranges)
                continue
            start = sum(_product(term, sizes) for term in factor[:part])
            self.joined.append(_length((factor,), sizes))
            self.part.append(slice(start, start + _product(factor[part], sizes)))
            self._names(factor[part], sizes, ranges, joined=False)
        return slice((before + low * stride) * within, (before + high * stride) * within)

    def _names(self, names, sizes: dict, ranges: dict, *, joined: bool = True) -> None:
        for name in names:
            if name == "1":
                continue
            if joined:
                self.joined.append(sizes[name])
                self.part.append(slice(None))
            self.shape.append(sizes[name])
            self.ranges.append(slice(*ranges.get(name, (None,))))


def _axis(word: str, parts: int) -> Axis:
    """ "(H+K+K)*C" parsed."""
    if re.search(r"\+(?![^(]*\))", word):
        word = f"({word})"
    factors = re.findall(r"\([^()]*\)|[^*()]+", word)
    if "*".join(factors) != word or not factors:
        raise ValueError(
            f"axes has {word!r}; write names of axes joined by * and +, like (H+K+K)*C"
        )
    return tuple(_factor(text, parts) for text in factors)


def _factor(text: str, parts: int) -> Factor:
    if text.isdecimal() and int(text) > 1:
        if int(text) != parts:
            raise ValueError(f"axes has {text}, which must be the number of parameters, {parts}")
        return (("1",),) * parts
    terms = tuple(tuple(term.split("*")) for term in text.strip("()").split("+"))
    for name in (name for term in terms for name in term):
        if name != "1" and (name not in LETTERS or name == LAYERS):
            raise ValueError(
                f"axes has {name!r}; names are {', '.join(n for n in LETTERS if n != LAYERS)}, and 1"
            )
    return terms


def _term(factor: Factor, part: int) -> Term:
    return factor[part] if len(factor) > 1 else factor[0]


def _product(names, sizes: dict[str, int]) -> int:
    return math.prod(1 if name == "1" else sizes[name] for name in names)


def _length(factors, sizes: dict[str, int]) -> int:
    """The length of an axis, or of some of its factors."""
    return math.prod(sum(_product(term, sizes) for term in factor) for factor in factors)


@dataclasses.dataclass(frozen=True)
class Measured:
    """The shape of an array, whose axes show sizes.

    Attributes:
      name: of the array, for messages.
    """

    name: str
    shape: tuple[int, ...]
    layout: Layout

    def check_rank(self) -> None:
        if len(self.shape) != len(self.layout.axes):
            raise UserError(
                f"{self.name} has shape {times(self.shape)}, but its rule has {len(self.layout.axes)} "
                f"axes: {self.layout}"
            )


def solve(arrays: list[Measured], known: dict[str, tuple[int, str]]) -> dict[str, int]:
    """The sizes of all names of axes.

    Args:
      known: {name: (size, what says so)}.

    Raises UserError when shapes contradict each other or what is known, or leave a size open.
    """
    sizes = {name: size for name, (size, _) in known.items()}
    whence = {name: source for name, (_, source) in known.items()}
    for array in arrays:
        array.check_rank()
    axes = [
        (array, axis, length)
        for array in arrays
        for axis, length in zip(array.layout.axes, array.shape, strict=True)
    ]
    while True:
        before = len(sizes)
        for array, axis, length in axes:
            _solve_axis(array, axis, length, sizes, whence)
        _solve_groups(sizes, whence)
        if len(sizes) == before:
            break
    for array, axis, _ in axes:
        for name in _unknown(axis, sizes):
            raise UserError(
                f"the shapes leave {LETTERS[name]} open ({name} in {str(array.layout)!r}, {array.name} "
                f"of {times(array.shape)}); state model.{LETTERS[name]} in the map, or with --set"
            )
    return sizes


def _unknown(axis: Axis, sizes: dict) -> list[str]:
    names = {name for factor in axis for term in factor for name in term}
    return sorted(names - sizes.keys() - {"1"})


def _solve_axis(array: Measured, axis: Axis, length: int, sizes: dict, whence: dict) -> None:
    """Adds the size of the only unknown name of an axis; UserError if no size fits."""
    unknown = _unknown(axis, sizes)
    if len(unknown) > 1:
        return
    if not unknown:
        if _length(axis, sizes) != length:
            raise _contradiction(array, axis, length, sizes, whence)
        return
    # A name is at most once in a product, so the length is linear in its size.
    at_0, at_1 = (_length(axis, sizes | {unknown[0]: n}) for n in (0, 1))
    size, remainder = divmod(length - at_0, at_1 - at_0)
    if remainder or size < 1:
        raise _contradiction(array, axis, length, sizes, whence)
    sizes[unknown[0]], whence[unknown[0]] = size, array.name


def _solve_groups(sizes: dict, whence: dict) -> None:
    """Adds the third of H = K * G."""
    have = [name for name in "HKG" if name in sizes]
    if len(have) == 2:
        missing = next(name for name in "HKG" if name not in sizes)
        if missing == "H":
            sizes["H"] = sizes["K"] * sizes["G"]
        elif sizes["H"] % sizes[have[1]] == 0:
            sizes[missing] = sizes["H"] // sizes[have[1]]
        else:
            return  # `ModelConfig` says what is wrong
        whence[missing] = whence[have[1]]


def _contradiction(array: Measured, axis: Axis, length: int, sizes: dict, whence: dict):
    names = {name for factor in axis for term in factor for name in term} & sizes.keys()
    given = [f"{name} is {sizes[name]} by {whence[name]}" for name in sorted(names)]
    return UserError(
        f"{array.name} has shape {times(array.shape)}, which does not fit its axes "
        f"{str(array.layout)!r}: {length} cannot be {_text(axis)}"
        + (f", where {' and '.join(given)}" if given else "")
    )


def _text(axis: Axis) -> str:
    factors = [
        str(len(factor)) if {*factor} == {("1",)} else "+".join(map("*".join, factor))
        for factor in axis
    ]
    return "*".join(f"({f})" if "+" in f and len(factors) > 1 else f for f in factors)


def times(shape) -> str:
    """ "64x4x16"; "scalar" for a shape without axes."""
    return "x".join(map(str, shape)) or "scalar"
