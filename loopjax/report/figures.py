"""The figures of a page: which results go into which figure.

Results are in one figure if they are of one kind and have the same conditions.
"""

import functools
from collections.abc import Callable

import numpy as np

from loopjax import lineage, run_record
from loopjax.analysis import periodicity
from loopjax.analysis.diagnostics import DIAGNOSTICS
from loopjax.data import floors
from loopjax.depth import DepthPlan
from loopjax.plots import accuracy, ancestry, figure, runs
from loopjax.report import cuts, diagnostic_findings, findings, finetune_curves, tables, tradeoffs
from loopjax.report.collect import Collection
from loopjax.report.context import Context
from loopjax.report.elements import Picture, Text
from loopjax.report.estimates import LAYERS, NLL, SHARE

OPERATIONS = ("swap", "skip", "reverse", "repeat")


def pictures(
    context: Context, kind: str, plot: Callable, caption: str, finding: Callable | None = None
) -> list[Picture | Text]:
    """A picture for each condition of a kind of results; `{of}` in the caption is the condition.

    `finding` takes the results and the families, and returns the sentence below the picture.
    """
    elements = []
    for of in context.models.conditions(kind):
        results = context.models.results(kind, of)
        text = caption.format(of=of).replace(" ()", "")
        name = "-".join(part for part in (kind, of) if part)
        elements.append(Picture(name, text, plot(results, context.looks)))
        if finding:
            elements.append(Text([finding(results, context.families)]))
    return elements


def diagnostic_section(context: Context, names: tuple[str, ...]) -> list:
    """Figures, sentences and tables of diagnostics."""
    elements = []
    blocks = {e.label: periodicity.starts(e.model.stages, e.plan) for e in context.models.entries}
    for name in names:
        row = DIAGNOSTICS[name]
        if not context.models.conditions(name):
            continue
        elements += pictures(
            context,
            name,
            functools.partial(row.draw, blocks=blocks),
            row.caption,
            row.finding_function(),
        )
        if build := row.table_builder():
            elements += build(context.models)
    return elements


def models_section(context: Context) -> list:
    return [*tables.models(context), Text(findings.models(context))]


def lineage_section(context: Context) -> list:
    """A panel for each model; seeds of one configuration share it."""
    lineages = {}
    by_model: dict[int, list] = {}
    for family in context.families:
        entry = family.entries[0]
        if entry.model.events:
            by_model.setdefault(id(entry.model), []).append((family, entry))
    for group in by_model.values():
        family, entry = group[0]
        grown = [DepthPlan.parse(event["plan"]) for event in lineage.loops(entry.model.events)]
        plans = [*grown, *(e.plan for _, e in group)]
        title = family.title if len(family.entries) > 1 else entry.label
        lineages[title] = ancestry.Ancestry(entry.model.stages, plans)
    if not lineages:
        return []
    caption = "Stacks of layers by training step; below them, what looped plans execute."
    picture = Picture("lineage", caption, ancestry.plot_lineages(lineages))
    for axis, group in zip(picture.figure.axes, by_model.values(), strict=True):
        figure.own(axis, group[0][1].label)
    return [picture, Text(findings.lineage(context))]


def training_section(context: Context) -> list:
    """The group's metric above the training loss."""
    group, rows = context.group, []
    for column, title, ylabel, cut in (
        (group.metric, "held-out", group.metric_label, False),
        ("loss", "training batches", f"loss (nats per {group.unit})", True),
    ):
        curves = {e.label: e.model.curve(column) for e in context.models.entries if e.own}
        curves = {name: curve for name, curve in curves.items() if curve}
        if cut:
            curves = {name: _means(curve) for name, curve in curves.items()}
        if curves:
            rows.append(runs.Row(title, ylabel, curves, cut))
    elements = []
    if rows:
        caption = (
            f"{rows[0].label[:1].upper()}{rows[0].label[1:]}"
            + ", and training loss" * (len(rows) > 1)
            + ". Each point of the loss is a mean over 1% of the steps; the first 5% of the steps "
            "may be above the panel."
        )
        elements.append(Picture("training", caption, runs.plot_training(rows, context.looks)))
        elements.append(Text(_at_equal_cost(context)))
    return elements + _checkpoints(context)


def mixture_section(context: Context) -> list:
    """The weights of runs whose mixture follows their evaluations, a row for each source."""
    entries = [entry for entry in context.models.entries if entry.own]
    names = {
        key.removeprefix("mixture/"): None
        for entry in entries
        for row in entry.model.rows
        for key in row
        if key.startswith("mixture/") and not key.endswith("/gap")
    }
    rows = []
    for name in names:
        curves = {e.label: e.model.curve(f"mixture/{name}") for e in entries}
        curves = {label: curve for label, curve in curves.items() if curve}
        rows.append(runs.Row(name, "share of the mixture", curves))
    if not rows:
        return []
    caption = "Share of each source in the training data, from each evaluation to the next."
    return [Picture("mixture", caption, runs.plot_training(rows, context.looks))]


