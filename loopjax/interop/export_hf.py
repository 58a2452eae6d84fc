"""A checkpoint as a model directory of Hugging Face: config.json, safetensors, tokenizer.

Weights are copied in blocks, as in `import_hf`. Layers that a plan executes more than once are
written as often, in the order of execution, because most Hugging Face models have no loops; an Ouro
and a Huginn are written with their loop (`loop_export.py`).
"""

import contextlib
import dataclasses
import sys

import numpy as np

from loopjax.checkpoint import run_directory
from loopjax.checkpoint_files import chosen_plan, context_of
from loopjax.data import tokenizers
from loopjax.depth import DepthPlan
from loopjax.errors import UserError
from loopjax.files import write_json
from loopjax.interop import architectures, files, loop_export, loop_families, tokenizer_files
from loopjax.interop.tensors import Part, Writer
from loopjax.model_config import DTYPES, ModelConfig
from loopjax.progress import Progress
from loopjax.weights.saved import Leaf, Saved, open_saved
from loopjax.weights.stored import BLOCK

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
    ema: bool = False,
) -> dict:
    """Writes a model directory for `AutoModelForCausalLM.from_pretrained`; returns its config.json.

    Args:
      checkpoint: directory of a run or of its checkpoints; "DIR@STEP" for a step.
      directory: a new directory.
      step: step of the checkpoint; the newest by default.
      depth: depth plan to export with; the checkpoint's own by default.
      untie: whether a layer that is executed again may be written again.
      dtype: "float32" or "bfloat16"; by default the type it was imported from, else float32.
      shard_size: bytes of tensors per file.
      ema: whether to write the moving average of the parameters in their place.

    Raises UserError if the checkpoint cannot be read or the model cannot be written; then no file
    is left behind.
    """
    directory = files.new_path(directory)
    saved = open_saved(checkpoint, step)
    meta = saved.meta
    leaves = saved.average() if ema else saved.params()
    run = run_directory(saved.path.parent)
    source = meta.get("source", {})
    plan = chosen_plan(meta, depth)
    if plan.windows:
        raise UserError(
            f"--depth={plan} repeats {plan.windows[0]} in steps that no untied stack computes; export plain "
            "loops"
        )
    cfg = ModelConfig(**meta["model"])
    written = architectures.written_layers(cfg, plan)
    if written.is_looped and not untie:
        raise UserError(
            f"plan {plan} executes {plan.n_unique} layers as {plan.n_effective}, which requires writing "
            f"{plan.n_effective} layers (remove --no-untie)"
        )
    dtype = dtype or (source["dtype"] if source.get("dtype") in DTYPES else "float32")
    if (run / tokenizers.FILE).is_file():
        files.check_tokenizer(run)
    ids = source.get("token_ids") or files.token_ids(run, architectures.TOKEN_IDS)
    without_bos = meta.get("add_bos") is False
    if without_bos:  # a text without context follows the end of the document before
        ids = ids | {"bos_token_id": ids["eos_token_id"]}
    context = context_of(meta)
    config = architectures.write_config(cfg, plan, context, dtype, ids)
    family = config["model_type"]
    if cfg.exit_gate and family != loop_families.OURO:  # it changes nothing that the model computes
        leaves = {name: leaf for name, leaf in leaves.items() if "exit_gate" not in name}
        print("the exit gate is left out: the model runs at full depth", file=sys.stderr)
    with files.new(directory) as temporary:
        if family == loop_families.HUGINN:
            parts = loop_export.huginn_parts(cfg, plan, context)
            fixed = {loop_export.FREQUENCIES: loop_export.huginn_frequencies(cfg, context)}
            layout = Layout(*parts, fixed, alone=True)
        elif family == loop_families.OURO:
            layout = Layout(*loop_export.ouro_gate(cfg))
        else:
            layout = Layout(architectures.zero_biases(cfg, written.n_effective))
        write_tensors(saved, leaves, temporary, layout, written, dtype, shard_size)
        write_json(temporary / "config.json", config)
        files.copy((*files.TOKENIZER, files.GENERATION), run, temporary)
        if without_bos:
            tokenizer_files.leave_out_bos(temporary)
    if without_bos and (run / tokenizers.FILE).is_file():
        print(
            "the exported tokenizer adds no BOS to a text, because the model was trained without it",
            file=sys.stderr,
        )
    if not (run / tokenizers.FILE).is_file():
        reason = "the model reads bytes" if meta.get("tokenizer") == "bytes" else f"{run} has none"
        print(f"no {tokenizers.FILE} was written: {reason}", file=sys.stderr)
    if family == loop_families.HUGINN:
        print(loop_export.NOTE, file=sys.stderr)
    return config


@dataclasses.dataclass(frozen=True)
class Layout:
    """Tensors of a family besides those of the leaves.

    Attributes:
      tensors: {name: shape}; zero where nothing is written.
      parts: {tensor of a leaf: its place in one of them}.
      fixed: values of some of the tensors.
      alone: whether there are no others: a leaf that has no place in them has to be zero.
    """

    tensors: dict[str, tuple[int, ...]]
    parts: dict[str, Part] = dataclasses.field(default_factory=dict)
    fixed: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    alone: bool = False


def write_tensors(
    saved: Saved, leaves: dict[str, Leaf], directory, layout: Layout, plan: DepthPlan, dtype: str,
    shard_size: int,
) -> None:  # fmt: skip
    """Writes the safetensors of the parameters of a checkpoint, the layers in the order of a plan."""
    n_layers = plan.n_effective
    names = {}  # of the tensors of each leaf
    tensors = dict(layout.tensors)
    for name, leaf in leaves.items():
        shape = (n_layers, *leaf.shape[1:]) if leaf.stacked else leaf.shape
        of_leaf = architectures.tensors(name, shape)
        names[name] = list(of_leaf)
        if not layout.alone:
            tensors |= {n: s for n, s in of_leaf.items() if n not in layout.parts}
    if not layout.alone:
        tensors = {name: tensors[name] for name in sorted(tensors, key=architectures.position)}
    progress = Progress(sum(leaf.bytes for leaf in leaves.values()), "exporting", in_bytes=True)
    writing = Writer(directory, tensors, dtype, shard_size, layout.parts)
    with contextlib.closing(writing) as writer:
        for name, values in layout.fixed.items():
            writer.write([name], 0, values.astype(writer.dtype))
        for name, leaf in leaves.items():
            order = plan.order if leaf.stacked else (0,)
            cuts = architectures.cuts(name, leaf.shape, leaf.chunk, BLOCK)
            for cut, block in zip(cuts, saved.read(leaf, cuts, progress), strict=True):
                start = cut[architectures.rows_axis(name, leaf.shape)].start
                for i, layer in enumerate(block if leaf.stacked else [block]):
                    uses = [n for n, u in zip(names[name], order, strict=True) if u == i]
                    rows = np.empty(architectures.turned(name, layer.shape), writer.dtype)
                    architectures.turn(name, layer, rows)
                    if not np.isfinite(rows.astype(np.float32)).all():
                        raise UserError(
                            f"{leaf.name} of {saved.path} has values that are NaN or infinite in "
                            f"{dtype}; nothing is exported"
                        )
                    if uses[0] not in writer.places:
                        if rows.any():
                            raise UserError(
                                f"{leaf.name} of {saved.path} is not zero, and a model of this family has "
                                "no such weights; nothing is exported"
                            )
                        continue
                    writer.write(uses, start, rows)
    progress.close()
