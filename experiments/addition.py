"""n-ary addition without intermediate steps: looped, deep, shallow and grown models."""

import common
import looped

TITLE = "n-ary addition (Saunshi et al. 2025, Table 1)"
PAPER = (
    "Of 2 to 32 three-digit operands, answers with all digits right (n = 16): twelve layers 100%, one "
    "layer 0.1%, one layer looped twelve times 100%; three layers 78.5%, looped four times 99.1%."
)
PLANS = {"mini": ("1", "4", "1x4", "4,lidas"),
         "paper": ("paper,1", "paper,3", "paper,12", "paper,1x12", "paper,3x4",
                   "paper,12,lidas")}  # fmt: skip


def runs(study) -> dict:
    return looped.models(study, "configs/addition.py:", PLANS[study.name], study.scale.seeds)


def outcome(study) -> common.Outcome:
    mini = study.name == "mini"
    sources = [f"addition_{n}" for n in ((2, 3) if mini else (8, 16, 32))]
    roles = ("4", "1x4", "1", "4,lidas") if mini else (
        "paper,12", "paper,1x12", "paper,1", "paper,12,lidas")  # fmt: skip
    return looped.outcome(study, "addition", runs(study), sources, *roles)


if __name__ == "__main__":
    common.start(__file__)
