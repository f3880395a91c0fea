"""New content from old: copy-on-write of the paths to changed leaves.

Cost: for each level, the interior nodes above a changed leaf are read, rewritten and stored;
nothing else is touched, whatever the size of the file. The base stays valid and shares the rest.

Growing needs no work but a higher root: leaves drop trailing zeros, so what lies past the old end
is a hole already. Shrinking drops leaves, and trims the one the new end cuts.

Loop only. Atomic: the result is a new ref; if a call fails, nothing refers to what it stored.
"""

from bisect import bisect_left
from collections.abc import Mapping

from dfsfs.base.errors import Corrupt, Invalid
from dfsfs.base.limits import (
    BLOCK_SHIFT_DEFAULT,
    BLOCK_SHIFT_MIN,
    READER_NODES_BYTES_MAX,
    TREE_FANOUT,
)
from dfsfs.base.types import EMPTY_CONTENT, ContentRef
from dfsfs.blocks import BlockSource, Upload
from dfsfs.content.nodes import NodeCache, load_node, root_of
from dfsfs.content.tree import Leaf, Shape, shape_of
from dfsfs.content.writer import put_leaf, put_node


async def patch(
    source: BlockSource,
    upload: Upload,
    base: ContentRef,
    leaves: Mapping[int, Leaf | None],
    size: int,
    shift: int = BLOCK_SHIFT_DEFAULT,
    *,
    nodes: NodeCache | None = None,
    fanout: int = TREE_FANOUT,
    shift_min: int = BLOCK_SHIFT_MIN,
) -> ContentRef:
    """Content of `size` bytes: that of `base`, but for `leaves` (index to leaf, None for a hole).

    `leaves` were stored with `upload`; those past `size` are ignored. `shift` must be that of
    `base` if that has a tree. The result is a tree or a hole, never inline.

    Raises:
        Corrupt: `base` is malformed. And what `source` and `upload` raise.
    """
    assert not base.patched, "what lies over a tree is folded by its owner"
    if base.root is not None and base.shift != shift:
        raise Invalid(f"blocks of 2**{shift} bytes into content with blocks of 2**{base.shift}")
    if size == 0:
        return EMPTY_CONTENT
    shape = shape_of(ContentRef(size=size, shift=shift), fanout=fanout, shift_min=shift_min)
    changes = {index: leaf for index, leaf in leaves.items() if index < shape.leaf_count(size)}
    if base.inline is not None:
        inlined = await _leaves_of_inline(upload, base.inline[:size], shape)
        base, changes = ContentRef(size=base.size, shift=shift), inlined | changes
    work = _Patch(
        source, upload, nodes or NodeCache(bytes_max=READER_NODES_BYTES_MAX), shape, base, size
    )
    root = await work.run(changes)
    if root is None:
        return ContentRef(size=size, shift=shift)
    return ContentRef(size=size, root=root.digest, shift=shift, stored=root.stored)


async def _leaves_of_inline(upload: Upload, data: bytes, shape: Shape) -> dict[int, Leaf | None]:
    width = 1 << shape.shift
    return {
        index: await put_leaf(upload, data[index * width : (index + 1) * width])
        for index in range(shape.leaf_count(len(data)))
    }


class _Patch:
    """One call of `patch`."""

    def __init__(
        self,
        source: BlockSource,
        upload: Upload,
        nodes: NodeCache,
        shape: Shape,
        base: ContentRef,
        size: int,
    ) -> None:
        self._source = source
        self._upload = upload
        self._nodes = nodes
        self._shape = shape
        self._base = base
        self._size = size
        self._indexes: list[int] = []
        self._changes: Mapping[int, Leaf | None] = {}

    async def run(self, changes: Mapping[int, Leaf | None]) -> Leaf | None:
        """The new root."""
        self._changes = changes
        self._indexes = sorted(changes)
        old = root_of(self._base)
        old_depth, depth = self._shape.depth(self._base.size), self._shape.depth(self._size)
        for level in range(old_depth, depth, -1):  # shrink: the new root is the first child's
            children = await self._children(old, level, 0)
            old = children[0] if children else None
        if depth > old_depth:
            return await self._grow(old, old_depth, depth)
        return await self._rewrite(old, depth, 0)

    async def _grow(self, old: Leaf | None, old_depth: int, level: int) -> Leaf | None:
        """The old root becomes the first child of the first child of ... of the new root."""
        if level == old_depth:
            return await self._rewrite(old, level, 0)
        children: list[Leaf | None] = [await self._grow(old, old_depth, level - 1)]
        width = self._shape.leaves_below(level - 1)
        for place in self._places(0, level):
            if place:
                children += [None] * (place - len(children))
                children.append(await self._rewrite(None, level - 1, place * width))
        return await put_node(self._upload, level, self._shape.shift, children)

    async def _rewrite(self, old: Leaf | None, level: int, first: int) -> Leaf | None:
        """The subtree of `level` that begins at leaf `first`, with its changes and the new end."""
        shift = self._shape.shift
        room = self._size - (first << shift)
        if room <= 0:
            return None
        places = self._places(first, level)
        cut = room < self._shape.span(level) and self._base.size > self._size
        if not places and not cut:
            return old
        if level == 0:
            leaf = self._changes[first] if places else old
            return await self._trim(leaf, room)
        children = await self._children(old, level, first)
        width = self._shape.leaves_below(level - 1)
        kept = -(-room // self._shape.span(level - 1))
        if kept < len(children):
            del children[kept:]
        wanted = set(places)
        if cut and kept <= len(children):
            wanted.add(kept - 1)
        before = list(children)
        for place in sorted(wanted):
            children += [None] * (place + 1 - len(children))
            children[place] = await self._rewrite(children[place], level - 1, first + place * width)
        if old is not None and children == before and len(children) == len(before) and not cut:
            return old
        return await put_node(self._upload, level, shift, children)

    async def _trim(self, leaf: Leaf | None, room: int) -> Leaf | None:
        """A leaf, cut when the new size ends in its middle."""
        if leaf is None or leaf.stored <= room:
            return leaf
        data = await self._source.read(leaf.digest, 0, room)
        if len(data) != room:
            raise Corrupt(f"a leaf gave {len(data)} bytes where the tree says {leaf.stored}")
        return await put_leaf(self._upload, data)

    async def _children(self, old: Leaf | None, level: int, first: int) -> list[Leaf | None]:
        """Children of a node of the base, checked; none of a hole."""
        if old is None:
            return []
        node = await load_node(self._source, self._nodes, old.digest)
        room = self._base.size - (first << self._shape.shift)
        node.check(self._shape, level=level, size=room, stored=old.stored)
        return node.children()

    def _places(self, first: int, level: int) -> list[int]:
        """Which children of the subtree of `level` at leaf `first` have changes; [0] for a leaf."""
        end = first + self._shape.leaves_below(level)
        low = bisect_left(self._indexes, first)
        high = bisect_left(self._indexes, end, low)
        if level == 0:
            return [0] if low < high else []
        width = self._shape.leaves_below(level - 1)
        return sorted({(index - first) // width for index in self._indexes[low:high]})
