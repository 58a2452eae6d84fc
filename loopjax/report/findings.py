"""Sentences about runs: models, lineage, training, trade-offs.

Each is computed from the numbers that the page shows beside it, so that it says the opposite if they
do. What a figure is without its numbers is said by its section.
"""

from collections.abc import Iterable, Mapping

import numpy as np

from loopjax import lineage as lineage_of
from loopjax.report import families as same
from loopjax.report.context import Context
from loopjax.report.estimates import MINUS, SHARE, Estimate, Measure, compared, listed, over, series
from loopjax.text_table import quantity

EQUAL = 0.005  # relative difference below which two costs are called equal


def models(context: Context) -> list[str]:
    """Sizes and costs against the reference."""
    entries = context.models.entries
    sentences = []
    depths = sorted({entry.plan.n_effective for entry in entries})
    if len(entries) > 1 and len(depths) == 1:
        sentences.append(f"All models execute {depths[0]} layers.")
    elif len(depths) > 1:
        sentences.append(
            f"Models execute {depths[0]} to {depths[-1]} layers, so that their inference costs differ."
        )
    vocabularies = {entry.model.cfg.vocab_size for entry in entries if entry.model.cfg}
    if len(vocabularies) > 1:
        sizes = series([f"{size:,}" for size in sorted(vocabularies)])
        sentences.append(
            f"Vocabularies differ ({sizes} tokens): an NLL per token cannot be compared between them."
        )
    return [" ".join(filter(None, [*sentences, _costs(context)]))]


def _costs(context: Context) -> str:
    groups = context.families
    base = same.reference(groups)
    parts = []
    for family in groups:
        if family is base:
            continue
        shares = []
        for key, name in (("parameters", "parameters"), ("training_flops", "training FLOPs")):
            own, other = (f.estimate(lambda e, key=key: e.costs[key]) for f in (family, base))
            if own and other and other.value:
                share = own.value / other.value
                shares.append(
                    f"equal {name}" if equal([1, share]) else f"{share:.0%} of its {name}"
                )
        if shares:
            parts.append(f"{family.label} has {series(shares)}")
    return f"Compared with {base.label}, {'; '.join(parts[:8])}." if parts else ""


def equal(values: Iterable[float]) -> bool:
    """Whether positive values differ by less than EQUAL."""
    values = list(values)
    return max(values) - min(values) <= EQUAL * max(values)


def lineage(context: Context) -> list[str]:
    """How each stack came to be."""
    grown, fixed = [], []
    for family in context.families:
        entry = family.entries[0]
        if not entry.own or not entry.model.events:
            continue
        stages = entry.model.stages
        loops = lineage_of.loops(entry.model.events)
        runs = "".join(f", from step {e['step']:,} on by {e['plan']}" for e in loops[1:])
        runs = f", run by {loops[0]['plan']}{runs}" if loops else ""
        if len(stages) == 1 and loops:
            grown.append(f"{family.label}: one stack{runs}.")
            continue
        if len(stages) == 1:
            fixed.append(family.label)
            continue
        sizes = " → ".join(str(len(stage.order)) for stage in stages)
        steps = series([f"{stage.step:,}" for stage in stages[1:]])
        made = series(list(dict.fromkeys(stage.operator for stage in stages[1:])))
        grown.append(f"{family.label}: {sizes} layers by {made}, at step {steps}{runs}.")
    if fixed:
        grown.append(f"{series(fixed)}: one stack from the first step on.")
    return [" ".join(grown)] if grown else []


# Training curves: {label of a family: [(steps, FLOPs, values) of each run]}.
Curves = Mapping[str, list[tuple]]


