"""Reading any range of a file's bytes, each level verified, with read-ahead.

A block arrives verified from its source; that its size and place fit is checked here. Ranges within
one leaf are returned as the source gave them, others are put together with one copy.

Read-ahead: reads that follow each other closely (the kernel sends several at once, not always in
order) open a window that doubles from READ_AHEAD_BYTES_MIN to READ_AHEAD_BYTES_MAX; the leaves in
it are announced to the source (`prefetch`), which decides what to do. A jump closes the window.

Concurrency: loop only; any number of tasks may read at a time. The ref never changes.
"""

import trio

from dfsfs.base.errors import Corrupt, DfsError
from dfsfs.base.limits import (
    BLOCK_SHIFT_MIN,
    READ_AHEAD_BYTES_MAX,
    READ_AHEAD_BYTES_MIN,
    READER_NODES_BYTES_MAX,
    TREE_FANOUT,
)
from dfsfs.base.types import Buffer, ContentRef, Digest
from dfsfs.base.units import MIB
from dfsfs.blocks import BlockSource
from dfsfs.content.nodes import NodeCache, load_node, load_node_nowait, root_of
from dfsfs.content.patches import unpack
from dfsfs.content.tree import Leaf, Node, shape_of

_NEAR_NODES_MAX = 16  # of a reader alone, of about 10 KiB: 1 GiB of file
_COMPARED_BYTES = MIB  # at a time
_NEAR_BYTES = MIB  # the largest request of the kernel: reads this far apart are still in sequence


