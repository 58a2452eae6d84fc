"""`loopjax VERB ...`: one thin command per verb."""

import argparse
import difflib
import json
import os
import sys

from loopjax.cli import arguments
from loopjax.errors import UserError

INTERRUPTED = 130  # as shells say it of a command that Ctrl-C stopped
VERBS = {
    "train": "train a model, or go on with a run that was stopped",
    "finetune": "train a checkpoint on prompts and completions",
    "sweep": "train all points of a sweep, here or on a cluster",
    "results": "collect runs in one table, and draw trade-offs",
    "flops": "parameters and FLOPs of a config",
    "plan": "sharding, memory and time of a config on devices that need not be there",
    "prepare": "turn text into token shards",
    "data": "show what was prepared",
    "report": "compare models in one HTML page",
    "inspect": "show what a checkpoint holds, or compare two",
    "eval": "run tasks of lm-evaluation-harness on a checkpoint",
    "icl": "accuracy against the number of examples in the prompt",
    "nll": "held-out negative log-likelihood of a checkpoint, or of a whole run",
    "generate": "continue a text",
    "analyze": "the depth signature of a checkpoint: norms, effects, depth score",
    "intervene": "swap, skip, reverse or repeat layers, and evaluate",
    "import-hf": "make a checkpoint of a Hugging Face model",
    "export-hf": "make a Hugging Face model of a checkpoint",
}


