"""Arrays of a checkpoint written to one .npz or .safetensors file, in blocks.

Neither of the two libraries can write a file piece by piece, so both formats are laid out here: a
safetensors file is a header and the arrays, an .npz file an uncompressed ZIP of .npy files.
"""

import io
import json
import math
import pathlib
import struct
import zipfile

import jax.numpy as jnp
import numpy as np

from loopjax import files, paths
from loopjax.errors import UserError
from loopjax.progress import Progress
from loopjax.weights.arrays import Tree
from loopjax.weights.stored import BLOCK, Array

# NumPy's names of types by those of safetensors. NumPy's own files know neither bfloat16 nor float8.
SAFETENSORS = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64",
    "int32": "I32", "int16": "I16", "int8": "I8", "uint64": "U64", "uint32": "U32", "uint16": "U16",
    "uint8": "U8", "bool": "BOOL", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
}  # fmt: skip
NPZ = {name for name in SAFETENSORS if not name.startswith(("bfloat", "float8"))}
SUFFIXES = (".npz", ".safetensors")


def check_name(path) -> None:
    """Raises UserError unless the name of a file ends in a format that can be written."""
    if pathlib.Path(path).suffix not in SUFFIXES:
        raise UserError(f"--export {path} must end in {' or '.join(SUFFIXES)}")


def export(path, arrays: dict[str, Array], tree: Tree) -> dict:
    """Writes arrays under their paths; returns their number, bytes, and the types that were changed.

    A type that the format has no word for is widened without loss: bfloat16 and float8 to float32 (in
    .npz), int4 to int8. A file that exists is replaced, at the end.

    Raises UserError when an array is damaged or cannot be read; then nothing is written.
    """
    path = paths.of(path)
    kinds = NPZ if path.suffix == ".npz" else set(SAFETENSORS)
    dtypes = {name: _dtype(array.dtype, kinds) for name, array in arrays.items()}
    total = sum(array.bytes for array in arrays.values())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            files.replaced(path) as temporary,
            Progress(total, "writing", in_bytes=True) as progress,
        ):
            write = _write_npz if path.suffix == ".npz" else _write_safetensors
            write(temporary, arrays, dtypes, progress)
    except OSError as error:
        raise UserError(f"--export {path} cannot be written: {error.strerror}") from error
    changed = {
        array.dtype: dtypes[name] for name, array in arrays.items() if array.dtype != dtypes[name]
    }
    return {
        "file": str(path),
        "from": str(tree.path),
        "arrays": len(arrays),
        "bytes": files.size(path),
        "changed": changed,
    }


def _dtype(name: str, known: set[str]) -> str:
    if name in known:
        return name
    if jnp.issubdtype(name, jnp.floating) and np.dtype(name).itemsize <= 2:
        return "float32"
    if jnp.issubdtype(name, jnp.integer) and np.dtype(name).itemsize == 1:
        return "uint8" if jnp.issubdtype(name, jnp.unsignedinteger) else "int8"
    raise UserError(f"{name} arrays cannot be exported; restrict --grep to others")


def _rows(array: Array, dtype: str, progress):
    """Yields the array in pieces of consecutive elements, as bytes; few chunks are read twice."""
    per_row = max(1, math.prod(array.shape[1:]))
    step = max(1, BLOCK // per_row)
    if array.shape and array.chunk[0] > 1:
        # Whole chunks along the first axis, if that is not the whole of a large array.
        step = max(1, step // array.chunk[0]) * array.chunk[0]
    count = array.shape[0] if array.shape else 1
    cuts = [slice(k, min(k + step, count)) for k in range(0, count, step)] if array.shape else [...]
    for piece in array.pieces(cuts):
        yield np.ascontiguousarray(piece).astype(dtype, copy=False).tobytes()
        progress.update(piece.nbytes)


def _write_safetensors(path: pathlib.Path, arrays, dtypes, progress) -> None:
    header, end = {}, 0
    for name, array in arrays.items():
        begin, end = end, end + array.size * np.dtype(dtypes[name]).itemsize
        shape = list(array.shape)
        header[name] = {
            "dtype": SAFETENSORS[dtypes[name]],
            "shape": shape,
            "data_offsets": [begin, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that the arrays are aligned
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, array in arrays.items():
            for part in _rows(array, dtypes[name], progress):
                file.write(part)


def _write_npz(path: pathlib.Path, arrays, dtypes, progress) -> None:
    with zipfile.ZipFile(path, "w", allowZip64=True) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                head = io.BytesIO()
                about = {"descr": np.dtype(dtypes[name]).str, "fortran_order": False}
                np.lib.format.write_array_header_1_0(head, {**about, "shape": array.shape})
                file.write(head.getvalue())
                for part in _rows(array, dtypes[name], progress):
                    file.write(part)
