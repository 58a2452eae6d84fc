"""Fine-tuning runs as curves: base model, number of examples, accuracy.

A run counts as fine-tuning if it was initialized from the weights of a checkpoint and its config
says how many pairs it was trained on (`var_assign_code_1:64`, `chat:500`). These runs are not
compared one by one: runs that differ in their seed are a point, runs that differ in the number of
examples a line.
"""

import contextlib
import dataclasses
import json
import math
import pathlib

from loopjax import paths, run_record
from loopjax.checkpoint import run_directory
from loopjax.data import pairs, registry
from loopjax.errors import UserError
from loopjax.files import can_be_seen
from loopjax.report.collect import Entry
from loopjax.report.elements import Table, number

# How the layers were made from those of the base model.
WORDS = {"untie": "untied", "tie": "tied", "retrofit": "retrofitted"}
# Fields of the config that do not split lines, or that the label names in words.
IGNORED = ("seed", "init_from", "init_operator", "mixture")


def sources(entry: Entry) -> dict[str, int] | None:
    """{file or primitive: number of pairs} of a fine-tuning run, None for all other models."""
    config = entry.model.config
    counts: dict[str, int] = {}
    if config.get("init") not in ("weights", "moments"):
        return None
    for name in config.get("mixture", {}):
        for source, count in pairs.parts(name) or [(name, 0)]:
            if not count:  # a whole file, or running text
                return None
            counts[source] = counts.get(source, 0) + count
    return counts or None


def examples(entry: Entry) -> int:
    """Number of training examples of a fine-tuning run, 0 for all other models."""
    return sum((sources(entry) or {}).values())


@dataclasses.dataclass(frozen=True)
class Base:
    """A model that was fine-tuned.

    Attributes:
      label: name on the page.
      own: entry at the plan of its training; None if it is not on the page.
      alike: key that models share if they differ only in their seed.
      seed: seed of its training; None if unknown.
    """

    label: str
    own: Entry | None
    alike: str
    seed: int | None


@dataclasses.dataclass
class Line:
    """Fine-tuning runs that differ only in their number of examples and their seed.

    Attributes:
      label: label of the line.
      base: label of their base model; the first, if several differ in their seed.
      before: the base models at the plan that computes the same as the runs before their first
        update, as far as they are on the page.
      runs: {number of examples: entries}.
    """

    label: str
    base: str
    before: list[Entry]
    runs: dict[int, list[Entry]]

    def values(self, of: str) -> dict[int, dict[str, list[float]]]:
        """{examples: {task: [value of each run]}} under these conditions; at 0 the base model's."""
        entries = {0: self.before, **self.runs}
        by_n = {n: _scores(group, of) for n, group in entries.items()}
        tuned = {task for n, scores in by_n.items() if n for task in scores}
        by_n[0] = {task: values for task, values in by_n[0].items() if task in tuned}
        return {n: scores for n, scores in by_n.items() if scores}


def _scores(entries: list[Entry], of: str) -> dict[str, list[float]]:
    values: dict[str, list[float]] = {}
    for entry in entries:
        for task, about in entry.results.get("eval", {}).get(of, {"tasks": {}})["tasks"].items():
            if score := run_record.score(about):
                name = task if score["metric"] == "acc" else f"{task} ({score['metric']})"
                values.setdefault(name, []).append(score["value"])
    return values


def lines(entries: list[Entry]) -> list[Line]:
    """The lines of a page; those of one base model follow each other."""
    bases = _bases(entries)
    alike: dict[tuple, list[Entry]] = {}
    for entry in filter(sources, entries):
        at = "" if entry.own else str(entry.plan)
        first = _first(bases[id(entry)], bases).label
        key = (first, _operator(entry), " + ".join(sorted(sources(entry))), at)
        alike.setdefault(key, []).append(entry)
    # In the order of the page; runs with unchanged layers first.
    order = {entry.label: k for k, entry in enumerate(entries)}
    curves = []
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
            curves.append(Line(text, label, list(before.values()), _by_examples(runs)))
    return curves


def _by_examples(group: list[Entry]) -> dict[int, list[Entry]]:
    by_n: dict[int, list[Entry]] = {}
    for entry in sorted(group, key=examples):
        by_n.setdefault(examples(entry), []).append(entry)
    return by_n


def _apart(group: list[Entry]) -> dict[str, list[Entry]]:
    """The group, split by the fields in which runs with equally many examples differ, in words."""
    fields: dict[str, None] = {}
    for same in _by_examples(group).values():
        fields |= dict.fromkeys(run_record.differing(map(_fields, same)))
    split: dict[str, list[Entry]] = {}
    for entry in group:
        values = _fields(entry)
        text = ", ".join(f"{name}={values.get(name)}" for name in fields)
        split.setdefault(text, []).append(entry)
    return split


