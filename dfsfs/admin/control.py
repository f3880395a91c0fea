"""The control socket: serves an `Operator` to the commands of this machine.

The same wire, sessions and flow control as between nodes, over a Unix socket that the kernel opens
to this node's user and root alone. A client that dies in the middle of a `put` leaves nothing: what
is put becomes visible only after the client has said that it was all.
"""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from pathlib import Path

import trio

from dfsfs.admin import messages
from dfsfs.admin.endpoint import control_endpoint
from dfsfs.admin.operator import Operator
from dfsfs.base.limits import CONTROL_PIECE_BYTES
from dfsfs.base.types import Buffer
from dfsfs.net import MessageStream, Reply, Request, Session
from dfsfs.runtime import World, ungrouped


class _Handlers:
    """One method a command. Everything the client sent is checked before the operator sees it."""

    def __init__(self, operator: Operator, facts: Mapping[str, str]) -> None:
        self._operator = operator
        self._facts = dict(facts)

    def status(self, _session: Session, _request: Request) -> Reply:
        facts = {**self._operator.status(), **self._facts}
        return Reply(payload=messages.facts_to_payload(facts))

    async def info(self, _session: Session, request: Request) -> Reply:
        facts = await self._operator.info(messages.check_key(request.body))
        return Reply(payload=messages.facts_to_payload(facts))

    async def stat(self, _session: Session, request: Request) -> Reply:
        entry = await self._operator.stat(messages.check_key(request.body))
        return Reply(payload=messages.listings_to_payload([entry]))

    async def list(self, _session: Session, request: Request) -> Reply:
        key, after, limit = messages.check_list_request(request.body)
        entries = await self._operator.list(key, after, limit)
        return Reply(payload=messages.listings_to_payload(entries))

    async def remove(self, _session: Session, request: Request) -> Reply:
        await self._operator.remove(messages.check_key(request.body))
        return Reply()

    async def put(self, _session: Session, stream: MessageStream) -> None:
        async with aclosing(_payloads(stream)) as pieces:
            await self._operator.put(messages.check_key(stream.body), pieces)
        await stream.send(True)

    async def get(self, _session: Session, stream: MessageStream) -> None:
        async with self._operator.get(messages.check_key(stream.body)) as pieces:
            async for piece in pieces:
                view = memoryview(piece)
                for start in range(0, len(view), CONTROL_PIECE_BYTES):
                    await stream.send(None, view[start : start + CONTROL_PIECE_BYTES])

    async def upkeep(self, _session: Session, stream: MessageStream) -> None:
        task, arguments = messages.check_task(stream.body)
        async with aclosing(self._operator.upkeep(task, arguments)) as reports:
            async for report in reports:
                await stream.send(None, messages.facts_to_payload(report))


async def _payloads(stream: MessageStream) -> AsyncGenerator[Buffer, None]:
    # Ends in good order only when the client has ended the stream, which it does only when it has
    # read all of its file; anything else raises, and the put does not happen.
    async for message in stream:
        yield message.payload


async def serve_control(
    operator: Operator,
    world: World,
    path: Path,
    facts: Mapping[str, str],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled. `facts` are added to the status: what a face knows, not the node.

    Raises:
        Unavailable: another process listens there.
    """
    handlers = _Handlers(operator, facts)
    endpoint = control_endpoint(world, "control")
    endpoint.serve_calls(messages.STATUS, handlers.status)
    endpoint.serve_calls(messages.INFO, handlers.info)
    endpoint.serve_calls(messages.STAT, handlers.stat)
    endpoint.serve_calls(messages.LIST, handlers.list)
    endpoint.serve_calls(messages.REMOVE, handlers.remove)
    endpoint.serve_streams(messages.PUT, handlers.put)
    endpoint.serve_streams(messages.GET, handlers.get)
    endpoint.serve_streams(messages.UPKEEP, handlers.upkeep)
    with ungrouped():
        async with trio.open_nursery() as nursery:
            await nursery.start(endpoint.run)
            await endpoint.listen(f"unix://{path}")
            task_status.started()
