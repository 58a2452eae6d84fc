"""Tables 2 and 3: mathematics in the cooldown, and a block looped once more from there on."""

import common

TITLE = "Mathematical cooldown and retrofitted recurrence (Tables 2 and 3)"
PAPER = (
    "With 20% of mathematics in the cooldown, LIDAS gains more than the standard model (1.7B, "
    "primitives 52.6% against 39.2%); looping a middle block once more during the cooldown adds 1.7 "
    "to 4.0 points on primitives in both, and helps the grown model most."
)


def runs(study) -> dict:
    """Directories by (role, plan): the model as it is, cooled down, retrofitted."""
    made = {}
    for role, plans in study.scale.retrofits.items():
        made[role, "as it is"] = study.model(role)
        made[role, "cooldown"] = study.cooldown(role)
        made |= {(role, plan): study.cooldown(role, plan) for plan in plans}
    return made


def outcome(study) -> common.Outcome:
    tasks = (*study.scale.tasks, study.scale.new)
    rows, scores = [], {}
    for (role, plan), run in runs(study).items():
        evaluated = study.evaluate(run, tasks, name="cooldown")
        values = [common.accuracy(evaluated, task) for task in tasks]
        scores[role, plan] = sum(values[:-1]) / len(values[:-1]), values[-1]
        primitives, deeper = (f"{100 * value:.1f}%" for value in scores[role, plan])
        rows.append((role, plan, primitives, deeper))
    heads = ("model", "cooldown", "reasoning, mean", study.scale.new)
    gains = {
        role: [scores[role, plan][0] - scores[role, "cooldown"][0] for plan in plans]
        for role, plans in study.scale.retrofits.items()
    }
    said = "; ".join(
        f"{role} " + ", ".join(f"{plan} {100 * gain:+.1f}" for plan, gain in zip(plans, gains[role], strict=True))
        for role, plans in study.scale.retrofits.items()
    )  # fmt: skip
    found = (
        f"Points of mean reasoning accuracy that the retrofit adds to its plain cooldown: {said}. "
        f"{common.noise(study)} One seed."
    )
    better = [gain > 0.02 for role in ("standard", "lidas") for gain in gains[role]]
    verdict = "shows" if all(better) else "shows in part" if any(better) else "does not show"
    plain = (scores[role, "cooldown"][0] for role in ("standard", "lidas"))
    if solved := common.ceiling(plain):
        verdict, found = "cannot show", f"{found} {solved}"
    return common.Outcome(found, verdict, heads, rows, {"cooldown": _picture(scores)})


def _picture(scores: dict):
    from loopjax import figure

    fig = figure.new(8, 3.6)
    axis = fig.subplots()
    roles = list(dict.fromkeys(role for role, _ in scores))
    colours, lines = figure.colours(roles), {}
    for role in roles:
        mine = {plan: score[0] for (r, plan), score in scores.items() if r == role}
        (lines[role],) = axis.plot(range(len(mine)), mine.values(), "o-", color=colours[role])
    axis.set_xticks(range(4), ("as it is", "cooldown", "retrofit", "retrofit, later block"))
    axis.set_ylim(0, 1.05)
    figure.plain(axis)
    axis.set_ylabel("reasoning accuracy", color=figure.INK, fontsize=9)
    figure.legend(fig, lines)
    return fig


if __name__ == "__main__":
    common.start(__file__)