def _at_equal_cost(context: Context) -> list[str]:
    """The group's metric at equal steps and FLOPs."""
    group = context.group
    curves: dict[str, list] = {}
    for family in context.families:
        known = [e.model.curve(group.metric) for e in family.entries if e.own]
        if known := [curve for curve in known if curve and np.isfinite(curve[2]).all()]:
            curves[family.label] = known
    measure = SHARE if group.metric.endswith("accuracy") else NLL
    name = group.metric_label[:1].upper() + group.metric_label[1:]
    return findings.training(curves, context.reference, name, measure)


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
    row = runs.Row("by checkpoint", context.group.nll, curves)
    caption = "Held-out NLL of saved checkpoints, from loopjax nll."
    return [Picture("checkpoints", caption, runs.plot_training([row], context.looks))]


def tradeoff_section(context: Context) -> list:
    elements = tradeoffs.elements(context, _metrics(context))
    return [
        *elements,
        *tables.tasks(context.models),
        Text([cuts.finding(context.models, ("eval",))]),
    ]


def _metrics(context: Context) -> list[tradeoffs.Metric]:
    """NLL, held-out accuracies, task scores and depth scores."""
    models, group = context.models, context.group
    nll = {e.label: e.nll for e in models.entries if e.nll is not None and np.isfinite(e.nll)}
    metrics = [tradeoffs.Metric("Held-out NLL", f"nats per {group.unit}", NLL, nll, lower=True)]
    own = {e.label: e.model.heldout() for e in models.entries if e.own}
    for source, title in group.accuracies:
        name = f"{source}/accuracy"
        values = {label: heldout[name] for label, heldout in own.items() if name in heldout}
        title = title[:1].upper() + title[1:]
        metrics.append(
            tradeoffs.Metric(
                title, "accuracy", SHARE, values, lower=False, floor=floor(source, models)
            )
        )
    for of in models.conditions("eval"):
        metrics += _task_scores(models, of)
    for of in models.conditions("depth_score"):
        scores = {k: result.score for k, result in models.results("depth_score", of).items()}
        finite = {label: score for label, score in scores.items() if np.isfinite(score)}
        metrics.append(tradeoffs.Metric(f"Depth score ({of})", "executed layers", LAYERS, finite))
    return metrics


def _task_scores(models: Collection, of: str) -> list[tradeoffs.Metric]:
    """Groups in place of their tasks; if there are none, tasks."""
    results = models.results("eval", of)
    by_label = {label: one["groups"] for label, one in results.items()}
    if not any(by_label.values()):
        by_label = {
            label: {name: run_record.score(task) for name, task in one["tasks"].items()}
            for label, one in results.items()
        }
    metrics = []
    for name in dict.fromkeys(name for of_model in by_label.values() for name in of_model):
        scores = {k: of_model[name] for k, of_model in by_label.items() if of_model.get(name)}
        tasks = {label: one["tasks"].get(name, {}) for label, one in results.items()}
        metrics.append(
            tradeoffs.Metric(
                name=f"{name} ({of})" if of else name,
                label=_axis(next(iter(scores.values()))["metric"]) if scores else "",
                measure=SHARE,
                values={label: score["value"] for label, score in scores.items()},
                errors={k: score["stderr"] for k, score in scores.items() if score["stderr"]},
                items={k: task["n_samples"] for k, task in tasks.items() if "n_samples" in task},
                lower=False,
                floor=floor(name, models),
            )
        )
    return metrics


def _axis(metric: str) -> str:
    return {"acc": "accuracy", "exact_match": "exact match", "f1": "F1"}.get(metric, metric)


def floor(task: str, models: Collection) -> tuple[float, str] | None:
    """(accuracy that a rule without the ability reaches, the rule) of a task; None if unknown."""
    if known := floors.floors(task):
        how, level = known.best
        return level, how
    for kind in ("icl", *(f"intervene {op}" for op in OPERATIONS)):
        for of in models.conditions(kind):
            for result in models.results(kind, of).values():
                if level := result.get("chance", {}).get(task):
                    return level, "chance"
    return None


def intervention_section(context: Context) -> list:
    elements = []
    for op in OPERATIONS:
        caption = f"{op.capitalize()}: accuracy against the first layer of the sub-block ({{of}})."
        elements += pictures(
            context, f"intervene {op}", accuracy.plot_interventions, caption,
            diagnostic_findings.interventions(op),
        )  # fmt: skip
    kinds = [f"intervene {op}" for op in OPERATIONS]
    return [*elements, Text([cuts.finding(context.models, kinds)])] if elements else []


def icl_section(context: Context) -> list:
    caption = "Accuracy by number of shots, up to the limit of the context ({of})."
    elements = pictures(context, "icl", accuracy.plot_icl, caption, diagnostic_findings.icl)
    return [*elements, Text([cuts.finding(context.models, ("icl",))])] if elements else []


def finetuning_section(context: Context) -> list:
    lines = finetune_curves.lines(context.models.entries)
    owners = {line.label: line.base for line in lines}
    shades = {label: context.looks[owner] for label, owner in owners.items()}
    elements = []
    for of in finetune_curves.conditions(lines):
        values = {line.label: by_n for line in lines if (by_n := line.values(of))}
        name = "-".join(filter(None, ["finetuning", of]))
        caption = f"Accuracy by number of training examples{of and f' ({of})'}."
        elements.append(Picture(name, caption, accuracy.plot_finetuning(values, shades, owners)))
        elements.append(Text([findings.finetuning(lines, of)]))
        elements.append(finetune_curves.table(lines, of))
    return elements or ([finetune_curves.table(lines, "")] if lines else [])
