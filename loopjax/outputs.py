"""The files that a command writes for its user: whether they can be, asked before the work, and how."""

import contextlib
import json
import pathlib

from loopjax import files, paths
from loopjax.errors import UserError


def check_file(path, name: str) -> None:
    """Raises UserError unless a file can be written or replaced; `name` is its flag.

    Missing directories of the path are created to try, and removed again.
    """
    if not str(path):
        raise UserError(f"{name} is empty; write the path of a file".strip())
    path = paths.of(path)
    if _is_directory(path):
        raise _refused(name, path, "it is a directory")
    if paths.is_remote(path):
        _try_bucket(path.with_name(path.name + ".tmp"), name, path)
        return
    with _tried(path.parent, name, path):
        _touch(path.with_name(path.name + ".tmp"))


def check_directory(path, name: str) -> None:
    """Raises UserError unless files can be written to a directory, which may be missing."""
    if not str(path):
        raise UserError(f"{name} is empty; write the path of a directory")
    path = paths.of(path)
    if paths.is_remote(path):
        _try_bucket(path / ".writable.tmp", name, path)
        return
    with _tried(path, name, path):
        _touch(path / ".writable.tmp")


def write_json(path, value) -> None:
    """Replaces a JSON file; a missing directory is created."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path, text: str) -> None:
    """Replaces a text file; a missing directory is created."""
    path = paths.of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(path, text)
    except OSError as error:
        raise _refused("--output", path, error.strerror) from error


def _try_bucket(probe, name: str, path) -> None:
    """Writes an object and removes it, which a run must be allowed to do."""
    try:
        probe.write_bytes(b"")
        probe.unlink()
    except FileNotFoundError:
        raise _refused(name, path, f"the bucket {path.bucket} does not exist") from None
    except OSError as error:
        raise _refused(name, path, error.strerror or str(error)) from error


@contextlib.contextmanager
def _tried(directory: pathlib.Path, name: str, path: pathlib.Path):
    """The directory exists inside; the parts of it that did not exist are removed afterwards."""
    missing = []
    try:
        missing = [p for p in (directory, *directory.parents) if not p.exists()]
        directory.mkdir(parents=True, exist_ok=True)
        yield
    except FileExistsError:
        raise _refused(name, path, f"{directory} is a file") from None
    except (OSError, ValueError) as error:  # ValueError: a null character
        raise _refused(name, path, getattr(error, "strerror", None) or str(error)) from error
    finally:
        for made in missing:
            with contextlib.suppress(
                OSError, ValueError
            ):  # not created, or another process wrote to it
                made.rmdir()


def _is_directory(path: pathlib.Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False  # the attempt to write reports why


def _touch(path: pathlib.Path) -> None:
    path.touch()
    path.unlink()


def _refused(name: str, path: pathlib.Path, why: str) -> UserError:
    return UserError(f"{name} {path} cannot be written: {why}".strip())
