"""Which paths are accepted, checked in one place for every command: local ones, and gs:// URLs.

A path is a `pathlib.Path`, or a `remote.Path` of the same methods for an object of a bucket.
"""

import functools
import os
import pathlib
import re
import socket
import urllib.parse

from loopjax.errors import UserError, require

BUCKETS = "gs://"
# Two letters at least: "C:/runs" is a path of Windows.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
_BUCKET = re.compile(r"gs://[a-z0-9][a-z0-9._-]{1,220}[a-z0-9](/|$)")


def local(path, name: str) -> pathlib.Path:
    """The path, which must be one of this machine's file systems.

    Args:
      path: text or path.
      name: the flag, field or argument it came from, for the message.

    Raises UserError for a URL, an empty text and a text that no file can have as its name.
    """
    text = _text(path, name)
    if _URL.match(text):
        raise UserError(
            f"{name} {text!r} is a URL; only local paths are supported here: mount the storage, or "
            "copy to and from it"
        )
    return pathlib.Path(text)


def location(path, name: str) -> pathlib.Path:
    """The path, which may be one of this machine's file systems or gs://BUCKET/NAME.

    Raises UserError as `check`, when the packages that read buckets are not installed, and when the
    storage's host is not known here. Nothing else is looked up.
    """
    check(path, name)
    if is_remote(path):
        # Before gcsfs is imported: what it would ask of each bucket needs a permission of its own,
        # and is of use for buckets with another interface (zonal ones) only.
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        require("gcsfs", "gcs", f"{name} {os.fspath(path)!r}")
        try:
            _find_host()
        except OSError as error:  # which gcsfs would try again for a minute and a half
            raise UserError(
                f"{name} {os.fspath(path)!r}: the storage cannot be reached: {error.strerror}"
            ) from None
    return of(path)


@functools.cache
def _find_host() -> None:
    """Raises OSError if the name of the storage's host cannot be resolved."""
    other = os.environ.get("STORAGE_EMULATOR_HOST", "")  # with or without "http://"
    url = urllib.parse.urlsplit(other if "//" in other else f"//{other}")
    socket.getaddrinfo(url.hostname or "storage.googleapis.com", None)


def check(path, name: str) -> None:
    """Raises UserError for a text that is neither a local path nor gs://BUCKET/NAME."""
    text = _text(path, name)
    if not _URL.match(text):
        return
    if not text.startswith(BUCKETS):
        raise UserError(
            f"{name} {text!r} is a URL of storage that is not supported; supported are local paths "
            "and gs://BUCKET/NAME"
        )
    if not _BUCKET.match(text):
        raise UserError(f"{name} {text!r} names no bucket; write gs://BUCKET/NAME")


def of(path) -> pathlib.Path:
    """A path that was accepted, as the class of its storage."""
    text = os.fspath(path)
    if not text.startswith(BUCKETS):
        return pathlib.Path(text)
    from loopjax.remote import Path  # takes long to import

    return Path(text)


def is_remote(path) -> bool:
    """Whether a path is that of a bucket."""
    return os.fspath(path).startswith(BUCKETS)


def _text(path, name: str) -> str:
    text = os.fspath(path)
    if not text:
        raise UserError(f"{name} is empty; write the path of a file or directory")
    if "\0" in text:
        raise UserError(f"{name} {text!r} holds a character that no path can have")
    try:
        # TensorStore takes UTF-8 only; a locale without it makes lone surrogates of other bytes.
        text.encode()
        os.fsencode(text)
    except UnicodeEncodeError:
        raise UserError(
            f"{name} {text!r} is not UTF-8, or this locale has no UTF-8; rename it, or set PYTHONUTF8=1"
        ) from None
    return text
