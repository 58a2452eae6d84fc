"""Safetensors files: tensors read by rows, and rows written to where they belong.

A file is the length of its header (8 bytes), the header (JSON: dtype, shape and place of every
tensor) and the tensors, one after the other. The package safetensors reads it, and checks it; it
writes whole files at a time, so writing is done here, where a row of any tensor may come next.
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
    """A tensor in a file; `data` gives its rows when it is sliced."""

    name: str
    path: pathlib.Path
    shape: tuple[int, ...]
    dtype: str
    data: object

    def rows(self, rows: slice) -> np.ndarray:
        try:
            return self.data[rows.start : rows.stop]
        except Exception as error:  # the file has changed, or the disk fails
            raise UserError(f"{self.path} does not give {self.name}: {first_line(error)}") from None


def open_tensors(directory: pathlib.Path) -> dict[str, Tensor]:
    """The tensors of model.safetensors, or of the files that its index names.

    Raises UserError when there are none, or when a file is not whole.
    """
    if (directory / FILE).is_file():
        return _tensors(directory / FILE)
    if not (directory / INDEX).is_file():
        pickles = sorted(p.name for p in directory.glob("pytorch_model*.bin"))
        raise UserError(
            f"{directory} has no {FILE}"
            + (f", and {pickles[0]} is a pickle, which is not read" if pickles else "")
        )
    where = read_json(directory / INDEX).get("weight_map")
    if not isinstance(where, dict) or not where:
        raise UserError(f"{directory / INDEX} has no weight_map")
    found: dict[str, Tensor] = {}
    for name in sorted(set(map(str, where.values()))):
        if pathlib.PurePath(name).name != name or not (directory / name).is_file():
            raise UserError(f"{directory / INDEX} names {name}, which is not there")
        found |= _tensors(directory / name)
    lost = sorted(where.keys() - found.keys())
    if lost:
        raise UserError(f"{directory / INDEX} says that {where[lost[0]]} has {lost[0]}; it has not")
    return found


def _tensors(path: pathlib.Path) -> dict[str, Tensor]:
    safetensors = require("safetensors", "hf", "reading weights")
    found = {}
    try:
        # Read, not mapped: what is mapped counts as memory of the process until it is closed.
        file = safetensors.safe_open(path, framework="numpy", backend="pread")
        for name in file.keys():  # noqa: SIM118
            data = file.get_slice(name)
            found[name] = Tensor(name, path, tuple(data.get_shape()), data.get_dtype(), data)
    except Exception as error:
        raise UserError(f"{path} is damaged, or no safetensors file: {first_line(error)}") from None
    for tensor in found.values():
        if tensor.dtype not in DTYPES:
            raise UserError(
                f"{path} has {tensor.name} as {tensor.dtype}; these can be read: {', '.join(DTYPES)}"
            )
    return found


def stored_dtype(tensors: dict[str, Tensor]) -> str:
    """What all tensors are stored in; float32, which holds them all, if that differs."""
    dtypes = {DTYPES[tensor.dtype] for tensor in tensors.values()}
    return dtypes.pop() if len(dtypes) == 1 else "float32"


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a tensor begins in a file, and the bytes of one of its rows."""

    path: pathlib.Path
    offset: int
    row: int


class Writer:
    """Model files in a directory, laid out before the first row is written.

    Args:
      directory: where; it is there.
      tensors: {name: shape}, in the order of the files.
      dtype: of all of them, "float32" or "bfloat16".
      shard_size: bytes of tensors in a file at most, unless one tensor alone has more.
    """

    def __init__(self, directory: pathlib.Path, tensors: dict, dtype: str, shard_size: int):
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
        self.files = contextlib.ExitStack()
        paths = [directory / file for file in files]
        self.open = {p: self.files.enter_context(open(p, "r+b")) for p in paths}  # noqa: SIM115

    def _lay_out(self, path: pathlib.Path, tensors: dict) -> None:
        """Writes the header, and makes the file as long as it will be."""
        code = next(code for code, name in DTYPES.items() if name == self.dtype.name)
        # Readers in other libraries look for this "format".
        header, end = {"__metadata__": {"format": "pt"}}, 0
        for name, shape in tensors.items():
            begin, end = end, end + math.prod(shape) * self.dtype.itemsize
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
        """Writes the rows from `start` on, of `dtype`, of tensors that are equal.

        What is never written is zero.
        """
        for name in names:
            place = self.places[name]
            file = self.open[place.path]
            file.seek(place.offset + start * place.row)
            file.write(rows.view(np.uint8))

    def close(self) -> None:
        self.files.close()
