"""The state machine: what is legal, what is the peer's fault, what is ours."""

from typing import Any

import pytest

from dfsfs.base import codec, limits
from dfsfs.base.errors import LocalProtocolError, NotDfsNode, Refused, RemoteProtocolError
from dfsfs.base.types import NodeId
from dfsfs.wire import (
    PREFACE,
    Accept,
    Call,
    Cancel,
    Connection,
    Credit,
    End,
    Event,
    Failure,
    FrameType,
    Goodbye,
    Hello,
    Message,
    Open,
    Ping,
    Pong,
    Reply,
    State,
)
from dfsfs.wire.frames import FIXED, frame_head

SMALL, LARGE = NodeId(b"a" * 32), NodeId(b"b" * 32)


def hello(node: NodeId, **changes: Any) -> Hello:
    return Hello(1, 1, node, b"net", b"boot", "name", {})._replace(**changes)


def feed(connection: Connection, *parts: bytes) -> list[Event]:
    """Give bytes to a connection; returns what it makes of them."""
    events: list[Event] = []
    data = b"".join(parts)
    while True:
        while (event := connection.next_event()) is not None:
            events.append(event)
        if not data:
            return events
        buffer = connection.buffer()
        count = min(len(buffer), len(data))
        buffer[:count] = data[:count]
        data = data[count:]
        connection.received(count)


def greeted() -> tuple[Connection, Connection]:
    """Dialler (which decides) and listener, before the word."""
    dialler, listener = Connection(dialler=True), Connection(dialler=False)
    first = dialler.send_hello(hello(SMALL))
    assert feed(dialler, listener.send_hello(hello(LARGE))) == [hello(LARGE)]
    assert feed(listener, first) == [hello(SMALL)]
    return dialler, listener


def opened() -> tuple[Connection, Connection]:
    dialler, listener = greeted()
    assert feed(listener, dialler.send_accept()) == [Accept()]
    return dialler, listener


def test_the_smaller_id_decides() -> None:
    dialler, listener = greeted()
    assert dialler.decides
    assert not listener.decides
    assert {dialler.state, listener.state} == {State.ADMISSION}
    with pytest.raises(LocalProtocolError):
        listener.send_accept()
    assert feed(listener, dialler.send_accept()) == [Accept()]
    assert {dialler.state, listener.state} == {State.OPEN}
    assert dialler.version == 1


def test_calls_and_answers() -> None:
    a, b = opened()
    one, head_one = a.send_call("m", [1], 3)
    two, head_two = a.send_call("n", None, 0)
    assert (one, two) == (1, 3)
    back, head_back = b.send_call("o", {"x": 1}, 0)
    assert back == 2
    assert feed(b, head_one, b"abc", head_two) == [
        Call(1, "m", [1], b"abc"),
        Call(3, "n", None, b""),
    ]
    assert feed(a, head_back) == [Call(2, "o", {"x": 1}, b"")]
    assert feed(a, b.send_reply(3, "r", 2), b"xy") == [Reply(3, "r", b"xy")]
    assert feed(a, b.send_failure(1, 2, "no")) == [Failure(1, 2, "no")]
    assert a.calls_out == b.calls_in == 0
    assert b.send_reply(1, None, 0) == b""  # answered already


def test_a_stream_and_its_two_ends() -> None:
    a, b = opened()
    stream, head = a.send_open("s", "hi")
    assert feed(b, head) == [Open(stream, "s", "hi")]
    first, second = a.send_message(stream, 1, 2), b.send_message(stream, 2, 0)
    assert feed(b, first, b"pp") == [Message(stream, 1, b"pp", len(first) + 2)]
    assert feed(a, second) == [Message(stream, 2, b"", len(second))]
    assert feed(b, a.send_end(stream)) == [End(stream)]
    assert a.send_end(stream) == b""
    with pytest.raises(LocalProtocolError):
        a.send_message(stream, 3, 0)
    assert feed(a, b.send_message(stream, 4, 0))
    assert feed(a, b.send_end(stream)) == [End(stream)]
    assert a.credit(stream) is b.credit(stream) is None


def test_credit_is_used_given_back_and_enforced() -> None:
    a, b = opened()
    stream, head = a.send_open("s", None)
    feed(b, head)
    payload = bytes(limits.BLOCK_BYTES_MAX)
    message = a.send_message(stream, None, len(payload))
    (event,) = feed(b, message, payload)
    assert isinstance(event, Message)
    with pytest.raises(LocalProtocolError):
        a.send_message(stream, None, 0)  # all used up
    given = b.send_consumed(stream, event.cost)
    assert feed(a, given) == [Credit(stream, event.cost)]
    a.send_message(stream, None, 0)
    assert b.send_consumed(stream, 10) == b""  # too little to be worth a frame


