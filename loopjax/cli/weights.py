"""Command line of `loopjax inspect`."""

import json
import os
import sys

from loopjax import outputs
from loopjax.cli import arguments
from loopjax.errors import UserError, require


def inspect(argv: list[str]) -> int:
    """Show the weights of a checkpoint: shapes, norms, optimizer state, lineage.

    Any checkpoint that Orbax has written is read, whichever program it is from. Plan, lineage and
    updates are those of loopjax's own.

    Examples:
      loopjax inspect runs/lidas --layers
      loopjax inspect runs/lidas@4000 --against runs/lidas@8000
      loopjax inspect maxtext/checkpoints@1000 --grep decoder/layers --layers
      loopjax inspect gemma-2b --grep embedder --export embedding.safetensors
    """
    args = _parser().parse_args(argv)
    arguments.use_cpu()
    from loopjax.checkpoint_files import is_ours
    from loopjax.weights import arrays, export

    if args.export:
        export.check_name(args.export)
        if args.layers or args.against or args.plot:
            raise UserError("--export writes a file only; leave out --layers, --against and --plot")
        outputs.check_file(args.export, "--export")
        tree = arrays.open_tree(args.directory, args.step)
        chosen = arrays.matching(tree.arrays, args.grep, tree.path)
        arrays.check(tree, args.grep)
        written = export.export(args.export, chosen, tree)
        print(json.dumps(written) if args.json else _sentence(written))
        return 0
    if args.plot:
        require("matplotlib.figure", "report", "a figure")
        outputs.check_file(args.plot, "--plot")
    ours = is_ours(args.directory)
    if ours and (not args.against or is_ours(args.against)):
        return _ours(args)
    return _any(args, ours)


def _ours(args) -> int:
    from loopjax.weights import numbers, plot, terminal

    layers = args.layers or bool(args.plot)
    result = numbers.inspect(
        args.directory, args.step, layers=layers, other=args.against, grep=args.grep
    )
    if args.json:
        print(json.dumps(numbers.finite(result)))
    else:
        color = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        print(terminal.render(result, layers=args.layers, color=color), end="")
    if args.plot:
        plot.write(args.plot, result)
    return 0


def _any(args, ours: bool) -> int:
    """A checkpoint of any program, or one of loopjax compared with another program's."""
    from loopjax.weights import arrays, numbers, tree_numbers, tree_terminal

    if args.plot:
        raise UserError(
            "--plot shows plan and lineage, which only checkpoints of loopjax have; use --layers"
        )
    result = tree_numbers.inspect(
        args.directory, args.step, layers=args.layers, other=args.against, grep=args.grep
    )
    result["checkpoint"]["ours"] = ours
    if args.json:
        print(json.dumps(numbers.finite(result)))
    else:
        print(tree_terminal.render(result, layers=args.layers), end="")
    sys.stdout.flush()  # before the sentence about what is damaged
    readable = sum(row["name"] not in result["unreadable"] for row in result["arrays"])
    arrays.refuse(result["checkpoint"]["path"], result["unreadable"], readable)
    return 0


def _sentence(written: dict) -> str:
    changed = ", ".join(f"{a} as {b}" for a, b in written["changed"].items())
    n = written["arrays"]
    text = f"{n} array{'s'[: n != 1]}, {written['bytes']:,} bytes, in {written['file']}"
    return text + (f" ({changed})" if changed else "")


def _parser():
    parser = arguments.parser("inspect", inspect.__doc__)
    add = parser.add_argument
    add(
        "directory",
        metavar="DIR[@STEP]",
        help="directory of a run, of its checkpoints, or of one checkpoint of any program",
    )
    add(
        "--step",
        type=arguments.whole,
        metavar="N",
        help="step of the checkpoint (default: the newest)",
    )
    add("--layers", action="store_true", help="norms by layer, cosines of neighbors and copies")
    add("--against", metavar="DIR[@STEP]", help="checkpoint to compare with")
    add("--grep", metavar="REGEX", help="only arrays whose path matches, e.g. 'layers/.*query'")
    add(
        "--export",
        metavar="FILE",
        help="write the arrays (those of --grep) to FILE.npz or FILE.safetensors",
    )
    add("--plot", metavar="FILE.png", help="figure of layer similarity and lineage")
    add("--json", action="store_true", help="output as one JSON object")
    return parser