def _fields(entry: Entry) -> dict:
    """The fields of the config that split lines."""
    counts = sources(entry)
    shared = math.gcd(*counts.values())
    fields = run_record.fields(entry.model.config)
    kept = {name: value for name, value in fields.items() if name.partition(".")[0] not in IGNORED}
    return kept | {"shares": ":".join(str(counts[name] // shared) for name in sorted(counts))}


def _initialization(entry: Entry) -> dict:
    """The lineage event of the run's initialization; from its config if there is no lineage."""
    events = [event for event in entry.model.events if "from" in event]
    config = entry.model.config
    configured = {"from": config["init_from"], "operator": config.get("init_operator", "")}
    return events[-1] if events else configured


def _operator(entry: Entry) -> str:
    operator = _initialization(entry)["operator"]
    return "" if operator == "data" else operator


def _word(operator: str) -> str:
    return WORDS.get(operator, f"grown by {operator}" if operator else "")


def _bases(entries: list[Entry]) -> dict[int, Base]:
    """The base model of each fine-tuning run, by the identity of its entry."""
    bases: dict[int, Base] = {}
    named: dict[str, str] = {}
    taken = {entry.label for entry in entries}
    for entry in filter(sources, entries):
        text = _initialization(entry)["from"]
        place, step = _place(text)
        own = _entry_of(text, [other for other in entries if other.own and other is not entry])
        if own is None and text not in named:
            at = f"@{step}" if "@" in entry.model.config["init_from"] else ""
            name = place.name + at
            named[text] = text if name in taken else name
            taken.add(named[text])
        config = own.model.config if own else _config(place)
        fields = run_record.fields(config) | {"step": step} if config else {}
        alike = json.dumps(fields | {"seed": None}, sort_keys=True) if fields else text
        label = own.label if own else named[text]
        bases[id(entry)] = Base(label, own, alike, fields.get("seed"))
    return bases


def _config(place: pathlib.Path) -> dict:
    with contextlib.suppress(UserError):
        if run := run_record.of_directory(place):
            return run.config
    return {}


def _first(base: Base, bases: dict[int, Base]) -> Base:
    """The first of the models that differ from a base only in their seed, shown ones first.

    If two of them have the same seed, they differ in something that the config does not record (for
    example imported models of one architecture), and each stands for itself.
    """
    same = {other.label: other for other in bases.values() if other.alike == base.alike}
    if len({other.seed for other in same.values()}) < len(same):
        return base
    return next((other for other in same.values() if other.own), next(iter(same.values())))


def _place(text: str) -> tuple[pathlib.Path, int | None]:
    """(directory of the run, step or None) of the checkpoint that a run was initialized from."""
    place, at, step = text.rpartition("@")
    known = at and step.isdecimal()
    return run_directory(paths.of(place if known else text)), int(step) if known else None


def _entry_of(text: str, entries: list[Entry]) -> Entry | None:
    place, step = _place(text)
    gone = not can_be_seen(place)  # moved, or copied from another machine
    same = [
        e for e in entries
        if step in (None, e.model.step) and (
            e.model.directory.resolve() == place.resolve()
            or (gone and e.model.directory.resolve().name == place.name)
        )
    ]  # fmt: skip
    return max(same, key=lambda entry: entry.model.step, default=None)


def _before(base: Base, entry: Entry, entries: list[Entry]) -> Entry | None:
    """The base model at the plan that computes the same as the run before its first update."""
    operator = _operator(entry)
    if base.own is None or operator not in ("", "retrofit", "untie"):
        return None
    if operator == "untie":
        return base.own if entry.own else None
    same = (e for e in entries if e.model is base.own.model and e.plan == entry.plan)
    return next(same, None)


def conditions(curves: list[Line]) -> list[str]:
    """The conditions under which any of the runs was evaluated."""
    every = [entry for line in curves for group in line.runs.values() for entry in group]
    return list(dict.fromkeys(of for entry in every for of in entry.results.get("eval", {})))


def shown(entries: list[Entry]) -> tuple[list[Entry], list[str]]:
    """(entries with a color of their own, names of base models that are not on the page).

    Fine-tuning runs appear only in the section Fine-tuning, unless there are diagnostics of them.
    """
    bases = _bases(entries)
    firsts = [_first(base, bases) for base in bases.values()]
    needed = {id(base.own) for base in firsts}
    kept = [
        entry for entry in entries
        if not sources(entry) or id(entry) in needed or entry.results.keys() - {"eval", "nll"}
    ]  # fmt: skip
    return kept, list(dict.fromkeys(base.label for base in firsts if base.own is None))


def table(curves: list[Line], of: str) -> Table:
    """A row for each number of examples of each line."""
    values = [(line, line.values(of)) for line in curves]
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
        "the training steps of their checkpoints."
    )
    return Table(caption, ["base model", "examples", "runs", *tasks, "steps kept"], rows)


def _spread(values: list, digits: int):
    return (
        (run_record.mean_and_deviation(values)[0], run_record.spread(values, digits))
        if values
        else None
    )


def missing(entries: list[Entry]) -> list[tuple[Entry, str, list[str], dict]]:
    """(entry, conditions, tasks, settings) of missing evaluations of runs and of their base models."""
    curves = lines(entries)
    evaluations = []
    for of in conditions(curves) or [""]:
        runs = [entry for line in curves for group in line.runs.values() for entry in group]
        settings = next((e.results["eval"][of]["settings"] for e in runs if _tasks(e, of)), {})
        tasks = list(dict.fromkeys(task for entry in runs for task in _tasks(entry, of)))
        if not tasks:
            named = dict.fromkeys(name for entry in runs for name in sources(entry))
            tasks = [name for name in named if registry.has_items(name)] or ["paper_suite"]
            settings = {"num_fewshot": 0} if tasks != ["paper_suite"] else {}
        before = [entry for line in curves for entry in line.before]
        for entry in {id(e): e for e in [*before, *runs]}.values():
            if lacks := [task for task in tasks if task not in _tasks(entry, of)]:
                evaluations.append((entry, of, lacks, settings))
    return evaluations


def _tasks(entry: Entry, of: str) -> dict:
    return entry.results.get("eval", {}).get(of, {"tasks": {}})["tasks"]
