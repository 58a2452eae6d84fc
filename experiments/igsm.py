"""i-GSM, arithmetic modulo 7 along a graph: looped, deep, shallow and grown models."""

import experiment
import synthetic_tasks

TITLE = "i-GSM (Saunshi et al. 2025, Table 2)"
PAPER = (
    "Eight layers reach 73.2%, one layer 24.5%, one layer looped eight times 73.2%, two layers looped "
    "four times 73.6% (chance 14%)."
)
PLANS = {
    "mini": ("1", "4", "1x4", "4,lidas"),
    "paper": ("paper,1", "paper,2", "paper,8", "paper,1x8", "paper,2x4", "paper,8,lidas"),
}


def runs(study) -> dict:
    """One run of each plan: at the mini scale no plan learns the task."""
    return synthetic_tasks.models(
        study, "configs/igsm.py:", PLANS[study.name], study.scale.seeds[:1]
    )


def outcome(study) -> experiment.Outcome:
    if study.name == "mini":
        operations = (1, 2, 3)
        roles = ("4", "1x4", "1", "4,lidas")
    else:
        operations = (5, 10, 15)
        roles = ("paper,8", "paper,1x8", "paper,1", "paper,8,lidas")
    sources = [f"igsm_{n}" for n in operations]
    return synthetic_tasks.outcome(runs(study), sources, *roles)


def figures(data: dict) -> dict:
    return {"igsm": synthetic_tasks.draw(data, "operations", "held-out accuracy")}


if __name__ == "__main__":
    experiment.main(__file__)
