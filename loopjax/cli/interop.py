"""`loopjax import-hf` and `loopjax export-hf`."""

import jax

from loopjax.cli import arguments
from loopjax.interop import export_hf as exporting
from loopjax.interop import import_hf as importing
from loopjax.model_config import DTYPES


def import_hf(argv: list[str]) -> int:
    """Runs `loopjax import-hf`."""
    parser = arguments.parser("import-hf", importing.__doc__)
    add = parser.add_argument
    add("source", metavar="DIR|ID", help="config.json, safetensors and tokenizer; or on the hub")
    add("directory", metavar="CHECKPOINT_DIR", help="a new directory")
    add("--revision", metavar="COMMIT", help="of the repository on the hub (default the newest)")
    add("--no-tokenizer", action="store_true", help="leave the tokenizer out, or do without one")
    args = parser.parse_args(argv)
    jax.config.update("jax_platforms", "cpu")  # weights go from file to file
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


def export_hf(argv: list[str]) -> int:
    """Runs `loopjax export-hf`."""
    parser = arguments.parser("export-hf", exporting.__doc__)
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT_DIR", help="a run's directory; DIR@STEP too")
    add("directory", metavar="DIR", help="a new directory")
    add("--step", type=int, metavar="N", help="the checkpoint of this step (default the newest)")
    add("--depth", metavar="PLAN", help="run by another plan of as many unique layers")
    add("--no-untie", action="store_true", help="refuse a plan that loops")
    add("--dtype", choices=DTYPES, help="of the weights (default: as imported, else float32)")
    add("--shard-size", type=arguments.size, metavar="SIZE", help="of a file of weights (default 5GB)",
        default=exporting.SHARD_SIZE)  # fmt: skip
    args = parser.parse_args(argv)
    jax.config.update("jax_platforms", "cpu")  # weights go from file to file
    config = exporting.export_hf(
        args.checkpoint,
        args.directory,
        step=args.step,
        depth=args.depth,
        untie=not args.no_untie,
        dtype=args.dtype,
        shard_size=args.shard_size,
    )
    print(
        f"{args.directory}: {config['architectures'][0]} of {config['num_hidden_layers']} layers, "
        f"in {config['torch_dtype']}"
    )
    return 0
