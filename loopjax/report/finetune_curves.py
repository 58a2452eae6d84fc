"""Runs of fine-tuning: which model each began from, on how many examples, and with what outcome.

A run is one of fine-tuning where it began with the weights of a checkpoint and its config says how
many pairs it was trained on (`var_assign_code_1:64`, `chat:500`). Such runs are not models to be
compared one by one: those that differ in their seed are a point, those that differ in the number of
examples a line.
"""

import contextlib
import dataclasses
import json
import math
import pathlib

from loopjax import run_record
from loopjax.checkpoint import run_directory
from loopjax.data import pairs, registry
from loopjax.errors import UserError
from loopjax.report.collect import Entry
from loopjax.report.elements import Table, number
from loopjax.report.tables import scored

# How the layers came from those of the base model.
WORDS = {"untie": "untied", "tie": "tied", "retrofit": "retrofitted"}
# Fields of the config that make no other line, or are told in words.
TOLD = ("seed", "init_from", "init_operator", "mixture")


def sources(entry: Entry) -> dict[str, int] | None:
    """{file or primitive: number of pairs} of a run of fine-tuning, None for all other models."""
    config, found = entry.model.config, {}
    if config.get("init") not in ("weights", "moments"):
        return None
    for name in config.get("mixture", {}):
        for source, count in pairs.parts(name) or [(name, 0)]:
            if not count:  # as many as a file holds, or running text
                return None
            found[source] = found.get(source, 0) + count
    return found or None


def examples(entry: Entry) -> int:
    """How many training examples a run of fine-tuning has, 0 for all other models."""
    return sum((sources(entry) or {}).values())


@dataclasses.dataclass(frozen=True)
class Base:
    """A model that was fine-tuned.

    Attributes:
      label: as it is called on the page.
      own: its entry at the plan that it was trained with; None where it is not on the page.
      alike: what models have in common that differ in their seed alone.
      seed: of its training, None where it is not known.
    """

    label: str
    own: Entry | None
    alike: str
    seed: int | None


@dataclasses.dataclass
class Line:
    """Runs that began in one way and differ in examples and seeds alone.

    Attributes:
      base: label of the model that they began from, the first of several that differ in their seed.
      before: those models at the plan that computes what the runs did before their first update,
        as far as they are on the page.
      runs: {number of examples: entries}.
    """

    label: str
    base: str
    before: list[Entry]
    runs: dict[int, list[Entry]]

    def values(self, of: str) -> dict[int, dict[str, list[float]]]:
        """{examples: {task: [value of each run]}} under these conditions, the base model's at 0."""
        entries = {0: self.before, **self.runs}
        found = {n: _scores(group, of) for n, group in entries.items()}
        tuned = {task for n, scores in found.items() if n for task in scores}
        found[0] = {task: values for task, values in found[0].items() if task in tuned}
        return {n: scores for n, scores in found.items() if scores}


def _scores(entries: list[Entry], of: str) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for entry in entries:
        for task, about in entry.results.get("eval", {}).get(of, {"tasks": {}})["tasks"].items():
            if score := scored(about):
                name = task if score["metric"] == "acc" else f"{task} ({score['metric']})"
                found.setdefault(name, []).append(score["value"])
    return found


def lines(entries: list[Entry]) -> list[Line]:
    """The lines of a page, those of one base model together."""
    bases, alike = _bases(entries), {}
    for entry in filter(sources, entries):
        at = "" if entry.own else str(entry.plan)
        first = _first(bases[id(entry)], bases).label
        key = (first, _operator(entry), " + ".join(sorted(sources(entry))), at)
        alike.setdefault(key, []).append(entry)
    # In the order of the page, what was not restacked first.
    order = {entry.label: k for k, entry in enumerate(entries)}
    made = []
    for key in sorted(alike, key=lambda key: (order.get(key[0], len(order)), key)):
        label, operator, names, at = key
        several = len({other[2] for other in alike if other[:2] == key[:2]}) > 1
        for changed, runs in _apart(alike[key]).items():
            from_ = {bases[id(run)].label: bases[id(run)] for run in runs}
            many = f" ({len(from_)} seeds)" if len(from_) > 1 else ""
            words = [label + many, _word(operator), names * several, at and f"at {at}", changed]
            before = {
                id(was): was for run in runs if (was := _before(bases[id(run)], run, entries))
            }
            text = ", ".join(filter(None, words))
            made.append(Line(text, label, list(before.values()), _by_examples(runs)))
    return made


