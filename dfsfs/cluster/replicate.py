"""Copies: every block to its replica set, and enough of them before a write returns.

`Replicator` puts a freshly stored block on as many peers as the write concern asks (the *write
set*, taken in placement order among the peers that are connected; one that fails or is full is
replaced at once by the next), and hands the rest of the replica set to a background queue. The
queue is memory only: what it forgets (a crash, an overflow) `repair` finds by comparing stores.

`ReplicatedUpload` is the `Upload` that vfs and content see.
"""

import logging
import math
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Sequence

import trio

from dfsfs.base.errors import DeadlineExceeded, DfsError, Full, NotFound, Unavailable
from dfsfs.base.limits import (
    CALL_TIMEOUT_S,
    FULL_PEER_S,
    INLINE_HASH_BYTES_MAX,
    PENDING_COPIES_MAX,
    SLOW_PEER_S,
    UPLOAD_BYTES_MAX,
)
from dfsfs.base.types import Buffer, Digest, DigestKind, NodeId, digest_of, digest_text
from dfsfs.blocks import BlockStore, ByteBudget, Pins
from dfsfs.cluster.members import MemberTable
from dfsfs.cluster.placement import ranked, receivers
from dfsfs.cluster.publication import Publication
from dfsfs.net import Endpoint, Session
from dfsfs.runtime import World

log = logging.getLogger(__name__)

METHOD_PUT = "blocks.put"
METHOD_OFFER = "blocks.offer"
METHOD_LACKS = "blocks.lacks"
COPIERS = 4  # background copies under way at a time


