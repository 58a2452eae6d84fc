"""Command lines of `loopjax eval`, `icl`, `nll` and `generate`."""

import time

from loopjax import outputs
from loopjax.cli.arguments import mixture, number, parser, positive, say, seed, whole
from loopjax.errors import UserError, require


def add_model(add) -> None:
    """Flags that name a model."""
    add("--checkpoint", metavar="DIR[@STEP]", required=True, help="run or checkpoint to load")
    add("--ema", action="store_true", help="moving average of the weights (config.ema)")
    add("--dtype", choices=("float32", "bfloat16"), help="compute type (default: as trained)")
    add("--mesh", default="", metavar="AXIS=N,...", help="devices per mesh axis data, fsdp, tensor")


def add_plan(add) -> None:
    """Flag of a plan other than that of training."""
    add("--depth", metavar="PLAN", help="depth plan of the model (default: as trained)")


def add_plans(add) -> None:
    """Flag of several plans."""
    add("--depth", metavar="PLAN,...", help="depth plans of the model (default: as trained)")


def add_exit(add) -> None:
    """Flags of tokens that leave a loop early."""
    add(
        "--exit",
        metavar="RULE:THRESHOLD",
        help="rule by which each token leaves the loop early, like kl:5e-4, latent:0.03, "
        "confidence:0.9 or gate:0.8 (default: full depth)",
    )
    add(
        "--max-repeats",
        type=positive,
        metavar="N",
        help="most repetitions of the loop (default: the plan's)",
    )


def exit_rule(args):
    """The rule that the flags of `add_exit` name, or None."""
    from loopjax.exits import Rule

    return None if args.exit is None else Rule.parse(args.exit)


def add_text(add) -> None:
    """Flags for models of text."""
    add("--max-length", type=positive, metavar="N", help="context in tokens (default: as trained)")
    add(
        "--tokenizer",
        metavar="bytes|PATH|ID",
        help="tokenizer of the model (default: tokenizer.json in the run's directory)",
    )


def add_tasks(add, default: str | None = None, shots: bool = True) -> None:
    """Flags for tasks, and the output; without a default --tasks is required."""
    named = f" (default {default})" if default else ""
    add(
        "--tasks",
        required=not default,
        default=default,
        metavar="NAME,...",
        help=f"tasks or groups to evaluate{named}",
    )
    if shots:
        add(
            "--num-fewshot",
            type=whole,
            metavar="N",
            help="number of few-shot examples (default: the task's)",
        )
    add("--limit", type=positive, metavar="N", help="number of items per task (default: all)")
    add("--data-dir", metavar="DIR", help="directory of local task files (default: the hub)")
    add("--batch-tokens", type=positive, metavar="N", help="tokens per batch (default: automatic)")
    add("--output", required=True, metavar="FILE.json", help="file of results to write or extend")


def task_options(args) -> dict:
    """The flags of `add_tasks` that all evaluations of tasks take as keyword arguments."""
    return {
        "limit": args.limit,
        "data_dir": args.data_dir,
        "batch_tokens": args.batch_tokens,
        "say": say,
    }


def need_harness() -> None:
    """Raises MissingPackage, before a model is loaded, where tasks cannot be evaluated."""
    require("lm_eval.tasks", "eval")


def need_figures(path: str | None) -> None:
    """Raises UserError, before anything is computed, where a figure cannot be drawn or written."""
    if path is not None:
        require("matplotlib.figure", "report", "a figure")
        outputs.check_file(path, "--plot")


def open_named(args, depth: str | None, **kwargs):
    """The model that the flags of `add_model` and `add_text` name."""
    from loopjax import compilation_cache
    from loopjax.lm.loaded_model import open_model

    compilation_cache.enable()
    return open_model(
        args.checkpoint,
        depth,
        dtype=args.dtype,
        mesh=args.mesh,
        context=args.max_length,
        tokenizer=args.tokenizer,
        ema=args.ema,
        **kwargs,
    )


