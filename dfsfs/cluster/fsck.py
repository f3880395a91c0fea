"""`dfs fsck`: reads everything, says what is wrong, and mends what can be mended.

Three questions: does the namespace keep its invariants; is every block on this node's disk what its
digest says; is every block that a file needs held by somebody. Nothing is taken from an index that
could be read instead. The file system goes on meanwhile: what is being written is skipped or found
whole, because blocks are stored before names refer to them.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import trio

from dfsfs.base.errors import Corrupt, DfsError, NotFound
from dfsfs.base.limits import FINDINGS_MAX, OFFER_COUNT_MAX
from dfsfs.base.types import Digest, digest_text
from dfsfs.blocks import BlockStore
from dfsfs.cluster.members import MemberTable
from dfsfs.cluster.references import all_contents, blocks_of, is_referred_to, path_of, paths_of
from dfsfs.cluster.replicate import lacks
from dfsfs.cluster.storage import ClusterStorage
from dfsfs.content import NodeCache
from dfsfs.namespace import Namespace
from dfsfs.net import Endpoint

PAGE = 16
PROGRESS_EVERY = 256  # blocks between two reports

Report = dict[str, Any]


class Checker:
    """One run of fsck."""

    def __init__(
        self,
        namespace: Namespace,
        store: BlockStore,
        storage: ClusterStorage,
        endpoint: Endpoint,
        members: MemberTable,
        check_namespace: Callable[[], Awaitable[list[str]]],
        *,
        repair: bool,
    ) -> None:
        """`check_namespace` gives the violated invariants without holding up the loop."""
        self._namespace = namespace
        self._store = store
        self._storage = storage
        self._endpoint = endpoint
        self._members = members
        self._check_namespace = check_namespace
        self._repair = repair
        self._mended = 0
        self._left = 0
        self._bad: dict[Digest, str] = {}

    async def run(self) -> AsyncGenerator[Report, None]:
        """Reports: `doing` with counts, `finding` with `mended`, and at the end `result`."""
        for part in (self._check_tree, self._check_blocks, self._check_references):
            async for report in part():
                if "finding" in report:
                    self._mended += report["mended"]
                    self._left += not report["mended"]
                    if self._mended + self._left > FINDINGS_MAX:
                        continue
                yield report
        yield {"result": {"mended": self._mended, "left": self._left}}

    async def _check_tree(self) -> AsyncGenerator[Report, None]:
        yield {"doing": "checking the namespace"}
        for problem in await self._check_namespace():
            yield {"finding": f"namespace: {problem}", "mended": False}

    async def _check_blocks(self) -> AsyncGenerator[Report, None]:
        """Every block on this disk, really read."""
        after: Digest | None = None
        read, mended = 0, []
        while page := self._store.page(after, PAGE):
            for digest in page:
                try:
                    if self._repair:
                        if not await self._storage.verify(digest):
                            mended.append(digest)
                    else:
                        await self._store.verify(digest)
                except NotFound:
                    continue
                except DfsError as error:
                    self._bad[digest] = str(error)
                read += 1
                if read % PROGRESS_EVERY == 0:
                    yield {"doing": "reading blocks", "done": read, "of": self._block_count()}
            after = page[-1]
            await trio.lowlevel.checkpoint()
        paths = await paths_of(self._namespace, self._storage, [*self._bad, *mended])
        for digest in mended:
            where = _names(paths.get(digest))
            yield {"finding": f"bad block {digest_text(digest)} {where}", "mended": True}
        for digest, why in list(self._bad.items()):
            where = _names(paths.get(digest))
            dropped = not await self._is_still_bad(digest)
            # Bytes that nobody needs and nobody can be served are not worth a good copy. But
            # somebody may be about to write them again: asked and removed in one step.
            if not dropped and self._repair and not paths.get(digest):
                dropped = not self._store.pins.is_pinned(digest) and await self._store.remove(
                    digest
                )
            if dropped:
                del self._bad[digest]
            yield {"finding": f"bad block {digest_text(digest)} {where}: {why}", "mended": dropped}

    async def _is_still_bad(self, digest: Digest) -> bool:
        """Not if it was collected meanwhile, or written again."""
        try:
            await self._store.verify(digest)
        except NotFound:
            return False
        except DfsError:
            return True
        return False

    def _block_count(self) -> int:
        return self._store.usage().block_count

    async def _check_references(self) -> AsyncGenerator[Report, None]:
        """Every block that a file needs is held by somebody."""
        nodes = NodeCache()
        looked = 0
        async for inode, content in all_contents(self._namespace):
            unreadable: list[tuple[Digest, DfsError]] = []
            missing: list[Digest] = []
            async for page in blocks_of(self._storage, content, nodes=nodes, unreadable=unreadable):
                missing += await self._held_nowhere(page)
                looked += len(page)
                if looked % PROGRESS_EVERY < len(page):
                    yield {"doing": "looking for blocks that files need", "done": looked}
            broken = [
                digest
                for digest, error in unreadable
                if digest not in missing and isinstance(error, Corrupt)
            ]
            # What was removed or replaced in the meantime may have been collected by others.
            if (missing or broken) and is_referred_to(self._namespace, inode, content):
                away = self._away()
                reach = f" in reach ({', '.join(away)} away)" if away else ""
                what = f"{path_of(self._namespace, inode)}: "
                what += f"{len(missing)} blocks are nowhere{reach}" if missing else ""
                what += f"{len(broken)} interior nodes are malformed" if broken else ""
                yield {"finding": what, "mended": False}

    def _away(self) -> list[str]:
        return [
            member.name
            for member in self._members.current()
            if member.node != self._members.own and member.node not in self._endpoint.sessions
        ]

    async def _held_nowhere(self, digests: list[Digest]) -> list[Digest]:
        """Those that neither this node nor one in reach holds."""
        missing = [digest for digest in digests if not self._store.has(digest)]
        for node in sorted(self._endpoint.sessions):
            for start in range(0, len(missing), OFFER_COUNT_MAX):
                session = self._endpoint.sessions.get(node)
                if session is None:
                    break
                asked = missing[start : start + OFFER_COUNT_MAX]
                try:
                    lacking = set(await lacks(session, asked))
                except DfsError:
                    continue
                held = set(asked) - lacking
                missing = [digest for digest in missing if digest not in held]
        return missing


def _names(paths: list[str] | None) -> str:
    return f"of {', '.join(paths)}" if paths else "of no file"