class Replicator:
    """Copies blocks to other nodes. Owned by the cluster storage; `run` drives it."""

    def __init__(
        self,
        world: World,
        store: BlockStore,
        endpoint: Endpoint,
        members: MemberTable,
        publication: Publication,
        *,
        copies: int,
        concern: int | None,
        strict: bool,
    ) -> None:
        """`copies`: replication factor; `concern`: nodes before a write returns, None for all."""
        self._store = store
        self._endpoint = endpoint
        self._members = members
        self._publication = publication
        self._copies = copies
        self._concern = concern
        self.strict = strict
        self.world = world
        self.budget = ByteBudget(UPLOAD_BYTES_MAX)  # blocks being put or on their way to write sets
        self._nursery: trio.Nursery | None = None
        self._pending: deque[tuple[Digest, NodeId, bool]] = deque()
        self._full_until_s: dict[NodeId, float] = {}  # peers that had no space lately
        self._slow_until_s: dict[NodeId, float] = {}  # peers that let a put wait to its deadline
        self._pending_set: set[tuple[Digest, NodeId]] = set()
        self._more = trio.Event()
        self.scan_wanted = True  # blocks may lack copies that no queue knows of
        self.copied_blocks = 0
        self.copied_bytes = 0
        self.short_blocks = 0
        self.fell_short_at_s = -math.inf  # when a block reached fewer nodes than asked

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Host the copies: those that writes wait for, and the background ones."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for _ in range(COPIERS):
                nursery.start_soon(self._copy_pending)
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None  # a write that ends later than this is kept here alone

    @property
    def copies_outlive_put(self) -> bool:
        """Whether a block may still be on its way when `put` has returned."""
        return bool(self._endpoint.sessions)

    def takes_more(self, node: NodeId) -> bool:
        """Whether a node is not known to be full; of this one its own store says so."""
        if node == self._members.own:
            return True
        member = self._members.get(node)
        if member is not None and member.full:
            return False
        return self._full_until_s.get(node, 0.0) <= self.world.now_s()

    def _is_slow(self, node: NodeId) -> bool:
        """Whether it lately took so long for a block that others are asked first."""
        return self._slow_until_s.get(node, 0.0) > self.world.now_s()

    @property
    def refusals_end_s(self) -> float:
        """Until when peers that had no space are not asked again."""
        return max(self._full_until_s.values(), default=0.0)

    # -- the write set ------------------------------------------------------------------------

    def begin(self, digest: Digest, data: Buffer, *, new: bool, flight: "_Flight") -> None:
        """Start copying a block that was just stored here; `flight` learns when that is enough.

        Takes over the block's share of the budget.
        """
        order = ranked(digest, self._members.candidates)
        own = self._members.own
        home = receivers(order, self._copies, self.takes_more)
        others = [node for node in order if node != own]
        sessions = self._endpoint.sessions
        reachable = [node for node in others if node in sessions and self.takes_more(node)]
        # Who was slow comes last, and is asked if there is nobody else; before that who is not
        # counted yet, and cannot be asked to flush. Peers that take blocks of this upload come
        # first among equals: an fsync has to flush every peer that took one.
        counts = self._publication.counts
        reachable.sort(
            key=lambda node: (
                self._is_slow(node),
                not counts(node),
                node not in home,
                node not in flight.peers,
            )
        )
        if self._concern is None:
            wanted = sum(node != own for node in home)
        else:
            wanted = min(self._concern - 1, len(others))
        if wanted > 0 and reachable and self._nursery is not None:
            flight.started(reachable[:wanted])
            self._nursery.start_soon(
                self._settle, digest, data, new, reachable, wanted, home, flight
            )
            return
        self.budget.release(len(data))
        if wanted > 0:
            self._fell_short(flight)
        for node in home:
            if node != own:
                self.copy_later(digest, node, new=new)

    async def _settle(
        self,
        digest: Digest,
        data: Buffer,
        new: bool,
        reachable: list[NodeId],
        wanted: int,
        home: list[NodeId],
        flight: "_Flight",
    ) -> None:
        """Put one block on `wanted` peers, then leave the rest of its home to the queue."""
        holders: set[NodeId] = set()
        try:
            candidates = iter(reachable)

            async def fill_one() -> None:
                """Find one holder; the candidates are shared, so a failed one is replaced."""
                for node in candidates:
                    if await self.copy(digest, data, node, new=new):
                        holders.add(node)
                        self._publication.block_stored(node, digest)
                        return

            if wanted == 1:
                await fill_one()
            else:
                async with trio.open_nursery() as nursery:
                    for _ in range(wanted):
                        nursery.start_soon(fill_one)
            if len(holders) < wanted:
                self._fell_short(flight)
            for node in home:
                if node not in holders and node != self._members.own:
                    self.copy_later(digest, node, new=new)
        finally:
            self.budget.release(len(data))
            flight.ended()

    async def place_again(self, digests: Iterable[Digest]) -> bool:
        """Put blocks that are here on the peers of a write set; False if some found too few."""
        flight = _Flight()
        for digest in digests:
            if flight.short:
                break
            try:
                data = await self._store.get(digest)
            except NotFound:
                continue  # collected: nobody needs it any more
            except DfsError as error:
                log.warning("%s cannot be put again: %s", digest_text(digest), error)
                flight.short += 1
                continue
            await self.budget.acquire(len(data))
            self.begin(digest, data, new=False, flight=flight)
        await flight.wait()
        return not flight.short

    def _fell_short(self, flight: "_Flight") -> None:
        self.short_blocks += 1
        self.fell_short_at_s = self.world.now_s()
        self.scan_wanted = True  # so that it is known how many there are
        flight.short += 1

    async def copy(self, digest: Digest, data: Buffer, node: NodeId, *, new: bool) -> bool:
        """Put one block on one peer; False if that did not work out."""
        session = self._endpoint.sessions.get(node)
        if session is None:
            return False
        try:
            if not new and not await offer(session, [digest]):
                return True  # it has it
            await session.call(METHOD_PUT, [digest], data, deadline_s=CALL_TIMEOUT_S)
        except Full as error:
            log.info("%s is full: %s", session.peer.name, error)
            self._full_until_s[node] = self.world.now_s() + FULL_PEER_S
            return False
        except DfsError as error:
            log.info("%s did not take %s: %s", session.peer.name, digest_text(digest), error)
            if isinstance(error, DeadlineExceeded):
                self._slow_until_s[node] = self.world.now_s() + SLOW_PEER_S
            return False
        self.copied_blocks += 1
        self.copied_bytes += len(data)
        return True

    # -- in the background --------------------------------------------------------------------

    def copy_later(self, digest: Digest, node: NodeId, *, new: bool = False) -> None:
        """Queue a copy; when the queue is full, a scan will find it.

        `new`: the block was just made here, so it is not worth asking whether the peer has it.
        """
        pair = (digest, node)
        if pair in self._pending_set:
            return
        if len(self._pending) >= PENDING_COPIES_MAX:
            self.scan_wanted = True
            return
        self._pending.append((digest, node, new))
        self._pending_set.add(pair)
        self._more.set()

    @property
    def pending(self) -> int:
        """Copies that are queued."""
        return len(self._pending_set)

    async def _copy_pending(self) -> None:
        while True:
            if not self._pending:
                self._more = trio.Event()
                await self._more.wait()
                continue
            digest, node, new = self._pending.popleft()
            try:
                if node not in self._endpoint.sessions or self._is_slow(node):
                    self.scan_wanted = True  # when it is back, a scan compares
                    continue
                data = await self._store.get(digest)
                if not await self.copy(digest, data, node, new=new):
                    self.scan_wanted = True
            except DfsError as error:
                log.info("cannot copy %s: %s", digest_text(digest), error)
            finally:
                self._pending_set.discard((digest, node))


