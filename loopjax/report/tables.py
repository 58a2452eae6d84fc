"""The tables of a page."""

from loopjax import run_record
from loopjax.analysis import periodicity
from loopjax.progress import duration
from loopjax.report.collect import Collection, Entry
from loopjax.report.context import Context
from loopjax.report.elements import Table, number
from loopjax.text_table import quantity

BLOCK = 4  # layers of a block, if neither a loop nor growth defines one


def models(context: Context) -> list[Table]:
    """One row for each entry."""
    heads = [
        "model", "plan", "unique layers", "executed layers", *run_record.COSTS.values(),
        "wall-clock", "held-out NLL",
    ]  # fmt: skip
    columns = [(f"{source}/accuracy", title) for source, title in context.group.accuracies]
    columns = columns or [("accuracy", "held-out accuracy")]
    rows = []
    for entry in context.models.entries:
        model = entry.model
        heldout = model.heldout() if entry.own else {}
        costs = [_cost(key, entry.costs[key]) for key in run_record.COSTS]
        cells = [
            entry.label,
            model.way if entry.own else f"{model.plan}, run by {entry.plan}",
            number(entry.plan.n_unique, "d"),
            number(entry.plan.n_effective, "d"),
            *costs,
            None if model.seconds is None else (model.seconds, duration(model.seconds)),
            number(entry.nll, ".4f"),
            *(number(heldout.get(name), ".1%") for name, _ in columns),
        ]
        rows.append((entry.label, cells))
    caption = (
        "FLOPs are computed by formula: 6 P + 12 E D T per token in training (P parameters of the "
        "executed matrices, E executed layers, D width, T context), plus those of the model that "
        "the run was initialized from; a third of it at inference. Wall-clock includes compilation, "
        "evaluation and checkpoints."
    )
    return [_without_empty(Table(caption, heads + [title for _, title in columns], rows))]


def _cost(key: str, value: float | None):
    if value is None:
        return None
    return value, f"{value:,}" if key == "parameters" else quantity(value)


def _without_empty(table: Table) -> Table:
    """The table without its empty columns."""
    kept = [
        k for k in range(len(table.heads)) if any(cells[k] is not None for _, cells in table.rows)
    ]
    rows = [(label, [cells[k] for k in kept]) for label, cells in table.rows]
    return Table(table.caption, [table.heads[k] for k in kept], rows)


def tasks(models: Collection) -> list[Table]:
    """Scores of `loopjax eval`, a table for each setting; groups first."""
    tables = []
    for of in models.conditions("eval"):
        scores = models.results("eval", of)
        groups = list(dict.fromkeys(name for one in scores.values() for name in one["groups"]))
        names = list(dict.fromkeys(name for one in scores.values() for name in one["tasks"]))
        rows = []
        for label, one in scores.items():
            of_groups = [_score(one["groups"].get(name)) for name in groups]
            of_tasks = [_score(run_record.score(one["tasks"].get(name))) for name in names]
            rows.append((label, [label, *of_groups, *of_tasks]))
        caption = f"Scores of tasks with standard errors{of and f' ({of})'}; groups come first."
        tables.append(Table(caption, ["model", *groups, *names], rows))
    return tables


def _score(score: dict | None):
    if score is None:
        return None
    error = "" if score["stderr"] is None else f" ± {score['stderr']:.3f}"
    return score["value"], f"{score['value']:.3f}{error}"


def depth_scores(models: Collection) -> list[Table]:
    """A column for each prompt set, and for its groups (levels, hops)."""
    heads = []
    rows = {e.label: [] for e in models.entries if "depth_score" in e.results}
    for of in models.conditions("depth_score"):
        scores = models.results("depth_score", of)
        groups = list(dict.fromkeys(group for one in scores.values() for group in one.groups))
        groups = groups if len(groups) > 1 else []
        heads += [of, *(f"… group {group}" for group in groups)]
        for label, cells in rows.items():
            one = scores.get(label)
            cells.append(one and _finite(one.score))
            cells += [one and _finite(one.groups.get(group)) for group in groups]
    if not heads:
        return []
    caption = (
        "Depth scores in executed layers, for each prompt set and its groups; compare only models "
        "with equally many executed layers."
    )
    return [Table(caption, ["model", *heads], [(label, [label, *c]) for label, c in rows.items()])]


def _finite(value: float | None):
    return None if value is None or value != value else number(value, ".2f")


def whole_model_accuracy(models: Collection) -> list[Table]:
    """The accuracies that the accuracies of exits are relative to."""
    tables = []
    for of in models.conditions("exit_accuracy"):
        results = models.results("exit_accuracy", of)
        names = list(dict.fromkeys(task for one in results.values() for task in one.tasks))
        rows = []
        for label, one in results.items():
            values = dict(zip(one.tasks, map(float, one.unmodified), strict=True))
            rows.append((label, [label, *(number(values.get(name), ".3f") for name in names)]))
        caption = f"Accuracy of the whole model in the same evaluation{of and f' ({of})'}."
        tables.append(Table(caption, ["model", *names], rows))
    return tables


# What may repeat with the block: {name: function from a result to values by layer}.
NORM_CURVES = {
    "attention / residual": lambda result: periodicity.without_first(result.attention),
    "layer / residual": lambda result: periodicity.without_first(result.layer),
}
EFFECT_CURVES = {"mean of a column": lambda result: periodicity.column_means(result.matrix)}


def cycles_of_norms(models: Collection) -> list[Table]:
    return _cycles(models, "norms", NORM_CURVES)


def cycles_of_effects(models: Collection) -> list[Table]:
    return _cycles(models, "future_local", EFFECT_CURVES)


def _cycles(models: Collection, kind: str, curves: dict) -> list[Table]:
    """Whether curves of a kind of result repeat with the block: a row for each model and curve.

    `curves` is {name: function from a result to values by layer}.
    """
    rows = []
    block = usual_block(models.entries)
    for of in models.conditions(kind):
        for name, values in curves.items():
            for entry in models.entries:
                if of not in entry.results.get(kind, {}):
                    continue
                own = block_of(entry) or block
                cycle = periodicity.cycle(values(entry.results[kind][of]), own)
                if cycle is None:
                    continue
                cells = [
                    entry.label,
                    f"{name} ({of})",
                    number(own.length, "d"),
                    number(cycle.share, ".0%"),
                    number(cycle.by_chance, ".0%"),
                    number(cycle.rare, ".0%"),
                    number(cycle.strongest + 1, "d"),
                    number(cycle.contrast, "+.3f"),
                ]
                rows.append((entry.label, cells))
    if not rows:
        return []
    caption = (
        "Do the values repeat with the length of a block? From each layer, the mean of one block's "
        "length around it is subtracted. Share explained: the share of the remaining variance "
        "explained by the position in the block; by chance: what independent values give on average, "
        "and what they exceed in 1 of 20 cases. A share below that shows no repetition. "
        "Contrast: how far the strongest position is above the mean of the others."
    )
    heads = [
        "model", "curve", "layers of a block", "share explained", "by chance",
        "1 in 20 by chance", "strongest position", "contrast",
    ]  # fmt: skip
    return [Table(caption, heads, rows)]


def block_of(entry: Entry) -> periodicity.Block | None:
    block = periodicity.block_of(entry.model.stages, entry.plan)
    return block if block and block.length > 1 else None


def usual_block(entries: list[Entry]) -> periodicity.Block:
    """The block for models that have none: the most frequent one of the others, else BLOCK."""
    lengths = [block.length for entry in entries if (block := block_of(entry))]
    return periodicity.Block(max(set(lengths), key=lengths.count) if lengths else BLOCK)
