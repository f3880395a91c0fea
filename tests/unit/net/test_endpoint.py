"""Endpoints: who gets a session, that there is one per peer, and how others are told no."""

from collections import deque

import pytest
import trio
from trio.testing import MockClock

from dfsfs.base import limits
from dfsfs.base.errors import (
    DeadlineExceeded,
    Invalid,
    KeyMismatch,
    NotDfsNode,
    PeerUnreachable,
    Refused,
    SelfConnection,
)
from dfsfs.base.types import NodeId
from dfsfs.net import Address, Endpoint, Reply, Request, Session, Stream
from dfsfs.wire import Connection, Hello, State
from tests.unit.net.conftest import NETWORK, Net, node_id, until

GENEROUS_S = 20


def serve_echo(endpoint: Endpoint) -> None:
    def echo(session: Session, request: Request) -> Reply:
        return Reply(request.body)

    endpoint.serve_calls("echo", echo)


async def test_both_sides_know_each_other(net: Net) -> None:
    a = await net.start("a", fields={"mounts": True})
    b = await net.start("b", fields={"origin": 7})
    session = await a.connect("sim://b", expect=b.node)
    await until(lambda: a.node in b.sessions)
    other = b.sessions[a.node]
    assert (session.peer.node, session.peer.name) == (b.node, "b")
    assert (other.peer.node, other.peer.name) == (a.node, "a")
    assert session.peer.fields == {"origin": 7}
    assert other.peer.fields == {"mounts": True}
    assert session.peer.dialled
    assert not other.peer.dialled
    assert session.peer.proved
    assert a.sessions == {b.node: session}
    assert net.events == {"a": [("up", b.node)], "b": [("up", a.node)]}


async def test_a_second_dial_gives_the_session_there_is(net: Net) -> None:
    near, far = await net.pair()
    assert await net.endpoints["a"].connect("sim://b") is near
    assert await net.endpoints["b"].connect("sim://a") is far
    assert net.events["a"] == [("up", near.peer.node)]
    assert net.events["b"] == [("up", far.peer.node)]
    assert not near.closed.is_set()


@pytest.mark.parametrize("round_", range(20))
async def test_simultaneous_dials_end_in_one_session(net: Net, round_: int) -> None:
    a, b = await net.start("a", serve=serve_echo), await net.start("b", serve=serve_echo)
    results: dict[str, Session] = {}

    async def dial(endpoint: Endpoint, url: str) -> None:
        results[endpoint.name] = await endpoint.connect(url)

    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(dial, a, "sim://b")
            nursery.start_soon(dial, b, "sim://a")
    await until(lambda: len(a.sessions) == len(b.sessions) == 1)
    assert (await a.sessions[b.node].call("echo", 1)).body == 1
    assert (await b.sessions[a.node].call("echo", 2)).body == 2
    assert results["a"] is a.sessions[b.node]
    assert results["b"] is b.sessions[a.node]
    assert net.events == {"a": [("up", b.node)], "b": [("up", a.node)]}


@pytest.mark.parametrize("restarted", ["a", "b"])
async def test_a_restarted_peer_replaces_its_old_session(net: Net, restarted: str) -> None:
    near, far = await net.pair()
    other = {"a": "b", "b": "a"}[restarted]
    stale = far if restarted == "a" else near
    # It vanished without a word: the other side believes in the old session still.
    old = net.endpoints[restarted]
    net.network.crash(restarted, noticed=False)
    fresh = await net.start(restarted, serve=serve_echo)
    session = await fresh.connect(f"sim://{other}")
    await until(lambda: net.endpoints[other].sessions.get(old.node) not in (None, stale))
    kept = net.endpoints[other].sessions[old.node]
    assert (await kept.call("echo", 5)).body == 5
    assert session.peer.node == net.endpoints[other].node
    assert net.events[other] == [("up", old.node), ("down", old.node), ("up", old.node)]
    with trio.fail_after(GENEROUS_S):
        await stale.closed.wait()


@pytest.mark.parametrize("dialler", ["a", "b"])
async def test_a_session_lost_on_one_side_only_is_replaced(
    net: Net, autojump_clock: MockClock, dialler: str
) -> None:
    near, far = await net.pair(serve_echo)
    lost, stale, other = (near, far, "b") if dialler == "a" else (far, near, "a")
    assert net.network.cut(dialler, other, noticed_by=dialler) == 1
    with trio.fail_after(GENEROUS_S):
        await lost.closed.wait()
        assert not stale.close_reason
        session = await net.endpoints[dialler].connect(f"sim://{other}")
        assert (await session.call("echo", 1)).body == 1
        await stale.closed.wait()


