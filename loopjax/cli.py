"""`loopjax VERB ...`: one thin command per verb."""

import argparse
import difflib
import sys

from loopjax.errors import UserError

VERBS = {
    "train": "train a model, or go on with a run that was stopped",
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
        return {"train": _train, "prepare": _prepare, "report": _report}[verb](rest)
    except UserError as error:
        print(f"loopjax {verb}: {error}", file=sys.stderr)
        return 2


def _train(argv: list[str]) -> int:
    # absl defines its flags when this module is imported, so only `train` imports it.
    from loopjax import train_flags

    return train_flags.main(argv)


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
