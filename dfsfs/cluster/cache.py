"""The cache part of a store: blocks that are here though placement gives them to others.

Fetched blocks, blocks this node wrote for others to hold, and copies it made while another holder
was absent stay as cache up to a byte limit; then the least recently fetched go. The cache gives way
to replicas: when the store runs low it shrinks, and a put that finds no room takes its place.

One goes only after every node that placement asks for it has confirmed that it holds it, full ones
with those that stand in for them: so eviction can never take a block below its factor. Two nodes
that see different members could each count on the other: whoever was asked for a block lately
(`Pins.promise`) does not evict it.
"""

from collections import OrderedDict, defaultdict
from collections.abc import Callable

import trio

from dfsfs.base.errors import DfsError, Full
from dfsfs.base.limits import (
    CACHE_BLOCKS_MAX,
    OFFER_COUNT_MAX,
    STORE_LOW_BYTES_MAX,
    STORE_LOW_DIVISOR,
)
from dfsfs.base.types import Buffer, Digest, NodeId
from dfsfs.blocks import BlockStore, Pins
from dfsfs.cluster.members import MemberTable
from dfsfs.cluster.placement import lack_of, ranked, replica_set
from dfsfs.cluster.replicate import Replicator, offer
from dfsfs.net import Endpoint
from dfsfs.runtime import Bounds, WorkerStatus

IDLE_S = 5.0
EVICT_STEP = 64  # blocks looked at in one step
ROOM_STEPS_MAX = 4  # ... and how many steps a put waits for
PROMISE_S = 120.0  # much longer than an eviction takes from asking to removing


