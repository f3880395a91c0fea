"""What was written to one file and is not yet in its content ref.

A read sees four layers, upper ones first, block by block:

    dirty    byte ranges written over what is below (`Extents`)
    flying   whole blocks on their way into the store
    stored   leaves that are in the store, but not yet in the tree
    base     a content ref: the file as it was opened, or as it was folded last; it may have
             patches, a few changed bytes that lie over its tree

A block that is written to its end goes to `flying` at once, without a copy if it came in one piece,
so a file streams into the store while it is being written. `write_back` moves what is dirty down:
partial blocks are completed from below and stored, then `patch` folds all leaves into a new base.
When many leaves wait, they are folded early, so memory does not grow with the file.
A write-back of little does none of that: what is dirty becomes patches of the base.

Invariants: `size` is the file's size, and no layer has a byte at or after it. A block leaves
`flying` only when its leaf is in `stored`, or when a later write or a truncation has replaced it
(identity of the bytes tells). Nothing reaches `base` that was not written: `write_back` folds up to
the size it began with, or up to the present one if nothing is dirty.

Concurrency: `write` and `read`'s look at the layers are sync, hence atomic. `lock` is held by
whoever changes what is below `dirty` in more than one step. Background puts run in the nursery of
the owner; cancelling a caller never leaves a half-done change.
Durability: none here; the owner settles `upload`, then commits the content ref to the namespace.
"""

from dataclasses import dataclass
from typing import TypeVar

import trio

from dfsfs.base.errors import DfsError, TooBig
from dfsfs.base.limits import (
    FILE_BYTES_MAX,
    INLINE_BYTES_MAX,
    PATCHES_COUNT_MAX,
    UNFOLDED_LEAVES_MAX,
    WRITE_BACK_PARALLEL_MAX,
)
from dfsfs.base.types import EMPTY_CONTENT, Buffer, ContentRef, Digest
from dfsfs.blocks import Storage, Upload
from dfsfs.content import ContentReader, Leaf, inline_ref, merged, pack, patch, put_leaf, unpack
from dfsfs.vfs.budget import WriteBudget
from dfsfs.vfs.extents import Extents

T = TypeVar("T")
_ABSENT = Leaf(Digest(b""), 0)  # stands for "no leaf waits", which None (a hole) does not


@dataclass(frozen=True, slots=True)
class Written:
    """The outcome of a write-back: content that covers every change up to `sequence`."""

    content: ContentRef
    sequence: int


