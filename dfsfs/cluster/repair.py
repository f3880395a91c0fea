"""Finds blocks that lack copies by comparing stores, and copies them.

A *look* walks this node's own blocks in pages and asks the nodes that placement ranks for each
block whether they hold it. Every node does this for what it holds, so a block is found as long as
one holder lives; of several holders only the best-ranked one copies, so nothing is sent twice. What
a look finds missing is counted first, for `dfs status`, and then copied at `--repair-rate` by
walking the store again. Nothing of this needs to survive a restart: what was copied is found there.

A look is due at start, when placement changed (a node joined, left, became absent or full), when a
session came up or ended, when a full node has room again, when the queue of fresh copies had to
forget something, and every `REPAIR_SCAN_S`.

Nodes may believe different things of who is there, and then none may think that it is its turn. So
what is left to others is remembered and looked at again soon, and done if nobody does it.

Blocks that garbage collection has found unreferenced are left out: copying them would bring them
back to nodes that have already let them go.
"""

import logging
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace

import trio

from dfsfs.base.errors import Corrupt, DfsError, NotFound
from dfsfs.base.limits import (
    OFFER_COUNT_MAX,
    PENDING_COPIES_MAX,
    REPAIR_AGAIN_S,
    REPAIR_COPIES_MAX,
    REPAIR_LEFT_S,
    REPAIR_PATIENCE_S,
    REPAIR_SCAN_S,
    REPAIR_TOLD_S,
)
from dfsfs.base.types import Digest, NodeId
from dfsfs.blocks import BlockSource, BlockStore
from dfsfs.cluster.members import Member, MemberTable
from dfsfs.cluster.placement import Lack, lack_of, ranked
from dfsfs.cluster.replicate import Replicator, lacks
from dfsfs.net import Endpoint
from dfsfs.runtime import Pace, WorkerStatus, World

log = logging.getLogger(__name__)

PAGE = OFFER_COUNT_MAX
IDLE_S = 1.0


@dataclass(frozen=True, slots=True)
class Shortage:
    """What a look found: all zero when every block here is where it should be."""

    missing_copies: int = 0  # that this node should make
    missing_bytes: int = 0
    single_blocks: int = 0  # blocks that no other node holds, as far as can be asked
    short_blocks: int = 0  # blocks that lack a copy on a node which is there, or may lack one on
    # a node which is away; this node need not be the one to make it


_NOTHING = Shortage()


