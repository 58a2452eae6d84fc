"""Figures 6 and 12: a block repeated at inference, without training."""

import statistics

import experiment
import numpy as np
import stored
import summary
from claims import Claim, effect

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
    tasks, block = study.scale.tasks, (study.scale.block,)
    edited = _edited(study, tasks, "repeat-chosen")
    deeper = study.scale.deeper
    further = _edited(study, (deeper,), "repeat-deeper") if deeper else {}
    rows, gains, changes = [], {}, {}
    for role, results in edited.items():
        gains[role] = _gains(results)
        changes[role] = {times: [_at(result, times) for result in results] for times in TIMES}
        rows.append(
            (
                role,
                summary.points([result["choice"]["dev_change"] for result in results]),
                effect(gains[role]).text(),
                "; ".join(result["choice"]["intervention"] for result in results),
                *map(summary.points, changes[role].values()),
                *([effect(_gains(further[role])).text()] if deeper else []),
            )
        )
    heads = (
        "model",
        "the best on the items that chose it, points",
        "on other items",
        "what was chosen, by seed",
        *(f"{n} more, mean over middle starts, points" for n in TIMES),
        *([f"{deeper}: the best edit for it, on other items"] if deeper else []),
    )
    tried = len(edited["lidas"][0]["rows"])
    finding = (
        f"Of {tried} edits the best on {study.scale.dev} items of each task is measured on the other "
        f"items: LIDAS {effect(gains['lidas']).text()}, standard "
        f"{effect(gains['standard']).text()}."
    )
    blocked = _blocked(edited, tasks)
    claims = [
        Claim("LIDAS gains from a repeated block", "up to 2x", effect(gains["lidas"]), 0.02,
              blocked=blocked),
        Claim("LIDAS gains more from it than the standard model", "gains little",
              effect(gains["lidas"] - gains["standard"]), 0.02, blocked=blocked),
    ]  # fmt: skip
    if deeper:
        text = f"LIDAS gains from a repeated block on more hops than it was trained on ({deeper})"
        gain, unclear = effect(_gains(further["lidas"])), _blocked(further, (deeper,))
        claims.append(Claim(text, "not reported", gain, 0.02, blocked=unclear))
    by_start = {role: list(map(stored.edited, results)) for role, results in edited.items()}
    data = {"block": block[0], "changes": changes, "by_start": by_start}
    return experiment.Outcome(finding, claims, heads, rows, data)


def _edited(study, tasks, name: str) -> dict:
    """{role: results by seed}: every window repeated, the best chosen on the first items."""
    block, dev = (study.scale.block,), (f"--dev={study.scale.dev}",)
    return {
        role: [
            study.intervene(run, "repeat", block, TIMES, tasks, name=name, flags=dev)
            for run in directories
        ]
        for role, directories in runs(study).items()
    }


def _gains(results: list[dict]) -> np.ndarray:
    """Changes by the chosen edit, [seeds, items that took no part in the choice]."""
    return np.array([summary.chosen(result) for result in results])


def _blocked(edited: dict, tasks) -> str:
    plain = {
        role: np.array([summary.unmodified(result) for result in results])
        for role, results in edited.items()
    }
    return summary.undecidable(plain, tasks)


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
