"""Objects of Google Cloud Storage as paths: gs://BUCKET/NAME, by etils.epath and gcsfs.

A bucket holds objects under names. A directory is what names have in common up to a slash: it
exists as long as an object does, is not created and cannot be renamed at once. An object is
written as a whole and seen when it is complete; it cannot be appended to.
"""

import contextlib
import errno
import functools
import logging
import os
import pathlib

import fsspec
from etils import epath

from loopjax.errors import first_line


@functools.cache
def _storage() -> fsspec.AbstractFileSystem:
    # The same instance as that of epath: fsspec keeps one for the same arguments.
    return fsspec.filesystem("gcs", finalize_on_close=True)


# It prints the traceback of each error, which is raised, too.
logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
# Without it, what other processes write is not seen.
fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False


@contextlib.contextmanager
def explained(path):
    """Turns an error of the storage into an OSError with a number and a reason."""
    try:
        yield
    except OSError as error:
        if error.strerror is not None:
            raise
        raise _as_os_error(error, path) from error
    except Exception as error:  # those of gcsfs, aiohttp, google.auth and requests
        raise OSError(errno.EIO, first_line(error), str(path)) from error


def _as_os_error(error: OSError, path) -> OSError:
    """An error of gcsfs, whose class says the kind and whose text names its request."""
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    text = str(error)
    if text.startswith("Forbidden: "):
        why = text.partition("\n")[2].strip() or "no permission"
        return PermissionError(errno.EACCES, why.splitlines()[0], str(path))
    return type(error)(errno.EIO, first_line(error), str(path))


class Path(type(epath.Path())):
    """An object of a bucket, or what names below it have in common, with the methods of pathlib.

    Errors are OSErrors with a reason. `absolute` and `resolve` return the path itself.
    """

    @property
    def bucket(self) -> str:
        return self.parts[2]

    @property
    def key(self) -> str:
        """The name within the bucket."""
        return "/".join(self.parts[3:])

    def absolute(self):
        return self

    def resolve(self, strict: bool = False):
        return self

    def exists(self) -> bool:
        with explained(self):
            return super().exists()

    def is_dir(self) -> bool:
        with explained(self):
            return super().is_dir()

    def is_file(self) -> bool:
        return self.size() is not None

    def size(self) -> int | None:
        """Bytes of the object; None if there is none."""
        try:
            with explained(self):
                found = _storage().info(str(self))
        except FileNotFoundError:
            return None
        return None if found["type"] == "directory" else found["size"]

    def contents(self) -> dict[str, int | None]:
        """{name: bytes, or None for a directory} of what is directly below, in one request."""
        with explained(self):
            found = _storage().ls(str(self), detail=True)
        names = {os.path.basename(entry["name"].rstrip("/")): entry for entry in found}
        # An object whose name ends with a slash stands for the directory itself.
        own = {
            entry["name"] for entry in found if entry["name"].endswith("/") and entry["size"] == 0
        }
        return {
            name: None if entry["type"] == "directory" else entry["size"]
            for name, entry in sorted(names.items())
            if entry["name"] not in own
        }

    def iterdir(self):
        return (self / name for name in self.contents())

    def glob(self, pattern: str):
        with explained(self):
            return iter(sorted(super().glob(pattern)))

    def walk(self, **_):
        """Yields as `os.walk` does, from the top; folders that are removed are left out."""
        found = self.contents()
        folders = [name for name, size in found.items() if size is None]
        yield self, folders, [name for name, size in found.items() if size is not None]
        for name in folders:
            yield from (self / name).walk()

    def open(self, mode: str = "r", **options):
        with explained(self):
            return super().open(mode, **options)

    def read_bytes(self) -> bytes:
        with explained(self):
            return _storage().cat_file(str(self))

    def read_text(self, encoding: str | None = None) -> str:
        return self.read_bytes().decode()

    def read_range(self, start: int, stop: int) -> bytes:
        """The bytes of positions [start, stop); fewer where the object ends before."""
        with explained(self):
            return _storage().cat_file(str(self), start=start, end=stop)

    def write_bytes(self, data: bytes) -> int:
        with explained(self):
            _storage().pipe_file(str(self), bytes(data))
        return len(data)

    def write_text(self, data: str, encoding: str | None = None, errors: str | None = None) -> int:
        return self.write_bytes(data.encode())

    def upload(self, file: pathlib.Path) -> None:
        """Replaces the object by a local file."""
        with explained(self):
            _storage().put_file(str(file), str(self))

    def mkdir(self, mode=None, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing: a directory exists as soon as something is in it."""

    def unlink(self, missing_ok: bool = False) -> None:
        with explained(self):
            super().unlink(missing_ok=missing_ok)

    def rmtree(self, missing_ok: bool = False) -> None:
        with explained(self):
            super().rmtree(missing_ok=missing_ok)

    def rename(self, target):
        """Moves an object, or one object after the other of those below a directory."""
        with explained(self):
            _storage().mv(str(self), str(target), recursive=True)
        return type(self)(target)


def kvstore(path: Path) -> dict:
    """The spec of the key-value store of TensorStore for what is below a path."""
    return {"driver": "gcs", "bucket": path.bucket, "path": f"{path.key}/" if path.key else ""}
