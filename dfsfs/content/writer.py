"""Storing a stream of unknown length as content, with bounded memory.

Leaves are gathered up to WRITER_BYTES_MAX, stored concurrently, and folded into interior nodes as
soon as these are complete: what stays in memory is one unfinished node for each level.
Whole leaves are taken from the caller's data without a copy. Loop only, one task at a time.
"""

import trio

from dfsfs.base.errors import DfsError, Invalid
from dfsfs.base.limits import BLOCK_SHIFT_DEFAULT, INLINE_BYTES_MAX, TREE_FANOUT, WRITER_BYTES_MAX
from dfsfs.base.types import EMPTY_CONTENT, Buffer, ContentRef
from dfsfs.blocks import Upload
from dfsfs.content.tree import Leaf, Shape, encode_node, inline_ref, trimmed


async def put_leaf(upload: Upload, data: Buffer) -> Leaf | None:
    """Store the bytes of one leaf, or one that a smaller file size cuts; None if all are zero."""
    kept = trimmed(data)
    return Leaf(await upload.put(kept), len(kept)) if len(kept) else None


async def put_node(
    upload: Upload, level: int, shift: int, children: list[Leaf | None]
) -> Leaf | None:
    """Store an interior node; None if all its children are holes."""
    data = encode_node(level, shift, children)
    if data is None:
        return None
    return Leaf(await upload.put(data), sum(child.stored for child in children if child))


class ContentWriter:
    """Write, then finish once. The upload stays the caller's: settle and close it."""

    def __init__(
        self,
        upload: Upload,
        shift: int = BLOCK_SHIFT_DEFAULT,
        *,
        fanout: int = TREE_FANOUT,
        inline_bytes_max: int = INLINE_BYTES_MAX,
    ) -> None:
        """Content of up to `inline_bytes_max` needs no block."""
        self._upload = upload
        self._shape = Shape(shift, fanout)
        self._inline_bytes_max = inline_bytes_max
        self._leaf_bytes = 1 << shift
        self._gather_bytes = max(WRITER_BYTES_MAX >> shift, 1) << shift
        self._gathered = bytearray()
        self._open: list[list[Leaf | None]] = [[]]  # children of unfinished nodes, by level
        self._size = 0
        self._finished = False

    async def write(self, data: Buffer) -> None:
        """Append `data`; it is the caller's again on return."""
        if self._finished:
            raise Invalid("the writer has finished")
        view = memoryview(data)
        self._size += len(view)
        while len(self._gathered) + len(view) >= self._gather_bytes:
            if self._gathered:
                take = self._gather_bytes - len(self._gathered)
                self._gathered += view[:take]
                full, self._gathered = self._gathered, bytearray()
                await self._store(memoryview(full))
            else:
                take = self._gather_bytes
                await self._store(view[:take])
            view = view[take:]
        self._gathered += view
        await trio.lowlevel.checkpoint()

    async def finish(self) -> ContentRef:
        """Store what is left and return the ref of everything written."""
        self._finished = True
        if self._size == 0:
            return EMPTY_CONTENT
        if self._size <= min(self._inline_bytes_max, len(self._gathered)):
            return inline_ref(bytes(self._gathered))
        await self._store(memoryview(self._gathered))
        self._gathered = bytearray()
        depth = self._shape.depth(self._size)
        for level in range(depth):
            if self._open[level]:
                await self._fold(level)
        (root,) = self._open[depth]
        shift = self._shape.shift
        if root is None:
            return ContentRef(size=self._size, shift=shift)
        return ContentRef(size=self._size, root=root.digest, shift=shift, stored=root.stored)

    async def _store(self, data: memoryview) -> None:
        """Store leaves concurrently; all are whole, but for the last one of all."""
        count = -(-len(data) // self._leaf_bytes)
        leaves: list[Leaf | None] = [None] * count
        failures: list[DfsError] = []

        async def put(place: int) -> None:
            start = place * self._leaf_bytes
            try:
                leaves[place] = await put_leaf(self._upload, data[start : start + self._leaf_bytes])
            except DfsError as error:
                failures.append(error)

        if count == 1:
            await put(0)
        else:
            async with trio.open_nursery() as nursery:
                for place in range(count):
                    nursery.start_soon(put, place)
        if failures:
            raise failures[0]
        for leaf in leaves:
            self._open[0].append(leaf)
            await self._fold_full(0)

    async def _fold_full(self, level: int) -> None:
        while level < len(self._open) and len(self._open[level]) == self._shape.fanout:
            await self._fold(level)
            level += 1

    async def _fold(self, level: int) -> None:
        """Make one node of the unfinished children at a level."""
        children, self._open[level] = self._open[level], []
        if len(self._open) == level + 1:
            self._open.append([])
        node = await put_node(self._upload, level + 1, self._shape.shift, children)
        self._open[level + 1].append(node)
