"""Golden vectors: the bytes of every frame. They change only with a new version of the protocol
(doc/protocol.md), never by accident: nodes of different releases meet in one network."""

from pathlib import Path

import pytest

from dfsfs.base.types import NodeId
from dfsfs.wire import PREFACE, Connection, Event, FrameType, Hello

VECTORS = Path(__file__).with_name("frames.txt")
SMALL, LARGE = NodeId(b"a" * 32), NodeId(b"b" * 32)


def make() -> dict[str, bytes]:
    """One frame of each type, as this version writes them."""
    one, other = Connection(dialler=True), Connection(dialler=False)
    frames = {
        "hello": one.send_hello(
            Hello(1, 1, SMALL, b"network", b"instance", "näme", {"origin": 7, "addresses": ["x"]})
        )
    }
    feed(other, frames["hello"])
    feed(one, other.send_hello(Hello(1, 1, LARGE, b"network", b"other", "b", {})))
    frames["accept"] = one.send_accept()
    feed(other, frames["accept"])
    call, frames["call"] = one.send_call(
        "blocks.get", [b"\x01digest", 5, None, {"b": 1, "a": -2}], 4
    )
    frames["call"] += b"\x00\xffpq"
    feed(other, frames["call"])
    frames["reply"] = other.send_reply(call, True, 2) + b"ok"
    failing, head = one.send_call("m", None, 0)
    feed(other, head)
    frames["failure"] = other.send_failure(failing, 2, "no such block")
    stream, frames["open"] = one.send_open("rows.feed", {"have": [1 << 40]})
    feed(other, frames["open"])
    frames["message"] = one.send_message(stream, ["rows", 1.5], 3) + b"abc"
    frames["end"] = one.send_end(stream)
    big = other.send_message(stream, None, 3 << 20) + bytes(3 << 20)
    cost = len(big)
    feed(one, big)
    frames["credit"] = one.send_consumed(stream, cost)
    frames["cancel"] = one.send_cancel(stream)
    frames["ping"] = one.send_ping(258)
    frames["pong"] = one.send_pong(258)
    frames["goodbye"] = one.send_goodbye(101, "stopping")
    return frames


def feed(connection: Connection, data: bytes) -> list[Event]:
    events: list[Event] = []
    while data:
        buffer = connection.buffer()
        count = min(len(buffer), len(data))
        buffer[:count] = data[:count]
        connection.received(count)
        data = data[count:]
        while (event := connection.next_event()) is not None:
            events.append(event)
    return events


def golden() -> dict[str, bytes]:
    lines = VECTORS.read_text().splitlines()
    pairs = [line.split() for line in lines if line and not line.startswith("#")]
    return {name: bytes.fromhex(data) for name, data in pairs}


def test_every_type_has_a_vector() -> None:
    assert set(golden()) == {type_.name.lower() for type_ in FrameType}


@pytest.mark.parametrize("name", [type_.name.lower() for type_ in FrameType])
def test_frames_are_written_as_ever(name: str) -> None:
    assert make()[name].hex() == golden()[name].hex()


def test_frames_are_read_as_ever() -> None:
    vectors = golden()
    reader = Connection(dialler=False)
    assert vectors["hello"].startswith(PREFACE)
    (hello,) = feed(reader, vectors["hello"])
    assert isinstance(hello, Hello)
    assert hello.name == "näme"
    reader.send_hello(Hello(1, 1, LARGE, b"network", b"other", "b", {}))
    kinds = [
        type(event).__name__.lower()
        for name in ("accept", "call", "open", "message", "end", "ping", "goodbye")
        for event in feed(reader, vectors[name])
    ]
    assert kinds == ["accept", "call", "open", "message", "end", "ping", "goodbye"]
