"""What can happen to a file on a disk."""

import pathlib
import shutil


def empty(path: pathlib.Path) -> None:
    path.write_bytes(b"")


def cut(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zeros(path: pathlib.Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def flip(path: pathlib.Path, where: float = 0.5) -> None:
    """Flips one bit, at a share of the file's length."""
    data = bytearray(path.read_bytes())
    if data:
        data[min(int(where * len(data)), len(data) - 1)] ^= 1
    path.write_bytes(bytes(data))


def flip_first(path: pathlib.Path) -> None:
    flip(path, 0.0)


def flip_last(path: pathlib.Path) -> None:
    flip(path, 1.0)


def delete(path: pathlib.Path) -> None:
    path.unlink()


def directory(path: pathlib.Path) -> None:
    path.unlink()
    path.mkdir()


def swap(path: pathlib.Path) -> None:
    """Exchanges the file with the next one of its directory, by name."""
    files = sorted(other for other in path.parent.iterdir() if other.is_file())
    other = files[(files.index(path) + 1) % len(files)]
    aside = path.with_name("aside")
    path.rename(aside)
    other.rename(path)
    aside.rename(other)


DAMAGES = (empty, cut, zeros, flip, flip_first, flip_last, delete, directory, swap)


def copy(source: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
    shutil.rmtree(target, ignore_errors=True)
    return pathlib.Path(shutil.copytree(source, target))
