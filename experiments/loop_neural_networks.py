"""Small looped models on text (Ng & Wang 2024): one layer, one layer looped, six, six looped, twelve."""

import experiment
import summary
import synthetic_tasks
from claims import NATS, Claim, effect
from study import run_result

from loopjax.depth import DepthPlan
from loopjax.plots import figure, spread
from loopjax.plots.roles import looks
from loopjax.plots.runs import draw_trade_off
from loopjax.run_record import spread as in_words

TITLE = "Loop neural networks: small looped models on text (Ng & Wang 2024)"
PAPER = (
    "Validation loss on OpenWebText, GPT-2 small with tied embeddings: one layer (45M parameters) 3.98, "
    "the same looped twice 3.67; six layers looped six times (81M) 3.11, twelve layers (124M) 3.12. The "
    "loop of the paper adds each pass to the state before it."
)
# {scale: {plan: the paper's validation loss, None if it reports none}}; a kind of loop is one more row.
# In miniature six layers are looped twice, which makes them as deep as the twelve.
PUBLISHED = {
    "mini": {"1": 3.98, "1x2": 3.67, "6": None, "6x2": 3.11, "12": 3.12},
    "paper": {"1": 3.98, "1x2": 3.67, "6": None, "6x6": 3.11, "12": 3.12},
}


def runs(study) -> dict:
    config = "configs/loop_neural_networks.py:" + "paper," * (study.name == "paper")
    return synthetic_tasks.models(study, config, PUBLISHED[study.name], study.scale.seeds)


def outcome(study) -> experiment.Outcome:
    results = {plan: [run_result(run) for run in same] for plan, same in runs(study).items()}
    nll = {plan: [one["heldout"]["nll"] for one in same] for plan, same in results.items()}
    rows = []
    for plan, same in results.items():
        first, published = same[0], PUBLISHED[study.name][plan]
        rows.append(
            (
                plan,
                f"{first['unique_layers']}/{first['effective_layers']}",
                f"{first['parameters']:,}",
                f"{first['training_flops']:.3g}",
                in_words(nll[plan], 3),
                f"{published:.2f}" if published else "not reported",
            )
        )
    heads = (
        "plan", "unique/executed", "parameters", "training FLOPs", "NLL (nats per byte)",
        "the paper's loss (nats per token)",
    )  # fmt: skip
    looped = next(plan for plan in nll if plan.startswith("6x"))
    mean = {plan: sum(values) / len(values) for plan, values in nll.items()}
    n_seeds = len(nll["1"])
    finding = (
        f"One layer has an NLL of {mean['1']:.3f}, looped twice {mean['1x2']:.3f}; six layers "
        f"{mean['6']:.3f}, looped ({looped}) {mean[looped]:.3f}, twelve layers {mean['12']:.3f}; {n_seeds} "
        f"seed{'s' * (n_seeds > 1)}."
        + " Scaled down: width 64, 0.5 million bytes, plain loops; the paper's 3.11 is of 6x6."
        * (study.name == "mini")
    )
    claims = [
        Claim("One layer looped twice has a lower loss than one layer", "0.31 nats",
              effect(summary.differences(nll["1"], nll["1x2"])), 0.01, unit=NATS),
        Claim("Six layers looped have a lower loss than six layers", "not reported",
              effect(summary.differences(nll["6"], nll[looped])), 0.01, unit=NATS),
        Claim("Six layers looped are not behind twelve layers", "+0.01 nats",
              effect(summary.differences(nll["12"], nll[looped])), -0.02, unit=NATS),
    ]  # fmt: skip
    data = {"nll": nll, "costs": {plan: _costs(same[0]) for plan, same in results.items()}}
    return experiment.Outcome(finding, claims, heads, rows, data)


def _costs(result: dict) -> dict:
    return {
        "unique layers": result["unique_layers"],
        "executed layers": DepthPlan.parse(result["plan"]).n_effective,
    }


def figures(data: dict) -> dict:
    """NLL against unique and against executed layers."""
    fig, axes = figure.grid(2, 2, 3.4, 2.8, 0.3)
    labels = {plan: synthetic_tasks.label_of(plan) for plan in data["nll"]}
    nll = {labels[plan]: values for plan, values in data["nll"].items()}
    deepest = max(by_name["executed layers"] for by_name in data["costs"].values())
    chosen = looks(
        {labels[plan]: synthetic_tasks.kind_of_variant(plan, deepest) for plan in data["nll"]}
    )
    lines = {}
    for axis, name in zip(axes, ("unique layers", "executed layers"), strict=True):
        costs = {labels[plan]: by_name[name] for plan, by_name in data["costs"].items()}
        lines |= draw_trade_off(axis, nll, costs, "NLL (nats per byte)", chosen)
        axis.set_xscale("log")
        figure.ticks(axis, sorted({*map(int, costs.values())}))
        figure.labels(axis, name, "NLL (nats per byte)" if axis is axes[0] else "")
    figure.legend(fig, lines, spread.note([len(values) for values in nll.values()]))
    return {"loop_neural_networks": fig}


if __name__ == "__main__":
    experiment.main(__file__)
