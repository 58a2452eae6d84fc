"""One item of a checkpoint, opened: what arrays it has, where they are, how they were sharded.

Orbax names an array by its keys, joined with dots; what the keys were is in `_METADATA`. Where that file
is missing (older versions), names are split at dots.
"""

import base64
import dataclasses
import json
import math
import pathlib

import numpy as np
import tensorstore as ts

from loopjax.checkpoint_files import brief, kvstore
from loopjax.files import size, sizes, walk
from loopjax.weights import layout, ocdbt
from loopjax.weights.layout import Item
from loopjax.weights.stored import Array, Sharding


@dataclasses.dataclass
class Files:
    """What an array has on disk: bytes, number of chunks, and what is wrong with it, "" if nothing."""

    bytes: int = 0
    chunks: int = 0
    wrong: str = ""


class OpenItem:
    """Opens the arrays of one item."""

    def __init__(self, checkpoint: pathlib.Path, name: str, item: Item):
        self.checkpoint, self.item, self.name, self.path = checkpoint, item, name, item.path
        self.arrays: dict[str, Array] = {}
        self.others: dict[str, str] = {}
        self.unreadable: dict[str, str] = {}
        self.format = ""
        self.all_chunks = False  # whether those that are zero are stored too

    def open(self) -> None:
        if self.path.is_file():
            self.format = "Flax msgpack"
            self._aggregate(self.path, {})
            return
        self._leaves: dict[tuple[str, ...], str] = {}
        is_database = (self.path / ocdbt.MANIFEST).is_file()
        if (self.path / layout.TREE_METADATA).is_file():
            try:
                is_database |= self._described()
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                self.unreadable[self._relative(layout.TREE_METADATA)] = brief(error)
                self._leaves.clear()
        self.stored = self._database() if is_database else self._files()
        aggregate = self.path / layout.AGGREGATE
        if aggregate.is_file():
            self._aggregate(aggregate, self._leaves)
        if not self._leaves:
            self._leaves = {tuple(name.split(".")): "array" for name in self.stored}
        self.shardings, self.random_keys = self._shardings(), self._random_keys()
        drivers = sorted(self._open_arrays(is_database))
        parts = ["OCDBT" if is_database else "a directory per array"]
        parts += ["zarr2" if driver == "zarr" else driver for driver in drivers]
        self.format = ", ".join(parts + ["msgpack"] * aggregate.is_file())

    def _described(self) -> bool:
        """Reads the leaves and their kinds from `_METADATA`; whether the arrays are in a database."""
        saved = layout.read_object(self.path / layout.TREE_METADATA)
        for entry in saved["tree_metadata"].values():
            keys = tuple(part["key"] for part in entry["key_metadata"])
            self._leaves[keys] = str(entry["value_metadata"]["value_type"])
        self.all_chunks = saved.get("store_array_data_equal_to_fill_value") is True
        return bool(saved.get("use_ocdbt"))

    def _database(self) -> dict[str, Files]:
        """The arrays of an OCDBT database."""
        sizes: dict[str, int | None] = {}
        stored: dict[str, Files] = {}
        found = ocdbt.entries(self.path)
        names = {key.rpartition("/")[0] for key in found if key.rpartition("/")[2] in layout.ZARR}
        for key, (length, file, end) in found.items():
            parts = key.split("/")
            heads = ("/".join(parts[:n]) for n in range(1, len(parts)))
            name = next((head for head in heads if head in names), None)
            if name is None:
                continue
            if file is not None and file not in sizes:
                sizes[file] = size(self.path / file)
            array = stored.setdefault(name, Files())
            array.bytes += length
            array.chunks += parts[-1] not in layout.ZARR
            if file is not None and not array.wrong:
                array.wrong = _wrong_file(self._relative(file), sizes[file], end)
        return stored

    def _files(self) -> dict[str, Files]:
        """The arrays that have a directory each."""
        stored = {}
        for folder, folders, files in walk(self.path):
            if any(name in files for name in layout.ZARR):
                found = [file for below, _, _ in walk(folder) for file in sizes(below).items()]
                chunks = sum(name not in layout.ZARR for name, _ in found)
                name = folder.relative_to(self.path).as_posix()
                stored[name] = Files(sum(n for _, n in found), chunks)
                folders.clear()
        return stored

    def _relative(self, file: str) -> str:
        return f"{self.name}/{file}" if self.name else file

    def _shardings(self) -> dict[str, Sharding]:
        try:
            return shardings_of(self.path)
        except ValueError as error:
            self.unreadable[self._relative("_sharding")] = brief(error)
            return {}

    def _random_keys(self) -> dict[str, str]:
        """{array: implementation} of `jax.random.key` arrays."""
        found = {}
        for file in sorted((self.path / "array_metadatas").glob("process_*")):
            try:
                for entry in layout.read_object(file)["array_metadatas"]:
                    about = entry["array_metadata"]
                    if implementation := (about.get("ext_metadata") or {}).get("random_key_impl"):
                        found[about["param_name"]] = implementation
            except (ValueError, KeyError, TypeError) as error:
                self.unreadable[self._relative(f"array_metadatas/{file.name}")] = brief(error)
        return found

    def _open_arrays(self, is_database: bool) -> set[str]:
        """Opens all arrays at once; returns the names of their drivers."""
        futures = {}
        base = {"driver": "ocdbt", "base": kvstore(self.path)} if is_database else None
        for keys, kind in self._leaves.items():
            name = ".".join(keys)
            if kind in ("None", "Dict", "List", "Tuple", "NamedTuple"):
                self.others[self._named(keys)] = (
                    "None" if kind == "None" else f"empty {kind.lower()}"
                )
            elif kind == "string":
                self.others[self._named(keys)] = f"string {json.dumps(self._string(name))}"
            elif name not in self.stored:
                self.unreadable[self._named(keys)] = "the array is missing"
            elif self.stored[name].wrong:
                self.unreadable[self._named(keys)] = self.stored[name].wrong
            else:
                store = kvstore(self.path / name)
                if base is not None:
                    store = {**base, "path": f"{name}/"}
                futures[keys] = ts.open({"driver": "auto", "kvstore": store}, read=True)
        drivers = set()
        for keys, future in futures.items():
            try:
                store = future.result()
            except ValueError as error:
                self.unreadable[self._named(keys)] = brief(error)
                continue
            drivers.add(store.spec().to_json()["driver"])
            if missing := self._missing(store, self.stored[".".join(keys)].chunks):
                # TensorStore would read them as zeros.
                self.unreadable[self._named(keys)] = missing
                continue
            self._add(
                keys, store, str(store.dtype.numpy_dtype), store.chunk_layout.read_chunk.shape
            )
        return drivers

    def _missing(self, store, there: int) -> str:
        """What is wrong with an array that has this number of chunks."""
        shape = store.chunk_layout.write_chunk.shape or store.shape
        wanted = math.prod(-(-n // max(1, m)) for n, m in zip(store.shape, shape, strict=True))
        if not self.all_chunks or there >= wanted:
            return ""
        return f"{wanted - there:,} of its {wanted:,} chunks are missing"

    def _add(self, keys, store, dtype: str, chunk) -> None:
        name = ".".join(keys)
        kind = self._leaves.get(keys, "array")
        if name in self.random_keys:
            kind = f"random key ({self.random_keys[name]})"
        sharding, path = self.shardings.get(name), self._named(keys)
        stored = self.stored[name].bytes if name in self.stored else None
        shape = tuple(store.shape)
        self.arrays[path] = Array(
            path, self.name, keys, shape, dtype, tuple(chunk or shape), sharding, stored, kind, store,
            self.checkpoint,
        )  # fmt: skip

    def _named(self, keys: tuple[str, ...]) -> str:
        """The path of a leaf: item and keys, joined with slashes.

        Of two leaves whose paths would be the same, ("a/b",) and ("a", "b"), the one with a slash in a
        key has it in quotes: "'a/b'".
        """
        if self.item.kind == layout.ARRAY:
            return self.name or "array"
        plain = "/".join(keys)
        if any("/" in key for key in keys) and tuple(plain.split("/")) in self._leaves:
            plain = "/".join(repr(key) if "/" in key else key for key in keys)
        return f"{self.name}/{plain}" if self.name and self.name != "default" else plain

    def _string(self, name: str) -> str:
        file = self.path / "_strings.json"
        try:
            return str(layout.read_object(file)[name])
        except (OSError, ValueError, KeyError) as error:
            self.unreadable[self._relative(file.name)] = brief(error)
            return ""

    def _aggregate(self, file: pathlib.Path, leaves: dict) -> None:
        """Adds the leaves of a msgpack file: arrays, and the names of those that are elsewhere."""
        from flax import serialization

        try:
            content = serialization.msgpack_restore(file.read_bytes())
        except Exception as error:  # msgpack has no common class of errors
            raise ValueError(f"{file.name} is not a msgpack file of Flax") from error
        self._leaves, self.stored = leaves, getattr(self, "stored", {})
        self.shardings, self.random_keys = {}, {}
        for keys, value in _flat(content):
            if isinstance(value, str) and value.startswith("PLACEHOLDER://"):
                leaves.setdefault(keys, "array")
            elif self._is_elsewhere(keys):
                continue
            elif value is None or isinstance(value, str | dict | list):
                self.others[self._named(keys)] = _other(value)
            else:
                array = np.asarray(value)
                self._add(keys, array, str(array.dtype), array.shape)

    def _is_elsewhere(self, keys) -> bool:
        """Whether a leaf of the msgpack file is also an array of its own."""
        return keys in self._leaves and ".".join(keys) in self.stored


def _wrong_file(name: str, size: int | None, end: int) -> str:
    if size is None:
        return f"the file {name} is missing"
    return f"the file {name} is cut short, at {size:,} bytes" if size < end else ""


def shardings_of(item: pathlib.Path) -> dict[str, Sharding]:
    """{name of an array, as Orbax joins its keys: how it was sharded}; those that are not recorded left out.

    Raises ValueError for a file that Orbax has not written so.
    """
    file = item / "_sharding"
    found = {}
    for key, text in layout.read_object(file).items() if file.is_file() else ():
        try:
            sharding = _sharding(json.loads(text))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{item.name}/_sharding describes no sharding: {text!r:.60}"
            ) from error
        if sharding:
            found[base64.b64decode(key).decode()] = sharding
    return found


def _sharding(saved: dict) -> Sharding | None:
    if "partition_spec" in saved:
        spec = tuple(tuple(s) if isinstance(s, list) else s for s in saved["partition_spec"])
        mesh = dict(zip(saved["axis_names"], saved["shape"], strict=True))
        for names in spec:
            for name in (names,) if isinstance(names, str) else names or ():
                if type(mesh[name]) is not int:
                    raise TypeError(f"{mesh[name]!r} devices")
        return Sharding(spec, mesh)
    return Sharding((), {}) if saved.get("sharding_type") == "SingleDeviceSharding" else None


def _flat(value, keys=()):
    """Leaves of nested dicts, by keys; what T5X writes for an array in another file is a placeholder."""
    if isinstance(value, dict) and {"driver", "kvstore", "metadata"} <= value.keys():
        yield keys, "PLACEHOLDER://"
    elif isinstance(value, dict) and value:
        for key, part in value.items():
            yield from _flat(part, (*keys, str(key)))
    else:
        yield keys, value


def _other(value) -> str:
    if value is None:
        return "None"
    return (
        f"string {json.dumps(value)}" if isinstance(value, str) else f"empty {type(value).__name__}"
    )
