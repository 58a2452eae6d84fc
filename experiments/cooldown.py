"""Tables 2 and 3: mathematics in the cooldown, and a block looped once more from there on."""

import statistics

import experiment
import numpy as np
import summary
from claims import Claim, effect

from loopjax.data.floors import mean_floors
from loopjax.plots import figure, spread

TITLE = "Mathematical cooldown and retrofitted recurrence (Tables 2 and 3)"
PAPER = (
    "With 20% of mathematics in the cooldown, LIDAS gains more than the standard model (1.7B, "
    "primitives: 52.6%, standard 39.2%); looping a middle block once more during the cooldown adds "
    "1.7 to 4.0 points on primitives in both, and helps the grown model most."
)
COOLDOWNS = (
    "as trained",
    "cooldown on\nnew data",
    "block looped\nin the cooldown",
    "later block looped\nin the cooldown",
)


def runs(study) -> dict:
    """Directories by (role, plan), one per seed: as it is, cooled down, retrofitted."""
    directories = {}
    for role, plans in study.scale.retrofits.items():
        directories[role, "as it is"] = study.models(role)
        directories[role, "cooldown"] = study.cooldowns(role)
        directories |= {(role, plan): study.cooldowns(role, plan) for plan in plans}
    return directories


def outcome(study) -> experiment.Outcome:
    tasks = (*study.scale.tasks, study.scale.new)
    rows, scores, items = [], {}, {}
    for (role, plan), directories in runs(study).items():
        evaluations = [study.evaluate(run, tasks, name="cooldown") for run in directories]
        values = [[summary.accuracy(each, task) for task in tasks] for each in evaluations]
        scores[role, plan] = [statistics.fmean(of_seed[:-1]) for of_seed in values]
        items[role, plan] = summary.values(evaluations, tasks=study.scale.tasks)
        columns = scores[role, plan], *zip(*values, strict=True)
        rows.append((role, plan, *map(summary.percent, columns)))
    heads = ("model", "cooldown", "reasoning, mean", *tasks)
    plain = {role: statistics.fmean(scores[role, "cooldown"]) for role in ("standard", "lidas")}
    finding = (
        f"After the plain cooldown LIDAS has {plain['lidas']:.1%}, the standard model "
        f"{plain['standard']:.1%}. Gains are over each model's own plain cooldown."
    )
    blocked = summary.undecidable(
        {role: items[role, "cooldown"] for role in plain}, study.scale.tasks
    )
    ahead = effect(items["lidas", "cooldown"] - items["standard", "cooldown"])
    claims = [
        Claim(
            "LIDAS is ahead after the plain cooldown", "+13.4 points", ahead, 0.03, blocked=blocked
        )
    ]
    for role, paper in (("standard", "+1.7, +0.6 points"), ("lidas", "+2.2, +4.0 points")):
        gains = [
            items[role, plan] - items[role, "cooldown"] for plan in study.scale.retrofits[role]
        ]
        gain = effect(np.mean(gains, axis=0))
        text = f"Looping a block once more in the cooldown adds to {summary.NAMED[role]} (mean over blocks)"
        claims.append(Claim(text, paper, gain, 0.02, blocked=blocked))
    means: dict[str, dict] = {}
    for (role, plan), values in scores.items():
        means.setdefault(role, {})[plan] = values
    data = {"tasks": study.scale.tasks, "scores": means}
    return experiment.Outcome(finding, claims, heads, rows, data)


def figures(data: dict) -> dict:
    """Mean reasoning accuracy of each model after each kind of cooldown."""
    fig = figure.new(5.8, 3.4)
    axis, lines, seeds = fig.subplots(), {}, []
    roles = data["scores"]
    looks, shifts = figure.looks(roles), figure.shifts(roles)
    for role, by_cooldown in roles.items():
        spreads = list(map(spread.of, by_cooldown.values()))
        seeds += [one.n for one in spreads]
        lines[role] = figure.curve(
            axis, range(len(spreads)), [one.mean for one in spreads], role, looks[role],
            ends=spread.ends(spreads), shift=2 * shifts[role], linestyle="none", markersize=6,
        )  # fmt: skip
    figure.plain(axis)
    most = max(map(len, roles.values()))
    figure.ticks(axis, range(most), COOLDOWNS[:most])
    axis.set_xlim(-0.5, most - 0.5)
    figure.labels(axis, "", "reasoning accuracy")
    lines |= figure.skill(axis, mean_floors(data["tasks"]))
    figure.legend(fig, lines, spread.note(seeds))
    return {"cooldown": fig}


if __name__ == "__main__":
    experiment.main(__file__)