class ContentReader:
    """One version of one file; cheap to make."""

    def __init__(
        self,
        source: BlockSource,
        ref: ContentRef,
        *,
        nodes: NodeCache | None = None,
        fanout: int = TREE_FANOUT,
        shift_min: int = BLOCK_SHIFT_MIN,
    ) -> None:
        """`nodes` may be shared with other readers.

        Raises:
            Corrupt: the ref is malformed.
        """
        self.ref = ref
        self._patches = unpack(ref) if ref.patched else None
        if self._patches is not None:
            ref = self._patches.tree
        self._tree_size = ref.size
        self._source = source
        self._nodes = NodeCache(bytes_max=READER_NODES_BYTES_MAX) if nodes is None else nodes
        self._shape = shape_of(ref, fanout=fanout, shift_min=shift_min)
        self._shift = ref.shift
        self._root = root_of(ref)
        self._depth = self._shape.depth(ref.size)
        self._near: dict[int, Node] = {}  # nodes above leaves, checked, by first leaf // fanout
        self._sequential_end = 0  # where the next read of a sequence would start
        self._window = 0  # bytes read ahead; 0: not in a sequence
        self._announced = 0  # leaves before this one were announced to the source

    # -- reading --------------------------------------------------------------------------------

    def read_nowait(self, offset: int, size: int) -> Buffer | None:
        """What `read` would return if that needs no waiting."""
        size = min(size, self.ref.size - offset)
        if size <= 0:
            return b""
        if self._patches is not None:
            below = self._tree_nowait(offset, min(size, self._tree_size - offset))
            return None if below is None else self._under_patches(below, offset, size)
        if self.ref.inline is not None:
            return self.ref.inline[offset : offset + size]
        return self._tree_nowait(offset, size)

    def _under_patches(self, below: Buffer, offset: int, size: int) -> Buffer:
        assert self._patches is not None
        target = bytearray(below)
        target.extend(bytes(size - len(below)))
        self._patches.over(target, offset)
        return target

    def _tree_nowait(self, offset: int, size: int) -> Buffer | None:
        if size <= 0:
            return b""
        self._follow(offset, size)
        index, within = offset >> self._shift, offset & ((1 << self._shift) - 1)
        if within + size <= 1 << self._shift:
            return self._read_leaf_nowait(index, within, size)
        parts: list[Buffer] = []
        while size:
            take = min(size, (1 << self._shift) - within)
            part = self._read_leaf_nowait(index, within, take)
            if part is None:
                return None
            parts.append(part)
            size -= take
            index, within = index + 1, 0
        return b"".join(parts)

    async def read(self, offset: int, size: int) -> Buffer:
        """Bytes [offset, offset + size), clipped at the end; holes are zeros. Do not change them.

        Raises:
            Corrupt: the tree is not what the ref says. And what the source raises.
        """
        found = self.read_nowait(offset, size)
        if found is not None:
            await trio.lowlevel.checkpoint()
            return found
        size = min(size, self.ref.size - offset)
        if self._patches is None:
            return await self._tree(offset, size)
        below = await self._tree(offset, min(size, self._tree_size - offset))
        return self._under_patches(below, offset, size)

    async def _tree(self, offset: int, size: int) -> Buffer:
        if size <= 0:
            return b""
        end = offset + size
        parts: list[Buffer] = []
        index, within = offset >> self._shift, offset & ((1 << self._shift) - 1)
        if within + size > 1 << self._shift:
            self._announce(index, (end - 1) >> self._shift)
        while size:
            take = min(size, (1 << self._shift) - within)
            part = self._read_leaf_nowait(index, within, take)
            parts.append(await self._read_leaf(index, within, take) if part is None else part)
            size -= take
            index, within = index + 1, 0
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _read_leaf_nowait(self, index: int, within: int, size: int) -> Buffer | None:
        known, leaf = self._leaf_nowait(index)
        if not known:
            return None
        take = 0 if leaf is None else min(size, leaf.stored - within)
        if leaf is None or take <= 0:
            return bytes(size)
        data = self._source.read_nowait(leaf.digest, within, take)
        return None if data is None else _padded(data, take, size)

    async def _read_leaf(self, index: int, within: int, size: int) -> Buffer:
        leaf = await self.leaf(index)
        take = 0 if leaf is None else min(size, leaf.stored - within)
        if leaf is None or take <= 0:
            return bytes(size)
        return _padded(await self._source.read(leaf.digest, within, take), take, size)

    # -- finding leaves -------------------------------------------------------------------------

    async def leaf(self, index: int) -> Leaf | None:
        """A leaf, or None for a hole."""
        known, leaf = self._leaf_nowait(index)
        while not known:
            await self._load_path(index)
            known, leaf = self._leaf_nowait(index)
        return leaf

    def _leaf_nowait(self, index: int) -> tuple[bool, Leaf | None]:
        """(True, leaf or hole), or (False, None) if a node on the way is not at hand."""
        fanout = self._shape.fanout
        near = self._near.get(index // fanout)
        if near is not None:
            return True, near.child(index % fanout)
        below, first = self._root, 0
        for level in range(self._depth, 0, -1):
            if below is None:
                return True, None
            node = load_node_nowait(self._source, self._nodes, below.digest)
            if node is None:
                return False, None
            below, first = self._descend(node, level, first, below.stored, index)
        return True, below

    async def _load_path(self, index: int) -> None:
        """Have the nodes on the way to a leaf in memory."""
        below, first = self._root, 0
        for level in range(self._depth, 0, -1):
            if below is None:
                return
            node = await load_node(self._source, self._nodes, below.digest)
            below, first = self._descend(node, level, first, below.stored, index)

    def _descend(
        self, node: Node, level: int, first: int, stored: int, index: int
    ) -> tuple[Leaf | None, int]:
        """The child on the way to leaf `index`, and the first leaf below that child."""
        shift, width = self._shift, self._shape.leaves_below(level - 1)
        node.check(self._shape, level=level, size=self._tree_size - (first << shift), stored=stored)
        if level == 1:
            if len(self._near) >= _NEAR_NODES_MAX:
                del self._near[next(iter(self._near))]
            self._near[first // self._shape.fanout] = node
        place = (index - first) // width
        return node.child(place), first + place * width

    # -- reading ahead --------------------------------------------------------------------------

    def _follow(self, offset: int, size: int) -> None:
        """Take note of a read, and announce what is likely to follow."""
        end = offset + size
        if abs(offset - self._sequential_end) > _NEAR_BYTES:
            self._window = self._announced = 0
            self._sequential_end = end
            return
        if end <= self._sequential_end:
            return
        self._sequential_end = end
        if end + self._window // 2 < self._announced << self._shift:
            return  # enough is on its way
        self._window = min(max(self._window * 2, READ_AHEAD_BYTES_MIN), READ_AHEAD_BYTES_MAX)
        first = max((end - 1 >> self._shift) + 1, self._announced)
        last = min(end + self._window, self._tree_size) - 1 >> self._shift
        if first <= last:
            self._announced = last + 1
            self._announce(first, last)

    def _announce(self, first: int, last: int) -> None:
        """Tell the source about leaves, or the nodes that are missing on the way to them."""
        wanted: list[Digest] = []
        for index in range(first, last + 1):
            known, leaf = self._leaf_nowait(index)
            if not known:
                missing = self._missing_node(index)
                if missing is not None:
                    wanted.append(missing)
                break  # what follows is most likely below the same node
            if leaf is not None:
                wanted.append(leaf.digest)
        if wanted:
            self._source.prefetch(wanted)

    def _missing_node(self, index: int) -> Digest | None:
        below, first = self._root, 0
        for level in range(self._depth, 0, -1):
            if below is None:
                return None
            node = load_node_nowait(self._source, self._nodes, below.digest)
            if node is None:
                return below.digest
            below, first = self._descend(node, level, first, below.stored, index)
        return None


def _padded(data: Buffer, stored: int, size: int) -> Buffer:
    """A part of a leaf with the zeros it dropped."""
    if len(data) != stored:
        raise Corrupt(f"a leaf gave {len(data)} bytes where the tree says {stored}")
    return data if stored == size else b"".join((data, bytes(size - stored)))


async def starts_with(source: BlockSource, new: ContentRef, old: ContentRef) -> bool:
    """Whether the bytes of `new` begin with all those of `old`; reads both as far as they agree.

    False as well if something cannot be read.
    """
    readers = [ContentReader(source, content) for content in (new, old)]
    try:
        for offset in range(0, old.size, _COMPARED_BYTES):
            size = min(_COMPARED_BYTES, old.size - offset)
            one, two = [bytes(await reader.read(offset, size)) for reader in readers]
            if one != two:
                return False
            await trio.lowlevel.checkpoint()
    except DfsError:
        return False
    return True
