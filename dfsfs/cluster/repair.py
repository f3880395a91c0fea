"""Finds blocks that lack copies by comparing stores, and queues the copies.

A scan walks this node's own blocks in pages and offers each page to the other members of every
block's replica set; what they have not got is queued for them. It runs at start, when a peer joins
or comes back, when the queue had to forget something, and every `REPAIR_SCAN_S` unasked. Every node
does this for what it holds, so a block is found as long as one holder lives.
"""

from collections import defaultdict

from dfsfs.base.errors import DfsError
from dfsfs.base.limits import OFFER_COUNT_MAX, REPAIR_SCAN_S
from dfsfs.base.types import Digest, NodeId
from dfsfs.blocks import BlockStore
from dfsfs.cluster.members import MemberTable
from dfsfs.cluster.placement import replica_set
from dfsfs.cluster.replicate import Replicator, offer
from dfsfs.net import Endpoint
from dfsfs.runtime import WorkerStatus, World

PAGE = OFFER_COUNT_MAX
IDLE_S = 1.0


class Repairer:
    """The Worker that scans. One page a step."""

    def __init__(
        self,
        world: World,
        store: BlockStore,
        endpoint: Endpoint,
        members: MemberTable,
        replicator: Replicator,
        *,
        copies: int,
    ) -> None:
        self._world = world
        self._store = store
        self._endpoint = endpoint
        self._members = members
        self._replicator = replicator
        self._copies = copies
        self._after: Digest | None = None
        self._scanning = False
        self._finished_at_s = world.now_s()
        self._missing = 0
        self.status = WorkerStatus("repair", figures={"missing_copies": 0, "scans": 0})

    async def step(self) -> float:
        """Compare one page of blocks, or rest."""
        if not self._scanning:
            due = self._world.now_s() - self._finished_at_s > REPAIR_SCAN_S
            if not (self._replicator.scan_wanted or due) or self._replicator.pending:
                return IDLE_S
            self._replicator.scan_wanted = False
            self._scanning, self._after, self._missing = True, None, 0
            self.status.doing = "comparing blocks with their other holders"
        page = self._store.page(self._after, PAGE)
        if page:
            await self._compare(page)
            self._after = page[-1]
            return 0.0
        self._scanning = False
        self._finished_at_s = self._world.now_s()
        self.status.doing = "idle"
        self.status.figures["missing_copies"] = self._missing
        self.status.figures["scans"] += 1
        return IDLE_S

    async def _compare(self, page: list[Digest]) -> None:
        wanted_by: dict[NodeId, list[Digest]] = defaultdict(list)
        for digest in page:
            for node in replica_set(digest, self._members.candidates, self._copies):
                if node != self._members.own:
                    wanted_by[node].append(digest)
        for node in sorted(wanted_by):
            digests = wanted_by[node]
            session = self._endpoint.sessions.get(node)
            if session is None:
                self._missing += len(digests)
                continue
            try:
                for digest in await offer(session, digests):
                    self._missing += 1
                    self._replicator.copy_later(digest, node)
            except DfsError:
                self._replicator.scan_wanted = True
