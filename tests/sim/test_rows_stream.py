"""What a node believes of the messages on a stream of rows: written by hand, as a peer would."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import trio

from dfsfs.base.errors import DfsError
from dfsfs.base.limits import (
    DRAFTS_HEARD_MAX,
    LEASE_TIMEOUT_S,
    ROWS_ACKNOWLEDGED_S,
    SESSION_LEASE_S,
)
from dfsfs.base.types import Origin
from dfsfs.cluster.exchange import METHOD
from dfsfs.namespace.rows import encode_rows
from dfsfs.net import MessageStream, Session
from dfsfs.testing.simnode import SimNode
from dfsfs.testing.simulator import Simulation


@asynccontextmanager
async def stream_of_rows(sender: SimNode, receiver: SimNode) -> AsyncIterator[MessageStream]:
    """Takes the place of the one that `sender` itself sends on."""
    session = sender.node.endpoint.sessions[receiver.identity.node_id]
    async with session.open_stream(METHOD, {}) as stream:
        await stream.receive()  # what the receiver holds
        yield stream


async def answers(stream: MessageStream, within_s: float) -> list[str]:
    """The kinds of what comes back until then, without the reports that come by themselves."""
    kinds = []
    with trio.move_on_after(within_s):
        while True:
            kinds.append((await stream.receive()).body[0])
    return [kind for kind in kinds if kind != "have"]


def nothing_between(origin: Origin, after: int, upto: int) -> tuple[list[object], bytes]:
    """A message with a batch of no rows."""
    rows = encode_rows([])
    return ["rows", [[int(origin), after, upto, len(rows)]]], rows


async def test_a_flush_behind_rows_that_are_missing_is_not_reported_before_they_are_here(
    sim: Simulation,
) -> None:
    """Promise 9: the sender would take it for theirs."""
    a, b = await sim.start_nodes(2)
    origin, held = a.node.origin, a.node.namespace.position
    async with stream_of_rows(a, b) as stream:
        await stream.send(*nothing_between(origin, held + 10, held + 20))
        await stream.send(["rows", [], 1])
        assert await answers(stream, SESSION_LEASE_S) == ["ack", "pull"]
        await stream.send(*nothing_between(origin, held, held + 10))
        await stream.send(*nothing_between(origin, held + 10, held + 20))
        await stream.send(["rows", [], 1])
        assert await answers(stream, SESSION_LEASE_S) == ["ack", "ack", "flushed"]


async def test_a_peer_whose_rows_make_no_sense_loses_its_session(sim: Simulation) -> None:
    """Promise 16: it would be waited for, and nothing it says would be taken."""
    a, b = await sim.start_nodes(2)
    step = 8192
    drafts = [list(range(first, first + step)) for first in range(9, 2 * DRAFTS_HEARD_MAX, step)]
    nonsense: list[list[list[object]]] = [
        [["rows", "nonsense"]],
        [["lease", [[7]]]],  # nobody asked
        [["rows", [], 0, marks] for marks in drafts],
    ]
    for messages in nonsense:
        session = a.node.endpoint.sessions[b.identity.node_id]
        with suppress(DfsError):
            async with stream_of_rows(a, b) as stream:
                for body in messages:
                    await stream.send(body)
                await trio.sleep(1)
        assert "its rows are refused" in session.close_reason, messages[0]
        await sim.until(sim.all_connected, within_s=30)
    await b.write("/x", b"1")
    assert await a.read("/x") == b"1"


async def test_who_acknowledges_nothing_is_waited_for_once(sim: Simulation) -> None:
    """Promise 16, of a peer that only says that it is there."""
    a, b, c = await sim.start_nodes(3)

    async def deaf(session: Session, stream: MessageStream) -> None:
        await stream.send(["have", a.node.namespace.have(), {}])
        while True:
            await stream.receive()

    a.node.endpoint._handlers.streams[METHOD] = deaf
    sim.partition([a], [b, c])
    await trio.sleep(2 * SESSION_LEASE_S)
    sim.heal()
    await sim.until(lambda: b.node.cluster.publication.counts(a.identity.node_id), within_s=30)
    with trio.fail_after(LEASE_TIMEOUT_S + ROWS_ACKNOWLEDGED_S + 3 * SESSION_LEASE_S):
        await b.write("/x", b"1")
    with trio.fail_after(SESSION_LEASE_S):
        await b.write("/y", b"2")
    assert await c.read("/x") == b"1"
