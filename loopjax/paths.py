"""Which paths are accepted: local ones, checked in one place for every command."""

import os
import pathlib
import re

from loopjax.errors import UserError

# Two letters at least: "C:/runs" is a path of Windows.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def local(path, name: str) -> pathlib.Path:
    """The path, which must be one of this machine's file systems.

    Args:
      path: text or path.
      name: the flag, field or argument it came from, for the message.

    Raises UserError for a URL, an empty text and a text that no file can have as its name.
    """
    text = os.fspath(path)
    if not text:
        raise UserError(f"{name} is empty; write the path of a file or directory")
    if _URL.match(text):
        raise UserError(
            f"{name} {text!r} is a URL; only local paths are supported: mount the storage, or copy "
            "to and from it"
        )
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
    return pathlib.Path(text)
