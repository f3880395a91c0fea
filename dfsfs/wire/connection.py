"""The protocol's state machine for one connection: bytes in, events out; calls in, frames out.

    net.Session --send_call()--> frame head      (the session writes it, then the payload)
    net.Session <--next_event()-- buffer(), received()

After the model of h11: whose fault an error is, is its type. What the peer does wrong raises
`RemoteProtocolError`, and the connection is of no use afterwards; what we do wrong raises
`LocalProtocolError`. It does no input or output, knows no clock, and never waits: the session
looks at the credit of a stream before it sends.

Order of a connection (see doc/protocol.md): both sides send a hello at once; the side with the
smaller node id then decides with an accept or a goodbye (of several connections of the same two
nodes it accepts one); then calls and streams flow both ways until somebody says goodbye.

Stream ids: the dialler's are odd, the listener's even, never used twice. Frames of one stream keep
their order, frames of different streams may overtake each other; so a frame for an id that is no
longer open is late, not wrong, and is dropped here.

Credit: each direction of a stream starts with `STREAM_CREDIT_BYTES`. A message costs its whole
frame, and may be sent while any credit is left, so that the largest message always fits.
"""

import enum
from collections.abc import Callable
from typing import Any

from dfsfs.base import codec
from dfsfs.base.errors import LocalProtocolError, Refused, RemoteProtocolError
from dfsfs.base.limits import (
    FAILURE_TEXT_BYTES_MAX,
    FRAME_HEADER_BYTES_MAX,
    FRAME_PAYLOAD_BYTES_MAX,
    HELLO_BYTES_MAX,
    MESSAGE_STREAMS_PER_SESSION_MAX,
    METHOD_BYTES_MAX,
    NODE_NAME_BYTES_MAX,
    STREAM_CREDIT_BYTES,
)
from dfsfs.base.types import NodeId
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
from dfsfs.wire.frames import FIXED_BYTES, PREFACE, Frame, FrameReader, FrameType, frame_head

VERSION_MIN = 1
VERSION_MAX = 1
_NODE_ID_BYTES = 32
_TAG_BYTES_MAX = 64  # network and instance of a hello
_NUMBER_MAX = (1 << 63) - 1


class State(enum.Enum):
    """Where a connection is in its life."""

    GREETING = "greeting"  # the peer's hello has not come
    ADMISSION = "admission"  # it has; one side is to decide
    OPEN = "open"
    ENDED = "ended"  # a goodbye came


class StreamCredit:
    """What the two directions of one message stream may still carry."""

    __slots__ = ("consumed", "receive_left", "receiving", "send_left", "sending")

    def __init__(self) -> None:
        self.send_left = STREAM_CREDIT_BYTES  # sending is allowed while positive
        self.receive_left = STREAM_CREDIT_BYTES  # the peer's view of its own `send_left`, or more
        self.consumed = 0  # bytes read by the user and not given back to the peer yet
        self.sending = True  # we have not sent an end
        self.receiving = True  # the peer has not