class Repairer:
    """The Worker that looks and copies. One page a step."""

    def __init__(
        self,
        world: World,
        store: BlockStore,
        source: BlockSource,
        endpoint: Endpoint,
        members: MemberTable,
        replicator: Replicator,
        *,
        copies: int,
        rate: float,
        is_unreferenced: Callable[[Digest], bool],
        looked: Callable[[], None] = lambda: None,
    ) -> None:
        """`source`: where a good copy comes from if that of `store` is bad; it is mended with it.

        `rate`: bytes a second; `looked` is called when `shortage` was found anew.
        """
        self._world = world
        self._store = store
        self._source = source
        self._endpoint = endpoint
        self._members = members
        self._replicator = replicator
        self._copies = copies
        self._pace = Pace(world, rate)
        self._is_unreferenced = is_unreferenced
        self._looked = looked
        self._after: Digest | None = None
        self._phase = "idle"
        self._finding = _NOTHING
        self._wanted_at_s = 0.0
        self._due_at_s = 0.0
        self._rested_at_s = 0.0
        self._begun_at_s = 0.0
        self._begun_bytes = 0
        self._owed: set[Digest] = set()  # this node began to copy them: see `_copy_page`
        self._left: dict[Digest, float] = {}  # left to others, since when
        self._still_left: set[Digest] = set()  # those of them that this look has seen
        self._more = False  # something that was missing could not be copied
        self.shortage = _NOTHING
        self._began_look_at_s = 0.0
        self._looked_at_s = 0.0
        self._told_at_s = 0.0
        self._restoring: tuple[float, int, int] | None = None  # since when; copied until then
        self.restored: dict[str, float] | None = None  # the last time that copies were missing
        self.looks = 0
        self.copied_blocks = 0
        self.copied_bytes = 0
        self.status = WorkerStatus(
            "repair", figures={"missing_copies": 0, "missing_bytes": 0, "scans": 0, "copied": 0}
        )
        self._full: set[NodeId] = set()
        members.watch_placement(self._look_wanted)
        members.watch(self._member_changed)

    def _look_wanted(self) -> None:
        self._replicator.scan_wanted = True
        if self._phase == "looking":
            self._after, self._finding = None, _NOTHING

    def _member_changed(self, member: Member) -> None:
        """What went to others because a node was full has a place there again."""
        if member.full:
            self._full.add(member.node)
        elif member.node in self._full:
            self._full.discard(member.node)
            self._look_wanted()

    def look_now(self) -> None:
        """Look as soon as possible, without waiting for the queue of fresh copies."""
        self._replicator.scan_wanted = True
        self._wanted_at_s = self._world.now_s() - REPAIR_PATIENCE_S

    @property
    def remaining_s(self) -> float | None:
        """Seconds until everything that is missing has been copied, at the pace so far."""
        if self._phase != "copying":
            return 0.0 if self.shortage.missing_copies == 0 else None
        took_s = self._world.now_s() - self._begun_at_s
        done = self._begun_bytes - self.shortage.missing_bytes
        return took_s * self.shortage.missing_bytes / done if done > 0 else None

    async def step(self) -> float:
        """Look at one page of blocks, copy what one page lacks, or rest."""
        if self._phase == "idle" and not self._begin():
            return IDLE_S
        page = self._store.page(self._after, PAGE)
        if page:
            self._after = page[-1]
            lacks = await self._lacks(page)
            if self._phase == "looking":
                self._count(lacks)
            else:
                await self._copy_page(lacks)
                self._show()
                if self._world.now_s() - self._told_at_s >= REPAIR_TOLD_S:
                    self._told_at_s = self._world.now_s()
                    self._looked()
            return 0.0
        self._end_phase()
        return 0.0 if self._phase == "copying" else IDLE_S

    def _begin(self) -> bool:
        """Start a look if one is due."""
        now_s = self._world.now_s()
        if self._replicator.scan_wanted and not self._wanted_at_s:
            self._wanted_at_s = now_s
        wanted = self._replicator.scan_wanted and now_s >= self._rested_at_s
        if not wanted and now_s < self._due_at_s:
            return False
        if self._replicator.pending and now_s - self._wanted_at_s < REPAIR_PATIENCE_S:
            return False
        self._replicator.scan_wanted = False
        self._wanted_at_s = 0.0
        self._phase, self._after, self._finding = "looking", None, _NOTHING
        self._began_look_at_s = now_s
        self._still_left.clear()
        self.status.doing = "comparing blocks with their other holders"
        return True

    def _end_phase(self) -> None:
        now_s = self._world.now_s()
        self._after = None
        if self._phase == "looking":
            self.shortage = self._finding
            self.looks += 1
            self._looked_at_s = now_s
            self.status.figures["scans"] = self.looks
            self._begun_at_s, self._begun_bytes = now_s, self.shortage.missing_bytes
            self._phase = "copying" if self.shortage.missing_copies else "idle"
            self._more = False
            self._left = {digest: self._left[digest] for digest in self._still_left}
            self._note_restored(now_s)
        else:
            self._phase = "idle"
            # What was copied is to be counted again, and what could not be, tried again.
            self._replicator.scan_wanted = True
        self._due_at_s = now_s + REPAIR_SCAN_S
        if self._replicator.refusals_end_s > now_s:  # somebody was passed over in this look
            self._due_at_s = self._replicator.refusals_end_s
        if self._left:  # a look at a large store takes long: not all the time
            rest_s = max(REPAIR_LEFT_S, 8 * (self._looked_at_s - self._began_look_at_s))
            self._due_at_s = min(self._due_at_s, now_s + rest_s)
        self._rested_at_s = now_s + (REPAIR_AGAIN_S if self._more else 0.0)
        self.status.doing = "copying what is missing" if self._phase == "copying" else "idle"
        self._show()
        self._looked()

    def _note_restored(self, now_s: float) -> None:
        """Say how long it took, when a look finds that nothing is missing any more."""
        if self._phase == "copying":
            self._restoring = self._restoring or (now_s, self.copied_blocks, self.copied_bytes)
        elif self._restoring is not None:
            since_s, blocks, size_bytes = self._restoring
            self.restored = {
                "blocks": self.copied_blocks - blocks,
                "bytes": self.copied_bytes - size_bytes,
                "seconds": now_s - since_s,
            }
            self._restoring = None
            log.info(
                "all copies are there again: %(blocks)d blocks, %(bytes)d bytes were copied in"
                " %(seconds).1f s",
                self.restored,
            )

    @property
    def looked_s_ago(self) -> float | None:
        """How old `shortage` is; None before the first look."""
        return self._world.now_s() - self._looked_at_s if self.looks else None

    def _show(self) -> None:
        self.status.figures["missing_copies"] = self.shortage.missing_copies
        self.status.figures["missing_bytes"] = self.shortage.missing_bytes

    # -- looking --------------------------------------------------------------------------------

    async def _lacks(self, page: list[Digest]) -> dict[Digest, Lack]:
        """What each block of a page lacks."""
        own = self._members.own
        orders = {
            digest: ranked(digest, self._members.candidates)
            for digest in page
            if not self._is_unreferenced(digest)
        }
        lacking_by = await self._ask(orders)

        def lack(digest: Digest, order: list[NodeId]) -> Lack:
            def has(node: NodeId) -> bool | None:
                lacking = lacking_by.get(node)
                return None if lacking is None else digest not in lacking

            takes_more = self._replicator.takes_more
            found = lack_of(order, self._copies, own, has=has, takes_more=takes_more)
            if digest in self._owed:
                if found.targets:
                    return found._replace(mine=True)
                if not found.away:
                    self._owed.discard(digest)
            if found.targets and not found.mine:
                return found._replace(mine=self._is_nobodys(digest))
            return found

        return {digest: lack(digest, order) for digest, order in orders.items()}

    def _is_nobodys(self, digest: Digest) -> bool:
        """Whether others, whose turn it is to copy a block, have had time and are doing nothing."""
        if digest not in self._left and len(self._left) >= PENDING_COPIES_MAX:
            return False
        now_s = self._world.now_s()
        since_s = self._left.setdefault(digest, now_s)
        self._still_left.add(digest)
        own = self._members.own
        others = [member for member in self._members.current() if member.node != own]
        return now_s - since_s >= REPAIR_LEFT_S and not any(it.missing_copies for it in others)

    async def _ask(self, orders: dict[Digest, list[NodeId]]) -> dict[NodeId, set[Digest] | None]:
        """What each node that should hold some of them has not got; None: it cannot be asked."""
        asked: dict[NodeId, list[Digest]] = defaultdict(list)
        for digest, order in orders.items():
            takers = 0
            for node in order:
                if takers >= self._copies:
                    break
                takers += self._replicator.takes_more(node)
                if node != self._members.own:
                    asked[node].append(digest)
        answers: dict[NodeId, set[Digest] | None] = {}

        async def ask(node: NodeId) -> None:
            session = self._endpoint.sessions.get(node)
            answers[node] = None
            if session is not None:
                try:
                    answers[node] = set(await lacks(session, asked[node]))
                except DfsError:
                    self._more = self._replicator.scan_wanted = True

        async with trio.open_nursery() as nursery:
            for node in sorted(asked):
                nursery.start_soon(ask, node)
        return answers

    def _count(self, lacks: dict[Digest, Lack]) -> None:
        copies, size_bytes, single, short = 0, 0, 0, 0
        for digest, lack in lacks.items():
            single += not lack.elsewhere
            short += bool(lack.targets or lack.away)
            if lack.mine:
                copies += len(lack.targets)
                size_bytes += len(lack.targets) * (self._store.size(digest) or 0)
        found = self._finding
        self._finding = Shortage(
            missing_copies=found.missing_copies + copies,
            missing_bytes=found.missing_bytes + size_bytes,
            single_blocks=found.single_blocks + single,
            short_blocks=found.short_blocks + short,
        )

    # -- copying --------------------------------------------------------------------------------

    async def _copy_page(self, lacks: dict[Digest, Lack]) -> None:
        """Make the missing copies of one page, a few at a time.

        Who begins goes on: a copy may make another node the best-ranked holder, and that one does
        not know that there is more to do.
        """
        mine = [digest for digest, lack in lacks.items() if lack.mine and lack.targets]
        self._owed.update(mine[: PENDING_COPIES_MAX - len(self._owed)])
        wanted = iter(
            [(digest, node) for digest, lack in lacks.items() if lack.mine for node in lack.targets]
        )

        async def copy_some() -> None:
            for digest, node in wanted:
                await self._copy(digest, node)

        async with trio.open_nursery() as nursery:
            for _ in range(REPAIR_COPIES_MAX):
                nursery.start_soon(copy_some)

    async def _copy(self, digest: Digest, node: NodeId) -> None:
        size = self._store.size(digest) or 0
        await self._pace.spend(size)
        try:
            # The store verifies a block that was not read since start: a bad copy does not spread.
            data = await self._store.get(digest)
        except NotFound:
            return  # collected meanwhile
        except Corrupt:
            # The others leave this block to this node, so it is not left to the next scrub.
            try:
                data = await self._source.get(digest)
            except DfsError:
                self._more = True  # whoever has it is away, or nobody has
                return
        if not await self._replicator.copy(digest, data, node, new=False):
            self._more = True
            return
        self.copied_blocks += 1
        self.copied_bytes += size
        self.status.figures["copied"] = self.copied_blocks
        left = self.shortage
        self.shortage = replace(
            left,
            missing_copies=max(0, left.missing_copies - 1),
            missing_bytes=max(0, left.missing_bytes - size),
        )
