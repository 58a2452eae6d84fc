"""Models that are one: configurations whose runs differ only in their seed."""

import dataclasses
import itertools
import json
import re
from collections.abc import Callable, Iterable

from loopjax import run_record
from loopjax.plots import roles
from loopjax.report.collect import Entry
from loopjax.report.estimates import Estimate, over


@dataclasses.dataclass(frozen=True)
class Family:
    """Entries that differ only in their seed; most have one entry.

    Attributes:
      label: that of its entry, or what the labels of its entries begin with.
      entries: in the order of the page.
    """

    label: str
    entries: tuple[Entry, ...]

    @property
    def title(self) -> str:
        """The label with the number of seeds, for legends and headings."""
        return self.label + f" ({len(self.entries)} seeds)" * (len(self.entries) > 1)

    def estimate(
        self, value: Callable[[Entry], float | None], error: Callable = lambda entry: None,
        items: Callable = lambda entry: None,
    ) -> Estimate | None:  # fmt: skip
        """The mean of a value over the entries that have it; None if none has.

        Args:
          value, error, items: entry -> its value, standard error and number of items, or None.
        """
        known = [entry for entry in self.entries if value(entry) is not None]
        if not known:
            return None
        return over(map(value, known), map(error, known), items(known[0]))


def families(entries: Iterable[Entry]) -> list[Family]:
    """The families of a page's entries, in their order.

    If two of a family have the same seed, they differ in something that their configs do not record,
    and each stands for itself.
    """
    alike: dict[str, list[Entry]] = {}
    for entry in entries:
        alike.setdefault(_key(entry), []).append(entry)
    groups = []
    for group in alike.values():
        seeds = {entry.model.config.get("seed", 0) for entry in group}
        groups += [group] if len(seeds) == len(group) else [[entry] for entry in group]
    names = [_name(group) for group in groups]
    names = [
        name if names.count(name) == 1 else group[0].label
        for name, group in zip(names, groups, strict=True)
    ]
    return [Family(name, tuple(group)) for name, group in zip(names, groups, strict=True)]


def _key(entry: Entry) -> str:
    model = entry.model
    if not model.config.get("model") or "depth" not in model.config:
        return f"{model.directory.resolve()} {model.step} {entry.plan}"
    fields = run_record.fields(model.config) | {"seed": None}
    return json.dumps([fields, model.step, str(entry.plan)], sort_keys=True, default=str)


def _name(group: list[Entry]) -> str:
    """What labels begin with, without the name of the seed."""
    if len(group) == 1:
        return group[0].label
    letters = zip(*(entry.label for entry in group), strict=False)
    shared = "".join(one[0] for one in itertools.takewhile(lambda one: len({*one}) == 1, letters))
    return re.sub(r"([\W_]+(seed|s)?[\W_]*|(?<=\D)\d+)$", "", shared) or group[0].label


def kinds(entries: Iterable[Entry]) -> dict[str, roles.Kind]:
    """{label: what the entry is}; a standard model is compared with the deepest on the page."""
    entries = list(entries)
    deepest = max((entry.plan.n_effective for entry in entries if entry.own), default=None)
    return {
        entry.label: roles.kind_of(
            entry.plan, entry.model.events, entry.model.config, trained=entry.model.plan,
            depth=deepest,
        )
        for entry in entries
    }  # fmt: skip


def looks(groups: Iterable[Family]) -> dict[str, roles.Look]:
    """{label of each entry: its look}; the entries of a family look the same."""
    groups = list(groups)
    firsts = [family.entries[0] for family in groups]
    kind = kinds([entry for family in groups for entry in family.entries])
    look = roles.looks({entry.label: kind[entry.label] for entry in firsts})
    return {
        entry.label: look[family.entries[0].label] for family in groups for entry in family.entries
    }


def reference(groups: list[Family]) -> Family:
    """The family that others are compared with: the first standard model, else the first."""
    kind = kinds([entry for family in groups for entry in family.entries])
    standard = (f for f in groups if kind[f.entries[0].label] == roles.Kind("standard"))
    return next(standard, groups[0])
