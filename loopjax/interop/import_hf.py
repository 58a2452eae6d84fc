"""A model of the Hugging Face hub as a checkpoint of step 0: no config, no optimizer state.

Weights are copied in blocks of some rows of one tensor in every layer, so only a part of the model
is in memory.
"""

import sys

import numpy as np

from loopjax.checkpoint import save_params
from loopjax.data import tokenizers
from loopjax.errors import UserError
from loopjax.interop import architectures, files, loop_families, options, step_zero
from loopjax.interop.architectures import Described
from loopjax.interop.tensors import Tensor, open_tensors, stored_dtype
from loopjax.progress import Progress
from loopjax.weights.stored import BLOCK


def import_hf(source: str, directory, *, revision: str | None = None, tokenizer: bool = True):
    """Makes `directory` a run's directory with one checkpoint, of step 0; returns its meta.

    Args:
      source: a directory with config.json, safetensors and a tokenizer, or an ID of the hub.
      directory: a new directory.
      revision: revision of the repository on the hub; the newest by default.
      tokenizer: False for a model without a tokenizer.

    Raises UserError if the model cannot be read or represented; then nothing is written.
    """
    directory = files.new_path(directory)
    path = files.find(source, revision)
    config = files.read_json(path / "config.json")
    tensors = open_tensors(path)
    described = architectures.read_config(config, stored_dtype(tensors), len(tensors))
    tensors = loop_families.llama_tensors(tensors, config)
    described = architectures.with_gate(described, tensors)
    leaves = architectures.shapes(described.cfg, described.n_layers)
    tensors = check_tensors(tensors, described, leaves)
    if tokenizer and not (path / tokenizers.FILE).is_file():
        raise UserError(f"{path} has no {tokenizers.FILE}; use --no-tokenizer to import without it")
    if tokenizer:
        files.check_tokenizer(path)
    beside = (*files.TOKENIZER, files.GENERATION) if tokenizer else (files.GENERATION,)

    read = [path / "config.json", *sorted({tensor.path for tensor in tensors.values()})]
    read += [path / name for name in beside if (path / name).is_file()]
    stored = sum(file.stat().st_size for file in read)
    total = stored + 4 * sum(int(np.prod(shape)) for shape in leaves.values())
    progress = Progress(total, "importing", in_bytes=True)
    meta = {
        **step_zero.about(
            described.cfg,
            described.plan,
            described.seq_len,
            tokenizers.name_of(path / tokenizers.FILE) if tokenizer else None,
        ),
        "source": {
            "format": "huggingface",
            "from": source,
            "architecture": options.architecture(config, config["model_type"]),
            "dtype": stored_dtype(tensors),
            "token_ids": described.token_ids,
            "sha256": {file.name: files.sha256(file, progress) for file in read},
        },
    }
    with files.new(directory) as temporary:
        blocks = Blocks(tensors, leaves, progress)
        meta = save_params(temporary / "checkpoints", 0, leaves, blocks, meta)
        files.copy(beside, path, temporary)
    progress.close()
    for note in described.notes:
        print(note, file=sys.stderr)
    return meta


def check_tensors(
    stored: dict[str, Tensor], described: Described, leaves: dict
) -> dict[str, Tensor]:
    """The tensors of the leaves; raises UserError if one is missing or another one is left over.

    Tensors without information are ignored: rotary frequencies, a head equal to the embedding,
    output biases of zero.
    """
    cfg = described.cfg
    wanted = {}
    for leaf, shape in leaves.items():
        wanted |= architectures.tensors(leaf, shape)
    missing = sorted(wanted.keys() - stored.keys())
    if missing:
        more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(f"the tensor {missing[0]} is missing{more}")
    for name, shape in wanted.items():
        if stored[name].shape != shape:
            raise UserError(
                f"the tensor {name} has shape {_times(stored[name].shape)}, but config.json implies "
                f"{_times(shape)}"
            )
    rest = {
        name for name in stored.keys() - wanted.keys() if not name.endswith("rotary_emb.inv_freq")
    }
    embed, head = (architectures.TENSORS[leaf] for leaf in ("embed", "head"))
    if head in rest and cfg.tie_embeddings:
        if not equal(stored[head], stored[embed]):
            raise UserError(
                f"config.json has tie_word_embeddings=true, but {head} differs from {embed}"
            )
        rest.remove(head)
    if described.output_bias:
        for name in (architectures.OUTPUT_BIAS.format(i) for i in range(described.n_layers)):
            if name in rest and stored[name].rows(slice(0, cfg.d_model)).any():
                raise UserError(
                    f"the tensor {name} is not zero; biases of output projections are not supported"
                )
            rest.discard(name)
    if rest:
        raise UserError(f"the tensor {min(rest)} does not belong to the model of config.json")
    return {name: stored[name] for name in wanted}


def _times(shape) -> str:
    return "x".join(map(str, shape))


def equal(a: Tensor, b: Tensor) -> bool:
    """Whether two matrices are equal."""
    if a.shape != b.shape:
        return False
    step = max(1, BLOCK // a.shape[1])
    cuts = [slice(i, min(i + step, a.shape[0])) for i in range(0, a.shape[0], step)]
    return all(np.array_equal(a.rows(cut), b.rows(cut)) for cut in cuts)


def not_finite(tensor: Tensor) -> UserError:
    """Says how many values of a tensor are NaN or infinite."""
    step = max(1, BLOCK // max(1, int(np.prod(tensor.shape[1:]))))
    cuts = (slice(i, min(i + step, tensor.shape[0])) for i in range(0, tensor.shape[0], step))
    n = sum(int(np.sum(~np.isfinite(tensor.rows(cut).astype(np.float32)))) for cut in cuts)
    return UserError(
        f"the tensor {tensor.name} in {tensor.path} has {n:,} of {int(np.prod(tensor.shape)):,} values "
        "that are NaN or infinite; the model is damaged"
    )


class Blocks:
    """Leaves converted from their tensors one block at a time, for `checkpoint.save_params`."""

    def __init__(self, tensors: dict[str, Tensor], leaves: dict, progress):
        self.tensors, self.leaves, self.progress = tensors, leaves, progress

    def __call__(self, leaf: str, chunk):
        """Yields (slices, float32 block) that cover a leaf stored in chunks."""
        shape = self.leaves[leaf]
        names = architectures.tensors(leaf, shape)
        for cut in architectures.cuts(leaf, shape, chunk, BLOCK):
            rows = cut[architectures.rows_axis(leaf, shape)]
            block = np.empty([s.stop - s.start for s in cut], np.float32)
            layers = block if architectures.stacked(leaf) else [block]
            for layer, name in zip(layers, names, strict=True):
                architectures.turn(leaf, self.tensors[name].rows(rows), layer)
                if not np.isfinite(layer).all():
                    raise not_finite(self.tensors[name])
            yield cut, block
            self.progress.update(block.nbytes)
