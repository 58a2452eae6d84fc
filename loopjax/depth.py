"""Depth as integer arithmetic: plans, growth orders and stage lengths. No JAX here.

A model is a stack of U *unique* layers and a plan, the order in which they run. A plan is
written as segments joined by "-"; a segment is "L" (L layers, once) or "LxR" (L layers, R times
in a row):

    plan       unique U   effective E   order of execution
    24         24         24            0..23
    4x6        4          24            (0..3) six times
    4-4x4-4    12         24            0..3, (4..7) four times, 8..11
    8-4x2-12   24         28            0..7, 8..11, 8..11, 12..23

A segment that a trained model repeats may be a *window*, whose passes are damped or repeat one kind of
sublayer only (`Window`): "8-4x3:damped-12", "8-4x3:damped0.5-12", "8-4x3:mlp-12", "8-4x3:damped:mlp-12".

A growth operator (MIDAS, LIDAS) is an *order* too: for each layer of the grown stack, the index of
the old layer that it copies. An intervention (swap, skip, reverse, repeat) is an order of *executed*
layers, which replaces 0 .. E - 1.
"""

import dataclasses
import math
import re
from fractions import Fraction

from loopjax.passes import DAMPED, PATTERN, Passes, of_match

MOST_LAYERS = 10_000
_SEGMENT = re.compile(
    rf"(?P<layers>[1-9][0-9]*)(?:x(?P<repeats>[1-9][0-9]*)(?P<passes>{PATTERN}))?"
)


@dataclasses.dataclass(frozen=True)
class Segment:
    """`layers` unique layers starting at index `start`, run `repeats` times in a row."""

    start: int
    layers: int
    repeats: int

    @property
    def stop(self) -> int:
        return self.start + self.layers

    def __str__(self) -> str:
        return str(self.layers) if self.repeats == 1 else f"{self.layers}x{self.repeats}"


@dataclasses.dataclass(frozen=True)
class Window(Segment):
    """A segment whose repetitions are a change at inference: damped, or of one kind of sublayer.

    With F the layers of the window and d the damping factor, each of the R passes is one smaller step
    of the same update, x <- x + d (F(x) - x); d = 1/R takes as far as a single pass (training-free
    looping, arXiv 2605.23872: Euler's method with R steps). If only one kind of sublayer is repeated,
    each of its outputs is multiplied by d, and the other kind runs in the first pass alone, unchanged.
    """

    passes: Passes = DAMPED

    @property
    def damping(self) -> float:
        return self.passes.factor(self.repeats)

    def __str__(self) -> str:
        return f"{super().__str__()}:{self.passes}"


@dataclasses.dataclass(frozen=True)
class ExecutedLayer:
    """The position of an executed layer in its plan.

    Attributes:
      unique: index of its weights in the stack, 0..U-1.
      segment: index of its segment in the plan.
      iteration: repetition of that segment, from 0.
    """

    unique: int
    segment: int
    iteration: int