class CacheKeeper:
    """The Worker that keeps the cache part of a store below its limit."""

    def __init__(
        self,
        store: BlockStore,
        pins: Pins,
        endpoint: Endpoint,
        members: MemberTable,
        replicator: Replicator,
        *,
        copies: int,
        bytes_max: int,
        is_unreferenced: Callable[[Digest], bool],
    ) -> None:
        self._store = store
        self._pins = pins
        self._endpoint = endpoint
        self._members = members
        self._replicator = replicator
        self._copies = copies
        self._bytes_max = bytes_max
        self._is_unreferenced = is_unreferenced
        self._cached: OrderedDict[Digest, int] = OrderedDict()
        self._bytes = 0
        self._walk_after: Digest | None = None
        self._walking = True  # at start: find what an earlier run left
        self._making_room = trio.Lock()
        self.status = WorkerStatus("cache", figures={"bytes": 0, "limit": bytes_max, "evicted": 0})
        self._promised_until_s: dict[Digest, float] = {}
        pins.watch(self._promised)
        members.watch_placement(self._walk_again)

    def kept(self, digest: Digest) -> None:
        """A block was fetched or read again: it is the newest of the cache."""
        if digest in self._cached:
            self._cached.move_to_end(digest)
        elif not self._is_home(digest):
            self._add(digest)

    @property
    def bytes(self) -> int:
        """Bytes of the cache, as far as its blocks are remembered."""
        return self._bytes

    def bounded(self) -> Bounds:
        """What of it is bounded, and how full that is."""
        return {
            "cache_bytes": [self._bytes, self._bytes_max],
            "cache_blocks": [len(self._cached), CACHE_BLOCKS_MAX],
        }

    def keeps(self, digest: Digest) -> bool:
        """Whether a block that was fetched should stay: as a replica, or because there is room."""
        return self._is_home(digest) or not self.is_low

    def _promised(self, digest: Digest) -> None:
        if digest in self._cached:
            self._promised_until_s[digest] = self._replicator.world.now_s() + PROMISE_S

    def _may_go(self, digest: Digest) -> bool:
        if self._pins.is_pinned(digest):
            return False
        until_s = self._promised_until_s.get(digest)
        return until_s is None or until_s < self._replicator.world.now_s()

    @property
    def is_low(self) -> bool:
        """Whether what room is left is kept for replicas."""
        usage = self._store.usage()
        low = min(usage.capacity_bytes // STORE_LOW_DIVISOR, STORE_LOW_BYTES_MAX)
        return usage.capacity_bytes - usage.block_bytes < low

    async def put(self, digest: Digest, data: Buffer) -> bool:
        """Store a block that is no cache; the cache gives way to it. See `BlockStore.put`."""
        try:
            return await self._store.put(digest, data)
        except Full:
            for _ in range(ROOM_STEPS_MAX):
                if not await self._make_room():
                    break
                try:
                    return await self._store.put(digest, data)
                except Full:
                    continue
            raise

    async def step(self) -> float:
        """Find cache blocks, or evict some if there are too many."""
        if self._walking:
            page = self._store.page(self._walk_after, OFFER_COUNT_MAX)
            for digest in page:
                if digest not in self._cached and not self._is_home(digest):
                    self._add(digest)
            self._walk_after = page[-1] if page else None
            self._walking = bool(page)
            return 0.0
        self.status.figures["bytes"] = self._bytes
        if not self._is_over():
            return IDLE_S
        async with self._making_room:
            freed = await self._evict_some(self._is_over)
        return 0.1 if freed else IDLE_S

    def _is_over(self) -> bool:
        return (
            self._bytes > self._bytes_max
            or len(self._cached) >= CACHE_BLOCKS_MAX
            or (self._bytes > 0 and self.is_low)
        )

    async def _make_room(self) -> bool:
        """Evict some blocks at once; False if there was nothing to evict."""
        async with self._making_room:
            return await self._evict_some(lambda: True)

    def _is_home(self, digest: Digest) -> bool:
        home = replica_set(digest, self._members.candidates, self._copies)
        return self._members.own in home

    def _add(self, digest: Digest) -> None:
        size = self._store.size(digest)
        if size is not None and len(self._cached) < CACHE_BLOCKS_MAX:
            self._cached[digest] = size
            self._bytes += size

    def forget(self, digest: Digest) -> None:
        """The block has left the store, or is no cache any more."""
        self._promised_until_s.pop(digest, None)
        size = self._cached.pop(digest, None)
        if size is not None:
            self._bytes -= size

    def _walk_again(self) -> None:
        self._walking, self._walk_after = True, None

    async def _evict_some(self, wanted: Callable[[], bool]) -> bool:
        """Evict the oldest that are safe elsewhere, while that is wanted; whether any went."""
        oldest: list[Digest] = []
        for digest, _ in zip(list(self._cached), range(EVICT_STEP), strict=False):
            if self._store.size(digest) is None or self._is_home(digest):
                self.forget(digest)  # gone, or a replica by now
            else:
                self._cached.move_to_end(digest)  # those that must stay do not stand in the way
                # What is unreferenced is for garbage collection: asking would make peers keep it.
                if self._may_go(digest) and not self._is_unreferenced(digest):
                    oldest.append(digest)
        safe = await self._safe_elsewhere(oldest)
        evicted = 0
        for digest in safe:
            if not wanted():
                break
            if self._may_go(digest):  # looked at again: somebody may count on it meanwhile
                await self._store.remove(digest)
                self.forget(digest)
                evicted += 1
        self.status.figures["evicted"] += evicted
        return evicted > 0

    async def _safe_elsewhere(self, digests: list[Digest]) -> list[Digest]:
        """Those that as many other nodes hold as the factor asks; what they lack is queued."""
        orders = {digest: ranked(digest, self._members.candidates) for digest in digests}
        asked: dict[NodeId, list[Digest]] = defaultdict(list)
        for digest, order in orders.items():
            takers = 0
            for node in order:
                if takers >= self._copies:
                    break
                takers += self._replicator.takes_more(node)
                asked[node].append(digest)
        lacking: dict[NodeId, set[Digest]] = {}
        for node in sorted(asked):
            session = self._endpoint.sessions.get(node)
            if session is not None:
                try:
                    lacking[node] = set(await offer(session, asked[node]))
                except DfsError:
                    continue
        safe = []
        for digest, order in orders.items():

            def has(node: NodeId, digest: Digest = digest) -> bool | None:
                return digest not in lacking[node] if node in lacking else None

            takes_more = self._replicator.takes_more
            lack = lack_of(order, self._copies, self._members.own, has=has, takes_more=takes_more)
            if lack.elsewhere >= min(self._copies, len(order)) > 0:
                safe.append(digest)
            for node in lack.targets:
                self._replicator.copy_later(digest, node)
        return safe