async def offer(session: Session, digests: list[Digest]) -> list[Digest]:
    """Which of these blocks the peer has not got; it promises to keep the others for a while."""
    return await _ask(session, METHOD_OFFER, digests)


async def lacks(session: Session, digests: list[Digest]) -> list[Digest]:
    """Which of these blocks the peer has not got, and nothing more."""
    return await _ask(session, METHOD_LACKS, digests)


async def _ask(session: Session, method: str, digests: list[Digest]) -> list[Digest]:
    reply = await session.call(method, list(digests), deadline_s=CALL_TIMEOUT_S)
    items = reply.body if isinstance(reply.body, list) else []
    named = {item for item in items if isinstance(item, bytes)}
    return [digest for digest in digests if digest in named]


class ReplicatedUpload:
    """The `Upload` of a node with peers: stored here, on its way there."""

    def __init__(
        self,
        pins: Pins,
        replicator: Replicator,
        kind: DigestKind,
        put: Callable[[Digest, Buffer], Awaitable[bool]],
    ) -> None:
        """`put` stores a block here, and makes room for it if need be."""
        self._put = put
        self._pins = pins
        self._pinned: set[Digest] = set()
        self._putting = Counter[Digest]()
        self._replicator = replicator
        self._kind = kind
        self._flight = _Flight()

    async def put(self, data: Buffer) -> Digest:
        """Hash, store here, start copying. See `blocks.Upload.put`."""
        world = self._replicator.world
        budget = self._replicator.budget
        await budget.acquire(len(data))
        try:
            if len(data) > INLINE_HASH_BYTES_MAX:
                digest = await world.run_blocking(digest_of, self._kind, data)
            else:
                digest = digest_of(self._kind, data)
            if digest not in self._pinned:
                self._pins.pin(digest)
                self._pinned.add(digest)
            self._putting[digest] += 1
            try:
                new = await self._put(digest, data)
            finally:
                self._putting[digest] -= 1
                if not self._putting[digest]:
                    del self._putting[digest]
            if not isinstance(data, bytes) and self._replicator.copies_outlive_put:
                data = bytes(data)  # the copies outlive this call, the caller's buffer does not
        except BaseException:
            budget.release(len(data))
            raise
        self._replicator.begin(digest, data, new=new, flight=self._flight)
        return digest

    async def settle(self) -> None:
        """Wait for the write concern. See `blocks.Upload.settle`."""
        await self._flight.wait()
        short, self._flight.short = self._flight.short, 0
        if short and self._replicator.strict:
            raise Unavailable(f"{short} blocks are on fewer nodes than the write concern asks")

    def keep(self, digests: Iterable[Digest]) -> None:
        """End the protection of all others. See `blocks.Upload.keep`."""
        if self._pins.looked_at:
            return
        surplus = self._pinned - {*digests, *self._putting}
        self._pinned -= surplus
        for digest in surplus:
            self._pins.unpin(digest)

    def close(self) -> None:
        """End the protection from garbage collection."""
        for digest in self._pinned:
            self._pins.unpin(digest)
        self._pinned.clear()


class _Flight:
    """The copies one upload waits for."""

    def __init__(self) -> None:
        self.short = 0  # blocks that did not reach their write concern
        self.peers: set[NodeId] = set()  # those asked first to take blocks of this upload
        self._open = 0
        self._landed: trio.Event | None = None

    def started(self, peers: Sequence[NodeId]) -> None:
        """One more block is on its way, to these peers first."""
        self._open += 1
        self.peers.update(peers)

    def ended(self) -> None:
        """One block has arrived, or could not."""
        self._open -= 1
        if self._open == 0 and self._landed is not None:
            self._landed.set()

    async def wait(self) -> None:
        """Return when no copy is on its way."""
        while self._open:
            if self._landed is None or self._landed.is_set():
                self._landed = trio.Event()
            await self._landed.wait()
