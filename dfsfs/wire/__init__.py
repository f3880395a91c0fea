"""Floor 1: the wire protocol without input or output. Bytes in, events out; see doc/protocol.md."""

from dfsfs.wire.connection import Connection, State, StreamCredit
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
from dfsfs.wire.reasons import code_of, error_of, text_of

__all__ = [
    "PREFACE",
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
