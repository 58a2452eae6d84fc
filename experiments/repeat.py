"""Figures 6 and 12: a block repeated at inference, without training."""

import statistics

import common

TITLE = "A middle block repeated at inference (Figures 6 and 12)"
PAPER = (
    "Repeating a four-layer block once or twice more, without training, raises the accuracy of grown "
    "models on the primitives by up to 2x (starts 7 to 11 of 24, copying); the standard model gains "
    "little anywhere, and a third or fourth repetition takes the gain back."
)
ROLES = ("standard", "lidas")


def runs(study) -> dict:
    return {role: study.models(role) for role in ROLES}


def outcome(study) -> common.Outcome:
    from loopjax.plots.accuracy import plot_interventions

    models, b, tasks = runs(study), (study.scale.block,), study.scale.tasks
    measured = {
        role: [study.intervene(run, "repeat", b, (1, 2, 3, 4), tasks) for run in directories]
        for role, directories in models.items()
    }
    rows, gains = [], {}
    for role, results in measured.items():
        best = [[_best(found, task) for task in tasks] for found in results]
        gains[role] = [statistics.fmean(gain for gain, _ in of_seed) for of_seed in best]
        rows.append((
            role, common.points(gains[role]),
            " ".join(place for _, place in best[0]),
            *(common.points([_at(found, times) for found in results])
              for times in (1, 2, 3, 4)),
        ))  # fmt: skip
    heads = ("model", "best point over the unmodified, points", "where (first seed)",
             *(f"{n} more, mean over middle starts, points" for n in (1, 2, 3, 4)))  # fmt: skip
    grown = statistics.fmean(gains["lidas"])
    plain = statistics.fmean(gains["standard"])
    found = (
        f"The best start and count of {len(tasks)} tasks lies {100 * grown:+.1f} points over the "
        f"unmodified model in LIDAS, {100 * plain:+.1f} in the standard one (each the largest of "
        f"{len(measured['lidas'][0]['rows'])} noisy values)."
    )
    more = grown - max(plain, 0)
    verdict = "shows" if more > 0.05 else "shows in part" if more > 0.02 else "does not show"
    solved = common.ceiling(
        found["unmodified"][task]["accuracy"]
        for results in measured.values()
        for found in results
        for task in tasks
    )
    if solved:
        verdict, found = "cannot show", f"{found} {solved}"
    picture = plot_interventions(common.first_of(measured))
    return common.Outcome(found, verdict, heads, rows, {"repeat": picture})


def _gain(found: dict, row: dict, task: str) -> float:
    return row["tasks"][task]["accuracy"] - found["unmodified"][task]["accuracy"]


def _best(found: dict, task: str) -> tuple[float, str]:
    row = max(found["rows"], key=lambda row: row["tasks"][task]["accuracy"])
    return _gain(found, row, task), f"{row['times']}x@{row['start']}"


def _at(found: dict, times: int) -> float:
    """Mean gain of so many repetitions over the middle half of the starts."""
    starts = sorted({row["start"] for row in found["rows"]})
    middle = starts[len(starts) // 4 : -(len(starts) // 4) or None]
    return statistics.fmean(
        _gain(found, row, task)
        for row in found["rows"]
        for task in found["metrics"]
        if row["times"] == times and row["start"] in middle
    )


if __name__ == "__main__":
    common.start(__file__)