class Connection:
    """One side of one connection. Owned by a session; not shared."""

    def __init__(self, *, dialler: bool) -> None:
        self.state = State.GREETING
        self.hello_sent: Hello | None = None
        self.hello_received: Hello | None = None
        self.accepted = False
        self.version = 0
        self._reader = FrameReader()
        self._parity = 1 if dialler else 0
        self._next_id = 1 if dialler else 2
        self._calls_out: set[int] = set()
        self._calls_in: set[int] = set()
        self._streams: dict[int, StreamCredit] = {}
        self._streams_in = 0  # those of `_streams` that the peer opened
        # Indexed by the type of a frame, for the OPEN state.
        self._readers: dict[int, Callable[[Frame, Any], Event | None]] = {
            FrameType.REPLY: self._read_reply,
            FrameType.CALL: self._read_call,
            FrameType.MESSAGE: self._read_message,
            FrameType.PING: self._read_ping,
            FrameType.PONG: self._read_pong,
            FrameType.CREDIT: self._read_credit,
            FrameType.FAILURE: self._read_failure,
            FrameType.OPEN: self._read_open,
            FrameType.END: self._read_end,
            FrameType.CANCEL: self._read_cancel,
        }

    # -- receiving ----------------------------------------------------------------------------

    def buffer(self) -> memoryview:
        """Where the next bytes from the peer belong."""
        return self._reader.buffer()

    def received(self, count: int) -> None:
        """Note that `count` bytes of `buffer()` have been filled."""
        self._reader.received(count)

    def next_event(self) -> Event | None:
        """What the peer did next, or None if more bytes are needed.

        Raises:
            NotDfsNode: the peer speaks something else.
            RemoteProtocolError: the peer broke the protocol.
            Refused: no common version of the protocol.
        """
        while self.state is not State.ENDED:
            frame = self._reader.next_frame()
            if frame is None:
                return None
            event = self._read(frame)
            if event is not None:
                return event
        return None

    def _read(self, frame: Frame) -> Event | None:
        value = (
            codec.decode(frame.header, size_max=FRAME_HEADER_BYTES_MAX) if frame.header else None
        )
        if self.state is State.OPEN:
            read = self._readers.get(frame.type)
            if read is not None:
                return read(frame, value)
        if frame.type == FrameType.GOODBYE:
            self.state = State.ENDED
            return Goodbye(*_reason(value))
        if self.state is State.GREETING and frame.type == FrameType.HELLO:
            return self._read_hello(value)
        if self.state is State.ADMISSION and frame.type == FrameType.ACCEPT and not self.decides:
            self._open()
            return Accept()
        raise RemoteProtocolError(f"a frame of type {frame.type} while {self.state.value}")

    def _read_hello(self, value: Any) -> Hello:
        hello = _hello(value)
        self.hello_received = hello
        self.version = min(VERSION_MAX, hello.version_max)
        if self.version < max(VERSION_MIN, hello.version_min):
            raise Refused(
                f"the peer speaks versions {hello.version_min} to {hello.version_max} of the"
                f" protocol, this node {VERSION_MIN} to {VERSION_MAX}: upgrade the older one"
            )
        self.state = State.ADMISSION
        return hello

    def _read_call(self, frame: Frame, value: Any) -> Call:
        stream = self._new_peer_id(frame.stream)
        method, body = _method_and_body(value)
        self._calls_in.add(stream)
        return Call(stream, method, body, frame.payload)

    def _read_reply(self, frame: Frame, value: Any) -> Reply | None:
        if not self._is_open(frame.stream, self._calls_out):
            return None
        self._calls_out.discard(frame.stream)
        return Reply(frame.stream, value, frame.payload)

    def _read_failure(self, frame: Frame, value: Any) -> Failure | None:
        stream = frame.stream
        failure = Failure(stream, *_reason(value))
        if stream in self._streams:
            self._drop_stream(stream)
            return failure
        if not self._is_open(stream, self._calls_out):
            return None
        self._calls_out.discard(stream)
        return failure

    def _read_open(self, frame: Frame, value: Any) -> Open:
        stream = self._new_peer_id(frame.stream)
        method, body = _method_and_body(value)
        if self._streams_in >= MESSAGE_STREAMS_PER_SESSION_MAX:
            raise RemoteProtocolError("too many message streams")
        self._streams[stream] = StreamCredit()
        self._streams_in += 1
        return Open(stream, method, body)

    def _read_message(self, frame: Frame, value: Any) -> Message | None:
        if not self._is_open(frame.stream, self._streams):
            return None
        credit = self._streams[frame.stream]
        if not credit.receiving:
            raise RemoteProtocolError("a message after the end of its stream")
        if credit.receive_left <= 0:
            raise RemoteProtocolError("a message without credit")
        cost = FIXED_BYTES + len(frame.header) + len(frame.payload)
        credit.receive_left -= cost
        return Message(frame.stream, value, frame.payload, cost)

    def _read_end(self, frame: Frame, value: Any) -> End | None:
        if not self._is_open(frame.stream, self._streams):
            return None
        credit = self._streams[frame.stream]
        if not credit.receiving:
            raise RemoteProtocolError("two ends of one stream")
        credit.receiving = False
        if not credit.sending:
            self._drop_stream(frame.stream)
        return End(frame.stream)

    def _read_credit(self, frame: Frame, value: Any) -> Credit | None:
        count = _number(value)
        if not self._is_open(frame.stream, self._streams):
            return None
        credit = self._streams[frame.stream]
        credit.send_left += count
        if credit.send_left > STREAM_CREDIT_BYTES:
            raise RemoteProtocolError("more credit than was used")
        return Credit(frame.stream, count)

    def _read_cancel(self, frame: Frame, value: Any) -> Cancel | None:
        stream = frame.stream
        if stream & 1 == self._parity:
            raise RemoteProtocolError("a cancel of what the peer did not begin")
        if stream in self._calls_in:
            self._calls_in.discard(stream)
        elif stream in self._streams:
            self._drop_stream(stream)
        else:
            return None
        return Cancel(stream)

    def _read_ping(self, frame: Frame, value: Any) -> Ping:
        return Ping(_number(value))

    def _read_pong(self, frame: Frame, value: Any) -> Pong:
        return Pong(_number(value))

    def _new_peer_id(self, stream: int) -> int:
        if stream & 1 == self._parity or stream in self._calls_in or stream in self._streams:
            raise RemoteProtocolError(f"stream {stream} cannot be opened by the peer now")
        return stream

    def _is_open(self, stream: int, table: set[int] | dict[int, StreamCredit]) -> bool:
        """Whether the stream is in the table; False for one that was, or may have been."""
        if stream in table:
            return True
        if stream & 1 == self._parity and stream >= self._next_id:
            raise RemoteProtocolError(f"stream {stream} was never opened")
        return False

    # -- sending ------------------------------------------------------------------------------
    # Every method returns the bytes that go before the payload, and notes what they change.

    @property
    def decides(self) -> bool:
        """Whether this side accepts or refuses the connection: the smaller node id does."""
        assert self.hello_sent is not None
        assert self.hello_received is not None
        return self.hello_sent.node < self.hello_received.node

    def send_hello(self, hello: Hello) -> bytes:
        """The first bytes of this side, preface included."""
        if self.hello_sent is not None:
            raise LocalProtocolError("a second hello")
        header = codec.encode(list(hello))
        if len(header) > HELLO_BYTES_MAX:
            raise LocalProtocolError(f"a hello of {len(header)} bytes, limit {HELLO_BYTES_MAX}")
        self.hello_sent = hello
        return PREFACE + frame_head(FrameType.HELLO, 0, header, 0)

    def send_accept(self) -> bytes:
        """Make this connection a session. Only the side that `decides` may."""
        if self.state is not State.ADMISSION or not self.decides:
            raise LocalProtocolError("not ours to accept")
        self._open()
        return frame_head(FrameType.ACCEPT, 0, b"", 0)

    def send_call(self, method: str, body: Any, payload_bytes: int) -> tuple[int, bytes]:
        """Begin a call; returns its stream id too."""
        header = self._header([method, body], payload_bytes)
        stream = self._new_id()
        self._calls_out.add(stream)
        return stream, frame_head(FrameType.CALL, stream, header, payload_bytes)

    def send_reply(self, stream: int, body: Any, payload_bytes: int) -> bytes:
        """Answer a call; b"" if the peer has cancelled it meanwhile, or ended the session."""
        if self.state is State.ENDED or stream not in self._calls_in:
            return b""
        header = self._header(body, payload_bytes)
        self._calls_in.discard(stream)
        return frame_head(FrameType.REPLY, stream, header, payload_bytes)

    def send_failure(self, stream: int, code: int, text: str) -> bytes:
        """End the peer's call, or any stream, with an error; b"" if it is gone already."""
        header = codec.encode([code, text])
        if stream in self._calls_in:
            self._calls_in.discard(stream)
        elif stream in self._streams:
            self._drop_stream(stream)
        else:
            return b""
        return frame_head(FrameType.FAILURE, stream, header, 0)

    def send_open(self, method: str, body: Any) -> tuple[int, bytes]:
        """Begin a message stream; returns its id too."""
        header = self._header([method, body], 0)
        if len(self._streams) - self._streams_in >= MESSAGE_STREAMS_PER_SESSION_MAX:
            raise LocalProtocolError("too many message streams")
        stream = self._new_id()
        self._streams[stream] = StreamCredit()
        return stream, frame_head(FrameType.OPEN, stream, header, 0)

    def send_message(self, stream: int, body: Any, payload_bytes: int) -> bytes:
        """One message of a stream that has credit."""
        credit = self._streams.get(stream)
        if credit is None or not credit.sending or credit.send_left <= 0:
            raise LocalProtocolError(f"stream {stream} cannot carry a message now")
        header = self._header(body, payload_bytes)
        credit.send_left -= FIXED_BYTES + len(header) + payload_bytes
        return frame_head(FrameType.MESSAGE, stream, header, payload_bytes)

    def send_end(self, stream: int) -> bytes:
        """Send no more messages on a stream; b"" if it has ended already."""
        credit = self._streams.get(stream)
        if credit is None or not credit.sending:
            return b""
        credit.sending = False
        if not credit.receiving:
            self._drop_stream(stream)
        return frame_head(FrameType.END, stream, b"", 0)

    def send_consumed(self, stream: int, cost: int) -> bytes:
        """Note that the user has taken a message that cost so much.

        Returns a credit frame when half of the credit has been used up, else b"": one frame for
        many messages.
        """
        credit = self._streams.get(stream)
        if credit is None or not credit.receiving:
            return b""
        credit.consumed += cost
        if credit.consumed < STREAM_CREDIT_BYTES // 2:
            return b""
        count, credit.consumed = credit.consumed, 0
        credit.receive_left += count
        return frame_head(FrameType.CREDIT, stream, codec.encode(count), 0)

    def send_cancel(self, stream: int) -> bytes:
        """Give up a call or stream that this side began; b"" if it has ended already."""
        if stream in self._calls_out:
            self._calls_out.discard(stream)
        elif stream in self._streams:
            self._drop_stream(stream)
        else:
            return b""
        return frame_head(FrameType.CANCEL, stream, b"", 0)

    def send_ping(self, number: int) -> bytes:
        """Ask for a pong."""
        return frame_head(FrameType.PING, 0, codec.encode(number), 0)

    def send_pong(self, number: int) -> bytes:
        """Answer a ping."""
        return frame_head(FrameType.PONG, 0, codec.encode(number), 0)

    def send_goodbye(self, code: int, text: str) -> bytes:
        """The last frame of this side."""
        return frame_head(FrameType.GOODBYE, 0, codec.encode([code, text]), 0)

    def credit(self, stream: int) -> StreamCredit | None:
        """The credit of an open stream, None if it has ended."""
        return self._streams.get(stream)

    @property
    def calls_out(self) -> int:
        """Calls of ours that wait for their answer."""
        return len(self._calls_out)

    @property
    def calls_in(self) -> int:
        """Calls of the peer that wait for our answer."""
        return len(self._calls_in)

    def _header(self, value: Any, payload_bytes: int) -> bytes:
        if self.state is not State.OPEN:
            raise LocalProtocolError(f"nothing can be sent while {self.state.value}")
        header = codec.encode(value)
        if len(header) > FRAME_HEADER_BYTES_MAX or payload_bytes > FRAME_PAYLOAD_BYTES_MAX:
            raise LocalProtocolError(
                f"a message of {len(header)} and {payload_bytes} bytes, limits"
                f" {FRAME_HEADER_BYTES_MAX} and {FRAME_PAYLOAD_BYTES_MAX}"
            )
        return header

    def _new_id(self) -> int:
        stream = self._next_id
        self._next_id += 2
        return stream

    def _drop_stream(self, stream: int) -> None:
        del self._streams[stream]
        if stream & 1 != self._parity:
            self._streams_in -= 1

    def _open(self) -> None:
        self.state = State.OPEN
        self._reader.allow_payloads()