def training(curves: Curves, reference: str, name: str, measure: Measure) -> list[str]:
    """The values at equal steps and at equal training FLOPs.

    Args:
      reference: the family that others are compared with; the first one if it has no curve.
    """
    if len(curves) < 2:
        return []
    reference = reference if reference in curves else next(iter(curves))
    sentences = []
    for k, what in enumerate(("steps", "training FLOPs")):
        last = {label: min(run[k][-1] for run in runs) for label, runs in curves.items()}
        if what != "steps" and equal(last.values()):
            sentences.append(
                f"At the end, all have the same {what} ({quantity(min(last.values()))})."
            )
            continue
        at = min(last.values())
        if any(run[k][0] > at for runs in curves.values() for run in runs):
            continue  # a curve begins after another one ends
        place = f"step {at:,.0f}" if what == "steps" else f"{quantity(at)} {what}"
        values = {
            label: over(float(np.interp(at, run[k], run[2])) for run in runs)
            for label, runs in curves.items()
        }
        ends = [label for label, end in last.items() if equal([at, end])]
        end = f", the end of {series(ends)}" if len(ends) < len(curves) else ""
        sentences.append(
            f"{name} at {place}{end}: {listed(values, measure)}. "
            + compared(values, reference, measure)
            + _interrupted(curves, k, at)
        )
    return sentences


def _interrupted(curves: Curves, k: int, at: float) -> str:
    """Which models are not at their end there: their learning rate has not decayed yet."""
    early = []
    for label, runs in curves.items():
        if not equal([at, runs[0][k][-1]]):
            step = np.interp(at, runs[0][k], runs[0][0])
            early.append(f"{label} (step {step:,.0f} of {runs[0][0][-1]:,})")
    return f" Before the end of training there: {series(early)}." if early else ""


def scores(
    name: str, values: Mapping[str, Estimate], reference: str, measure: Measure,
    lower: bool | None, floor: tuple[float, str] | None = None,
) -> str:  # fmt: skip
    """A metric of each family, the best first, and how it differs from the reference.

    Args:
      lower: whether lower values are better; None if neither is.
      floor: a value that a model reaches without the ability that is measured, and how.
    """
    if not values:
        return ""
    sign = 1 if lower else -1
    ranked = dict(sorted(values.items(), key=lambda item: sign * item[1].value))
    reference = reference if reference in values else next(iter(values))
    order = "lowest" if lower else "highest"
    lead = f"{name}, {order} first: {listed(ranked, measure)}."
    parts = [lead, compared(ranked, reference, measure), _floor(ranked, floor, measure)]
    return " ".join(filter(None, parts))


def _floor(values: Mapping[str, Estimate], floor, measure: Measure) -> str:
    """Which values are not above what a model reaches without the ability."""
    if floor is None:
        return ""
    level, how = floor
    name = "chance" if how == "chance" else "the floor"
    text = f"{name} of {format(level, measure.form)}" + f" ({how})" * (how != "chance")
    if any(e.half is not None for e in values.values()):
        text += " beyond its interval"
    below = [k for k, e in values.items() if e.value - (e.half or 0) <= level]
    if not below:
        return f"All are above {text}."
    if len(below) == len(values):
        return f"None is above {text}: their order says nothing."
    return f"Not above {text}: {series(below)}."


def equal_costs(costs: Mapping[str, Mapping[str, float]]) -> str:
    """The costs that have no panel, because they are equal: {title: {label: cost}}."""
    parts = [
        f"{title} ({quantity(min(known.values()))})"
        for title, known in costs.items()
        if len(known) > 1 and equal(known.values())
    ]
    return f"Equal for all, and therefore without a panel: {series(parts)}." if parts else ""


def better(lower: bool) -> str:
    return "Lower is better." if lower else "Higher is better."


def finetuning(lines, of: str) -> str:
    """Accuracies at the largest number of examples that all lines have, by task.

    Args:
      lines: those of `finetune_curves.lines`.
      of: the conditions of the evaluations.
    """
    values = {line.label: line.values(of) for line in lines}
    values = {label: by_n for label, by_n in values.items() if by_n}
    common = set.intersection(*map(set, values.values())) - {0} if values else set()
    if not common:
        return ""
    n = max(common)
    sentences = []
    for task in dict.fromkeys(task for by_n in values.values() for task in by_n[n]):
        after = {k: over(by_n[n][task]) for k, by_n in values.items() if task in by_n[n]}
        lead = f"{task} after {n:,} examples: {listed(after, SHARE)}."
        parts = [lead, compared(after, next(iter(after)), SHARE)]
        for label in after:
            if before := values[label].get(0, {}).get(task):
                gain = 100 * (after[label].value - over(before).value)
                parts.append(f"{label} changed by {gain:+.1f} points from 0 examples.")
        sentences += parts
    return " ".join(filter(None, sentences)).replace(" -", f" {MINUS}")
