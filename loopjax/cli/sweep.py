"""Command line of `loopjax sweep`."""

import pathlib
import re
import shlex

from loopjax.cli import arguments
from loopjax.errors import UserError

LAUNCHERS = ("local", "slurm", "commands")


def sweep(argv: list[str]) -> int:
    """Train every point that the function sweep(add) of a config file defines.

    Rerun the same command to continue: finished points are skipped, stopped points are resumed.
    --config.KEY=VALUE applies to all points. Launchers:

    local     on this machine, --jobs at a time
    slurm     as an array of Slurm jobs, through submitit
    commands  not at all: the command of each unfinished point is printed, for another scheduler; a
              point that branches from another comes after it

    A point that fails does not stop the others, and is not trained again before the next command.
    --status shows the state of every point of a directory, also while a sweep runs elsewhere.

    The exit code is 0 when all points are finished or halved, 1 when some are not, and 2 for a
    mistake, before anything starts.

    Examples:
      loopjax sweep --config=configs/study.py --workdir=runs/study --jobs=2
      loopjax sweep --config=configs/study.py --workdir=runs/study --retry failed
      loopjax sweep --status runs/study
    """
    args, overrides = _sweep_parser().parse_known_args(argv)
    _check(args, overrides)
    if args.status is not None:
        return _status(args)
    arguments.use_cpu()  # the accelerators of this machine are for the runs
    from loopjax.sweep import branches, halving, local, points, retry
    from loopjax.sweep.progress import Screen

    slots = _slots(args.jobs or 1, args.gpus)
    workdir = pathlib.Path(args.workdir)
    found = points.points(args.config, overrides, workdir)
    chosen = found if args.retry is None else retry.chosen(found, args.retry)
    if args.launcher == "commands":
        points.write(workdir, args.config, found)
        for point in branches.in_order(chosen):
            if point.result() is None and local.trainer_of(point) is None:
                print(shlex.join(point.command))
        return 0
    if args.launcher == "slurm":
        from loopjax.sweep import slurm

        executor = slurm.executor(workdir, args.slurm or [])
        points.write(workdir, args.config, found)
        return 0 if slurm.run(chosen, executor, Screen()) else 1
    rungs = None
    if args.halving is not None:
        settings = halving.parse(args.halving)
        halving.check(settings, found)
        rungs = halving.Halving(settings)
    points.write(workdir, args.config, found)
    return 0 if local.run(chosen, slots, Screen(), rungs) else 1


def _status(args) -> int:
    from loopjax.sweep import status

    found = status.of_sweep(args.status)
    print(status.as_json(found) if args.json else status.as_text(found))
    return 0


def _sweep_parser():
    parser = arguments.parser("sweep", sweep.__doc__, buckets=False)
    parser.allow_abbrev = False  # flags that start with --config. are for the config
    add = parser.add_argument
    add("--config", metavar="FILE", help="config file with a function sweep(add)")
    add("--workdir", metavar="DIR", help="parent of the directories of the runs")
    add(
        "--launcher",
        choices=LAUNCHERS,
        default="local",
        help="launcher of the runs (default local)",
    )
    add(
        "--jobs",
        type=arguments.positive,
        metavar="N",
        help="runs at a time, which share the CPU cores evenly, with --launcher=local (default 1)",
    )
    add(
        "--gpus",
        metavar="0,1,...",
        help="GPUs to divide among concurrent runs (CUDA_VISIBLE_DEVICES), with --launcher=local",
    )
    add(
        "--slurm",
        nargs="+",
        metavar="KEY=VALUE",
        help="Slurm parameters, with --launcher=slurm: timeout_min=60 nodes=1 gpus_per_node=8 "
        "partition=... array_parallelism=...",
    )
    add(
        "--retry",
        nargs="+",
        metavar="failed|NAME",
        help="train only the points that failed, or those of these names",
    )
    add(
        "--halving",
        nargs="+",
        metavar="KEY=VALUE",
        help="stop the worse points early (asynchronous successive halving), with --launcher=local: "
        "steps=100,300 keep=0.5 metric=eval/nll|loss",
    )
    add(
        "--status",
        metavar="DIR",
        help="state of every point of the sweep in a directory, without any other flag but --json",
    )
    add("--json", action="store_true", help="with --status, JSON instead of a table")
    return parser


def _check(args, overrides: list[str]) -> None:
    if args.status is not None:
        given = ("config", "workdir", "jobs", "gpus", "slurm", "retry", "halving")
        others = [f"--{flag}" for flag in given if getattr(args, flag) is not None] + overrides
        if others or args.launcher != "local":
            raise UserError(
                f"--status goes with --json only, not with {(others or ['--launcher'])[0]}"
            )
        return
    if args.json:
        raise UserError("--json goes with --status=DIR")
    missing = [f"--{flag}" for flag in ("config", "workdir") if getattr(args, flag) is None]
    if missing:
        raise UserError(f"the following arguments are required: {', '.join(missing)}")
    for text in overrides:
        if not re.match(r"--config\.[\w.]+=|--(no)?config\.[\w.]+$", text):
            raise UserError(f"unknown flag {text!r}; config fields are written --config.key=value")
    if args.halving is not None and args.retry is not None:
        raise UserError("--halving does not go with --retry, which trains points to the end")
    launchers = {"jobs": "local", "gpus": "local", "slurm": "slurm", "halving": "local"}
    for flag, launcher in launchers.items():
        if getattr(args, flag) is not None and args.launcher != launcher:
            raise UserError(f"--{flag} goes with --launcher={launcher}")


def _slots(jobs: int, gpus: str | None) -> list:
    """The `local.Slot` of each concurrent run."""
    from loopjax.sweep import local

    cores = local.shares_of_cores(jobs)
    if gpus is None:
        return [local.Slot("", mine) for mine in cores]
    ids = gpus.split(",")
    if not all(map(str.strip, ids)) or len(ids) % jobs or len(set(ids)) < len(ids):
        raise UserError(
            f"--gpus={gpus} must list different devices like 0,1, the same number for each of {jobs} jobs"
        )
    share = len(ids) // jobs
    parts = (",".join(ids[i * share : (i + 1) * share]) for i in range(jobs))
    return [*map(local.Slot, parts, cores)]