async def test_a_node_learns_its_own_address(net: Net) -> None:
    a = await net.start("a")
    with pytest.raises(SelfConnection):
        await a.connect("sim://a")
    assert a.sessions == {}


async def test_a_copied_identity_is_refused(net: Net) -> None:
    a = await net.start("a")
    await net.start("b", node=a.node)
    with pytest.raises(Refused, match="identity"):
        await a.connect("sim://b")


async def test_another_network(net: Net) -> None:
    a = await net.start("a")
    await net.start("b", network=b"other")
    with pytest.raises(KeyMismatch, match="another network"):
        await a.connect("sim://b")
    assert a.sessions == {}


async def test_somebody_else_answers(net: Net) -> None:
    a, b = await net.start("a"), await net.start("b")
    with pytest.raises(Refused, match="not"):
        await a.connect("sim://b", expect=node_id("c"))
    assert b.sessions == {}


async def test_addresses_that_lead_nowhere(net: Net, autojump_clock: MockClock) -> None:
    a = await net.start("a")
    with pytest.raises(PeerUnreachable):
        await a.connect("sim://nobody")
    with pytest.raises(Invalid):
        await a.connect("gopher://b")
    with pytest.raises(Invalid):
        await a.connect("b:4000")
    net.network.partition({"a"}, {"b"})
    await net.start("b")
    with pytest.raises(DeadlineExceeded):
        await a.connect("sim://b")


async def raw(net: Net, target: str, node: NodeId | None = None) -> Stream:
    """A connection to `target` that speaks whatever the test wants."""
    stream = await net.network.transport("raw", node).connect(Address.parse(f"sim://{target}"))
    await stream.handshake()
    return stream


def write(stream: Stream, data: bytes) -> None:
    stream.send_nowait(deque([memoryview(data)]))


async def read_to_the_end(stream: Stream) -> bytes:
    data = b""
    buffer = bytearray(65536)
    try:
        while count := await stream.receive_into(memoryview(buffer)):
            data += buffer[:count]
    except PeerUnreachable:
        pass
    return data


@pytest.mark.parametrize(
    "noise", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x93dfsfs\r\r", b"\x16\x03\x01\x02\x00\x01"]
)
async def test_a_stranger_that_dials_is_sent_away(net: Net, noise: bytes) -> None:
    a = await net.start("a")
    stream = await raw(net, "a")
    write(stream, noise)
    with trio.fail_after(GENEROUS_S):
        await read_to_the_end(stream)
    stream.close()
    assert a.sessions == {}
    await until(lambda: a._handshakes == 0)


async def test_a_silent_stranger_is_sent_away(net: Net, autojump_clock: MockClock) -> None:
    a = await net.start("a")
    stream = await raw(net, "a")
    with trio.fail_after(limits.HANDSHAKE_TIMEOUT_S + 1):
        await read_to_the_end(stream)
    stream.close()
    assert a._handshakes == 0


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH\r\n"])
async def test_dialling_something_else(net: Net, answer: bytes) -> None:
    a = await net.start("a")
    listener = await net.network.transport("web").listen(Address.parse("sim://web"))

    async def serve() -> None:
        stream = await listener.accept()
        await stream.handshake()
        write(stream, answer)
        await read_to_the_end(stream)
        stream.close()

    net.nursery.start_soon(serve)
    with trio.fail_after(GENEROUS_S), pytest.raises(NotDfsNode, match="not a dfs node"):
        await a.connect("sim://web")


async def test_dialling_a_silent_port(net: Net, autojump_clock: MockClock) -> None:
    a = await net.start("a")
    await net.network.transport("web").listen(Address.parse("sim://web"))
    with (
        trio.fail_after(limits.HANDSHAKE_TIMEOUT_S + 1),
        pytest.raises(NotDfsNode, match="nothing"),
    ):
        await a.connect("sim://web")


