"""Ways to grow and to loop, side by side at equal training FLOPs: which lower the loss, which solve more."""

import statistics

import experiment
import random_depth
import summary
from claims import NATS, Claim, effect
from study import run_result

from loopjax.data.floors import mean_floors
from loopjax.depth import DepthPlan
from loopjax.plots import figure
from loopjax.run_record import spread as in_words

TITLE = "Growth and loops side by side at equal training FLOPs (2609.19107, 2511.04981, 2502.05171)"
PAPER = (
    "2609.19107: loops that go from two to four repetitions after 75 to 88% of the training have a lower "
    "loss than fixed loops at equal FLOPs (a replication found -0.01 nats in one setting and +0.21 in "
    "another). 2511.04981: one step of growth from zero or one layers after 80% comes within 0.5% of the "
    "loss with a fifth of the FLOPs, and several steps are worse. What they do to reasoning, and beside "
    "LIDAS, is not reported."
)
STANDARD, LOOP, GRADUAL = "standard", "middle loop", "lidas"
AT_ONCE, GROWN_LOOP = "grown at once", "middle loop, grown"
LATE = "growth.starts=0.75"


def settings(study) -> dict[str, tuple[str, tuple[str, ...]]]:
    """{name: (role, overrides)}; those that grow train for as many FLOPs as the standard model."""
    scale = study.scale
    loop = DepthPlan.parse(scale.rows[LOOP].partition("-")[2])
    before, block, after = loop.segments
    fewer = DepthPlan.of(
        [(before.layers, 1), (block.layers, (block.repeats + 1) // 2), (after.layers, 1)]
    )
    once = f"growth.plans={scale.depth // 4},{scale.depth}"
    changed = {
        GRADUAL: (GRADUAL, ()),
        AT_ONCE: (STANDARD, ("growth.operator=gstack", once, LATE)),
        GROWN_LOOP: (LOOP, (f"growth.plans={fewer},{loop}", LATE)),
    }
    return {STANDARD: (STANDARD, ())} | {
        name: (role, (*changes, f"steps={study.steps_for(role, *changes, like=STANDARD)}"))
        for name, (role, changes) in changed.items()
    }


def runs(study) -> dict:
    """Directories by model, one per seed; the loops of `random_depth.py` have these FLOPs as they are."""
    longer = {
        name: study.changed(role, f"equal{_suffix(name, role)}", *overrides)
        if overrides
        else study.models(role)
        for name, (role, overrides) in settings(study).items()
    }
    loops = random_depth.runs(study)
    return longer | {
        LOOP: loops[random_depth.FIXED],
        f"{LOOP}, random repetitions": loops[random_depth.RANDOM],
        f"{LOOP}, norm and injection": loops[f"{random_depth.FIXED}, norm and injection"],
    }


def _suffix(name: str, role: str) -> str:
    """ "-grown" of "middle loop, grown", for the name of a directory."""
    return "".join(f"-{word}" for word in name.removeprefix(role).replace(",", "").split())


def outcome(study) -> experiment.Outcome:
    scale, nll, solved, beyond, flops, rows = study.scale, {}, {}, {}, {}, []
    for name, directories in runs(study).items():
        results = [run_result(run) for run in directories]
        nll[name] = [summary.heldout_nll(scale, result) for result in results]
        evaluations = [
            study.evaluate(run, (*scale.tasks, scale.new), name="equal") for run in directories
        ]
        solved[name] = summary.values(evaluations, tasks=scale.tasks)
        beyond[name] = summary.values(evaluations, tasks=(scale.new,))
        flops[name] = results[0]["training_flops"]
        rows.append(
            (
                name,
                results[0]["plan"],
                f"{results[0]['parameters']:,}",
                results[0]["steps"],
                f"{flops[name]:.4g}",
                in_words(nll[name], 3),
                "" if name == STANDARD else _lower(nll, name).text(NATS),
                summary.percent(solved[name].mean(axis=1)),
                "" if name == STANDARD else effect(solved[name] - solved[STANDARD]).text(),
                summary.percent(beyond[name].mean(axis=1)),
            )
        )
    heads = (
        "model", "plan", "parameters", "steps", "training FLOPs", "NLL", "lower than standard",
        "reasoning", "above standard", scale.new,
    )  # fmt: skip
    finding = (
        "Steps are chosen for equal training FLOPs; pairs have the same seed. "
        f"{_sorted(nll, solved)} {_against_loop(nll, solved)}"
    )
    blocked = summary.undecidable(solved, scale.tasks)
    reasoning = {name: values.mean(axis=1).tolist() for name, values in solved.items()}
    data = {"tasks": scale.tasks, "nll": nll, "reasoning": reasoning}
    return experiment.Outcome(finding, _claims(nll, solved, blocked), heads, rows, data)


def _lower(nll: dict, name: str, other: str = STANDARD):
    return effect(summary.differences(nll[other], nll[name]))


def _sorted(nll: dict, solved: dict) -> str:
    """Which models have a lower loss than the standard one, which solve more: by their intervals."""
    others = [name for name in nll if name != STANDARD]
    less = [name for name in others if _lower(nll, name).low > 0]
    more = [name for name in others if effect(solved[name] - solved[STANDARD]).low > 0]
    return (
        f"Lower loss than the standard model: {'; '.join(less) or 'none'}. More reasoning: "
        f"{'; '.join(more) or 'none'}."
    )


def _against_loop(nll: dict, solved: dict) -> str:
    """What each change of the loop does to the loop."""
    changed = [name for name in nll if name.startswith(f"{LOOP}, ")]
    each = (
        f"{name.removeprefix(f'{LOOP}, ')} {effect(solved[name] - solved[LOOP]).text()} of reasoning, "
        f"{_lower(nll, name, LOOP).text(NATS)} lower loss"
        for name in changed
    )
    return f"Against the fixed {LOOP}: {'; '.join(each)}."


def _label(name: str) -> str:
    """ "LIDAS", or "Grown at once"."""
    return summary.NAMED[name] if name == GRADUAL else summary.capital(name)


def _claims(nll: dict, solved: dict, blocked: str) -> list[Claim]:
    pairs = (
        (GROWN_LOOP, LOOP, "0.01 nats; -0.21 elsewhere"),
        (GRADUAL, STANDARD, "0.00 nats"),
        (AT_ONCE, STANDARD, "within 0.5%"),
    )
    lower = [
        Claim(f"{_label(new)}: a lower loss than {summary.NAMED[old]} at equal FLOPs", paper,
              _lower(nll, new, old), 0.01, unit=NATS)
        for new, old, paper in pairs
    ]  # fmt: skip
    more = [
        Claim(f"{_label(name)}: more reasoning than the standard model at equal FLOPs",
              "not reported", effect(solved[name] - solved[STANDARD]), 0.03,
              blocked=blocked)
        for name in solved
        if name != STANDARD
    ]  # fmt: skip
    return [*lower, *more]


def figures(data: dict) -> dict:
    """Reasoning accuracy against the loss."""
    fig = figure.new(5.2, 3.4)
    axis, lines = fig.subplots(), {}
    looks = figure.looks(data["nll"])
    for name, values in data["nll"].items():
        found = data["reasoning"][name]
        means = [statistics.fmean(values)], [statistics.fmean(found)]
        lines[name] = figure.own(
            axis.plot(*means, linestyle="none", **figure.marked(looks[name], 8))[0], name
        )
        seeds = axis.plot(values, found, linestyle="none", **figure.marked(looks[name], 3))[0]
        figure.own(seeds, name)
    figure.plain(axis)
    figure.labels(axis, "NLL (nats per byte)", "reasoning accuracy")
    lines |= figure.skill(axis, mean_floors(data["tasks"]))
    figure.legend(fig, lines, "large: means; small: seeds")
    return {"equal_flops": fig}


if __name__ == "__main__":
    experiment.main(__file__)
