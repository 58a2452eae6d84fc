"""Loops that grow, and models that grow at once, against fixed ones with the same training FLOPs."""

import statistics

import experiment
import summary
from claims import Claim, effect
from study import run_result

from loopjax.data.floors import mean_floors
from loopjax.depth import DepthPlan
from loopjax.plots import figure
from loopjax.run_record import spread as in_words

TITLE = "Growth of layers and of repetitions at equal training FLOPs (2609.19107)"
PAPER = (
    "2609.19107: loops that go from two to four repetitions after 75 to 88% of the training have a lower "
    "loss than fixed loops at equal FLOPs (a replication found -0.01 nats in one setting and +0.21 in "
    "another). 2511.04981: one step of growth from zero or one layers after 80% comes within 0.5% of the "
    "loss with a fifth of the FLOPs, and several steps are worse."
)
STANDARD, LOOP = "standard", "middle loop"
GROWN_LOOP, GRADUAL, AT_ONCE = "middle loop, grown", "lidas", "grown at once"
SHORT = {GROWN_LOOP: "grown-equal", GRADUAL: "equal", AT_ONCE: "at-once-equal"}  # for directories
LATE = "growth.starts=0.75"


def settings(study) -> dict[str, tuple[str, tuple[str, ...]]]:
    """{name: (role, overrides)}; the models that grow train for as many FLOPs as the standard one."""
    before, block, after = DepthPlan.parse(study.scale.rows[LOOP].partition("-")[2]).segments
    fewer = DepthPlan.of(
        [(before.layers, 1), (block.layers, (block.repeats + 1) // 2), (after.layers, 1)]
    )
    loop, depth = study.scale.rows[LOOP].partition("-")[2], study.scale.depth
    grown = {
        GROWN_LOOP: (LOOP, (f"growth.plans={fewer},{loop}", LATE)),
        GRADUAL: ("lidas", ()),
        AT_ONCE: (
            STANDARD,
            ("growth.operator=gstack", f"growth.plans={depth // 4},{depth}", LATE),
        ),
    }
    return {
        STANDARD: (STANDARD, ()),
        LOOP: (LOOP, ()),
        **{
            name: (role, (*changes, f"steps={study.steps_for(role, *changes, like=STANDARD)}"))
            for name, (role, changes) in grown.items()
        },
    }


def runs(study) -> dict:
    """Directories by model, one per seed."""
    return {
        name: study.changed(role, SHORT[name], *overrides) if overrides else study.models(role)
        for name, (role, overrides) in settings(study).items()
    }


def outcome(study) -> experiment.Outcome:
    nll, reasoning, flops, rows = {}, {}, {}, []
    for name, directories in runs(study).items():
        results = [run_result(run) for run in directories]
        nll[name] = [summary.heldout_nll(study.scale, result) for result in results]
        reasoning[name] = [summary.mean_accuracy(study.evaluate(run)) for run in directories]
        flops[name] = results[0]["training_flops"]
        rows.append(
            (
                name,
                results[0]["plan"],
                f"{results[0]['parameters']:,}",
                results[0]["steps"],
                f"{flops[name]:.4g}",
                in_words(nll[name], 3),
                summary.percent(reasoning[name]),
            )
        )
    heads = (
        "model", "plan", "parameters", "steps", "training FLOPs", "NLL (nats per byte)", "reasoning",
    )  # fmt: skip
    gains = {
        (new, old): (_less(nll, new, old), _less(reasoning, old, new))
        for new, old in ((GROWN_LOOP, LOOP), (GRADUAL, STANDARD), (AT_ONCE, STANDARD))
    }
    finding = "; ".join(
        f"{new} against {old}: NLL lower by {in_words(lower, 3)}, reasoning {summary.points(more)} points"
        for (new, old), (lower, more) in gains.items()
    )
    finding += f" (paired by seed, {summary.seeds(len(nll[LOOP]))}). Scaled down."
    published = {
        GROWN_LOOP: "0.01 nats; -0.21 elsewhere",
        GRADUAL: "0.00 nats",
        AT_ONCE: "within 0.5%",
    }
    claims = [
        Claim(f"{new[:1].upper()}{new[1:]} has a lower loss than {old} at equal FLOPs", published[new],
              effect(lower), 0.01, points=False)
        for (new, old), (lower, _) in gains.items()
    ]  # fmt: skip
    data = {"tasks": study.scale.tasks, "nll": nll, "reasoning": reasoning}
    return experiment.Outcome(finding, claims, heads, rows, data)


def _less(values: dict, one: str, other: str) -> list[float]:
    """By how much `one` is below `other`, by seed."""
    return [b - a for a, b in zip(values[one], values[other], strict=True)]


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
    return {"loop_growth": fig}


if __name__ == "__main__":
    experiment.main(__file__)
