"""The command lines of `loopjax sweep` and `loopjax results`."""

import pathlib
import re
import shlex

from loopjax.cli import arguments
from loopjax.errors import UserError
from loopjax.sweep import local, points, table, tradeoffs
from loopjax.sweep.progress import Screen

LAUNCHERS = ("local", "slurm", "commands")


def sweep(argv: list[str]) -> int:
    """Train every point that `sweep(add)` of a config file asks for.

    Those that are finished are skipped, those that were stopped go on; the same command does both,
    as often as it is started. --config.key=value is for all points. Launchers:

    local     on this machine, --jobs at a time
    slurm     an array of jobs, by submitit
    commands  prints the command of each point that is left, for any other scheduler

    Exit code 0 when all points are finished, 1 when not, 2 for a mistake, before anything starts.
    """
    parser = arguments.parser("sweep", sweep.__doc__)
    parser.allow_abbrev = False  # what begins with --config. is for the config
    add = parser.add_argument
    add("--config", required=True, metavar="FILE", help="of configs/, with sweep(add)")
    add("--workdir", required=True, metavar="DIR", help="each run gets a directory in it")
    add("--launcher", choices=LAUNCHERS, default="local", help="what starts them (default local)")
    add("--jobs", type=arguments.positive, metavar="N", help="local: at a time (default 1)")
    add(
        "--gpus",
        metavar="0,1,...",
        help="local: shared out among the jobs, as CUDA_VISIBLE_DEVICES",
    )
    add(
        "--slurm", nargs="+", metavar="KEY=VALUE",
        help="slurm: timeout_min=60 nodes=1 gpus_per_node=8 partition=... array_parallelism=...",
    )  # fmt: skip
    args, overrides = parser.parse_known_args(argv)
    _check(args, overrides)
    slots = _slots(args.jobs or 1, args.gpus)
    found = points.points(args.config, overrides, args.workdir)
    if args.launcher == "commands":
        points.write(args.workdir, args.config, found)
        for point in found:
            if point.result() is None and local.trainer_of(point) is None:
                print(shlex.join(point.command))
        return 0
    if args.launcher == "slurm":
        from loopjax.sweep import slurm

        made = slurm.executor(pathlib.Path(args.workdir), args.slurm or [])
        points.write(args.workdir, args.config, found)
        return 0 if slurm.run(found, made, Screen()) else 1
    points.write(args.workdir, args.config, found)
    return 0 if local.run(found, slots, Screen()) else 1


def _check(args, overrides: list[str]) -> None:
    for text in overrides:
        if not re.match(r"--config\.[\w.]+=|--(no)?config\.[\w.]+$", text):
            raise UserError(f"{text!r} is not a flag; fields are written --config.key=value")
    for flag, launcher in (("jobs", "local"), ("gpus", "local"), ("slurm", "slurm")):
        if getattr(args, flag) is not None and args.launcher != launcher:
            raise UserError(f"--{flag} goes with --launcher={launcher}")


def _slots(jobs: int, gpus: str | None) -> list[str]:
    """The CUDA_VISIBLE_DEVICES of each run at a time; empty where the sweep does not say."""
    if gpus is None:
        return [""] * jobs
    ids = [text for text in gpus.split(",") if text]
    if not ids or len(ids) % jobs or len(set(ids)) < len(ids):
        raise UserError(f"--gpus={gpus} must be different devices, as many for each of {jobs} jobs")
    share = len(ids) // jobs
    return [",".join(ids[i * share : (i + 1) * share]) for i in range(jobs)]


def results(argv: list[str]) -> int:
    """Collect the runs below a directory in one table, as CSV and Markdown, and draw trade-offs.

    A row has the fields of the config in which the runs differ, plan, parameters, FLOPs, wall-clock,
    held-out metrics, and the scores of `loopjax eval` files found there. Runs that differ in --over
    alone have a second table, of means and standard deviations.
    """
    parser = arguments.parser("results", results.__doc__)
    add = parser.add_argument
    add("directory", metavar="DIR", help="of a sweep, or any other with runs below it")
    add("--output", metavar="PREFIX", help="writes PREFIX.csv, .md, .png (default DIR/results)")
    add(
        "--metric", action="append", metavar="NAME",
        help="drawn against parameters and FLOPs; may be given again (default nll)",
    )  # fmt: skip
    add("--over", default="seed", metavar="FIELD,...", help="what means are over (default seed)")
    args = parser.parse_args(argv)
    over = args.over.split(",")
    directory = pathlib.Path(args.directory)
    output = args.output or directory / "results"
    found = table.rows(table.runs_below(directory))
    finished = [row for row in found if row["finished"]]
    metrics = tradeoffs.chosen(finished, args.metric)
    text = table.report(found, table.not_started(directory), over)
    table.write(output, found, text)
    print(text, end="")
    if metrics:
        tradeoffs.draw(f"{output}.png", finished, metrics, over)
    return 0
