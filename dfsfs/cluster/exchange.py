"""Rows between two nodes: what the other lacks, then what happens here, acknowledged in order.

Each side of a session opens one stream, `rows.feed`, and sends on it; the other side applies and
acknowledges. So the two directions are independent, and everything on one stream is ordered.

    receiver -> sender   have    {origin: position}    first message: everything it holds, and its
                                 floor: what the sender must hold before it may send rows; maybe
                                 between which positions rows may be missing and are to be sent
                                 again, unless the sender holds some others (`namespace.gaps`)
    sender -> receiver   rows    batches of whole transactions, each naming the position it follows;
                                 maybe a number: "flush, when you have applied them", and marks of
                                 drafts that begin before them or end behind them; maybe positions:
                                 "rows that I left out have been replaced by what I hold up to here"
    sender -> receiver   stable  which of its own rows the sender has flushed, with their blocks
    sender -> receiver   left    about how many rows you lack, now and then while that is so
    sender -> receiver   ready   "you have acknowledged all I held when you told me what you have"
    sender -> receiver   level   "from now on I count you: every row waits for your acknowledgement"
    sender -> receiver   lease   requests and grants of leases, after all rows before them
    sender -> receiver   ask     "end these drafts of yours, I am about to show them"
    receiver -> sender   ack     after applying: the positions that batches brought it to, and what
                                 cannot be a draft because it was known already
    receiver -> sender   flushed or failed     the flush of that number, and those before it
    receiver -> sender   have    now and then: everything it holds, again
    receiver -> sender   pull    {origin: position}    a batch did not follow; send again from here

A long way to catch up is before `ready`, and `level` follows when both sides have said that, so
the moment in which one side counts the other and not yet the other way round is one round trip.
After `level` only rows of the sender's own origin are pushed as they are committed: every other
node does the same with its own. Rows of a third origin are relayed only if the receiver's report
shows, twice in a row, that it has not got them from their author: that is anti-entropy, and it
heals whatever the direct way missed.

A side below the other's floor takes a snapshot first (`rejoin`), while no rows pass in either
direction; then it reports what it holds, and both go on as above.

Catching up takes turns: who sends or applies a slice of old rows leaves the loop to others for as
long as that took, so a mount that has weeks to catch up with serves its users meanwhile.

A peer counts as connected for `Publication` from the moment `level` was sent: from then on it gets
every row as it is made and calls wait for its acknowledgement. Rows that nobody waits for gather
for `limits.ROWS_SPARE_S`, which costs all nodes less.
"""

import logging
from collections.abc import Callable, Sequence

import trio

from dfsfs.base.errors import DfsError, NotFound, Refused, RemoteProtocolError, Stale
from dfsfs.base.limits import JOINING_ROWS_MAX, ROWS_REPORT_S, SENDER_WAITING_MAX
from dfsfs.base.types import InodeId, NodeId, Origin
from dfsfs.cluster.drafts import Drafts
from dfsfs.cluster.leases import Leases
from dfsfs.cluster.publication import Publication
from dfsfs.cluster.rejoin import Applied, Rejoining
from dfsfs.cluster.rows_messages import (
    checked_floor,
    checked_flush,
    checked_marks,
    checked_report,
    checked_rows,
    origin_of,
    send_batches,
    wire_positions,
    wire_refill,
)
from dfsfs.cluster.sender import Sender
from dfsfs.crdt import dominates
from dfsfs.namespace import Batch, Change, Namespace
from dfsfs.net import MessageStream, Session
from dfsfs.runtime import Bounds, failures_in

log = logging.getLogger(__name__)

METHOD = "rows.feed"


