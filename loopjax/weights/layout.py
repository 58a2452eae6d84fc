"""Where a checkpoint of any Orbax program is, and which items it has; nothing is read but names and JSON.

A checkpoint is a directory of items ("state", "metadata"), or one tree without items (StandardCheckpointer,
PyTreeCheckpointer). A CheckpointManager makes a directory of them, one per step.
"""

import dataclasses
import json
import pathlib
import re

from loopjax import paths
from loopjax.errors import UserError, first_line
from loopjax.weights import ocdbt

TREE, ARRAY, JSON, PROTO, KEY, ITERATOR = (
    "tree", "array", "JSON", "proto", "random key", "dataset iterator",
)  # fmt: skip
CHECKPOINT_METADATA, TREE_METADATA = "_CHECKPOINT_METADATA", "_METADATA"
AGGREGATE = (
    "checkpoint"  # msgpack: the tree of older versions of Orbax and Flax, small leaves included
)
ZARR = (".zarray", "zarr.json")
UNFINISHED = ".orbax-checkpoint-tmp"

# Parts of the names of Orbax's handlers, as `_CHECKPOINT_METADATA` has them.
_HANDLERS = {
    "RandomKey": KEY, "PyTree": TREE, "Standard": TREE, "Json": JSON, "Proto": PROTO, "Array": ARRAY,
    "Grain": ITERATOR, "Iterator": ITERATOR, "Dataset": ITERATOR,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Item:
    """A part of a checkpoint.

    Attributes:
      kind: "tree", "array", "JSON", "proto", "random key", "dataset iterator", or "unknown".
      path: its directory.
      handler: name of the Orbax class that wrote it, "" if that is not recorded.
    """

    kind: str
    path: pathlib.Path
    handler: str = ""


def read_object(file: pathlib.Path) -> dict:
    """The object in a JSON file; raises ValueError that names the file, OSError if it is not there."""
    name = file.name if file.name == CHECKPOINT_METADATA else f"{file.parent.name}/{file.name}"
    try:
        value = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is not JSON: {first_line(error)}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{name} holds no object")
    return value


def find(source, step: int | None = None) -> tuple[pathlib.Path, int | None]:
    """(checkpoint, its step) of "DIR", "DIR@STEP" or a file of Flax.

    DIR is a checkpoint, one item of it, or a directory of checkpoints, of which the newest is taken by
    default. The step is None for a checkpoint whose directory is not named after it.

    Raises UserError when there is none.
    """
    text, at, number = str(source).rpartition("@")
    if at and number.isdecimal() and not paths.location(source, "checkpoint").exists():
        source, step = text, int(number)
    path = paths.location(source, "checkpoint").absolute()
    if not path.exists():
        raise UserError(f"{path} is not a directory of checkpoints")
    if UNFINISHED in path.name:
        raise UserError(
            f"{path} was not completed: Orbax writes a checkpoint under such a name, and renames it "
            "when it is whole"
        )
    try:
        return _found(path, step)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def _found(path: pathlib.Path, step: int | None) -> tuple[pathlib.Path, int | None]:
    if path.is_file() or is_checkpoint(path):
        here = step_of(path)
        if here is None and not path.is_file() and is_checkpoint(path.parent):
            here = step_of(path.parent)  # an item
        if step not in (None, here):
            raise UserError(f"{path} is one checkpoint, not a directory with step {step}")
        return path, here
    for directory in (path, path / "checkpoints"):
        steps = _steps(directory) if directory.is_dir() else {}
        if steps and step is None:
            step = max(steps)
        if step in steps:
            return steps[step], step
        if steps:
            there = ", ".join(map(str, sorted(steps)))
            raise UserError(f"{directory} has no checkpoint at step {step}; there are {there}")
    names = sorted(child.name for child in path.iterdir() if is_checkpoint(child))
    if names:
        raise UserError(f"{path} has no numbered checkpoints, but {', '.join(names[:8])}; name one")
    unfinished = sorted(child.name for child in path.iterdir() if UNFINISHED in child.name)
    only = f", only {', '.join(unfinished[:8])}, which was not completed" if unfinished else ""
    raise UserError(f"{path} has no checkpoint{only}")


def step_of(path: pathlib.Path) -> int | None:
    """400 for directories named 400, step_400, checkpoint_000400; None for others, as gemma-2."""
    match = re.fullmatch(r"(?:(?:step|checkpoint|ckpt|iter)[_-])?(\d+)", path.name)
    return int(match[1]) if match else None


def _steps(directory: pathlib.Path) -> dict[int, pathlib.Path]:
    """The checkpoints of a directory by step; with any prefix (`step_prefix`), if all have the same."""
    found, prefixes = {}, set()
    for child in directory.iterdir():
        match = re.fullmatch(r"(.*_|)(\d+)", child.name)
        step = int(match[2]) if match else step_of(child)
        if step is not None and (_is_flax_file(child) or is_checkpoint(child)):
            found[step] = child
            prefixes.add(match[1] if match else "")
    return found if len(prefixes) == 1 else {}


def _is_flax_file(path: pathlib.Path) -> bool:
    return path.is_file() and path.name.startswith("checkpoint_")


def is_tree(path: pathlib.Path) -> bool:
    """Whether a directory holds the files of one tree of arrays."""
    if any((path / name).is_file() for name in (TREE_METADATA, ocdbt.MANIFEST, AGGREGATE)):
        return True
    return any((child / name).is_file() for child in _folders(path) for name in ZARR)


def is_checkpoint(path: pathlib.Path) -> bool:
    """Whether a directory is one checkpoint, rather than a directory of them."""
    if not path.is_dir() or UNFINISHED in path.name:
        return False
    if (path / CHECKPOINT_METADATA).is_file() or is_tree(path):
        return True
    # Without the file, as older versions of Orbax wrote it. Trees that have one, or are numbered,
    # are checkpoints themselves.
    return any(
        is_tree(child) and step_of(child) is None and not (child / CHECKPOINT_METADATA).is_file()
        for child in _folders(path)
    )


def _folders(path: pathlib.Path) -> list[pathlib.Path]:
    return sorted(child for child in path.iterdir() if child.is_dir())


def items_of(path: pathlib.Path) -> dict[str, Item]:
    """The items of a checkpoint by name; one named "" for a tree without items.

    Raises ValueError or OSError when `_CHECKPOINT_METADATA` cannot be read.
    """
    file = path / CHECKPOINT_METADATA
    handlers = read_object(file).get("item_handlers") if file.is_file() else None
    if path.is_file() or is_tree(path):
        return {"": Item(TREE, path, handlers if isinstance(handlers, str) else "")}
    handlers = handlers if isinstance(handlers, dict) else {}
    names = [*handlers, *(child.name for child in _folders(path) if UNFINISHED not in child.name)]
    items = {}
    for name in dict.fromkeys(names):
        handler = str(handlers.get(name) or "").rpartition(".")[2]
        kind = next((kind for part, kind in _HANDLERS.items() if part in handler), "")
        items[name] = Item(kind or _kind(path / name) or "unknown", path / name, handler)
    return dict(sorted(items.items()))


def has_content(item: Item) -> bool:
    """Whether the directory of an item holds more than Orbax's mark that it is complete."""
    return item.path.is_dir() and any(f.name != "commit_success.txt" for f in item.path.iterdir())


def _kind(path: pathlib.Path) -> str:
    """The kind of an item by its files, "" if they do not show it."""
    if is_tree(path):
        return TREE
    if not path.is_dir():
        return ""
    names = {child.name for child in path.iterdir()}
    if "metadata" in names and (path / "metadata").is_file():
        return JSON
    if any(name.endswith(".pbtxt") for name in names):
        return PROTO
    if {"array", "metadata"} <= names:
        return KEY
    return ITERATOR if any(re.fullmatch(r"process_\d+-of-\d+\..*", name) for name in names) else ""
