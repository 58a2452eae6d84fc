"""Compute multipliers: how much compute a baseline would need for the loss of another model.

The baseline's runs give L = E + k C^-s (C training FLOPs). A model with loss L that took C FLOPs has
the multiplier ((L - E) / k)^(-1/s) / C: with 1.3 the baseline needs 30% more compute.
"""

import dataclasses

import numpy as np

from loopjax.errors import UserError
from loopjax.scaling import fits

EXPONENTS = (0.01, 0.03, 0.06, 0.1, 0.2, 0.35, 0.6, 1.0, 2.0)
REACH = 2.0  # beyond the baseline's compute by at most this factor


@dataclasses.dataclass(frozen=True)
class Baseline:
    """The fitted curve of a baseline, with the fits of its bootstrap."""

    fit: fits.Fit
    drawn: list[fits.Fit]
    unit: float
    given_floor: float | None
    least: float
    most: float

    def floor(self, fit: fits.Fit) -> float:
        return fit.coefficients[-1] if self.given_floor is None else self.given_floor

    def compute(self, fit: fits.Fit, loss: float) -> float:
        """FLOPs at which the curve reaches a loss; nan at or below the floor."""
        above = loss - self.floor(fit)
        if above <= 0 or fit.coefficients[0] <= 0:
            return float("nan")
        return self.unit * (above / fit.coefficients[0]) ** (-1 / fit.exponents[0])


@dataclasses.dataclass(frozen=True)
class Multiplier:
    """A multiplier with its 95% interval; `reason` instead, where there is none."""

    value: float | None
    low: float | None
    high: float | None
    reason: str = ""


def baseline(flops, losses, floor: float | None = None, seed: int = 0, draws: int = fits.DRAWS):
    """The curve through a baseline's runs; raises UserError if they cannot identify it.

    Args:
      flops, losses: [n], of the baseline's runs.
      floor: E, if it is known; else it is fitted.
    """
    flops, losses = np.asarray(flops, float), np.asarray(losses, float)
    distinct = len(set(flops))
    need = 3 if floor is not None else 4
    if distinct < need:
        raise UserError(
            f"the baseline has runs of {distinct} amounts of compute; the curve needs at least {need}"
            + ("" if floor is not None else ", or 3 with --floor")
        )
    if floor is not None and floor >= losses.min():
        raise UserError(
            f"--floor={floor} is not below the lowest loss of the baseline, {losses.min():.4f}"
        )
    unit = float(np.exp(np.mean(np.log(flops))))

    def terms(theta):
        power = (flops / unit) ** -theta[0]
        return np.stack([power] if floor is not None else [power, np.ones_like(power)], axis=1)

    law = fits.Law(terms, (EXPONENTS,), 0.0 if floor is None else floor)
    fit = law.fit(losses)
    if law.at_bound(fit) or fit.coefficients[0] <= 0:
        raise UserError(
            f"the baseline's losses do not identify its curve: the exponent of compute is "
            f"{fit.exponents[0]:.3g}, at the edge of the range; add runs with more or less compute, or "
            "give --floor"
        )
    drawn = fits.bootstrap(law, fit, seed, draws)
    return Baseline(fit, drawn, unit, floor, flops.min(), flops.max())


def multiplier(base: Baseline, flops: float, loss: float, seed: int = 0) -> Multiplier:
    """The multiplier of a run, whose own noise is that of the baseline's residuals."""
    needed = base.compute(base.fit, loss)
    if not np.isfinite(needed):
        return Multiplier(None, None, None, "its loss is below the floor")
    if not base.least / REACH <= needed <= base.most * REACH:
        side = "less" if needed < base.least else "more"
        return Multiplier(
            None, None, None, f"the baseline needs {side} compute than any of its runs"
        )
    noise = np.random.default_rng(seed).choice(base.fit.residuals, size=len(base.drawn))
    values = [
        base.compute(fit, loss / (1 + e)) / flops for fit, e in zip(base.drawn, noise, strict=True)
    ]
    values = [value if np.isfinite(value) else np.inf for value in values]
    return Multiplier(needed / flops, *fits.interval(values))
