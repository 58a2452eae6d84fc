"""Shared by p_hop.py, addition.py and igsm.py: one synthetic task, models of several plans."""

import statistics

import common


def models(study, config: str, plans, seeds) -> dict:
    """Directories by plan, one for each seed; "4,lidas" is grown."""
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
    study, name: str, runs: dict, sources, deep: str, loop: str, shallow: str, grown: str,
    shortcut: float = 0.0,
):  # fmt: skip
    """Accuracies by source; whether the loop and the grown model reach the deep one.

    Args:
      sources: of the mixture, the hardest last; that one decides.
      shortcut: the accuracy that can be had on that one without solving it.
    """
    results = {plan: [common.result(run) for run in same] for plan, same in runs.items()}
    accuracies = {
        plan: [[_accuracy(found["heldout"], source) for found in same] for source in sources]
        for plan, same in results.items()
    }
    first = common.first_of(results)
    rows = [
        (
            plan, f"{first[plan]['unique_layers']}/{first[plan]['effective_layers']}",
            f"{first[plan]['parameters']:,}", f"{first[plan]['training_flops']:.3g}",
            *(common.spread(of_source, 1, percent=True) for of_source in values),
        )
        for plan, values in accuracies.items()
    ]  # fmt: skip
    heads = ("plan", "unique/executed", "parameters", "training FLOPs", *sources)
    hard = {plan: statistics.fmean(values[-1]) for plan, values in accuracies.items()}
    share = first[grown]["training_flops"] / first[deep]["training_flops"]
    found = (
        f"On {sources[-1]} the plan {loop} reaches {hard[loop]:.1%}, {deep} {hard[deep]:.1%}, "
        f"{shallow} {hard[shallow]:.1%}; the model grown to {grown.split(',')[0]} layers reaches "
        f"{hard[grown]:.1%} with {share:.0%} of the training FLOPs of {deep}; {len(runs[deep])} seed"
        f"{'s' * (len(runs[deep]) > 1)}."
    )
    gap = hard[deep] - hard[shallow]
    near = [hard[plan] > hard[deep] - 0.2 * gap for plan in (loop, grown)]
    verdict = "does not show"
    if gap >= 0.05:
        verdict = {2: "shows", 1: "shows in part", 0: verdict}[sum(near)]
    elif solved := common.ceiling(hard.values()):
        verdict, found = "cannot show", f"{found} {solved}"
    if shortcut and max(hard.values()) < shortcut + 0.1:
        verdict = "cannot show"
        found = (
            f"{found} No model has learned the task: {shortcut:.0%} can be had without solving it."
        )
    picture = _picture(common.first_of(runs), sources[-1])
    return common.Outcome(found, verdict, heads, rows, {name: picture})


def _accuracy(heldout: dict, source: str) -> float:
    """Of whole answers where they have several tokens."""
    return heldout.get(f"{source}/exact", heldout[f"{source}/accuracy"])


def _picture(runs: dict, source: str):
    from loopjax.files import read_rows
    from loopjax.plots.runs import Row, plot_training

    key, curves = f"eval/{source}/accuracy", {}
    for plan, run in runs.items():
        points = [
            (r["step"], r["flops"], r[key]) for r in read_rows(run / "metrics.jsonl") if key in r
        ]
        final = common.result(run)
        last = final["heldout"][f"{source}/accuracy"]
        points.append((final["steps"], final["training_flops"], last))
        curves[plan] = tuple(zip(*points, strict=True))
    return plot_training([Row(source, "held-out accuracy of a token", curves)])