class Exchange:
    """Keeps this namespace and those of all connected peers the same. Owned by the node."""

    def __init__(
        self,
        namespace: Namespace,
        publication: Publication,
        leases: Leases,
        rejoining: Rejoining,
        *,
        applied: Applied,
        drafts: Drafts,
    ) -> None:
        """`applied` runs after remote rows were applied and before they are acknowledged.

        It makes the kernel forget what changed (promise 4) and bounds its own time.
        """
        self._namespace = namespace
        self._publication = publication
        self._leases = leases
        self._drafts = drafts
        self._rejoining = rejoining
        self._applied = applied
        self._senders: dict[NodeId, Sender] = {}
        self._sessions: dict[NodeId, Session] = {}  # of the senders
        self._receiving: dict[NodeId, MessageStream] = {}
        self._blocked: list[Sender] = []  # they wait for what is reported or applied
        self._ready_from: set[NodeId] = set()
        self._level_from: set[NodeId] = set()
        self._left: dict[NodeId, int] = {}  # rows that peers have told they will send
        self._level_changed = trio.Event()
        self._progress = trio.Event()
        namespace.subscribe(self._committed)
        rejoining.watch(self._part_from_those_below)
        self.heard: set[NodeId] = set()  # peers that have said what they hold
        self.used_origins: set[Origin] = set()  # not empty: this node's state went back in time
        # Own rows after the first position up to the second are on stable storage here, with their
        # blocks. Those of a former life are not known to be: a power cut may have ended it.
        self._stable = (namespace.position, namespace.position)
        self.rows_bytes_sent = 0
        self.rows_bytes_applied = 0

    # -- sending --------------------------------------------------------------------------------

    async def send(self, session: Session) -> None:
        """Send to one peer until the session ends."""
        node = session.peer.node
        self._leases.met(node)
        async with session.open_stream(METHOD, {}) as stream:
            sender = Sender(self._namespace, stream, origin_of(session))
            self._senders[node] = sender
            self._sessions[node] = session
            self._drafts.met(node, sender)
            try:
                await sender.greet()
                self._check_own_past(node, sender.held)
                if not sender.level_with_all:
                    # What newer rows have replaced is left out of a batch. So those must not be
                    # lost to a power cut while the peer counts as having had the older ones.
                    await self._publication.flush_local()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._receive_reports, session, sender)
                    nursery.start_soon(self._watch, sender)
                    await self._meet_floors(session, sender)
                    nursery.start_soon(self._tell_stable, sender)
                    while True:
                        began_s = trio.current_time()
                        batches = sender.next_batches()
                        worked_s = trio.current_time() - began_s
                        flush, marks = sender.next_flush(), sender.next_marks()
                        if batches or flush or marks:
                            reach = sender.reach
                            sent = await send_batches(stream, batches, flush, marks, reach)
                            self.rows_bytes_sent += sent
                        messages, asks = sender.next_lease_messages(), sender.next_asks()
                        if messages:
                            await stream.send(["lease", messages])
                        if asks:
                            await stream.send(["ask", asks])
                        if batches or flush or marks or messages or asks:
                            if not sender.level:
                                if not sender.ready:
                                    await self._tell_left(sender)
                                await trio.sleep(worked_s)
                            continue
                        if sender.level:
                            await sender.wait_due()
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
                    del self._senders[node], self._sessions[node]

    async def _meet_floors(self, session: Session, sender: Sender) -> None:
        """Return when rows may pass: neither side is below the other's floor, and this is whole."""
        node = session.peer.node
        waited = False
        while True:
            have, floor = self._namespace.have(), self._namespace.floor
            peer_below = not dominates(sender.held, floor)
            whole = self._namespace.is_whole
            lacks_tail = not whole and dominates(have, floor)
            if not dominates(have, sender.floor) or (peer_below and lacks_tail):
                await self._rejoining.rejoin(session, sender.floor)
                if stream := self._receiving.get(node):
                    await stream.send(self._report())
            elif lacks_tail and not self._is_more_known(have):
                self._namespace.go_on_without()  # who had the rest is not there
            elif peer_below or not whole:
                self._blocked.append(sender)
                try:
                    await sender.wait()
                finally:
                    self._blocked.remove(sender)
            else:
                break
            waited = True
        if waited:
            sender.restart()

    def _is_more_known(self, have: dict[Origin, int]) -> bool:
        """Whether a connected peer holds what is missing here."""
        return not all(dominates(have, sender.held) for sender in self._senders.values())

    def _part_from_those_below(self) -> None:
        """The floor has risen by a snapshot: sessions below it begin anew, with one themselves."""
        floor = self._namespace.floor
        for node, sender in list(self._senders.items()):
            if sender.ready and not dominates(sender.held, floor):
                self._sessions[node].close("rows are exchanged anew, after a snapshot")

    def _report(self) -> list[object]:
        """What is held here, and the floor; and what of it may have to be sent again."""
        space = self._namespace
        report: list[object] = ["have", wire_positions(space.have()), wire_positions(space.floor)]
        if space.gaps.refilling:
            report += wire_refill(space.gaps.refill())
        return report

    def flushed(self, position: int) -> None:
        """Own rows up to `position`, and all blocks put before them, are on stable storage here."""
        self._stable = (self._stable[0], max(self._stable[1], position))
        self._namespace.fallbacks.flushed(self._namespace.origin, *self._stable)

    def bounded(self) -> Bounds:
        """What of it is bounded, and how full that is."""
        most = max((sender.waiting_count for sender in self._senders.values()), default=0)
        return {"messages_behind_rows": [most, SENDER_WAITING_MAX]}

    async def _watch(self, sender: Sender) -> None:
        while True:
            await trio.sleep(ROWS_REPORT_S)
            sender.check_progress()

    async def _tell_stable(self, sender: Sender) -> None:
        """Now and then: a message for each flush would cost as much as the rows."""
        told = (0, 0)
        while True:
            await trio.sleep(ROWS_REPORT_S)
            if sender.level and (told != self._stable or sender.sent_since):
                told, sender.sent_since = self._stable, False
                await sender.stream.send(["stable", *told])

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

    async def _tell_left(self, sender: Sender) -> None:
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

    def _connected(self, session: Session, sender: Sender) -> None:
        mounts = bool(session.peer.fields.get("mounts"))
        self._publication.connected(
            session.peer.node,
            mounts=mounts,
            stores=bool(session.peer.fields.get("stores")),
            acknowledged=sender.held.get(sender.own, 0),
            channel=sender,
        )
        self._leases.connected(
            session.peer.node,
            sender.peer_origin,
            mounts=mounts,
            level=session.peer.node in self._level_from,
            channel=sender.push_lease,
        )
        if mounts:
            self._drafts.connected(session.peer.node)

    def disconnected(self, node: NodeId) -> None:
        """The session with this node is over, and it knows: nobody waits for it any more.

        Unless it is back already.
        """
        sender = self._senders.get(node)
        if sender is None or not sender.level:
            self._publication.disconnected(node)
            self._leases.disconnected(node)
            self._drafts.disconnected(node)
            if sender is not None:
                self._leases.met(node)
                self._drafts.met(node, sender)

    async def _receive_reports(self, session: Session, sender: Sender) -> None:
        while True:
            message = await sender.stream.receive()
            flushed = checked_flush(message.body)
            if flushed is not None:
                number, good = flushed
                sender.flush_ended(number)
                self._publication.flush_ended(session.peer.node, number, good=good)
                continue
            kind, positions = checked_report(message.body)
            if kind == "pull":
                sender.rewind(positions)
                continue
            sender.held.update(positions)
            if kind == "have":
                sender.floor = checked_floor(message.body) or sender.floor
                sender.plan_relay()
                sender.refill(message.body)
            if not sender.ready:
                sender.wake()
            if kind == "ack" and len(message.body) > 2:
                for inode in checked_marks(message.body[2]):
                    self._drafts.end(InodeId(inode))  # before whoever made it goes on
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
        """Handler of `rows.feed`: apply what one peer sends until the session ends.

        A peer that says what makes no sense loses its session: what follows cannot be believed, and
        without its rows it must not be counted.
        """
        try:
            await self._receive(session, stream)
        except* (RemoteProtocolError, Refused) as errors:
            session.close(f"its rows are refused: {failures_in(errors)[0]}")
            raise

    async def _receive(self, session: Session, stream: MessageStream) -> None:
        node, theirs = session.peer.node, origin_of(session)
        sent = 0  # of the peer's own rows, whether they could be applied or not
        self._receiving[node] = stream
        self._ready_from.discard(node)
        self._level_from.discard(node)
        try:
            await stream.send(self._report())
            flushes = _Flushes()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._report_all, stream)
                nursery.start_soon(self._flush_asked, stream, flushes)
                while True:
                    message = await stream.receive()
                    if self._receiving.get(node) is not stream:
                        return  # a newer session has taken over
                    kind, batches, flush, marks, reach = checked_rows(message.body, message.payload)
                    if kind == "ask":
                        for inode in marks:
                            self._drafts.asked(node, InodeId(inode))
                    elif kind == "stable":
                        self._namespace.fallbacks.flushed(theirs, *message.body[1:3])
                    elif kind == "lease":
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
                        self._namespace.gaps.lost(node)  # it has given all it has
                        self._leases.level(node)
                        self._drafts.level(node)
                        self._level_changed.set()
                        self._level_changed = trio.Event()
                    else:
                        if reach:
                            self._namespace.gaps.note(node, reach)
                        known = self._begun(node, marks) if marks else []
                        sent = max([sent, *(b.upto for b in batches if b.origin == theirs)])
                        whole = not batches or await self._apply(node, stream, batches, known)
                        whole = whole and self._namespace.held(theirs) >= sent
                        relayed = reach or any(batch.origin != theirs for batch in batches)
                        if relayed and node in self._level_from:
                            self._namespace.gaps.lost(node)
                        if marks and whole:
                            self._drafts.ended([InodeId(-mark) for mark in marks if mark < 0])
                        if flush and whole:
                            flushes.ask(flush)
        finally:
            if self._receiving.get(node) is stream:
                del self._receiving[node]
                self._left.pop(node, None)
                self._ready_from.discard(node)
                if node not in self._level_from:
                    self._namespace.gaps.lost(node)
                self._level_from.discard(node)

    def _begun(self, node: NodeId, marks: Sequence[int]) -> list[InodeId]:
        """Note drafts that a peer begins; those that cannot be any, being known here already."""
        known = []
        for inode in (InodeId(mark) for mark in marks if mark > 0):
            try:
                self._namespace.get(inode)
                known.append(inode)
            except NotFound:
                self._drafts.begun(node, [inode])
        return known

    async def _apply(
        self, node: NodeId, stream: MessageStream, batches: list[Batch], known: list[InodeId]
    ) -> bool:
        """Apply and acknowledge; False if something before it is missing: it will come again.

        `known`: what the peer takes for drafts and was known here before.
        """
        began_s = trio.current_time()
        changes = self._namespace.apply(batches)
        worked_s = trio.current_time() - began_s
        for sender in self._blocked:
            sender.wake()
        self.rows_bytes_applied += sum(len(batch.rows) for batch in batches)
        reached = {batch.origin: self._namespace.held(batch.origin) for batch in batches}
        if node not in self._level_from and self._left.get(node, 0) <= JOINING_ROWS_MAX:
            for other, sender in self._senders.items():
                if other != node:
                    sender.loose(reached)
        gaps = {
            batch.origin: reached[batch.origin]
            for batch in batches
            if batch.after > reached[batch.origin]
        }
        if changes:
            await self._applied(changes)
        positions = wire_positions(reached)
        await stream.send(["ack", positions, known] if known else ["ack", positions])
        if gaps:
            log.info("rows of %d origins do not follow what is held; pulling", len(gaps))
            await stream.send(["pull", wire_positions(gaps)])
        if node not in self._level_from:
            await trio.sleep(worked_s)  # there may be much more
        return not gaps

    async def _flush_asked(self, stream: MessageStream, flushes: "_Flushes") -> None:
        """Flush as often as the peer asks; one flush serves all that it asked for before."""
        while True:
            number = await flushes.next()
            try:
                await self._publication.flush_local()
            except DfsError as error:
                log.info("rows and blocks of a peer could not be flushed: %s", error)
                await stream.send(["failed", number])
            else:
                await stream.send(["flushed", number])

    async def _report_all(self, stream: MessageStream) -> None:
        """Tell everything held, now and then: the other side relays what has not come directly."""
        while True:
            await trio.sleep(ROWS_REPORT_S)
            await stream.send(self._report())

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


class _Flushes:
    """The flushes one peer has asked for; the newest stands for all."""

    def __init__(self) -> None:
        self._number = 0
        self._asked = trio.Event()

    def ask(self, number: int) -> None:
        """The peer waits for this one."""
        self._number = number
        self._asked.set()

    async def next(self) -> int:
        """The newest that nobody has served."""
        await self._asked.wait()
        self._asked = trio.Event()
        return self._number
