"""Command lines of `loopjax analyze` and `loopjax intervene`."""

import argparse

from loopjax.analysis import diagnostics
from loopjax.cli.arguments import mixture, parser, positive, positives, say
from loopjax.cli.evals import (
    add_model,
    add_plan,
    add_tasks,
    add_text,
    need_figures,
    need_harness,
    open_named,
    task_options,
)
from loopjax.depth import INTERVENTIONS
from loopjax.errors import UserError
from loopjax.passes import PLAIN, Passes


def intervene(argv: list[str]) -> int:
    """Swap, skip, reverse or repeat layers of a checkpoint, and evaluate the result.

    Layers are executed layers: each pass of a loop counts. Results are written after every
    evaluation; rerun the same command to resume.

    Example (smaller steps against whole ones; the best is measured on other items):
      loopjax intervene --checkpoint runs/lidas --op repeat --passes plain,damped --dev 200 --output r.json
    """
    args = _intervene_parser().parse_args(argv)
    for flag in ("times", "passes"):
        if getattr(args, flag) and args.op != "repeat":
            raise UserError(f"--{flag} goes with --op repeat, not with {args.op}")
    need_harness()
    from loopjax.analysis import interventions
    from loopjax.plots import accuracy, figure, roles

    need_figures(args.plot)
    lm = open_named(args, args.depth)
    chosen = interventions.interventions(
        args.op,
        lm.plan.n_effective,
        args.size,
        args.times or [1],
        args.starts,
        args.passes or [PLAIN],
    )
    result = interventions.intervene(
        lm,
        chosen,
        args.tasks.split(","),
        args.output,
        num_fewshot=args.num_fewshot,
        dev=args.dev,
        **task_options(args),
    )
    if args.plot:
        label = f"step {lm.meta['step']:,}, plan {lm.plan}"
        look = roles.look_of(lm.plan, lm.meta)
        figure.save(accuracy.plot_interventions({label: result}, {label: look}), args.plot)
    print(args.output)
    return 0


def _intervene_parser():
    command = parser("intervene", intervene.__doc__)
    add = command.add_argument
    add_model(add)
    add_plan(add)
    add_text(add)
    add("--op", required=True, choices=tuple(INTERVENTIONS), help="operation on the layers")
    add(
        "--size",
        type=positives,
        default=[4],
        metavar="N,...",
        help="numbers of layers to operate on (default 4)",
    )
    add(
        "--times",
        type=positives,
        metavar="R,...",
        help="numbers of extra passes of --op repeat (default 1)",
    )
    add(
        "--passes",
        type=_passes,
        metavar="NAME,...",
        help="ways to apply the passes of --op repeat: plain, damped (by 1 / passes), damped0.5 (by this "
        "factor), attention or mlp (only these sublayers after the first pass), damped:mlp, ... (default "
        "plain)",
    )
    add("--starts", type=_starts, metavar="all|N,...", help="first layers (default all)")
    add(
        "--dev",
        type=positive,
        metavar="N",
        help="number of items of each task to choose the best intervention by; it is then measured on the "
        "others (default: no choice, all items)",
    )
    add_tasks(add, default="lambada_openai,var_assign_math_0")
    add("--plot", metavar="FILE.png", help="figure of accuracy against the first layer")
    return command