def main(argv: list[str] | None = None) -> int:
    """Runs a verb; 0 on success, 2 when the user can mend what is wrong, 130 when interrupted."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help", "help"):
        print("usage: loopjax VERB ...  (loopjax VERB --help tells more)\n")
        print("\n".join(f"  {verb:<10}{text}" for verb, text in VERBS.items()))
        return 0 if argv else 2
    verb, rest = argv[0], argv[1:]
    try:
        if verb not in VERBS:
            close = difflib.get_close_matches(verb, VERBS, n=1)
            hint = f"; did you mean {close[0]}?" if close else f": {', '.join(VERBS)}"
            raise UserError(f"there is no verb {verb!r}{hint}")
        return globals()[f"_{verb.replace('-', '_')}"](rest)
    except UserError as error:
        print(f"loopjax {verb}: {error}", file=sys.stderr)
        return INTERRUPTED if isinstance(error.__context__, KeyboardInterrupt) else 2
    except KeyboardInterrupt:
        print(f"loopjax {verb}: stopped; what is written is kept", file=sys.stderr)
        return INTERRUPTED


def run() -> None:
    """The command `loopjax`."""
    code = main()
    if code == INTERRUPTED:
        # An interpreter that ends while XLA compiles in another thread may crash.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


# What a verb needs is imported in it: `--help` is quick, and JAX must not be up before several
# processes have met.


def _train(argv: list[str]) -> int:
    from loopjax.config_flags import parse

    config, values = parse("train", VERBS["train"], argv, _run_flags, required=("workdir",))
    _meet(values)
    return _trained(config, values)


def _finetune(argv: list[str]) -> int:
    from absl import flags

    from loopjax.config_flags import parse

    def define(values):
        one = {"flag_values": values}
        flags.DEFINE_string("checkpoint", None, "DIR[@STEP] of a run, or imported", **one)
        flags.DEFINE_string("pairs", None, "FILE.jsonl,... or PRIMITIVE:N,...", **one)
        _run_flags(values)

    def make(values):
        from loopjax.finetune import config_for

        _meet(values)  # reading a checkpoint brings JAX up
        return config_for(values.checkpoint, values.pairs)

    required = ("checkpoint", "pairs", "workdir")
    return _trained(*parse("finetune", VERBS["finetune"], argv, define, required, make))


def _run_flags(values) -> None:
    from absl import flags

    one = {"flag_values": values}
    flags.DEFINE_string("workdir", None, "directory of the run", **one)
    flags.DEFINE_string("coordinator", None, "host:port of process 0, for several", **one)
    flags.DEFINE_integer("num_processes", None, "how many processes", **one)
    flags.DEFINE_integer("process_id", None, "which one this is", **one)
    flags.DEFINE_bool("distributed", False, "several, found by the cluster (TPU, Slurm)", **one)


def _meet(values) -> None:
    """Brings several processes together."""
    import jax
    from jax.experimental import multihost_utils

    if values.coordinator or values.distributed:
        jax.distributed.initialize(values.coordinator, values.num_processes, values.process_id)
        # The first collective has to be entered by all within 30 s on the CPU (Gloo): make it
        # here, where the processes have just met, not after each has opened its data.
        multihost_utils.sync_global_devices("start")


def _trained(config, values) -> int:
    from loopjax.train import train

    train(config, values.workdir)
    return 0


def _sweep(argv: list[str]) -> int:
    import jax

    # The accelerators of this machine are for the runs.
    jax.config.update("jax_platforms", "cpu")
    from loopjax.cli import sweep

    return sweep.sweep(argv)


def _results(argv: list[str]) -> int:
    from loopjax.cli import sweep

    return sweep.results(argv)


def _flops(argv: list[str]) -> int:
    from absl import flags

    from loopjax import cost
    from loopjax.config_flags import parse

    def define(values):
        flags.DEFINE_bool("json", False, "one JSON object", flag_values=values)

    config, values = parse("flops", VERBS["flops"], argv, define)
    result = cost.flops_of(config)
    print(json.dumps(result) if values.json else cost.flops_text(result))
    return 0


def _plan(argv: list[str]) -> int:
    from absl import flags

    from loopjax import cost
    from loopjax.config_flags import parse

    def define(values):
        one = {"flag_values": values}
        flags.DEFINE_integer("devices", 1, "how many devices", lower_bound=1, **one)
        flags.DEFINE_string("memory", "", "memory of a device (80GB, 40GiB)", **one)
        flags.DEFINE_float("peak-tflops", 990.0, "peak of a device", lower_bound=1e-6, **one)
        flags.DEFINE_float("mfu", 0.4, "share of it that is reached", 1e-6, 1.0, **one)
        flags.DEFINE_enum("platform", "gpu", ["gpu", "tpu", "cpu"], "what it runs on", **one)
        flags.DEFINE_bool("json", False, "one JSON object", **one)

    config, values = parse("plan", VERBS["plan"], argv, define)
    try:
        size = arguments.size(values.memory) if values.memory else 0
    except argparse.ArgumentTypeError as error:
        raise UserError(f"--memory: {error}") from None
    peak = 1e12 * values["peak-tflops"].value
    machine = cost.Machine(values.devices, size, peak, values.mfu, values.platform)
    result = cost.plan_of(config, machine)
    print(json.dumps(result) if values.json else cost.plan_text(result))
    return 0


def _prepare_parser() -> argparse.ArgumentParser:
    from loopjax.data.prepare import job, recipes

    parser = arguments.parser("prepare", job.__doc__)
    parser.argument_default = argparse.SUPPRESS  # what is not given is left to `prepare`

    def add(flag, help, **kwargs):
        parser.add_argument(flag, help=help, **kwargs)

    add("--output", "a new directory, or that of an unfinished job", metavar="DIR", required=True)
    add(
        "--input", ".jsonl, .parquet, text files (.gz, .zst), or directories of such",
        dest="inputs", nargs="+", metavar="PATH",
    )  # fmt: skip
    add("--dataset", "instead: a Hugging Face dataset, or a directory of one", metavar="ID|DIR")
    add("--subset", "of the dataset", metavar="NAME")
    add("--split", "of the dataset (default train)", metavar="NAME")
    add("--revision", "of the dataset on the hub (default the newest)", metavar="COMMIT")
    names = ", ".join(recipes.RECIPES)
    add("--recipe", f"instead: a corpus by name ({names}), a folder a source", metavar="NAME")
    add("--only", "some of the sources of the recipe", nargs="+", metavar="SOURCE")
    add(
        "--tokenizer", "bytes (default), a tokenizer.json, its directory, a repository of the hub",
        metavar="bytes|PATH|ID",
    )  # fmt: skip
    add("--eos", "end of document, if not what the tokenizer's files name", metavar="TOKEN")
    add("--text-key", "the field or column of the text (default text)", metavar="NAME")
    add("--text-url", "fetch the texts, gzipped, from PREFIX + that field", metavar="PREFIX")
    add("--heldout", "fraction held out, by hash (default 0.01)", type=float, metavar="F")
    add(
        "--heldout-input", "files that are the held-out split instead",
        dest="heldout_inputs", nargs="+", metavar="PATH",
    )  # fmt: skip
    add(
        "--shard-size",
        "of the input of a shard (default 256MB)",
        type=arguments.size,
        metavar="SIZE",
    )
    add(
        "--pieces", "only the first N shards, to try a large corpus",
        dest="first_pieces", type=int, metavar="N",
    )  # fmt: skip
    add("--processes", "that work at a time (default 1)", type=int, metavar="N")
    return parser


def _prepare(argv: list[str]) -> int:
    from loopjax.data.prepare import job

    options = vars(_prepare_parser().parse_args(argv))
    if "recipe" in options:
        return _prepare_recipe(**options)
    for flag in ("only", "subset", "split", "revision"):
        needed = "recipe" if flag == "only" else "dataset"
        if flag in options and needed not in options:
            raise UserError(f"--{flag} goes with --{needed}")
    manifest = job.prepare(options.pop("inputs", ()), options.pop("output"), **options)
    for split, counts in manifest["splits"].items():
        print(
            f"{split}: {counts['documents']:,} documents, {counts['tokens']:,} tokens, "
            f"{len(counts['shards'])} shard(s)"
        )
    return 0


def _prepare_recipe(recipe: str, output: str, only=(), **options) -> int:
    from loopjax.data.prepare import job

    free = {"heldout", "heldout_inputs", "first_pieces", "processes"}
    for key in options:
        if key not in free:
            flag = {"inputs": "input"}.get(key, key.replace("_", "-"))
            raise UserError(f"--{flag} does not go with --recipe, which settles it")
    mixtures = job.prepare_recipe(recipe, output, only, **options)
    print("train with")
    for field, mixture in mixtures:
        print(f"  --config.data_dir={output} --{field}='{json.dumps(mixture)}'")
    return 0


def _data(argv: list[str]) -> int:
    from loopjax.data import show

    parser = arguments.parser("data", show.__doc__)
    add = parser.add_argument
    add("directory", metavar="DIR", help="made by loopjax prepare, or a folder of such")
    add("--split", choices=show.SPLITS, default="train", help="of the samples (default train)")
    add("--samples", type=int, default=3, metavar="N", help="decoded per source (default 3)")
    add("--seed", type=int, default=0, help="that draws them (default 0)")
    add("--verify", action="store_true", help="hash every shard and name those that differ")
    add("--json", action="store_true", help="print JSON")
    args = parser.parse_args(argv)
    shown = show.look(args.directory, args.split, args.samples, args.seed)
    print(json.dumps(shown, indent=1) if args.json else show.as_text(shown))
    if args.verify:
        show.verify(args.directory)
    return 0


def _report(argv: list[str]) -> int:
    """Compare any number of models in one HTML page that needs nothing beside it.

    Results below a run's directory are found by themselves; others go to the model that they say
    they are of. The page ends with the commands for what is missing.
    """
    import jax

    # The accelerators of this machine may belong to the runs that are looked at.
    jax.config.update("jax_platforms", "cpu")
    from loopjax.report import page

    parser = arguments.parser("report", _report.__doc__)
    add = parser.add_argument
    add("output", metavar="OUT.html")
    add(
        "paths", nargs="+", metavar="[LABEL=]PATH",
        help="a run, a checkpoint (DIR or DIR@STEP), or results of analyze, intervene, eval, icl, nll",
    )  # fmt: skip
    add("--title", default="Models compared", help="of the page")
    add("--figures", metavar="DIR", help="write each figure there too, as PDF and PNG")
    args = parser.parse_args(argv)
    group = page.Group("", "", args.paths)
    page.write_report(args.output, [group], args.title, figures=args.figures)
    print(args.output)
    return 0


def _inspect(argv: list[str]) -> int:
    import jax

    # The accelerators of this machine may belong to the run that is looked at.
    jax.config.update("jax_platforms", "cpu")
    from loopjax.plots import figure
    from loopjax.weights import numbers, plot, terminal

    parser = arguments.parser("inspect", numbers.__doc__)
    add = parser.add_argument
    add(
        "directory",
        metavar="DIR",
        help="a run's directory, or that of its checkpoints; DIR@STEP too",
    )
    add("--step", type=int, metavar="N", help="the checkpoint of this step (default: the newest)")
    add("--layers", action="store_true", help="norms by layer, cosines of neighbors and copies")
    add("--against", metavar="DIR[@STEP]", help="compare with another checkpoint")
    add("--plot", metavar="FILE.png", help="draw how alike the layers are, and their lineage")
    add("--json", action="store_true", help="all of it as one JSON object")
    args = parser.parse_args(argv)
    if args.plot:
        figure.new(1, 1)  # is matplotlib there?
    layers = args.layers or bool(args.plot)
    found = numbers.inspect(args.directory, args.step, layers=layers, other=args.against)
    if args.json:
        print(json.dumps(numbers.finite(found)))
    else:
        color = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        print(terminal.render(found, layers=args.layers, color=color), end="")
    if args.plot:
        plot.write(args.plot, found)
    return 0


def _eval(argv: list[str]) -> int:
    from loopjax.cli import evals

    return evals.evaluate(argv)


def _icl(argv: list[str]) -> int:
    from loopjax.cli import evals

    return evals.icl(argv)


def _nll(argv: list[str]) -> int:
    from loopjax.cli import evals

    return evals.nll(argv)


def _generate(argv: list[str]) -> int:
    from loopjax.cli import evals

    return evals.generate(argv)


def _analyze(argv: list[str]) -> int:
    from loopjax.cli import analysis

    return analysis.analyze(argv)


def _intervene(argv: list[str]) -> int:
    from loopjax.cli import analysis

    return analysis.intervene(argv)


def _import_hf(argv: list[str]) -> int:
    from loopjax.cli import interop

    return interop.import_hf(argv)


def _export_hf(argv: list[str]) -> int:
    from loopjax.cli import interop

    return interop.export_hf(argv)


if __name__ == "__main__":
    sys.exit(main())
