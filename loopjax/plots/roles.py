"""How a model looks in every figure: color and marker by its role, line by its adaptation.

A role is what a model is (a standard stack, a loop, grown by LIDAS, ...). It has the same color and
marker in each figure of the project, the report and the documentation, so that a reader learns them
once. How the weights were changed after the training (cooldown on other data, retrofit, fine-tuning)
is the line style, and whether the marker is filled.

    kinds = {"LIDAS": kind_of("12", events), "loop": Kind("loop")}
    looks(kinds)["LIDAS"].color

The colors have a contrast of at least 3 on white and 2.6 on #111111, and any two roles differ by
more than 20 in CIELAB, also with deuteranopia or protanopia; the markers differ too.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from loopjax.depth import DepthPlan

# (color, marker) of each role.
ROLES = {
    "standard": ("#515868", "o"),
    "loop": ("#0a40fa", "s"),
    "middle loop": ("#069b69", "D"),
    "lidas": ("#b02a04", "^"),
    "midas": ("#d662e3", "v"),
    "half": ("#8893a0", "h"),
    "half, looped": ("#565398", "X"),
    "one block": ("#c47f06", "P"),
}
# Those of models that have none of these roles, in order.
OTHERS = (("#7a4419", "*"), ("#0e7f93", "<"), ("#a3195b", ">"), ("#5b7a00", "d"), ("#6b6375", "p"))
# Line style and whether the marker is filled, by adaptation.
ADAPTATIONS = {
    "as trained": ("-", True),
    "cooldown": ((0, (5, 1.8)), True),  # the last steps on other data
    "retrofit": ((0, (5, 1.5, 1, 1.5)), False),  # the last steps by another plan, or tied
    "fine-tuned": ((0, (9, 1.5)), True),
    "untied": ((0, (3, 1.2, 1, 1.2, 1, 1.2)), False),
    "other plan": ((0, (2, 1.2)), False),  # run by a plan that it was not trained with
}


@dataclasses.dataclass(frozen=True)
class Look:
    """How the marks of a model are drawn.

    Attributes:
      color: "#rrggbb".
      marker: marker of matplotlib.
      linestyle: line style of matplotlib: a name, or (offset, (on, off, ...)) in points.
      filled: whether the marker is filled, else white with an edge of the color.
    """

    color: str
    marker: str
    linestyle: str | tuple = "-"
    filled: bool = True


class Kind(NamedTuple):
    """What a model is: a key of ROLES or "other", and a key of ADAPTATIONS."""

    role: str
    adaptation: str = "as trained"


def look(role: str, adaptation: str = "as trained", repeated: int = 0) -> Look:
    """The look of a role.

    Args:
      role: a key of ROLES, or any other word, which gets the looks of OTHERS.
      adaptation: a key of ADAPTATIONS.
      repeated: number of models of this kind before this one in the same figure. They share the
        hue, and differ in shade and marker; those of OTHERS get the next one.
    """
    linestyle, filled = ADAPTATIONS[adaptation]
    if role in ROLES:
        color, marker = ROLES[role]
        turn = repeated
    else:
        color, marker = OTHERS[repeated % len(OTHERS)]
        turn = repeated // len(OTHERS)
    if turn and role in ROLES:
        marker = OTHERS[(turn - 1) % len(OTHERS)][1]
    return Look(_shade(color, turn), marker, linestyle, filled)


def looks(kinds: Mapping[str, Kind]) -> dict[str, Look]:
    """{label: look} of the models of a figure; models of one kind are told apart by shade and marker."""
    before: dict[tuple, int] = {}
    chosen = {}
    for label, (role, adaptation) in kinds.items():
        role = role if role in ROLES else "other"
        # Other roles have no color of their own: whatever their adaptation, each gets the next one.
        key = (role, adaptation if role in ROLES else "")
        chosen[label] = look(role, adaptation, before.get(key, 0))
        before[key] = before.get(key, 0) + 1
    return chosen


def named(label: str) -> Look | None:
    """The look of a label that is a role, or "ROLE, ADAPTATION"; None for any other."""
    if label in ROLES:
        return look(label)
    role, _, adaptation = label.rpartition(", ")
    return look(role, adaptation) if role in ROLES and adaptation in ADAPTATIONS else None


def _shade(color: str, turn: int) -> str:
    """The color, then darker, lighter, much darker, much lighter ones."""
    target, share = ((0, 0.0), (0, 0.5), (255, 0.45), (0, 0.75), (255, 0.7))[turn % 5]
    parts = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(part + share * (target - part)):02x}" for part in parts)


def kind_of(
    plan: str | DepthPlan,
    events: Sequence[Mapping] = (),
    config: Mapping | None = None,
    *,
    trained: str | DepthPlan | None = None,
    depth: int | None = None,
) -> Kind:
    """What a model is, from what its checkpoint, run or result says.

    Args:
      plan: the plan that it is run by.
      events: its lineage, as in checkpoints and results; [] if unknown.
      config: config of its run, as nested dicts; needed if there are no events.
      trained: the plan of its training, if that is another one.
      depth: executed layers of the standard model that it is compared with; its own by default. A
        standard model of half that depth has the role "half", a shallower one "one block".
    """
    events = list(events) or _events(str(trained or plan), config or {})
    other = trained is not None and str(trained) != str(plan)
    return Kind(role_of(events, depth), "other plan" if other else adaptation_of(events))


def look_of(plan: str | DepthPlan, meta: Mapping) -> Look:
    """The look of the one model of a figure: its plan, and the meta of its checkpoint."""
    events, config = meta.get("lineage", ()), meta.get("config")
    return look(*kind_of(plan, events, config, trained=meta.get("plan")))


def role_of(events: Sequence[Mapping], depth: int | None = None) -> str:
    """The role of a model with this lineage; see `kind_of`."""
    grown = [e["operator"] for e in events if e.get("order") is not None]
    grown = [name for name in grown if name not in ("untie", "tie")]
    if grown:
        return grown[-1] if grown[-1] in ROLES else "other"
    # Growth of the loops leads to the plan that counts; a retrofit is an adaptation.
    grown_to = [e["plan"] for e in events if e["operator"] == "loops"]
    plan = DepthPlan.parse((grown_to or [events[0]["plan"]])[-1])
    repeats = [segment.repeats for segment in plan.segments]
    if plan.is_looped:
        if len(repeats) > 1:
            return "middle loop"
        return "half, looped" if repeats == [2] else "loop"
    depth = depth or plan.n_effective
    if plan.n_effective == depth:
        return "standard"
    if 2 * plan.n_effective == depth:
        return "half"
    return "one block" if 2 * plan.n_effective < depth else "other"


def adaptation_of(events: Sequence[Mapping]) -> str:
    """The last change of a model that is no growth: a key of ADAPTATIONS."""
    for event in reversed(events[1:]):
        operator = event["operator"]
        if operator == "untie":
            return "untied"
        if operator in ("retrofit", "tie"):
            return "retrofit"
        if operator == "data":
            return "fine-tuned" if "from" in event else "cooldown"
    return "as trained"


def _events(plan: str, config: Mapping) -> list[dict]:
    """A lineage of which only the config is known."""
    growth, cooldown = config.get("growth") or {}, config.get("cooldown") or {}
    events: list[dict] = [{"operator": "init", "plan": config.get("depth", plan), "order": None}]
    if operator := growth.get("operator"):
        events.append({"operator": operator, "plan": plan, "order": ()})
    if config.get("init") in ("weights", "moments"):
        operator = config.get("init_operator") or "data"
        order = None if operator in ("data", "untie", "tie") else ()
        events.append({"operator": operator, "plan": plan, "order": order, "from": ""})
    if cooldown.get("depth") or cooldown.get("operator"):
        operator = cooldown.get("operator") or "retrofit"
        events.append({"operator": operator, "plan": plan, "order": None})
    elif cooldown.get("mixture"):
        events.append({"operator": "data", "plan": plan, "order": None})
    return events
