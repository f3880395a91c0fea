"""What one peer holds of all rows, and what it is to be sent next.

The half of `exchange` that decides, for one session; the exchange sends. It gives out local commits
in the order of their positions, from the queue they were pushed to or, where that does not reach,
from the database; behind them what refers to them: lease messages, and flushes asked for.

Sync, but for the waits. Bounded: the queue drops what is beyond `limits.ROWS_BATCH_BYTES_MAX`,
because the database has it; a peer for which too much else waits loses its session.
"""

import math
from collections import deque
from typing import Any

import trio

from dfsfs.base.errors import Unavailable
from dfsfs.base.limits import (
    LEASES_PER_MESSAGE_MAX,
    ROWS_ACKNOWLEDGED_S,
    ROWS_BATCH_BYTES_MAX,
    ROWS_COUNTED_MAX,
    ROWS_REPORT_S,
    ROWS_SLICE_BYTES,
    ROWS_SPARE_S,
    SENDER_WAITING_MAX,
)
from dfsfs.base.types import InodeId, Origin
from dfsfs.cluster.lease import Grant, Request
from dfsfs.cluster.rows_messages import checked_floor, checked_refill, checked_report
from dfsfs.crdt import dominates
from dfsfs.namespace import Batch, Namespace
from dfsfs.net import MessageStream


