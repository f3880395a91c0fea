"""When may a call return? Positions that peers acknowledged, and who waits for them.

Every local transaction has a position (the time of its stamp). Peers acknowledge positions: "I have
applied your rows up to here and my kernel has forgotten what they change". So one acknowledgement
releases every caller at or below it (group commit), and the whole state is one number a peer.

A position is *visible* when every connected mount acknowledged it and as many nodes hold it as the
write concern asks, or all that can be reached if they are fewer (promises 4 and 8). It is *durable*
when it is visible and rows and blocks are on stable storage here and on the write-concern nodes
(promise 9). Without peers both are as cheap as they look.

Nothing here polls. A wait ends when the peer acknowledges or its session ends, which the session's
own keepalive bounds (`limits.SESSION_LEASE_S`).
"""

from collections import deque
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from typing import Protocol

import trio

from dfsfs.base.errors import DfsError, Unavailable
from dfsfs.base.limits import SYNC_TIMEOUT_S, UNFLUSHED_BLOCKS_MAX
from dfsfs.base.types import Digest, NodeId
from dfsfs.cluster.unflushed import DisplacedBlocks, UnflushedBlocks
from dfsfs.runtime import Bounds


class Channel(Protocol):
    """The way of our rows to one peer."""

    def hurry(self) -> None:
        """Send what was committed so far without gathering more: somebody waits for it."""
        ...

    def flush(self) -> int:
        """The same, and have the peer flush behind it; the number it will report that under."""
        ...


@dataclass(slots=True, eq=False)
class PeerProgress:
    """What one connected peer acknowledged of our rows and blocks."""

    node: NodeId
    mounts: bool
    stores: bool
    channel: Channel
    acknowledged: int = 0  # position of our own origin it has applied
    blocks: UnflushedBlocks = field(default_factory=UnflushedBlocks)
    flush_ended: int = 0  # the newest of our flushes that it reported on ...
    flush_good: int = 0  # ... and the newest that went well, and so those before
    gone: bool = False
    flushing: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)

    def flush(self) -> int:
        """Ask it to flush what it has taken and applied; the number of that flush."""
        number = self.channel.flush()
        self.blocks.asked(number)
        return number