def test_who_sends_without_credit_breaks_the_protocol() -> None:
    a, b = opened()
    stream, head = a.send_open("s", None)
    feed(b, head)
    payload = bytes(limits.BLOCK_BYTES_MAX)
    message = a.send_message(stream, None, len(payload))
    feed(b, message, payload)
    with pytest.raises(RemoteProtocolError, match="credit"):
        feed(b, frame_head(FrameType.MESSAGE, stream, codec.encode(None), 0))


def test_cancel_crossing_an_answer_is_no_error_on_either_side() -> None:
    a, b = opened()
    stream, head = a.send_call("m", None, 0)
    feed(b, head)
    reply = b.send_reply(stream, 1, 0)
    cancel = a.send_cancel(stream)
    assert feed(a, reply) == []
    assert feed(b, cancel) == []
    assert a.send_cancel(stream) == b""
    stream, head = a.send_open("s", None)
    feed(b, head)
    assert feed(b, a.send_cancel(stream)) == [Cancel(stream)]
    assert b.send_end(stream) == b.send_failure(stream, 1, "") == b""


def test_pings_and_goodbye() -> None:
    a, b = opened()
    assert feed(b, a.send_ping(7)) == [Ping(7)]
    assert feed(a, b.send_pong(7)) == [Pong(7)]
    assert feed(b, a.send_goodbye(101, "bye"), a.send_ping(8)) == [Goodbye(101, "bye")]
    assert b.state is State.ENDED


def test_an_answer_that_crosses_a_goodbye_is_no_error() -> None:
    a, b = opened()
    stream, head = a.send_call("m", None, 0)
    feed(b, head, a.send_goodbye(101, "bye"))
    assert b.send_reply(stream, 1, 0) == b""


def test_goodbye_at_any_time() -> None:
    fresh = Connection(dialler=True)
    assert feed(fresh, PREFACE, Connection(dialler=False).send_goodbye(20, "full"))
    dialler, listener = greeted()
    assert feed(listener, dialler.send_goodbye(100, "twice")) == [Goodbye(100, "twice")]


@pytest.mark.parametrize("data", [b"HTTP/1.1 400", b"S", b"\x16\x03\x01", PREFACE[:-1] + b"x"])
def test_a_stranger_is_known_by_its_first_wrong_byte(data: bytes) -> None:
    with pytest.raises(NotDfsNode):
        feed(Connection(dialler=True), data)


def test_versions() -> None:
    a = Connection(dialler=True)
    a.send_hello(hello(SMALL))
    newer = Connection(dialler=False).send_hello(hello(LARGE, version_max=9))
    feed(a, newer)
    assert a.version == 1
    b = Connection(dialler=True)
    b.send_hello(hello(SMALL))
    with pytest.raises(Refused, match="upgrade"):
        feed(b, Connection(dialler=False).send_hello(hello(LARGE, version_min=2, version_max=3)))


def test_a_newer_hello_may_say_more() -> None:
    value = [*hello(LARGE), "something new"]
    frame = frame_head(FrameType.HELLO, 0, codec.encode(value), 0)
    a = Connection(dialler=True)
    assert feed(a, PREFACE, frame) == [hello(LARGE)]


@pytest.mark.parametrize(
    "changes",
    [
        {"node": b"short"},
        {"name": "x" * 65},
        {"name": "bell\x07"},
        {"network": b"x" * 65},
        {"instance": "text"},
        {"fields": {1: 2}},
        {"fields": []},
        {"version_min": 0},
        {"version_min": 2},
        {"version_max": "1"},
    ],
)
def test_malformed_hellos(changes: dict[str, Any]) -> None:
    frame = frame_head(FrameType.HELLO, 0, codec.encode(list(hello(LARGE)._replace(**changes))), 0)
    with pytest.raises(RemoteProtocolError):
        feed(Connection(dialler=True), PREFACE, frame)


def raw(type_: int, stream: int, value: Any, payload: bytes = b"") -> bytes:
    return frame_head(type_, stream, codec.encode(value), len(payload)) + payload


