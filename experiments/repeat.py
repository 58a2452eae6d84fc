"""Figures 6 and 12: a block repeated at inference, without training."""

import statistics

import experiment
import stored
import summary

from loopjax.plots import figure, spread
from loopjax.plots.accuracy import plot_interventions

TITLE = "A middle block repeated at inference (Figures 6 and 12)"
PAPER = (
    "Repeating a four-layer block once or twice more, without training, raises the accuracy of grown "
    "models on the primitives by up to 2x (starts 7 to 11 of 24, copying); the standard model gains "
    "little anywhere, and a third or fourth repetition takes the gain back."
)
ROLES = ("standard", "lidas")
TIMES = (1, 2, 3, 4)


def runs(study) -> dict:
    return {role: study.models(role) for role in ROLES}


def outcome(study) -> experiment.Outcome:
    tasks = study.scale.tasks
    block = (study.scale.block,)
    edited = {
        role: [study.intervene(run, "repeat", block, TIMES, tasks) for run in directories]
        for role, directories in runs(study).items()
    }
    rows, gains, changes = [], {}, {}
    for role, results in edited.items():
        best = [[_best(result, task) for task in tasks] for result in results]
        gains[role] = [statistics.fmean(gain for gain, _ in of_seed) for of_seed in best]
        changes[role] = {times: [_at(result, times) for result in results] for times in TIMES}
        rows.append(
            (
                role,
                summary.points(gains[role]),
                " ".join(place for _, place in best[0]),
                *map(summary.points, changes[role].values()),
            )
        )
    heads = (
        "model",
        "largest gain over the unmodified model, points",
        "where (first seed)",
        *(f"{n} more, mean over middle starts, points" for n in TIMES),
    )
    grown = statistics.fmean(gains["lidas"])
    plain = statistics.fmean(gains["standard"])
    finding = (
        f"Largest gain over the unmodified model, mean over {len(tasks)} tasks, in points: LIDAS "
        f"{100 * grown:+.1f}, standard {100 * plain:+.1f} (each the largest of "
        f"{len(edited['lidas'][0]['rows'])} noisy values)."
    )
    more = grown - max(plain, 0)
    verdict = summary.verdict([more > 0.05, more > 0.02])
    solved = summary.ceiling(
        result["unmodified"][task]["accuracy"]
        for results in edited.values()
        for result in results
        for task in tasks
    )
    if solved:
        verdict = summary.INCONCLUSIVE
        finding = f"{finding} {solved}"
    by_start = {role: list(map(stored.edited, results)) for role, results in edited.items()}
    data = {"block": block[0], "changes": changes, "by_start": by_start}
    return experiment.Outcome(finding, verdict, heads, rows, data)


def figures(data: dict) -> dict:
    """The mean change by the number of repetitions; accuracies by first layer, where stored."""
    drawn = {"repeat": _changes(data)}
    if by_start := data.get("by_start"):
        drawn["repeat-starts"] = plot_interventions(by_start)
    return drawn


def _changes(data: dict):
    fig = figure.new(5.2, 3.2)
    axis, lines, seeds = fig.subplots(), {}, []
    looks, shifts = figure.looks(data["changes"]), figure.shifts(data["changes"])
    for role, by_times in data["changes"].items():
        spreads = [spread.of(values) for values in by_times.values()]
        seeds += [one.n for one in spreads]
        means = [0, *(100 * one.mean for one in spreads)]
        low, high = (
            [0, *(100 * v for v in end)] for end in spread.ends(spreads) or (means[1:],) * 2
        )
        at = [0, *map(int, by_times)]
        about = {"ends": (low, high), "shift": shifts[role]}
        lines[role] = figure.curve(axis, at, means, role, looks[role], **about)
    figure.plain(axis)
    lines["unmodified"] = axis.axhline(0, color=figure.INK, linestyle="--", linewidth=1, zorder=1)
    figure.ticks(axis, [0, *TIMES])
    figure.title(axis, f"repeat {data['block']} layers, mean over middle starts")
    figure.labels(axis, "additional passes at inference", "change of accuracy, points")
    figure.legend(fig, lines, spread.note(seeds))
    return fig


def _gain(result: dict, row: dict, task: str) -> float:
    return row["tasks"][task]["accuracy"] - result["unmodified"][task]["accuracy"]


def _best(result: dict, task: str) -> tuple[float, str]:
    """The largest gain on a task, and where: "TIMESx@START"."""
    row = max(result["rows"], key=lambda row: row["tasks"][task]["accuracy"])
    return _gain(result, row, task), f"{row['times']}x@{row['start']}"


def _at(result: dict, times: int) -> float:
    """Mean gain of `times` repetitions over the middle half of the starts."""
    starts = sorted({row["start"] for row in result["rows"]})
    middle = starts[len(starts) // 4 : -(len(starts) // 4) or None]
    return statistics.fmean(
        _gain(result, row, task)
        for row in result["rows"]
        for task in result["metrics"]
        if row["times"] == times and row["start"] in middle
    )


if __name__ == "__main__":
    experiment.main(__file__)
