"""Plots of a table of runs: a metric against parameters and FLOPs."""

from loopjax.errors import UserError
from loopjax.plots import figure
from loopjax.run_record import COSTS, mean_and_deviation
from loopjax.sweep.table import groups, metrics


def chosen(finished: list[dict], wanted: list[str] | None) -> list[str]:
    """The metrics to plot: the given ones, or by default the held-out NLL if there is one."""
    known = metrics(finished)
    for name in wanted or ():
        if name not in known:
            raise UserError(f"--metric={name} must be a metric of the runs: {', '.join(known)}")
    return wanted or [name for name in ("nll",) if name in known]


def draw(path, finished: list[dict], names: list[str], over: list[str]) -> None:
    """Writes a PNG: a row for each metric, a column for each cost.

    Runs that differ only in `over` share a color: small points, and a large one for the mean with
    its standard deviation.
    """
    together = groups(finished, over)
    fig, axes = figure.grid(len(names) * len(COSTS), len(COSTS), 4.2, 3.2, 0.3)
    colors, lines, costs = figure.colors(together), {}, list(COSTS.items())
    for k, axis in enumerate(axes):
        name, (key, title) = names[k // len(costs)], costs[k % len(costs)]
        for label, group in together.items():
            known = [row for row in group if name in row["metrics"]]
            if known:
                lines[label] = _points(axis, known, key, name, colors[label])
        figure.plain(axis)
        axis.margins(0.12)
        figure.amounts(axis)
        axis.set_xlabel(title, color=figure.INK, fontsize=9)
        if k % len(COSTS) == 0:
            axis.set_ylabel(name, color=figure.INK, fontsize=9)
    figure.legend(fig, lines)
    figure.save(fig, path)


def _points(axis, group: list[dict], key: str, name: str, color: str):
    values, costs = [row["metrics"][name] for row in group], [row[key] for row in group]
    (mean, deviation), (cost, _) = mean_and_deviation(values), mean_and_deviation(costs)
    if len(group) > 1:
        axis.plot(costs, values, "o", markersize=4, alpha=0.4, color=color)
        axis.errorbar([cost], [mean], [deviation], capsize=3, color=color)
    return axis.plot([cost], [mean], "o", markersize=8, alpha=0.8, color=color)[0]
