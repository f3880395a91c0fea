"""Rows between two nodes: what the other lacks, then what happens here, acknowledged in order.

Each side of a session opens one stream, `rows.feed`, and sends on it; the other side applies and
acknowledges. So the two directions are independent, and everything on one stream is ordered.

    receiver -> sender   have    {origin: position}    first message: everything it holds
    sender -> receiver   rows    batches of whole transactions, each naming the position it follows
    sender -> receiver   left    about how many rows you lack, now and then while that is so
    sender -> receiver   ready   "you have acknowledged all I held when you told me what you have"
    sender -> receiver   level   "from now on I count you: every row waits for your acknowledgement"
    sender -> receiver   lease   requests and grants of leases, after all rows before them
    receiver -> sender   ack     after applying: the positions that batches brought it to
    receiver -> sender   have    now and then: everything it holds, again
    receiver -> sender   pull    {origin: position}    a batch did not follow; send again from here

A long way to catch up is before `ready`, and `level` follows when both sides have said that, so
the moment in which one side counts the other and not yet the other way round is one round trip.
After `level` only rows of the sender's own origin are pushed as they are committed: every other
node does the same with its own. Rows of a third origin are relayed only if the receiver's report
shows, twice in a row, that it has not got them from their author: that is anti-entropy, and it
heals whatever the direct way missed.

Catching up takes turns: who sends or applies a slice of old rows leaves the loop to others for as
long as that took, so a mount that has weeks to catch up with serves its users meanwhile.

A peer counts as connected for `Publication` from the moment `level` was sent: from then on it gets
every row as it is made and calls wait for its acknowledgement.
"""

import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import trio

from dfsfs.base.errors import RemoteProtocolError, Stale
from dfsfs.base.limits import (
    JOINING_ROWS_MAX,
    LEASES_PER_MESSAGE_MAX,
    ROWS_BATCH_BYTES_MAX,
    ROWS_COUNTED_MAX,
    ROWS_REPORT_S,
    ROWS_SLICE_BYTES,
    ROWS_SPARE_S,
)
from dfsfs.base.types import ORIGIN_MAX, NodeId, Origin
from dfsfs.cluster.lease import Grant, Request
from dfsfs.cluster.leases import Leases
from dfsfs.cluster.publication import Publication
from dfsfs.namespace import Batch, Change, Namespace
from dfsfs.net import MessageStream, Session

log = logging.getLogger(__name__)

METHOD = "rows.feed"
Applied = Callable[[Sequence[Change]], Awaitable[None]]


