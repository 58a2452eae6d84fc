"""Figures 5 and 11, and 3, 6, 9 to 11 of Kapl et al. 2025: layers swapped, skipped, reversed."""

import math
import statistics

import experiment
import summary

from loopjax.plots.accuracy import plot_interventions
from loopjax.run_record import spread

TITLE = "Layers swapped, skipped and reversed (Figures 5 and 11)"
PAPER = (
    "Grown models keep most of their accuracy when middle blocks of up to four layers are swapped or "
    "skipped, where the standard model collapses; single layers may be swapped in all but the fully "
    "looped model, whose passes depend on the order inside the block."
)
ROLES = ("standard", "lidas", "loop", "middle loop")


def runs(study) -> dict:
    return {role: study.models(role) for role in ROLES}


def outcome(study) -> experiment.Outcome:
    models = runs(study)
    block = study.scale.block
    edited = {
        op: {
            role: [study.intervene(run, op, sizes, tasks=study.scale.tasks) for run in directories]
            for role, directories in models.items()
        }
        for op, sizes in (("swap", (1, block)), ("skip", (1, block)), ("reverse", (block,)))
        if (op, block) != ("reverse", 2)  # the same as swapping two single layers
    }
    kept, rows = {}, []
    for op, by_role in edited.items():
        for size in sorted({row["size"] for row in by_role["standard"][0]["rows"]}):
            shares = {role: _kept(results, size, block) for role, results in by_role.items()}
            kept |= {
                (op, size, role): statistics.fmean(share) if share else math.nan
                for role, share in shares.items()
            }
            cells = (spread(share, 2) if share else "–" for share in shares.values())
            rows.append((f"{op} {size}", *cells))
    grown = kept["swap", block, "lidas"]
    plain = kept["swap", block, "standard"]
    finding = (
        "Remaining share of the unmodified accuracy above chance, mean over tasks and all starts "
        f"after the first block. Swapping blocks of {block}: LIDAS {grown:.2f}, standard "
        f"{plain:.2f}; swapping single layers: loop {kept['swap', 1, 'loop']:.2f}, standard "
        f"{kept['swap', 1, 'standard']:.2f}."
    )
    fragile = kept["swap", 1, "loop"] < kept["swap", 1, "standard"] - 0.05
    robust = grown > plain + 0.05
    verdict = summary.verdict([robust, fragile])
    if any(map(math.isnan, kept.values())):
        verdict = summary.INCONCLUSIVE
        finding = f"{finding} A model that has learned no task has no accuracy to lose."
    figures = {
        f"order-{op}" if op != "swap" else "order": plot_interventions(summary.first_seeds(by_role))
        for op, by_role in edited.items()
    }
    return experiment.Outcome(finding, verdict, ("edit (layers)", *ROLES), rows, figures)


def _kept(results: list[dict], size: int, first: int) -> list[float]:
    """Remaining share of the accuracy above chance, for starts from `first` on, by seed.

    Leaves out tasks that a model has not learned, and models that have learned none.
    """
    kept = []
    for result in results:
        shares = []
        for task in result["metrics"]:
            chance = result["chance"][task]
            plain = result["unmodified"][task]["accuracy"]
            shares += [
                (row["tasks"][task]["accuracy"] - chance) / (plain - chance)
                for row in result["rows"]
                if plain > chance + 0.02 and row["size"] == size and row["start"] >= first
            ]
        kept += [statistics.fmean(shares)] if shares else []
    return kept


if __name__ == "__main__":
    experiment.main(__file__)
