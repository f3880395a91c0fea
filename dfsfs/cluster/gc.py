"""Collects blocks that nothing refers to any more, after a grace period (promise 18).

A *look* marks every block that the namespace of this node needs, by walking all content trees, and
what open files still read; then it goes through the store and notes what is not marked, with the
time. What stays unmarked for the grace period goes. Every node decides for itself, from its own
replica of the namespace; why that is safe is in doc/decisions/0010-garbage-collection.md. In short:

- Who is about to refer to a block pins it here, puts it, or offers it, and each of these takes the
  note off in the same step (`Pins.watch`): the grace period begins anew.
- The grace period is counted by a clock of this node's own, kept on disk: it runs while the node
  runs and reaches a peer (or has none). So rows that have not come yet have time to come, a node
  that was away does not judge by what it knew, and no wall clock matters.
- Content committed during a look is walked before anything more is removed.
- A tree that cannot be read because a node is away stops the look: what is below is unknown. One
  whose interior node is lost for good is reported, and stops nothing.
- While a mount is away it may edit what is removed or replaced here, and refer to blocks that it
  does not hold. What was found unreferenced since it went waits until it is back and has told, or
  counts no more (`--horizon`), or this store has less room than `limits.GC_AWAITED_DIVISOR` asks.
- A node that has lost the names of files judges nothing until peers have sent them again.
- A start gives every note a part of the grace period at least: a power cut may have brought back
  notes that somebody had taken off.

Memory is bounded: marks and notes are tables in a database that holds nothing worth flushing.
Concurrency: loop only; each removal is decided and begun in one step.
"""

import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import trio

from dfsfs.base.errors import Corrupt, DfsError, NotFound, Unavailable
from dfsfs.base.limits import (
    GC_AWAITED_DIVISOR,
    GC_CLOCK_S,
    GC_NEWS_MAX,
    GC_PAGE_COUNT,
    GC_PERIOD_MIN_S,
    GC_PERIOD_S,
    GC_RETRY_S,
    OFFER_COUNT_MAX,
)
from dfsfs.base.types import ContentRef, Digest, InodeId, digest_text
from dfsfs.blocks import BlockSource, BlockStore
from dfsfs.cluster.members import NAMES_LOST, MemberTable
from dfsfs.cluster.replicate import offer
from dfsfs.content import NodeCache, walk
from dfsfs.namespace import Change, Namespace
from dfsfs.net import Endpoint
from dfsfs.runtime import Database, WorkerStatus, World

log = logging.getLogger(__name__)

IDLE_S = 1.0
RESTART_DIVISOR = 24  # this part of the grace period is left to every note at a start

SCHEMA = """
-- Blocks that the last look found unreferenced, and when that was first so: seconds of the clock.
CREATE TABLE unreferenced (digest BLOB PRIMARY KEY, found_s INTEGER NOT NULL) WITHOUT ROWID;
-- Blocks that the look under way has found referenced.
CREATE TABLE mark (digest BLOB PRIMARY KEY) WITHOUT ROWID;
-- One line: how long this node has been judging, in seconds.
CREATE TABLE clock (now_s INTEGER NOT NULL);
INSERT INTO clock VALUES (0);
"""
SCHEMA_VERSION = 1

ContentsInUse = Callable[[], Iterable[tuple[InodeId, ContentRef]]]


@dataclass(frozen=True, slots=True)
class Look:
    """What one look found, and did."""

    referenced_blocks: int = 0
    unreferenced_blocks: int = 0
    unreferenced_bytes: int = 0
    awaited_blocks: int = 0  # of the unreferenced those that a mount that is away may refer to
    awaited_bytes: int = 0
    due_blocks: int = 0  # of the unreferenced beyond their grace period: they go, or would
    due_bytes: int = 0
    removed_blocks: int = 0
    removed_bytes: int = 0
    lost_trees: int = 0  # files whose tree has a node that nobody holds


