"""Sentences about diagnostics, each computed from the results that the figure above it shows.

A function takes {label: result} and the families of the page, and returns a sentence or more, or
"" if there is nothing to compare.
"""

from collections.abc import Callable, Mapping

import numpy as np

from loopjax.analysis import periodicity
from loopjax.analysis.loops import KINDS
from loopjax.report import families as same
from loopjax.report import tables
from loopjax.report.estimates import (
    LAYERS,
    MINUS,
    SHARE,
    Estimate,
    Measure,
    compared,
    listed,
    series,
)  # fmt: skip
from loopjax.report.families import Family

COSINE = Measure(".2f", digits=2)
CHANGE = Measure(".2f", digits=2)


def of_families(results: Mapping, groups: list[Family], value: Callable) -> dict[str, Estimate]:
    """{label of a family: estimate of value(result)}, where finite."""
    found = {}
    for family in groups:
        known = {}
        for entry in family.entries:
            if entry.label in results:
                number = value(results[entry.label])
                if number is not None and np.isfinite(number):
                    known[entry.label] = float(number)
        if estimate := family.estimate(lambda entry, known=known: known.get(entry.label)):
            found[family.label] = estimate
    return found


def compare(name: str, values: Mapping[str, Estimate], groups, measure: Measure) -> str:
    """The values, and how they differ from that of the reference."""
    if not values:
        return ""
    base = same.reference(groups).label
    base = base if base in values else next(iter(values))
    return f"{name}: {listed(values, measure)}. {compared(values, base, measure)}".strip()


def depth_score(results: Mapping, groups: list[Family]) -> str:
    """Scores of models with equally many executed layers are compared, others left out."""
    depths = {label: len(result.effect) for label, result in results.items()}
    sentences = []
    for depth in sorted(set(depths.values())):
        same_depth = {k: v for k, v in results.items() if depths[k] == depth}
        values = of_families(same_depth, groups, lambda result: result.score)
        lead = f"Depth score of {depth} executed layers (0 to {depth - 1})"
        sentences.append(compare(lead, values, groups, LAYERS))
    return " ".join(filter(None, sentences))


def overlap(results: Mapping, groups: list[Family]) -> str:
    """From which exit on most of the likely tokens are the model's."""
    parts = []
    for label, result in results.items():
        shares = np.asarray(result.overlap, float)
        above = shares >= 0.5
        if above.all():
            parts.append(f"{label} from the first exit on (layer 0: {shares[0]:.0%})")
        elif above[-1]:
            first = len(shares) - int(np.argmin(above[::-1]))
            parts.append(f"{label} before layer {first} of {len(shares)}")
        else:
            parts.append(f"{label} at no exit (last: {shares[-1]:.0%})")
    lead = "The exit from which at least half of the 5 most likely tokens stay those of the model:"
    return f"{lead} {series(parts)}." if parts else ""


def exit_accuracy(results: Mapping, groups: list[Family]) -> str:
    """Accuracy at the first and the middle exit, and of the whole model, by task."""
    tasks = list(dict.fromkeys(task for result in results.values() for task in result.tasks))
    sentences = []
    for task in tasks:
        parts = []
        for label, result in results.items():
            if task in result.tasks:
                k = list(result.tasks).index(task)
                values = np.asarray(result.accuracy[k], float)
                middle = len(values) // 2
                parts.append(
                    f"{label} {values[0]:.1%} before layer 0, {values[middle]:.1%} before layer "
                    f"{middle}, {float(result.unmodified[k]):.1%} whole"
                )
        sentences.append(f"{task}: {'; '.join(parts)}.")
    if sentences:
        sentences.append("What an exit before layer 0 reaches needs no layer.")
    return " ".join(sentences)


def cycles(results: Mapping, groups: list[Family], curves: dict[str, Callable]) -> str:
    """Whether values by layer repeat with the block, beyond what independent values do."""
    entries = [entry for family in groups for entry in family.entries]
    usual = tables.usual_block(entries)
    sentences = []
    for name, values in curves.items():
        sure, unsure = [], []
        for entry in entries:
            if entry.label not in results:
                continue
            found = periodicity.cycle(values(results[entry.label]), tables.block_of(entry) or usual)
            if found:
                beyond = found.share > found.rare
                sign = ">" if beyond else "≤"
                text = f"{entry.label} ({found.share:.1%} {sign} {found.rare:.1%})"
                (sure if beyond else unsure).append(text)
        name = name[:1].upper() + name[1:]
        if sure:
            sentences.append(f"{name} repeats with the block beyond chance in {series(sure)}.")
        if unsure:
            sentences.append(f"{name} shows no repetition beyond chance in {series(unsure)}.")
    if sentences:
        sentences.append(
            "In brackets: the share explained by the position in the block, and what independent "
            "values exceed in 1 of 20 cases."
        )
    return " ".join(sentences)


def norms(results: Mapping, groups: list[Family]) -> str:
    return cycles(results, groups, tables.NORM_CURVES)


def trajectories(results: Mapping, groups: list[Family]) -> str:
    """What most states do, how far they still move, and whether more repetitions change answers."""
    sentences = []
    for label, result in results.items():
        shares = dict(zip(KINDS, np.asarray(result.kinds, float)[-1], strict=True))
        kinds = ", ".join(f"{kind} {share:.0%}" for kind, share in shares.items())
        distance = np.asarray(result.distance, float)[:, -1]
        last = result.planned - 2
        text = (
            f"{label} (loop from layer {result.start}, {result.planned} repetitions in the plan): of the "
            f"tokens {kinds}; relative distance {distance[last]:.2g} at repetition {result.planned}, "
            f"{distance[-1]:.2g} at {len(distance) + 1}; spectral radius {result.radius:.2f} on average, at "
            f"most {result.radius_largest:.2f} (± {result.radius_change:.1g} between estimates)"
        )
        if result.answers:
            text += (
                f"; {result.flips[last]:.1%} of {result.answers} answers change at repetition "
                f"{result.planned}, {1 - result.agreement[-1]:.1%} differ from them at {len(distance) + 1}"
            )
        sentences.append(f"{text}.")
    return " ".join(sentences)


