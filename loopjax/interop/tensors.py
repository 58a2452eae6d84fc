"""Safetensors files: tensors read by rows, and rows written in any order.

A file is the length of its header (8 bytes), the header (JSON: dtype, shape and offsets of every
tensor) and the tensors, one after the other. The package safetensors reads and validates it; it can
only write whole files, so writing by rows is implemented here.
"""

import contextlib
import dataclasses
import json
import math
import pathlib
import struct

import jax.numpy as jnp
import numpy as np

from loopjax.errors import UserError, first_line, require
from loopjax.interop.files import read_json

FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor in a file; slicing `data` reads rows."""

    name: str
    path: pathlib.Path
    shape: tuple[int, ...]
    dtype: str
    data: object

    def rows(self, rows: slice) -> np.ndarray:
        try:
            return self.data[rows.start : rows.stop]
        except Exception as error:  # the file has changed or the disk fails
            raise UserError(
                f"{self.name} in {self.path} cannot be read: {first_line(error)}"
            ) from None


def open_tensors(directory: pathlib.Path) -> dict[str, Tensor]:
    """The tensors of model.safetensors, or of the files listed in its index.

    Raises UserError if there are none or a file is damaged.
    """
    if (directory / FILE).is_file():
        return _tensors(directory / FILE)
    if not (directory / INDEX).is_file():
        pickles = sorted(p.name for p in directory.glob("pytorch_model*.bin"))
        raise UserError(
            f"{directory} has no {FILE}"
            + (f" ({pickles[0]} is a pickle, which is not supported)" if pickles else "")
        )
    where = read_json(directory / INDEX).get("weight_map")
    if not isinstance(where, dict) or not where:
        raise UserError(f"{directory / INDEX} has no weight_map")
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(map(str, where.values()))):
        if pathlib.PurePath(name).name != name or not (directory / name).is_file():
            raise UserError(f"{directory / INDEX} names {name}, which does not exist")
        for tensor in _tensors(directory / name).values():
            if tensor.name in tensors:
                both = f"{tensors[tensor.name].path.name} and in {name}"
                raise UserError(f"{directory} has the tensor {tensor.name} in {both}")
            tensors[tensor.name] = tensor
    missing = sorted(where.keys() - tensors.keys())
    if missing:
        name = missing[0]
        raise UserError(f"{directory / where[name]} has no tensor {name}, which {INDEX} lists")
    return tensors


def _tensors(path: pathlib.Path) -> dict[str, Tensor]:
    safetensors = require("safetensors", "hf", "reading weights")
    tensors = {}
    try:
        open(path, "rb").close()  # the package calls every file that it cannot open missing
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    try:
        # Read, not mapped: mapped pages count as memory of the process until the file is closed.
        file = safetensors.safe_open(path, framework="numpy", backend="pread")
        for name in file.keys():  # noqa: SIM118
            data = file.get_slice(name)
            tensors[name] = Tensor(name, path, tuple(data.get_shape()), data.get_dtype(), data)
    except Exception as error:
        raise UserError(
            f"{path} is damaged or not a safetensors file: {first_line(error)}"
        ) from None
    for tensor in tensors.values():
        if tensor.dtype not in DTYPES:
            raise UserError(
                f"{path} has {tensor.name} as {tensor.dtype}; supported are {', '.join(DTYPES)}"
            )
    return tensors


def stored_dtype(tensors: dict[str, Tensor]) -> str:
    """The type of all tensors; float32, which can represent all, if they differ."""
    dtypes = {DTYPES[tensor.dtype] for tensor in tensors.values()}
    return dtypes.pop() if len(dtypes) == 1 else "float32"


@dataclasses.dataclass(frozen=True)
class Place:
    """The offset of a tensor in a file, and the bytes of one row, both in bytes.

    Attributes:
      order: the row of the file that each row is; None for the same.
    """

    path: pathlib.Path
    offset: int
    row: int
    order: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Part:
    """Rows that are written to a part of a tensor.

    Attributes:
      tensor: its name.
      shape: of the part.
      first: index of its first element in the tensor.
      order: the row of the part that each row is; None for the same.
    """

    tensor: str
    shape: tuple[int, ...]
    first: int = 0
    order: np.ndarray | None = None


class Writer:
    """Model files in a directory, laid out before the first row is written.

    Args:
      directory: an existing directory.
      tensors: {name: shape}, in the order of the files.
      dtype: type of all tensors, "float32" or "bfloat16".
      shard_size: most bytes of tensors per file; a larger tensor gets its own file.
      parts: {name: `Part`}, further names that rows are written to.
    """

    def __init__(
        self, directory: pathlib.Path, tensors: dict, dtype: str, shard_size: int,
        parts: dict[str, Part] | None = None,
    ):  # fmt: skip
        self.dtype = jnp.dtype(dtype)
        sizes = {name: math.prod(shape) * self.dtype.itemsize for name, shape in tensors.items()}
        shards: list[list[str]] = [[]]
        for name, size in sizes.items():
            if shards[-1] and sum(sizes[n] for n in shards[-1]) + size > shard_size:
                shards.append([])
            shards[-1].append(name)
        n = len(shards)
        files = (
            [FILE] if n == 1 else [f"model-{k:05}-of-{n:05}.safetensors" for k in range(1, n + 1)]
        )
        self.places: dict[str, Place] = {}
        for file, names in zip(files, shards, strict=True):
            self._lay_out(directory / file, {name: tensors[name] for name in names})
        if n > 1:
            where = {name: place.path.name for name, place in self.places.items()}
            index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": where}
            (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n")
        for name, part in (parts or {}).items():
            whole = self.places[part.tensor]
            offset = whole.offset + part.first * self.dtype.itemsize
            row = math.prod(part.shape[1:]) * self.dtype.itemsize
            self.places[name] = Place(whole.path, offset, row, part.order)
        self.files = contextlib.ExitStack()
        paths = [directory / file for file in files]
        self.open = {p: self.files.enter_context(open(p, "r+b")) for p in paths}  # noqa: SIM115

    def _lay_out(self, path: pathlib.Path, tensors: dict) -> None:
        """Writes the header and extends the file to its final size."""
        code = next(code for code, name in DTYPES.items() if name == self.dtype.name)
        # Readers in other libraries look for this "format".
        header = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, shape in tensors.items():
            begin = end
            end += math.prod(shape) * self.dtype.itemsize
            header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [begin, end]}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)  # so that the tensors are aligned
        with open(path, "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + end)
        for name, shape in tensors.items():
            row = math.prod(shape[1:]) * self.dtype.itemsize
            offset = 8 + len(text) + header[name]["data_offsets"][0]
            self.places[name] = Place(path, offset, row)

    def write(self, names: list[str], start: int, rows: np.ndarray) -> None:
        """Writes the same rows, starting at row `start`, to several tensors.

        Rows that are never written are zero.
        """
        for name in names:
            place = self.places[name]
            file = self.open[place.path]
            if place.order is None:
                file.seek(place.offset + start * place.row)
                file.write(rows.view(np.uint8))
                continue
            for row, at in zip(rows, place.order[start : start + len(rows)], strict=True):
                file.seek(place.offset + int(at) * place.row)
                file.write(row.tobytes())

    def close(self) -> None:
        self.files.close()
