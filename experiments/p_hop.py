"""p-hop induction in the layout of Sanford et al. 2024: looped, deep, shallow and grown models."""

import experiment
import synthetic_tasks

TITLE = "p-hop induction: a loop does what depth does (Sanford et al. 2024, Saunshi et al. 2025)"
PAPER = (
    "Untied models of the published layout (98 letters, width 128): at p = 4, two layers reach 57.7%, "
    "three 85.0%, four 98.5%; at p = 8, four 78.4%, six 99.4%. Saunshi et al.: one layer looped six "
    "times reaches what six layers do (p = 16, 256 letters: 99.9% both, one layer 48.9%)."
)
PLANS = {
    "mini": ("1", "2", "4", "1x4", "2x2", "4,lidas"),
    "paper": (
        "sanford,2",
        "sanford,3",
        "sanford,4",
        "sanford,6",
        "sanford,1x4",
        "sanford,1x6",
        "sanford,2x3",
        "sanford,3x2",
        "sanford,6,lidas",
    ),
}


def runs(study) -> dict:
    return synthetic_tasks.models(study, "configs/hops.py:", PLANS[study.name], study.scale.seeds)


def outcome(study) -> experiment.Outcome:
    if study.name == "mini":
        hops = (1, 2, 3, 4)
        roles = ("4", "1x4", "1", "4,lidas")
    else:
        hops = (1, 2, 4, 8, 16)
        roles = ("sanford,6", "sanford,1x6", "sanford,2", "sanford,6,lidas")
    sources = [f"sanford_{p}" for p in hops]
    return synthetic_tasks.outcome(runs(study), sources, *roles)


def figures(data: dict) -> dict:
    return {"p_hop": synthetic_tasks.draw(data, "hops", "held-out accuracy")}


if __name__ == "__main__":
    experiment.main(__file__)
