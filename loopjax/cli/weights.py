"""Command line of `loopjax inspect`."""

import json
import os
import sys

from loopjax import outputs
from loopjax.cli import arguments
from loopjax.errors import require


def inspect(argv: list[str]) -> int:
    """Show the weights of a checkpoint: shapes, norms, optimizer state, lineage.

    Examples:
      loopjax inspect runs/lidas --layers
      loopjax inspect runs/lidas@4000 --against runs/lidas@8000
    """
    args = _parser().parse_args(argv)
    arguments.use_cpu()
    from loopjax.weights import numbers, plot, terminal

    if args.plot:
        require("matplotlib.figure", "report", "a figure")
        outputs.check_file(args.plot, "--plot")
    layers = args.layers or bool(args.plot)
    result = numbers.inspect(args.directory, args.step, layers=layers, other=args.against)
    if args.json:
        print(json.dumps(numbers.finite(result)))
    else:
        color = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        print(terminal.render(result, layers=args.layers, color=color), end="")
    if args.plot:
        plot.write(args.plot, result)
    return 0


def _parser():
    parser = arguments.parser("inspect", inspect.__doc__)
    add = parser.add_argument
    add("directory", metavar="DIR[@STEP]", help="directory of a run or of its checkpoints")
    add(
        "--step",
        type=arguments.whole,
        metavar="N",
        help="step of the checkpoint (default: the newest)",
    )
    add("--layers", action="store_true", help="norms by layer, cosines of neighbors and copies")
    add("--against", metavar="DIR[@STEP]", help="checkpoint to compare with")
    add("--plot", metavar="FILE.png", help="figure of layer similarity and lineage")
    add("--json", action="store_true", help="output as one JSON object")
    return parser
