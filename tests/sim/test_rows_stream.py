"""What a node believes of the messages on a stream of rows: written by hand, as a peer would."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from dfsfs.base.limits import SESSION_LEASE_S
from dfsfs.base.types import Origin
from dfsfs.cluster.exchange import METHOD
from dfsfs.namespace.rows import encode_rows
from dfsfs.net import MessageStream
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