def split_plans(text: str | None) -> list[str | None]:
    """Plans joined by commas; None stands for the plan that the checkpoint was trained with."""
    if text is None:
        return [None]
    plans = text.split(",")
    if not all(plans):
        raise UserError(f"--depth {text!r} holds an empty plan")
    return plans


def evaluate(argv: list[str]) -> int:
    """Run tasks of lm-evaluation-harness on a checkpoint, at one depth plan or several.

    Results are written after every task; rerun the same command to resume.

    Example (the suite of the paper, at two depths):
      loopjax eval --checkpoint runs/loop --tasks paper_suite --depth 4x6,4x12 --output eval.json
    """
    args = _evaluate_parser().parse_args(argv)
    need_harness()
    from loopjax.evals import evaluate as evaluation

    rule = exit_rule(args)
    depths = split_plans(args.depth)
    lm = open_named(args, None)
    evaluation.evaluate(
        lm,
        [depth or str(lm.plan) for depth in depths],
        args.tasks.split(","),
        args.output,
        num_fewshot=args.num_fewshot,
        exit=rule,
        max_repeats=args.max_repeats,
        by_item=args.by_item,
        **task_options(args),
    )
    print(args.output)
    return 0


def _evaluate_parser():
    command = parser("eval", evaluate.__doc__)
    add = command.add_argument
    add_model(add)
    add_plans(add)
    add_exit(add)
    add_text(add)
    add_tasks(add)
    add("--by-item", action="store_true", help="write the score of every item too")
    return command


def icl(argv: list[str]) -> int:
    """Measure accuracy against the number of shots, up to the most that fit the context.

    Results are written after every number of shots; rerun the same command to resume.
    """
    args = _icl_parser().parse_args(argv)
    shots = None
    if args.shots:
        if not all(part.isdecimal() for part in args.shots.split(",")):
            raise UserError(f"--shots {args.shots!r} must be whole numbers joined by commas")
        shots = sorted({int(part) for part in args.shots.split(",")})
    need_harness()
    from loopjax.evals import icl as evaluation
    from loopjax.plots import accuracy, figure, roles

    need_figures(args.plot)
    lm = open_named(args, args.depth)
    result = evaluation.sweep(
        lm, args.tasks.split(","), args.output, shots=shots, **task_options(args)
    )
    if args.plot:
        about = result["model"]
        label = f"step {about['step']:,}, plan {about['depth']}"
        look = roles.look_of(lm.plan, lm.meta)
        figure.save(accuracy.plot_icl({label: result}, {label: look}), args.plot)
    print(args.output)
    return 0


def _icl_parser():
    command = parser("icl", icl.__doc__)
    add = command.add_argument
    add_model(add)
    add_plan(add)
    add_text(add)
    add(
        "--shots",
        metavar="N,...",
        help="numbers of shots (default: 0,1,2,4,5, multiples of 8, and the most that fit)",
    )
    add_tasks(add, default="reasoning_primitives", shots=False)
    add("--plot", metavar="FILE.png", help="figure of accuracy against the number of shots")
    return command


def nll(argv: list[str]) -> int:
    """Measure held-out negative log-likelihood by source: nats per token, bits per byte, accuracy.

    Example (all checkpoints of a run):
      loopjax nll --checkpoint runs/lidas --all --output runs/lidas/nll.json
    """
    args = _nll_parser().parse_args(argv)
    if args.output is not None:
        outputs.check_file(args.output, "--output")
    from loopjax import compilation_cache
    from loopjax.evals import nll as evaluation

    rule = exit_rule(args)
    compilation_cache.enable()
    result = evaluation.measure(
        args.checkpoint,
        all_steps=args.all,
        depths=split_plans(args.depth),
        mixture=mixture(args.mixture),
        data_dir=args.data_dir,
        batches=args.batches,
        batch_size=args.batch_size,
        mesh=args.mesh,
        dtype=args.dtype,
        context=args.max_length,
        exit=rule,
        max_repeats=args.max_repeats,
        ema=args.ema,
        say=print,
    )
    if args.output:
        outputs.write_json(args.output, result)
    return 0


