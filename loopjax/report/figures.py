"""The pictures of a page: which results go into which figure.

Results are in one figure where they are of one kind and were made under the same conditions.
"""

import dataclasses

import numpy as np

from loopjax.analysis import periodicity
from loopjax.plots import accuracy, ancestry, runs
from loopjax.plots.diagnostics import PLOTS
from loopjax.report import finetune_curves, tables
from loopjax.report.elements import Picture, Table, number
from loopjax.run_record import COSTS

NLL = "held-out NLL (nats per token)"
OPERATIONS = ("swap", "skip", "reverse", "repeat")


def _pictures(entries, colors, kind: str, plot, caption: str) -> list:
    """A picture for each condition under which there are results; `caption` takes the condition."""
    made = []
    for of in tables.conditions(entries, kind):
        held = tables.held(entries, kind, of)
        text = caption.format(of=of).replace(" ()", "")
        name = "-".join(part for part in (kind, of) if part)
        made.append(Picture(name, text, plot(held, colors)))
    return made


def lineages(entries, colors) -> list:
    held: dict[int, list] = {}
    for entry in entries:
        if entry.model.events:
            held.setdefault(id(entry.model), []).append(entry)
    drawn = {
        group[0].label: ancestry.Ancestry(group[0].model.stages, [e.plan for e in group])
        for group in held.values()
    }
    if not drawn:
        return []
    caption = "Stacks by training step, and below them what looped plans execute."
    return [Picture("lineage", caption, ancestry.lineages(drawn))]


def training(entries, colors, metric: str = "eval/nll", label: str = NLL) -> list:
    """`metric` is the column of metrics.jsonl that is drawn above the loss, `label` what it is."""
    rows = []
    for column, title, ylabel, cut in (
        (metric, "held-out", label, False),
        ("loss", "training batches", "loss (nats per token)", True),
    ):
        curves = {e.label: e.model.curve(column) for e in entries if e.own}
        curves = {name: curve for name, curve in curves.items() if curve}
        if cut:
            curves = {name: _means(curve) for name, curve in curves.items()}
        if curves:
            rows.append(runs.Row(title, ylabel, curves, cut))
    made = []
    if rows:
        caption = (
            f"{label[:1].upper()}{label[1:]}, and training loss, each point the mean of a hundredth of the "
            "steps; the first 5% may lie above the panel."
        )
        made.append(Picture("training", caption, runs.training(rows, colors)))
    return made + _checkpoints(entries, colors)


def _means(curve) -> tuple:
    """A curve of at most a hundred points, each the mean of its part."""
    parts = np.array_split(np.array(curve, float), min(100, len(curve[0])), axis=1)
    return tuple(np.array([part.mean(1) for part in parts]).T)


def _checkpoints(entries, colors) -> list:
    """`loopjax nll --all`: a run's checkpoints."""
    curves = {}
    for entry in entries:
        rows = {row["step"]: row for row in entry.results.get("nll", {}).values()}
        rows = {
            s: r for s, r in entry.model.history.items() if r["depth"] == str(entry.plan)
        } | rows
        flops = {row["step"]: row["flops"] for row in entry.model.rows}
        steps = sorted(step for step in rows if step in flops)
        if len(steps) > 1:
            values = [rows[step]["nll"] for step in steps]
            curves[entry.label] = (steps, [flops[step] for step in steps], values)
    if not curves:
        return []
    row = runs.Row("by checkpoint", NLL, curves)
    caption = "Held-out NLL of saved checkpoints, by loopjax nll."
    return [Picture("checkpoints", caption, runs.training([row], colors))]


def costs(entries, colors, accuracies=()) -> list:
    """`accuracies` are (source, title) of held-out accuracies that count beside the NLL."""
    costs = {e.label: e.costs for e in entries}
    known = {
        title: {label: each[key] for label, each in costs.items() if each[key]}
        for key, title in COSTS.items()
    }
    made = []
    for name, (ylabel, values) in _achieved(entries, accuracies).items():
        axes = {cost: have for cost, have in known.items() if len(have.keys() & values) > 1}
        if len(values) > 1 and axes:
            fig = runs.trade_off(values, axes, ylabel, colors)
            made.append(Picture(f"trade-off-{name}", f"{name} against the costs.", fig))
    return made + tables.tasks(entries)


