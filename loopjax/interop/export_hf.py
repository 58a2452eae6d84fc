"""A checkpoint as a model directory of Hugging Face: config.json, safetensors, tokenizer.

Weights go from file to file by blocks, as in `import_hf`. Layers that a plan runs more than once
are written as often, in the order of execution: nothing there knows of loops.
"""

import contextlib
import json
import pathlib
import sys

import numpy as np

from loopjax.checkpoint import chosen_plan, run_directory
from loopjax.data import tokenizers
from loopjax.depth import DepthPlan
from loopjax.errors import UserError
from loopjax.interop import architectures, files
from loopjax.interop.tensors import Writer
from loopjax.model_config import DTYPES, ModelConfig
from loopjax.progress import Progress
from loopjax.weights.saved import BLOCK, Saved, open_saved

SHARD_SIZE = 5 * 10**9


def export_hf(
    checkpoint: str,
    directory,
    *,
    step: int | None = None,
    depth: str | None = None,
    untie: bool = True,
    dtype: str | None = None,
    shard_size: int = SHARD_SIZE,
) -> dict:
    """Makes `directory` a model that `AutoModelForCausalLM.from_pretrained` reads.

    Args:
      checkpoint: a run's directory, or that of its checkpoints; "DIR@STEP" too.
      directory: a new one.
      step: which checkpoint; the newest by default.
      depth: the plan to run it by, instead of its own.
      untie: whether a layer that is run again may be written again.
      dtype: "float32" or "bfloat16"; by default what it was imported from, else float32.
      shard_size: bytes of tensors in a file.

    Returns its config.json. Raises UserError when it cannot be read or written; nothing is left
    behind then.
    """
    directory = pathlib.Path(directory).resolve()
    files.check_new(directory)
    saved = open_saved(checkpoint, step)
    meta, run = saved.meta, run_directory(saved.path.parent)
    source = meta.get("source", {})
    plan = chosen_plan(meta, depth)
    if plan.is_looped and not untie:
        raise UserError(
            f"plan {plan} runs {plan.n_unique} layers as {plan.n_effective}, which can be written "
            f"only as {plan.n_effective} layers (leave out --no-untie)"
        )
    cfg = ModelConfig(**meta["model"])
    dtype = dtype or (source["dtype"] if source.get("dtype") in DTYPES else "float32")
    ids = source.get("token_ids") or files.token_ids(run, architectures.TOKEN_IDS)
    seq_len = meta["config"]["seq_len"]
    config = architectures.write_config(cfg, plan.n_effective, seq_len, dtype, ids)
    with files.new(directory) as made:
        write_tensors(saved, made, cfg, plan, dtype, shard_size)
        (made / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        files.copy((*files.TOKENIZER, files.GENERATION), run, made)
    if not (run / tokenizers.FILE).is_file():
        why = "the model reads bytes" if meta.get("tokenizer") == "bytes" else f"{run} has none"
        print(f"no {tokenizers.FILE} is written: {why}", file=sys.stderr)
    return config


def write_tensors(
    saved: Saved, directory, cfg: ModelConfig, plan: DepthPlan, dtype: str, shard_size: int
) -> None:
    """Writes the safetensors of a checkpoint, run by a plan."""
    leaves, n_layers = saved.params(), plan.n_effective
    names, tensors = {}, architectures.zero_biases(cfg, n_layers)
    for name, leaf in leaves.items():
        shape = (n_layers, *leaf.shape[1:]) if leaf.stacked else leaf.shape
        found = architectures.tensors(name, shape)
        names[name] = list(found)
        tensors |= found
    tensors = {name: tensors[name] for name in sorted(tensors, key=architectures.position)}
    progress = Progress(sum(leaf.bytes for leaf in leaves.values()), "exporting", in_bytes=True)
    with contextlib.closing(Writer(directory, tensors, dtype, shard_size)) as writer:
        for name, leaf in leaves.items():
            order = plan.order if leaf.stacked else (0,)
            cuts = architectures.cuts(name, leaf.shape, leaf.chunk, BLOCK)
            for cut, block in zip(cuts, saved.read(leaf, cuts, progress), strict=True):
                start = cut[architectures.rows_axis(name, leaf.shape)].start
                for i, layer in enumerate(block if leaf.stacked else [block]):
                    uses = [n for n, u in zip(names[name], order, strict=True) if u == i]
                    rows = np.empty(architectures.turned(name, layer.shape), writer.dtype)
                    architectures.turn(name, layer, rows)
                    writer.write(uses, start, rows)
    progress.close()
