"""The cache part of a store: blocks that are here though placement gives them to others.

Fetched blocks, and blocks this node wrote for others to hold, stay as cache up to a byte limit;
then the least recently fetched go. One goes only after every member of its replica set that is
connected confirmed that it holds it, and at least as many as the replication factor asks (or all
other members, if they are fewer): so eviction can never take the last copies.
"""

from collections import OrderedDict

from dfsfs.base.errors import DfsError
from dfsfs.base.limits import OFFER_COUNT_MAX
from dfsfs.base.types import Digest
from dfsfs.blocks import BlockStore, Pins
from dfsfs.cluster.members import MemberTable
from dfsfs.cluster.placement import replica_set
from dfsfs.cluster.replicate import Replicator, offer
from dfsfs.net import Endpoint
from dfsfs.runtime import WorkerStatus

IDLE_S = 5.0
EVICT_STEP = 64  # blocks looked at in one step
ENTRIES_MAX = 1 << 20  # remembered cache blocks; others are found again by the next walk


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
    ) -> None:
        self._store = store
        self._pins = pins
        self._endpoint = endpoint
        self._members = members
        self._replicator = replicator
        self._copies = copies
        self._bytes_max = bytes_max
        self._cached: OrderedDict[Digest, int] = OrderedDict()
        self._bytes = 0
        self._walk_after: Digest | None = None
        self._walking = True  # at start: find what an earlier run left
        self.status = WorkerStatus("cache", figures={"bytes": 0, "limit": bytes_max, "evicted": 0})
        members.watch(lambda member: self._walk_again())

    def kept(self, digest: Digest) -> None:
        """A block was fetched or read again: it is the newest of the cache."""
        if digest in self._cached:
            self._cached.move_to_end(digest)
        elif not self._is_home(digest):
            self._add(digest)

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
        if self._bytes <= self._bytes_max:
            return IDLE_S
        await self._evict_some()
        return 0.1

    def _is_home(self, digest: Digest) -> bool:
        home = replica_set(digest, self._members.candidates, self._copies)
        return self._members.own in home

    def _add(self, digest: Digest) -> None:
        size = self._store.size(digest)
        if size is not None and len(self._cached) < ENTRIES_MAX:
            self._cached[digest] = size
            self._bytes += size

    def _forget(self, digest: Digest) -> None:
        self._bytes -= self._cached.pop(digest)

    def _walk_again(self) -> None:
        self._walking, self._walk_after = True, None

    async def _evict_some(self) -> None:
        oldest = [digest for digest, _ in zip(self._cached, range(EVICT_STEP), strict=False)]
        for digest in oldest:
            if self._bytes <= self._bytes_max:
                return
            if self._store.size(digest) is None or self._is_home(digest):
                self._forget(digest)  # gone, or a replica by now
            elif self._pins.is_pinned(digest) or not await self._is_safe_elsewhere(digest):
                self._cached.move_to_end(digest)
            elif not self._pins.is_pinned(digest):  # looked at again: it may be pinned meanwhile
                await self._store.remove(digest)
                self._forget(digest)
                self.status.figures["evicted"] += 1

    async def _is_safe_elsewhere(self, digest: Digest) -> bool:
        home = replica_set(digest, self._members.candidates, self._copies)
        holders = 0
        for node in home:
            session = self._endpoint.sessions.get(node)
            if session is None:
                continue
            try:
                if await offer(session, [digest]):
                    self._replicator.copy_later(digest, node)
                else:
                    holders += 1
            except DfsError:
                continue
        return holders >= len(home) > 0