def _achieved(entries, accuracies) -> dict:
    """{name: (axis, {label: value})} of NLL, task scores and depth scores."""
    nll = {e.label: e.nll for e in entries if e.nll is not None}
    found = {"Held-out NLL": ("nats per token", nll)}
    own = {e.label: e.model.heldout() for e in entries if e.own}
    for source, title in accuracies:
        name = f"{source}/accuracy"
        values = {label: heldout[name] for label, heldout in own.items() if name in heldout}
        found[title[:1].upper() + title[1:]] = ("accuracy", values)
    for of in tables.conditions(entries, "eval"):
        held = tables.held(entries, "eval", of)
        # Groups stand for their tasks; without a group each task stands for itself.
        groups = {label: one["groups"] for label, one in held.items()}
        if not any(groups.values()):
            groups = {
                label: {name: tables.scored(task) for name, task in one["tasks"].items()}
                for label, one in held.items()
            }
        for name in dict.fromkeys(name for scores in groups.values() for name in scores):
            values = {k: s[name] for k, s in groups.items() if s.get(name)}
            metric = next(iter(values.values()))["metric"] if values else ""
            of_name = f"{name} ({of})" if of else name
            found[of_name] = (metric, {label: s["value"] for label, s in values.items()})
    for of in tables.conditions(entries, "depth_score"):
        scores = {k: found.score for k, found in tables.held(entries, "depth_score", of).items()}
        held = {label: score for label, score in scores.items() if np.isfinite(score)}
        found[f"Depth score ({of})"] = ("executed layers", held)
    return found


def depth(entries, colors) -> list:
    caption = "Change of the answer's predictions when a layer is erased before it ({of})."
    return tables.depth_scores(entries) + _pictures(
        entries, colors, "depth_score", PLOTS["depth_score"], caption
    )


def exits(entries, colors) -> list:
    agree = "Share of the 5 likeliest tokens in common with the model, and divergence ({of})."
    right = "Accuracy of the exits as a share of the whole model's ({of})."
    made = _pictures(entries, colors, "overlap", PLOTS["overlap"], agree)
    made += _pictures(entries, colors, "exit_accuracy", PLOTS["exit_accuracy"], right)
    return made + _whole(entries)


def _whole(entries) -> list:
    """What the shares of the exits are of."""
    made = []
    for of in tables.conditions(entries, "exit_accuracy"):
        held = tables.held(entries, "exit_accuracy", of)
        names = list(dict.fromkeys(task for one in held.values() for task in one.tasks))
        rows = []
        for label, one in held.items():
            values = dict(zip(one.tasks, map(float, one.unmodified), strict=True))
            rows.append((label, [label, *(number(values.get(name), ".3f") for name in names)]))
        caption = f"Accuracy of the whole models in the same evaluation{of and f' ({of})'}."
        made.append(Table(caption, ["model", *names], rows))
    return made


def norms(entries, colors) -> list:
    curves = {
        "attention / residual": lambda found: _without_first(found.attention),
        "layer / residual": lambda found: _without_first(found.layer),
    }
    caption = "Norms, contributions and cosines, means over tokens ({of})."
    made = _pictures(entries, colors, "norms", PLOTS["norms"], caption)
    return made + tables.cycles(entries, "norms", curves)


def _without_first(values) -> np.ndarray:
    """The first layer reads the bare embedding and is off the scale of all others."""
    return np.array([np.nan, *np.asarray(values, float)[1:]])


def effects(entries, colors) -> list:
    captions = {
        "future_local": "Effects on later tokens, each layer alone seeing what is missing ({of}).",
        "future": "Effects on later tokens, everything after the erased layer computed anew ({of}).",
        "current_attention": "Effects of erasing a layer's attention at all tokens ({of}).",
    }
    made = []
    for kind, caption in captions.items():
        made += _pictures(entries, colors, kind, PLOTS[kind], caption)
        if kind == "future_local":
            curve = {"mean of a column": lambda found: periodicity.column_means(found.matrix)}
            made += tables.cycles(entries, kind, curve)
    return made


def interventions(entries, colors) -> list:
    made = []
    for op in OPERATIONS:
        caption = f"{op.capitalize()}: accuracy against the first layer of the sub-block ({{of}})."
        kind = f"intervene {op}"
        made += _pictures(entries, colors, kind, accuracy.interventions, caption)
    return made


def icl(entries, colors) -> list:
    caption = "Accuracy by number of examples, up to what the context holds ({of})."
    return _pictures(entries, colors, "icl", accuracy.icl, caption)


def finetuning(entries, colors) -> list:
    found, made = finetune_curves.lines(entries), []
    owners = {line.label: line.base for line in found}
    shades = {label: colors[owner] for label, owner in owners.items()}
    for of in finetune_curves.conditions(found):
        values = {line.label: held for line in found if (held := line.values(of))}
        name = "-".join(filter(None, ["finetuning", of]))
        caption = f"Accuracy by number of training examples{of and f' ({of})'}."
        made.append(Picture(name, caption, accuracy.finetuning(values, shades, owners)))
        made.append(finetune_curves.table(found, of))
    return made or ([finetune_curves.table(found, "")] if found else [])


def similarity(entries, colors) -> list:
    caption = (
        "Feed-forward weights of blocks above the diagonal ({of}); one block alone is left out."
    )
    entries = [
        dataclasses.replace(e, results={"similarity": {
            of: found for of, found in e.results.get("similarity", {}).items()
            if len(found.matrix) > 1
        }})
        for e in entries
    ]  # fmt: skip
    return _pictures(entries, colors, "similarity", PLOTS["similarity"], caption)