def future_local(results: Mapping, groups: list[Family]) -> str:
    return " ".join(
        filter(None, [cycles(results, groups, tables.EFFECT_CURVES), effects(results, groups)])
    )


def effects(results: Mapping, groups: list[Family]) -> str:
    """The mean effect, and how much of the matrix is beyond the color scale."""

    def above(result):
        matrix = np.asarray(result.matrix, float)
        return matrix[np.triu_indices(len(matrix), 1)]

    values = of_families(results, groups, lambda result: above(result).mean())
    text = compare("Mean effect on the layers above", values, groups, CHANGE)
    beyond = {label: float((above(result) > 1).mean()) for label, result in results.items()}
    parts = [f"{share:.0%} of {label}" for label, share in beyond.items() if share]
    return text + (f" Changes larger than the update itself: {series(parts)}." if parts else "")


def similarity(results: Mapping, groups: list[Family]) -> str:
    """Mean cosine of neighboring blocks; none of a model with a single block."""
    several = {k: v for k, v in results.items() if len(v.matrix) > 1}
    values = of_families(several, groups, lambda v: np.diagonal(v.matrix, 1).mean())
    return compare("Mean cosine of neighboring blocks", values, groups, COSINE)


def interventions(op: str) -> Callable[[Mapping, list[Family]], str]:
    """The sentence about an operation: changes of accuracy over its starts."""

    def sentence(results: Mapping, groups: list[Family]) -> str:
        parts = []
        for label, result in results.items():
            for task in result["metrics"]:
                if task in result["unmodified"]:
                    parts += _changes(label, result, task)
        lead = f"{op.capitalize()}, change of the accuracy over all starts, in points"
        text = f"{lead}: {'; '.join(parts[:12])}." if parts else ""
        if op == "repeat" and parts:
            text += " The highest of several starts is above their mean also by chance."
        return " ".join([text, *_choices(results)]).strip()

    return sentence


def _choices(results: Mapping) -> list[str]:
    """What was chosen from many interventions, and its change on items that took no part in it."""
    sentences = []
    for label, result in results.items():
        choice = result.get("choice", {})
        parts = [
            f"{task} {signed(100 * found['mean'])} points (95% {signed(100 * found['low'])} to "
            f"{signed(100 * found['high'])}, {found['n']} items)"
            for task, found in choice.get("difference", {}).items()
        ]
        if parts:
            sentences.append(
                f"{label}, best of {choice['tried']}: {choice['intervention']}; on items that took no "
                f"part in the choice: {'; '.join(parts)}."
            )
    return sentences


def _changes(label: str, result: dict, task: str) -> list[str]:
    whole = result["unmodified"][task]["accuracy"]
    by_size: dict[tuple, list] = {}
    for row in result["rows"]:
        if task in row["tasks"]:
            change = 100 * (row["tasks"][task]["accuracy"] - whole)
            edit = row["size"], row["times"], row.get("passes", "plain")
            by_size.setdefault(edit, []).append((change, row["start"]))
    parts = []
    for (size, times, passes), changes in by_size.items():
        (low, worst), (high, best) = min(changes), max(changes)
        more = f", {times} more" if times else ""
        more += "" if passes == "plain" else f", {passes}"
        mean = float(np.mean([change for change, _ in changes]))
        parts.append(
            f"{label}, {task}, {size} layer{'s' * (size > 1)}{more}: {signed(mean)} on average, "
            f"{signed(low)} at layer {worst} to {signed(high)} at layer {best}"
        )
    return parts


def signed(value: float, digits: int = 1) -> str:
    """ "+1.2", "-0.3", "0.0", with a real minus sign."""
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", MINUS)


def icl(results: Mapping, groups: list[Family]) -> str:
    """Accuracy with the most shots that all models have against none, and between models."""
    tasks = list(dict.fromkeys(task for result in results.values() for task in result["curves"]))
    sentences = []
    for task in tasks:
        points = {
            label: {row["shots"]: row for row in result["curves"][task]["rows"]}
            for label, result in results.items()
            if task in result["curves"]
        }
        common = set.intersection(*(set(rows) for rows in points.values()))
        if not common:
            continue
        most, least = max(common), min(common)
        lead = f"{task} with {most} shot{'s' * (most != 1)}"
        values = _by_family(points, groups, most)
        sentences.append(compare(lead, values, groups, SHARE))
        if most > least:
            for label, value in values.items():
                before = _by_family(points, groups, least)[label]
                text = compared(
                    {f"{least} shots": before, f"{label} with {most}": value},
                    f"{least} shots",
                    SHARE,
                )
                sentences.append(text)
    return " ".join(filter(None, sentences))


def _by_family(points: dict, groups: list[Family], shots: int) -> dict[str, Estimate]:
    """Accuracies at a number of shots, with their standard errors over items."""

    def at(entry):
        return points.get(entry.label, {}).get(shots)

    found = {}
    for family in groups:
        estimate = family.estimate(
            lambda e: at(e) and at(e)["accuracy"], lambda e: binomial(at(e)),
            lambda e: at(e).get("n"),
        )  # fmt: skip
        if estimate:
            found[family.label] = estimate
    return found


def binomial(row: dict) -> float | None:
    """The standard error of a share of n items, from its Wilson interval, which is never empty."""
    low, high = row["interval"]
    return (high - low) / (2 * 1.959964)
