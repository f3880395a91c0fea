"""Floor 1: the wire protocol without input or output. Bytes in, events out; see doc/protocol.md."""

from dfsfs.wire.connection import (
    VERSION_MAX,
    VERSION_MIN,
    Connection,
    State,
    StreamCredit,
)
from dfsfs.wire.events import (
    Accept,
    Call,
    Cancel,
    Credit,
    End,
    Event,
    Failure,
    Goodbye,
    Hello,
    Message,
    Open,
    Ping,
    Pong,
    Reply,
)
from dfsfs.wire.frames import PREFACE, Frame, FrameReader, FrameType
from dfsfs.wire.reasons import CLOSED, DUPLICATE, code_of, error_of, text_of

__all__ = [
    "CLOSED",
    "DUPLICATE",
    "PREFACE",
    "VERSION_MAX",
    "VERSION_MIN",
    "Accept",
    "Call",
    "Cancel",
    "Connection",
    "Credit",
    "End",
    "Event",
    "Failure",
    "Frame",
    "FrameReader",
    "FrameType",
    "Goodbye",
    "Hello",
    "Message",
    "Open",
    "Ping",
    "Pong",
    "Reply",
    "State",
    "StreamCredit",
    "code_of",
    "error_of",
    "text_of",
]
