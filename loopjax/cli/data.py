"""Command lines of `loopjax prepare` and `loopjax data`."""

import argparse
import json

from loopjax.cli import arguments
from loopjax.errors import UserError


def prepare(argv: list[str]) -> int:
    """Tokenize text into shards for training.

    Input is one of --input, --dataset and --recipe. An interrupted job resumes when the same
    command is run again.

    Examples:
      loopjax prepare --input corpus/*.jsonl --tokenizer bytes --output data/web
      loopjax prepare --recipe smollm --output data

    Output:
      DIR/manifest.json             counts, hashes, tokenizer, source; written last
      DIR/tokenizer.json            copy of the tokenizer file, if there is one
      DIR/train/00000.arrayrecord   token ids, one shard per piece of the input
      DIR/heldout/00000.arrayrecord
      DIR/unfinished/               state of a running job
    """
    from loopjax.data.prepare import job

    options = vars(_prepare_parser().parse_args(argv))
    if "recipe" in options:
        return _prepare_recipe(**options)
    for flag in ("only", "subset", "split", "revision"):
        needed = "recipe" if flag == "only" else "dataset"
        if flag in options and needed not in options:
            raise UserError(f"--{flag} goes with --{needed}")
    if "input_format" in options and not {"inputs", "heldout_inputs"} & options.keys():
        raise UserError("--input-format goes with --input")
    manifest = job.prepare(options.pop("inputs", ()), options.pop("output"), **options)
    for split, counts in manifest["splits"].items():
        print(
            f"{split}: {counts['documents']:,} documents, {counts['tokens']:,} tokens, "
            f"{len(counts['shards'])} shard(s)"
        )
    return 0


def _prepare_parser() -> argparse.ArgumentParser:
    from loopjax.data.prepare import input_files, recipes

    parser = arguments.parser("prepare", prepare.__doc__, buckets=False)
    parser.argument_default = argparse.SUPPRESS  # options not given keep the defaults of `prepare`

    def add(flag, help, **kwargs):
        parser.add_argument(flag, help=help, **kwargs)

    add(
        "--output", "new directory, or directory of an unfinished job", metavar="DIR", required=True
    )
    add(
        "--input",
        "JSON lines, Parquet or text files (also .gz, .zst), or directories of such files",
        dest="inputs",
        nargs="+",
        metavar="PATH",
    )
    add("--dataset", "Hugging Face dataset to use instead of --input", metavar="ID|DIR")
    add("--subset", "subset (configuration) of --dataset", metavar="NAME")
    add("--split", "split of --dataset (default train)", metavar="NAME")
    add("--revision", "commit of --dataset on the hub (default: the newest)", metavar="COMMIT")
    names = ", ".join(recipes.RECIPES)
    add(
        "--recipe",
        f"known corpus to use instead of --input, one folder per source ({names})",
        metavar="NAME",
    )
    add("--only", "sources of --recipe to prepare (default: all)", nargs="+", metavar="SOURCE")
    add(
        "--tokenizer",
        "bytes (default), a tokenizer.json file, its directory, or a repository on the hub",
        metavar="bytes|PATH|ID",
    )
    add("--eos", "end-of-document token (default: as the tokenizer files define)", metavar="TOKEN")
    add("--text-key", "field or column that holds the text (default text)", metavar="NAME")
    add(
        "--text-url",
        "URL prefix of gzipped texts; the field of --text-key completes the URL",
        metavar="PREFIX",
    )
    parser.add_argument(
        "--input-format",
        choices=input_files.FORMATS,
        help="format of all inputs (default: the content of each file decides)",
    )
    add(
        "--max-document",
        "largest line or text; a longer one is an error (default 64MB)",
        type=arguments.size,
        metavar="SIZE",
    )
    add(
        "--heldout",
        "fraction of held-out documents (default 0.01)",
        type=arguments.number,
        metavar="F",
    )
    add(
        "--heldout-input",
        "files to use as the held-out split instead of --heldout",
        dest="heldout_inputs",
        nargs="+",
        metavar="PATH",
    )
    add(
        "--shard-size",
        "size of the input per shard (default 256MB)",
        type=arguments.size,
        metavar="SIZE",
    )
    add(
        "--pieces",
        "number of shards to prepare, to try a large corpus (default: all)",
        dest="first_pieces",
        type=arguments.positive,
        metavar="N",
    )
    add(
        "--processes",
        "number of worker processes (default 1)",
        type=arguments.positive,
        metavar="N",
    )
    return parser


def _prepare_recipe(recipe: str, output: str, only=(), **options) -> int:
    from loopjax.data.prepare import job

    free = {"heldout", "heldout_inputs", "first_pieces", "max_document", "processes"}
    for key in options:
        if key not in free:
            flag = {"inputs": "input"}.get(key, key.replace("_", "-"))
            raise UserError(f"--{flag} does not go with --recipe, which sets it")
    mixtures = job.prepare_recipe(recipe, output, only, **options)
    print("train with")
    for field, mixture in mixtures:
        print(f"  --config.data_dir={output} --{field}='{json.dumps(mixture)}'")
    return 0


def data(argv: list[str]) -> int:
    """Show prepared data: a table of counts, and samples of the text."""
    from loopjax.data import show

    parser = arguments.parser("data", data.__doc__, buckets=False)
    add = parser.add_argument
    add("directory", metavar="DIR", help="output of loopjax prepare, or a folder of such outputs")
    add("--split", choices=show.SPLITS, default="train", help="split to sample (default train)")
    add(
        "--samples",
        type=arguments.whole,
        default=3,
        metavar="N",
        help="samples per source (default 3)",
    )
    add("--seed", type=arguments.seed, default=0, metavar="N", help="sampling seed (default 0)")
    add("--verify", action="store_true", help="check every manifest, shard and token id")
    add("--json", action="store_true", help="output as JSON")
    args = parser.parse_args(argv)
    summary = show.look(args.directory, args.split, args.samples, args.seed)
    print(json.dumps(summary, indent=1) if args.json else show.as_text(summary))
    if args.verify:
        show.verify(args.directory)
    return 0
