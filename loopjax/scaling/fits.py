"""Least squares for laws with a floor: terms that are linear once their exponents are known.

A law is L = sum_j c_j t_j(x; theta) with coefficients c_j >= 0 and a few exponents theta. For given
exponents the coefficients are a non-negative least squares problem, so that only the exponents are
searched (variable projection; Golub and Pereyra 1973). Residuals are relative, (L_fit - L) / L,
which for small ones are those of log L.
"""

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np
from scipy import optimize

STARTS = 5  # best points of the grid from which exponents are refined
DRAWS = 500  # of the bootstrap


@dataclasses.dataclass(frozen=True)
class Fit:
    """A law with its exponents and coefficients.

    Attributes:
      exponents: theta, [number of exponents].
      coefficients: c >= 0, [number of terms].
      fitted: the losses of the law, [n].
      residuals: relative ones, [n].
    """

    exponents: np.ndarray
    coefficients: np.ndarray
    fitted: np.ndarray
    residuals: np.ndarray

    @property
    def error(self) -> float:
        """Root mean square of the relative residuals."""
        return float(np.sqrt(np.mean(self.residuals**2)))


@dataclasses.dataclass(frozen=True)
class Law:
    """The terms of a law.

    Attributes:
      terms: exponents -> [n, number of terms], the terms at every run.
      grid: values of each exponent at which the search begins; the ends are its bounds.
      fixed: [n], a part of the losses that is known, such as a given floor.
    """

    terms: Callable[[np.ndarray], np.ndarray]
    grid: tuple[tuple[float, ...], ...]
    fixed: np.ndarray | float = 0.0

    def at(self, exponents, losses) -> Fit:
        """The best coefficients for given exponents."""
        terms = self.terms(np.asarray(exponents))
        coefficients, _ = optimize.nnls(terms / losses[:, None], 1 - self.fixed / losses)
        fitted = terms @ coefficients + self.fixed
        return Fit(np.asarray(exponents), coefficients, fitted, fitted / losses - 1)

    def fit(self, losses: np.ndarray, start=None) -> Fit:
        """The least squares fit; from `start` alone, or from the best points of the grid."""
        starts = [start] if start is not None else self._starts(losses)
        lower, upper = ([f(values) for values in self.grid] for f in (min, max))
        fits = []
        for theta in starts:
            found = optimize.least_squares(
                lambda theta: self.at(theta, losses).residuals,
                np.clip(theta, lower, upper),
                bounds=(lower, upper),
                x_scale=np.subtract(upper, lower),
                xtol=1e-12,
                ftol=1e-12,
                gtol=1e-12,
            )
            fits.append(self.at(found.x, losses))
        return min(fits, key=lambda fit: fit.error)

    def _starts(self, losses):
        points = list(itertools.product(*self.grid))
        errors = [self.at(point, losses).error for point in points]
        return [points[i] for i in np.argsort(errors)[:STARTS]]

    def at_bound(self, fit: Fit) -> bool:
        """Whether the search ended at the edge of an exponent's range."""
        pairs = zip(fit.exponents, self.grid, strict=True)
        return any(
            min(x - min(values), max(values) - x) < 1e-6 * (max(values) - min(values))
            for x, values in pairs
        )


def bootstrap(law: Law, fit: Fit, seed: int, draws: int = DRAWS) -> list[Fit]:
    """Fits of losses that are redrawn: fitted values with residuals of randomly chosen runs.

    The design (sizes, tokens, repetitions) stays as it is, and residuals are scaled up by the
    degrees of freedom that the fit has used (Davison and Hinkley 1997, section 6.2.3).
    """
    n = len(fit.residuals)
    used = len(fit.exponents) + len(fit.coefficients)
    centered = fit.residuals - fit.residuals.mean()
    scaled = centered * np.sqrt(n / max(n - used, 1))
    random = np.random.default_rng(seed)
    drawn = random.choice(scaled, size=(draws, n))
    # fitted / losses - 1 is the residual, so losses are fitted / (1 + residual).
    return [law.fit(fit.fitted / (1 + row), start=fit.exponents) for row in drawn]


def interval(values) -> tuple[float, float]:
    """The central 95% of bootstrapped values."""
    low, high = np.percentile(np.asarray(values, float), [2.5, 97.5])
    return float(low), float(high)