class Exchange:
    """Keeps this namespace and those of all connected peers the same. Owned by the node."""

    def __init__(
        self,
        namespace: Namespace,
        publication: Publication,
        leases: Leases,
        *,
        applied: Applied,
    ) -> None:
        """`applied` runs after remote rows were applied and before they are acknowledged.

        It makes the kernel forget what changed (promise 4) and bounds its own time.
        """
        self._namespace = namespace
        self._publication = publication
        self._leases = leases
        self._applied = applied
        self._senders: dict[NodeId, _Sender] = {}
        self._receiving: dict[NodeId, MessageStream] = {}
        self._ready_from: set[NodeId] = set()
        self._level_from: set[NodeId] = set()
        self._left: dict[NodeId, int] = {}  # rows that peers have told they will send
        self._level_changed = trio.Event()
        self._progress = trio.Event()
        namespace.subscribe(self._committed)
        self.heard: set[NodeId] = set()  # peers that have said what they hold
        self.used_origins: set[Origin] = set()  # not empty: this node's state went back in time
        self.rows_bytes_sent = 0
        self.rows_bytes_applied = 0

    # -- sending --------------------------------------------------------------------------------

    async def send(self, session: Session) -> None:
        """Send to one peer until the session ends."""
        node = session.peer.node
        self._leases.met(node)
        async with session.open_stream(METHOD, {}) as stream:
            sender = _Sender(self._namespace, stream, _origin_of(session))
            self._senders[node] = sender
            try:
                await sender.greet()
                self._check_own_past(node, sender.held)
                if not sender.level_with_all:
                    # What newer rows have replaced is left out of a batch. So those must not be
                    # lost to a power cut while the peer counts as having had the older ones.
                    await self._publication.flush_local()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._receive_reports, session, sender)
                    while True:
                        began_s = trio.current_time()
                        batches = sender.next_batches()
                        worked_s = trio.current_time() - began_s
                        if batches:
                            self.rows_bytes_sent += await _send_batches(stream, batches)
                        messages = sender.next_lease_messages()
                        if messages:
                            await stream.send(["lease", messages])
                        if batches or messages:
                            if not sender.level:
                                await self._tell_left(sender)
                                await trio.sleep(worked_s)
                            continue
                        if sender.level:
                            await sender.wait()
                            if self._publication.is_spare(node):
                                await trio.sleep(ROWS_SPARE_S)
                        elif not sender.ready and sender.caught_up:
                            sender.ready = True
                            await stream.send(["ready"])
                        elif sender.ready and node in self._ready_from:
                            # Counted before anything else can be committed: what is, follows.
                            sender.level = True
                            self._connected(session, sender)
                            await stream.send(["level"])
                        else:
                            await sender.wait()
            finally:
                if self._senders.get(node) is sender:
                    del self._senders[node]

    def _check_own_past(self, node: NodeId, held: dict[Origin, int]) -> None:
        """A peer that holds more of this node's rows than this node: its state went back in time.

        A backup was put in place, or a power cut took rows that were not flushed. Going on would
        give out the same inode numbers again, so the node has to take another incarnation.

        Raises:
            Stale: so it is.
        """
        self.heard.add(node)
        self._progress.set()
        self._progress = trio.Event()
        own = self._namespace.origin
        if held.get(own, 0) > self._namespace.position:
            self.used_origins |= set(held)
            raise Stale("a peer holds more of this node's own rows than this node")

    async def _tell_left(self, sender: "_Sender") -> None:
        """Tell a peer how long its way is; over a long one nobody's changes wait for the end."""
        left = sender.count_left()
        if left is None:
            return
        await sender.stream.send(["left", left])
        if left > JOINING_ROWS_MAX:
            self._leases.join_later()

    async def wait_heard(self, nodes: set[NodeId]) -> None:
        """Return when all of these have said what they hold."""
        while not nodes <= self.heard:
            await self._progress.wait()

    def _connected(self, session: Session, sender: "_Sender") -> None:
        mounts = bool(session.peer.fields.get("mounts"))
        self._publication.connected(
            session.peer.node,
            mounts=mounts,
            stores=bool(session.peer.fields.get("stores")),
            acknowledged=sender.held.get(sender.own, 0),
        )
        self._leases.connected(
            session.peer.node,
            sender.peer_origin,
            mounts=mounts,
            level=session.peer.node in self._level_from,
            channel=sender.push_lease,
        )

    def disconnected(self, node: NodeId) -> None:
        """The session with this node is over, and it knows: nobody waits for it any more.

        Unless it is back already.
        """
        sender = self._senders.get(node)
        if sender is None or not sender.level:
            self._publication.disconnected(node)
            self._leases.disconnected(node)
            if sender is not None:
                self._leases.met(node)

    async def _receive_reports(self, session: Session, sender: "_Sender") -> None:
        while True:
            message = await sender.stream.receive()
            kind, positions = _checked_report(message.body)
            if kind == "pull":
                sender.rewind(positions)
                continue
            sender.held.update(positions)
            if kind == "have":
                sender.plan_relay()
            if not sender.ready:
                sender.wake()
            if sender.level and sender.own in positions:
                self._publication.acknowledged(session.peer.node, positions[sender.own])

    def _committed(self, change: Change) -> None:
        """Namespace subscriber: hand a local commit to every sender, in order."""
        if change.local and change.batch is not None:
            for sender in self._senders.values():
                sender.push(change.batch)
        # A receiver that applied rows of others tells so with its next report: no push.

    # -- receiving ------------------------------------------------------------------------------

    async def receive(self, session: Session, stream: MessageStream) -> None:
        """Handler of `rows.feed`: apply what one peer sends until the session ends."""
        node = session.peer.node
        self._receiving[node] = stream
        self._ready_from.discard(node)
        self._level_from.discard(node)
        try:
            await stream.send(["have", _wire_positions(self._namespace.have())])
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._report_all, stream)
                while True:
                    message = await stream.receive()
                    if self._receiving.get(node) is not stream:
                        return  # a newer session has taken over
                    kind, batches = _checked_rows(message.body, message.payload)
                    if kind == "lease":
                        self._leases.received(node, message.body[1])
                    elif kind == "left":
                        self._left[node] = message.body[1]
                        if message.body[1] > JOINING_ROWS_MAX:
                            self._leases.join_later()
                    elif kind == "ready":
                        self._ready_from.add(node)
                        self._left.pop(node, None)
                        if node in self._senders:
                            self._senders[node].wake()
                    elif kind == "level":
                        self._level_from.add(node)
                        self._leases.level(node)
                        self._level_changed.set()
                        self._level_changed = trio.Event()
                    elif batches:
                        worked_s = await self._apply(stream, batches)
                        await trio.sleep(0.0 if node in self._level_from else worked_s)
        finally:
            if self._receiving.get(node) is stream:
                del self._receiving[node]
                self._left.pop(node, None)
                self._ready_from.discard(node)
                self._level_from.discard(node)

    async def _apply(self, stream: MessageStream, batches: list[Batch]) -> float:
        """Apply and acknowledge; for how many seconds that held the loop."""
        before = self._namespace.have()
        began_s = trio.current_time()
        changes = self._namespace.apply(batches)
        worked_s = trio.current_time() - began_s
        self._progress.set()
        self._progress = trio.Event()
        have = self._namespace.have()
        self.rows_bytes_applied += sum(len(batch.rows) for batch in batches)
        gaps = {
            batch.origin: have.get(batch.origin, 0)
            for batch in batches
            if batch.after > have.get(batch.origin, 0)
        }
        if changes:
            await self._applied(changes)
        touched = {batch.origin for batch in batches}
        await stream.send(
            ["ack", _wire_positions({origin: have.get(origin, 0) for origin in touched})]
        )
        if gaps:
            log.info("rows of %d origins do not follow what is held; pulling", len(gaps))
            await stream.send(["pull", _wire_positions(gaps)])
        assert all(have.get(origin, 0) >= position for origin, position in before.items())
        return worked_s

    async def _report_all(self, stream: MessageStream) -> None:
        """Tell everything held, now and then: the other side relays what has not come directly."""
        while True:
            await trio.sleep(ROWS_REPORT_S)
            await stream.send(["have", _wire_positions(self._namespace.have())])

    async def wait_applied(self, origin: Origin, position: int) -> None:
        """Return when the rows of `origin` up to `position` were applied here."""
        while self._namespace.have().get(origin, 0) < position:
            await self._progress.wait()

    async def wait_level(self, nodes: Callable[[], set[NodeId]]) -> None:
        """Return when everything that the peers `nodes()` held at connect time was applied here."""
        while not (nodes() and nodes() <= self._level_from):
            await self._level_changed.wait()

    def is_level(self, node: NodeId) -> bool:
        """Whether everything this peer held at connect time was applied here."""
        return node in self._level_from

    def lacking(self, node: NodeId) -> tuple[int, int]:
        """About how many rows of this peer are still to come, and how many of ours it lacks."""
        sender = self._senders.get(node)
        return self._left.get(node, 0), 0 if sender is None or sender.ready else sender.left


