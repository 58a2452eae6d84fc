"""Command lines of the analyses."""

import argparse

from loopjax.analysis import diagnostics
from loopjax.cli.arguments import parser, positive
from loopjax.cli.evals import add_model, add_tasks, add_text, mixture_of, open_named, say
from loopjax.depth import INTERVENTIONS
from loopjax.errors import UserError
from loopjax.plots import accuracy, figure


def intervene(argv: list[str]) -> int:
    """Swap, skip, reverse or repeat layers of a checkpoint, and evaluate what is left.

    Layers are executed layers: each pass of a loop counts. Results are written after every
    evaluation; the same command goes on where it was stopped.
    """
    args = _intervene_parser().parse_args(argv)
    if args.times and args.op != "repeat":
        raise UserError(f"--times goes with --op repeat, not with {args.op}")
    if args.plot:
        figure.new(1, 1)  # is matplotlib there?
    from loopjax.analysis import interventions as run

    lm = open_named(args, args.depth)
    made = run.interventions(
        args.op, lm.plan.n_effective, args.size, args.times or [1], args.starts
    )
    tasks = run.TASKS if args.tasks is None else args.tasks.split(",")
    result = run.intervene(
        lm, made, tasks, args.output, num_fewshot=args.num_fewshot, limit=args.limit,
        data_dir=args.data_dir, batch_tokens=args.batch_tokens, say=say,
    )  # fmt: skip
    if args.plot:
        label = f"step {lm.meta['step']:,}, plan {lm.plan}"
        fig = accuracy.plot_interventions({label: result})
        fig.suptitle(args.op, x=0.01, ha="left", color=figure.INK, fontsize=12, fontweight="bold")
        figure.save(fig, args.plot)
    print(args.output)
    return 0


def _intervene_parser():
    made = parser("intervene", intervene.__doc__)
    add = made.add_argument
    add_model(add)
    add("--depth", metavar="PLAN", help="run it by this plan (default: as trained)")
    add_text(add)
    add("--op", required=True, choices=tuple(INTERVENTIONS), help="what is done to the layers")
    add("--size", type=positives, default=[4], metavar="N,...", help="of a sub-block (default 4)")
    add("--times", type=positives, metavar="R,...", help="extra passes of repeat (default 1)")
    add("--starts", type=_starts, metavar="all|N,...", help="first layers (default all)")
    add("--tasks", metavar="NAME,...", help="(default lambada_openai,var_assign_math_0)")
    add("--num-fewshot", type=int, metavar="N", help="(default: as the task says)")
    add_tasks(add)
    add("--output", required=True, metavar="FILE.json")
    add("--plot", metavar="FILE.png", help="draw accuracy against the start")
    return made


def analyze(argv: list[str]) -> int:
    """The depth signature of a checkpoint: norms, effects, depth score, similarity of blocks.

    Each diagnostic leaves a JSON file and a picture; what is there already is not computed again.
    Early exits (overlap, exit_accuracy) have to be named: a lens is trained for them first, which at
    the defaults is long (65 million tokens).
    """
    args = _analyze_parser().parse_args(argv)
    from loopjax.analysis import analyze as run
    from loopjax.analysis import early_exit, lens, prompts

    training = lens.Training(args.lens_optimizer, args.lens_steps, args.lens_tokens)

    found = prompts.load(args.prompts, args.data_dir, args.n)
    lm = open_named(args, args.depth)
    cases = prompts.tokenize(found, lm.tokenizer, lm.context, say)
    for note in found.notes:
        say(f"prompts {found.name}: {note}")
    run.analyze(
        lm, diagnostics.defaults() if args.what == "all" else args.what.split(","), cases,
        args.output, prompts={"name": found.name, "source": found.source}, block=args.block,
        one_boundary=found.name in prompts.SHORT_ANSWERS, training=training,
        lens_data={"mixture": mixture_of(args.mixture), "data_dir": args.lens_data},
        tasks=args.tasks.split(",") if args.tasks else early_exit.TASKS, limit=args.limit,
        data_dir=args.data_dir, again=args.again, leave_out=args.what == "all", say=say,
    )  # fmt: skip
    print(args.output)
    return 0


def _analyze_parser():
    made = parser("analyze", analyze.__doc__)
    rows = diagnostics.DIAGNOSTICS.items()
    made.epilog = "diagnostics (--what):\n" + "\n".join(
        f"  {name:<18}{row.title}" for name, row in rows
    )
    add = made.add_argument
    add_model(add)
    add("--depth", metavar="PLAN", help="run it by this plan (default: as trained)")
    add_text(add)
    add("--what", default="all", metavar="all|NAME,...", help="the diagnostics (default all)")
    add(
        "--prompts", default="arithmetic", metavar="NAME|file:PATH",
        help="a prompt set (default arithmetic, made here)",
    )  # fmt: skip
    add("--n", type=positive, metavar="N", help="of the prompts (default: as the papers have it)")
    add("--data-dir", metavar="DIR", help="read prompts and tasks from here, not from the hub")
    add(
        "--lens-steps",
        type=positive,
        default=250,
        metavar="N",
        help="of its training (default 250)",
    )
    add(
        "--lens-tokens", type=positive, default=2**18, metavar="N",
        help="of each of its batches (default 262144)",
    )  # fmt: skip
    add("--lens-optimizer", choices=("sgd", "adam"), default="sgd", help="(default sgd)")
    add("--mixture", metavar="JSON", help="its sources, {name: weight} (default: as trained last)")
    add("--lens-data", metavar="DIR", help="where they are (default: as trained)")
    add("--tasks", metavar="NAME,...", help="of exit_accuracy (default lambada_openai and VA math)")
    add("--limit", type=positive, metavar="N", help="the first N items of each task")
    add("--block", type=positive, default=4, metavar="N", help="layers of a block (default 4)")
    add("--again", action="store_true", help="compute also what is there already")
    add("--output", required=True, metavar="DIR")
    return made


def positives(text: str) -> list[int]:
    """Whole numbers of at least 1, joined by commas; each once, in ascending order."""
    return sorted({positive(part) for part in text.split(",")})


def _starts(text: str) -> list[int] | None:
    """Layers joined by commas; None for all that there are."""
    if text == "all":
        return None
    if not all(part.isdecimal() for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r} must be all, or layers joined by commas")
    return sorted({int(part) for part in text.split(",")})
