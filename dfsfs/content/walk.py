"""All blocks of a tree, in pages: for gc, repair and `dfs info`. Nothing is kept between pages."""

from collections.abc import Callable
from typing import NamedTuple

from dfsfs.base.errors import DfsError
from dfsfs.base.limits import BLOCK_SHIFT_MIN, READER_NODES_BYTES_MAX, TREE_FANOUT
from dfsfs.base.types import ContentRef, Digest
from dfsfs.blocks import BlockSource
from dfsfs.content.nodes import NodeCache, load_node, root_of
from dfsfs.content.patches import tree_of
from dfsfs.content.tree import Leaf, shape_of


class Page(NamedTuple):
    """Some blocks of a tree, in order of the bytes, a node before what is below it."""

    digests: list[Digest]
    next: int | None  # what to pass as `after` for the next page; None: this was the last


async def walk(
    source: BlockSource,
    ref: ContentRef,
    after: int | None,
    limit: int,
    *,
    skip: Callable[[Digest], bool] = lambda digest: False,
    unreadable: Callable[[Digest, DfsError], None] | None = None,
    nodes: NodeCache | None = None,
    fanout: int = TREE_FANOUT,
    shift_min: int = BLOCK_SHIFT_MIN,
) -> Page:
    """The blocks after leaf `after` (None: from the start), about `limit` of them.

    A page may hold as many more as the tree has levels. Interior nodes are named once, in the page
    of their first leaf. A block that the tree names twice appears twice, unless `skip` says that it
    is known: then it is left out, and all below it. (A tree that names one node many times has few
    blocks but no end of leaves; whoever walks to the end of foreign content must skip.)

    `unreadable` is told of an interior node that cannot be had or is malformed, and why; then what
    is below it is left out. Without it that is raised.

    Raises:
        Corrupt: the tree is malformed. And what `source` raises for an interior node.
    """
    ref = tree_of(ref)
    shape = shape_of(ref, fanout=fanout, shift_min=shift_min)
    root = root_of(ref)
    cache = nodes or NodeCache(bytes_max=READER_NODES_BYTES_MAX)
    start = 0 if after is None else after + 1
    digests: list[Digest] = []

    async def visit(top: Leaf | None, level: int, first: int) -> int | None:
        """Name a subtree from leaf `start` on; the first leaf not named if the page is full."""
        if top is None or first + shape.leaves_below(level) <= start:
            return None
        if first >= start:
            if skip(top.digest):
                return None
            digests.append(top.digest)
        if level == 0:
            return None
        try:
            node = await load_node(source, cache, top.digest)
            size = ref.size - (first << shape.shift)
            node.check(shape, level=level, size=size, stored=top.stored)
        except DfsError as error:
            if unreadable is None:
                raise
            unreadable(top.digest, error)
            return None
        width = shape.leaves_below(level - 1)
        for place in range(max(0, start - first) // width, node.count):
            child = node.child(place)
            child_first = first + place * width
            # Not before the first child: its node was just named and must not be named again.
            if child is not None and place and child_first >= start and len(digests) >= limit:
                return child_first
            stopped = await visit(child, level - 1, child_first)
            if stopped is not None:
                return stopped
        return None

    stopped = await visit(root, shape.depth(ref.size), 0)
    return Page(digests, None if stopped is None else stopped - 1)