class WriteBuffer:
    """Owned by one open file; made by its first write or truncation, dropped when it is clean."""

    def __init__(
        self,
        storage: Storage,
        budget: WriteBudget,
        nursery: trio.Nursery,
        base: ContentRef,
        *,
        shift: int,
    ) -> None:
        """`shift`: block size of a file that has no tree yet."""
        self._storage = storage
        self._budget = budget
        self._nursery = nursery
        self._base = base
        self._reader: ContentReader | None = None
        self._shift = base.shift if base.root is not None else shift
        self._block = 1 << self._shift
        self._dirty: dict[int, Extents] = {}
        self._flying: dict[int, Buffer] = {}
        self._stored: dict[int, Leaf | None] = {}
        self._landed = trio.Event()
        self._base_size = base.size  # bytes of `base` after here were cut off: they are zeros
        self._upload: Upload | None = None
        self._puts = 0  # running; the upload is closed after the last
        self._closed = False
        self.lock = trio.Lock()
        self.size = base.size
        self.sequence = 0  # counts changes of the bytes
        self.error: DfsError | None = None  # a put failed; its bytes are dirty again

    # -- writing ------------------------------------------------------------------------------

    def write(self, offset: int, data: Buffer) -> None:
        """Put `data` at `offset`; it may be kept and must not change afterwards.

        Raises:
            TooBig: the file would grow beyond `limits.FILE_BYTES_MAX`.
        """
        end = offset + len(data)
        if end > FILE_BYTES_MAX:
            raise TooBig(f"a file cannot have {end} bytes")
        self.sequence += 1
        self._budget.join(self)
        block = self._block
        index, within = divmod(offset, block)
        if within + len(data) <= block:
            self._write_block(index, within, data)
        else:
            view, at = memoryview(data), 0
            while at < len(view):
                take = min(block - within, len(view) - at)
                piece = view[at : at + take]
                # A whole block is stored as the slice it is; a part would keep all of `data` alive.
                self._write_block(index, within, piece if take == block else bytes(piece))
                at += take
                index += 1
                within = 0
        if end > self.size:
            self.size = end

    def _write_block(self, index: int, within: int, data: Buffer) -> None:
        if len(data) == self._block:
            replaced = self._dirty.pop(index, None)
            if replaced is not None:
                self._budget.add(-replaced.cost)
            self._budget.add(len(data))
            self._launch(index, data)
            return
        extents = self._dirty.get(index)
        if extents is None:
            extents = self._dirty[index] = Extents()
        before = extents.cost
        extents.write(within, data)
        self._budget.add(extents.cost - before)
        if extents.size == self._block:
            whole = extents.whole(self._block)
            assert whole is not None
            del self._dirty[index]
            self._budget.add(len(whole) - extents.cost)
            self._launch(index, whole)

    def _launch(self, index: int, data: Buffer) -> None:
        """Store a whole block in the background; its bytes are counted already."""
        if self._upload is None:
            self._upload = self._storage.upload()
        self._flying[index] = data
        self._puts += 1
        self._nursery.start_soon(self._put, self._upload, index, data)

    async def _put(self, upload: Upload, index: int, data: Buffer) -> None:
        try:
            leaf = await put_leaf(upload, data)
        except DfsError as error:
            if self._flying.get(index) is data:
                self._recall(index, data)
                self.error = error
                self._budget.wake()
            else:
                self._budget.add(-len(data))  # replaced or cut off meanwhile: nobody misses it
        else:
            if self._flying.get(index) is data:
                del self._flying[index]
                self._stored[index] = leaf
            self._budget.add(-len(data))
        finally:
            self._puts -= 1
            if self._closed and not self._puts:
                upload.close()
        self._landed.set()

    def _recall(self, index: int, data: Buffer) -> None:
        """A flying block is dirty again; its bytes stay counted."""
        del self._flying[index]
        # A copy, which can grow: the error that brought it back may keep views of `data`.
        self._lay_under(index, bytes(data))
        self._budget.add(-len(data))

    def _lay_under(self, index: int, data: bytes, within: int = 0) -> None:
        """Make `data` dirty at `within` a block, under what is dirty there already."""
        united = Extents()
        united.write(within, data)
        above = self._dirty.get(index)
        if above is not None:
            for start, piece in above.pieces():
                united.write(start, piece)
            self._budget.add(-above.cost)
        self._dirty[index] = united
        self._budget.add(united.cost)

    # -- reading ------------------------------------------------------------------------------

    async def read(self, offset: int, size: int) -> Buffer:
        """Bytes [offset, offset + size), clipped at the end of the file."""
        size = max(0, min(size, self.size - offset))
        if size == 0:
            return b""
        # Take hold of every layer before waiting: a write-back may move it down meanwhile.
        dirty = self._taken(self._dirty, offset, size)
        if len(dirty) == 1:
            index, extents = dirty[0]
            found = extents.slice(offset - (index << self._shift), size)
            if found is not None:
                return found
        below = await self._read_below(offset, size)
        if not dirty:
            return below
        target = bytearray(below)
        for index, extents in dirty:
            start = (index << self._shift) - offset
            low, high = max(0, start), min(size, start + self._block)
            extents.copy_onto(memoryview(target)[low:high], low - start)
        return target

    async def _read_below(self, offset: int, size: int) -> Buffer:
        """Exactly `size` bytes as they are without the dirty layer."""
        flying = self._taken(self._flying, offset, size)
        stored = self._taken(self._stored, offset, size)
        of_base = min(size, self._base_size - offset)
        if of_base > 0:
            if self._reader is None:
                self._reader = ContentReader(self._storage, self._base)
            found = self._reader.read_nowait(offset, of_base)
            if found is None:
                found = await self._reader.read(offset, of_base)
            if of_base == size and not flying and not stored:
                return found
            target = bytearray(found)
            target.extend(bytes(size - of_base))
        else:
            target = bytearray(size)
        for index, leaf in stored:
            await self._copy_leaf(target, (index << self._shift) - offset, leaf)
        for index, data in flying:
            self._copy_block(target, (index << self._shift) - offset, data)
        return target

    def _taken(self, layer: dict[int, T], offset: int, size: int) -> list[tuple[int, T]]:
        """The blocks of a layer that overlap a range, in order."""
        if not layer:
            return []
        first, last = offset >> self._shift, (offset + size - 1) >> self._shift
        if len(layer) < last - first:
            return [(index, layer[index]) for index in sorted(layer) if first <= index <= last]
        return [(index, layer[index]) for index in range(first, last + 1) if index in layer]

    async def _copy_leaf(self, target: bytearray, start: int, leaf: Leaf | None) -> None:
        """Copy the part of a stored block at `start` that `target` has room for."""
        data: Buffer = b""
        low = max(0, -start)
        size = min(self._block, len(target) - start) - low
        if leaf is not None:
            found = self._storage.read_nowait(leaf.digest, low, size)
            data = await self._storage.read(leaf.digest, low, size) if found is None else found
        self._copy_range(target, start + low, size, data)

    def _copy_block(self, target: bytearray, start: int, data: Buffer) -> None:
        low = max(0, -start)
        size = min(self._block, len(target) - start) - low
        self._copy_range(target, start + low, size, memoryview(data)[low : low + size])

    def _copy_range(self, target: bytearray, at: int, size: int, data: Buffer) -> None:
        """A block replaces all below it: where its bytes end, zeros follow."""
        target[at : at + len(data)] = data
        target[at + len(data) : at + size] = bytes(size - len(data))

    # -- moving down --------------------------------------------------------------------------

    @property
    def upload(self) -> Upload | None:
        """What keeps the stored blocks until the content is committed; None if there are none."""
        return self._upload

    @property
    def base(self) -> ContentRef:
        """The tree below what waits: garbage collection must know that it is in use."""
        return self._base

    @property
    def holds_bytes(self) -> bool:
        """Whether bytes wait here, or are on their way into the store."""
        return bool(self._dirty or self._flying)

    @property
    def unfolded(self) -> int:
        """Leaves waiting to be folded into a tree."""
        return len(self._stored)

    async def write_back(self, *, patches_bytes_max: int = 0) -> Written:
        """Store and fold everything written before the call; more may be written meanwhile.

        `patches_bytes_max`: changes of no more bytes stay patches of the content.

        Raises:
            DfsError: something could not be stored, or a partial block not be completed. Nothing is
                lost: its bytes stay dirty, and the next write-back tries again.
        """
        async with self.lock:
            self.error = None
            try:
                written = await self._inline()
                if written is None:
                    written = self._patched(patches_bytes_max)
                if written is None:
                    written = await self._store_all()
            except DfsError as error:
                self.error = error
                self._budget.wake()
                raise
        return written

    async def _inline(self) -> Written | None:
        """Small content goes into the content ref itself; None if the file is not small."""
        while self.size <= INLINE_BYTES_MAX:
            size, flying = self.size, self._flying.get(0)
            below = await self._read_below(0, size)
            if size != self.size or self._flying.get(0) is not flying:
                continue  # it grew, or was written whole, while we waited for lower layers
            target = bytearray(below)
            dirty = self._dirty.get(0)
            if dirty is not None:
                dirty.copy_onto(target, 0)
            self._forget_layers()
            self._set_base(inline_ref(bytes(target)) if size else EMPTY_CONTENT)
            return Written(self._base, self.sequence)
        return None

    def _patched(self, bytes_max: int) -> Written | None:
        """Make what is dirty patches of the base; None if that does not suit."""
        base = self._base
        if base.root is None or self._base_size != base.size or self._flying or self._stored:
            return None
        if sum(extents.size for extents in self._dirty.values()) > bytes_max:
            return None
        tree, below = unpack(base) if base.patched else (base, ())
        above = [
            ((index << self._shift) + start, piece)
            for index in sorted(self._dirty)
            for start, piece in self._dirty[index].pieces()
        ]
        ranges = merged(below, above)
        if sum(len(item.data) for item in ranges) > bytes_max or len(ranges) > PATCHES_COUNT_MAX:
            return None
        self._forget_layers()
        if ranges or self.size != tree.size:
            self._set_base(pack(tree, ranges, self.size))
        return Written(self._base, self.sequence)

    def _unpatch(self) -> None:
        """Patches of the base become dirty again: they are folded with the rest."""
        base = self._base
        if not base.patched:
            return
        tree, ranges = unpack(base)
        cut = self._base_size
        self._base, self._reader = tree, None
        self._base_size = min(cut, tree.size)
        for item in ranges:
            self._lay_range_under(item.offset, item.data[: max(0, cut - item.offset)])

    def _lay_range_under(self, offset: int, data: bytes) -> None:
        """Make bytes of the base dirty, below what is dirty already."""
        at = 0
        while at < len(data):
            index, within = divmod(offset + at, self._block)
            take = min(self._block - within, len(data) - at)
            # A block above the base has these bytes already, or has replaced them.
            if index not in self._flying and index not in self._stored:
                self._lay_under(index, data[at : at + take], within)
            at += take

    async def _store_all(self) -> Written:
        self._unpatch()
        sequence, size = self.sequence, self.size
        await self._complete_all()
        await self._land()
        if self.error is not None:
            raise self.error
        if not self._dirty and not self._flying:
            sequence, size = self.sequence, self.size
        await self._fold(size)
        return Written(self._base, sequence)

    async def spill(self) -> bool:
        """Begin to store every partial block to free memory; False if there was none.

        A failure stays in `error` for the file's own callers.
        """
        async with self.lock:
            if not self._dirty:
                return False
            try:
                await self._complete_all()
            except DfsError as error:
                self.error = error
                return False
            return True

    async def fold(self) -> None:
        """Fold the leaves that wait, when they are many: memory must not grow with the file."""
        async with self.lock:
            if len(self._stored) >= UNFOLDED_LEAVES_MAX:
                self._unpatch()
                await self._fold(self.size)
                if self._upload is not None:
                    waiting = self._stored.values()
                    self._upload.keep([leaf.digest for leaf in waiting if leaf is not None])

    async def _complete_all(self) -> None:
        indices = sorted(self._dirty)
        if len(indices) == 1:
            await self._complete(indices[0])
            return
        # Several at a time: what lies below may have to be fetched from other nodes.
        pending = iter(indices)

        async def complete_some() -> None:
            for index in pending:
                await self._complete(index)

        failures: list[DfsError] = []

        async def guarded() -> None:
            try:
                await complete_some()
            except DfsError as error:
                failures.append(error)

        async with trio.open_nursery() as nursery:
            for _ in range(min(len(indices), WRITE_BACK_PARALLEL_MAX)):
                nursery.start_soon(guarded)
        if failures:
            raise failures[0]

    async def _complete(self, index: int) -> None:
        """Launch a partial block, completed from below."""
        start = index << self._shift
        while (extents := self._dirty.get(index)) is not None:
            whole = extents.whole(min(self._block, self.size - start))
            if whole is None:
                below = await self._read_below(start, min(self._block, self.size - start))
                if self._dirty.get(index) is not extents:
                    continue  # the block was written whole meanwhile, or came back from a put
                whole = bytearray(below)
                whole.extend(bytes(min(self._block, self.size - start) - len(below)))
                extents.copy_onto(whole, 0)
            del self._dirty[index]
            self._budget.add(len(whole) - extents.cost)
            self._launch(index, whole)

    async def _land(self) -> None:
        """Wait until no block that is flying now is still on its way."""
        targets = dict(self._flying)
        while any(self._flying.get(index) is data for index, data in targets.items()):
            if self._landed.is_set():
                self._landed = trio.Event()
            await self._landed.wait()

    async def _fold(self, size: int) -> None:
        """Make a base of `size` bytes from it and the stored leaves (needs the lock)."""
        leaves = {
            index: self._stored[index]
            for index in sorted(self._stored)
            if index << self._shift < size
        }
        base = self._base
        if not leaves and size == self._base_size == base.size:
            return
        if self._upload is None:
            self._upload = self._storage.upload()
        if self._base_size < base.size:
            base = await self._patch(base, {}, self._base_size)
        base = await self._patch(base, leaves, size)
        self._set_base(base)
        for index, leaf in leaves.items():
            # A leaf that `size` cuts through has bytes which the new base has not.
            whole = (index + 1) << self._shift <= size or size == self.size
            if whole and self._stored.get(index, _ABSENT) is leaf:
                del self._stored[index]

    async def _patch(
        self, base: ContentRef, leaves: dict[int, Leaf | None], size: int
    ) -> ContentRef:
        assert self._upload is not None
        return await patch(self._storage, self._upload, base, leaves, size, self._shift)

    def _set_base(self, base: ContentRef) -> None:
        self._base = base
        self._base_size = base.size
        self._reader = None

    # -- cutting and ending -------------------------------------------------------------------

    async def truncate(self, size: int) -> None:
        """Set the size; what is cut off reads as zeros if the file grows again.

        Raises:
            TooBig: beyond `limits.FILE_BYTES_MAX`.
        """
        if size > FILE_BYTES_MAX:
            raise TooBig(f"a file cannot have {size} bytes")
        async with self.lock:
            boundary, within = size >> self._shift, size & (self._block - 1)
            kept = b""
            while size < self.size and within and boundary in self._stored:
                # The block that is cut is in the store already: its beginning becomes dirty again.
                leaf = self._stored[boundary]
                kept = bytes(await self._read_below(boundary << self._shift, within))
                if self._stored.get(boundary, _ABSENT) is leaf:
                    break
            self._cut(size, boundary, within, kept)
            self.size = size
            self.sequence += 1
            self._budget.join(self)

    def _cut(self, size: int, boundary: int, within: int, kept: bytes) -> None:
        if size >= self.size:
            return
        if size == 0:
            self._forget_layers()
            self._set_base(EMPTY_CONTENT)
            return
        if boundary in self._stored and within:
            self._lay_under(boundary, kept)
            self._flying.pop(boundary, None)
        elif boundary in self._flying and within:
            self._lay_under(boundary, bytes(memoryview(self._flying.pop(boundary))[:within]))
        first_gone = boundary + (within > 0)
        for index in [index for index in self._dirty if index >= boundary]:
            extents = self._dirty.pop(index)
            # Others, because a read that waits goes on with those it has taken.
            left = extents.until(within if index == boundary else 0)
            self._budget.add(left.cost - extents.cost)
            if left:
                self._dirty[index] = left
        for layer in (self._flying, self._stored):
            for index in [index for index in layer if index >= first_gone]:
                del layer[index]
        self._stored.pop(boundary, None)
        self._base_size = min(self._base_size, size)

    def _forget_layers(self) -> None:
        """Drop all but the base; puts still running give back their bytes when they end."""
        self._budget.add(-sum(extents.cost for extents in self._dirty.values()))
        self._dirty.clear()
        self._flying.clear()
        self._stored.clear()

    def close(self) -> None:
        """Forget what is not committed, and let go of the blocks. Idempotent."""
        self._forget_layers()
        self._budget.leave(self)
        self._closed = True
        if self._upload is not None and not self._puts:
            self._upload.close()