def _by_examples(group: list[Entry]) -> dict[int, list[Entry]]:
    found: dict[int, list[Entry]] = {}
    for entry in sorted(group, key=examples):
        found.setdefault(examples(entry), []).append(entry)
    return found


def _apart(group: list[Entry]) -> dict[str, list[Entry]]:
    """The group, split by the fields in which runs of equally many examples differ, in words."""
    fields: dict[str, None] = {}
    for same in _by_examples(group).values():
        fields |= dict.fromkeys(run_record.differing(map(_fields, same)))
    found: dict[str, list[Entry]] = {}
    for entry in group:
        has = _fields(entry)
        text = ", ".join(f"{name}={has.get(name)}" for name in fields)
        found.setdefault(text, []).append(entry)
    return found


def _fields(entry: Entry) -> dict:
    """The fields of the config that tell lines apart."""
    counts = sources(entry)
    shared = math.gcd(*counts.values())
    fields = run_record.fields(entry.model.config)
    kept = {name: value for name, value in fields.items() if name.partition(".")[0] not in TOLD}
    return kept | {"shares": ":".join(str(counts[name] // shared) for name in sorted(counts))}


def _beginning(entry: Entry) -> dict:
    """The event of the lineage with which the run began, as far as it is known."""
    begun = [event for event in entry.model.events if "from" in event]
    config = entry.model.config
    known = {"from": config["init_from"], "operator": config.get("init_operator", "")}
    return begun[-1] if begun else known


def _operator(entry: Entry) -> str:
    operator = _beginning(entry)["operator"]
    return "" if operator == "data" else operator


def _word(operator: str) -> str:
    return WORDS.get(operator, f"grown by {operator}" if operator else "")


def _bases(entries: list[Entry]) -> dict[int, Base]:
    """The base model of each run of fine-tuning, by the identity of its entry."""
    found, named = {}, {}
    taken = {entry.label for entry in entries}
    for entry in filter(sources, entries):
        text = _beginning(entry)["from"]
        place, step = _place(text)
        own = _found(text, [other for other in entries if other.own and other is not entry])
        if own is None and text not in named:
            at = f"@{step}" if "@" in entry.model.config["init_from"] else ""
            name = place.name + at
            named[text] = text if name in taken else name
            taken.add(named[text])
        config = own.model.config if own else _config(place)
        fields = run_record.fields(config) | {"step": step} if config else {}
        alike = json.dumps(fields | {"seed": None}, sort_keys=True) if fields else text
        label = own.label if own else named[text]
        found[id(entry)] = Base(label, own, alike, fields.get("seed"))
    return found


def _config(place: pathlib.Path) -> dict:
    with contextlib.suppress(UserError):
        if run := run_record.of_directory(place):
            return run.config
    return {}


def _first(base: Base, bases: dict[int, Base]) -> Base:
    """The first of the models that differ from a base in their seed alone, those shown before.

    Where two have one seed too, they differ in what no config tells (imported models of one
    architecture do), and each is its own.
    """
    same = {other.label: other for other in bases.values() if other.alike == base.alike}
    if len({other.seed for other in same.values()}) < len(same):
        return base
    return next((other for other in same.values() if other.own), next(iter(same.values())))


def _place(text: str) -> tuple[pathlib.Path, int | None]:
    """(directory of the run, step or None) of what a run began from."""
    place, at, step = text.rpartition("@")
    known = at and step.isdecimal()
    return run_directory(pathlib.Path(place if known else text)), int(step) if known else None


def _found(text: str, entries: list[Entry]) -> Entry | None:
    place, step = _place(text)
    gone = not place.exists()  # moved, or brought from elsewhere
    same = [
        e for e in entries
        if step in (None, e.model.step) and (
            e.model.directory.resolve() == place.resolve()
            or (gone and e.model.directory.resolve().name == place.name)
        )
    ]  # fmt: skip
    return max(same, key=lambda entry: entry.model.step, default=None)


def _before(base: Base, entry: Entry, entries: list[Entry]) -> Entry | None:
    """The base model at the plan that computes what the run did before its first update."""
    operator, plan = _operator(entry), entry.plan
    if base.own is None or operator not in ("", "retrofit", "untie"):
        return None
    if operator == "untie":
        return base.own if entry.own else None
    same = (e for e in entries if e.model is base.own.model and e.plan == plan)
    return next(same, None)


def conditions(found: list[Line]) -> list[str]:
    """Those under which any of the runs was evaluated; nothing was said of them where none was."""
    every = [entry for line in found for group in line.runs.values() for entry in group]
    return list(dict.fromkeys(of for entry in every for of in entry.results.get("eval", {})))


def shown(entries: list[Entry]) -> tuple[list[Entry], list[str]]:
    """(entries with a color of their own, names of base models that are not on the page).

    A run of fine-tuning has its place in the section of its own, and elsewhere only where there are
    diagnostics of it.
    """
    bases = _bases(entries)
    firsts = [_first(base, bases) for base in bases.values()]
    needed = {id(base.own) for base in firsts}
    kept = [
        entry for entry in entries
        if not sources(entry) or id(entry) in needed or entry.results.keys() - {"eval", "nll"}
    ]  # fmt: skip
    return kept, list(dict.fromkeys(base.label for base in firsts if base.own is None))


def table(found: list[Line], of: str) -> Table:
    """A row for each number of examples of each line."""
    values = [(line, line.values(of)) for line in found]
    tasks = list(dict.fromkeys(t for _, by_n in values for scores in by_n.values() for t in scores))
    rows = []
    for line, by_n in values:
        for n in sorted({*by_n, *line.runs}):
            group, scores = line.runs.get(n, line.before), by_n.get(n, {})
            steps = [entry.model.step for entry in group] if n else []
            counted = number(len(group), "d")
            if (known := sum(bool(_tasks(entry, of)) for entry in group)) < len(group):
                counted = known, f"{known} of {len(group)}"
            cells = [_spread(scores.get(task, []), 3) for task in tasks]
            rows.append(
                (line.base, [line.label, number(n, ",d"), counted, *cells, _spread(steps, 0)])
            )
    caption = (
        f"Means ± standard deviations over runs that differ in their seed{of and f' ({of})'}, and "
        "how many updates their checkpoints have."
    )
    return Table(caption, ["base model", "examples", "runs", *tasks, "steps kept"], rows)


def _spread(values: list, digits: int):
    return (
        (run_record.mean_and_deviation(values)[0], run_record.spread(values, digits))
        if values
        else None
    )


def missing(entries: list[Entry]) -> list[tuple[Entry, str, list[str], dict]]:
    """(entry, conditions, tasks, settings) of evaluations that lines lack: of runs, and of what
    they were before.
    """
    found, made = lines(entries), []
    for of in conditions(found) or [""]:
        runs = [entry for line in found for group in line.runs.values() for entry in group]
        settings = next((e.results["eval"][of]["settings"] for e in runs if _tasks(e, of)), {})
        tasks = list(dict.fromkeys(task for entry in runs for task in _tasks(entry, of)))
        if not tasks:
            named = dict.fromkeys(name for entry in runs for name in sources(entry))
            tasks = [name for name in named if registry.has_items(name)] or ["paper_suite"]
            settings = {"num_fewshot": 0} if tasks != ["paper_suite"] else {}
        before = [entry for line in found for entry in line.before]
        for entry in {id(e): e for e in [*before, *runs]}.values():
            if lacks := [task for task in tasks if task not in _tasks(entry, of)]:
                made.append((entry, of, lacks, settings))
    return made


def _tasks(entry: Entry, of: str) -> dict:
    return entry.results.get("eval", {}).get(of, {"tasks": {}})["tasks"]
