"""What is where in an OCDBT database, the format in which Orbax puts many arrays into few files.

TensorStore lists the keys of a database, but neither how many bytes a value takes nor in which file it
is. Both are in the nodes of its tree (https://google.github.io/tensorstore/kvstore/ocdbt), read here.
"""

import pathlib
import urllib.parse

import tensorstore as ts

from loopjax.checkpoint_files import kvstore

MANIFEST = "manifest.ocdbt"


def entries(path: pathlib.Path) -> dict[str, tuple[int, str | None, int]]:
    """{key: (bytes, file, end)} of the newest version of the database in a directory.

    A value is the last `bytes` before offset `end` of a file, named relative to the directory; the
    file is None for a short value, which is in the tree itself.

    Raises ValueError when a node of the tree is missing or cannot be decoded.
    """
    if not (path / MANIFEST).is_file():
        raise ValueError(f"the file {MANIFEST} is missing")
    base = ts.KvStore.open(kvstore(path)).result()
    manifest = ts.ocdbt.dump(base).result()
    found = {}
    newest = manifest["versions"][-1:]  # none in an empty database
    nodes = [(b"", version["root"].get("location")) for version in newest]
    while nodes:
        prefix, location = nodes.pop()
        for entry in ts.ocdbt.dump(base, location).result()["entries"] if location else ():
            if "location" in entry:
                nodes.append((prefix + entry["subtree_common_prefix"], entry["location"]))
                continue
            key = (prefix + entry["key"]).decode()
            if "inline_value" in entry:
                found[key] = (len(entry["inline_value"]), None, 0)
            else:
                # "value:<directory>:<file>:<offset>:<length>", percent-encoded.
                _, folder, name, start, length = entry["indirect_value"].split(":")
                file = urllib.parse.unquote(folder) + urllib.parse.unquote(name)
                found[key] = (int(length), file, int(start) + int(length))
    return dict(sorted(found.items()))
