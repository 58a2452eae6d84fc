"""Shared by p_hop.py, addition.py and igsm.py: one synthetic task, models of several plans."""

import common


def models(study, config: str, plans) -> dict:
    """Directories by plan; "4,lidas" is grown."""
    stem = config.removeprefix("configs/").split(".")[0]
    return {
        plan: study.train(f"{stem}-{plan.replace(',', '-')}", f"{config}{plan}") for plan in plans
    }


def outcome(study, name: str, runs: dict, sources, deep: str, loop: str, shallow: str, grown: str):
    """Accuracies by source; whether the loop and the grown model reach the deep one.

    Args:
      sources: of the mixture, the hardest last; that one decides.
    """
    results = {plan: common.result(run) for plan, run in runs.items()}
    accuracies = {
        plan: [_accuracy(found["heldout"], source) for source in sources]
        for plan, found in results.items()
    }
    rows = [
        (
            plan, f"{results[plan]['unique_layers']}/{results[plan]['effective_layers']}",
            f"{results[plan]['parameters']:,}", f"{results[plan]['training_flops']:.3g}",
            *(f"{value:.1%}" for value in values),
        )
        for plan, values in accuracies.items()
    ]  # fmt: skip
    heads = ("plan", "unique/executed", "parameters", "training FLOPs", *sources)
    hard = {plan: values[-1] for plan, values in accuracies.items()}
    share = results[grown]["training_flops"] / results[deep]["training_flops"]
    found = (
        f"On {sources[-1]} the plan {loop} reaches {hard[loop]:.1%}, {deep} {hard[deep]:.1%}, "
        f"{shallow} {hard[shallow]:.1%}; the model grown to {grown.split(',')[0]} layers reaches "
        f"{hard[grown]:.1%} with {share:.0%} of the training FLOPs of {deep}. One seed."
    )
    gap = hard[deep] - hard[shallow]
    near = [hard[plan] > hard[deep] - 0.2 * gap for plan in (loop, grown)]
    verdict = "does not show" if gap < 0.05 else {2: "shows", 1: "shows in part"}.get(sum(near))
    return common.Outcome(
        found, verdict or "does not show", heads, rows, {name: _picture(runs, sources[-1])}
    )


def _accuracy(heldout: dict, source: str) -> float:
    """Of whole answers where they have several tokens."""
    return heldout.get(f"{source}/exact", heldout[f"{source}/accuracy"])


def _picture(runs: dict, source: str):
    from loopjax.log import read_rows
    from loopjax.plots.runs import Row, training

    key, curves = f"eval/{source}/accuracy", {}
    for plan, run in runs.items():
        points = [
            (r["step"], r["flops"], r[key]) for r in read_rows(run / "metrics.jsonl") if key in r
        ]
        final = common.result(run)
        last = final["heldout"][f"{source}/accuracy"]
        points.append((final["steps"], final["training_flops"], last))
        curves[plan] = tuple(zip(*points, strict=True))
    return training([Row(source, "held-out accuracy of a token", curves)])
