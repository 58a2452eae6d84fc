"""Tables 2 and 3: mathematics in the cooldown, and a block looped once more from there on."""

import statistics

import common

TITLE = "Mathematical cooldown and retrofitted recurrence (Tables 2 and 3)"
PAPER = (
    "With 20% of mathematics in the cooldown, LIDAS gains more than the standard model (1.7B, "
    "primitives 52.6% against 39.2%); looping a middle block once more during the cooldown adds 1.7 "
    "to 4.0 points on primitives in both, and helps the grown model most."
)


def runs(study) -> dict:
    """Directories by (role, plan), one for each seed: as it is, cooled down, retrofitted."""
    made = {}
    for role, plans in study.scale.retrofits.items():
        made[role, "as it is"] = study.models(role)
        made[role, "cooldown"] = study.cooldowns(role)
        made |= {(role, plan): study.cooldowns(role, plan) for plan in plans}
    return made


def outcome(study) -> common.Outcome:
    tasks = (*study.scale.tasks, study.scale.new)
    rows, scores = [], {}
    for (role, plan), directories in runs(study).items():
        found = [study.evaluate(run, tasks, name="cooldown") for run in directories]
        values = [[common.accuracy(each, task) for task in tasks] for each in found]
        scores[role, plan] = [statistics.fmean(of_seed[:-1]) for of_seed in values]
        columns = scores[role, plan], *zip(*values, strict=True)
        rows.append((role, plan, *(common.spread(column, 1, percent=True) for column in columns)))
    heads = ("model", "cooldown", "reasoning, mean", *tasks)
    gains = {
        (role, plan): [a - b for a, b in zip(scores[role, plan], scores[role, "cooldown"], strict=True)]
        for role, plans in study.scale.retrofits.items()
        for plan in plans
    }  # fmt: skip
    said = ", ".join(f"{role} {plan} {common.points(gain)}" for (role, plan), gain in gains.items())
    found = (
        f"Points of mean reasoning accuracy that the retrofit adds to its plain cooldown: {said}. "
        f"{common.noise(study)}"
    )
    better = [
        statistics.fmean(gain) > 0.02
        for (role, _), gain in gains.items()
        if role in ("standard", "lidas")
    ]
    plain = {role: statistics.fmean(scores[role, "cooldown"]) for role in ("standard", "lidas")}
    found = (
        f"After the plain cooldown LIDAS has {plain['lidas']:.1%}, the standard model "
        f"{plain['standard']:.1%}. {found}"
    )
    ahead = plain["lidas"] > plain["standard"] + 0.02
    verdict = "shows" if ahead and all(better) else "shows in part"
    if not ahead and not any(better):
        verdict = "does not show"
    if solved := common.ceiling(plain.values()):
        verdict, found = "cannot show", f"{found} {solved}"
    return common.Outcome(found, verdict, heads, rows, {"cooldown": _picture(scores)})


def _picture(scores: dict):
    from loopjax.plots import figure

    fig = figure.new(8, 3.6)
    axis = fig.subplots()
    roles = list(dict.fromkeys(role for role, _ in scores))
    colors, lines = figure.colors(roles), {}
    for role in roles:
        mine = [score for (r, _), score in scores.items() if r == role]
        for seed in zip(*mine, strict=True):
            axis.plot(range(len(mine)), seed, ".", color=colors[role], alpha=0.5)
        mean = [statistics.fmean(score) for score in mine]
        (lines[role],) = axis.plot(range(len(mine)), mean, "o-", color=colors[role])
    axis.set_xticks(range(4), ("as it is", "cooldown", "retrofit", "retrofit, later block"))
    figure.plain(axis)
    axis.set_ylabel("reasoning accuracy", color=figure.INK, fontsize=9)
    figure.legend(fig, lines)
    return fig


if __name__ == "__main__":
    common.start(__file__)
