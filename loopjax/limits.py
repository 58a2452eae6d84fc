"""Limits of the operating system that would let a training fail in many ways: `ulimit`."""

import contextlib

from loopjax.errors import UserError
from loopjax.progress import print_line

try:
    import resource
except ImportError:  # a platform without limits
    resource = None

OPEN_FILES = 64  # with which a small run has been trained; more devices and sources need more
ADDRESS_SPACE = 3 * 2**30  # bytes, likewise


def check() -> None:
    """Raises the limit of open files as far as allowed; UserError where that is too little."""
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        # Some systems report more than they accept.
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if files != resource.RLIM_INFINITY and files < OPEN_FILES:
        raise UserError(
            f"this process may open {files} files; training needs at least {OPEN_FILES}: raise the "
            "limit with ulimit -n"
        )
    space = resource.getrlimit(resource.RLIMIT_AS)[0]
    if space != resource.RLIM_INFINITY and space < ADDRESS_SPACE:
        print_line(
            f"the address space is limited to {space / 1e9:.1f} GB, in which XLA may hang; raise "
            "the limit with ulimit -v"
        )