def _nll_parser():
    command = parser("nll", nll.__doc__)
    add = command.add_argument
    add_model(add)
    add_plans(add)
    add_exit(add)
    add("--max-length", type=positive, metavar="N", help="sequence length (default: as trained)")
    add("--all", action="store_true", help="measure all checkpoints of the run")
    add(
        "--mixture",
        metavar="JSON",
        help='data mixture, like \'{"web": 0.7, "math": 0.3}\' (default: the last of training)',
    )
    add("--data-dir", metavar="DIR", help="directory of the data (default: as trained)")
    add(
        "--batches",
        type=positive,
        default=16,
        metavar="N",
        help="most batches per source (default 16)",
    )
    add(
        "--batch-size",
        type=positive,
        default=32,
        metavar="N",
        help="sequences per batch (default 32)",
    )
    add("--output", metavar="FILE.json", help="file of results to write (default: none)")
    return command


def generate(argv: list[str]) -> int:
    """Generate text from a prompt. Standard output has the text alone.

    Example:
      loopjax generate --checkpoint runs/lidas --prompt "Once upon a time" --temperature 0.8
    """
    args = _generate_parser().parse_args(argv)
    import jax

    from loopjax.lm import decode

    sampling = decode.Sampling(args.temperature, args.top_p, args.seed)
    # One prompt does not fill several devices: use one, unless a mesh is asked for.
    devices = None if args.mesh else jax.devices()[:1]
    rule = exit_rule(args)
    lm = open_named(args, args.depth, devices=devices)
    if rule or args.max_repeats:
        lm = lm.with_exit(rule, args.max_repeats)
    prompt = lm.tokenizer.encode(args.prompt) or [lm.tokenizer.bos_id]
    # A prompt that fits the context is kept whole, however few tokens can follow.
    room = lm.context - len(prompt)
    new_tokens = min(args.max_new_tokens, room if room > 0 else lm.context // 2)
    start = time.monotonic()
    generation = decode.generate(lm, [prompt], new_tokens, stop=args.stop, sampling=sampling)[0]
    seconds = time.monotonic() - start
    before = lm.tokenizer.decode(prompt, special=False)
    whole = lm.tokenizer.decode([*prompt, *generation.tokens], special=False)
    # A stop string may have left a part of a token.
    whole += generation.text[len(lm.tokenizer.decode(generation.tokens, special=False)) :]
    print(whole if args.echo else whole.removeprefix(before))
    cut = f", prompt cut by {generation.truncated} tokens" if generation.truncated else ""
    say(
        f"plan {lm.plan}: {len(generation.tokens)} tokens in {seconds:.1f} s (with compilation), "
        f"ended by {generation.ended}{cut}{_saved(lm, generation.repeats)}"
    )
    return 0


def _saved(lm, repeats: list[int]) -> str:
    """What early exits saved while decoding; "" at full depth."""
    if not repeats:
        return ""
    from loopjax import exits

    args = lm.cfg, lm.plan, lm.exit, lm.context, len(repeats), sum(repeats)
    return f"; {exits.saving(*args).as_text()}"


def _generate_parser():
    command = parser("generate", generate.__doc__)
    add = command.add_argument
    add_model(add)
    add_plan(add)
    add_exit(add)
    add_text(add)
    add("--prompt", default="", metavar="TEXT", help="prompt text (default: empty)")
    add(
        "--max-new-tokens",
        type=positive,
        default=128,
        metavar="N",
        help="most tokens to generate (default 128)",
    )
    add(
        "--temperature",
        type=number,
        default=0.0,
        metavar="T",
        help="sampling temperature (default 0: greedy)",
    )
    add(
        "--top-p",
        type=number,
        default=1.0,
        metavar="P",
        help="nucleus sampling threshold (default 1)",
    )
    add("--seed", type=seed, default=0, metavar="N", help="sampling seed (default 0)")
    add("--stop", nargs="+", default=[], metavar="TEXT", help="stop strings (default: none)")
    add("--no-echo", dest="echo", action="store_false", help="print without the prompt")
    return command
