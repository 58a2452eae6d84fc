"""The figure of a sweep: the metric against the chosen field, or against parameters and FLOPs."""

import dataclasses
import statistics

from loopjax import run_record
from loopjax.plots import roles
from loopjax.plots import sweep as plots
from loopjax.plots.roles import Look
from loopjax.sweep import axis, compare, metric
from loopjax.sweep.compare import COSTS, Choice, Line

# Fields of the config that say what a model is, which roles have colors for.
MODEL = ("depth", "growth.", "cooldown.depth", "cooldown.operator", "cooldown.mixture", "init")

STANDARD = {"standard", "half", "one block", "other"}  # roles of models without loops and growth


def draw(rows: list[dict], choice: Choice, names: list[str]):
    """The figure: a row of panels for each metric, with a panel for the field or each cost that varies."""
    keys = [choice.x]
    if choice.x == COSTS:
        keys = [key for key in run_record.COSTS if len(axis.axis_of(rows, key).values) > 1]
        keys = keys or [next(iter(run_record.COSTS))]
    choices = [dataclasses.replace(choice, x=key) for key in keys]
    panels = [_panel(rows, one, name) for name in names for one in choices]
    lines = {line.label: line for panel in panels for line in panel.lines}
    chosen = looks(list(lines.values()), choice.by)
    return plots.plot_sweep(panels, chosen, len(keys), choice.over)


def _panel(rows: list[dict], choice: Choice, name: str) -> plots.Panel:
    along, lines = compare.lines(rows, choice, name)
    bests = {}
    if not choice.is_cost:
        bests = {line.label: compare.best_of(line, along, name) for line in lines}
    return plots.Panel(
        xlabel=run_record.COSTS.get(choice.x, choice.x),
        ylabel=f"{metric.title(name)}\n({metric.direction(name)})",
        along=along,
        lines=lines,
        best={label: best.cell for label, best in bests.items() if best and best.others},
        lower=metric.lower_is_better(name),
        amounts=choice.is_cost,
    )


def looks(lines: list[Line], by: list[str]) -> dict[str, Look]:
    """{label: look}: by role for models, by a scale of colors for numbers, else by category."""
    if by and all(field.startswith(MODEL) for field in by) and (chosen := _by_role(lines)):
        return chosen
    keys = sorted({line.key for line in lines}, key=lambda key: tuple(map(axis.order, key)))
    runs = [row for line in lines for row in line.rows]
    if len(by) == 1 and axis.axis_of(runs, by[0]).numeric:
        return {line.label: plots.ordered(keys.index(line.key), len(keys)) for line in lines}
    return {line.label: plots.categorical(keys.index(line.key)) for line in lines}


def _by_role(lines: list[Line]) -> dict[str, Look] | None:
    """The looks of roles; None unless the lines are models of different roles.

    Standard models of several depths are better told apart by their depth.
    """
    depth = max(statistics.multimode(line.rows[0]["effective_layers"] for line in lines))
    kinds = {
        line.label: roles.kind_of(line.rows[0]["plan"], config=line.rows[0]["saved"], depth=depth)
        for line in lines
    }
    found = {kind.role for kind in kinds.values()}
    return None if len(found) < 2 or found <= STANDARD else roles.looks(kinds)
