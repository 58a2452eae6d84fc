"""Parquet files as pieces, and columns of Arrow as texts."""

import dataclasses

from loopjax.data.prepare import readers
from loopjax.data.prepare.input_files import Input
from loopjax.errors import UserError, first_line

ROWS = 16  # rows that are read at a time: a row may hold a document of the largest size
# A row group that unpacks to this many times its size is read row by row: its rows may repeat one
# large value, which then exists once.
SUSPICIOUS = 50
PAGES = 2**16  # bytes of page headers, which count as text in the sizes of a row group


@dataclasses.dataclass(frozen=True)
class RowGroups:
    """The row groups [start, stop) of a Parquet file; `bytes` is the size of the text column."""

    path: str
    start: int
    stop: int
    bytes: int

    def documents(self, key: str, limit: int):
        arrow = readers.pyarrow(self.path)
        try:
            with arrow.parquet.ParquetFile(self.path) as file:
                first = sum(file.metadata.row_group(g).num_rows for g in range(self.start))
                groups = range(self.start, self.stop)
                rows = sum(file.metadata.row_group(g).num_rows for g in groups)
                columns = (column for g in groups for column in _columns(file, g, key))
                found = texts(columns, first, f"input {self.path}", key, limit)
                for i, document in enumerate(found, 1):
                    yield document, self.bytes * i // rows
        except (OSError, arrow.ArrowException) as error:
            raise UserError(f"input {self.path} is not readable: {first_line(error)}") from None


def _columns(file, group: int, key: str):
    metadata = file.metadata.row_group(group)
    size, packed = _sizes(metadata, key)
    rows = 1 if size > SUSPICIOUS * max(packed, 1) else ROWS
    for batch in file.iter_batches(rows, row_groups=[group], columns=[key]):
        yield batch.column(0)


def _sizes(row_group, key: str) -> tuple[int, int]:
    """Bytes of a column in a row group, unpacked and packed."""
    columns = [row_group.column(c) for c in range(row_group.num_columns)]
    columns = [column for column in columns if column.path_in_schema == key]
    return (
        sum(column.total_uncompressed_size for column in columns),
        sum(column.total_compressed_size for column in columns),
    )


def row_groups(file: Input, key: str, size: int, limit: int):
    """The parts of a Parquet file; a row group is never cut."""
    where = f"input {file.path}"
    arrow = readers.pyarrow(file.path)
    try:
        with arrow.parquet.ParquetFile(file.path) as opened:
            metadata, names = opened.metadata, opened.schema_arrow.names
    except (OSError, arrow.ArrowException) as error:
        raise UserError(f"{where} is not readable: {first_line(error)}") from None
    check_column(names, where, key)
    start = total = row = 0
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        length, _ = _sizes(metadata.row_group(group), key)
        if length > rows * limit + PAGES:
            raise readers.too_long(
                f"{where}, rows {row} to {row + rows - 1}", f"a text in column {key!r}", limit
            )
        row += rows
        if group > start and total + length > size:
            yield RowGroups(file.path, start, group, total)
            start, total = group, 0
        total += length
    if metadata.num_row_groups:
        yield RowGroups(file.path, start, metadata.num_row_groups, total)


def texts(columns, first: int, where: str, key: str, limit: int):
    """Yields the texts of columns of Arrow; the first value is row number `first` of `where`.

    Raises UserError for a value that is not text, not UTF-8, or longer than `limit` bytes.
    """
    arrow = readers.pyarrow(where)
    strings = (arrow.StringScalar, arrow.LargeStringScalar, arrow.StringViewScalar)
    row = first
    for column in columns:
        for value in column:
            if isinstance(value, arrow.DictionaryScalar):
                value = value.value
            if not isinstance(value, strings) or not value.is_valid:
                raise UserError(f"{where}, row {row}: column {key!r} is not text")
            data = value.as_buffer()
            if data.size > limit:
                raise readers.too_long(f"{where}, row {row}", f"column {key!r}", limit)
            try:
                document = readers.text_of(data)
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{where}, row {row}: column {key!r} is not UTF-8 ({error.reason})"
                ) from None
            yield document
            row += 1


def check_column(columns, where: str, key: str) -> None:
    if key not in columns:
        raise UserError(
            f"{where} has no column {key!r}; set --text-key to one of {', '.join(columns)}"
        )
