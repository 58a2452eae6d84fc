"""`loopjax VERB ...`: one thin command per verb."""

import argparse
import difflib
import json
import sys

from loopjax.errors import UserError

VERBS = {
    "train": "train a model, or go on with a run that was stopped",
    "flops": "parameters and FLOPs of a config",
    "plan": "sharding, memory and time of a config on devices that need not be there",
    "prepare": "turn text files into token shards",
    "report": "compare runs in one HTML page",
}


def main(argv: list[str] | None = None) -> int:
    """Runs a verb; 0 on success, 2 when the user can mend what is wrong."""
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
        return globals()[f"_{verb}"](rest)
    except UserError as error:
        print(f"loopjax {verb}: {error}", file=sys.stderr)
        return 2


# What a verb needs is imported in it: `--help` is quick, and JAX must not be up before several
# processes have met.


def _train(argv: list[str]) -> int:
    import jax
    from absl import flags
    from jax.experimental import multihost_utils

    from loopjax.flags import parse

    def define(values):
        one = {"flag_values": values}
        flags.DEFINE_string("workdir", None, "directory of the run", **one)
        flags.DEFINE_string("coordinator", None, "host:port of process 0, for several", **one)
        flags.DEFINE_integer("num_processes", None, "how many processes", **one)
        flags.DEFINE_integer("process_id", None, "which one this is", **one)
        flags.DEFINE_bool("distributed", False, "several, found by the cluster (TPU, Slurm)", **one)

    config, values = parse("train", VERBS["train"], argv, define, required=("workdir",))
    if values.coordinator or values.distributed:
        jax.distributed.initialize(values.coordinator, values.num_processes, values.process_id)
        # The first collective has to be entered by all within 30 s on the CPU (Gloo): make it
        # here, where the processes have just met, not after each has opened its data.
        multihost_utils.sync_global_devices("start")
    from loopjax.train import train

    train(config, values.workdir)
    return 0


def _flops(argv: list[str]) -> int:
    from absl import flags

    from loopjax import cost
    from loopjax.flags import parse

    def define(values):
        flags.DEFINE_bool("json", False, "one JSON object", flag_values=values)

    config, values = parse("flops", VERBS["flops"], argv, define)
    result = cost.flops_of(config)
    print(json.dumps(result) if values.json else cost.flops_text(result))
    return 0


def _plan(argv: list[str]) -> int:
    from absl import flags

    from loopjax import cost
    from loopjax.flags import parse

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
        size = cost.parse_bytes(values.memory) if values.memory else 0
    except ValueError as error:
        raise UserError(f"--memory: {error}") from None
    peak = 1e12 * values["peak-tflops"].value
    machine = cost.Machine(values.devices, size, peak, values.mfu, values.platform)
    result = cost.plan_of(config, machine)
    print(json.dumps(result) if values.json else cost.plan_text(result))
    return 0


def _parser(verb: str, text: str) -> argparse.ArgumentParser:
    keep_lines = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(
        prog=f"loopjax {verb}", description=text, formatter_class=keep_lines
    )


def _prepare(argv: list[str]) -> int:
    from loopjax.data import prepare

    parser = _parser("prepare", prepare.__doc__)
    add = parser.add_argument
    add("--input", nargs="+", required=True, metavar="FILE", help=".jsonl or text files; .gz too")
    add("--output", required=True, metavar="DIR", help="a new directory")
    add("--tokenizer", default="bytes", metavar="bytes|FILE", help="bytes, or a tokenizer.json")
    add("--heldout", type=float, default=0.01, help="fraction held out, by hash (default 0.01)")
    add("--heldout-input", nargs="+", default=(), metavar="FILE", help="the held-out files instead")
    add("--text-key", default="text", help="the field of JSON lines (default text)")
    add("--eos", metavar="TOKEN", help="the end-of-document token of the tokenizer")
    args = parser.parse_args(argv)
    manifest = prepare.prepare(
        args.input,
        args.output,
        args.tokenizer,
        heldout=args.heldout,
        heldout_inputs=args.heldout_input,
        text_key=args.text_key,
        eos=args.eos,
    )
    for split, counts in manifest["splits"].items():
        print(
            f"{split}: {counts['documents']:,} documents, {counts['tokens']:,} tokens, "
            f"{len(counts['shards'])} shard(s)"
        )
    return 0


def _report(argv: list[str]) -> int:
    from loopjax import report

    parser = _parser("report", report.__doc__)
    parser.add_argument("output", metavar="OUT.html")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="directories of finished runs")
    args = parser.parse_args(argv)
    report.write_report(args.output, [report.Group("Runs", "", args.runs)])
    print(args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
