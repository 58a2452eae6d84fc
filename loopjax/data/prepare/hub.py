"""Hugging Face datasets as pieces: streamed from the hub or a directory, or saved to disk."""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import os
import pathlib

from loopjax.data.prepare import parquet
from loopjax.data.prepare.input_files import END
from loopjax.errors import UserError, first_line, require

ROWS = 1024  # rows that are read at a time
SAVED = ("state.json", "dataset_dict.json")  # files that `save_to_disk` writes


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A split of a dataset of the hub, or of a directory."""

    path: str
    subset: str | None
    split: str
    revision: str | None  # commit on the hub, so that a restart reads the same data

    def __str__(self) -> str:
        return f"dataset {self.path}" + (f" ({self.subset})" if self.subset else "")

    @property
    def on_disk(self) -> bool:
        return any((pathlib.Path(self.path) / name).is_file() for name in SAVED)

    def describe(self) -> dict:
        """What identifies the dataset, in the manifest."""
        description = {"dataset": self.path, "subset": self.subset, "split": self.split}
        if self.revision:
            return description | {"revision": self.revision}
        return description | _directory(pathlib.Path(self.path))


def _directory(root: pathlib.Path) -> dict:
    """Hashes of the names and sizes of a directory's files and of their ends, and the last change."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    listing, ends, modified = hashlib.sha256(), hashlib.sha256(), 0
    for i, path in enumerate(files):
        try:
            with open(path, "rb") as file:
                status = os.fstat(file.fileno())
                ends.update(file.read(END))
                file.seek(max(0, status.st_size - END))
                ends.update(file.read(END))
        except OSError as error:
            raise UserError(f"{path} in dataset {root} is not readable: {error.strerror}") from None
        listing.update(("\n" if i else "").encode())
        listing.update(f"{path.relative_to(root)} {status.st_size}".encode())
        modified = max(modified, status.st_mtime_ns)
    return {
        "fingerprint": listing.hexdigest(), "modified_ns": modified, "ends_sha256": ends.hexdigest()
    }  # fmt: skip


def find(path: str, subset: str | None, split: str, revision: str | None) -> Dataset:
    """The dataset in a directory, else on the hub, at its newest commit if none is given."""
    _library()
    if pathlib.Path(path).is_dir():
        return Dataset(path, subset, split, None)
    import huggingface_hub

    where = f"dataset {path} is not a directory"
    with _as_user_error(f"{where}, and the Hugging Face hub does not have it"):
        info = huggingface_hub.HfApi().dataset_info(path, revision=revision)
    return Dataset(path, subset, split, info.sha)


def cut(dataset: Dataset, key: str, size: int) -> list[tuple]:
    """Pieces of about `size` bytes."""
    if dataset.on_disk:
        rows = _open_saved(dataset)
        parquet.check_column(rows.column_names, str(dataset), key)
        n = max(1, -(-rows.data.nbytes // size))
        cuts = [len(rows) * i // n for i in range(n + 1)]
        share = rows.data.nbytes // n
        return [(Rows(dataset, *span, share),) for span in itertools.pairwise(cuts)]
    stream, files = _open_stream(dataset)
    if stream.column_names is not None:
        parquet.check_column(stream.column_names, str(dataset), key)
    sizes = _sizes(files)
    per_file = sum(sizes) // stream.num_shards
    # Only Parquet can be read from the middle.
    n = max(1, -(-per_file // size)) if all(f.endswith(".parquet") for f in files) else 1
    return [
        (StreamPart(dataset, file, part, n, per_file // n),)
        for file in range(stream.num_shards)
        for part in range(n)
    ]


@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows [start, stop) of a dataset that was saved to disk."""

    dataset: Dataset
    start: int
    stop: int
    bytes: int

    def documents(self, key: str, limit: int):
        rows = _open_saved(self.dataset).select_columns([key]).with_format("arrow")
        starts = range(self.start, self.stop, ROWS)
        columns = (rows[i : min(i + ROWS, self.stop)].column(key) for i in starts)
        texts = parquet.texts(columns, self.start, str(self.dataset), key, limit)
        for i, document in enumerate(texts, 1):
            yield document, self.bytes * i // (self.stop - self.start)


@dataclasses.dataclass(frozen=True)
class StreamPart:
    """Part `part` of `parts` of data file number `file` of a streamed dataset.

    The number of row groups is known only when the file is opened: with fewer than `parts`, the
    last parts are empty. `bytes` is an estimate, counted when the part is done.
    """

    dataset: Dataset
    file: int
    part: int
    parts: int
    bytes: int

    def documents(self, key: str, limit: int):
        with _as_user_error(f"{self.dataset}, file {self.file}, is not readable"):
            stream, _ = _open_stream(self.dataset)
            stream = stream.shard(stream.num_shards, self.file)
            if self.parts > 1:
                stream = stream.reshard()
                n = min(self.parts, stream.num_shards)
                if self.part >= n:
                    return
                stream = stream.shard(n, self.part)
            tables = stream.with_format("arrow").iter(ROWS)
            columns = (self._column(table, key) for table in tables)
            where = f"{self.dataset}, file {self.file}, part {self.part}"
            for document in parquet.texts(columns, 0, where, key, limit):
                yield document, 0

    def _column(self, table, key: str):
        parquet.check_column(table.column_names, str(self.dataset), key)
        return table.column(key)


def _library():
    datasets = require("datasets", "data", "reading a dataset")
    datasets.disable_progress_bars()
    return datasets


@contextlib.contextmanager
def _as_user_error(what: str):
    """Turns any error of the library, the network or the hub into one sentence."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{what}: {first_line(error)}") from None


# A worker reads many pieces of one dataset and should list its files only once.
@functools.lru_cache(maxsize=2)
def _open_saved(dataset: Dataset):
    with _as_user_error(f"{dataset} is not readable"):
        rows = _library().load_from_disk(dataset.path)
    if isinstance(rows, dict):
        if dataset.split not in rows:
            raise UserError(f"{dataset} has no split {dataset.split!r}; it has {', '.join(rows)}")
        rows = rows[dataset.split]
    return rows


@functools.lru_cache(maxsize=2)
def _open_stream(dataset: Dataset):
    """(the dataset, streamed; the URLs of the split's data files)."""
    with _as_user_error(f"{dataset} cannot be opened"):
        builder = _library().load_dataset_builder(
            dataset.path, dataset.subset, revision=dataset.revision
        )
        stream = builder.as_streaming_dataset(split=dataset.split)
        return stream, [str(file) for file in (builder.config.data_files or {})[dataset.split]]


def _sizes(files: list[str]) -> list[int]:
    import fsspec

    sizes = {}
    with _as_user_error("the sizes of the data files cannot be determined"):
        for folder in {file.rpartition("/")[0] for file in files}:  # one request per folder
            system, path = fsspec.core.url_to_fs(folder)
            for entry in system.ls(path, detail=True):
                sizes[f"{folder}/{pathlib.PurePath(entry['name']).name}"] = entry["size"]
    return [sizes.get(file) or 0 for file in files]
