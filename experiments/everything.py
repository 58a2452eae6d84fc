"""The whole study, in miniature on two CPU cores or on one GPU, and docs/results.md.

    python experiments/everything.py [--output=study] [--seeds=4] [--jobs=2] [--docs]
    python experiments/everything.py --scale=gpu [--go]
    python experiments/everything.py --redraw

Trains all models first, several at a time, like a sweep, then measures them. Finished work is skipped;
what is left and how long it takes is printed. --scale=gpu and paper trace all runs, count their FLOPs and
print their commands; with --go they run. --docs copies figures and numbers to docs/results/ and writes
docs/results.md from all that is there, so experiments can be run apart. --redraw trains nothing: it
draws the figures in docs/results/ from the numbers there.
"""

import argparse
import contextlib
import importlib
import os
import pathlib
import sys
import time

import experiment
import page
import protocol
import scales
from study import ROOT, Study, compilation_cache

from loopjax import cost
from loopjax.cli.arguments import positive
from loopjax.errors import UserError
from loopjax.files import read_json, write_json
from loopjax.sweep import local, progress
from loopjax.sweep.branches import Reference
from loopjax.sweep.points import Point

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
    "equal_flops",
    "growth_moments",
    "damped",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output", type=pathlib.Path, default=ROOT / "study", help="directory of the study"
    )
    parser.add_argument("--scale", choices=scales.SCALES, default="mini", help="size of the study")
    parser.add_argument("--go", action="store_true", help="train and measure at gpu and paper, too")
    parser.add_argument(
        "--only", nargs="+", choices=NAMES, metavar="NAME", help="experiments to run"
    )
    parser.add_argument("--seeds", type=positive, help="number of models of each kind")
    parser.add_argument("--jobs", type=positive, default=2, help="number of parallel trainings")
    parser.add_argument("--docs", action="store_true", help="write docs/results.md")
    parser.add_argument(
        "--redraw", action="store_true", help="draw the stored numbers of docs/results again"
    )
    args = parser.parse_args()
    if args.redraw:
        redraw(ROOT / "docs" / "results", args.only or NAMES)
        return
    if args.docs and args.scale != "mini":
        parser.error(f"--docs writes a page about --scale=mini, not {args.scale}")
    scale = scales.repeated(args.scale, args.seeds)
    output = args.output.absolute() / scale.name
    names = [name for name in args.only or NAMES if name not in scale.omitted]
    for name in args.only or ():
        if name in scale.omitted:
            print(f"{name}: not run at --scale={scale.name}: {scale.omitted[name]}")
    os.chdir(ROOT)
    study = Study(output, scale)
    if scale.machine and not args.go:
        trace(study, names)
        return
    try:
        with timed(output, "training"):
            train_all(study, names, args.jobs)
    except UserError as error:
        raise SystemExit(f"everything.py: {error}") from None
    for name in names:
        with timed(output, name):
            experiment.perform(importlib.import_module(name), study)
    if args.docs:
        page.write(output, ROOT / "docs", NAMES)


def trace(study: Study, names) -> None:
    """Prints every run of experiments once, with its FLOPs and command, and their sum."""
    declared = Study(study.output, study.scale, checking=True)
    for name in names:
        importlib.import_module(name).runs(declared)
    rows = protocol.traced(declared)
    hours = sum(row["hours"] for row in rows)
    number, device = study.scale.machine
    print(
        f"{len(rows)} runs, {sum(row['pflops'] for row in rows):,.0f} PFLOPs: {hours:.1f} hours on {number} "
        f"{device} at {protocol.MFU:.0%} of its peak, with a run at a time"
    )


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
    left = _left(declared.declared, todo, configs, jobs)
    print(f"{len(declared.declared)} models, {len(todo)} to train{left}", flush=True)
    os.environ |= {k.upper(): str(v) for k, v in compilation_cache(study.output).items()}
    slots = [local.Slot(cores=cores) for cores in local.shares_of_cores(jobs)]
    finished = local.run(points, slots, progress.Screen())
    for point in points:
        if point.result() is not None:
            study.mark_done(point.workdir / "result.json", todo[point.workdir])
    if not finished:
        raise SystemExit(1)


def _left(declared, todo, configs: dict, jobs: int) -> str:
    """ ": 3.1e+14 FLOPs, 2.1 hours at the speed of those that are finished"; "" if nothing is left."""
    if not todo:
        return ""
    results = [read_json(run / "result.json") for run in declared if run not in todo]
    done = sum(result["training_flops"] for result in results if result)
    seconds = sum(result["wall_clock_s"] for result in results if result)
    flops = sum(cost.flops_of(configs[run])["training_flops"] for run in todo)
    if not seconds:
        return f": {flops:.2g} FLOPs"
    hours = flops / done * seconds / jobs / 3600
    return f": {flops:.2g} FLOPs, {hours:.1f} hours at the speed of those that are finished"


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


if __name__ == "__main__":
    main()
