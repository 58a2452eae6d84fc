"""The whole study in miniature, and docs/results.md: an hour and a half on two CPU cores.

    python experiments/everything.py [--output=study] [--seeds=3] [--jobs=2] [--docs]

All models are trained first, several at a time; what each says is in its train.log. Then they are
measured. What is finished is not done again. --docs writes docs/results.md and copies pictures and
numbers to docs/results/.
"""

import argparse
import contextlib
import importlib
import json
import os
import pathlib
import platform
import shlex
import shutil
import subprocess
import sys
import time

import common
import scales

LOG = "train.log"  # in the directory of a run
NAMES = (
    "tradeoffs", "p_hop", "addition", "cooldown", "retrofit", "repeat", "residual", "effects",
    "similarity", "order", "depth_use", "finetune", "in_context", "igsm",
)  # fmt: skip
LEAD = """# Results in miniature

Every experiment of the papers, scaled down to two CPU cores: models of 8 executed layers and width 64,
2 million tokens (`configs/mini.py` says what stands for what). They can show which way an effect goes,
not how large it is; what does not show here may show at the papers' scale, and the other way round. A
verdict is computed from the numbers by the rule in each file of `experiments/` (of cycles, in
`cycles.py`); "cannot show" says that the tasks are solved already, or by no model, and leave no room.
Numbers are means over three models, `±` is their standard deviation (i-GSM is of one); a figure of
layers shows the first. Hops and steps were chosen by trial runs of the standard and the LIDAS model
(seed 0), so that eight hops are neither solved nor out of reach; where neither learned them in time
(2, 5 and 9 hops; 4, 6 and 8) LIDAS was not ahead.

Reproduce everything with `python experiments/everything.py --docs`, the protocol of the papers with
`--scale=paper` of each experiment.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, default=common.ROOT / "study")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME")
    parser.add_argument(
        "--seeds", type=common.positive, help="models of each kind, three by default"
    )
    parser.add_argument("--jobs", type=common.positive, default=2, help="models trained at a time")
    parser.add_argument("--docs", action="store_true", help="write docs/results.md")
    args = parser.parse_args()
    output = args.output.absolute() / "mini"
    os.chdir(common.ROOT)
    study = common.Study(output, scales.repeated("mini", args.seeds))
    with timed(output, "training"):
        train_all(study, args.only, args.jobs)
    for name in args.only:
        with timed(output, name):
            common.perform(importlib.import_module(name), study)
    if args.docs:
        write_docs(output, common.ROOT / "docs")


@contextlib.contextmanager
def timed(output: pathlib.Path, what: str):
    """Adds the minutes that something takes to minutes.json, whether it ends or is stopped."""
    begun, file = time.monotonic(), output / "minutes.json"
    try:
        yield
    finally:
        minutes = json.loads(file.read_text()) if file.exists() else {}
        minutes[what] = round(minutes.get(what, 0) + (time.monotonic() - begun) / 60, 2)
        output.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(minutes, indent=1) + "\n")
        print(f"{what}: {minutes[what]:.1f} minutes", flush=True)


def train_all(study: common.Study, names, jobs: int) -> None:
    """Trains the models of experiments, `jobs` at a time, each after those that it begins with."""
    declared = common.Study(study.output, study.scale, checking=True)
    for name in names:
        importlib.import_module(name).runs(declared)
    waiting = {
        workdir: command
        for workdir, command in declared.declared.items()
        if not study.is_done(workdir / "result.json", command)
    }
    running: dict[pathlib.Path, subprocess.Popen] = {}
    print(f"{len(declared.declared)} models, {len(waiting)} to train", flush=True)
    try:
        while waiting or running:
            for workdir, command in list(waiting.items()):
                if len(running) < jobs and not _sources(command, workdir) & {*waiting, *running}:
                    running[workdir] = _started(workdir, waiting.pop(workdir))
            time.sleep(0.2)
            for workdir, process in list(running.items()):
                if process.poll() is not None:
                    running.pop(workdir)
                    _ended(workdir, process.returncode)
                    study.is_now_done(workdir / "result.json", declared.declared[workdir])
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()


def _sources(command: list[str], workdir: pathlib.Path) -> set[pathlib.Path]:
    """The runs that a command names beside its own: what it begins with."""
    values = {pathlib.Path(part.partition("=")[2].partition("@")[0]) for part in command}
    return {path for path in values if path.parent == workdir.parent} - {workdir}


def _started(workdir: pathlib.Path, command: list[str]) -> subprocess.Popen:
    options = common.compilation_cache(workdir.parent.parent)
    env = os.environ | {option.upper(): str(value) for option, value in options.items()}
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / LOG).open("a") as log:
        print(f"loopjax {shlex.join(command)}", file=log, flush=True)
        command = [sys.executable, "-m", "loopjax", *command]
        return subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)


def _ended(workdir: pathlib.Path, code: int) -> None:
    if code:
        lines = (workdir / LOG).read_text().splitlines()
        raise SystemExit("\n".join([f"{workdir.name} failed:", *lines[-5:]]))
    result = common.result(workdir)
    print(f"{workdir.name}: {result['wall_clock_s'] / 60:.1f} minutes", flush=True)


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
    minutes = json.loads((output / "minutes.json").read_text())
    foot = (
        f"{len(runs)} runs on {runs[0]['device']} ({platform.machine()}, {os.cpu_count()} cores), "
        f"float32: {minutes['training']:.0f} minutes of training, {sum(minutes.values()):.0f} with all "
        "measurements. " + ", ".join(f"{name} {version}" for name, version in versions().items())
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
