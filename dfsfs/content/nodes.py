"""Interior nodes of content trees, decoded and kept: the way from a root to a leaf.

Nodes are kept by digest, so files that share subtrees, or versions of one file, share them; a node
is checked against its place each time it is used, because the same bytes may be named elsewhere.
Bounded in bytes, least recently decoded goes first. Loop only.
"""

from dfsfs.base.errors import Corrupt
from dfsfs.base.limits import NODE_CACHE_BYTES_MAX
from dfsfs.base.types import ContentRef, Digest
from dfsfs.blocks import BlockSource
from dfsfs.content.tree import Leaf, Node, decode_node


class NodeCache:
    """Decoded nodes by digest; may be shared by any number of readers."""

    def __init__(self, *, bytes_max: int = NODE_CACHE_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._nodes: dict[Digest, Node] = {}  # oldest first
        self.bytes = 0

    def find(self, digest: Digest) -> Node | None:
        """The node if it is kept."""
        return self._nodes.get(digest)

    def keep(self, digest: Digest, node: Node) -> Node:
        """Keep a node for later."""
        if digest not in self._nodes:
            self._nodes[digest] = node
            self.bytes += len(node)
            while self.bytes > self._bytes_max:
                self.bytes -= len(self._nodes.pop(next(iter(self._nodes))))
        return node


async def load_node(source: BlockSource, nodes: NodeCache, digest: Digest) -> Node:
    """An interior node, from the cache or the source.

    Raises:
        Corrupt: the block is no interior node; and what the source raises.
    """
    node = nodes.find(digest)
    if node is None:
        data = source.get_nowait(digest)
        node = nodes.keep(digest, decode_node(await source.get(digest) if data is None else data))
    return node


def load_node_nowait(source: BlockSource, nodes: NodeCache, digest: Digest) -> Node | None:
    """An interior node if that needs no waiting."""
    node = nodes.find(digest)
    if node is None:
        data = source.get_nowait(digest)
        if data is None:
            return None
        node = nodes.keep(digest, decode_node(data))
    return node


def root_of(ref: ContentRef) -> Leaf | None:
    """The root of a ref that is not inline, or None for a hole.

    Raises:
        Corrupt: the ref contradicts itself.
    """
    if ref.root is None:
        return None
    if not 0 < ref.stored <= ref.size:
        raise Corrupt(f"content of {ref.size} bytes that stores {ref.stored}")
    return Leaf(ref.root, ref.stored)
