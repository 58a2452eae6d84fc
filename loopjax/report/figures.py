"""The figures of a page: which results go into which figure.

Results are in one figure if they are of one kind and have the same conditions.
"""

from collections.abc import Callable

import numpy as np

from loopjax import run_record
from loopjax.analysis.diagnostics import DIAGNOSTICS
from loopjax.plots import accuracy, ancestry, runs
from loopjax.report import finetune_curves, tables
from loopjax.report.collect import Collection
from loopjax.report.context import NLL, Context
from loopjax.report.elements import Picture

OPERATIONS = ("swap", "skip", "reverse", "repeat")


def pictures(context: Context, kind: str, plot: Callable, caption: str) -> list[Picture]:
    """A picture for each condition of a kind of results; `{of}` in the caption is the condition."""
    elements = []
    for of in context.models.conditions(kind):
        results = context.models.results(kind, of)
        text = caption.format(of=of).replace(" ()", "")
        name = "-".join(part for part in (kind, of) if part)
        elements.append(Picture(name, text, plot(results, context.colors)))
    return elements


def diagnostic_section(context: Context, names: tuple[str, ...]) -> list:
    """Figures and tables of diagnostics."""
    elements = []
    for name in names:
        row = DIAGNOSTICS[name]
        if not context.models.conditions(name):
            continue
        elements += pictures(context, name, row.draw, row.caption)
        if build := row.table_builder():
            elements += build(context.models)
    return elements


def lineage_section(context: Context) -> list:
    by_model: dict[int, list] = {}
    for entry in context.models.entries:
        if entry.model.events:
            by_model.setdefault(id(entry.model), []).append(entry)
    lineages = {
        group[0].label: ancestry.Ancestry(group[0].model.stages, [e.plan for e in group])
        for group in by_model.values()
    }
    if not lineages:
        return []
    caption = "Stacks of layers by training step; below them, what looped plans execute."
    return [Picture("lineage", caption, ancestry.plot_lineages(lineages))]


def training_section(context: Context) -> list:
    """The group's metric above the training loss."""
    entries, label = context.models.entries, context.group.label
    rows = []
    for column, title, ylabel, cut in (
        (context.group.metric, "held-out", label, False),
        ("loss", "training batches", "loss (nats per token)", True),
    ):
        curves = {e.label: e.model.curve(column) for e in entries if e.own}
        curves = {name: curve for name, curve in curves.items() if curve}
        if cut:
            curves = {name: _means(curve) for name, curve in curves.items()}
        if curves:
            rows.append(runs.Row(title, ylabel, curves, cut))
    elements = []
    if rows:
        caption = (
            f"{label[:1].upper()}{label[1:]}, and training loss. Each point of the loss is a mean "
            "over 1% of the steps; the first 5% of the steps may be above the panel."
        )
        elements.append(Picture("training", caption, runs.plot_training(rows, context.colors)))
    return elements + _checkpoints(context)


def _means(curve) -> tuple:
    """A curve of at most 100 points, each the mean of a part."""
    parts = np.array_split(np.array(curve, float), min(100, len(curve[0])), axis=1)
    return tuple(np.array([part.mean(1) for part in parts]).T)


def _checkpoints(context: Context) -> list:
    """The checkpoints of runs, by `loopjax nll --all`."""
    curves = {}
    for entry in context.models.entries:
        own = {row["step"]: row for row in entry.results.get("nll", {}).values()}
        history = entry.model.history.items()
        rows = {step: row for step, row in history if row["depth"] == str(entry.plan)} | own
        flops = {row["step"]: row["flops"] for row in entry.model.rows}
        steps = sorted(step for step in rows if step in flops)
        if len(steps) > 1:
            values = [rows[step]["nll"] for step in steps]
            curves[entry.label] = (steps, [flops[step] for step in steps], values)
    if not curves:
        return []
    row = runs.Row("by checkpoint", NLL, curves)
    caption = "Held-out NLL of saved checkpoints, from loopjax nll."
    return [Picture("checkpoints", caption, runs.plot_training([row], context.colors))]


def tradeoff_section(context: Context) -> list:
    costs = {e.label: e.costs for e in context.models.entries}
    known = {
        title: {label: each[key] for label, each in costs.items() if each[key]}
        for key, title in run_record.COSTS.items()
    }
    elements = []
    for name, (ylabel, values) in _metrics(context).items():
        axes = {
            cost: by_label for cost, by_label in known.items() if len(by_label.keys() & values) > 1
        }
        if len(values) > 1 and axes:
            fig = runs.plot_trade_off(values, axes, ylabel, context.colors)
            elements.append(Picture(f"trade-off-{name}", f"{name} against the costs.", fig))
    return elements + tables.tasks(context.models)


def _metrics(context: Context) -> dict:
    """{name: (axis, {label: value})} of NLL, task scores and depth scores."""
    models = context.models
    nll = {e.label: e.nll for e in models.entries if e.nll is not None}
    metrics = {"Held-out NLL": ("nats per token", nll)}
    own = {e.label: e.model.heldout() for e in models.entries if e.own}
    for source, title in context.group.accuracies:
        name = f"{source}/accuracy"
        values = {label: heldout[name] for label, heldout in own.items() if name in heldout}
        metrics[title[:1].upper() + title[1:]] = ("accuracy", values)
    for of in models.conditions("eval"):
        metrics |= _task_scores(models, of)
    for of in models.conditions("depth_score"):
        scores = {k: result.score for k, result in models.results("depth_score", of).items()}
        finite = {label: score for label, score in scores.items() if np.isfinite(score)}
        metrics[f"Depth score ({of})"] = ("executed layers", finite)
    return metrics


def _task_scores(models: Collection, of: str) -> dict:
    """{name: (metric, {label: value})}: groups in place of their tasks; if there are none, tasks."""
    results = models.results("eval", of)
    by_label = {label: one["groups"] for label, one in results.items()}
    if not any(by_label.values()):
        by_label = {
            label: {name: run_record.score(task) for name, task in one["tasks"].items()}
            for label, one in results.items()
        }
    scores = {}
    for name in dict.fromkeys(name for of_model in by_label.values() for name in of_model):
        values = {k: of_model[name] for k, of_model in by_label.items() if of_model.get(name)}
        metric = next(iter(values.values()))["metric"] if values else ""
        title = f"{name} ({of})" if of else name
        scores[title] = (metric, {label: score["value"] for label, score in values.items()})
    return scores


def intervention_section(context: Context) -> list:
    elements = []
    for op in OPERATIONS:
        caption = f"{op.capitalize()}: accuracy against the first layer of the sub-block ({{of}})."
        elements += pictures(context, f"intervene {op}", accuracy.plot_interventions, caption)
    return elements


def icl_section(context: Context) -> list:
    caption = "Accuracy by number of shots, up to the limit of the context ({of})."
    return pictures(context, "icl", accuracy.plot_icl, caption)


def finetuning_section(context: Context) -> list:
    lines = finetune_curves.lines(context.models.entries)
    owners = {line.label: line.base for line in lines}
    shades = {label: context.colors[owner] for label, owner in owners.items()}
    elements = []
    for of in finetune_curves.conditions(lines):
        values = {line.label: by_n for line in lines if (by_n := line.values(of))}
        name = "-".join(filter(None, ["finetuning", of]))
        caption = f"Accuracy by number of training examples{of and f' ({of})'}."
        elements.append(Picture(name, caption, accuracy.plot_finetuning(values, shades, owners)))
        elements.append(finetune_curves.table(lines, of))
    return elements or ([finetune_curves.table(lines, "")] if lines else [])
