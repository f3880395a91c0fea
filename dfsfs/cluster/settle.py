"""Gets contents to stable storage, and files back to what they had if a power cut was faster.

Every node keeps the fallbacks of files whose blocks may not be flushed yet (`namespace.fallbacks`).
This worker ends that, one way or the other:

- What this node has written it flushes soon; then it tells its peers how far that went, with the
  rows it sends (`exchange`). So in quiet times nobody has to ask for single files.
- What nobody has said that of for a while, because its writer is gone or because this node was
  started since, is looked at: if all blocks are held by nodes in reach they are flushed there.
- If blocks are held by nobody, and all members are connected, they are lost: the file gets back the
  newest fallback that can be read. A file that had nothing before becomes empty, a little later,
  so that whoever knows better comes first.

While a member is away nothing is decided: it may have the blocks.
Concurrency: loop only. A file is written back under its lease, and only if it still has what was
found lost.
"""

import logging
import os

import trio

from dfsfs.base.errors import Corrupt, DfsError, NotFound
from dfsfs.base.limits import (
    OFFER_COUNT_MAX,
    SETTLE_COUNT_MAX,
    SETTLE_EMPTY_S,
    SETTLE_PATIENCE_S,
    SETTLE_S,
)
from dfsfs.base.types import EMPTY_CONTENT, ContentRef, Digest, InodeId, NodeId, Stamp
from dfsfs.blocks import BlockSource, BlockStore
from dfsfs.cluster.leases import Leases
from dfsfs.cluster.members import MemberTable
from dfsfs.cluster.publication import Publication
from dfsfs.cluster.replicate import lacks
from dfsfs.content import NodeCache, walk
from dfsfs.namespace import Fallback, Namespace
from dfsfs.net import Endpoint
from dfsfs.runtime import WorkerStatus, World

log = logging.getLogger(__name__)

HELD, LOST, UNKNOWN = "held", "lost", "unknown"