class Publication:
    """Positions and waiters of this node's own rows. Fed by `exchange` and `replicate`."""

    def __init__(
        self,
        *,
        concern: int | None,
        copies_possible: Callable[[], int] = lambda: 1,
        strict: bool,
        waits_for_mounts: bool = True,
        sync_local: Callable[[], Awaitable[None]],
        place_again: Callable[[Collection[Digest]], Awaitable[bool]],
    ) -> None:
        """`concern`: nodes that must hold a write, None for as many as `copies_possible` says.

        `waits_for_mounts`: False for `--visibility async`: only the write concern is waited for.
        `sync_local` flushes blocks then rows of this node. `place_again` has as many peers take
        blocks as a write of them would; whether so many did.
        """
        self._concern = concern
        self._copies_possible = copies_possible
        self._strict = strict
        self._waits_for_mounts = waits_for_mounts
        self._sync_local = sync_local
        self._place_again = place_again
        self._displaced = DisplacedBlocks()
        self._placing = trio.Lock()
        self._peers: dict[NodeId, PeerProgress] = {}
        self._held: dict[NodeId, int] = {}  # by storing peers, also those that have gone since
        self._waiters: deque[tuple[int, trio.Event]] = deque()
        self.waits = 0
        self.short_writes = 0

    def bounded(self) -> Bounds:
        """What of it is bounded, and how full that is."""
        unflushed = [len(peer.blocks) for peer in self._peers.values()]
        most = max([*unflushed, len(self._displaced)])
        return {"unflushed_blocks": [most, UNFLUSHED_BLOCKS_MAX]}

    # -- fed from below -----------------------------------------------------------------------

    def connected(
        self, node: NodeId, *, mounts: bool, stores: bool, acknowledged: int, channel: Channel
    ) -> None:
        """From now on calls wait for this peer (it was sent everything up to now)."""
        self._forget(node)
        self._peers[node] = PeerProgress(node, mounts, stores, channel, acknowledged)
        if stores:
            self._held[node] = acknowledged
        self._release()

    def disconnected(self, node: NodeId) -> None:
        """The session ended: nobody waits for this peer any more."""
        if self._forget(node):
            self._release()

    def _forget(self, node: NodeId) -> bool:
        peer = self._peers.pop(node, None)
        if peer is None:
            return False
        peer.gone = True
        self._displaced.add(peer.blocks.digests)
        peer.flushing.unpark_all()
        return True

    def flush_ended(self, node: NodeId, number: int, *, good: bool) -> None:
        """The peer has flushed what it was asked to flush until then, or could not."""
        peer = self._peers.get(node)
        if peer is not None:
            peer.flush_ended = max(peer.flush_ended, number)
            peer.blocks.ended(number, good=good)
            if good:
                peer.flush_good = max(peer.flush_good, number)
            peer.flushing.unpark_all()

    def acknowledged(self, node: NodeId, position: int) -> None:
        """The peer has applied our rows up to `position`."""
        progress = self._peers.get(node)
        if progress is not None and position > progress.acknowledged:
            progress.acknowledged = position
            if progress.stores:
                self._held[node] = position
            self._release()

    def block_stored(self, node: NodeId, digest: Digest) -> None:
        """The peer stored a block that a settling write of ours counts on."""
        peer = self._peers.get(node)
        if peer is None:
            self._displaced.add([digest])  # not counted yet, or no more: it cannot be flushed there
        elif peer.blocks.took(digest):
            peer.flush()

    @property
    def peers(self) -> list[PeerProgress]:
        """Connected peers in node-id order."""
        return [self._peers[node] for node in sorted(self._peers)]

    def forget(self, node: NodeId) -> None:
        """The peer is no member any more: what it holds does not count."""
        self._held.pop(node, None)

    def held_by(self, position: int) -> int:
        """Nodes that are known to hold our rows up to `position`, this one included."""
        return 1 + sum(held >= position for held in self._held.values())

    def counts(self, node: NodeId) -> bool:
        """Whether calls wait for this peer now."""
        return node in self._peers

    # -- waiting ------------------------------------------------------------------------------

    async def visible(self, position: int) -> None:
        """Return when `position` is visible as promised.

        Raises:
            Unavailable: the write concern is strict and cannot be met now.
        """
        await self._wait_visible(position)
        self._check(1 + sum(peer.acknowledged >= position for peer in self._storing()))

    async def durable(self, position: int) -> None:
        """Return when `position` and all blocks before it are on stable storage as promised.

        The peers flush while the rows are still being acknowledged by others: one round trip.

        Raises:
            Unavailable: the write concern is strict and cannot be met now.
            DfsError: this node's own disk failed.
        """
        placed = await self._find_places()
        chosen = self._flush_order()
        wanted = self.wanted()
        first, rest = chosen[: wanted - 1], chosen[wanted - 1 :]
        synced = lost = 0
        failed: list[DfsError] = []

        async def flush_local() -> None:
            try:
                await self._sync_local()
            except DfsError as error:
                failed.append(error)

        # Those with blocks of ours flush as well, though the rows are safe without them.
        asked = [(peer, peer.flush()) for peer in chosen if peer in first or peer.blocks]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flush_local)
            await self._wait_visible(position)
            for peer, number in asked:
                if await self._flushed(peer, number):
                    synced += peer in first
                elif not peer.gone:  # its blocks may be on no other node's disk
                    lost += bool(peer.blocks)
        if failed:
            raise failed[0]
        for peer in rest:
            if 1 + synced >= wanted:
                break
            synced += await self._flushed(peer, peer.flush())
        if self._displaced and placed:  # somebody has gone who was to flush
            placed = await self._find_places()
            again = [(peer, peer.flush()) for peer in self._storing() if peer.blocks]
            for peer, number in again:
                placed = await self._flushed(peer, number) and placed
        self._check(1 + synced - lost - (not placed))

    async def _find_places(self) -> bool:
        """Have other peers take what those had not flushed that have gone; whether they did."""
        if not self._displaced:
            return True
        if not self._storing():
            return False
        async with self._placing:
            blocks = self._displaced.now()
            with trio.move_on_after(SYNC_TIMEOUT_S):
                if not blocks or await self._place_again(blocks):
                    self._displaced.placed(blocks)
                    return True
        return False

    async def _flushed(self, peer: PeerProgress, number: int) -> bool:
        """Wait until a peer has flushed as asked.

        False: it could not, has gone, or takes too long; another may take its place.
        """
        with trio.move_on_after(SYNC_TIMEOUT_S):
            while peer.flush_ended < number and not peer.gone:
                await peer.flushing.park()
        return peer.flush_good >= number

    async def flush_local(self) -> None:
        """Flush this node's own blocks and rows.

        Raises:
            DfsError: the disk failed.
        """
        await self._sync_local()

    async def flush_peer(self, node: NodeId) -> bool:
        """Have a peer flush its blocks and rows; whether it did."""
        peer = self._peers.get(node)
        if peer is None:
            return False
        return await self._flushed(peer, peer.flush())

    async def _wait_visible(self, position: int) -> None:
        if not self._peers or self._reach() >= position:
            await trio.lowlevel.checkpoint_if_cancelled()
            return
        self.waits += 1
        for peer in self._peers.values():
            if peer.acknowledged < position and not self.is_spare(peer.node):
                peer.channel.hurry()
        waiter = (position, trio.Event())
        self._waiters.append(waiter)
        try:
            await waiter[1].wait()
        finally:
            if not waiter[1].is_set():
                self._waiters.remove(waiter)

    def _check(self, held: int) -> None:
        if held < self.wanted():
            self.short_writes += 1
            if self._strict:
                raise Unavailable(f"{held} of {self.wanted()} nodes hold this write")

    # -- arithmetic ---------------------------------------------------------------------------

    def _storing(self) -> list[PeerProgress]:
        return [peer for peer in self._peers.values() if peer.stores]

    def _flush_order(self) -> list[PeerProgress]:
        """Storing peers: those that get rows at once, then those with blocks of ours to flush."""
        return sorted(
            self._storing(),
            key=lambda peer: (self.is_spare(peer.node), not peer.blocks, peer.node),
        )

    def is_spare(self, node: NodeId) -> bool:
        """Whether calls return without this peer: mounts that they wait for anyway are enough.

        So its rows may be sent to it a moment later, many at a time, which costs all nodes less.
        """
        peer = self._peers.get(node)
        if peer is None or peer.mounts or not self._waits_for_mounts:
            return False
        return sum(other.mounts for other in self._storing()) >= self.wanted() - 1

    def wanted(self) -> int:
        """Nodes, this one included, that should hold a write."""
        return self._copies_possible() if self._concern is None else self._concern

    def _reach(self) -> int:
        """The highest position that is visible now."""
        reach = min(
            (
                peer.acknowledged
                for peer in self._peers.values()
                if peer.mounts and self._waits_for_mounts
            ),
            default=1 << 63,
        )
        storing = sorted((peer.acknowledged for peer in self._storing()), reverse=True)
        others = min(self.wanted() - 1, len(storing))
        if others > 0:
            reach = min(reach, storing[others - 1])
        return reach

    def _release(self) -> None:
        if not self._waiters:
            return
        reach = self._reach()
        kept = [waiter for waiter in self._waiters if waiter[0] > reach]
        if len(kept) == len(self._waiters):
            return
        for position, event in self._waiters:
            if position <= reach:
                event.set()
        self._waiters = deque(kept)
