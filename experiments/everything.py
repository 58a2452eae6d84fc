"""The whole study in miniature, and docs/results.md: one to two hours on two CPU cores.

    python experiments/everything.py [--output=study] [--docs]

What is finished is not done again. --docs writes docs/results.md and copies pictures and numbers to
docs/results/.
"""

import argparse
import importlib
import json
import os
import pathlib
import platform
import shutil
import time

import common

NAMES = (
    "tradeoffs", "p_hop", "addition", "cooldown", "retrofit", "repeat", "residual", "effects",
    "similarity", "order", "depth_use", "finetune", "in_context", "igsm",
)  # fmt: skip
LEAD = """# Results in miniature

Every experiment of the papers, scaled down to two CPU cores: models of 8 executed layers and width 64,
2.5 million tokens (`configs/mini.py` says what stands for what). They can show which way an effect
goes, not how large it is; what does not show here may show at the papers' scale, and the other way
round. A verdict is computed from the numbers by the rule in each file of `experiments/`; "cannot show"
says that the tasks are solved already and leave no room. `±` is the standard deviation over seeds;
most diagnostics are of one model.

Reproduce everything with `python experiments/everything.py --docs`, the protocol of the papers with
`--scale=paper` of each experiment.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, default=common.ROOT / "study")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME")
    parser.add_argument("--docs", action="store_true", help="write docs/results.md")
    args = parser.parse_args()
    output = args.output.absolute() / "mini"
    os.chdir(common.ROOT)
    study = common.Study(output, common.MINI)
    for name in args.only:
        begun = time.monotonic()
        common.perform(importlib.import_module(name), study)
        print(f"{name}: {(time.monotonic() - begun) / 60:.1f} minutes", flush=True)
    if args.docs:
        write_docs(output, common.ROOT / "docs")


def write_docs(output: pathlib.Path, docs: pathlib.Path) -> None:
    """docs/results.md of the experiments that are done, with their pictures and numbers."""
    from loopjax.checkpoint import versions

    (docs / "results").mkdir(exist_ok=True)
    sections, verdicts = [], []
    for name in NAMES:
        file = output / f"{name}.json"
        if not file.exists():
            continue
        about = json.loads(file.read_text())
        for figure in about["figures"]:
            shutil.copy(output / f"{figure}.png", docs / "results" / f"{figure}.png")
        shutil.copy(file, docs / "results" / file.name)
        sections.append(common.markdown(name, about, "results/"))
        verdicts.append(f"| [{about['title']}](#{_anchor(about['title'])}) | {about['verdict']} |")
    table = "\n".join(["| experiment | the papers' finding |", "|---|---|", *verdicts])
    runs = [json.loads(f.read_text()) for f in sorted((output / "runs").glob("*/result.json"))]
    hours = sum(run["wall_clock_s"] for run in runs) / 3600
    foot = (
        f"{len(runs)} runs, {hours:.1f} hours of training on {runs[0]['device']} ({platform.machine()}, "
        f"{os.cpu_count()} cores, shared), float32. "
        + ", ".join(f"{name} {version}" for name, version in versions().items())
    )
    missing = [f"`{name}.py`" for name in NAMES if not (output / f"{name}.json").exists()]
    left_out = [f"Not run here: {', '.join(missing)}.", ""] if missing else []
    text = "\n".join([LEAD, table, "", *left_out, *sections, foot, ""])
    (docs / "results.md").write_text(text)


def _anchor(title: str) -> str:
    """As GitHub names the anchor of a heading."""
    kept = "".join(c for c in title.lower() if c.isalnum() or c in " -_")
    return kept.replace(" ", "-")


if __name__ == "__main__":
    main()
