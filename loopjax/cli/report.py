"""Command line of `loopjax report`."""

from loopjax.cli import arguments
from loopjax.errors import require


def report(argv: list[str]) -> int:
    """Compare any number of models in one self-contained HTML page.

    Results below a run's directory are found automatically; other results are matched to a model
    by the digest of its weights, else by its path. The page lists the commands that compute missing
    results.
    """
    args = _parser().parse_args(argv)
    require("matplotlib.figure", "report")
    arguments.use_cpu()
    from loopjax.report import page

    group = page.Group("", "", args.paths)
    page.write_report(args.output, [group], args.title, figures=args.figures)
    print(args.output)
    return 0


def _parser():
    parser = arguments.parser("report", report.__doc__)
    add = parser.add_argument
    add("output", metavar="OUT.html", help="file to write")
    add(
        "paths",
        nargs="+",
        metavar="[LABEL=]PATH",
        help="run, checkpoint (DIR or DIR@STEP), or results of analyze, intervene, eval, icl, nll",
    )
    add("--title", default="Models compared", help="title of the page")
    add("--figures", metavar="DIR", help="directory for the figures as PDF and PNG files")
    return parser
