"""How much a repetition is worth: the exponent phi of a scaling law of looped models.

    L = E + A (sum_s r_s^phi N_s)^-a + B D^-b

Over the segments s of the depth plan: N_s matrix parameters of its layers, r_s its repetitions (1
outside loops); D training tokens (arXiv 2604.21106, with one loop: N_once + r^phi N_rec). With
phi = 1 a repetition is worth as many layers of their own, with phi = 0 nothing.
"""

import dataclasses

import numpy as np

from loopjax.errors import UserError
from loopjax.scaling import fits

SIZES, TOKENS = 3, 3  # distinct values that an exponent needs
WIDEST = 1.0  # 95% interval of phi that still says something

EXPONENTS = (0.05, 0.1, 0.2, 0.35, 0.6, 1.0, 2.0)
PHIS = (-1.0, -0.5, 0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)


@dataclasses.dataclass(frozen=True)
class Point:
    """A run of the ladder.

    Attributes:
      name: of the run, for messages.
      segments: (repetitions, matrix parameters) of each segment of the plan.
      tokens: trained on.
      loss: held-out, nats per token.
    """

    name: str
    segments: tuple[tuple[int, int], ...]
    tokens: int
    loss: float

    def size(self, phi: float) -> float:
        """Parameters, those of a loop counted r^phi times."""
        return sum(float(repeats) ** phi * n for repeats, n in self.segments)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A fitted law; each value with its 95% interval as (value, low, high).

    `data` and `data_exponent` are None if all runs have the same number of tokens: the data term is
    then part of the floor.
    """

    phi: tuple[float, float, float]
    floor: tuple[float, float, float]
    size: tuple[float, float, float]
    size_exponent: tuple[float, float, float]
    data: tuple[float, float, float] | None
    data_exponent: tuple[float, float, float] | None
    error: float
    runs: int


def estimate(points: list[Point], seed: int = 0, draws: int = fits.DRAWS) -> Estimate:
    """Fits the law. Raises UserError, with the reason, if the runs cannot identify it."""
    one_size = _check(points)
    losses = np.array([point.loss for point in points])
    tokens = np.array([point.tokens for point in points], float)
    # Relative to typical values, so that the terms are of order one.
    unit_N = float(np.exp(np.mean([np.log(point.size(0.5)) for point in points])))
    unit_D = float(np.exp(np.mean(np.log(tokens))))

    def terms(theta):
        phi, a = theta[:2]
        sizes = np.array([point.size(phi) for point in points]) / unit_N
        columns = [np.ones_like(losses), sizes**-a]
        return np.stack([*columns, *([] if one_size else [(tokens / unit_D) ** -theta[2]])], axis=1)

    law = fits.Law(terms, (PHIS, EXPONENTS) if one_size else (PHIS, EXPONENTS, EXPONENTS))
    fit = law.fit(losses)
    drawn = fits.bootstrap(law, fit, seed, draws)

    def of(value):
        return (value(fit), *fits.interval([value(f) for f in drawn]))

    phi = of(lambda f: f.exponents[0])
    if law.at_bound(fit) or phi[2] - phi[1] > WIDEST:
        raise UserError(
            f"these {len(points)} runs do not identify phi: its 95% interval is {phi[1]:.2f} to "
            f"{phi[2]:.2f} (searched from {min(PHIS):g} to {max(PHIS):g}); add runs of other sizes "
            "with and without loops, or more seeds"
        )
    return Estimate(
        phi=phi,
        floor=of(lambda f: f.coefficients[0]),
        size=of(lambda f: f.coefficients[1] * unit_N ** f.exponents[1]),
        size_exponent=of(lambda f: f.exponents[1]),
        data=None if one_size else of(lambda f: f.coefficients[2] * unit_D ** f.exponents[2]),
        data_exponent=None if one_size else of(lambda f: f.exponents[2]),
        error=fit.error,
        runs=len(points),
    )


def _check(points: list[Point]) -> bool:
    """Whether all runs have the same number of tokens; raises UserError for too small a ladder."""
    repeats = {max(r for r, _ in point.segments) for point in points}
    if len(repeats) < 2:
        raise UserError(
            f"phi needs runs with at least two numbers of repetitions; all {len(points)} have "
            f"{min(repeats, default=0)}"
        )
    executed = {point.size(1) for point in points}
    if len(executed) < SIZES:
        raise UserError(
            f"phi needs runs of at least {SIZES} numbers of executed parameters; there are "
            f"{len(executed)}"
        )
    tokens = {point.tokens for point in points}
    if 1 < len(tokens) < TOKENS:
        raise UserError(
            f"the data exponent needs runs of one or of at least {TOKENS} numbers of tokens; there "
            f"are {len(tokens)}: {', '.join(f'{n:,}' for n in sorted(tokens))}"
        )
    one_size = len(tokens) == 1
    free = 4 if one_size else 6
    if len(points) <= free + 1:
        raise UserError(f"{len(points)} runs are too few for a law of {free} numbers; add runs")
    return one_size
