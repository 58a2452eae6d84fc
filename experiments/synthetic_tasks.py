"""One synthetic task, models of several plans: shared by p_hop.py, addition.py and igsm.py."""

import statistics

import experiment
import summary
from study import run_result

from loopjax import run_record
from loopjax.files import read_rows
from loopjax.plots.runs import Row, plot_training


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
    name: str,
    runs: dict,
    sources,
    deep: str,
    loop: str,
    shallow: str,
    grown: str,
    shortcut: float = 0.0,
) -> experiment.Outcome:
    """Accuracies by source, and whether the loop and the grown model match the deep model.

    Args:
      name: name of the experiment.
      runs: {plan: directories, one per seed}.
      sources: data sources of the mixture, hardest last; the last one decides.
      deep: plan of the model to match.
      loop: plan as deep as `deep`, with the layers of `shallow`.
      shallow: plan whose accuracy is too low.
      grown: variant grown to the plan of `deep`.
      shortcut: accuracy on the last source of a model that does not solve the task.
    """
    results = {plan: [run_result(run) for run in same_plan] for plan, same_plan in runs.items()}
    accuracies = {
        plan: [[_accuracy(result["heldout"], source) for result in same_plan] for source in sources]
        for plan, same_plan in results.items()
    }
    first = summary.first_seeds(results)
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
    hardest = {plan: statistics.fmean(by_source[-1]) for plan, by_source in accuracies.items()}
    share = first[grown]["training_flops"] / first[deep]["training_flops"]
    n_seeds = len(runs[deep])
    finding = (
        f"On {sources[-1]} the plan {loop} reaches {hardest[loop]:.1%}, {deep} {hardest[deep]:.1%}, "
        f"{shallow} {hardest[shallow]:.1%}; the model grown to {grown.split(',')[0]} layers reaches "
        f"{hardest[grown]:.1%} with {share:.0%} of the training FLOPs of {deep}; {n_seeds} seed"
        f"{'s' * (n_seeds > 1)}."
    )
    verdict, reason = _verdict(hardest, deep, loop, shallow, grown, shortcut)
    figure = _figure(summary.first_seeds(runs), sources[-1])
    return experiment.Outcome(f"{finding} {reason}".strip(), verdict, heads, rows, {name: figure})


def _verdict(hardest: dict, deep, loop, shallow, grown, shortcut) -> tuple[str, str]:
    """(verdict, sentence why it is inconclusive)."""
    if shortcut and max(hardest.values()) < shortcut + 0.1:
        reason = f"No model has learned the task: {shortcut:.0%} is possible without solving it."
        return summary.INCONCLUSIVE, reason
    gap = hardest[deep] - hardest[shallow]
    if gap >= 0.05:
        return summary.verdict(hardest[p] > hardest[deep] - 0.2 * gap for p in (loop, grown)), ""
    if solved := summary.ceiling(hardest.values()):
        return summary.INCONCLUSIVE, solved
    return summary.NOT_REPRODUCED, ""


def _accuracy(heldout: dict, source: str) -> float:
    """Accuracy of whole answers if they have several tokens."""
    return heldout.get(f"{source}/exact", heldout[f"{source}/accuracy"])


def _figure(runs: dict, source: str):
    curves = {}
    for plan, run in runs.items():
        record = run_record.of_directory(run)
        record.rows = read_rows(run / "metrics.jsonl")
        curves[plan] = record.curve(f"eval/{source}/accuracy")
    return plot_training([Row(source, "held-out accuracy of a token", curves)])
