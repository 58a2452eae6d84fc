"""Figure 7 of Kapl et al. 2025: how similar the blocks of a grown model stay."""

import experiment
import numpy as np
import stored
import summary
from claims import Claim, effect
from study import diagnostic

from loopjax.plots.diagnostics import plot_similarity
from loopjax.run_record import spread

TITLE = "Similarity of blocks in weights (Kapl et al. 2025, Figure 7)"
PAPER = (
    "Cosines of the feed-forward weights of two blocks: LIDAS is symmetric about the middle (mirrored "
    "pairs differ by 0.01) with 0.70 at most, MIDAS leans to early blocks (0.14), and blocks of the "
    "standard model are not similar."
)
ROLES = ("standard", "midas", "lidas")


def runs(study) -> dict:
    return {role: study.models(role) for role in ROLES}


def outcome(study) -> experiment.Outcome:
    similarity = {
        role: [diagnostic(study, run, "similarity") for run in directories]
        for role, directories in runs(study).items()
    }
    rows, largest, lean = [], {}, {}
    for role, results in similarity.items():
        numbers = np.array([_numbers(np.asarray(result.matrix)) for result in results])  # [seed, 3]
        largest[role], _, lean[role] = numbers.T
        rows.append((role, *map(spread, numbers.T.tolist(), (2, 2, 3))))
    heads = ("model", "largest cosine", "mean cosine", "mean difference of mirrored pairs")
    finding = (
        f"The largest cosine is {largest['standard'].mean():.2f} in the standard model, "
        f"{largest['midas'].mean():.2f} in MIDAS, {largest['lidas'].mean():.2f} in LIDAS; mirrored pairs "
        f"differ by {lean['midas'].mean():.3f} in MIDAS and {lean['lidas'].mean():.3f} in LIDAS."
    )
    claims = [
        Claim(f"The most similar blocks of {summary.NAMED[role]} are more similar than the standard model's (cosine)",
              "0.70" if role == "lidas" else "not reported",
              effect(largest[role] - largest["standard"]), 0.1, unit="")
        for role in ("midas", "lidas")
    ] + [
        Claim("LIDAS is more symmetric than MIDAS (difference of mirrored cosines)", "0.13", effect(lean["midas"] - lean["lidas"]),
              0.01, unit="")
    ]  # fmt: skip
    return experiment.Outcome(finding, claims, heads, rows, {"similarity": similarity})


def figures(data: dict) -> dict:
    return {"similarity": plot_similarity(stored.results(data["similarity"]))}


def _numbers(matrix) -> tuple[float, float, float]:
    """Largest and mean cosine of two blocks; mean difference of pairs that mirror one another."""
    pairs = np.triu_indices(len(matrix), 1)
    mirrored = matrix[::-1, ::-1].T
    return matrix[pairs].max(), matrix[pairs].mean(), np.abs(matrix - mirrored)[pairs].mean()


if __name__ == "__main__":
    experiment.main(__file__)