class Sender:
    """What one peer holds and was sent; feeds it from the commit queue or from the database."""

    def __init__(self, namespace: Namespace, stream: MessageStream, peer_origin: Origin) -> None:
        self.stream = stream
        self.own = namespace.origin
        self.peer_origin = peer_origin
        self.held: dict[Origin, int] = {}  # as the peer last reported
        self.floor: dict[Origin, int] = {}  # below which it takes no rows from us
        self.ready = False  # it had acknowledged everything once
        self.level = False  # it is counted
        self.sent_since = False  # rows, since the peer was told what is stable
        self.left = 0  # rows it lacked when they were counted last
        self._count_s = -math.inf  # when that was
        self._leases: deque[tuple[int, list[int]]] = deque()  # each after this position of ours
        self._marks: deque[tuple[int, int]] = deque()  # of drafts; each after this position
        self._asks: list[InodeId] = []
        self._namespace = namespace
        self._sent: dict[Origin, int] = {}
        self._behind: dict[Origin, int] = {}  # third origins the last full report showed behind
        self._relayed: set[Origin] = set()  # those of them we send
        self._loose: dict[Origin, int] = {}  # third origins to send before our next commit
        self._told: dict[Origin, int] = {}  # what the peer knows that our rows rest on
        self._refilled: dict[Origin, tuple[int, int]] = {}  # what was sent again
        self._again: dict[Origin, tuple[int, int]] = {}  # of that, what is still to be sent
        self.reach: dict[Origin, int] = {}  # to be told with the batches given out last
        self._queue: deque[Batch] = deque()
        self._queue_bytes = 0
        self._progress = (0, 0.0)  # what the peer held of our own rows, and when that was seen
        self._flush_asked = self._flush_sent = self._flush_ended = 0
        self._flush_after = 0  # our position when the newest was asked for
        self._waiting = trio.Event()  # somebody waits for what is to be sent
        self._wake = trio.Event()

    async def greet(self) -> None:
        """Learn what the peer holds."""
        message = await self.stream.receive()
        _, positions = checked_report(message.body)
        self.floor = checked_floor(message.body) or {}
        self.held = dict(positions)
        self._sent = dict(positions)
        self.refill(message.body)

    def restart(self) -> None:
        """What the peer holds has come another way: send from there."""
        self._sent = dict(self.held)

    def refill(self, report: Any) -> None:
        """Send again, once, what the peer reports that it may lack below what it holds.

        Unless it will hold all that rests on when it holds what is here (`namespace.gaps`).
        """
        refill = checked_refill(report)
        if refill is None:
            self._refilled = {}
        elif refill.ranges != self._refilled:
            self._refilled = dict(refill.ranges)
            if not dominates(self._namespace.have(), refill.reach):
                self._again = dict(refill.ranges)
                self.hurry()

    def _next_again(self) -> list[Batch]:
        for origin, (after, until) in sorted(self._again.items(), key=lambda one: one[1]):
            if after < until:
                batch = self._namespace.feed(origin, after, bytes_max=ROWS_SLICE_BYTES)
                if batch is not None:
                    self._again[origin] = (batch.upto, until)
                    return [batch]
            del self._again[origin]
        return []

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

    def hurry(self) -> None:
        """Somebody waits for the peer to acknowledge what was committed so far."""
        self._wake.set()
        self._waiting.set()

    def flush(self) -> int:
        """Have the peer flush when it has applied what was committed so far; which flush it is."""
        self._flush_asked += 1
        self._flush_after = self._namespace.position
        self.hurry()
        return self._flush_asked

    def flush_ended(self, number: int) -> None:
        """The peer has reported on this one, and so on those before."""
        self._flush_ended = number

    def next_flush(self) -> int:
        """The flush to ask for behind what was just sent; 0: none."""
        if self._flush_sent == self._flush_asked or self._sent.get(self.own, 0) < self._flush_after:
            return 0
        self._flush_sent = self._flush_asked
        return self._flush_sent

    @property
    def waiting_count(self) -> int:
        """Messages that wait behind rows: at most `limits.SENDER_WAITING_MAX`, or it must go."""
        return len(self._leases) + len(self._marks) + len(self._asks)

    def check_progress(self) -> None:
        """Looked at now and then, so that nobody waits for ever for a peer that only pings.

        Raises:
            Unavailable: it takes or acknowledges nothing for too long.
        """
        if self.waiting_count > SENDER_WAITING_MAX:
            raise Unavailable(f"{self.waiting_count} messages wait for the peer to take rows")
        held = self.held.get(self.own, 0)
        now_s = trio.current_time()
        if not self.level or held > self._progress[0] or held >= self._namespace.position:
            self._progress = held, now_s
        elif now_s > self._progress[1] + ROWS_ACKNOWLEDGED_S:
            raise Unavailable("the peer does not acknowledge rows")

    def mark(self, mark: int) -> None:
        """A draft begins: with its row; or ends: after every row committed so far."""
        self._marks.append((0 if mark > 0 else self._namespace.position, mark))
        self._wake.set()

    def next_marks(self) -> list[int]:
        """Marks that go with, or after, what was just given out."""
        sent = self._sent.get(self.own, 0)
        marks: list[int] = []
        while self._marks and self._marks[0][0] <= sent:
            marks.append(self._marks.popleft()[1])
        return marks

    def ask(self, inode: InodeId) -> None:
        """Have the peer end one of its drafts."""
        self._asks.append(inode)
        self.hurry()

    def next_asks(self) -> list[InodeId]:
        """Those to ask about now."""
        asks, self._asks = self._asks, []
        return asks

    def push_lease(self, action: Request | Grant) -> None:
        """A lease message: it goes after every row committed so far."""
        body = [action.inode, action.stamp] if isinstance(action, Request) else [int(action.inode)]
        self._leases.append((self._namespace.position, body))
        self.hurry()

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
        self.hurry()

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
            self.hurry()

    def loose(self, positions: dict[Origin, int]) -> None:
        """Rows came here whose author is not connected, so perhaps only here.

        What is changed here from now on may build on them, a file in a new directory, say, and the
        peer could not show that without them (promise 4). So they go before the next commit.
        """
        for origin, position in positions.items():
            if origin not in (self.own, self.peer_origin):
                self._loose[origin] = max(position, self._loose.get(origin, 0))

    def _next_loose(self) -> list[Batch]:
        if not self._loose or self._sent.get(self.own, 0) >= self._namespace.position:
            return []
        for origin, position in sorted(self._loose.items()):
            sent = max(self._sent.get(origin, 0), self.held.get(origin, 0))
            if sent < position:
                batch = self._namespace.feed(origin, sent, bytes_max=ROWS_SLICE_BYTES)
                if batch is not None:
                    return [batch]
            del self._loose[origin]
        return []

    def rewind(self, positions: dict[Origin, int]) -> None:
        """The peer misses something we believed it has, and has not flushed then."""
        self._flush_sent = self._flush_ended
        for origin, position in positions.items():
            self._sent[origin] = position
            if origin == self.own:
                self._clear_queue()
        self.hurry()

    def next_batches(self) -> list[Batch]:
        """What to send now: queued commits if they follow, else the database; [] if level.

        With those from the database goes `reach`: rows that were replaced are left out of them.
        """
        read = self._next_loose()
        queued = [] if read else self._from_queue()
        batches = queued or read or self._next_again() or self._from_database()
        self.reach = self._untold() if batches and not queued else {}
        for batch in batches:
            self._sent[batch.origin] = max(batch.upto, self._sent.get(batch.origin, 0))
        self.sent_since = self.sent_since or bool(batches)
        return batches

    def _from_queue(self) -> list[Batch]:
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
        return batches

    def _untold(self) -> dict[Origin, int]:
        untold = {
            origin: position
            for origin, position in self._namespace.gaps.told().items()
            if position > max(self._told.get(origin, 0), self.held.get(origin, 0))
        }
        self._told.update(untold)
        return untold

    def count_left(self) -> int | None:
        """About how many rows the peer lacks; None if they were counted a moment ago."""
        now_s = trio.current_time()
        if now_s < self._count_s + ROWS_REPORT_S:
            return None
        self._count_s = now_s
        self.left = self._namespace.rows_after(self._sent, ROWS_COUNTED_MAX)
        return self.left

    def _from_database(self) -> list[Batch]:
        if (
            self.level
            and not self._relayed
            and self._sent.get(self.own, 0) >= self._namespace.position
        ):
            return []
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
        self._wake, self._waiting = trio.Event(), trio.Event()

    async def wait_due(self) -> None:
        """Until something is to be sent now: somebody waits for it, or it has gathered."""
        await self._wake.wait()
        if not self._waiting.is_set():
            with trio.move_on_after(ROWS_SPARE_S):
                await self._waiting.wait()
        self._wake, self._waiting = trio.Event(), trio.Event()

    def _clear_queue(self) -> None:
        self._queue.clear()
        self._queue_bytes = 0