async def test_a_claimed_id_must_be_the_proved_one(net: Net) -> None:
    a = await net.start("a")
    stream = await raw(net, "a", node_id("m"))
    connection = Connection(dialler=True)
    write(stream, connection.send_hello(Hello(1, 1, node_id("b"), NETWORK, b"i", "b", {})))
    with trio.fail_after(GENEROUS_S):
        await read_to_the_end(stream)
    assert a.sessions == {}


async def open_raw(net: Net, target: str) -> tuple[Stream, Connection]:
    """A session with `target` (which decides, as its id is smaller), driven by hand."""
    stream = await raw(net, target, node_id("z"))
    connection = Connection(dialler=True)
    write(stream, connection.send_hello(Hello(1, 9, node_id("z"), NETWORK, b"i", "z", {})))
    while connection.state is not State.OPEN:
        if connection.next_event() is None:
            connection.received(await stream.receive_into(connection.buffer()))
    return stream, connection


@pytest.mark.announce("broke the protocol")
@pytest.mark.parametrize(
    "data",
    [
        b"\xff" * 64,
        bytes((3, 0, 0, 0)) + b"\xff" * 16,
        bytes((4, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2)) + b"\xc0",
    ],
    ids=["flags", "lengths", "reply to nothing"],
)
async def test_a_peer_that_breaks_the_protocol_loses_its_session_and_nothing_else(
    net: Net, data: bytes
) -> None:
    a, b = await net.start("a", serve=serve_echo), await net.start("b")
    bystander = await b.connect("sim://a")
    stream, connection = await open_raw(net, "a")
    bad = a.sessions[node_id("z")]
    write(stream, data)
    with trio.fail_after(GENEROUS_S):
        rest = await read_to_the_end(stream)
        stream.close()
        await bad.closed.wait()
    assert rest  # it was told
    assert node_id("z") not in a.sessions
    assert (await bystander.call("echo", 1)).body == 1
    del connection


async def test_a_peer_that_asks_and_never_reads_loses_its_session(net: Net) -> None:
    def big(session: Session, request: Request) -> Reply:
        return Reply("x" * 10_000)

    a = await net.start("a", serve=lambda endpoint: endpoint.serve_calls("big", big))
    stream, connection = await open_raw(net, "a")
    session = a.sessions[node_id("z")]
    with trio.fail_after(GENEROUS_S):
        while not session.closed.is_set():
            waiting = deque([memoryview(connection.send_call("big", None, 0)[1])])
            try:
                while waiting:
                    stream.send_nowait(waiting)
                    await trio.lowlevel.checkpoint()
            except PeerUnreachable:
                break
        await session.closed.wait()
    stream.close()
    assert "not read" in session.close_reason or "is silent" in session.close_reason


async def test_strangers_cannot_take_all_handshakes(net: Net, autojump_clock: MockClock) -> None:
    a = await net.start("a")
    for _ in range(limits.HANDSHAKES_MAX + 10):
        net.nursery.start_soon(raw, net, "a")
    await until(lambda: a._handshakes == limits.HANDSHAKES_MAX)
    await trio.sleep(limits.HANDSHAKE_TIMEOUT_S + 1)
    assert a._handshakes == 0
    b = await net.start("b")
    assert (await b.connect("sim://a")).peer.node == a.node


async def test_stopping_tells_every_peer(net: Net) -> None:
    near, far = await net.pair()
    net.stop("b")
    with trio.fail_after(GENEROUS_S):
        await near.closed.wait()
        await far.closed.wait()
    assert "stopping" in near.close_reason
    assert net.events["a"][-1][0] == net.events["b"][-1][0] == "down"
    with pytest.raises(PeerUnreachable):
        await net.endpoints["a"].connect("sim://b")


@pytest.mark.parametrize("moment", [i / 2000 for i in range(12)])
async def test_a_dial_cancelled_at_any_moment_leaves_nothing_half_done(
    net: Net, autojump_clock: MockClock, moment: float
) -> None:
    a, b = await net.start("a", serve=serve_echo), await net.start("b", serve=serve_echo)
    with trio.move_on_after(moment):
        await a.connect("sim://b")
    await trio.sleep(1)
    assert a._handshakes == b._handshakes == 0
    assert (b.node in a.sessions) == (a.node in b.sessions)
    session = await a.connect("sim://b")
    assert (await session.call("echo", 1)).body == 1
    assert (await b.sessions[a.node].call("echo", 1)).body == 1