@pytest.mark.parametrize(
    "frame",
    [
        raw(99, 0, None),
        raw(FrameType.HELLO, 0, None),
        raw(FrameType.ACCEPT, 0, None),
        raw(FrameType.CALL, 2, ["m", None]),  # an id of the other side
        raw(FrameType.CALL, 1, None),
        raw(FrameType.CALL, 1, ["m"]),
        raw(FrameType.CALL, 1, ["", None]),
        raw(FrameType.CALL, 1, ["m" * 65, None]),
        raw(FrameType.CALL, 1, [b"m", None]),
        raw(FrameType.REPLY, 2, None),  # never asked
        raw(FrameType.FAILURE, 2, [1, "x"]),
        raw(FrameType.FAILURE, 1, [1, "x" * 513]),
        raw(FrameType.MESSAGE, 2, None),
        raw(FrameType.CREDIT, 2, 1),
        raw(FrameType.CREDIT, 1, -1),
        raw(FrameType.CANCEL, 2, None),
        raw(FrameType.PING, 0, "x"),
        raw(FrameType.PONG, 0, True),
        raw(FrameType.PING, 0, 1 << 63),
        FIXED.pack(FrameType.PING, 1, 0, 0, 0, 0),
        FIXED.pack(FrameType.PING, 0, 1, 0, 0, 0),
        FIXED.pack(FrameType.CALL, 0, 0, limits.FRAME_HEADER_BYTES_MAX + 1, 0, 1),
        FIXED.pack(FrameType.CALL, 0, 0, 0, limits.FRAME_PAYLOAD_BYTES_MAX + 1, 1),
        frame_head(FrameType.CALL, 1, b"\xc1", 0),
        frame_head(FrameType.CALL, 1, codec.encode(["m", 1]) + b"x", 0),
    ],
)
def test_what_breaks_the_protocol(frame: bytes) -> None:
    _, listener = opened()
    with pytest.raises(RemoteProtocolError):
        feed(listener, frame)


def test_an_id_in_use_cannot_be_opened_again() -> None:
    _, listener = opened()
    feed(listener, raw(FrameType.CALL, 1, ["m", None]))
    with pytest.raises(RemoteProtocolError):
        feed(listener, raw(FrameType.OPEN, 1, ["m", None]))


def test_more_credit_than_was_used() -> None:
    a, b = opened()
    stream, head = a.send_open("s", None)
    feed(b, head)
    with pytest.raises(RemoteProtocolError):
        feed(a, raw(FrameType.CREDIT, stream, 1))


def test_too_many_streams() -> None:
    _, listener = opened()
    for number in range(limits.MESSAGE_STREAMS_PER_SESSION_MAX):
        feed(listener, raw(FrameType.OPEN, 2 * number + 1, ["m", None]))
    with pytest.raises(RemoteProtocolError, match="too many"):
        feed(listener, raw(FrameType.OPEN, 9999, ["m", None]))


@pytest.mark.parametrize("early", [raw(FrameType.CALL, 1, ["m", None]), raw(FrameType.PING, 0, 1)])
def test_nothing_may_come_before_admission(early: bytes) -> None:
    dialler, listener = greeted()
    for connection in (dialler, listener):
        with pytest.raises(RemoteProtocolError):
            feed(connection, early)


def test_a_strangers_frames_are_small() -> None:
    connection = Connection(dialler=False)
    with pytest.raises(RemoteProtocolError):
        feed(
            connection, PREFACE, FIXED.pack(FrameType.HELLO, 0, 0, limits.HELLO_BYTES_MAX + 1, 0, 0)
        )
    with pytest.raises(RemoteProtocolError):
        feed(Connection(dialler=False), PREFACE, FIXED.pack(FrameType.HELLO, 0, 0, 10, 1, 0))


def test_what_we_must_not_send() -> None:
    fresh = Connection(dialler=True)
    with pytest.raises(LocalProtocolError):
        fresh.send_call("m", None, 0)
    fresh.send_hello(hello(SMALL))
    with pytest.raises(LocalProtocolError):
        fresh.send_hello(hello(SMALL))
    with pytest.raises(LocalProtocolError):
        Connection(dialler=True).send_hello(hello(SMALL, fields={"x": "y" * 20_000}))
    a, _ = opened()
    for body, payload_bytes in (
        (b"x" * limits.FRAME_HEADER_BYTES_MAX, 0),
        (None, limits.FRAME_PAYLOAD_BYTES_MAX + 1),
        (object(), 0),
    ):
        with pytest.raises(LocalProtocolError):
            a.send_call("m", body, payload_bytes)
    assert a.calls_out == 0