@dataclasses.dataclass(frozen=True)
class DepthPlan:
    """The order in which the unique layers of a stack are executed, such as "4-4x4-4".

    Adjacent segments that run once are merged ("4-4-4" is "12"), so plans with the same order of
    execution are equal, hash equally and print the same text.
    """

    segments: tuple[Segment, ...]

    @classmethod
    def parse(cls, text: "str | DepthPlan") -> "DepthPlan":
        """Reads "24", "4x6", "4-4x4-4", ... (a plan is returned as it is); else ValueError."""
        if isinstance(text, cls):
            return text
        matches = [_SEGMENT.fullmatch(part) for part in str(text).split("-")]
        if not isinstance(text, str) or not all(matches):
            raise ValueError(
                f"invalid depth plan {text!r}: write segments L or LxR (L layers, run R times), positive "
                'whole numbers, joined by "-", like "24", "4x6" or "4-4x4-4"'
            )
        # Too long for `int` or not, such numbers are too many layers.
        longest = max(len(m[name] or "") for m in matches for name in ("layers", "repeats"))
        parts = [
            (int(m["layers"]), int(m["repeats"] or 1), of_match(m)) for m in matches if longest < 10
        ]
        plan = cls.of(parts) if parts else None
        if plan is None or plan.n_effective > MOST_LAYERS:
            raise ValueError(
                f"depth plan {text[:40]!r} executes more than {MOST_LAYERS:,} layers, the most that are "
                "supported"
            )
        return plan

    @classmethod
    def of(cls, parts) -> "DepthPlan":
        """The plan of `(layers, repeats)`, or `(layers, repeats, Passes)` where these are not plain.

        One pass is a plain one, unless it is damped: then ValueError.
        """
        segments: list[Segment] = []
        for layers, repeats, *passes in parts:
            start = segments[-1].stop if segments else 0
            changed = passes and not passes[0].plain(repeats)
            if changed and repeats == 1:
                raise ValueError(f"{layers} layers that run once cannot be {passes[0]}")
            if changed:
                segments.append(Window(start, layers, repeats, *passes))
            elif segments and repeats == segments[-1].repeats == 1:
                last = segments.pop()
                segments.append(Segment(last.start, last.layers + layers, 1))
            else:
                segments.append(Segment(start, layers, repeats))
        return cls(tuple(segments))

    @property
    def n_unique(self) -> int:
        """U, the number of layers that have weights."""
        return self.segments[-1].stop

    @property
    def n_effective(self) -> int:
        """E, the number of layers executed."""
        return sum(s.layers * s.repeats for s in self.segments)

    @property
    def executed(self) -> tuple[ExecutedLayer, ...]:
        """The executed layers in order, [E]."""
        return tuple(
            ExecutedLayer(unique, segment, iteration)
            for segment, s in enumerate(self.segments)
            for iteration in range(s.repeats)
            for unique in range(s.start, s.stop)
        )

    @property
    def order(self) -> tuple[int, ...]:
        """The unique-layer index of each executed layer, [E]."""
        return tuple(layer.unique for layer in self.executed)

    @property
    def first_uses(self) -> tuple[int, ...]:
        """The index of the first executed layer that uses each unique layer, [U]."""
        return tuple(self.order.index(i) for i in range(self.n_unique))

    @property
    def n_loops(self) -> int:
        """The number of segments that repeat."""
        return sum(s.repeats > 1 for s in self.segments)

    @property
    def is_looped(self) -> bool:
        return self.n_effective > self.n_unique

    @property
    def windows(self) -> tuple[Window, ...]:
        """The segments that repeat only at inference; other plans can be trained."""
        return tuple(s for s in self.segments if isinstance(s, Window))

    def trainable(self) -> "DepthPlan":
        """The plan itself; raises ValueError if it has windows."""
        if self.windows:
            raise ValueError(
                f"plan {self} repeats {self.windows[0]} at inference only; training needs plain loops"
            )
        return self

    def __str__(self) -> str:
        return "-".join(map(str, self.segments))


def _check_block(n_layers: int, block: int) -> None:
    for name, value in (("n_layers", n_layers), ("block", block)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r} must be a positive whole number")
    if n_layers % block:
        raise ValueError(f"block={block} does not divide the depth of {n_layers} layers")


def midas(n_layers: int, block: int) -> tuple[int, ...]:
    """Old layer indices after one MIDAS step: a copy of the middle *block* follows it.

    Of n = L/b blocks the copied one is m = ceil(n/2) - 1 (Saunshi et al. 2024; Kapl et al.
    2026, section 2).
    """
    _check_block(n_layers, block)
    n_blocks = n_layers // block
    start = (math.ceil(n_blocks / 2) - 1) * block
    return _duplicate(n_layers, start, block)


