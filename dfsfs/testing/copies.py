"""Where the blocks are that files need: how many good copies, and whether too many are kept.

For a network at rest. What is needed is found by walking what nodes show, independently of what
garbage collection and repair believe.
"""

from collections.abc import Iterator, Sequence

from dfsfs.base.errors import DfsError, NotFound
from dfsfs.base.types import Buffer, ContentRef, Digest, digest_text
from dfsfs.cluster.placement import replica_set
from dfsfs.content import walk
from dfsfs.testing.history import shown_files
from dfsfs.testing.simnode import SimNode

PAGE = 512


class _Everywhere:
    """A `BlockSource`: the stores of all nodes at once."""

    def __init__(self, nodes: Sequence[SimNode]) -> None:
        self._nodes = nodes

    async def get(self, digest: Digest) -> Buffer:
        for node in self._nodes:
            if node.node.store.has(digest):
                try:
                    return await node.node.store.get(digest)
                except DfsError:
                    continue  # a bad copy, or gone in this moment
        raise NotFound(f"no node has a good {digest_text(digest)}")

    def get_nowait(self, digest: Digest) -> Buffer | None:
        return None

    async def read(self, digest: Digest, offset: int, size: int) -> Buffer:
        return memoryview(await self.get(digest))[offset : offset + size]

    def read_nowait(self, digest: Digest, offset: int, size: int) -> Buffer | None:
        return None

    def prefetch(self, digests: Sequence[Digest]) -> None:
        pass


class Needs:
    """The blocks of contents, remembered: a content never changes."""

    def __init__(self) -> None:
        self._blocks: dict[ContentRef, frozenset[Digest]] = {}

    async def of(self, nodes: Sequence[SimNode]) -> tuple[set[Digest], list[str]]:
        """The blocks that what these nodes show needs; and what is wrong with finding them."""
        needed: set[Digest] = set()
        problems: list[str] = []
        contents = {c for node in nodes for c in shown_files(node.node.namespace).values()}
        for content in contents:
            if content.root is None:
                continue
            if content not in self._blocks:
                try:
                    page = await walk(_Everywhere(nodes), content, None, 1 << 20)
                except DfsError as error:
                    problems.append(f"a file of {content.size} bytes cannot be walked: {error}")
                    continue
                self._blocks[content] = frozenset(page.digests)
            needed |= self._blocks[content]
        return needed, sorted(problems)


async def missing_copies(
    nodes: Sequence[SimNode], needs: Needs, *, restored: bool = False
) -> list[str]:
    """Blocks that a node which should have them, and runs, has not (promise 10).

    `restored`: those, too, that are on fewer nodes than the factor asks because nodes are away; the
    factor counts the nodes that run and are not full.
    """
    running = {node.identity.node_id: node for node in nodes}
    full = {node.identity.node_id for node in nodes if _is_full(node)}
    needed, problems = await needs.of(nodes)
    wanted = min(nodes[0].config.replicas, len(running) - len(full))
    candidates = nodes[0].node.members.candidates
    for digest in sorted(needed):
        homes = replica_set(digest, candidates, nodes[0].config.replicas)
        problems += [
            f"{digest_text(digest)[:20]} is not on {running[home].name}"
            for home in homes
            if home in running and home not in full and not running[home].node.store.has(digest)
        ]
        holders = [node.name for node in nodes if node.node.store.has(digest)]
        if restored and len(holders) < wanted:
            problems.append(f"{digest_text(digest)[:20]} is on {holders}, not on {wanted} nodes")
    return problems


async def garbage(nodes: Sequence[SimNode], needs: Needs) -> list[str]:
    """Blocks that no file needs and that are kept."""
    needed, problems = await needs.of(nodes)
    for node in nodes:
        kept = set(_stored(node)) - needed
        if kept:
            problems.append(f"{node.name} keeps {len(kept)} blocks that no file needs")
    return problems


def _is_full(node: SimNode) -> bool:
    own = node.node.members.get(node.identity.node_id)
    return own is not None and own.full


def _stored(node: SimNode) -> Iterator[Digest]:
    after: Digest | None = None
    while page := node.node.store.page(after, PAGE):
        yield from page
        after = page[-1]
