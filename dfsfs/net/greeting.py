"""The first words on a connection: hellos both ways, then the word of the side that decides.

Runs before there is a session, in the task that dialled or accepted; the caller bounds the time
and closes the stream if anything here raises.
"""

from contextlib import suppress

from dfsfs.base.errors import DfsError, NotDfsNode, PeerUnreachable, Refused, RemoteProtocolError
from dfsfs.base.types import NodeId
from dfsfs.net.transport import Stream, send_all
from dfsfs.wire import (
    DUPLICATE,
    Accept,
    Connection,
    Event,
    Goodbye,
    Hello,
    code_of,
    error_of,
    text_of,
)


class DuplicateConnection(DfsError):
    """The two nodes have a session; this connection is not needed. Never leaves `net`."""

    def __init__(self, node: NodeId) -> None:
        super().__init__("there is a session with this node already")
        self.node = node


async def exchange_hello(stream: Stream, connection: Connection, hello: Hello) -> Hello:
    """Send ours, receive theirs, and check it against what the transport has proved.

    Raises:
        NotDfsNode: something else answered. Refused: the peer is not who it says it is.
    """
    await send_all(stream, connection.send_hello(hello))
    event = await _next_event(stream, connection)
    if isinstance(event, Goodbye):
        raise error_of(event.code, event.text)
    if not isinstance(event, Hello):
        raise RemoteProtocolError(f"{stream.remote} did not begin with a hello")
    if stream.peer_id is not None and stream.peer_id != event.node:
        raise Refused(f"{stream.remote} claims to be a node whose key it does not have")
    return event


async def wait_admission(stream: Stream, connection: Connection, peer: NodeId) -> None:
    """Wait for the word of the side that decides.

    Raises:
        DuplicateConnection: it has a session with us. Otherwise why it does not want us.
    """
    event = await _next_event(stream, connection)
    if isinstance(event, Goodbye):
        if event.code == DUPLICATE:
            raise DuplicateConnection(peer)
        raise error_of(event.code, event.text)
    if not isinstance(event, Accept):
        raise RemoteProtocolError(f"{stream.remote} sends before it is admitted")


async def refuse(stream: Stream, connection: Connection, error: DfsError) -> None:
    """Tell the peer why there will be no session."""
    code = DUPLICATE if isinstance(error, DuplicateConnection) else code_of(error)
    with suppress(PeerUnreachable):  # it has given up first
        await send_all(stream, connection.send_goodbye(code, text_of(error)))


async def _next_event(stream: Stream, connection: Connection) -> Event:
    while True:
        try:
            event = connection.next_event()
        except NotDfsNode as error:
            raise NotDfsNode(f"{stream.remote} is not a dfs node") from error
        if event is not None:
            return event
        count = await stream.receive_into(connection.buffer())
        if not count:
            raise PeerUnreachable(f"{stream.remote} closed the connection")
        connection.received(count)