def lidas(n_layers: int, block: int) -> tuple[int, ...]:
    """Old layer indices after one LIDAS step: the `block` *layers* around the middle are copied.

    With c = ceil(L/2) the copied layers are c - ceil(b/2) .. c + floor(b/2) - 1, inserted right
    after the last of them (Kapl et al. 2026, section 2: b layers in the figure and the text, while
    the closed interval in the formula has b + 1). For an odd number of blocks this is MIDAS.
    """
    _check_block(n_layers, block)
    start = math.ceil(n_layers / 2) - math.ceil(block / 2)
    return _duplicate(n_layers, start, block)


def stack(n_layers: int, block: int) -> tuple[int, ...]:
    """Old layer indices after one step of gradual stacking: the last `block` layers are copied on top.

    Gong et al. 2019 copy the whole stack (block = L), Reddi et al. 2023 only the last layers.
    """
    _check_block(n_layers, block)
    return _duplicate(n_layers, n_layers - block, block)


def gstack(n_layers: int, added: int) -> tuple[int, ...]:
    """Old layer indices after copies of the whole stack, `added` layers in all, were stacked on top.

    G_stack with growth factor g = (L + added) / L (Du et al. 2024).
    """
    if not isinstance(added, int) or added < 1 or added % n_layers:
        raise ValueError(
            f"added={added!r} must be a positive multiple of the depth of {n_layers} layers"
        )
    return (*range(n_layers),) * (1 + added // n_layers)


# (layers of the old stack, layers to add) -> order. The names can be used in configs: in
# `growth.operator`, `cooldown.operator`, `init_operator` and as a variant.
GROWTH_OPERATORS = {
    "midas": midas,
    "lidas": lidas,
    "stack": stack,
    "gstack": gstack,
}


def _duplicate(n_layers: int, start: int, block: int) -> tuple[int, ...]:
    stop = start + block
    return (*range(stop), *range(start, stop), *range(stop, n_layers))


OPERATORS = (*GROWTH_OPERATORS, "untie", "tie")


def restack(operator: str, before: DepthPlan, after: DepthPlan) -> tuple[int, ...] | None:
    """The order that turns the stack of plan `before` into the stack of plan `after`.

    A growth operator adds the layers that `after` has more than `before`; "untie" gives each executed
    layer of `before` its own weights; "tie" keeps the first of the untied layers that share weights
    in `after`. An empty operator leaves the stack unchanged and returns None. Raises ValueError if
    the plans do not fit.
    """
    old, new = before.trainable().n_unique, after.trainable().n_unique
    if operator and operator not in OPERATORS:
        raise ValueError(f"{operator!r} must be one of {', '.join(OPERATORS)}, or empty for none")
    if operator in GROWTH_OPERATORS:
        if new <= old:
            raise ValueError(
                f"{operator} adds layers, but plan {after} has {new} and the stack {old}"
            )
        return GROWTH_OPERATORS[operator](old, new - old)
    if operator == "untie":
        if new != before.n_effective:
            raise ValueError(
                f"untying plan {before} gives {before.n_effective} layers, but plan {after} has {new}"
            )
        return before.order
    if operator == "tie":
        if before.is_looped or old != after.n_effective:
            raise ValueError(
                f"tying to plan {after} requires {after.n_effective} untied layers, not plan {before}"
            )
        return after.first_uses
    if new != old:
        raise ValueError(f"plan {after} has {new} unique layers, but the stack has {old}")
    return None


def written(plan: str) -> tuple[tuple[int, int], ...]:
    """The segments of a plan as its text has them, (layers, repeats) each.

    "2-4-2" has three, although it runs like "8". Raises ValueError if the text is no plan.
    """
    DepthPlan.parse(plan)
    matches = (_SEGMENT.fullmatch(part) for part in str(plan).split("-"))
    return tuple((int(m[1]), int(m[2] or 1)) for m in matches)


def starts(op: str, n_layers: int, size: int) -> range:
    """Valid starts of an intervention on a sub-block of `size` executed layers; may be empty.

    A swap needs two sub-blocks, and a skip must leave at least one layer.
    """
    for name, value in (("n_layers", n_layers), ("size", size)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r} must be a positive whole number")
    if op == "skip" and size == n_layers:
        return range(0)
    needed = 2 * size if op == "swap" else size
    return range(max(0, n_layers - needed + 1))


def _check_start(op: str, n_layers: int, start: int, size: int) -> None:
    valid = starts(op, n_layers, size)
    if start not in valid:
        allowed = f"start must lie within 0..{valid[-1]}" if valid else "no start fits"
        raise ValueError(
            f"{op} of size={size} at start={start!r} does not fit {n_layers} layers: {allowed}"
        )


def swap(n_layers: int, start: int, size: int) -> tuple[int, ...]:
    """The executed layers with two adjacent sub-blocks exchanged, the first beginning at `start`.

    The order within a sub-block does not change (Kapl et al. 2025, Figures 3, 9, 16; Kapl et al. 2026,
    Figures 5, 11).
    """
    _check_start("swap", n_layers, start, size)
    second, stop = start + size, start + 2 * size
    return (*range(start), *range(second, stop), *range(start, second), *range(stop, n_layers))


def skip(n_layers: int, start: int, size: int) -> tuple[int, ...]:
    """The executed layers without a sub-block (Kapl et al. 2025, Figures 10, 17)."""
    _check_start("skip", n_layers, start, size)
    return (*range(start), *range(start + size, n_layers))


def reverse(n_layers: int, start: int, size: int) -> tuple[int, ...]:
    """The executed layers with a sub-block reversed (Kapl et al. 2025, Figures 6, 11)."""
    _check_start("reverse", n_layers, start, size)
    stop = start + size
    return (*range(start), *reversed(range(start, stop)), *range(stop, n_layers))


def window(n_layers: int, start: int, size: int, repeats: int, passes: Passes) -> DepthPlan:
    """The plan of an untied stack in which `size` layers from `start` run `repeats` times."""
    _check_start("repeat", n_layers, start, size)
    stop = start + size
    parts = (start, 1), (size, repeats, passes), (n_layers - stop, 1)
    return DepthPlan.of(part for part in parts if part[0])


def repeat(n_layers: int, start: int, size: int, times: int) -> tuple[int, ...]:
    """The executed layers with `times` more repetitions of a sub-block (Kapl et al. 2026, Fig. 6, 12)."""
    _check_start("repeat", n_layers, start, size)
    if not isinstance(times, int) or times < 0:
        raise ValueError(f"times={times!r} must be a whole number of at least 0")
    stop = start + size
    return (*range(stop), *[*range(start, stop)] * times, *range(stop, n_layers))


INTERVENTIONS = {"swap": swap, "skip": skip, "reverse": reverse, "repeat": repeat}


def prop_schedule(total_steps: int, n_stages: int, alpha: float = 1.0) -> tuple[int, ...]:
    """PROP-alpha: stage i of k trains for T_i = T i^alpha / sum_j j^alpha steps.

    Rounded by largest remainder, so the stages sum to `total_steps`; ties go to the earlier
    stage. A stage can get 0 steps if `total_steps` is small.
    """
    for name, value in (("total_steps", total_steps), ("n_stages", n_stages)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r} must be a positive whole number")
    try:
        weights = [Fraction(float(i) ** alpha) for i in range(1, n_stages + 1)]
        shares = [total_steps * w / sum(weights) for w in weights]
    except (OverflowError, ValueError, TypeError, ZeroDivisionError):
        raise ValueError(f"alpha={alpha!r} must be a finite number of moderate size") from None
    steps = [math.floor(share) for share in shares]
    by_remainder = sorted(range(n_stages), key=lambda i: steps[i] - shares[i])
    for i in by_remainder[: total_steps - sum(steps)]:
        steps[i] += 1
    return tuple(steps)
