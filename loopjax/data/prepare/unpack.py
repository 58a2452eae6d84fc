"""Files as bytes, unpacked, in bounded memory.

A document is read whole, so its size is limited (`--max-document`): a compressed file of a few
megabytes can hold a line of many gigabytes.
"""

import gzip
import io

from loopjax.errors import UserError, require

MAX_DOCUMENT = 64 * 10**6  # bytes of a line, or of a value of a Parquet file or dataset
BUFFER = 2**20  # bytes; lines are often longer than Python's default buffer


def packing(head: bytes) -> str:
    """ "gzip", "zstd" or "", by the first bytes of a file."""
    if head.startswith(b"\x1f\x8b"):
        return "gzip"
    skippable = head[1:4] == b"\x2a\x4d\x18" and head[0] >> 4 == 5
    return "zstd" if head.startswith(b"\x28\xb5\x2f\xfd") or skippable else ""


def unpacked(raw, kind: str, path: str):
    """The content of an open file, with a `readline` that reads no more than it is asked for."""
    if kind == "gzip":
        return gzip.GzipFile(fileobj=raw)
    if kind == "zstd":
        return io.BufferedReader(pyarrow(path).CompressedInputStream(raw, "zstd"), BUFFER)
    return raw


def text_of(data: bytes) -> str:
    """UTF-8 as text, the same for every format; raises UnicodeDecodeError.

    Encoded lone surrogates are kept, as in JSON, and become "?" when the text is tokenized.
    """
    return str(data, "utf-8", "surrogatepass")


def too_long(where: str, what: str, limit: int) -> UserError:
    return UserError(
        f"{where}: {what} is longer than {limit / 1e6:,.6g} MB; raise --max-document if it is one "
        "document"
    )


def pyarrow(what):
    """The package with its reader of Parquet; raises UserError where it is not installed."""
    require("pyarrow.parquet", "data", f"reading {what}")
    return require("pyarrow", "data")
