"""Command lines of `loopjax generate`, `eval`, `icl` and `nll`."""

import json
import pathlib
import sys
import time

from loopjax.cli.arguments import parser, positive
from loopjax.errors import UserError
from loopjax.files import write_json
from loopjax.plots import accuracy, figure


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def add_model(add) -> None:
    """The flags that say what is evaluated."""
    add("--checkpoint", metavar="DIR[@STEP]", required=True, help="of a run, or imported")
    add("--dtype", choices=("float32", "bfloat16"), help="compute type (default: as trained)")
    add("--mesh", default="", metavar="AXIS=N,...", help="devices: data, fsdp, tensor")


def add_text(add) -> None:
    """... and how its text is read."""
    add("--max-length", type=int, metavar="N", help="context in tokens (default: as trained)")
    add("--tokenizer", metavar="PATH|ID", help="if not the one beside the checkpoint")


def add_tasks(add) -> None:
    """... and how tasks are evaluated."""
    add("--limit", type=positive, metavar="N", help="the first N items of each task")
    add("--data-dir", metavar="DIR", help="read the tasks' files from here, not from the hub")
    add("--batch-tokens", type=positive, metavar="N", help="tokens of a batch")


def open_named(args, depth: str | None, **kwargs):
    """The model that the flags of `add_model` and `add_text` name."""
    from loopjax.lm.loaded_model import open_model

    return open_model(
        args.checkpoint, depth, dtype=args.dtype, mesh=args.mesh, context=args.max_length,
        tokenizer=args.tokenizer, **kwargs,
    )  # fmt: skip


