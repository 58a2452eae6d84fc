"""Any Orbax checkpoint as arrays by path, read with TensorStore: no target, no mesh, no restore.

tree = open_tree("ckpt@400")
tree.arrays["state/params/embed"].read((slice(0, 10),))  # the first ten rows
"""

import dataclasses
import pathlib
import re

from loopjax.checkpoint_files import Damaged, brief, reading
from loopjax.errors import UserError
from loopjax.weights import layout
from loopjax.weights.item import OpenItem
from loopjax.weights.layout import Item
from loopjax.weights.stored import Array


@dataclasses.dataclass(frozen=True)
class Tree:
    """A checkpoint.

    Attributes:
      path: its directory (or file).
      step: from the name of the directory; None if that holds none.
      items: by name; one named "" for a tree without items.
      arrays: by path, in the order of the tree. Trees and items that are one array are read.
      others: what is no array, by path: "None", "empty dict", 'string "text"'.
      unreadable: by path of an array or name of an item, the reason: a file that is missing, cut short
        or cannot be decoded.
      metadata: "begun" and "written" (seconds since 1970), "custom" (of the step), "root" (of the
        directory of steps), "metrics", "format" ("OCDBT, zarr2") and "handlers"; None or empty if not
        recorded.
    """

    path: pathlib.Path
    step: int | None
    items: dict[str, Item]
    arrays: dict[str, Array]
    others: dict[str, str]
    unreadable: dict[str, str]
    metadata: dict


def open_tree(source, step: int | None = None) -> Tree:
    """Opens "DIR" or "DIR@STEP"; reads what describes the arrays, not their content.

    Raises UserError when there is no checkpoint. What is damaged is in `Tree.unreadable`.
    """
    path, step = layout.find(source, step)
    unreadable: dict[str, str] = {}
    with reading(path):
        items = layout.items_of(path)
        metadata = _metadata(path, unreadable)
    arrays: dict[str, Array] = {}
    others: dict[str, str] = {}
    formats = {}
    for name, item in items.items():
        if item.kind not in (layout.TREE, layout.ARRAY):
            if not layout.has_content(item):
                unreadable[name] = "its files are missing"
            continue
        reader = OpenItem(path, name, item)
        try:
            reader.open()
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            unreadable[name or path.name] = brief(error)
        arrays |= reader.arrays
        others |= reader.others
        unreadable |= reader.unreadable
        formats[reader.format] = None
    metadata["format"] = "; ".join(filter(None, formats))
    return Tree(path, step, items, arrays, others, unreadable, metadata)


def _metadata(path: pathlib.Path, unreadable: dict) -> dict:
    """Times, and what users stored with the checkpoint or with the directory of its steps."""
    root, file = path.parent / "metadata" / "_ROOT_METADATA", path / layout.CHECKPOINT_METADATA
    if not path.is_file() and not file.is_file():
        file = path.parent / layout.CHECKPOINT_METADATA  # of an item
        root = path.parent.parent / "metadata" / "_ROOT_METADATA"
    found = {}
    places = {"step": file, "root": root, "metrics": file.parent / "metrics" / "metrics"}
    for name, place in places.items():
        try:
            found[name] = layout.read_object(place) if place.is_file() else {}
        except ValueError as error:
            found[name], unreadable[place.name] = {}, str(error)

    def seconds(key: str) -> float | None:
        time = found["step"].get(key)
        return time / 1e9 if isinstance(time, int) else None

    return {
        "begun": seconds("init_timestamp_nsecs"),
        "written": seconds("commit_timestamp_nsecs"),
        "custom": found["step"].get("custom_metadata") or {},
        "root": found["root"].get("custom_metadata") or {},
        "metrics": found["step"].get("metrics") or found["metrics"],
        "handlers": found["step"].get("item_handlers") or {},
    }


def matching(arrays: dict, grep: str | None, where) -> dict:
    """The arrays whose path matches a regular expression; all for None.

    Raises UserError for a malformed expression, and for one that matches nothing.
    """
    if grep is None:
        return arrays
    try:
        pattern = re.compile(grep)
    except re.error as error:
        raise UserError(f"--grep {grep!r} is not a regular expression: {error}") from None
    found = {name: array for name, array in arrays.items() if pattern.search(name)}
    if not found:
        raise UserError(f"--grep {grep!r} matches none of the {len(arrays)} arrays of {where}")
    return found


def check(tree: Tree, grep: str | None = None) -> None:
    """Raises Damaged if a part of the checkpoint (whose path matches) is damaged."""
    wrong = {k: v for k, v in tree.unreadable.items() if grep is None or re.search(grep, k)}
    refuse(tree.path, wrong, len(tree.arrays))


def refuse(path, unreadable: dict[str, str], readable: int) -> None:
    """Raises Damaged, with what is damaged and how many arrays are not, if anything is."""
    if not unreadable:
        return
    name, why = next(iter(unreadable.items()))
    more = f", and {len(unreadable) - 1} more" if len(unreadable) > 1 else ""
    rest = f"{readable or 'no'} other array{'s'[: readable != 1]} can be read"
    raise Damaged(f"checkpoint {path} is damaged ({name}: {why}{more}); {rest}")
