"""Blocks repeated without training: whole passes against damped ones, chosen and measured apart."""

import statistics

import experiment
import numpy as np
import summary
from claims import Claim, effect

from loopjax.plots import figure, spread

TITLE = "Whole and damped repetitions without training (2605.23872)"
PAPER = (
    "Repeating middle layers of pretrained models in steps of 1/R of their length (damped), with the "
    "window chosen per model, raises accuracy where whole repetitions lower it."
)
ROLES = ("standard", "lidas", "loop", "middle loop")
PASSES = ("plain", "damped")
TIMES = (1, 2)


def runs(study) -> dict:
    return {role: study.models(role) for role in ROLES}


def outcome(study) -> experiment.Outcome:
    tasks, scale = study.scale.tasks, study.scale
    changes: dict = {role: {} for role in ROLES}
    rows, mean, items, plain = [], {}, {}, {}
    for role, directories in runs(study).items():
        for passes in PASSES:
            found = [
                study.intervene(
                    run, "repeat", (scale.block,), TIMES, tasks, name=f"windows-{passes}",
                    flags=(f"--passes={passes}", f"--dev={scale.dev}"),
                )
                for run in directories
            ]  # fmt: skip
            chosen = [_held_out(result) for result in found]
            changes[role][passes] = chosen
            mean[role, passes] = [_mean_change(result) for result in found]
            items[role, passes] = [summary.chosen(result) for result in found]
            plain[role] = np.array([summary.unmodified(result) for result in found])
            rows.append(
                (
                    role,
                    "whole" if passes == "plain" else passes,
                    summary.percent([_unmodified(result) for result in found]),
                    summary.points(mean[role, passes]),
                    found[0]["choice"]["intervention"],
                    summary.points([result["choice"]["dev_change"] for result in found]),
                    summary.points(chosen),
                )
            )
    heads = (
        "model", "passes", "unmodified", "mean of all windows, points", "chosen (first seed)",
        "the chosen on the items that chose it, points", "on other items, points",
    )  # fmt: skip
    parts = [
        f"{role} {summary.points(by['plain'])} whole, {summary.points(by['damped'])} damped"
        for role, by in changes.items()
    ]
    finding = (
        f"Change of accuracy by the best window, on items that took no part in the choice, in points: "
        f"{'; '.join(parts)}. Scaled down."
    )
    blocked = summary.undecidable(plain, tasks)
    claims = [
        Claim(f"Damped passes harm {summary.NAMED[role]} less than whole ones, mean of all windows",
              "gentler", effect(np.subtract(mean[role, "damped"], mean[role, "plain"])), 0.01,
              blocked=blocked)
        for role in ROLES
    ] + [
        Claim(f"The chosen damped window helps {summary.NAMED[role]}", "helps",
              effect(items[role, "damped"]), 0.02, blocked=blocked)
        for role in ROLES
    ]  # fmt: skip
    data = {"tasks": tasks, "changes": changes}
    data["means"] = {role: {p: mean[role, p] for p in PASSES} for role in ROLES}
    return experiment.Outcome(finding, claims, heads, rows, data)


def _held_out(result: dict) -> float:
    """Mean over tasks of the change on the items that took no part in the choice."""
    return statistics.fmean(one["mean"] for one in result["choice"]["difference"].values())


def _unmodified(result: dict) -> float:
    return statistics.fmean(one["unmodified"] for one in result["choice"]["difference"].values())


def _mean_change(result: dict) -> float:
    """Mean over windows and tasks of the change on the items to choose by."""
    return statistics.fmean(
        row["tasks"][task]["accuracy"] - result["unmodified"][task]["accuracy"]
        for row in result["rows"]
        for task in row["tasks"]
    )


def figures(data: dict) -> dict:
    """Changes of accuracy: mean of all windows, and of the chosen on other items."""
    fig, axes = figure.grid(2, 2, 3.6, 2.9, 0.4)
    roles = list(data["changes"])
    looks, lines, seeds = figure.looks(PASSES), {}, []
    for axis, part, title in zip(
        axes,
        ("means", "changes"),
        ("mean of all windows", "the chosen, on other items"),
        strict=True,
    ):
        for k, passes in enumerate(PASSES):
            spreads = [spread.of(data[part][role][passes]) for role in roles]
            seeds += [one.n for one in spreads]
            at = [i + 0.2 * (k - 0.5) for i in range(len(roles))]
            means = [100 * one.mean for one in spreads]
            ends = spread.ends(spreads)
            ends = ends and tuple([100 * v for v in end] for end in ends)
            label = "whole passes" if passes == "plain" else "damped passes"
            lines[label] = figure.curve(
                axis, at, means, label, looks[passes], ends=ends, linestyle="none"
            )
        axis.axhline(0, color=figure.INK, linestyle="--", linewidth=1, zorder=1)
        figure.plain(axis)
        figure.ticks(axis, range(len(roles)), [role.replace(" ", "\n") for role in roles])
        figure.title(axis, title)
        figure.labels(axis, "", "change of accuracy, points" if axis is axes[0] else "")
    figure.legend(fig, lines, spread.note(seeds))
    return {"damped": fig}


if __name__ == "__main__":
    experiment.main(__file__)
