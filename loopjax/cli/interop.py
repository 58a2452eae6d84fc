"""Command lines of `loopjax import-hf`, `loopjax import-orbax` and `loopjax export-hf`."""

from loopjax.cli import arguments
from loopjax.errors import UserError


def import_hf(argv: list[str]) -> int:
    """Convert a Hugging Face model to a checkpoint of step 0, without optimizer state.

    Weights are copied block by block, which takes a part of the model's memory only.

    Example:
      loopjax import-hf HuggingFaceTB/SmolLM2-135M checkpoints/smollm2
    """
    parser = arguments.parser("import-hf", import_hf.__doc__, buckets=False)
    add = parser.add_argument
    add(
        "source",
        metavar="DIR|ID",
        help="directory with config.json, safetensors and tokenizer, or repository on the hub",
    )
    add("directory", metavar="CHECKPOINT_DIR", help="new directory of the checkpoint")
    add("--revision", metavar="COMMIT", help="commit of the repository (default: the newest)")
    add("--no-tokenizer", action="store_true", help="import without the tokenizer")
    args = parser.parse_args(argv)
    arguments.use_cpu()
    from loopjax.interop import import_hf as importing

    meta = importing.import_hf(
        args.source,
        args.directory,
        revision=args.revision,
        tokenizer=not args.no_tokenizer,
    )
    source = meta["source"]
    print(
        f"{args.directory}: {source['architecture']} of {meta['plan']} layers, context "
        f"{meta['config']['seq_len']:,}, from {source['dtype']}"
    )
    return 0


def import_orbax(argv: list[str]) -> int:
    """Convert an Orbax checkpoint of another program to a checkpoint of step 0.

    A map says which array holds which parameter, and what the arrays do not show; it is one of
    maxtext, maxtext-qwen and blocks (a Llama in nanodo's layout), or a TOML file (docs/conversion.md).
    Optimizer states are left out.

    Examples:
      loopjax import-orbax maxtext/checkpoints@10000 checkpoints/mine --map maxtext --dry-run
      loopjax import-orbax other/run checkpoints/other --map other.toml --set rope_theta=500000
    """
    parser = arguments.parser("import-orbax", import_orbax.__doc__, buckets=False)
    add = parser.add_argument
    add("source", metavar="DIR[@STEP]", help="checkpoint, or directory of checkpoints (the newest)")
    add("directory", metavar="CHECKPOINT_DIR", help="new directory of the checkpoint")
    add("--map", required=True, metavar="NAME|FILE", help="map by name, or TOML file")
    add(
        "--set",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="facts to replace in the map's [model], and layers_axis",
    )
    add(
        "--tokenizer",
        metavar="bytes|PATH",
        help="tokenizer of the model: tokenizer.json, or its directory (default: none)",
    )
    add("--dry-run", action="store_true", help="print what would be read from where; write nothing")
    args = parser.parse_args(argv)
    settings = dict(part.partition("=")[::2] for part in args.set)
    for part in args.set:
        if "=" not in part:
            raise UserError(f"--set {part!r} must be KEY=VALUE, like rope_theta=500000")
    arguments.use_cpu()
    from loopjax.interop import import_orbax as importing
    from loopjax.interop import match_table

    match = importing.plan_import(args.source, args.map, settings)
    if args.dry_run:
        print(match_table.table(match))
        return 0
    meta = importing.import_orbax(match, args.directory, args.tokenizer)
    source = meta["source"]
    print(
        f"{args.directory}: {meta['plan']} layers, context {meta['config']['seq_len']:,}, by "
        f"{source['architecture']}, from {source['dtype']}"
    )
    print("\n".join(match_table.summary(match)))
    return 0


def export_hf(argv: list[str]) -> int:
    """Convert a checkpoint to a Hugging Face model: config.json, safetensors, tokenizer.

    A layer that the plan runs several times is written as often: the exported model has no loops, unless it
    is an Ouro or a Huginn, which keep theirs.

    Example:
      loopjax export-hf runs/lidas exported/lidas
    """
    from loopjax.model_config import DTYPES

    parser = arguments.parser("export-hf", export_hf.__doc__, buckets=False)
    add = parser.add_argument
    add("checkpoint", metavar="DIR[@STEP]", help="directory of a run or of a checkpoint")
    add("directory", metavar="DIR", help="new directory of the exported model")
    add(
        "--step",
        type=arguments.whole,
        metavar="N",
        help="step of the checkpoint (default: the newest)",
    )
    add("--depth", metavar="PLAN", help="plan to export (default: as trained)")
    add("--ema", action="store_true", help="moving average of the weights (config.ema)")
    add("--no-untie", action="store_true", help="refuse a plan that loops")
    add("--dtype", choices=DTYPES, help="type of the weights (default: as imported, else float32)")
    add(
        "--shard-size",
        type=arguments.size,
        metavar="SIZE",
        help="largest size of a file of weights (default 5GB)",
    )
    args = parser.parse_args(argv)
    arguments.use_cpu()
    from loopjax.interop import export_hf as exporting

    config = exporting.export_hf(
        args.checkpoint,
        args.directory,
        step=args.step,
        depth=args.depth,
        untie=not args.no_untie,
        dtype=args.dtype,
        shard_size=args.shard_size or exporting.SHARD_SIZE,
        ema=args.ema,
    )
    layers = config.get("num_hidden_layers") or config["n_layers"]
    print(
        f"{args.directory}: {config['architectures'][0]} of {layers} layers, in {config['torch_dtype']}"
    )
    return 0