class _Sender:
    """What one peer holds and was sent; feeds it from the commit queue or from the database."""

    def __init__(self, namespace: Namespace, stream: MessageStream, peer_origin: Origin) -> None:
        self.stream = stream
        self.own = namespace.origin
        self.peer_origin = peer_origin
        self.held: dict[Origin, int] = {}  # as the peer last reported
        self.ready = False  # it had acknowledged everything once
        self.level = False  # it is counted
        self.left = 0  # rows it lacked when they were counted last
        self._count_s = -math.inf  # when that was
        self._leases: deque[tuple[int, list[int]]] = deque()  # each after this position of ours
        self._namespace = namespace
        self._sent: dict[Origin, int] = {}
        self._behind: dict[Origin, int] = {}  # third origins the last full report showed behind
        self._relayed: set[Origin] = set()  # those of them we send
        self._queue: deque[Batch] = deque()
        self._queue_bytes = 0
        self._wake = trio.Event()

    async def greet(self) -> None:
        """Learn what the peer holds."""
        message = await self.stream.receive()
        _, positions = _checked_report(message.body)
        self.held = dict(positions)
        self._sent = dict(positions)

    @property
    def level_with_all(self) -> bool:
        """Whether the peer has said that it holds everything that is here."""
        have = self._namespace.have()
        return all(self.held.get(origin, 0) >= position for origin, position in have.items())

    def push(self, batch: Batch) -> None:
        """A local commit. Dropped when too much waits: the database has it all."""
        if self._queue_bytes + len(batch.rows) <= ROWS_BATCH_BYTES_MAX:
            self._queue.append(batch)
            self._queue_bytes += len(batch.rows)
        self._wake.set()

    def push_lease(self, action: Request | Grant) -> None:
        """A lease message: it goes after every row committed so far."""
        body = [action.inode, action.stamp] if isinstance(action, Request) else [int(action.inode)]
        self._leases.append((self._namespace.position, body))
        self._wake.set()

    def next_lease_messages(self) -> list[list[int]]:
        """Lease messages before which no row is left to send."""
        sent = self._sent.get(self.own, 0)
        bodies: list[list[int]] = []
        while self._leases and self._leases[0][0] <= sent and len(bodies) < LEASES_PER_MESSAGE_MAX:
            bodies.append(self._leases.popleft()[1])
        return bodies

    @property
    def caught_up(self) -> bool:
        """Whether the peer has acknowledged everything it was sent."""
        return all(
            self.held.get(origin, 0) >= position
            for origin, position in self._sent.items()
            if origin != self.peer_origin
        )

    def wake(self) -> None:
        """Something happened that may let this sender go on."""
        self._wake.set()

    def plan_relay(self) -> None:
        """Relay the third origins whose position at the peer is behind and did not move."""
        behind = {
            origin: self.held.get(origin, 0)
            for origin, position in self._namespace.have().items()
            if origin != self.own and self.held.get(origin, 0) < position
        }
        # Seen behind only once, its author is probably sending it at this moment.
        self._relayed = {o for o, position in behind.items() if self._behind.get(o) == position}
        self._behind = behind
        for origin in self._relayed:
            self._sent[origin] = behind[origin]
        if self._relayed:
            self._wake.set()

    def rewind(self, positions: dict[Origin, int]) -> None:
        """The peer misses something we believed it has."""
        for origin, position in positions.items():
            self._sent[origin] = position
            if origin == self.own:
                self._clear_queue()
        self._wake.set()

    def next_batches(self) -> list[Batch]:
        """What to send now: queued commits if they follow, else the database; [] if level."""
        sent = self._sent.get(self.own, 0)
        batches: list[Batch] = []
        while self._queue:
            batch = self._queue.popleft()
            self._queue_bytes -= len(batch.rows)
            if batch.upto <= sent:
                continue
            if batch.after > sent:
                self._clear_queue()  # a commit was dropped: read from the database
                break
            batches.append(batch)
            sent = batch.upto
        if not batches:
            batches = self._from_database()
        for batch in batches:
            self._sent[batch.origin] = batch.upto
        return batches

    def count_left(self) -> int | None:
        """About how many rows the peer lacks; None if they were counted a moment ago."""
        now_s = trio.current_time()
        if now_s < self._count_s + ROWS_REPORT_S:
            return None
        self._count_s = now_s
        self.left = self._namespace.rows_after(self._sent, ROWS_COUNTED_MAX)
        return self.left

    def _from_database(self) -> list[Batch]:
        # Oldest first over all origins: what one node did knowing another's work comes after it.
        for origin, position in sorted(
            self._namespace.have().items(), key=lambda item: (self._sent.get(item[0], 0), item[0])
        ):
            sent = self._sent.get(origin, 0)
            if position <= sent:
                continue
            if self.level and origin != self.own and origin not in self._relayed:
                continue  # its author sends it
            batch = self._namespace.feed(origin, sent, bytes_max=ROWS_SLICE_BYTES)
            if batch is not None:
                return [batch]
        return []

    async def wait(self) -> None:
        """Until there may be something to send."""
        await self._wake.wait()
        self._wake = trio.Event()

    def _clear_queue(self) -> None:
        self._queue.clear()
        self._queue_bytes = 0


