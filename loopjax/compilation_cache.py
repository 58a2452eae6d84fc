"""JAX's persistent compilation cache: a program that was compiled once is read from disk.

Commands turn it on (`enable`); functions of the package leave JAX's settings as they are. What a
program depends on is the cache's key: its operations, shapes and shardings, the versions of jaxlib
and of the backend, XLA's flags, the devices. Programs for CPUs also depend on the host, which the
name of the directory therefore holds.
"""

import contextlib
import hashlib
import os
import pathlib
import platform

import jax

from loopjax import paths
from loopjax.host import is_main, say

OFF = "off"
LARGEST = 4 * 10**9  # bytes of all programs; the least recently used are removed
# Every program is kept: a run has few, and a growth step consists of small ones.
_SETTINGS = {
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}


def enable(directory: str | None = None) -> None:
    """Keeps what is compiled from now on, in this process, for the next one.

    A directory that JAX_COMPILATION_CACHE_DIR or the caller's JAX config names is used as it is.
    Where nothing can be written, a message says so and programs are compiled as without a cache.

    Args:
      directory: directory of the programs, or "off"; None for `default_directory()`.

    Raises UserError for a path that no directory can have.
    """
    if directory == OFF:
        jax.config.update("jax_enable_compilation_cache", False)
        return
    if directory is None:
        if jax.config.jax_compilation_cache_dir is not None:
            return
        root = default_directory()
    else:
        root = paths.local(directory, "--compilation_cache").absolute()
    programs = root / host_name()
    try:
        programs.mkdir(parents=True, exist_ok=True)
        _check_writable(programs)
    except OSError as error:
        say(f"compiled programs are not kept: {error.strerror}: {programs}")
        return
    if is_main():
        remove_oldest(root, LARGEST)
    for name, value in _SETTINGS.items():
        if name.upper() not in os.environ:
            jax.config.update(name, value)
    jax.config.update("jax_compilation_cache_dir", str(programs))


def default_directory() -> pathlib.Path:
    """`loopjax/programs` in the user's cache directory (XDG_CACHE_HOME, else ~/.cache)."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return pathlib.Path(home).absolute() / "loopjax" / "programs"


def host_name() -> str:
    """A name that hosts share if they can run each other's CPU programs: "x86_64-3f2a9c1be04d".

    XLA compiles for the features of the host's CPU and divides work by the number of its cores.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parts = [platform.machine(), platform.processor(), str(cores)]
    with contextlib.suppress(OSError):
        lines = pathlib.Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        kept = ("vendor_id", "model name", "flags", "Features", "CPU implementer", "CPU part")
        parts += [line for line in lines if line.startswith(kept)]
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    return f"{platform.machine()}-{digest[:12]}"


def _check_writable(directory: pathlib.Path) -> None:
    """Raises OSError unless a file can be written; permissions say nothing about a full disk."""
    probe = directory / f".writable.{platform.node()}.{os.getpid()}"
    try:
        probe.write_bytes(b"1")
    finally:
        probe.unlink(missing_ok=True)


def remove_oldest(root: pathlib.Path, most: int) -> None:
    """Removes the least recently used programs until those below `root` have at most `most` bytes.

    A process that is about to read one of them compiles it instead.
    """
    entries = []
    for path in root.rglob("*-cache"):
        with contextlib.suppress(OSError):  # another process removed it
            status = path.stat()
            entries.append((max(status.st_atime, status.st_mtime), status.st_size, path))
    total = sum(size for _, size, _ in entries)
    for _, size, path in sorted(entries):
        if total <= most:
            return
        with contextlib.suppress(OSError):
            path.unlink()
        total -= size
