"""Two connections back to back: whatever is said arrives, however the bytes are cut; and no bytes,
however hostile, do more than raise the peer's fault."""

import random
from contextlib import suppress
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from dfsfs.base.errors import NotDfsNode, Refused, RemoteProtocolError
from dfsfs.base.types import NodeId
from dfsfs.wire import Call, Connection, Event, Failure, Hello, Message, Open, Reply, State

bodies = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
payloads = st.binary(max_size=200) | st.integers(0, 200_000).map(bytes)


class Wire:
    """Two open connections; what one sends is cut at random before the other sees it."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.a, self.b = Connection(dialler=True), Connection(dialler=False)
        first = self.a.send_hello(Hello(1, 1, NodeId(b"a" * 32), b"", b"", "a", {}))
        second = self.b.send_hello(Hello(1, 1, NodeId(b"b" * 32), b"", b"", "b", {}))
        self.carry(first, self.b)
        self.carry(second, self.a)
        self.carry(self.a.send_accept(), self.b)
        assert self.a.state is self.b.state is State.OPEN

    def carry(self, data: bytes, to: Connection) -> list[Event]:
        events: list[Event] = []
        while data:
            buffer = to.buffer()
            assert len(buffer) > 0
            count = min(len(buffer), len(data), self.dice.choice((1, 3, 20, 1000, 100_000)))
            buffer[:count] = data[:count]
            to.received(count)
            data = data[count:]
            while (event := to.next_event()) is not None:
                events.append(event)
        return events


@given(st.lists(st.tuples(st.booleans(), bodies, payloads), max_size=12), st.integers())
def test_calls_arrive_as_they_were_made(said: list[tuple[bool, Any, bytes]], seed: int) -> None:
    wire = Wire(random.Random(seed))
    for from_a, body, payload in said:
        one, other = (wire.a, wire.b) if from_a else (wire.b, wire.a)
        stream, head = one.send_call("m", body, len(payload))
        assert wire.carry(head + payload, other) == [Call(stream, "m", body, payload)]
        reply = other.send_reply(stream, body, len(payload))
        assert wire.carry(reply + payload, one) == [Reply(stream, body, payload)]
    assert wire.a.calls_in == wire.a.calls_out == wire.b.calls_in == wire.b.calls_out == 0


@given(st.lists(st.tuples(bodies, payloads), max_size=30), st.integers())
def test_streams_carry_messages_in_order(said: list[tuple[Any, bytes]], seed: int) -> None:
    wire = Wire(random.Random(seed))
    stream, data = wire.a.send_open("s", None)
    for body, payload in said:
        data += wire.a.send_message(stream, body, len(payload)) + payload
        credit = wire.a.credit(stream)
        assert credit is not None
        if credit.send_left <= 0:
            break
    else:
        data += wire.a.send_end(stream)
    opened, *events = wire.carry(data, wire.b)
    assert opened == Open(stream, "s", None)
    messages = [event for event in events if isinstance(event, Message)]
    assert [(m.body, m.payload) for m in messages] == said[: len(messages)]
    for message in messages:
        wire.carry(wire.b.send_consumed(stream, message.cost), wire.a)


@given(st.lists(st.sampled_from("ocmMfeEcCr"), max_size=60), st.integers())
def test_no_order_of_legal_steps_is_a_violation(steps: list[str], seed: int) -> None:
    """Frames of different streams overtake each other, and cancels cross answers."""
    dice = random.Random(seed)
    wire = Wire(dice)
    # On their way, by stream: within one the order is kept.
    under_way: dict[tuple[Connection, int], list[bytes]] = {}
    calls: dict[Connection, list[int]] = {wire.a: [], wire.b: []}
    streams: list[int] = []

    def send(sender: Connection, stream: int, frame: bytes) -> None:
        if frame:
            under_way.setdefault((sender, stream), []).append(frame)

    for step in steps:
        one = dice.choice((wire.a, wire.b))
        if step == "c":
            stream, head = one.send_call("m", None, 0)
            calls[one].append(stream)
            send(one, stream, head)
        elif step == "o" and len(streams) < 20:
            stream, head = one.send_open("s", None)
            streams.append(stream)
            send(one, stream, head)
        elif step == "C" and calls[one]:
            stream = dice.choice(calls[one])
            send(one, stream, one.send_cancel(stream))
        elif streams and step in "mMfeE":
            stream = dice.choice(streams)
            credit = one.credit(stream)
            if credit is None:
                continue
            if step in "mM" and credit.sending and credit.send_left > 0:
                send(one, stream, one.send_message(stream, step, 0))
            elif step == "f":
                send(one, stream, one.send_failure(stream, 1, "x"))
            elif step == "e":
                send(one, stream, one.send_end(stream))
            elif step == "E" and stream & 1 == (1 if one is wire.a else 0):
                send(one, stream, one.send_cancel(stream))
        if under_way and dice.random() < 0.6:
            deliver(wire, under_way, send)
    while under_way:
        deliver(wire, under_way, send)


def deliver(wire: Wire, under_way: dict[tuple[Connection, int], list[bytes]], send: Any) -> None:
    """One frame arrives; calls are answered at once."""
    key = wire.dice.choice(list(under_way))
    sender, _ = key
    frames = under_way[key]
    frame = frames.pop(0)
    if not frames:
        del under_way[key]
    receiver = wire.b if sender is wire.a else wire.a
    for event in wire.carry(frame, receiver):
        if isinstance(event, Call) and wire.dice.random() < 0.7:
            send(receiver, event.stream, receiver.send_reply(event.stream, None, 0))
        elif isinstance(event, Message):
            send(receiver, event.stream, receiver.send_consumed(event.stream, event.cost))
        else:
            assert not isinstance(event, Failure) or event.text == "x"


@given(st.binary(max_size=300), st.integers(), st.booleans())
def test_hostile_bytes_do_no_more_than_raise(data: bytes, seed: int, session: bool) -> None:
    dice = random.Random(seed)
    wire = Wire(dice)
    target = wire.b if session else Connection(dialler=False)
    _, head = wire.a.send_call("m", [1, {"x": b"y"}], 20)
    if dice.random() < 0.7:  # start from something nearly right
        nearly = bytearray(head + bytes(20))
        for _ in range(dice.randrange(4)):
            nearly[dice.randrange(len(nearly))] = dice.randrange(256)
        data = bytes(nearly) + data
    with suppress(RemoteProtocolError, NotDfsNode, Refused):
        wire.carry(data, target)
