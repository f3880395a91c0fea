"""The other end of the control socket: a running node as an object in a command's process."""

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from dfsfs.admin import messages
from dfsfs.admin.endpoint import control_endpoint
from dfsfs.admin.operator import Key, Listing
from dfsfs.base.errors import PeerUnreachable, RemoteProtocolError
from dfsfs.base.limits import CONTROL_TIMEOUT_S
from dfsfs.base.types import Buffer
from dfsfs.net import Reply, Session
from dfsfs.runtime import RealWorld, ungrouped


class ControlClient:
    """`Operator`, far away. Errors are those the node's operator raised."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def _call(self, method: str, body: Any = None) -> Reply:
        return await self._session.call(method, body, deadline_s=CONTROL_TIMEOUT_S)

    async def put(self, key: Key, source: AsyncIterable[Buffer]) -> None:
        """Store what `source` yields; nothing, if it raises."""
        async with self._session.open_stream(messages.PUT, messages.key_bytes(key)) as stream:
            async for piece in source:
                await stream.send(None, piece)
            stream.end()
            await stream.receive()

    @asynccontextmanager
    async def get(self, key: Key) -> AsyncIterator[AsyncIterable[Buffer]]:
        """The content of a file, piece by piece."""
        async with self._session.open_stream(messages.GET, messages.key_bytes(key)) as stream:

            async def pieces() -> AsyncGenerator[Buffer, None]:
                async for message in stream:
                    yield message.payload

            async with aclosing(pieces()) as iterator:
                yield iterator

    async def stat(self, key: Key) -> Listing:
        """One entry."""
        reply = await self._call(messages.STAT, messages.key_bytes(key))
        entries = messages.listings_from_payload(reply.payload)
        if len(entries) != 1:
            raise RemoteProtocolError("the node answered with other than one entry")
        return entries[0]

    async def list(self, key: Key, after: bytes | None, limit: int) -> list[Listing]:
        """Some of the next `limit` entries; none at the end only."""
        reply = await self._call(messages.LIST, [messages.key_bytes(key), after, limit])
        return messages.listings_from_payload(reply.payload)

    async def remove(self, key: Key) -> None:
        """Remove a file's name, or an empty directory."""
        await self._call(messages.REMOVE, messages.key_bytes(key))

    async def status(self) -> dict[str, Any]:
        """This node and what it knows of the network."""
        reply = await self._call(messages.STATUS)
        return messages.facts_from_payload(reply.payload)

    async def upkeep(
        self, task: str, arguments: dict[str, Any]
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Reports of a task, as they come; the last one has `result`."""
        async with self._session.open_stream(messages.UPKEEP, [task, arguments]) as stream:
            async for message in stream:
                yield messages.facts_from_payload(message.payload)

    async def info(self, key: Key) -> dict[str, Any]:
        """Where a file is."""
        reply = await self._call(messages.INFO, messages.key_bytes(key))
        return messages.facts_from_payload(reply.payload)


@asynccontextmanager
async def connect_control(path: Path) -> AsyncIterator[ControlClient]:
    """The node that serves the control socket `path`.

    Raises:
        PeerUnreachable: none does.
    """
    endpoint = control_endpoint(RealWorld(), "command")
    with ungrouped():
        async with trio.open_nursery() as nursery:
            await nursery.start(endpoint.run)
            try:
                session = await endpoint.connect(f"unix://{path}")
            except PeerUnreachable as error:
                raise PeerUnreachable(
                    f"no dfs node runs with the state directory {path.parent};"
                    " start one (dfs-mount, dfs node), or name another with --state"
                ) from error
            try:
                yield ControlClient(session)
            finally:
                nursery.cancel_scope.cancel()
