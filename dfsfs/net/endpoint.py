"""A node's place in the network: where it listens, whom it has sessions with, what it serves.

Accepts and dials, greets, and keeps exactly one session per peer. Whom to dial and when again is
not decided here: see cluster.membership.

One session per peer: of two connections between the same nodes, the node with the smaller id
decides, and the other waits for its word; so both keep the same one, and none is used before that.
The decider refuses a connection while its session with that peer answers a ping, and replaces a
session that does not, or that belongs to an earlier start of the peer.

Invariant: `sessions[id]` is admitted on both sides, running, and not closed. Watchers see up and
down alternate for each peer.
"""

import logging
from collections.abc import Callable
from typing import Any

import trio

from dfsfs.base.errors import (
    DeadlineExceeded,
    DfsError,
    KeyMismatch,
    LocalProtocolError,
    NotDfsNode,
    OtherNode,
    Overloaded,
    PeerUnreachable,
    Refused,
    SelfConnection,
    Unavailable,
)
from dfsfs.base.limits import (
    ACCEPT_PAUSE_S,
    DIAL_TIMEOUT_S,
    HANDSHAKE_TIMEOUT_S,
    HANDSHAKES_MAX,
    INBOUND_BYTES_MAX,
    MEMBERS_MAX,
    SEND_QUEUE_BYTES_MAX,
    URGENT_QUEUE_BYTES_MAX,
)
from dfsfs.base.types import NodeId
from dfsfs.net.greeting import DuplicateConnection, exchange_hello, refuse, wait_admission
from dfsfs.net.handlers import CallHandler, Handlers, Peer, StreamHandler
from dfsfs.net.session import Session
from dfsfs.net.statistics import SessionStatistics
from dfsfs.net.transport import Address, Listener, Stream, Transports, transport_of
from dfsfs.runtime import Bounds, World
from dfsfs.wire import VERSION_MAX, VERSION_MIN, Connection, Hello

log = logging.getLogger(__name__)

_INSTANCE_BYTES = 8


