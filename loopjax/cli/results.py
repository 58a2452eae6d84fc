"""Command line of `loopjax results`."""

import pathlib

from loopjax.cli import arguments
from loopjax.errors import MissingPackage


def results(argv: list[str]) -> int:
    """Collect the runs below a directory in one table, as CSV and Markdown, and plot trade-offs.

    A row has the config fields in which the runs differ, plan, parameters, FLOPs, wall-clock time,
    held-out metrics, and the scores in files of loopjax eval found there. Runs that differ only in
    the fields of --over get a second table, of means and standard deviations.
    """
    args = _parser().parse_args(argv)
    from loopjax.sweep import table, tradeoffs

    over = args.over.split(",")
    directory = pathlib.Path(args.directory)
    output = args.output or directory / "results"
    rows = table.rows(table.runs_below(directory))
    finished = [row for row in rows if row["finished"]]
    metrics = tradeoffs.chosen(finished, args.metric)
    text = table.report(rows, table.not_started(directory), over)
    table.write(output, rows, text)
    print(text, end="")
    if metrics:
        try:
            tradeoffs.draw(f"{output}.png", finished, metrics, over)
        except MissingPackage as error:
            arguments.say(f"{output}.png is skipped: {error}")
    return 0


def _parser():
    parser = arguments.parser("results", results.__doc__)
    add = parser.add_argument
    add("directory", metavar="DIR", help="directory of a sweep, or any directory with runs in it")
    add(
        "--output",
        metavar="FILE",
        help="prefix of the files FILE.csv, .md and .png (default DIR/results)",
    )
    add(
        "--metric",
        action="append",
        metavar="NAME",
        help="metric to plot against parameters and FLOPs; may be repeated (default nll)",
    )
    add(
        "--over",
        default="seed",
        metavar="FIELD,...",
        help="config fields to average over (default seed)",
    )
    return parser
