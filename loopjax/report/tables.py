"""The tables of a page."""

from loopjax import run_record
from loopjax.analysis import periodicity
from loopjax.progress import duration
from loopjax.report.elements import Table, number

BLOCK = 4  # layers, where neither a loop nor growth says how many


def models(entries, colors, accuracies=()) -> list:
    """One row for each entry. `accuracies` are (source, title) of columns of held-out accuracy."""
    heads = ["model", "plan", "unique layers", "executed layers", *run_record.COSTS.values(),
             "wall-clock", "held-out NLL"]  # fmt: skip
    columns = [(f"{source}/accuracy", title) for source, title in accuracies]
    columns = columns or [("accuracy", "held-out accuracy")]
    rows = []
    for entry in entries:
        model, own = entry.model, entry.own
        heldout = model.heldout() if own else {}
        seconds = model.seconds
        rows.append((entry.label, [
            entry.label, model.way if own else f"{model.plan}, run by {entry.plan}",
            number(entry.plan.n_unique, "d"), number(entry.plan.n_effective, "d"),
            *(number(entry.costs[key], "," if key == "parameters" else ".3g")
              for key in run_record.COSTS),
            None if seconds is None else (seconds, duration(seconds)),
            number(entry.nll, ".4f"), *(number(heldout.get(name), ".1%") for name, _ in columns),
        ]))  # fmt: skip
    return [_without_empty(Table(
        "FLOPs are by formula: 6 P + 12 E D T per token in training (P matrix parameters executed, "
        "E executed layers, D width, T context), with those of the model that it began from; a third "
        "of it at inference. Wall-clock includes compilation, evaluation and checkpoints.",
        heads + [title for _, title in columns], rows,
    ))]  # fmt: skip


def _without_empty(table: Table) -> Table:
    """The table without the columns of which nothing is known."""
    kept = [
        k for k in range(len(table.heads)) if any(cells[k] is not None for _, cells in table.rows)
    ]
    rows = [(label, [cells[k] for k in kept]) for label, cells in table.rows]
    return Table(table.caption, [table.heads[k] for k in kept], rows)


def tasks(entries) -> list:
    """Scores of `loopjax eval`, a table for each setting; groups first."""
    made = []
    for of in conditions(entries, "eval"):
        scores = held(entries, "eval", of)
        groups = list(dict.fromkeys(name for one in scores.values() for name in one["groups"]))
        names = list(dict.fromkeys(name for one in scores.values() for name in one["tasks"]))
        rows = [
            (label, [label, *(_score(one["groups"].get(name)) for name in groups),
                     *(_score(scored(one["tasks"].get(name))) for name in names)])
            for label, one in scores.items()
        ]  # fmt: skip
        caption = f"Scores of tasks with standard errors{of and f' ({of})'}; groups come first."
        made.append(Table(caption, ["model", *groups, *names], rows))
    return made


def scored(task: dict | None) -> dict | None:
    """{"metric", "value", "stderr"} of a task: F1, else exact match, else accuracy, else its first."""
    if task is None:
        return None
    found = run_record.scores(task)
    name = next((n for n in ("f1", "exact_match", "acc", *found) if n in found), None)
    if name is None:
        return None
    return {"metric": name, "value": found[name][0], "stderr": found[name][1]}


def _score(score: dict | None):
    if score is None:
        return None
    error = "" if score["stderr"] is None else f" ± {score['stderr']:.3f}"
    return score["value"], f"{score['value']:.3f}{error}"


def conditions(entries, kind: str) -> list[str]:
    """The conditions under which there are results of a kind, each once."""
    return list(dict.fromkeys(of for e in entries for of in e.results.get(kind, {})))


def held(entries, kind: str, of: str) -> dict:
    """{label: result} of a kind under these conditions."""
    return {e.label: e.results[kind][of] for e in entries if of in e.results.get(kind, {})}


def depth_scores(entries) -> list:
    """A column for each prompt set, and for its groups (levels, hops)."""
    heads, rows = [], {e.label: [] for e in entries if "depth_score" in e.results}
    for of in conditions(entries, "depth_score"):
        scores = held(entries, "depth_score", of)
        groups = list(dict.fromkeys(group for one in scores.values() for group in one.groups))
        groups = groups if len(groups) > 1 else []
        heads += [of, *(f"… of it {group}" for group in groups)]
        for label, cells in rows.items():
            one = scores.get(label)
            cells.append(one and _finite(one.score))
            cells += [one and _finite(one.groups.get(group)) for group in groups]
    if not heads:
        return []
    caption = (
        "Depth scores in executed layers, for each prompt set and its groups; compare models of "
        "equal executed layers."
    )
    return [Table(caption, ["model", *heads], [(label, [label, *c]) for label, c in rows.items()])]


def _finite(value: float | None):
    return None if value is None or value != value else number(value, ".2f")


def cycles(entries, kind: str, curves: dict) -> list:
    """Whether curves of a kind of result repeat with the block: a row for each model and curve.

    `curves` is {what it is: function from a result to values by layer}.
    """
    rows, block = [], usual_block(entries)
    for of in conditions(entries, kind):
        for what, values in curves.items():
            for entry in entries:
                if of not in entry.results.get(kind, {}):
                    continue
                own = block_of(entry) or block
                found = periodicity.cycle(values(entry.results[kind][of]), own)
                if found is None:
                    continue
                rows.append((entry.label, [
                    entry.label, f"{what} ({of})", number(own.length, "d"),
                    number(found.share, ".0%"), number(found.by_chance, ".0%"),
                    number(found.strongest + 1, "d"), number(found.contrast, "+.3f"),
                ]))  # fmt: skip
    if not rows:
        return []
    caption = (
        "Is there a cycle of the block's length? Each layer is compared with the mean of one block "
        "around it: the share is how much of what remains goes with the position in the block "
        "(beside it what independent values would give), the contrast how far the strongest "
        "position stands above the others."
    )
    heads = ["model", "curve", "layers of a block", "share that repeats", "by chance",
             "strongest position", "contrast"]  # fmt: skip
    return [Table(caption, heads, rows)]


def block_of(entry) -> periodicity.Block | None:
    found = periodicity.block_of(entry.model.stages, entry.plan)
    return found if found and found.length > 1 else None


def usual_block(entries) -> periodicity.Block:
    """The block by which a model without one is measured: that of the others, if they have one."""
    found = [block.length for entry in entries if (block := block_of(entry))]
    return periodicity.Block(max(set(found), key=found.count) if found else BLOCK)
