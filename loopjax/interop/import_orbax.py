"""A checkpoint that another program wrote with Orbax as a checkpoint of step 0.

A map says where the parameters are (`tree_map`). They are copied a block at a time, so only a part of
the model is in memory: a block of it, and the chunks of the foreign arrays that hold the block.
"""

import dataclasses
import math
import pathlib
import sys

import numpy as np

from loopjax.checkpoint import save_params
from loopjax.data import tokenizers
from loopjax.errors import UserError
from loopjax.interop import files, matching, step_zero, tree_map
from loopjax.interop.matching import Match, Source
from loopjax.progress import Progress
from loopjax.weights import arrays
from loopjax.weights.stored import BLOCK

BYTES = tokenizers.ByteTokenizer.name


def plan_import(source, name: str, settings: dict[str, str] | None = None) -> Match:
    """Matches a foreign checkpoint to a model; reads shapes only.

    Args:
      source: "DIR" or "DIR@STEP", as `arrays.open_tree` takes it.
      name: a map by name, or the path of a TOML file.
      settings: facts of the map to replace, as texts.

    Raises UserError when checkpoint or map cannot be read, or do not fit each other.
    """
    by = tree_map.load(name, settings or {})
    tree = arrays.open_tree(source)
    damaged = {k: why for k, why in tree.unreadable.items() if not matching.is_ignored(by, k)}
    arrays.check(dataclasses.replace(tree, unreadable=damaged))
    return matching.match(tree, by)


def import_orbax(match: Match, directory, tokenizer: str | None = None) -> dict:
    """Makes `directory` a run's directory with one checkpoint, of step 0; returns its meta.

    Args:
      match: result of `plan_import`.
      directory: a new directory.
      tokenizer: "bytes", a tokenizer.json or the directory of one; None for a model without.

    Raises UserError if something cannot be read or a weight is not finite; then nothing is written.
    """
    directory = files.new_path(directory)
    name, beside = _tokenizer(tokenizer, match)
    leaves = {leaf: source.shape for leaf, source in match.sources.items()}
    total = 4 * sum(math.prod(shape) for shape in leaves.values())
    progress = Progress(total, "importing", in_bytes=True)
    meta = {
        **step_zero.about(match.cfg, str(match.n_layers), match.seq_len, name),
        "source": {
            "format": "orbax",
            "from": str(match.path),
            "architecture": f"map {match.by.name}",
            "dtype": match.dtype,
            "facts": match.by.facts,
        },
    }
    with files.new(directory) as temporary:
        meta = save_params(
            temporary / "checkpoints", 0, leaves, Blocks(match.sources, progress), meta
        )
        if beside:
            files.copy(files.TOKENIZER, beside, temporary)
    progress.close()
    for note in match.notes:
        print(note, file=sys.stderr)
    return meta


def _tokenizer(given: str | None, match: Match) -> tuple[str | None, pathlib.Path | None]:
    """(name of a tokenizer, directory of its files)."""
    if given is None:
        return None, None
    if given == BYTES:
        needed = tokenizers.ByteTokenizer.vocab_size
        if match.cfg.vocab_size < needed:
            raise UserError(
                f"--tokenizer bytes has {needed} tokens, the model only {match.cfg.vocab_size}"
            )
        return BYTES, None
    path = pathlib.Path(given)
    path = path.parent if path.name == tokenizers.FILE else path
    if not (path / tokenizers.FILE).is_file():
        raise UserError(
            f"--tokenizer {given!r} must be 'bytes', a {tokenizers.FILE}, or a directory with one"
        )
    files.check_tokenizer(path)
    return tokenizers.name_of(path / tokenizers.FILE), path


class Blocks:
    """Parameters converted from foreign arrays one block at a time, for `checkpoint.save_params`."""

    def __init__(self, sources: dict[str, Source], progress):
        self.sources, self.progress = sources, progress

    def __call__(self, leaf: str, chunk):
        """Yields (slices, float32 block) that cover a parameter stored in chunks."""
        source = self.sources[leaf]
        for cut in cuts(source, chunk, BLOCK):
            block = converted(source, cut)
            if not np.isfinite(block).all():
                raise not_finite(source)
            yield cut, block
            self.progress.update(block.nbytes)


