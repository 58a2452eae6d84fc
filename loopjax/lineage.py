"""Where layers come from: growth as composition of orders. Plain integers, no JAX.

A lineage is what `curriculum.lineage` leaves in a checkpoint: events {"step", "operator", "plan",
"order"}, oldest first. Those that change the stack make its *stages*: the first stack, and one
more for each growth.
"""

import dataclasses
from itertools import combinations

from loopjax.depth import DepthPlan


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stack between two growth steps.

    Attributes:
      step: updates done when it came to be.
      order: for each layer, its index in the stack before; 0..U-1 for the first stack.
      operator: what made it; equal orders of other names make equal stages.
    """

    step: int
    order: tuple[int, ...]
    operator: str = dataclasses.field(default="init", compare=False)


def stages(events) -> list[Stage]:
    """The stacks of a lineage, oldest first."""
    first = DepthPlan.parse(events[0]["plan"]).n_unique
    grown = [e for e in events if e["order"] is not None]
    return [
        Stage(events[0]["step"], tuple(range(first)), events[0]["operator"]),
        *(Stage(e["step"], tuple(e["order"]), e["operator"]) for e in grown),
    ]


def descent(stack: list[Stage], since: int = 0) -> list[tuple[int, ...]]:
    """For each layer, its index in every stage from stage `since` to the last, [U, stages]."""
    chains = [(i,) for i in range(len(stack[-1].order))]
    for stage in reversed(stack[since + 1 :]):
        chains = [(stage.order[chain[0]], *chain) for chain in chains]
    return chains


def ancestors(stack: list[Stage], since: int = 0) -> tuple[int, ...]:
    """For each layer, the layer of stage `since` that it descends from, [U]."""
    return tuple(chain[0] for chain in descent(stack, since))


def siblings(stack: list[Stage]) -> list[tuple[int, int, int]]:
    """Pairs of layers with one ancestor in the first stack: (i, j, step at which they parted)."""
    chains, pairs = descent(stack), []
    for i, j in combinations(range(len(chains)), 2):
        if chains[i][0] == chains[j][0]:
            parted = next(k for k in range(len(stack)) if chains[i][k] != chains[j][k])
            pairs.append((i, j, stack[parted].step))
    return pairs


def match(a: list[Stage], b: list[Stage]) -> tuple[str, list[tuple[int, int]]]:
    """Which layers of two stacks correspond: (the rule in words, pairs of indices).

    Equal depths are matched index by index. Of different depths, each layer of the deeper goes
    with the layer of the shallower that it descends from, where the lineage of one goes on from
    the other's. Where they only begin alike, layers go together that descend from one layer of
    the last stack of that common beginning: the first such layer with the first, and so on, the
    last one standing for those that are missing. Without a common first stack there are no pairs.
    """
    if len(a[-1].order) == len(b[-1].order):
        how = "the same lineage" if a == b else "the same depth, other lineages"
        return f"layer i with layer i ({how})", [(i, i) for i in range(len(a[-1].order))]
    shared = next(
        (k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )
    if not shared:
        return (
            f"none: first stacks of {len(a[0].order)} and {len(b[0].order)} layers have no layers "
            "in common",
            [],
        )
    flipped = len(a[-1].order) < len(b[-1].order)
    deep, shallow = (b, a) if flipped else (a, b)
    of_deep, of_shallow = ancestors(deep, shared - 1), ancestors(shallow, shared - 1)
    seen: dict[int, int] = {}
    pairs = []
    for i, ancestor in enumerate(of_deep):
        heirs = [j for j, other in enumerate(of_shallow) if other == ancestor]
        nth = seen[ancestor] = seen.get(ancestor, -1) + 1
        if heirs:
            j = heirs[min(nth, len(heirs) - 1)]
            pairs.append((j, i) if flipped else (i, j))
    if shared == len(shallow):
        return (
            "each layer with the one that it descends from (one lineage extends the other)",
            pairs,
        )
    stack = f"stack of step {a[shared - 1].step}, {len(a[shared - 1].order)} layers"
    return f"by common ancestors (in the {stack}, where the lineages part)", pairs


def compact(order) -> str:
    """(0, 1, 2, 3, 2, 3, 4) -> "0-3 2-3 4": runs, what is there for the second time by itself."""
    runs: list[list[int]] = []
    seen: set[int] = set()
    was_copy = False
    for i in order:
        if runs and i == runs[-1][1] + 1 and (i in seen) == was_copy:
            runs[-1][1] = i
        else:
            runs.append([i, i])
        was_copy = i in seen
        seen.add(i)
    return " ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