# -- shapes of headers: peer input is checked here, once ------------------------------------------


def _hello(value: Any) -> Hello:
    match value:
        case [
            int(version_min),
            int(version_max),
            bytes(node),
            bytes(network),
            bytes(instance),
            str(name),
            dict(fields),
            *_,  # a newer version may add what an older one need not read
        ] if (
            0 < version_min <= version_max
            and len(node) == _NODE_ID_BYTES
            and len(network) <= _TAG_BYTES_MAX
            and len(instance) <= _TAG_BYTES_MAX
            and len(name.encode("utf-8", "replace")) <= NODE_NAME_BYTES_MAX
            and name.isprintable()
            and all(isinstance(key, str) for key in fields)
        ):
            return Hello(version_min, version_max, NodeId(node), network, instance, name, fields)
    raise RemoteProtocolError("malformed hello")


def _method_and_body(value: Any) -> tuple[str, Any]:
    if type(value) is list and len(value) == 2:
        method, body = value
        if type(method) is str and 0 < len(method) <= METHOD_BYTES_MAX:
            return method, body
    raise RemoteProtocolError("malformed call")


def _reason(value: Any) -> tuple[int, str]:
    match value:
        case [int(code), str(text)] if len(text) <= FAILURE_TEXT_BYTES_MAX:
            return code, text
    raise RemoteProtocolError("malformed failure")


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= _NUMBER_MAX:
        raise RemoteProtocolError("malformed number")
    return value