class Settler:
    """A Worker. Owned by the cluster."""

    def __init__(
        self,
        world: World,
        namespace: Namespace,
        source: BlockSource,
        store: BlockStore,
        endpoint: Endpoint,
        members: MemberTable,
        leases: Leases,
        publication: Publication,
    ) -> None:
        self._world = world
        self._namespace = namespace
        self._source = source
        self._store = store
        self._endpoint = endpoint
        self._members = members
        self._leases = leases
        self._publication = publication
        self._began = namespace.position  # rows of this origin up to here are of a former life
        self._former = {stamp for _, stamp in namespace.fallbacks.inodes(InodeId(0), -1)}
        self._since_s: dict[tuple[InodeId, Stamp], float] = {}  # when each was first met
        self._met: dict[tuple[InodeId, Stamp], float] = {}  # the same, in this round
        self._after = InodeId(0)
        self.status = WorkerStatus("settle", figures={"unsettled": 0, "fell_back": 0})

    async def step(self) -> float:
        """Flush what this node wrote, look at some files of which nobody has said it is flushed."""
        fallbacks = self._namespace.fallbacks
        if fallbacks.count(self._namespace.origin):
            await self._publication.flush_local()
        now_s = self._world.now_s()
        page = fallbacks.inodes(self._after, SETTLE_COUNT_MAX)
        self._met |= {item: self._since_s.get(item, now_s) for item in page}
        settled: list[tuple[InodeId, Stamp]] = []
        for inode, stamp in page:
            if stamp.origin == self._namespace.origin and stamp.time > self._began:
                continue  # the next flush says it
            patience_s = 0.0 if stamp in self._former else SETTLE_PATIENCE_S
            if now_s - self._met[inode, stamp] >= patience_s and await self._look(inode, stamp):
                settled.append((inode, stamp))
        if settled and await self._flush_all():
            for inode, stamp in settled:
                fallbacks.forget(inode, stamp)
        self.status.figures["unsettled"] = fallbacks.count()
        if len(page) == SETTLE_COUNT_MAX:
            self._after = page[-1][0]
            return 0.0
        self._after, self._since_s, self._met = InodeId(0), self._met, {}
        return SETTLE_S

    async def _look(self, inode: InodeId, stamp: Stamp) -> bool:
        """Whether all blocks of a file are held by nodes in reach; mends it if some are lost."""
        try:
            found = self._namespace.get(inode)
        except NotFound:
            return True
        if not found.nlink:
            return True
        waited = self._world.now_s() - self._met[inode, stamp] >= SETTLE_EMPTY_S
        # First its copies: writing the file makes files of them, which have what they had.
        if not await self._copies_are_held(inode, stamp, waited):
            return False
        state = await self._state(found.content)
        if state == LOST:
            for fallback in self._namespace.fallbacks.of(inode):
                if await self._state(fallback.content) == HELD:
                    if fallback.content.size or waited:
                        await self._fall_back(inode, found.content, fallback)
                    break
        return state == HELD

    async def _copies_are_held(self, inode: InodeId, stamp: Stamp, waited: bool) -> bool:
        """The same for conflict copies of a file; they had nothing before."""
        for copy in self._namespace.copies_of(inode):
            content = self._namespace.get(copy).content
            state = await self._state(content)
            if state == LOST and waited:
                nothing = Fallback(copy, stamp, EMPTY_CONTENT, mtime_ns=0)
                await self._fall_back(copy, content, nothing)
            if state != HELD:
                return False
        return True

    async def _fall_back(self, inode: InodeId, lost: ContentRef, fallback: Fallback) -> None:
        while not self._leases.held((inode,)):
            await self._leases.acquire((inode,))
        try:
            if self._namespace.get(inode).content != lost:
                return  # somebody was faster
            path = os.fsdecode(self._namespace.path(inode))
        except NotFound:
            return
        self._namespace.write(inode, fallback.content, mtime_ns=fallback.mtime_ns, seen=lost)
        self.status.figures["fell_back"] += 1
        log.warning(
            "%s: what was written last was not flushed and no node has it any more; it has its"
            " former content of %d bytes",
            path,
            fallback.content.size,
        )

    async def _state(self, content: ContentRef) -> str:
        """Whether nodes in reach hold all blocks of a content."""
        if content.root is None:
            return HELD
        after: int | None = None
        nodes = NodeCache()
        failures: list[DfsError] = []
        while True:
            page = await walk(
                self._source,
                content,
                after,
                OFFER_COUNT_MAX // 2,
                unreadable=lambda _, error: failures.append(error),
                nodes=nodes,
            )
            if failures:
                gone = all(isinstance(error, NotFound | Corrupt) for error in failures)
                return LOST if gone and self._all_connected() else UNKNOWN
            missing = sorted({d for d in page.digests if not self._store.has(d)})
            if missing:
                state = await self._ask(missing)
                if state != HELD:
                    return state
            if (after := page.next) is None:
                return HELD

    async def _ask(self, missing: list[Digest]) -> str:
        complete = self._all_connected()
        for node in sorted(self._endpoint.sessions):
            session = self._endpoint.sessions.get(node)
            try:
                if session is None:
                    complete = False
                elif not (missing := await lacks(session, missing)):
                    return HELD
            except DfsError:
                complete = False
        return LOST if complete else UNKNOWN

    def _all_connected(self) -> bool:
        others = {member.node for member in self._members.current()} - {self._members.own}
        return others <= self._endpoint.sessions.keys()

    async def _flush_all(self) -> bool:
        """Have this node and all peers flush; whether all in reach did."""
        await self._publication.flush_local()
        done: list[bool] = []

        async def flush(node: NodeId) -> None:
            done.append(await self._publication.flush_peer(node))

        async with trio.open_nursery() as nursery:
            for node in sorted(self._endpoint.sessions):
                nursery.start_soon(flush, node)
        return all(done)
