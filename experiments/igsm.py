"""i-GSM, arithmetic modulo 7 along a graph: looped, deep, shallow and grown models."""

import common
import looped

TITLE = "i-GSM (Saunshi et al. 2025, Table 2)"
PAPER = (
    "Eight layers reach 73.2%, one layer 24.5%, one layer looped eight times 73.2%, two layers looped "
    "four times 73.6% (chance 14%)."
)
PLANS = {"mini": ("1", "4", "1x4", "4,lidas"),
         "paper": ("paper,1", "paper,2", "paper,8", "paper,1x8", "paper,2x4",
                   "paper,8,lidas")}  # fmt: skip


def runs(study) -> dict:
    """One of each plan: in miniature none of them learns the task."""
    return looped.models(study, "configs/igsm.py:", PLANS[study.name], study.scale.seeds[:1])


def outcome(study) -> common.Outcome:
    mini = study.name == "mini"
    sources = [f"igsm_{n}" for n in ((1, 2, 3) if mini else (5, 10, 15))]
    roles = ("4", "1x4", "1", "4,lidas") if mini else (
        "paper,8", "paper,1x8", "paper,1", "paper,8,lidas")  # fmt: skip
    # At three operations the most frequent number is right for 20%; 14% is chance.
    return looped.outcome(
        study, "igsm", runs(study), sources, *roles, shortcut=0.2 if mini else 1 / 7
    )


if __name__ == "__main__":
    common.start(__file__)
