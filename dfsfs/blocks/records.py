"""One block in a segment file: a header of fixed size, then the bytes. Pure.

    offset  size  field
         0     4  magic "dfsB"
         4     1  version
         5     1  state: 0 live, 1 removed (the only byte ever rewritten, so not in the checksum)
         6     1  bytes of the digest
         7     1  zero
         8     4  bytes of data that follow the header, big-endian
        12    40  digest, padded with zeros
        52     8  zero
        60     4  CRC-32 of bytes 0 to 59 with state 0, big-endian

The header's checksum tells a record from noise without reading the data; the digest vouches for
the data. A segment is its own index: see `dfsfs.blocks.recovery`.
"""

import struct
import zlib
from typing import NamedTuple

from dfsfs.base.limits import BLOCK_BYTES_MAX
from dfsfs.base.types import Digest, is_digest

MAGIC = b"dfsB"
VERSION = 1
STATE_OFFSET = 5
REMOVED = b"\x01"

_FIELDS = struct.Struct(">4sBBBxI40s8x")
_CHECKSUM = struct.Struct(">I")
HEADER_BYTES = _FIELDS.size + _CHECKSUM.size
assert HEADER_BYTES == 64


class Header(NamedTuple):
    """What a record's header says."""

    digest: Digest
    length: int  # bytes of data after the header
    removed: bool


def encode_header(digest: Digest, length: int) -> bytes:
    """The header of a live record."""
    assert 0 < length <= BLOCK_BYTES_MAX
    fields = _FIELDS.pack(MAGIC, VERSION, 0, len(digest), length, digest)
    return fields + _CHECKSUM.pack(zlib.crc32(fields))


def decode_header(data: bytes) -> Header | None:
    """The header in the first `HEADER_BYTES` of `data`, or None if that is not one."""
    if len(data) < HEADER_BYTES or data[:4] != MAGIC:
        return None
    _, version, state, digest_bytes, length, padded = _FIELDS.unpack_from(data)
    live = data[:STATE_OFFSET] + b"\0" + data[STATE_OFFSET + 1 : _FIELDS.size]
    if _CHECKSUM.unpack_from(data, _FIELDS.size)[0] != zlib.crc32(live):
        return None
    digest = padded[:digest_bytes]
    if version != VERSION or not is_digest(digest) or not 0 < length <= BLOCK_BYTES_MAX:
        return None
    return Header(Digest(digest), length, state != 0)
