"""What refers to blocks: walks over all contents, to name files by what they need.

For scrub and fsck, which must say which file a bad or missing block belongs to. There is no index
from blocks to files, because only what is wrong is ever looked up: one walk serves all of it.
Bounded memory, one page at a time; it looks at the namespace as it is when it gets there.
"""

import os
from collections import defaultdict
from collections.abc import AsyncGenerator, Collection

import trio

from dfsfs.base.errors import Corrupt, DfsError, NotFound
from dfsfs.base.limits import OFFER_COUNT_MAX
from dfsfs.base.types import ContentRef, Digest, InodeId
from dfsfs.blocks import BlockSource
from dfsfs.content import NodeCache, walk
from dfsfs.namespace import Namespace

_PAGE = 256
PATHS_MAX = 16  # named for one block; more files may share it


async def all_contents(namespace: Namespace) -> AsyncGenerator[tuple[InodeId, ContentRef], None]:
    """Every content with blocks that live inodes refer to."""
    after: InodeId | None = None
    while True:
        page = namespace.contents(after, _PAGE)
        for inode, content in page.contents:
            if content.root is not None:
                yield inode, content
        if (after := page.next) is None:
            return
        await trio.lowlevel.checkpoint()


def is_referred_to(namespace: Namespace, inode: InodeId, content: ContentRef) -> bool:
    """Whether an inode still refers to what it did when a walk came by."""
    return (inode, content) in namespace.contents(InodeId(inode - 1), 1).contents


async def blocks_of(
    source: BlockSource,
    content: ContentRef,
    *,
    nodes: NodeCache | None = None,
    unreadable: "list[tuple[Digest, DfsError]] | None" = None,
) -> AsyncGenerator[list[Digest], None]:
    """The blocks of one content in pages; interior nodes that cannot be had go to `unreadable`."""
    after: int | None = None
    failures = [] if unreadable is None else unreadable
    while True:
        try:
            page = await walk(
                source,
                content,
                after,
                OFFER_COUNT_MAX,
                unreadable=lambda digest, error: failures.append((digest, error)),
                nodes=nodes,
            )
        except Corrupt as error:
            assert content.root is not None
            failures.append((content.root, error))
            return
        yield page.digests
        if (after := page.next) is None:
            return


async def paths_of(
    namespace: Namespace, source: BlockSource, digests: Collection[Digest]
) -> dict[Digest, list[str]]:
    """The files that need these blocks."""
    wanted = set(digests)
    found: dict[Digest, list[str]] = defaultdict(list)
    nodes = NodeCache()
    if not wanted:
        return found
    async for inode, content in all_contents(namespace):
        here: set[Digest] = set()
        async for page in blocks_of(source, content, nodes=nodes):
            here |= wanted.intersection(page)
        for digest in sorted(here):
            if len(found[digest]) < PATHS_MAX:
                found[digest].append(path_of(namespace, inode))
    return found


def path_of(namespace: Namespace, inode: InodeId) -> str:
    """A path for people; the number of an inode that has none."""
    try:
        return os.fsdecode(namespace.path(inode))
    except NotFound:
        return f"(inode {inode}, which has no name)"