def cuts(source: Source, chunk, most: int) -> list[tuple[slice, ...]]:
    """Slices that cover a parameter, along one axis, at boundaries of its stored chunks.

    The axis is the one for which the chunks of the foreign arrays are decoded least often, unless
    blocks along it are larger.

    Args:
      chunk: shape of the stored chunks.
      most: elements in a block, if the chunks on both sides allow it.
    """
    shape, size = source.shape, math.prod(source.shape)
    most = max(most, math.prod(source.pieces[0].array.chunk))
    options = []
    for axis, n in enumerate(shape):
        row = size // n
        step = min(n, chunk[axis] * max(1, most // (row * chunk[axis])))
        foreign = foreign_chunk(source, axis)
        decoded = sum(
            min(n, -(-min(start + step, n) // foreign) * foreign) - start // foreign * foreign
            for start in range(0, n, step)
        )
        options.append((decoded / n * max(1, step * row / most), step * row, axis, step))
    _, _, axis, step = min(options)
    whole = [slice(0, n) for n in shape]
    return [
        (*whole[:axis], slice(start, min(start + step, shape[axis])), *whole[axis + 1 :])
        for start in range(0, shape[axis], step)
    ]


def foreign_chunk(source: Source, axis: int) -> int:
    """The length, along an axis of a parameter, of the chunks of the foreign arrays."""
    if source.per_layer and axis == 0:
        return 1
    piece, (lead, *rest) = source.pieces[0], source.axes[axis]
    n = piece.layout.chunk(piece.part, lead, piece.array.chunk, source.sizes)
    return source.shape[axis] if n is None else n * math.prod(source.sizes[name] for name in rest)


def converted(source: Source, cut) -> np.ndarray:
    """A block of a parameter, float32, read from the foreign arrays."""
    ranges, inside = {}, []
    for axis, part in zip(source.axes, cut, strict=True):
        lead, stride = axis[0], math.prod(source.sizes[name] for name in axis[1:])
        low, high = part.start // stride, -(-part.stop // stride)
        if lead == "C":  # pairs of the rotary embedding are reordered in a whole head
            low, high = 0, source.sizes["C"]
        ranges[lead] = (low, high)
        inside.append(slice(part.start - low * stride, part.stop - low * stride))
    if not source.per_layer:
        block = _read(source, source.pieces[0], ranges, source.axes)
    else:
        layers = source.pieces[cut[0].start : cut[0].stop]
        block = np.stack([_read(source, piece, ranges, source.axes[1:]) for piece in layers])
    block = block[tuple(inside)]
    if source.offset or source.factor != 1:
        block = (block.astype(np.float64) + source.offset) * source.factor
    with np.errstate(over="ignore"):  # reported as not finite
        return np.ascontiguousarray(block, np.float32)


def _read(source: Source, piece, ranges: dict, axes) -> np.ndarray:
    """The ranges of a piece with the axes of the parameter here."""
    slices, cut = piece.layout.reading(piece.part, source.sizes, ranges)
    block = cut(piece.array.read(slices))
    names, order = piece.layout.names(piece.part), [name for axis in axes for name in axis]
    block = block.transpose([names.index(name) for name in order]).astype(np.float32)
    if source.interleaved:
        block = np.moveaxis(block, order.index("C"), -1)
        block = np.concatenate([block[..., 0::2], block[..., 1::2]], axis=-1)
        block = np.moveaxis(block, -1, order.index("C"))
    lengths = dict(zip(order, block.shape, strict=True))
    return block.reshape([math.prod(lengths[name] for name in axis) for axis in axes])


def not_finite(source: Source) -> UserError:
    """Names the first array of a parameter with values that are NaN or infinite."""
    for piece in source.pieces:
        blocks = (piece.array.read(cut) for cut in piece.array.blocks())
        n = sum(int(np.sum(~np.isfinite(block.astype(np.float32)))) for block in blocks)
        if n:
            return UserError(
                f"{piece.array.name} has {n:,} of {piece.array.size:,} values that are NaN or "
                "infinite; the model is damaged"
            )
    return UserError(
        f"{source.leaf} has values that are infinite after a factor of {source.factor:g}"
    )
