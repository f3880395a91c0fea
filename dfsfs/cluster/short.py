"""Files that are on fewer nodes than the write concern asks, by name, and why (promise 8).

A write that reaches fewer nodes than asked succeeds. Which files that were is remembered here until
they have reached them: their rows, as peers acknowledge positions, and their blocks, as peers say
when they are asked. What `dfs status` shows is as old as the last answer, a second or so.

Only what this node wrote is known here; each node tells of its own. The list survives a restart,
but for the last second before a kill. It is bounded: what is beyond is counted, not named.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import trio

from dfsfs.base.codec import decode, encode
from dfsfs.base.errors import DfsError, NotFound
from dfsfs.base.limits import (
    OFFER_COUNT_MAX,
    SHORT_CHECK_S,
    SHORT_FILES_MAX,
    SHORT_FILES_SHOWN,
    SHORT_SUSPECT_S,
)
from dfsfs.base.types import ContentRef, Digest, InodeId
from dfsfs.base.units import KIB
from dfsfs.blocks import BlockSource, BlockStore
from dfsfs.cluster.members import MemberTable
from dfsfs.cluster.publication import Publication
from dfsfs.cluster.references import path_of
from dfsfs.cluster.replicate import Replicator, lacks
from dfsfs.content import walk
from dfsfs.namespace import Change, Namespace
from dfsfs.net import Endpoint, Session
from dfsfs.runtime import WorkerStatus, World

FACT = "short_files"  # the inodes of the list
CHECKS_MAX = 64  # files whose blocks are asked for in one step


@dataclass(slots=True)
class _File:
    content: ContentRef
    position: int  # of the rows that say so
    suspect: bool  # some of its blocks may be short
    nodes: int | None = None  # which hold the block that the fewest hold; None: not asked yet


class ShortFiles:
    """The list, and the Worker that asks for blocks. Owned by `Upkeep`."""

    def __init__(
        self,
        world: World,
        namespace: Namespace,
        store: BlockStore,
        endpoint: Endpoint,
        members: MemberTable,
        publication: Publication,
        replicator: Replicator,
        source: BlockSource,
        is_whole: Callable[[], bool],
    ) -> None:
        """`source` gives interior nodes; `is_whole` tells that no block here lacks a copy."""
        self._world = world
        self._namespace = namespace
        self._store = store
        self._endpoint = endpoint
        self._members = members
        self._publication = publication
        self._replicator = replicator
        self._source = source
        self._is_whole = is_whole
        self._files: dict[InodeId, _File] = {}
        self._unnamed = 0
        self._saved: list[InodeId] = []
        self.status = WorkerStatus("short files", figures={"files": 0})
        self._load()
        namespace.subscribe(self._committed)

    def _committed(self, change: Change) -> None:
        if not change.local:
            return
        suspect = self._world.now_s() - self._replicator.fell_short_at_s < SHORT_SUSPECT_S
        for inode, content in change.contents.items():
            suspect_blocks = suspect and content.root is not None
            self._files[inode] = _File(content, change.stamp.time, suspect_blocks)
        if len(self._files) > SHORT_FILES_MAX:
            self._prune()
            while len(self._files) > SHORT_FILES_MAX:
                del self._files[next(iter(self._files))]
                self._unnamed += 1

    def _rows_are_short(self, file: _File) -> bool:
        return self._publication.held_by(file.position) < self._publication.wanted()

    def _is_settled(self, file: _File) -> bool:
        return not file.suspect and not self._rows_are_short(file)

    def _prune(self) -> None:
        for inode, file in list(self._files.items()):
            if self._is_settled(file) or self._is_replaced(inode, file):
                del self._files[inode]

    def _is_replaced(self, inode: InodeId, file: _File) -> bool:
        try:
            found = self._namespace.get(inode)
        except DfsError:
            return True
        return not found.nlink or found.content != file.content

    # -- the worker -----------------------------------------------------------------------------

    async def step(self) -> float:
        """Ask for the blocks of some files, and forget those that have reached enough nodes."""
        wanted = self._publication.wanted()
        suspects = [item for item in self._files.items() if item[1].suspect][:CHECKS_MAX]
        for inode, file in suspects:
            if self._is_replaced(inode, file):
                continue  # `_prune` forgets it
            file.nodes = await self._nodes_of(file.content)
            if file.nodes >= wanted:
                file.suspect = False
            elif self._files.pop(inode, None) is file:
                self._files[inode] = file  # the others have their turn first
        self._prune()
        if self._unnamed and not self._files and self._is_whole():
            self._unnamed = 0
        self.status.figures["files"] = len(self._files) + self._unnamed
        self._save()
        return SHORT_CHECK_S

    async def _nodes_of(self, content: ContentRef) -> int:
        """How many nodes in reach hold the block that the fewest hold."""
        fewest = 1 << 30
        after: int | None = None
        while content.root is not None:
            try:
                page = await walk(self._source, content, after, OFFER_COUNT_MAX)
            except DfsError:
                return 0  # nobody in reach has all of it; that must not keep the others waiting
            holders = {digest: int(self._store.has(digest)) for digest in page.digests}

            async def ask(session: Session, holders: dict[Digest, int] = holders) -> None:
                try:
                    missing = set(await lacks(session, list(holders)))
                except DfsError:
                    return  # who cannot be asked is not counted
                for digest in holders:
                    holders[digest] += digest not in missing

            async with trio.open_nursery() as nursery:
                for session in list(self._endpoint.sessions.values()):
                    nursery.start_soon(ask, session)
            fewest = min(fewest, *holders.values()) if holders else fewest
            if (after := page.next) is None:
                break
        return fewest

    # -- what is shown --------------------------------------------------------------------------

    def report(self) -> dict[str, Any]:
        """Count and names of the files, how many nodes they should be on, and why they are not."""
        wanted = self._publication.wanted()
        short: list[tuple[InodeId, int]] = []
        for inode, file in self._files.items():
            nodes = self._publication.held_by(file.position)
            if file.suspect:  # whom nobody has asked yet may hold nothing
                nodes = min(nodes, 1 if file.nodes is None else file.nodes)
            if nodes < wanted and not self._is_replaced(inode, file):
                short.append((inode, nodes))
        shown = short[-SHORT_FILES_SHOWN:]
        count = len(short) + self._unnamed
        return {
            "short_files": [
                {"path": path_of(self._namespace, inode), "nodes": nodes} for inode, nodes in shown
            ],
            "short_count": count,
            "short_why": self._why() if count else "",
        }

    def _why(self) -> str:
        others = [m for m in self._members.current() if m.weight and m.node != self._members.own]
        missing = self._publication.wanted() - 1 - len(others)
        away = [m.name for m in others if not self._publication.counts(m.node)]
        full = [m.name for m in others if not self._replicator.takes_more(m.node)]
        reasons = []
        if not others:
            reasons.append("there is no other node")
        elif missing > 0:
            reasons.append(f"the network has only {1 + len(others)} nodes that store")
        if away:
            reasons.append(f"not reached: {', '.join(away)}")
        if full:
            reasons.append(f"full: {', '.join(full)}")
        return "; ".join(reasons) or "being copied"

    # -- across restarts ------------------------------------------------------------------------

    def _save(self) -> None:
        inodes = sorted(self._files)
        if inodes != self._saved:
            self._members.set_fact(FACT, encode([inodes, self._unnamed]))
            self._saved = inodes

    def _load(self) -> None:
        raw = self._members.fact(FACT)
        try:
            inodes, self._unnamed = decode(raw, size_max=32 * KIB) if raw else ([], 0)
            for inode in inodes:
                try:
                    content = self._namespace.get(InodeId(inode)).content
                except NotFound:
                    continue  # forgotten since
                has_blocks = content.root is not None
                file = _File(content, self._namespace.position, has_blocks)
                self._files[InodeId(inode)] = file
        except (DfsError, TypeError, ValueError):
            return  # of another version, or gone
