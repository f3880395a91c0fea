"""Frames: how events lie on the wire.

    PREFACE, once, then frames:
    type u8 | flags u8 = 0 | reserved u16 = 0 | header length u32 | payload length u32 | stream u64
    header: one msgpack value (base.codec) | payload: raw bytes

All integers are big endian. The reader owns the memory that bytes are received into, so that no
payload is copied twice: it hands out a buffer, is told how much of it was filled, and gives whole
frames back. Lengths are checked before anything is allocated for them.

Invariants: `buffer()` is never empty; a frame's payload is its own object and never changes later.
Pure and synchronous.
"""

import enum
import struct
from typing import NamedTuple

from dfsfs.base.errors import NotDfsNode, RemoteProtocolError
from dfsfs.base.limits import (
    FRAME_HEADER_BYTES_MAX,
    FRAME_PAYLOAD_BYTES_MAX,
    HELLO_BYTES_MAX,
)
from dfsfs.base.types import Buffer

PREFACE = b"\x93dfsfs\r\n"  # no text, no TLS record, and broken by anything that changes line ends
FIXED = struct.Struct(">BBHIIQ")
FIXED_BYTES = FIXED.size

_STAGING_BYTES = FIXED_BYTES + FRAME_HEADER_BYTES_MAX


class FrameType(enum.IntEnum):
    """What a frame is; the events of the same names say what it means."""

    HELLO = 1
    ACCEPT = 2
    CALL = 3
    REPLY = 4
    FAILURE = 5
    OPEN = 6
    MESSAGE = 7
    END = 8
    CREDIT = 9
    CANCEL = 10
    PING = 11
    PONG = 12
    GOODBYE = 13


class Frame(NamedTuple):
    """One frame as received. `type` is a plain number: it may be one that nobody knows."""

    type: int
    stream: int
    header: bytes
    payload: Buffer


def frame_head(type_: int, stream: int, header: bytes, payload_bytes: int) -> bytes:
    """The bytes of a frame that go before its payload."""
    return FIXED.pack(type_, 0, 0, len(header), payload_bytes, stream) + header


class FrameReader:
    """Cuts a byte stream into frames. Owned by one `Connection`.

    Either a payload is being filled (`_payload` is set) or bytes gather in the staging buffer.
    """

    def __init__(self) -> None:
        self._staging = bytearray(_STAGING_BYTES)
        self._view = memoryview(self._staging)
        self._start = 0  # staged and not yet understood: [_start, _end)
        self._end = 0
        self._header_max = HELLO_BYTES_MAX
        self._payload_max = 0
        self._preface_seen = False
        # The frame whose payload is being received.
        self._head: tuple[int, int, bytes] | None = None
        self._payload = bytearray()
        self._filled = 0

    def allow_payloads(self) -> None:
        """Raise the limits from those of a stranger's hello to those of a session."""
        self._header_max = FRAME_HEADER_BYTES_MAX
        self._payload_max = FRAME_PAYLOAD_BYTES_MAX

    def buffer(self) -> memoryview:
        """Where the next bytes received belong. Valid until the next call of any method."""
        if self._head is not None:
            return memoryview(self._payload)[self._filled :]
        if self._start:
            # Moving what is left costs little: large payloads never lie here.
            left = bytes(self._view[self._start : self._end])
            self._staging[: len(left)] = left
            self._start, self._end = 0, len(left)
        return self._view[self._end :]

    def received(self, count: int) -> None:
        """Note that `count` bytes of `buffer()` have been filled."""
        if self._head is not None:
            self._filled += count
        else:
            self._end += count

    def next_frame(self) -> Frame | None:
        """The next whole frame, or None if more bytes are needed.

        Raises:
            NotDfsNode: the stream does not begin with `PREFACE`.
            RemoteProtocolError: a length above its limit, or reserved bits that are not zero.
        """
        if self._head is not None:
            return self._finish_payload()
        if not self._preface_seen and not self._take_preface():
            return None
        start = self._start
        staged = self._end - start
        if staged < FIXED_BYTES:
            return None
        type_, flags, reserved, header_bytes, payload_bytes, stream = FIXED.unpack_from(
            self._staging, start
        )
        if flags or reserved:
            raise RemoteProtocolError("a frame with unknown flags")
        if header_bytes > self._header_max or payload_bytes > self._payload_max:
            raise RemoteProtocolError(
                f"a frame of {header_bytes} and {payload_bytes} bytes,"
                f" limits {self._header_max} and {self._payload_max}"
            )
        header_start = start + FIXED_BYTES
        header_end = header_start + header_bytes
        if header_end > self._end:
            return None
        header = bytes(self._view[header_start:header_end])
        payload_end = header_end + payload_bytes
        if payload_end <= self._end:
            self._start = payload_end
            return Frame(type_, stream, header, bytes(self._view[header_end:payload_end]))
        here = self._end - header_end
        self._payload = bytearray(payload_bytes)
        self._payload[:here] = self._view[header_end : self._end]
        self._filled = here
        self._head = (type_, stream, header)
        self._start = self._end = 0
        return None

    def _finish_payload(self) -> Frame | None:
        assert self._head is not None
        if self._filled < len(self._payload):
            return None
        type_, stream, header = self._head
        frame = Frame(type_, stream, header, self._payload)
        self._head = None
        self._payload = bytearray()
        return frame

    def _take_preface(self) -> bool:
        here = bytes(self._view[self._start : min(self._end, self._start + len(PREFACE))])
        if not PREFACE.startswith(here):
            # Judged by the first wrong byte: a stranger need not send as many as we wait for.
            raise NotDfsNode("the other side does not speak the dfs protocol")
        if len(here) < len(PREFACE):
            return False
        self._start += len(PREFACE)
        self._preface_seen = True
        return True
