"""Reads every block of this node's disk again and compares it with its digest (promise 15).

Once a `--scrub-period`, at an even pace, and all at once when told to. A bad copy is replaced by a
good one of another holder; if there is none, the files that need it are named. How far the scrub
came is kept on disk, so a restart goes on where it was.

The wall clock tells how late the scrub is, and nothing else: one that jumps makes it hurry or rest.
"""

import logging
from collections.abc import AsyncGenerator
from typing import Any

import trio

from dfsfs.base.codec import decode, encode
from dfsfs.base.errors import Corrupt, DfsError, NotFound, Unavailable
from dfsfs.base.limits import SCRUB_BAD_MAX, SCRUB_PAGE_COUNT, SCRUB_REST_MAX_S
from dfsfs.base.types import ContentRef, Digest, digest_text
from dfsfs.base.units import KIB, NS_PER_S
from dfsfs.blocks import BlockStore
from dfsfs.cluster.members import MemberTable
from dfsfs.cluster.references import blocks_of, paths_of
from dfsfs.cluster.storage import ClusterStorage
from dfsfs.namespace import Namespace
from dfsfs.runtime import WorkerStatus, World

log = logging.getLogger(__name__)

FACT = "scrub"  # [last block verified, when this round began, whether it is over, bad, mended]


class Scrubber:
    """The Worker that verifies the store. A few blocks a step."""

    def __init__(
        self,
        world: World,
        namespace: Namespace,
        store: BlockStore,
        storage: ClusterStorage,
        members: MemberTable,
        *,
        period_s: float,
    ) -> None:
        self._world = world
        self._namespace = namespace
        self._store = store
        self._storage = storage
        self._members = members
        self._period_s = period_s
        self._after: Digest | None = None
        self._begun_ns = world.wall_ns()
        self._over = False
        self._passed = 0  # blocks of this round, about
        self._lost: dict[Digest, list[str]] = {}
        self._lost_unnamed: set[Digest] = set()
        self.status = WorkerStatus(
            "scrub", figures={"verified": 0, "bad": 0, "mended": 0, "lost": 0, "rounds": 0}
        )
        self._load()

    @property
    def lost(self) -> dict[str, list[str]]:
        """Blocks without a good copy in reach, and the files that need them."""
        return {digest_text(digest): paths for digest, paths in sorted(self._lost.items())}

    # -- the worker -----------------------------------------------------------------------------

    async def step(self) -> float:
        """Verify a few blocks; rest until the next few are due."""
        if self._over:
            rest_s = self._period_s - self._elapsed_s()
            if rest_s > 0:
                return min(rest_s, SCRUB_REST_MAX_S)
            self._begin()
        page = self._store.page(self._after, SCRUB_PAGE_COUNT)
        for digest in page:
            await self._verify(digest)
        if page:
            self._after = page[-1]
            self._passed += len(page)
        else:
            await self._name_lost()
            self._over = True
            self.status.figures["rounds"] += 1
        self._save()
        count = max(1, self._store.usage().block_count)
        ahead_s = self._period_s * min(1.0, self._passed / count) - self._elapsed_s()
        self.status.doing = "idle" if self._over else f"at {min(99, 100 * self._passed // count)} %"
        return min(max(0.0, ahead_s), SCRUB_REST_MAX_S)

    def _begin(self) -> None:
        self._after, self._over, self._passed = None, False, 0
        self._begun_ns = self._world.wall_ns()
        self._lost.clear()
        self._lost_unnamed.clear()
        self.status.figures["lost"] = 0

    def _elapsed_s(self) -> float:
        """Since the round began, as far as the wall clock can be believed."""
        return min(max(0.0, (self._world.wall_ns() - self._begun_ns) / NS_PER_S), self._period_s)

    async def _verify(self, digest: Digest) -> str:
        """One block: "good", "mended", "lost", or "absent" if it is not here."""
        figures = self.status.figures
        figures["verified"] += 1
        try:
            good = await self._storage.verify(digest)
        except NotFound:
            return "absent"
        except (Corrupt, Unavailable) as error:
            figures["bad"] += 1
            log.warning("%s", error)
            if digest not in self._lost and len(self._lost_unnamed) < SCRUB_BAD_MAX:
                self._lost_unnamed.add(digest)
            figures["lost"] = len(self._lost) + len(self._lost_unnamed)
            return "lost"
        self._lost.pop(digest, None)
        self._lost_unnamed.discard(digest)
        if good:
            return "good"
        figures["bad"] += 1
        figures["mended"] += 1
        return "mended"

    async def _name_lost(self) -> None:
        """Say which files need what was lost; what no file needs is no loss."""
        paths = await paths_of(self._namespace, self._storage, self._lost_unnamed)
        for digest in sorted(self._lost_unnamed):
            if names := paths.get(digest):
                log.error("no good copy of %s: %s", digest_text(digest), ", ".join(names))
                self._lost[digest] = names
        self._lost_unnamed.clear()
        self.status.figures["lost"] = len(self._lost)

    # -- on demand ------------------------------------------------------------------------------

    async def scrub_now(self, content: ContentRef | None) -> AsyncGenerator[dict[str, Any], None]:
        """Verify all blocks here, or those of one content, without rest; reports, then the sum."""
        outcomes = {"good": 0, "mended": 0, "lost": 0, "absent": 0}
        seen = 0
        pages = self._pages() if content is None else blocks_of(self._storage, content)
        async for page in pages:
            for digest in page:
                outcomes[await self._verify(digest)] += 1
                seen += 1
                if seen % 64 == 0:
                    yield {"verified": seen, "of": self._store.usage().block_count}
        await self._name_lost()
        yield {"result": outcomes, "lost": self.lost}

    async def _pages(self) -> AsyncGenerator[list[Digest], None]:
        after: Digest | None = None
        while page := self._store.page(after, SCRUB_PAGE_COUNT):
            yield page
            after = page[-1]
            await trio.lowlevel.checkpoint()

    # -- across restarts ------------------------------------------------------------------------

    def _save(self) -> None:
        state = [self._after or b"", self._begun_ns, self._over, self._passed]
        self._members.set_fact(FACT, encode(state))

    def _load(self) -> None:
        raw = self._members.fact(FACT)
        if raw is None:
            return
        try:
            after, begun_ns, over, passed = decode(raw, size_max=KIB)
        except (DfsError, ValueError, TypeError):
            return  # of another version: begin anew
        self._after = Digest(after) if after else None
        self._begun_ns, self._over, self._passed = int(begun_ns), bool(over), int(passed)
