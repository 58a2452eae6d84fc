"""What the readers of all formats share.

A document is read whole, so its size is limited (`--max-document`): a compressed file of a few
megabytes can hold a line of many gigabytes.
"""

from loopjax.errors import UserError, require

MAX_DOCUMENT = 64 * 10**6  # bytes of a line, or of a value of a Parquet file or dataset


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