class Collector:
    """The Worker that looks and removes. One page a step."""

    def __init__(
        self,
        world: World,
        database: Database,
        namespace: Namespace,
        source: BlockSource,
        store: BlockStore,
        endpoint: Endpoint,
        members: MemberTable,
        *,
        grace_s: float,
        contents_in_use: ContentsInUse,
        away_s: Callable[[], float],
        removed: Callable[[Digest], None],
        found_again: Callable[[], None],
    ) -> None:
        """`database` was made with `SCHEMA`; `contents_in_use` names what open files still need.

        `away_s`: for how long the mount is away that counts and has been longest; 0: none is.
        `removed` is told of every block that has gone; `found_again` when what was unreferenced is
        not any more, its rows having come later than it: repair has left it alone until now.
        """
        self._world = world
        self._database = database
        self._namespace = namespace
        self._source = source
        self._store = store
        self._pins = store.pins
        self._endpoint = endpoint
        self._members = members
        self._grace_s = grace_s
        self._contents_in_use = contents_in_use
        self._away_s = away_s
        self._awaits_s = 0.0  # younger notes than this wait for somebody
        self._found_again = found_again
        self._removed = removed
        self._clock_s = float(database.value("SELECT now_s FROM clock"))
        self._written_s = self._clock_s
        self._ticked_at_s = world.now_s()
        self._noted = int(database.value("SELECT count(*) FROM unreferenced"))
        if self._noted:
            database.execute(
                "UPDATE unreferenced SET found_s = max(found_s, ?)",
                (int(self._clock_s - grace_s + grace_s / RESTART_DIVISOR),),
            )
        self._phase = "idle"
        self._due_at_s = world.now_s() + self._period_s
        self._dry = False
        self._queue: list[tuple[InodeId, ContentRef]] = []
        self._walk_after: int | None = None
        self._inode: InodeId | None = None
        self._all_listed = False
        self._block: Digest | None = None
        self._nodes = NodeCache()
        self._news: dict[ContentRef, InodeId] = {}
        self._counts: dict[str, int] = {}
        self.looks = 0
        self.last = Look()
        self._ended = trio.Event()  # of the look that is next, or under way
        self.failure = ""  # why the last look was given up, if it was
        self.status = WorkerStatus(
            "gc",
            figures=dict.fromkeys(
                ("looks", "unreferenced_bytes", "awaited_bytes", "removed_blocks", "removed_bytes"),
                0,
            ),
        )
        self._pins.watch(self._needed)
        namespace.subscribe(self._committed)

    # -- what others ask ------------------------------------------------------------------------

    def is_unreferenced(self, digest: Digest) -> bool:
        """Whether the block was found unreferenced, and nobody has asked for it since."""
        return self._noted > 0 and self._found_s(digest) is not None

    async def look_now(self, *, dry_run: bool = False) -> Look:
        """Look at once; what it found.

        Raises:
            Unavailable: the look had to be given up; the message says why.
        """
        while self._phase != "idle":
            await self._ended.wait()
        self._dry, self._due_at_s, self.failure = dry_run, self._world.now_s(), ""
        await self._ended.wait()
        if self.failure:
            raise Unavailable(self.failure)
        return self.last

    @property
    def _period_s(self) -> float:
        return min(GC_PERIOD_S, max(self._grace_s / 8, GC_PERIOD_MIN_S))

    # -- the worker -----------------------------------------------------------------------------

    async def step(self) -> float:
        """Mark one page, sweep one, or rest."""
        self._tick()
        if self._phase == "idle":
            in_vain = self.last.awaited_blocks and not self._awaits_s and not self.failure
            if self._world.now_s() < self._due_at_s and not in_vain:
                return IDLE_S
            if lost := self._members.fact(NAMES_LOST):
                why = f"the names of files are lost here ({lost.decode()}): everything is kept"
                self._give_up(why)
                return IDLE_S
            self._begin()
        try:
            while self._news:
                content, inode = self._news.popitem()
                await self._mark_whole(inode, content)
            if self._phase == "marking":
                await self._mark_some()
            elif self._phase == "sweeping":
                await self._sweep_some()
        except DfsError as error:
            self._give_up(str(error))
            raise
        return 0.0

    def _tick(self) -> None:
        now_s = self._world.now_s()
        others = [m for m in self._members.current() if m.node != self._members.own]
        if self._endpoint.sessions or not others:
            self._clock_s += max(0.0, now_s - self._ticked_at_s)
        self._ticked_at_s = now_s
        usage = self._store.usage()
        has_room = usage.capacity_bytes - usage.block_bytes >= (
            usage.capacity_bytes // GC_AWAITED_DIVISOR
        )
        away_s = self._away_s()
        self._awaits_s = away_s if has_room else 0.0
        if self._clock_s - self._written_s >= GC_CLOCK_S:
            self._write_clock()

    def _write_clock(self) -> None:
        self._written_s = self._clock_s
        self._database.execute("UPDATE clock SET now_s = ?", (int(self._clock_s),))

    def _begin(self) -> None:
        self._database.execute("DELETE FROM mark")
        self._queue = [*self._contents_in_use()]
        self._inode, self._walk_after, self._block = None, None, None
        self._all_listed = False
        self._news.clear()
        self._counts = dict.fromkeys(Look.__slots__, 0)
        self._phase, self.status.doing = "marking", "finding what is referenced"
        self._pins.looked_at = True

    def _give_up(self, why: str) -> None:
        self._phase, self.failure, self._dry = "idle", why, False
        self._nodes = NodeCache()  # between looks memory is for others
        self._pins.looked_at = False
        self._ended.set()
        self._ended = trio.Event()
        self.status.doing = f"idle; gave up: {why}"
        self._due_at_s = self._world.now_s() + max(self._period_s, min(GC_RETRY_S, self._grace_s))

    def _end(self) -> None:
        self._write_clock()
        self._database.execute("DELETE FROM mark")
        self.last = Look(**self._counts)
        self.looks += 1
        self._phase, self._dry, self.status.doing = "idle", False, "idle"
        self._nodes = NodeCache()
        self._pins.looked_at = False
        self._due_at_s = self._world.now_s() + self._period_s
        self._ended.set()
        self._ended = trio.Event()
        figures = self.status.figures
        figures["looks"] = self.looks
        figures["unreferenced_bytes"] = self.last.unreferenced_bytes
        figures["awaited_bytes"] = self.last.awaited_bytes
        figures["removed_blocks"] += self.last.removed_blocks
        figures["removed_bytes"] += self.last.removed_bytes
        if self.last.removed_blocks:
            log.info("collected %d blocks", self.last.removed_blocks)

    # -- what happens meanwhile -----------------------------------------------------------------

    def _needed(self, digest: Digest) -> None:
        """Somebody is about to refer to the block, or counts on its being here."""
        if self._noted and self._forget(digest):
            self._found_again()

    def _committed(self, change: Change) -> None:
        """Content that a look may have passed already is walked as well."""
        if self._phase == "idle":
            return
        for inode, content in change.contents.items():
            if content.root is not None:
                self._news[content] = inode
        if len(self._news) > GC_NEWS_MAX:
            self._give_up("too much was written during the look")

    # -- marking --------------------------------------------------------------------------------

    async def _mark_some(self) -> None:
        if not self._queue:
            if self._all_listed:
                await self._promise_in_use()
                self._phase, self.status.doing = "sweeping", "finding what is not referenced"
                return
            page = self._namespace.contents(self._inode, GC_PAGE_COUNT, fallbacks=True)
            self._inode, self._all_listed = page.next, page.next is None
            self._queue = [item for item in reversed(page.contents) if item[1].root is not None]
            await trio.lowlevel.checkpoint()
            return
        inode, content = self._queue[-1]
        self._walk_after = await self._mark_page(inode, content, self._walk_after)
        if self._walk_after is None:
            self._queue.pop()

    async def _mark_whole(self, inode: InodeId, content: ContentRef) -> None:
        after = await self._mark_page(inode, content, None)
        while after is not None:
            after = await self._mark_page(inode, content, after)

    async def _mark_page(
        self, inode: InodeId, content: ContentRef, after: int | None
    ) -> int | None:
        """Mark some blocks of a tree; where to go on."""

        def unreadable(digest: Digest, error: DfsError) -> None:
            path = self._path(inode)
            if not isinstance(error, NotFound | Corrupt):
                raise type(error)(f"what {path} needs cannot be known now: {error}") from error
            log.info("%s: %s is lost: %s", path, digest_text(digest), error)
            self._counts["lost_trees"] += 1

        try:
            page = await walk(
                self._source,
                content,
                after,
                GC_PAGE_COUNT,
                skip=self._is_marked,
                unreadable=unreadable,
                nodes=self._nodes,
            )
        except Corrupt as error:  # the ref itself makes no sense
            log.info("%s: %s", self._path(inode), error)
            self._counts["lost_trees"] += 1
            return None
        if page.digests:
            with self._database.transaction():
                self._database.executemany(
                    "INSERT OR IGNORE INTO mark VALUES (?)", [(item,) for item in page.digests]
                )
        return page.next

    def _is_marked(self, digest: Digest) -> bool:
        return self._database.row("SELECT 1 FROM mark WHERE digest = ?", (digest,)) is not None

    def _path(self, inode: InodeId) -> str:
        try:
            return os.fsdecode(self._namespace.path(inode))
        except NotFound:
            return f"inode {inode}"

    async def _promise_in_use(self) -> None:
        """Have peers keep what only this node still needs: versions open here, and uploads."""
        wanted = self._pins.all()
        for inode, content in list(self._contents_in_use()):
            try:
                found = self._namespace.get(inode)
                if content.root is None or (found.nlink and found.content == content):
                    continue
            except NotFound:
                pass
            after: int | None = None
            while True:
                page = await walk(
                    self._source, content, after, OFFER_COUNT_MAX, unreadable=lambda *_: None
                )
                await self._offer(page.digests)
                if (after := page.next) is None:
                    break
        for start in range(0, len(wanted), OFFER_COUNT_MAX):
            await self._offer(wanted[start : start + OFFER_COUNT_MAX])

    async def _offer(self, digests: list[Digest]) -> None:
        for node in sorted(self._endpoint.sessions):
            session = self._endpoint.sessions.get(node)
            if session is not None:
                try:
                    await offer(session, digests)
                except DfsError as error:
                    log.debug("%s was not asked to keep blocks: %s", session.peer.name, error)

    # -- sweeping -------------------------------------------------------------------------------

    async def _sweep_some(self) -> None:
        page = self._store.page(self._block, GC_PAGE_COUNT)
        if not page:
            self._end()
            return
        counted = self._counts.copy()
        due = self._judge(page)
        for digest in due:
            if self._news:  # walked first; then this page is judged again
                removed = {key: n for key, n in self._counts.items() if key.startswith("removed")}
                self._counts = counted | removed
                return
            # Between this look at notes and pins and the removal from the index is no checkpoint.
            if self._is_due(digest, self._found_s(digest)):
                size = self._store.size(digest) or 0
                self._forget(digest)
                if await self._store.remove(digest):
                    self._removed(digest)
                self._count("removed", size)
        self._block = page[-1]
        await trio.lowlevel.checkpoint()

    def _judge(self, page: list[Digest]) -> list[Digest]:
        """Bring the notes of a page up to date; those that may go."""
        due: list[Digest] = []
        fresh: list[tuple[Digest, int]] = []
        for digest in page:
            if self._is_marked(digest):
                self._counts["referenced_blocks"] += 1
                self._needed(digest)
                continue
            if self._pins.is_pinned(digest):
                continue
            size = self._store.size(digest) or 0
            self._count("unreferenced", size)
            found_s = self._found_s(digest)
            if found_s is None:
                fresh.append((digest, int(self._clock_s) + 1))
            elif self._is_awaited(found_s):
                self._count("awaited", size)
            elif self._is_due(digest, found_s):
                self._count("due", size)
                if not self._dry:
                    due.append(digest)
        self._forget_gone(page)
        if fresh:
            with self._database.transaction():
                self._database.executemany("INSERT INTO unreferenced VALUES (?, ?)", fresh)
            self._noted += len(fresh)
        return due

    def _forget_gone(self, page: list[Digest]) -> None:
        """Drop notes of blocks that left the store by another way."""
        if self._noted:
            noted = self._database.rows(
                "SELECT digest FROM unreferenced WHERE digest > ? AND digest <= ?",
                (self._block or b"", page[-1]),
            )
            for digest in sorted({row[0] for row in noted} - set(page)):
                self._forget(digest)

    def _is_due(self, digest: Digest, found_s: int | None) -> bool:
        return (
            found_s is not None
            and self._clock_s - found_s >= self._grace_s
            and not self._is_awaited(found_s)
            and not self._pins.is_pinned(digest)
        )

    def _is_awaited(self, found_s: int) -> bool:
        """Whether a mount went before a block was noted, and is away still."""
        # A note is rounded up, so it may be of the next second.
        return max(0.0, self._clock_s - found_s) < self._awaits_s

    def _found_s(self, digest: Digest) -> int | None:
        found: int | None = self._database.value(
            "SELECT found_s FROM unreferenced WHERE digest = ?", (digest,)
        )
        return found

    def _forget(self, digest: Digest) -> bool:
        """Drop the note of a block; whether there was one."""
        self._database.execute("DELETE FROM unreferenced WHERE digest = ?", (digest,))
        dropped = self._database.changes()
        self._noted -= dropped
        return dropped > 0

    def _count(self, what: str, size: int) -> None:
        self._counts[f"{what}_blocks"] += 1
        self._counts[f"{what}_bytes"] += size
