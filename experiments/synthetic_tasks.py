"""One synthetic task, models of several plans: shared by p_hop.py, addition.py and igsm.py."""

import statistics

import experiment
import summary
from claims import Claim, effect
from study import run_result

from loopjax.data.floors import floors
from loopjax.depth import DepthPlan
from loopjax.files import read_json
from loopjax.plots import figure, spread
from loopjax.plots.roles import kind_of, looks


def models(study, config: str, plans, seeds) -> dict:
    """Directories by plan, one per seed; "4,lidas" is grown."""
    stem = config.removeprefix("configs/").split(".")[0]
    return {
        plan: [
            study.train(
                f"{stem}-{plan.replace(',', '-')}-s{seed}", f"{config}{plan}", f"seed={seed}"
            )
            for seed in seeds
        ]
        for plan in plans
    }


def outcome(
    runs: dict,
    sources,
    deep: str,
    loop: str,
    shallow: str,
    grown: str,
) -> experiment.Outcome:
    """Accuracies by source, and whether the loop and the grown model match the deep model.

    Args:
      runs: {plan: directories, one per seed}.
      sources: data sources of the mixture, hardest last; the last one decides.
      deep: plan of the model to match.
      loop: plan as deep as `deep`, with the layers of `shallow`.
      shallow: plan whose accuracy is too low.
      grown: variant grown to the plan of `deep`.
    """
    results = {plan: [run_result(run) for run in same_plan] for plan, same_plan in runs.items()}
    accuracies = {
        plan: [[_accuracy(result["heldout"], source) for result in same_plan] for source in sources]
        for plan, same_plan in results.items()
    }
    first = {plan: of_plan[0] for plan, of_plan in results.items()}
    rows = [
        (
            plan,
            f"{first[plan]['unique_layers']}/{first[plan]['effective_layers']}",
            f"{first[plan]['parameters']:,}",
            f"{first[plan]['training_flops']:.3g}",
            *map(summary.percent, by_source),
        )
        for plan, by_source in accuracies.items()
    ]
    heads = ("plan", "unique/executed", "parameters", "training FLOPs", *sources)
    hardest = {plan: by_source[-1] for plan, by_source in accuracies.items()}
    means = {plan: statistics.fmean(values) for plan, values in hardest.items()}
    share = first[grown]["training_flops"] / first[deep]["training_flops"]
    finding = (
        f"On {sources[-1]} the plan {loop} reaches {means[loop]:.1%}, {deep} {means[deep]:.1%}, "
        f"{shallow} {means[shallow]:.1%}; the model grown to {grown.split(',')[0]} layers reaches "
        f"{means[grown]:.1%} with {share:.0%} of the training FLOPs of {deep}; "
        f"{summary.seeds(len(runs[deep]))}."
    )
    seq_len = read_json(runs[deep][0] / "config.json")["seq_len"]
    known = floors_of(sources, seq_len)
    floor = known[sources[-1]]["accuracy"]
    claims = _claims(hardest, sources[-1], deep, loop, shallow, grown, floor)
    data = {"floors": known, "accuracies": accuracies}
    return experiment.Outcome(finding, claims, heads, rows, data)


def _claims(hardest: dict, task: str, deep, loop, shallow, grown, floor: float) -> list[Claim]:
    """Of {plan: accuracies by seed} on one task, whose best trivial rule gets `floor`."""
    means = {plan: statistics.fmean(values) for plan, values in hardest.items()}
    blocked = ""
    if min(means.values()) > summary.SOLVED:
        blocked = f"All plans solve {task}, so no difference can show."
    if max(means.values()) < floor + 0.1:
        blocked = f"No model has learned the task: {floor:.0%} is possible without solving it."
    gap = means[deep] - means[shallow]
    margin = max(0.2 * gap, 0.01)
    needs = effect(summary.differences(hardest[deep], hardest[shallow]))
    unneeded = blocked or ("" if gap >= 0.05 else f"{task} does not need the depth of {deep}.")
    more = [
        Claim(f"{label_of(plan)}: not behind {label_of(deep)}, by at most a fifth of what depth adds",
              "not behind", effect(summary.differences(hardest[plan], hardest[deep])), -margin, blocked=unneeded)
        for plan in (loop, grown)
    ]  # fmt: skip
    text = f"{label_of(deep)}: more than {label_of(shallow)}"
    return [Claim(text, "more", needs, 0.05, blocked=blocked), *more]


