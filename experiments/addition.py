"""n-ary addition without intermediate steps: looped, deep, shallow and grown models."""

import experiment
import synthetic_tasks

TITLE = "n-ary addition (Saunshi et al. 2025, Table 1)"
PAPER = (
    "All digits of the sum of n three-digit numbers right, n = 16 (trained on 2 to 32): twelve "
    "layers 100%, one layer 0.1%, one layer looped twelve times 100%; three layers 78.5%, looped "
    "four times 99.1%."
)
PLANS = {
    "mini": ("1", "4", "1x4", "4,lidas"),
    "paper": ("paper,1", "paper,3", "paper,12", "paper,1x12", "paper,3x4", "paper,12,lidas"),
}


def runs(study) -> dict:
    return synthetic_tasks.models(
        study, "configs/addition.py:", PLANS[study.name], study.scale.seeds
    )


def outcome(study) -> experiment.Outcome:
    if study.name == "mini":
        operands = (2, 3)
        roles = ("4", "1x4", "1", "4,lidas")
    else:
        operands = (8, 16, 32)
        roles = ("paper,12", "paper,1x12", "paper,1", "paper,12,lidas")
    sources = [f"addition_{n}" for n in operands]
    return synthetic_tasks.outcome(runs(study), sources, *roles)


def figures(data: dict) -> dict:
    return {
        "addition": synthetic_tasks.draw(data, "operands", "held-out sums with all digits right")
    }


if __name__ == "__main__":
    experiment.main(__file__)