class Endpoint:
    """Listeners, sessions and handlers of one node. Complete before `run`; used while it runs."""

    def __init__(
        self,
        world: World,
        node: NodeId,
        *,
        name: str,
        network: bytes,
        transports: Transports,
        hello: Callable[[], dict[str, Any]] = dict,
        admit: Callable[[NodeId], None] = lambda node: None,
    ) -> None:
        """`hello` gives the fields of the layers above, afresh for every connection.

        `admit` raises `Refused` for a node that should get no session.
        """
        self.node = node
        self.name = name
        self.sessions: dict[NodeId, Session] = {}
        self._world = world
        self.network_id = network
        self._transports = transports
        self._hello_fields = hello
        self._admit_node = admit
        self._instance = world.random.randbytes(_INSTANCE_BYTES)
        self._handlers = Handlers()
        self._up: list[Callable[[Session], None]] = []
        self._down: list[Callable[[Session], None]] = []
        self._listeners: list[Listener] = []
        self._nursery: trio.Nursery | None = None
        self._handshakes = 0
        self._past: dict[NodeId, SessionStatistics] = {}  # of sessions that ended, latest last
        self._sessions_changed = trio.lowlevel.ParkingLot()

    # -- what it serves -----------------------------------------------------------------------

    def serve_calls(self, method: str, handler: CallHandler) -> None:
        """Answer calls of `method`; one handler each."""
        assert method not in self._handlers.calls, method
        self._handlers.calls[method] = handler

    def serve_streams(self, method: str, handler: StreamHandler) -> None:
        """Serve message streams of `method`; one handler each."""
        assert method not in self._handlers.streams, method
        self._handlers.streams[method] = handler

    def on_session(
        self,
        up: Callable[[Session], None] | None = None,
        down: Callable[[Session], None] | None = None,
    ) -> None:
        """Call `up` when a session begins and `down` when it ended. They must not wait or raise."""
        if up is not None:
            self._up.append(up)
        if down is not None:
            self._down.append(down)

    def statistics(self) -> SessionStatistics:
        """The sum over all sessions, those that ended included."""
        total = SessionStatistics()
        for node in {*self._past, *self.sessions}:
            total.add(self.traffic(node))
        return total

    def traffic(self, node: NodeId) -> SessionStatistics:
        """The sum over the sessions with one peer."""
        total = SessionStatistics()
        if node in self._past:
            total.add(self._past[node])
        if node in self.sessions:
            total.add(self.sessions[node].statistics)
        return total

    def bounded(self) -> Bounds:
        """What of it is bounded, and how full that is: of the queues of each peer the fullest."""
        sessions = self.sessions.values()
        return {
            "sessions": [len(sessions), MEMBERS_MAX],
            "handshakes": [self._handshakes, HANDSHAKES_MAX],
            "peer_send_bytes": [
                max((session.outbox.queued_bytes for session in sessions), default=0),
                SEND_QUEUE_BYTES_MAX + URGENT_QUEUE_BYTES_MAX,
            ],
            "peer_inbound_bytes": [
                max((session.inbound_bytes for session in sessions), default=0),
                INBOUND_BYTES_MAX,
            ],
        }

    # -- running ------------------------------------------------------------------------------

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Be reachable until cancelled; then say goodbye to every peer."""
        async with trio.open_nursery() as outer:
            self._nursery = await outer.start(_shielded_nursery)
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                for listener in self._listeners:
                    listener.close()
                with trio.CancelScope(shield=True):
                    await self._close_sessions()
                self._nursery.cancel_scope.cancel()

    async def _close_sessions(self) -> None:
        # Bounded: a session gives its peer `GOODBYE_TIMEOUT_S`.
        sessions = list(self.sessions.values())
        for session in sessions:
            session.close(f"{self.name} is stopping")
        for session in sessions:
            await session.closed.wait()

    async def listen(self, url: str) -> str:
        """Accept connections at `url` from now on; returns the address with its real port.

        Raises:
            Unavailable: the address cannot be had. Invalid: it is none. KeyMissing: no key.
        """
        address = Address.parse(url)
        listener = await transport_of(self._transports, address).listen(address)
        self._listeners.append(listener)
        self._running().start_soon(self._accept, listener)
        return listener.url

    async def connect(self, url: str, *, expect: NodeId | None = None) -> Session:
        """The session with the node at `url`: a new one, or the one there is already.

        Raises:
            KeyMissing, KeyMismatch, NotDfsNode: the three things to tell a user apart.
            SelfConnection: this node itself answers there.
            Refused: a node other than `expect` answers there, or it does not want us.
            PeerUnreachable, DeadlineExceeded: nobody answers, or not in time.
            Invalid: no address.
        """
        address = Address.parse(url)
        transport = transport_of(self._transports, address)
        stream = None
        with trio.move_on_after(DIAL_TIMEOUT_S):
            stream = await transport.connect(address)
        if stream is None:
            raise DeadlineExceeded(f"{address.url} does not answer within {DIAL_TIMEOUT_S:g} s")
        return await self._greet(stream, dialled=True, expect=expect)

    async def _accept(self, listener: Listener) -> None:
        while True:
            try:
                stream = await listener.accept()
            except PeerUnreachable:
                return  # closed
            except Unavailable as error:
                log.warning("%s", error)
                await trio.sleep(ACCEPT_PAUSE_S)
                continue
            if self._handshakes >= HANDSHAKES_MAX:
                stream.close()
                continue
            self._handshakes += 1
            self._running().start_soon(self._welcome, stream)

    async def _welcome(self, stream: Stream) -> None:
        try:
            await self._greet(stream, dialled=False, expect=None)
        except DuplicateConnection:
            pass  # both sides dialled: the usual case at start
        except DfsError as error:
            log.info("connection from %s: %s", stream.remote, error)
        finally:
            self._handshakes -= 1

    # -- greeting -----------------------------------------------------------------------------

    async def _greet(self, stream: Stream, *, dialled: bool, expect: NodeId | None) -> Session:
        """Handshake, hellos, admission; the stream is closed unless it becomes a session."""
        connection = Connection(dialler=dialled)
        admitted = False
        try:
            with trio.move_on_after(HANDSHAKE_TIMEOUT_S):
                await stream.handshake()
                try:
                    hello = await exchange_hello(stream, connection, self._hello())
                    peer = self._peer(stream, hello, dialled=dialled)
                    self._check_peer(peer, hello, expect)
                    session = await self._admit(stream, connection, peer)
                except (Refused, Overloaded, DuplicateConnection) as error:
                    await refuse(stream, connection, error)
                    raise
                admitted = True
                return session
            if connection.hello_received is None:
                raise NotDfsNode(f"{stream.remote} says nothing: it is not a dfs node, or it hangs")
            raise DeadlineExceeded(f"{stream.remote} did not finish its greeting")
        except DuplicateConnection as error:
            if not dialled:
                raise
            stream.close()
            return await self._existing(error)
        finally:
            if not admitted:
                stream.close()

    def _hello(self) -> Hello:
        return Hello(
            VERSION_MIN,
            VERSION_MAX,
            self.node,
            self.network_id,
            self._instance,
            self.name,
            self._hello_fields(),
        )

    def _peer(self, stream: Stream, hello: Hello, *, dialled: bool) -> Peer:
        return Peer(
            node=hello.node,
            name=hello.name,
            fields=hello.fields,
            instance=hello.instance,
            address=stream.remote,
            dialled=dialled,
            proved=stream.peer_id is not None,
            local=stream.local,
        )

    def _check_peer(self, peer: Peer, hello: Hello, expect: NodeId | None) -> None:
        if hello.network != self.network_id and not peer.local:
            raise KeyMismatch(f"{peer.address} is a node of another network")
        if peer.node == self.node:
            if peer.instance == self._instance:
                raise SelfConnection(f"{peer.address} is this node itself")
            raise Refused(f"{peer.address} uses the identity of this node: was it copied?")
        if expect is not None and peer.node != expect:
            raise OtherNode(
                f"{peer.address} is node {peer.node.hex()[:12]} ({peer.name}),"
                f" not {expect.hex()[:12]}"
            )
        self._admit_node(peer.node)
        if peer.node not in self.sessions and len(self.sessions) >= MEMBERS_MAX:
            raise Overloaded(f"{self.name} has {MEMBERS_MAX} sessions already")

    async def _admit(self, stream: Stream, connection: Connection, peer: Peer) -> Session:
        if not connection.decides:
            await wait_admission(stream, connection, peer.node)
            return self._install(stream, connection, peer)
        while (existing := self.sessions.get(peer.node)) is not None:
            if existing.peer.instance != peer.instance:
                break  # the peer has restarted
            if await existing.ping():
                raise DuplicateConnection(peer.node)
            await existing.closed.wait()
        # No await between the look above and the session being there.
        return self._install(stream, connection, peer, connection.send_accept())

    def _install(
        self, stream: Stream, connection: Connection, peer: Peer, accept: bytes = b""
    ) -> Session:
        old = self.sessions.get(peer.node)
        if old is not None:
            old.close("a newer connection replaces it")
            self._remove(old)
        session = Session(self._world, stream, connection, peer, self._handlers)
        if accept:
            session.outbox.put(0, accept)  # before anything that a watcher may send
        self.sessions[peer.node] = session
        self._running().start_soon(self._run_session, session)
        log.info("session with %s (%s) at %s", peer.name, peer.node.hex()[:12], peer.address)
        for up in self._up:
            up(session)
        self._sessions_changed.unpark_all()
        return session

    async def _run_session(self, session: Session) -> None:
        try:
            await session.run(ended=self._remove)
        finally:
            total = self._past.pop(session.peer.node, SessionStatistics())
            total.add(session.statistics)
            self._past[session.peer.node] = total
            if len(self._past) > MEMBERS_MAX:
                del self._past[next(iter(self._past))]

    def _remove(self, session: Session) -> None:
        """Take a session out, once."""
        if self.sessions.get(session.peer.node) is not session:
            return
        del self.sessions[session.peer.node]
        log.info("session with %s ended: %s", session.peer.name, session.close_reason)
        for down in self._down:
            down(session)
        self._sessions_changed.unpark_all()

    async def _existing(self, duplicate: DuplicateConnection) -> Session:
        """The session because of which our connection was not needed."""
        with trio.move_on_after(HANDSHAKE_TIMEOUT_S):
            while True:
                session = self.sessions.get(duplicate.node)
                if session is not None:
                    return session
                await self._sessions_changed.park()
        raise PeerUnreachable("the node said that it has a session with this one, and it has not")

    def _running(self) -> trio.Nursery:
        if self._nursery is None:
            raise LocalProtocolError("the endpoint is not running")
        return self._nursery


async def _shielded_nursery(task_status: trio.TaskStatus[trio.Nursery]) -> None:
    """A nursery that is ended by its user alone: sessions outlive a cancellation by a goodbye."""
    async with trio.open_nursery() as nursery:
        nursery.cancel_scope.shield = True
        task_status.started(nursery)
        await trio.sleep_forever()