def _accuracy(heldout: dict, source: str) -> float:
    """Accuracy of whole answers if they have several tokens."""
    return heldout.get(f"{source}/exact", heldout[f"{source}/accuracy"])


def floors_of(sources, seq_len: int) -> dict:
    """{source: {"chance": accuracy, "rule": the best trivial rule, "accuracy": its accuracy}}."""
    known = {source: floors(source, seq_len) for source in sources}
    return {
        source: {"chance": one.chance, "rule": one.best[0], "accuracy": one.best[1]}
        for source, one in known.items()
    }


def draw(data: dict, xlabel: str, ylabel: str):
    """Accuracy of each plan against the difficulty; below the gray bars are trivial rules.

    Args:
      data: "floors", as `floors_of` has them, and "accuracies", {plan: [values of each source]}.
      xlabel: what the number in the name of a source counts.
    """
    sources = list(data["floors"])
    fig = figure.new(5.6, 3.6)
    axis, seeds = fig.subplots(), []
    labels = {plan: label_of(plan) for plan in data["accuracies"]}
    deepest = max(DepthPlan.parse(plan_of(variant)).n_effective for variant in labels)
    kinds = {labels[plan]: kind_of_variant(plan, deepest) for plan in labels}
    chosen, shifts, lines = looks(kinds), figure.shifts(kinds), {}
    for plan, by_source in data["accuracies"].items():
        spreads = list(map(spread.of, by_source))
        seeds += [one.n for one in spreads]
        label = labels[plan]
        lines[label] = figure.curve(
            axis, range(len(sources)), [one.mean for one in spreads], label, chosen[label],
            ends=spread.ends(spreads), shift=shifts[label],
        )  # fmt: skip
    figure.plain(axis)
    known = list(data["floors"].values())
    figure.shares(axis, min(one["chance"] for one in known), max(one["accuracy"] for one in known))
    lines |= _floor_bars(axis, known)
    figure.ticks(axis, range(len(sources)), [source.rpartition("_")[2] for source in sources])
    axis.set_xlim(-0.5, len(sources) - 0.5)
    figure.labels(axis, xlabel, ylabel)
    figure.legend(fig, lines, spread.note(seeds))
    return fig


def _floor_bars(axis, known: list[dict]) -> dict:
    """A gray bar up to the best trivial rule of each source, chance as dotted lines."""
    if max(one["accuracy"] for one in known) < 0.01:
        return {}
    low = axis.get_ylim()[0]
    heights = [one["accuracy"] - low for one in known]
    style = {"color": "#e8eaed", "edgecolor": figure.FAINT, "linewidth": 0.8, "zorder": 0}
    bars = axis.bar(range(len(known)), heights, 0.9, low, **style)
    chance = known[0]["chance"]
    dots = axis.axhline(chance, color=figure.INK, linestyle=":", linewidth=1.2, zorder=1)
    rules = {one["rule"]: None for one in known}
    rule = next(iter(rules)) if len(rules) == 1 else "the best trivial rule"
    return {rule: bars, f"chance: {chance:.0%}": dots}


def plan_of(variant: str) -> str:
    """The plan of a variant of a config: "1x4" of "paper,1x4", "4" of "4,lidas"."""
    return next(part for part in variant.split(",") if part[0].isdigit())


def kind_of_variant(variant: str, deepest: int):
    grown = variant.rpartition(",")[2]
    config = {"growth": {"operator": grown if grown in ("lidas", "midas") else ""}}
    return kind_of(plan_of(variant), (), config, depth=deepest)


def label_of(variant: str) -> str:
    plan = DepthPlan.parse(plan_of(variant))
    grown = variant.rpartition(",")[2]
    number = f"{plan.n_unique} layer{'s' * (plan.n_unique > 1)}"
    if plan.is_looped:
        times = plan.segments[0].repeats
        return f"{number}, looped {'twice' if times == 2 else f'{times} times'}"
    return f"{number}, grown by {grown.upper()}" if grown.isalpha() else number