def analyze(argv: list[str]) -> int:
    """Run diagnostics of depth: norms, effects of layers, depth score, similarity of blocks.

    Each diagnostic writes a JSON file and a figure; results that exist are skipped. Early exits
    (overlap, exit_accuracy) have to be named: they train a Tuned Lens first, which takes long at
    the default settings (65 million tokens).

    Example:
      loopjax analyze --checkpoint runs/lidas --output runs/lidas/signature
    """
    args = _analyze_parser().parse_args(argv)
    names = diagnostics.defaults() if args.what == "all" else args.what.split(",")
    for name in names:  # before a model is loaded
        if row := diagnostics.DIAGNOSTICS.get(name):
            row.check_installed()
    weights = mixture(args.mixture)
    from loopjax.analysis import analyze as analysis
    from loopjax.analysis import early_exit, lens, prompts

    prompt_set = prompts.load(args.prompts, args.data_dir, args.n)
    lm = open_named(args, args.depth)
    cases = prompts.tokenize(prompt_set, lm.tokenizer, lm.context, say)
    for note in prompt_set.notes:
        say(f"prompts {prompt_set.name}: {note}")
    analysis.analyze(
        lm,
        names,
        cases,
        args.output,
        prompts={"name": prompt_set.name, "source": prompt_set.source},
        block=args.block,
        repetitions=args.repetitions,
        one_boundary=prompt_set.name in prompts.SHORT_ANSWERS,
        training=lens.Training(args.lens_optimizer, args.lens_steps, args.lens_tokens),
        lens_data={"mixture": weights, "data_dir": args.lens_data},
        tasks=args.tasks.split(",") if args.tasks else early_exit.TASKS,
        limit=args.limit,
        data_dir=args.data_dir,
        again=args.again,
        leave_out=args.what == "all",
        say=say,
    )
    print(args.output)
    return 0


def _analyze_parser():
    command = parser("analyze", analyze.__doc__)
    rows = diagnostics.DIAGNOSTICS.items()
    command.epilog = "diagnostics (--what):\n" + "\n".join(
        f"  {name:<18}{row.title}" for name, row in rows
    )
    add = command.add_argument
    add_model(add)
    add_plan(add)
    add_text(add)
    add("--what", default="all", metavar="all|NAME,...", help="diagnostics to run (default all)")
    add(
        "--prompts",
        default="arithmetic",
        metavar="NAME|file:PATH",
        help="prompt set (default arithmetic, which is generated)",
    )
    add("--n", type=positive, metavar="N", help="number of prompts (default: as in the papers)")
    add(
        "--data-dir",
        metavar="DIR",
        help="directory of local prompt and task files (default: the hub)",
    )
    add(
        "--lens-steps",
        type=positive,
        default=250,
        metavar="N",
        help="training steps of the Tuned Lens (default 250)",
    )
    add(
        "--lens-tokens",
        type=positive,
        default=2**18,
        metavar="N",
        help="tokens per training batch of the Tuned Lens (default 262144)",
    )
    add(
        "--lens-optimizer",
        choices=("sgd", "adam"),
        default="sgd",
        help="optimizer of the Tuned Lens (default sgd)",
    )
    add(
        "--mixture",
        metavar="JSON",
        help="data mixture for training the Tuned Lens (default: the last of the model's training)",
    )
    add(
        "--lens-data",
        metavar="DIR",
        help="directory of the data for the Tuned Lens (default: as trained)",
    )
    add(
        "--tasks",
        metavar="NAME,...",
        help="tasks of exit_accuracy (default: lambada_openai and var_assign_math)",
    )
    add(
        "--limit", type=positive, metavar="N", help="items per task of exit_accuracy (default: all)"
    )
    add("--block", type=positive, default=4, metavar="N", help="layers per block (default 4)")
    add(
        "--repetitions",
        type=positive,
        metavar="N",
        help="repetitions of a loop that trajectories follow (default: twice those of the plan, at least 8)",
    )
    add("--again", action="store_true", help="recompute results that exist")
    add("--output", required=True, metavar="DIR", help="directory of the results")
    return command


def _passes(text: str) -> list[Passes]:
    """Ways to apply passes, joined by commas; each once."""
    try:
        return list(dict.fromkeys(Passes.parse(part) for part in text.split(",")))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _starts(text: str) -> list[int] | None:
    """Layers joined by commas; None for all layers."""
    if text == "all":
        return None
    if not all(part.isdecimal() for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r} must be all, or layers joined by commas")
    return sorted({int(part) for part in text.split(",")})
