"""The metrics of runs: which there are, which direction is better, how an axis names them."""

import math
import re

from loopjax.errors import UserError
from loopjax.sweep.rows import metrics

# Words in the names of metrics of which less is better; of all others more is.
LOWER = {"nll", "loss", "perplexity", "ppl", "bits", "bpb", "error", "wer", "cer", "brier", "ece"}
TITLES = {
    "nll": "held-out NLL, nats per token",
    "accuracy": "held-out accuracy",
    "bits_per_byte": "held-out bits per byte",
}


def lower_is_better(name: str) -> bool:
    """Whether less of a metric is better: "nll", "copying/word_perplexity", "bits_per_byte (b)"."""
    own = name.partition(" ")[0].rpartition("/")[2]
    return bool(LOWER & set(re.split(r"[\W_]+", own.lower())))


def rank(name: str, known: float | None) -> float:
    """A sort key of the values of a metric: the best first, those that are missing or nan last."""
    if known is None or not math.isfinite(known):
        return math.inf
    return known if lower_is_better(name) else -known


def direction(name: str) -> str:
    return "lower is better" if lower_is_better(name) else "higher is better"


def title(name: str) -> str:
    """The label of an axis: "p_hop_2: held-out NLL, nats per token"."""
    source, _, own = name.rpartition("/")
    return (f"{source}: " if source else "") + TITLES.get(own, own)


def chosen(finished: list[dict], wanted: list[str] | None) -> list[str]:
    """The metrics to compare by: the given ones, else the held-out NLL, else the first that exists.

    Raises UserError for a metric that no run has.
    """
    known = metrics(finished)
    for name in wanted or ():
        if name not in known:
            raise UserError(
                f"--metric={name} must be a metric of the runs: {', '.join(known) or 'they have none'}"
            )
    return wanted or (["nll"] if "nll" in known else known[:1])
