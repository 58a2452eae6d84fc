"""Figures of scaling laws: losses against size or compute, with the fitted curve."""

import numpy as np

from loopjax.plots import figure
from loopjax.plots.sweep import categorical, ordered

_CURVE = {"color": figure.INK, "linewidth": 1.2, "zorder": 2}
_DASHES = ("-", (0, (5, 1.8)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)))


def plot_recurrence(points: list, law, metric: str):
    """Losses against the parameters that the law counts, those of a loop r^phi times.

    If phi is right, runs of all numbers of repetitions are on one curve, one for each number of tokens.

    Args:
      points: `scaling.recurrence.Point`s.
      law: `scaling.recurrence.Estimate` of them.
      metric: name of the loss.
    """
    fig, (axis,) = figure.grid(1, 1, 6.3, 3.9, 0.5)
    from matplotlib.ticker import EngFormatter

    phi, low, high = law.phi
    repeats = sorted({max(r for r, _ in point.segments) for point in points})
    entries = {}
    for k, r in enumerate(repeats):
        ours = [point for point in points if max(r for r, _ in point.segments) == r]
        sizes, losses = [point.size(phi) for point in ours], [point.loss for point in ours]
        label = "no loop" if r == 1 else f"{r} repetitions"
        entries[label] = _marks(axis, sizes, losses, ordered(k, len(repeats)), label)
    amount = EngFormatter(sep="")
    every = [point.size(phi) for point in points]
    sizes = np.geomspace(min(every), max(every), 100)
    tokens = sorted({point.tokens for point in points})
    for k, n in enumerate(tokens):
        losses = law.floor[0] + law.size[0] * sizes ** -law.size_exponent[0]
        if law.data:
            losses = losses + law.data[0] * n ** -law.data_exponent[0]
        (line,) = axis.plot(sizes, losses, linestyle=_DASHES[k % len(_DASHES)], **_CURVE)
        entries[f"law at {amount(n).replace('G', 'B')} tokens"] = line
    _finish(axis, f"parameters of layers, those of a loop times r^{phi:.2f}", metric)
    note = f"phi = {phi:.3f} (95% interval {low:.3f} to {high:.3f})."
    figure.legend(fig, entries, note)
    return fig


def plot_multipliers(arms: dict[str, list], baseline: str, base, metric: str):
    """Losses against training FLOPs, and the curve through the runs of the baseline.

    Args:
      arms: {label: [(FLOPs, loss) of each run]}.
      baseline: label of the baseline.
      base: `scaling.multipliers.Baseline` of its runs.
      metric: name of the loss.
    """
    fig, (axis,) = figure.grid(1, 1, 6.3, 3.9, 0.5)
    entries = {}
    for k, (label, runs) in enumerate(sorted(arms.items(), key=lambda arm: arm[0] != baseline)):
        entries[label] = _marks(axis, *zip(*runs, strict=True), categorical(k), label)
    flops = np.geomspace(base.least, base.most, 100)
    power = (flops / base.unit) ** -base.fit.exponents[0]
    losses = base.floor(base.fit) + base.fit.coefficients[0] * power
    (entries["curve of the baseline"],) = axis.plot(flops, losses, **_CURVE)
    _finish(axis, "training FLOPs", metric)
    figure.legend(fig, entries, f"The baseline is {baseline}.")
    return fig


def _marks(axis, x, y, look, label: str):
    style = figure.marked(look) | {"linestyle": "none", "zorder": 3, "clip_on": False}
    (line,) = axis.plot(x, y, **style)
    return figure.own(line, label)


def _finish(axis, x: str, metric: str) -> None:
    axis.set_xscale("log")
    axis.minorticks_off()
    figure.plain(axis)
    figure.labels(axis, x, metric)
    figure.better(axis, metric)
