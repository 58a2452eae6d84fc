"""Figure 7 of Kapl et al. 2025: how alike the blocks of a grown model stay."""

import common
import numpy as np

TITLE = "Similarity of blocks in weights (Kapl et al. 2025, Figure 7)"
PAPER = (
    "Cosines of the feed-forward weights of two blocks: LIDAS is symmetric about the middle (mirrored "
    "pairs differ by 0.01) with 0.70 at most, MIDAS leans to early blocks (0.14), and the standard "
    "model has none to speak of."
)
ROLES = ("standard", "midas", "lidas")


def runs(study) -> dict:
    return {role: study.models(role) for role in ROLES}


def outcome(study) -> common.Outcome:
    from loopjax.analysis.diagnostics import DIAGNOSTICS

    models = runs(study)
    found = {
        role: [common.diagnostic(study, run, "similarity") for run in directories]
        for role, directories in models.items()
    }
    rows, largest, lean = [], {}, {}
    for role, results in found.items():
        numbers = np.array([_numbers(np.asarray(result.matrix)) for result in results])  # [seed, 3]
        largest[role], _, lean[role] = numbers.mean(0).tolist()
        rows.append((role, *map(common.spread, numbers.T, (2, 2, 3))))
    heads = ("model", "largest cosine", "mean cosine", "mean difference of mirrored pairs")
    said = (
        f"The largest cosine is {largest['standard']:.2f} in the standard model, "
        f"{largest['midas']:.2f} in MIDAS, {largest['lidas']:.2f} in LIDAS; mirrored pairs differ by "
        f"{lean['midas']:.3f} in MIDAS and {lean['lidas']:.3f} in LIDAS."
    )
    alike = largest["standard"] < 0.1 < min(largest["midas"], largest["lidas"])
    verdict = {2: "shows", 1: "shows in part", 0: "does not show"}[
        alike + (lean["lidas"] < lean["midas"])
    ]
    picture = DIAGNOSTICS["similarity"].draw(common.first_of(found))
    return common.Outcome(said, verdict, heads, rows, {"similarity": picture})


def _numbers(matrix) -> tuple[float, float, float]:
    """Largest and mean cosine of two blocks; mean difference of pairs that mirror one another."""
    pairs = np.triu_indices(len(matrix), 1)
    mirrored = matrix[::-1, ::-1].T
    return matrix[pairs].max(), matrix[pairs].mean(), np.abs(matrix - mirrored)[pairs].mean()


if __name__ == "__main__":
    common.start(__file__)
