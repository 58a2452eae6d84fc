"""The whole study in miniature, and docs/results.md: an hour and a half on two CPU cores.

    python experiments/everything.py [--output=study] [--seeds=3] [--jobs=2] [--docs]
    python experiments/everything.py --redraw

Trains all models first, several at a time, like a sweep, then measures them.
Finished work is skipped. --docs writes docs/results.md and copies figures and numbers to
docs/results/. --redraw trains nothing: it draws the figures in docs/results/ from the numbers there.
"""

import argparse
import collections
import contextlib
import importlib
import os
import pathlib
import platform
import shutil
import sys
import time

import experiment
import protocol
import scales
from claims import VERDICTS
from study import ROOT, Study, compilation_cache

from loopjax.checkpoint import versions
from loopjax.cli.arguments import positive
from loopjax.errors import UserError
from loopjax.files import read_json, write_json, write_text
from loopjax.sweep import local, progress
from loopjax.sweep.branches import Reference
from loopjax.sweep.points import Point
from loopjax.text_table import markdown as table

NAMES = (
    "tradeoffs",
    "p_hop",
    "addition",
    "cooldown",
    "retrofit",
    "repeat",
    "residual",
    "effects",
    "similarity",
    "order",
    "depth_use",
    "finetune",
    "in_context",
    "igsm",
    "two_phase",
    "loop_neural_networks",
    "random_depth",
    "loop_growth",
    "growth_moments",
    "damped",
)
LEAD = """# Results in miniature

Every experiment of the papers, scaled down to two CPU cores: models of 8 executed layers and width 64,
2 million tokens (`configs/mini.py` lists the counterpart of each setting). At this size an experiment
can show the direction of an effect, not its size; a finding that is not reproduced here may be
reproduced at the papers' scale, and vice versa.

Each file in `experiments/` computes its verdict from the numbers (for cycles, `cycles.py`):
**reproduced** (all claims hold), **partly** (some hold), **not reproduced** (none holds), or
**inconclusive** (all models solve the tasks, or none does, so no difference can show). Numbers are
means over three models, `±` is their standard deviation (i-GSM: one model), in the figures too. The
numbers of hops and steps were chosen in trial runs of the standard and the LIDAS model
(seed 0), so that the eight-hop task is neither solved nor out of reach. In the trials where neither
model learned the task in time (2, 5 and 9 hops; 4, 6 and 8) LIDAS was not ahead.

Gray areas in the figures are what the best trivial rule gets (`loopjax/data/floors.py`). A letter often
leads back to itself, so repeating the last letter solves 33, 52, 38 and 47% of the items with three,
four, five and eight hops, a mean of 49% on the two reasoning tasks (four and eight hops). The dotted line
is chance, 25%.

`python experiments/everything.py --docs` reproduces this page; `--scale=paper` of each experiment runs
the papers' protocol.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output", type=pathlib.Path, default=ROOT / "study", help="directory of the study"
    )
    parser.add_argument(
        "--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help="experiments to run"
    )
    parser.add_argument("--seeds", type=positive, help="number of models of each kind (default 3)")
    parser.add_argument("--jobs", type=positive, default=2, help="number of parallel trainings")
    parser.add_argument("--docs", action="store_true", help="write docs/results.md")
    parser.add_argument(
        "--redraw", action="store_true", help="draw the stored numbers of docs/results again"
    )
    args = parser.parse_args()
    if args.redraw:
        redraw(ROOT / "docs" / "results", args.only)
        return
    output = args.output.absolute() / "mini"
    os.chdir(ROOT)
    study = Study(output, scales.repeated("mini", args.seeds))
    try:
        with timed(output, "training"):
            train_all(study, args.only, args.jobs)
    except UserError as error:
        raise SystemExit(f"everything.py: {error}") from None
    for name in args.only:
        with timed(output, name):
            experiment.perform(importlib.import_module(name), study)
    if args.docs:
        write_docs(output, ROOT / "docs")


@contextlib.contextmanager
def timed(output: pathlib.Path, what: str):
    """Adds the duration of a part of the study to minutes.json, also if it is interrupted."""
    file = output / "minutes.json"
    begun = time.monotonic()
    try:
        yield
    finally:
        minutes = read_json(file) or {}
        minutes[what] = round(minutes.get(what, 0) + (time.monotonic() - begun) / 60, 2)
        output.mkdir(parents=True, exist_ok=True)
        write_json(file, minutes)
        print(f"{what}: {minutes[what]:.1f} minutes", flush=True)


def train_all(study: Study, names, jobs: int) -> None:
    """Trains the models of experiments as a sweep, `jobs` at a time; exits if one fails."""
    declared = Study(study.output, study.scale, checking=True)
    for name in names:
        importlib.import_module(name).runs(declared)
    todo = {
        workdir: command
        for workdir, command in declared.declared.items()
        if not study.is_done(workdir / "result.json", command)
        and not (workdir / "result.json").exists()  # of an interrupted study: checked by `cached`
    }
    configs: dict = {}
    for workdir, command in declared.declared.items():
        configs[workdir] = protocol.config_of(command, configs)
    points = [_point(workdir, command, configs[workdir], todo) for workdir, command in todo.items()]
    print(f"{len(declared.declared)} models, {len(todo)} to train", flush=True)
    os.environ |= {k.upper(): str(v) for k, v in compilation_cache(study.output).items()}
    slots = [local.Slot(cores=cores) for cores in local.shares_of_cores(jobs)]
    finished = local.run(points, slots, progress.Screen())
    for point in points:
        if point.result() is not None:
            study.mark_done(point.workdir / "result.json", todo[point.workdir])
    if not finished:
        raise SystemExit(1)


def _point(workdir: pathlib.Path, command: list[str], config, todo) -> Point:
    """A run of a study as a point of a sweep, which waits for the run that it starts from."""
    values = (part.partition("=")[2].partition("@") for part in command)
    bases = [
        Reference(path.name, int(step) if step else None)
        for path, step in ((pathlib.Path(text), step) for text, _, step in values)
        if path in todo and path != workdir
    ]
    whole = [sys.executable, "-m", "loopjax", *command]
    return Point(workdir.name, {}, workdir, whole, config, bases[0] if bases else None)


def redraw(folder: pathlib.Path, names=NAMES) -> list[str]:
    """Draws the figures of stored experiments from their numbers; returns the names of the figures."""
    drawn = []
    for name in names:
        record = read_json(folder / f"{name}.json") or {}
        if "data" in record:
            drawn += experiment.draw(importlib.import_module(name), record["data"], folder)
    print(*drawn, sep="\n")
    return drawn


def write_docs(output: pathlib.Path, docs: pathlib.Path) -> None:
    """Writes docs/results.md of the finished experiments, with their figures and numbers."""
    (docs / "results").mkdir(exist_ok=True)
    sections, decided = [], []
    for name in NAMES:
        file = output / f"{name}.json"
        if not file.exists():
            continue
        record = read_json(file)
        for figure in record["figures"]:
            shutil.copy(output / f"{figure}.png", docs / "results" / f"{figure}.png")
        shutil.copy(file, docs / "results" / file.name)
        sections.append(experiment.markdown(name, record, "results/"))
        link = f"(#{_anchor(record['title'])})"
        decided += [
            (f"[{one['claim']}]{link}", one["paper"], one["here"], one["seeds"], one["verdict"])
            for one in record["claims"]
        ]
    heads = ["claim", "papers", "here, with its 95% interval", "seeds", "verdict"]
    counts = collections.Counter(verdict for *_, verdict in decided)
    tally = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict])
    overview = f"{len(decided)} claims: {tally}.\n\n{table(heads, decided)}"
    runs = [read_json(f) for f in sorted((output / "runs").glob("*/result.json"))]
    minutes = read_json(output / "minutes.json")
    foot = (
        f"{len(runs)} runs on {runs[0]['device']} ({platform.machine()}, {os.cpu_count()} cores), "
        f"float32: {minutes['training']:.0f} minutes of training, {sum(minutes.values()):.0f} with all "
        "measurements. " + ", ".join(f"{name} {version}" for name, version in versions().items())
    )
    missing = [f"`{name}.py`" for name in NAMES if not (output / f"{name}.json").exists()]
    left_out = [f"Not run here: {', '.join(missing)}.", ""] if missing else []
    text = "\n".join([LEAD, overview, "", *left_out, *sections, foot, ""])
    write_text(docs / "results.md", text)


def _anchor(title: str) -> str:
    """The anchor that GitHub gives a heading."""
    kept = "".join(c for c in title.lower() if c.isalnum() or c in " -_")
    return kept.replace(" ", "-")


if __name__ == "__main__":
    main()
