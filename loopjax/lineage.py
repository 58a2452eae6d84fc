"""Where layers come from: growth as composition of orders. Plain integers, no JAX.

The lineage in a checkpoint is a list of events {"step", "operator", "plan", "order"}, oldest
first, one per change of plan, stack or data. The events that change the stack make its *stages*:
the first stack, and one more for each growth. `Ancestry` is the part of a lineage that a run
inherits from the checkpoint it was initialized from.
"""

import dataclasses
from itertools import combinations

from loopjax import curriculum
from loopjax.depth import DepthPlan


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stack between two growth steps.

    Attributes:
      step: updates done when the stack was created.
      order: for each layer, its index in the previous stack; 0..U-1 for the first stack.
      operator: name of the operation; stages with equal orders are equal whatever its name.
    """

    step: int
    order: tuple[int, ...]
    operator: str = dataclasses.field(default="init", compare=False)


def stages(events) -> list[Stage]:
    """Stages of a lineage, oldest first."""
    first = DepthPlan.parse(events[0]["plan"]).n_unique
    grown = [e for e in events if e["order"] is not None]
    return [
        Stage(events[0]["step"], tuple(range(first)), events[0]["operator"]),
        *(Stage(e["step"], tuple(e["order"]), e["operator"]) for e in grown),
    ]


def loops(events) -> list[dict]:
    """The events by which growth let the last stack run by another plan, oldest first.

    The event that made the stack comes before them; empty if the stack ran by one plan.
    """
    made = max(i for i, e in enumerate(events) if not i or e["order"] is not None)
    found = [e for e in events[made + 1 :] if e["operator"] == "loops"]
    return [events[made], *found] if found else []


@dataclasses.dataclass(frozen=True)
class Ancestry:
    """What a run inherits from the checkpoint it started from, and saves with its own checkpoints.

    Attributes:
      events: lineage of the stack before the run; empty if the run started with a fresh model.
      branched_from: "DIR@STEP"; empty if the run started with a fresh model.
      flops: training FLOPs spent on the model before the run.
      context: tokens of the longest context that the model was trained with before the run.
    """

    events: tuple[dict, ...] = ()
    branched_from: str = ""
    flops: float = 0.0
    context: int = 0

    @classmethod
    def saved(cls, phases: list[curriculum.Phase], meta: dict) -> "Ancestry":
        """Ancestry of a run with these phases, read from the meta of one of its checkpoints."""
        own = curriculum.lineage(phases, meta["step"])
        # In an initialized run, the inherited events replace the run's own first event; the last
        # inherited event names the checkpoint.
        before = meta["lineage"][: len(meta["lineage"]) - len(own) + 1]
        events = tuple(before) if "from" in before[-1] else ()
        flops, context = meta.get("flops_before", 0.0), meta.get("context", 0)
        return cls(events, meta["branched_from"], flops, context)

    def lineage(self, phases: list[curriculum.Phase], step: int) -> list[dict]:
        """Lineage of the stack after `step` updates, oldest event first."""
        own = curriculum.lineage(phases, step)
        return [*self.events, *own[1:]] if self.events else own


def descent(stack: list[Stage], since: int = 0) -> list[tuple[int, ...]]:
    """For each layer, its index in every stage from stage `since` to the last, [U, stages]."""
    chains = [(i,) for i in range(len(stack[-1].order))]
    for stage in reversed(stack[since + 1 :]):
        chains = [(stage.order[chain[0]], *chain) for chain in chains]
    return chains


def ancestors(stack: list[Stage], since: int = 0) -> tuple[int, ...]:
    """For each layer, its ancestor in stage `since`, [U]."""
    return tuple(chain[0] for chain in descent(stack, since))


def siblings(stack: list[Stage]) -> list[tuple[int, int, int]]:
    """Pairs of layers with one ancestor in the first stack: (i, j, step at which they split)."""
    chains = descent(stack)
    pairs = []
    for i, j in combinations(range(len(chains)), 2):
        if chains[i][0] == chains[j][0]:
            parted = next(k for k in range(len(stack)) if chains[i][k] != chains[j][k])
            pairs.append((i, j, stack[parted].step))
    return pairs


def match(a: list[Stage], b: list[Stage]) -> tuple[str, list[tuple[int, int]]]:
    """Which layers of two stacks correspond: (the rule in words, pairs of indices).

    Equal depths are matched index by index. If one lineage extends the other, each layer of the
    deeper stack is matched with its ancestor in the shallower one. If the lineages only share
    their first stages, layers with the same ancestor in the last shared stage are matched in
    order (first with first, and so on; the last one stands for missing ones). Without a shared
    first stack there are no pairs.
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
    """(0, 1, 2, 3, 2, 3, 4) -> "0-3 2-3 4": runs of indices, repeated indices in runs apart."""
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