def generate(argv: list[str]) -> int:
    """Continue a text. It goes to standard output, everything else to standard error."""
    args = _generate_parser().parse_args(argv)
    import jax

    from loopjax.lm import decode

    sampling = decode.Sampling(args.temperature, args.top_p, args.seed)
    # One prompt does not fill several devices: one will do, unless a mesh is asked for.
    devices = None if args.mesh else jax.devices()[:1]
    lm = open_named(args, args.depth, devices=devices)
    prompt = lm.tokenizer.encode(args.prompt) or [lm.tokenizer.bos_id]
    # A prompt that fits is kept whole, whatever room it leaves.
    room = lm.context - len(prompt)
    new = min(args.max_new_tokens, room if room > 0 else lm.context // 2)
    begun = time.monotonic()
    made = decode.generate(lm, [prompt], new, stop=args.stop, sampling=sampling)[0]
    seconds = time.monotonic() - begun
    before = lm.tokenizer.decode(prompt, special=False)
    whole = lm.tokenizer.decode([*prompt, *made.tokens], special=False)
    print(whole if args.echo else whole.removeprefix(before))
    cut = f", the prompt lost {made.truncated} tokens" if made.truncated else ""
    say(
        f"plan {lm.plan}: {len(made.tokens)} tokens in {seconds:.1f} s (with compilation), "
        f"ended by {made.ended}{cut}"
    )
    return 0


def _generate_parser():
    made = parser("generate", generate.__doc__)
    add = made.add_argument
    add_model(add)
    add("--depth", metavar="PLAN", help="run it by this plan (default: as trained)")
    add_text(add)
    add("--prompt", default="", metavar="TEXT", help="what is continued")
    add("--max-new-tokens", type=positive, default=128, metavar="N", help="(default 128)")
    add("--temperature", type=float, default=0.0, metavar="T", help="0, the default, is greedy")
    add("--top-p", type=float, default=1.0, metavar="P", help="of the probability (default 1)")
    add("--seed", type=int, default=0, metavar="N", help="of the draws (default 0)")
    add("--stop", nargs="+", default=[], metavar="TEXT", help="end before any of these")
    add("--no-echo", dest="echo", action="store_false", help="the continuation alone")
    return made


def evaluate(argv: list[str]) -> int:
    """Run tasks of lm-evaluation-harness on a checkpoint, at one plan or several.

    The paper's suite is --tasks paper_suite. Results are written after every task; the same
    command goes on where it was stopped.
    """
    made = parser("eval", evaluate.__doc__)
    add = made.add_argument
    add_model(add)
    add("--depth", metavar="PLAN,...", help="plans, joined by commas (default: as trained)")
    add_text(add)
    add("--tasks", required=True, metavar="NAME,...", help="tasks or groups")
    add("--num-fewshot", type=int, metavar="N", help="(default: as the task says)")
    add_tasks(add)
    add("--output", required=True, metavar="FILE.json")
    args = made.parse_args(argv)
    from loopjax.evals import evaluate as run

    depths = _depths(args.depth)
    lm = open_named(args, None)
    run.evaluate(
        lm, [depth or str(lm.plan) for depth in depths], args.tasks.split(","),
        args.output, num_fewshot=args.num_fewshot, limit=args.limit, data_dir=args.data_dir,
        batch_tokens=args.batch_tokens, say=say,
    )  # fmt: skip
    print(args.output)
    return 0


def _depths(text: str | None) -> list[str | None]:
    """Plans joined by commas; None is the one that the checkpoint was trained with."""
    if text is None:
        return [None]
    if not all(depths := text.split(",")):
        raise UserError(f"--depth {text!r} holds an empty plan")
    return depths


def icl(argv: list[str]) -> int:
    """Accuracy against the number of examples in the prompt, up to what the context holds."""
    made = parser("icl", icl.__doc__)
    add = made.add_argument
    add_model(add)
    add("--depth", metavar="PLAN", help="run it by this plan (default: as trained)")
    add_text(add)
    add("--tasks", default="reasoning_primitives", metavar="NAME,...", help="tasks or groups")
    add("--shots", metavar="N,...", help="(default: 0,1,2,4,5, multiples of 8, and the most)")
    add_tasks(add)
    add("--output", required=True, metavar="FILE.json")
    add("--plot", metavar="FILE.png", help="draw the curves")
    args = made.parse_args(argv)
    shots = None
    if args.shots:
        if not all(part.isdecimal() for part in args.shots.split(",")):
            raise UserError(f"--shots {args.shots!r} must be whole numbers joined by commas")
        shots = sorted({int(part) for part in args.shots.split(",")})
    if args.plot:
        figure.new(1, 1)  # is matplotlib there?
    from loopjax.evals import icl as run

    result = run.sweep(
        open_named(args, args.depth), args.tasks.split(","), args.output, shots=shots,
        limit=args.limit, data_dir=args.data_dir, batch_tokens=args.batch_tokens, say=say,
    )  # fmt: skip
    if args.plot:
        about = result["model"]
        label = f"step {about['step']:,}, plan {about['depth']}"
        figure.save(accuracy.plot_icl({label: result}), args.plot)
    print(args.output)
    return 0


def nll(argv: list[str]) -> int:
    """Held-out negative log-likelihood by source: nats per token, bits per byte, accuracy."""
    made = parser("nll", nll.__doc__)
    add = made.add_argument
    add_model(add)
    add("--max-length", type=positive, metavar="N", help="of a sequence (default: as trained)")
    add("--all", action="store_true", help="all checkpoints of the run")
    add("--depth", metavar="PLAN,...", help="plans, joined by commas (default: as trained)")
    add("--mixture", metavar="JSON", help="{source: weight} (default: as trained last)")
    add("--data-dir", metavar="DIR", help="where the sources are (default: as trained)")
    add("--batches", type=positive, default=16, metavar="N", help="at most, a source (default 16)")
    add("--batch-size", type=positive, default=32, metavar="N", help="sequences (default 32)")
    add("--output", metavar="FILE.json")
    args = made.parse_args(argv)
    from loopjax.evals import nll as run

    result = run.measure(
        args.checkpoint, all_steps=args.all, depths=_depths(args.depth),
        mixture=mixture_of(args.mixture), data_dir=args.data_dir, batches=args.batches,
        batch_size=args.batch_size, mesh=args.mesh, dtype=args.dtype, context=args.max_length,
        say=print,
    )  # fmt: skip
    if args.output:
        write_json(pathlib.Path(args.output), result)
    return 0


def mixture_of(text: str | None) -> dict | None:
    if text is None:
        return None
    try:
        weights = json.loads(text)
        if all(isinstance(w, int | float) and w > 0 for w in weights.values()) and weights:
            return weights
    except (ValueError, AttributeError):
        pass
    raise UserError(f'--mixture {text!r} must be like \'{{"web": 0.7, "math": 0.3}}\'')