async def _send_batches(stream: MessageStream, batches: list[Batch]) -> int:
    heads = [[batch.origin, batch.after, batch.upto, len(batch.rows)] for batch in batches]
    payload = batches[0].rows if len(batches) == 1 else b"".join(batch.rows for batch in batches)
    await stream.send(["rows", heads], payload)
    return len(payload)


def _wire_positions(positions: dict[Origin, int]) -> dict[int, int]:
    return {int(origin): position for origin, position in positions.items()}


def _checked_report(body: Any) -> tuple[str, dict[Origin, int]]:
    if not (
        isinstance(body, list)
        and len(body) >= 2
        and body[0] in ("have", "ack", "pull")
        and isinstance(body[1], dict)
    ):
        raise RemoteProtocolError("malformed report of positions")
    for origin, position in body[1].items():
        if not (_is_origin(origin) and _is_position(position)):
            raise RemoteProtocolError("malformed position")
    return body[0], body[1]


def _checked_rows(body: Any, payload: bytes | bytearray | memoryview) -> tuple[str, list[Batch]]:
    if body in (["level"], ["ready"]):
        return body[0], []
    if isinstance(body, list) and len(body) == 2 and body[0] == "left":
        if not _is_position(body[1]):
            raise RemoteProtocolError("malformed count of rows")
        return "left", []
    if isinstance(body, list) and len(body) == 2 and body[0] == "lease":
        return "lease", []
    if not (
        isinstance(body, list)
        and len(body) >= 2
        and body[0] == "rows"
        and isinstance(body[1], list)
    ):
        raise RemoteProtocolError("malformed rows message")
    batches = []
    view = memoryview(payload)
    start = 0
    for head in body[1]:
        if not (isinstance(head, list) and len(head) == 4):
            raise RemoteProtocolError("malformed batch")
        origin, after, upto, size = head
        if not (
            _is_origin(origin)
            and _is_position(after)
            and _is_position(upto)
            and after < upto
            and type(size) is int
            and 0 <= size <= len(view) - start
        ):
            raise RemoteProtocolError("malformed batch")
        rows = bytes(view[start : start + size])
        batches.append(Batch(Origin(origin), after, upto, rows))
        start += size
    if start != len(view):
        raise RemoteProtocolError("rows message with bytes of no batch")
    return "rows", batches


def _origin_of(session: Session) -> Origin:
    origin = session.peer.fields.get("origin")
    if type(origin) is not int or not _is_origin(origin):
        raise RemoteProtocolError("a hello without an origin")
    return Origin(origin)


def _is_origin(value: object) -> bool:
    return type(value) is int and 0 < value <= ORIGIN_MAX


def _is_position(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 63
