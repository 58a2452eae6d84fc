"""Figures 5 and 11, and 3, 6, 9 to 11 of Kapl et al. 2025: layers swapped, skipped, reversed."""

import math
import statistics

import common

TITLE = "Layers swapped, skipped and reversed (Figures 5 and 11)"
PAPER = (
    "Grown models keep most of their accuracy when middle blocks of up to four layers are swapped or "
    "skipped, where the standard model collapses; single layers may be swapped in all but the fully "
    "looped model, whose passes depend on the order inside the block."
)
ROLES = ("standard", "lidas", "loop", "middle loop")


def runs(study) -> dict:
    return {role: study.models(role) for role in ROLES}


def outcome(study) -> common.Outcome:
    from loopjax.plots.accuracy import plot_interventions

    models, b = runs(study), study.scale.block
    measured = {
        op: {
            role: [study.intervene(run, op, sizes, tasks=study.scale.tasks) for run in directories]
            for role, directories in models.items()
        }
        for op, sizes in (("swap", (1, b)), ("skip", (1, b)), ("reverse", (b,)))
        if (op, b) != ("reverse", 2)  # that is to swap two single layers
    }
    kept, rows = {}, []
    for op, by_role in measured.items():
        for size in sorted({row["size"] for row in by_role["standard"][0]["rows"]}):
            shares = {role: _kept(found, size, b) for role, found in by_role.items()}
            kept |= {
                (op, size, role): statistics.fmean(share) if share else math.nan
                for role, share in shares.items()
            }
            cells = (common.spread(share, 2) if share else "–" for share in shares.values())
            rows.append((f"{op} {size}", *cells))
    heads = ("edit (layers)", *ROLES)
    grown, plain = kept["swap", b, "lidas"], kept["swap", b, "standard"]
    found = (
        "Shares of the unmodified accuracy above chance that are left, mean over tasks and all "
        f"starts behind the first block. Swapping blocks of {b}: LIDAS {grown:.2f}, standard "
        f"{plain:.2f}; swapping single layers: loop {kept['swap', 1, 'loop']:.2f}, standard "
        f"{kept['swap', 1, 'standard']:.2f}."
    )
    fragile = kept["swap", 1, "loop"] < kept["swap", 1, "standard"] - 0.05
    robust = grown > plain + 0.05
    verdict = {2: "shows", 1: "shows in part", 0: "does not show"}[robust + fragile]
    if any(map(math.isnan, kept.values())):
        verdict, found = (
            "cannot show",
            f"{found} A model that has learned no task has none to lose.",
        )
    figures = {
        f"order-{op}" if op != "swap" else "order": plot_interventions(common.first_of(by_role))
        for op, by_role in measured.items()
    }
    return common.Outcome(found, verdict, heads, rows, figures)


def _kept(results: list[dict], size: int, first: int) -> list[float]:
    """What is left of the accuracy above chance, of starts from `first` on, by seed.

    Tasks of which a model has learned nothing are left out, and models that have learned none.
    """
    kept = []
    for found in results:
        shares = []
        for task in found["metrics"]:
            chance, plain = found["chance"][task], found["unmodified"][task]["accuracy"]
            shares += [
                (row["tasks"][task]["accuracy"] - chance) / (plain - chance)
                for row in found["rows"]
                if plain > chance + 0.02 and row["size"] == size and row["start"] >= first
            ]
        kept += [statistics.fmean(shares)] if shares else []
    return kept


if __name__ == "__main__":
    common.start(__file__)
