"""Records of token shards in a bucket, read by ranges of bytes.

array_record reads gs:// too, but asks for the rest of the file with each record, and makes a
connection for each. The place of a record follows from the format: `loopjax prepare` writes each
record uncompressed, as one chunk of a Riegeli file, and all but the last of a shard are of one size.

The format (https://github.com/google/riegeli/blob/master/doc/riegeli_records_file_format.md): the
file is cut into blocks of 64 KiB, each of which begins with a header of 24 bytes. The chunks, a
header of 40 bytes and their data, fill what is between the headers. The first chunk is a header
alone. The data of a chunk of one uncompressed record are a zero byte, the number of bytes of the
next number, the size of the record, and the record.
"""

import itertools
import struct

BLOCK, BLOCK_HEADER, CHUNK_HEADER = 2**16, 24, 40
ROOM = BLOCK - BLOCK_HEADER


class Records:
    """The records of one shard; reading raises ValueError for what is no such record.

    Chunks have hashes that are not computed here: what a record holds is trusted to the storage.

    Args:
      path: the object.
      size: bytes of all its records together.
      record: bytes of a record; the last may have fewer.
    """

    def __init__(self, path, size: int, record: int):
        self.path, self.size, self.record = path, size, record

    def read(self, begin: int, end: int) -> bytes:
        """The records [begin, end), joined, by one request."""
        lengths = [min(self.record, self.size - r * self.record) for r in range(begin, end)]
        start = CHUNK_HEADER + begin * _chunk(self.record)  # after the first chunk
        stop = start + sum(map(_chunk, lengths))
        first = _place(start)
        data = _without_headers(self.path.read_range(first, _place(stop - 1) + 1), first)
        if len(data) != stop - start:
            raise ValueError("it ends before its last record")
        ends = itertools.accumulate(map(_chunk, lengths))
        chunks = (data[at - _chunk(n) : at] for at, n in zip(ends, lengths, strict=True))
        return b"".join(map(_record, chunks, lengths))


def _varint(value: int) -> bytes:
    """A number as Riegeli writes it: 7 bits per byte, the lowest first."""
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _head(length: int) -> bytes:
    """What precedes a record in the data of its chunk."""
    size = _varint(length)
    return b"\0" + _varint(len(size)) + size


def _chunk(length: int) -> int:
    """Bytes of the chunk of one record."""
    return CHUNK_HEADER + len(_head(length)) + length


def _place(position: int) -> int:
    """The offset in the file of a position in what is between the headers of blocks."""
    return position // ROOM * BLOCK + BLOCK_HEADER + position % ROOM


def _without_headers(data: bytes, start: int) -> bytes:
    """What is between the headers of blocks in a part of a file that begins at offset `start`."""
    first = -start % BLOCK
    parts = [data[:first]]
    parts += [data[at + BLOCK_HEADER : at + BLOCK] for at in range(first, len(data), BLOCK)]
    return b"".join(parts)


def _record(chunk: bytes, length: int) -> bytes:
    head = _head(length)
    _, size, _, kind, decoded = struct.unpack("<5Q", chunk[:CHUNK_HEADER])
    data = chunk[CHUNK_HEADER:]
    one = kind == ord("r") | 1 << 8  # the type of the chunk, and its number of records
    if not one or size != len(data) or decoded != length or not data.startswith(head):
        raise ValueError("it is not of uncompressed records as loopjax prepare writes them")
    return data[len(head) :]
