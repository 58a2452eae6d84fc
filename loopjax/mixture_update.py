"""Weights of data sources that follow held-out metrics (after 2506.02678, "Too Long, Do Re-weighting").

After an evaluation, the weight of source i is multiplied by exp(rate x gap_i). The gap is the distance
of the metric from a bound in the config, as it was measured with a reference model: of the held-out
NLL above it, or of the held-out accuracy below it; 0 on the good side of the bound.

The weights are a function of config and evaluations, both of which a run records. An evaluation
after step t decides over the batches from the one of update t + 2 on: the batch of update t + 1 is on
the devices when the evaluation begins. What was read ahead of that is read again, so the data do not
depend on how far the reading threads have come.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping

from loopjax.errors import UserError

METRICS = ("nll", "accuracy")
LEAD = 1  # batches from an evaluation to the first one with its weights


@dataclasses.dataclass(frozen=True)
class History:
    """The weights of a run so far.

    Attributes:
      changes: (number of the first batch, share of each source) of every update, in order; batch t
        is that of update t + 1.
      gaps: averaged gap of each source after the last evaluation; {} before the first.
    """

    changes: tuple[tuple[int, Mapping[str, float]], ...] = ()
    gaps: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict:
        return {"changes": [[start, {**w}] for start, w in self.changes], "gaps": {**self.gaps}}

    @classmethod
    def of_json(cls, saved: dict) -> "History":
        return cls(tuple((start, weights) for start, weights in saved["changes"]), saved["gaps"])

    def next(self, step: int, mixture: Mapping, evaluation: Mapping, update) -> tuple:
        """(first batch, shares, gaps) that follow from the evaluation after update `step`.

        Args:
          mixture: weights before the first change.
          evaluation: columns of a row of metrics.jsonl, "eval/SOURCE/nll" and others.
          update: `config.mixture_update`.
        """
        before = self.changes[-1][1] if self.changes else _shares(mixture)
        return (step + LEAD, *_updated(before, self.gaps, evaluation, update))

    def plus(self, start: int, weights: Mapping, gaps: Mapping) -> "History":
        """The history with one more change."""
        return History((*self.changes, (start, weights)), gaps)

    def columns(self) -> dict[str, float]:
        """The last weights and gaps as columns of metrics.jsonl."""
        weights = {f"mixture/{name}": share for name, share in self.changes[-1][1].items()}
        return weights | {f"mixture/{name}/gap": gap for name, gap in self.gaps.items()}


def mixture_after(mixture: Mapping, evaluations: Iterable[Mapping], update) -> dict[str, float]:
    """The shares of the sources after evaluations, in order: rows of metrics.jsonl.

    Args:
      mixture: `config.mixture`.
      update: `config.mixture_update`.
    """
    weights, gaps = _shares(mixture), {}
    for evaluation in evaluations:
        weights, gaps = _updated(weights, gaps, evaluation, update)
    return weights


def _updated(weights: Mapping, before: Mapping, evaluation: Mapping, update) -> tuple[dict, dict]:
    """(shares, averaged gaps) of the sources after an evaluation."""
    sign = 1.0 if update.metric == "nll" else -1.0
    kept, gaps = update.smoothing, {}
    for name in weights:
        off = sign * (evaluation[f"eval/{name}/{update.metric}"] - update.bounds[name])
        now = max(0.0, off)
        # The first gap begins the average.
        gaps[name] = kept * before[name] + (1 - kept) * now if before else now
    largest = max(gaps.values())  # subtracted, so that no exponential overflows
    raised = {
        name: w * math.exp(update.rate * (gaps[name] - largest)) for name, w in weights.items()
    }
    return _floored(_shares(raised), update.floor), gaps


def _shares(weights: Mapping) -> dict[str, float]:
    total = math.fsum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def _floored(shares: dict[str, float], floor: float) -> dict[str, float]:
    """Shares of at least `floor`: those below it are raised to it, the others keep their ratios."""
    low: set[str] = set()
    while True:
        rest = math.fsum(share for name, share in shares.items() if name not in low)
        scale = (1 - floor * len(low)) / rest if rest else 0.0
        out = {n: floor if n in low else s * scale if low else s for n, s in shares.items()}
        below = {name for name, share in out.items() if name not in low and share < floor}
        if not below:
            return out
        low |= below


def check(config, mixtures: list[Mapping]) -> None:
    """Raises UserError where weights cannot follow evaluations as the config says.

    Args:
      config: config of the run.
      mixtures: mixture of each of its phases.
    """
    update, mixture = config.mixture_update, mixtures[0]
    _check_numbers(update)
    _check_bounds(dict(update.bounds), mixture)
    if not update.rate:
        return
    start = f"config.mixture_update.rate={update.rate:g}"
    if not (config.eval_batches and (config.eval_every or config.eval_per_decade)):
        raise UserError(
            f"{start} requires config.eval_batches, and config.eval_every or config.eval_per_decade"
        )
    if any(other != mixture for other in mixtures):
        raise UserError(
            f"{start} requires one mixture, and config.cooldown.mixture is another; branch off at the "
            "cooldown instead (config.init_from, with a rate of 0)"
        )
    if len(mixture) < 2:
        raise UserError(
            f"{start} requires a mixture of at least two sources; config.mixture has {[*mixture]}"
        )
    if missing := sorted(mixture.keys() - update.bounds.keys()):
        raise UserError(
            f"config.mixture_update.bounds must have every source of config.mixture; it lacks {missing}"
        )
    smallest = min(shares := _shares(mixture), key=lambda name: shares[name])
    if not update.floor <= shares[smallest]:
        raise UserError(
            f"config.mixture_update.floor={update.floor:g} must be at most the smallest share in "
            f"config.mixture, {shares[smallest]:.4g} of {smallest!r}"
        )


def _check_numbers(update) -> None:
    """Raises UserError for values that are wrong whatever the mixture."""
    if not 0 <= update.rate < math.inf:
        raise UserError(f"config.mixture_update.rate={update.rate} must be finite and at least 0")
    if update.metric not in METRICS:
        raise UserError(
            f"config.mixture_update.metric={update.metric!r} must be one of {', '.join(METRICS)}"
        )
    if not 0 <= update.smoothing < 1:
        raise UserError(
            f"config.mixture_update.smoothing={update.smoothing} must be at least 0 and below 1"
        )
    if not 0 < update.floor < 1:
        raise UserError(f"config.mixture_update.floor={update.floor} must lie between 0 and 1")


def _check_bounds(bounds: dict, mixture: Mapping) -> None:
    """Raises UserError for bounds that are wrong also where weights stay."""
    numbers = (int, float)
    name = "config.mixture_update.bounds"
    bad = {k: v for k, v in bounds.items() if not isinstance(v, numbers) or not abs(v) < 1e100}
    if bad:
        raise UserError(f"{name}={bad} must be finite numbers")
    if unknown := sorted(bounds.keys() - mixture.keys()):
        raise UserError(f"{name} has {unknown}, but the sources of config.mixture are {[*mixture]}")
