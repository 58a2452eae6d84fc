"""Command line of `loopjax results`."""

from loopjax import outputs, paths
from loopjax.cli import arguments
from loopjax.errors import MissingPackage

SUFFIXES = (".csv", ".md", ".png", ".pdf")


def results(argv: list[str]) -> int:
    """Collect the runs below a directory in tables, and plot a metric against what was swept.

    --x FIELD plots the metric against a field of the config, with a line for each value of --by, and
    prints the best point of each line with its neighbors. The default is the numeric field in which
    the runs differ, if there is one only; else parameters and FLOPs (--x costs). An axis may also be
    a column: parameters, training_flops, inference_flops_per_token, unique_layers, effective_layers.

    Runs that differ only in the fields of --over, by default the seed, are a point: their mean with
    its 95% interval by Student's t.

    The table of runs has the config fields in which they differ (empty where a field has no effect),
    plan, parameters, FLOPs, wall-clock time, held-out metrics, and the scores in files of loopjax
    eval and loopjax nll found there. Runs without a result are listed with the reason.

    Example:
      loopjax results runs/sweep --x learning_rate --by depth
    """
    args = _parser().parse_args(argv)
    from loopjax.sweep import compare, metric, rows, table, unfinished

    directory = paths.of(args.directory)
    output = args.output or directory / "results"
    found = rows.rows(rows.runs_below(directory))
    for suffix in SUFFIXES:
        outputs.check_file(f"{output}{suffix}", "--output")
    over = _names(args.over)
    table.check_over(found, over or [])
    averaged = ["seed"] if over is None else over
    found = rows.with_sources(found, averaged)
    finished = [row for row in found if row["finished"]]
    metrics = metric.chosen(finished, args.metric)
    x = args.x or compare.default_axis(finished, averaged)
    choice = compare.choose(found, x, _names(args.by), over)
    found = table.ordered(found, choice, args.sort)
    if not args.x and x != compare.COSTS:
        arguments.say(f"--x={x}; --x={compare.COSTS} plots against parameters and FLOPs")
    text = table.report(found, unfinished.listed(directory, found), choice, metrics, args.sort)
    files = {".csv": table.csv_of([row for row in found if row["finished"]]), ".md": text}
    for suffix, content in files.items():
        outputs.write_text(f"{output}{suffix}", content)
    print(text, end="")
    if metrics:
        try:
            _draw(found, choice, metrics, output)
        except MissingPackage as error:
            arguments.say(f"{output}.png and .pdf are skipped: {error}")
    elif finished:
        arguments.say(f"{output}.png and .pdf are skipped: the runs have no metric")
    return 0


def _draw(found: list[dict], choice, metrics: list[str], output) -> None:
    from loopjax.plots import figure
    from loopjax.sweep import draw

    fig = draw.draw(found, choice, metrics)
    for suffix in (".png", ".pdf"):
        figure.save(fig, f"{output}{suffix}", "--output")


def _names(text: str | None) -> list[str] | None:
    """The fields of a flag, joined by commas, each once."""
    return None if text is None else list(dict.fromkeys(filter(None, text.split(","))))


def _parser():
    parser = arguments.parser("results", results.__doc__)
    add = parser.add_argument
    add("directory", metavar="DIR", help="directory of a sweep, or any directory with runs in it")
    add(
        "--x",
        metavar="FIELD",
        help="field or column of the horizontal axis, or costs (default: the only numeric field in "
        "which the runs differ, else costs)",
    )
    add(
        "--by",
        metavar="FIELD,...",
        help="fields whose values are lines (default: those in which runs of the same --x differ)",
    )
    add(
        "--metric",
        action="append",
        metavar="NAME",
        help="metric to compare by; may be repeated (default nll)",
    )
    add(
        "--over",
        metavar="FIELD,...",
        help="config fields to average over (default seed)",
    )
    add(
        "--sort",
        metavar="NAME",
        help="metric, field or column to sort the tables by (default --by, then --x)",
    )
    add(
        "--output",
        metavar="FILE",
        help="prefix of the files FILE.csv, .md, .png and .pdf (default DIR/results)",
    )
    return parser
