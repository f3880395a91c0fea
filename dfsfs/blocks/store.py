"""A node's blocks on its own disk: segment files for large ones, SQLite for small ones.

Why this layout, with figures: doc/decisions/0002-block-store.md; on disk: doc/format-blocks.md.

What a call costs, as long as nothing is wrong:
- `get_nowait`, `read_nowait`: a dictionary look-up, a preadv(2) that refuses to wait for the disk.
- `put` of a large block: its share of one append, done in a thread for all that wait (`Batcher`),
  and of one index commit. A small block is one commit on the loop.
- `sync`: one fdatasync(2) of the active segment, shared by all that wait, and one of the index if
  small blocks were put. Rows of large blocks need none: recovery finds their records.

Integrity: a block put or verified since start is marked in a bitmap, and served from the page cache
without another look. One without the mark, and one the page cache has not (all) got, is read whole
and compared with its digest. Small blocks are compared at every read. A block found bad stays
where it is, unserved, until a good copy is put: the fault may be the memory's or the cable's.

Durability: `put` survives kill -9 (page cache, WAL), `sync` power loss. After a failed flush
nothing is accepted any more: the kernel forgets which pages failed, so no later flush can be
believed (Rebello et al. 2020, "Can applications recover from fsync failures?"); a restart sorts
it out.

Concurrency: loop only. Every decision about index and files is made between awaits; threads get a
file and numbers.
"""

import contextlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import trio

from dfsfs.base.errors import Corrupt, DfsError, Full, NotFound
from dfsfs.base.limits import (
    BAD_BLOCKS_MAX,
    INLINE_HASH_BYTES_MAX,
    PUT_BATCH_BYTES_MAX,
    PUT_BATCH_COUNT_MAX,
    RECLAIM_BYTES_MAX,
    RECLAIM_COUNT_MAX,
    SEGMENT_BYTES,
    SEGMENT_FILES_OPEN_MAX,
    SMALL_BLOCK_BYTES_MAX,
    STORE_WAL_BYTES_MAX,
    STORE_WAL_KEPT_BYTES,
)
from dfsfs.base.types import Buffer, Digest, digest_matches, digest_text
from dfsfs.blocks.batching import Batcher
from dfsfs.blocks.index import SMALL, Index, Location
from dfsfs.blocks.interface import StoreUsage
from dfsfs.blocks.pins import Pins
from dfsfs.blocks.records import HEADER_BYTES, encode_header
from dfsfs.blocks.recovery import recover
from dfsfs.blocks.segments import SegmentFiles
from dfsfs.blocks.verified import VerifiedMap
from dfsfs.runtime import Bounds, GroupCommit, World, reserve_bytes

log = logging.getLogger(__name__)


class _Arrival(NamedTuple):
    digest: Digest
    data: Buffer


class SegmentStore:
    """Implements `BlockStore`; made by `open`, owned by the node."""

    def __init__(
        self,
        world: World,
        index: Index,
        files: SegmentFiles,
        *,
        capacity_bytes: int | None,
        reserve_bytes: int | None = None,
    ) -> None:
        """Use `open`: index and files must have been recovered."""
        self.pins = Pins()
        self._world = world
        self._index = index
        self._files = files
        self._capacity_bytes = capacity_bytes
        self._reserve_bytes = reserve_bytes
        self._verified = VerifiedMap()
        self._bad: dict[Digest, None] = {}  # oldest first
        self._active = max([*index.segments, 1])
        self._unsynced: dict[int, None] = {}  # segments with bytes appended since their last flush
        self._directory_unsynced = True
        self._index_unsynced = True
        self._loading: dict[Digest, trio.Event] = {}  # blocks being read to be verified
        self._failure: DfsError | None = None
        self._flush_lock = trio.Lock()
        self._reclaiming = trio.Lock()
        self._folding = False
        self._appends = Batcher[_Arrival, bool](
            self._append,
            count_max=PUT_BATCH_COUNT_MAX,
            weight=lambda arrival: len(arrival.data),
            weight_max=PUT_BATCH_BYTES_MAX,
        )
        self._sync = GroupCommit(self._flush)

    @classmethod
    async def open(
        cls,
        world: World,
        directory: Path,
        *,
        capacity_bytes: int | None = None,
        reserve_bytes: int | None = None,
    ) -> "SegmentStore":
        """Open the store in `directory`, new or as a crash left it.

        `capacity_bytes` bounds what it takes of the disk, None: all but the reserve.
        `reserve_bytes` is what stays free on the disk, None: see `runtime.Reserve`.

        Raises:
            Misconfigured: another version of this program made the store.
            Full, DfsError: the disk fails.
        """
        index, files = await world.run_blocking(recover, directory)
        return cls(world, index, files, capacity_bytes=capacity_bytes, reserve_bytes=reserve_bytes)

    # -- reading --------------------------------------------------------------------------------

    def has(self, digest: Digest) -> bool:
        """Whether the block is here and not known to be bad."""
        return digest not in self._bad and self._index.find(digest) is not None

    def size(self, digest: Digest) -> int | None:
        """Bytes of the block, or None."""
        location = self._index.find(digest)
        return None if location is None or digest in self._bad else location.length

    def get_nowait(self, digest: Digest) -> Buffer | None:
        """The block if that needs no waiting."""
        location = self._index.find(digest)
        return None if location is None else self._read_nowait(digest, location, 0, location.length)

    def read_nowait(self, digest: Digest, offset: int, size: int) -> Buffer | None:
        """A part of the block if that needs no waiting."""
        location = self._index.find(digest)
        if location is None:
            return None
        return self._read_nowait(digest, location, offset, min(size, location.length - offset))

    def _read_nowait(
        self, digest: Digest, location: Location, offset: int, size: int
    ) -> Buffer | None:
        segment, position, _ = location
        if size <= 0:
            return b""
        if segment == SMALL:
            data = self._index.small(location)
            return data[offset : offset + size] if digest_matches(digest, data) else None
        if (file := self._files.peek(segment)) is None or not self._verified.has(segment, position):
            return None
        return file.read_nowait(position + HEADER_BYTES + offset, size)

    async def get(self, digest: Digest) -> Buffer:
        """The block, verified."""
        return await self.read(digest, 0, 1 << 62)

    async def read(self, digest: Digest, offset: int, size: int) -> Buffer:
        """A part of the block, which is verified as a whole first."""
        while True:
            location = self._index.find(digest)
            if location is None:
                await trio.lowlevel.checkpoint()
                raise NotFound(f"no block {digest_text(digest)}")
            part = min(size, location.length - offset)
            data = self._read_nowait(digest, location, offset, part)
            if data is not None:
                await trio.lowlevel.checkpoint()
                return data
            if location.segment == SMALL:
                raise self._found_bad(digest, Corrupt(f"bad small block {digest_text(digest)}"))
            if (loading := self._loading.get(digest)) is not None:
                await loading.wait()  # somebody verifies it already; then it is in memory
                continue
            try:
                whole = await self._load(digest, location)
            except Corrupt as error:
                if self._index.find(digest) == location:
                    raise self._found_bad(digest, error) from error
                continue  # it was removed or replaced while a thread was reading it
            if self._index.find(digest) == location:
                return memoryview(whole)[offset : offset + part]

    async def verify(self, digest: Digest) -> None:
        """Read the block from the disk, not from the page cache, and compare it."""
        location = self._index.find(digest)
        if location is None:
            await trio.lowlevel.checkpoint()
            raise NotFound(f"no block {digest_text(digest)}")
        segment, position, length = location
        if segment == SMALL:
            await trio.lowlevel.checkpoint()
            if not digest_matches(digest, self._index.small(location)):
                raise self._found_bad(digest, Corrupt(f"bad small block {digest_text(digest)}"))
            return
        try:
            with self._files.using(segment) as file:
                await self._world.run_blocking(
                    file.read_cold, digest, position + HEADER_BYTES, length
                )
        except Corrupt as error:
            if self._index.find(digest) != location:
                return  # it was removed or replaced meanwhile
            self._verified.clear(segment, position)
            raise self._found_bad(digest, error) from error
        if self._index.find(digest) == location:
            self._verified.mark(segment, position)
            self._bad.pop(digest, None)

    async def _load(self, digest: Digest, location: Location) -> Buffer:
        """Read a block as a whole, verify it, remember that."""
        loading = self._loading[digest] = trio.Event()
        # Until then nobody may be served what this read brings into the page cache.
        self._verified.clear(location.segment, location.position)
        try:
            whole = await self._read_whole(digest, location)
        finally:
            del self._loading[digest]
            loading.set()
        if self._index.find(digest) == location:
            self._verified.mark(location.segment, location.position)
            self._bad.pop(digest, None)
        return whole

    async def _read_whole(self, digest: Digest, location: Location) -> Buffer:
        segment, position, length = location
        with self._files.using(segment) as file:
            whole: Buffer | None = None
            if length <= INLINE_HASH_BYTES_MAX:
                whole = file.read_nowait(position + HEADER_BYTES, length)
            if whole is None or not digest_matches(digest, whole):
                whole = await self._world.run_blocking(
                    file.read_verified, digest, position + HEADER_BYTES, length
                )
            else:
                await trio.lowlevel.checkpoint()
        return whole

    def _found_bad(self, digest: Digest, error: Corrupt) -> Corrupt:
        if digest not in self._bad:
            log.warning("bad block %s: %s", digest_text(digest), error)
            if len(self._bad) >= BAD_BLOCKS_MAX:
                del self._bad[next(iter(self._bad))]
            self._bad[digest] = None
        return error

    # -- writing --------------------------------------------------------------------------------

    async def put(self, digest: Digest, data: Buffer) -> bool:
        """Store a block the caller has hashed."""
        if self._failure is not None:
            raise self._failure
        if await self._is_here_and_good(digest):
            return False
        if len(data) > SMALL_BLOCK_BYTES_MAX:
            new = await self._appends.submit(_Arrival(digest, data))
        else:
            new = await self._put_small(digest, data)
        if self._index.log_bytes() > STORE_WAL_BYTES_MAX:
            await self._fold()
        return new

    async def _is_here_and_good(self, digest: Digest) -> bool:
        """An old copy may be bad, and here is a good one: so it is worth a look."""
        location = self._index.find(digest)
        if location is None:
            return False
        if location.segment != SMALL and self._verified.has(location.segment, location.position):
            await trio.lowlevel.checkpoint()
            return True
        try:
            await self.read(digest, 0, 1)
        except (Corrupt, NotFound):
            return False
        return True

    async def _put_small(self, digest: Digest, data: Buffer) -> bool:
        if len(data) > self._room():
            await self._make_room()
            if len(data) > self._room():
                raise self._full()
        if self._index.find(digest) is not None and digest not in self._bad:
            return False  # somebody else put it while we were waiting
        self._index.add_small(digest, data)
        self._index_unsynced = True
        self._bad.pop(digest, None)
        await trio.lowlevel.checkpoint()
        return True

    async def _append(self, arrivals: list[_Arrival]) -> Sequence[bool | DfsError]:
        """Append what is new of a batch: one write, one commit."""
        if sum(len(arrival.data) for arrival in arrivals) > self._room():
            await self._make_room()
        if self._index.indexed(self._active) >= SEGMENT_BYTES:
            await self._next_segment()
        segment = self._active
        start = end = self._index.indexed(segment)
        outcomes: list[bool | DfsError] = []
        buffers: list[Buffer] = []
        records: dict[Digest, tuple[Digest, int, int]] = {}
        room = self._room()
        for digest, data in arrivals:
            length = len(data)
            if digest in records or (self._index.find(digest) and digest not in self._bad):
                outcomes.append(False)
            elif end - start + HEADER_BYTES + length > room:
                outcomes.append(self._full())
            else:
                buffers += (encode_header(digest, length), data)
                records[digest] = (digest, end, length)
                end += HEADER_BYTES + length
                outcomes.append(True)
        if not records:
            await trio.lowlevel.checkpoint()
            return outcomes
        with self._files.using(segment) as file:
            await self._world.run_blocking(file.append, start, buffers)
        self._unsynced[segment] = None
        self._index.add_records(segment, end, records.values())
        for digest, position, _ in records.values():
            self._verified.mark(segment, position)
            self._bad.pop(digest, None)
        return outcomes

    async def _next_segment(self) -> None:
        """Flush the segment before the full one, so that a power cut leaves little to verify."""
        full = self._active
        self._active = max(self._index.segments) + 1
        self._directory_unsynced = True
        await self._flush_segments(but=full)

    # -- durability -----------------------------------------------------------------------------

    async def sync(self) -> None:
        """Return when everything put before is on stable storage."""
        await self._sync()

    async def _flush(self) -> None:
        if self._failure is not None:
            raise self._failure
        if not self._index_unsynced:
            await self._flush_segments()
            return
        self._index_unsynced = False
        # Side by side: recovery takes either without the other.
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._flush_index)
            with contextlib.suppress(DfsError):  # it is in `_failure`
                await self._flush_segments()
        if self._failure is not None:
            raise self._failure

    async def _flush_index(self) -> None:
        with contextlib.suppress(DfsError):
            await self._flushing(self._index.sync)

    async def _flush_segments(self, *, but: int | None = None) -> None:
        """Flush what was appended; what is appended meanwhile is for the next flush."""
        async with self._flush_lock:
            if self._directory_unsynced and self._unsynced:
                self._directory_unsynced = False
                await self._flushing(self._files.sync_directory)
            for number in list(self._unsynced):
                if number == but or number not in self._unsynced:
                    continue  # emptied and unlinked while another one was flushed
                end = self._index.indexed(number)
                del self._unsynced[number]
                with self._files.using(number) as file:
                    await self._flushing(file.sync)
                # What is not noted is verified again at the next start: no failure of the flush.
                with contextlib.suppress(DfsError):
                    self._index.note_synced(number, end, now=number != self._active)

    async def _flushing(self, flush: Callable[[], None]) -> None:
        try:
            await self._world.run_blocking(flush)
        except DfsError as error:
            log.error("the block store takes no more blocks: %s", error)
            self._failure = error
            raise

    async def _fold(self) -> None:
        """Fold the index's write-ahead log; one caller does it, the others go on."""
        if self._folding:
            return
        self._folding = True
        try:
            await self._world.run_blocking(self._index.fold)
        finally:
            self._folding = False

    # -- space ----------------------------------------------------------------------------------

    async def remove(self, digest: Digest) -> bool:
        """Forget a block; its space comes back with that of the next few."""
        try:
            was_here = self._index.remove(digest)
        except Full:  # even forgetting takes room in the write-ahead log, until it is folded
            await self._fold()
            was_here = not self.pins.is_pinned(digest) and self._index.remove(digest)
        self._bad.pop(digest, None)
        if not self._reclaiming.locked() and (
            self._index.garbage_bytes >= RECLAIM_BYTES_MAX
            or len(self._index.garbage) >= RECLAIM_COUNT_MAX
        ):
            await self._reclaim()
        else:
            await trio.lowlevel.checkpoint()
        return was_here

    async def _reclaim(self) -> None:
        """Give the space of removed records back to the disk."""
        async with self._reclaiming:
            garbage, empty = list(self._index.garbage), self._index.unused(self._active)
            if not (garbage or empty):
                return
            # Until the removals are flushed a power cut would bring their rows back.
            await self._flushing(self._index.sync)
            for number in sorted({item.segment for item in garbage} - set(empty)):
                records = [item[1:] for item in garbage if item.segment == number]
                with self._files.using(number) as file:
                    await self._world.run_blocking(file.discard, records)
            for number in empty:
                with self._files.using(number) as file:
                    await self._world.run_blocking(file.unlink)
                self._files.forget(number)
                self._verified.forget(number)
                self._unsynced.pop(number, None)
            self._index.reclaimed(garbage, empty)

    async def _make_room(self) -> None:
        """Give back what can be given back at once, or wait for whoever is doing that."""
        await self._reclaim()
        if self._index.log_bytes() > STORE_WAL_KEPT_BYTES:
            await self._fold()
            self._index.touch()

    def _used(self) -> int:
        return self._index.bytes + self._index.blocks * HEADER_BYTES + self._index.garbage_bytes

    def _room(self) -> int:
        """Bytes this store may still take."""
        free, whole = self._files.room_bytes()
        room = free - reserve_bytes(whole, self._reserve_bytes)
        room -= self._index.log_bytes()  # to be folded into the database: as much again
        if self._capacity_bytes is not None:
            room = min(room, self._capacity_bytes - self._used())
        return room

    def _full(self) -> Full:
        return Full(f"{self._files.directory}: the block store is full")

    def page(self, after: Digest | None, limit: int) -> list[Digest]:
        """Up to `limit` digests greater than `after` in byte order."""
        return self._index.page(after, limit)

    def usage(self) -> StoreUsage:
        """Figures for status and df."""
        return StoreUsage(
            block_count=self._index.blocks,
            block_bytes=self._index.bytes,
            disk_bytes=self._used(),
            # Garbage is given back as soon as it is needed: it counts as free.
            capacity_bytes=self._index.bytes + max(self._room() + self._index.garbage_bytes, 0),
        )

    def bounded(self) -> Bounds:
        """What of it is bounded, and how full that is."""
        return {
            **self._index.bounded(),
            "garbage_bytes": [self._index.garbage_bytes, RECLAIM_BYTES_MAX],
            "segment_files": [self._files.open_count, SEGMENT_FILES_OPEN_MAX],
            "bad_blocks": [len(self._bad), BAD_BLOCKS_MAX],
            "verified_map_bytes": [self._verified.bytes, 0],
            "pinned_blocks": [len(self.pins), 0],
        }

    async def close(self) -> None:
        """Flush, so that the next start has nothing to verify, and release the files."""
        if self._failure is None:
            try:
                await self._reclaim()
                await self.sync()
                self._index.note_synced(self._active, self._index.indexed(self._active), now=True)
            except DfsError as error:
                log.info("not closed in order, the next start looks at more: %s", error)
        self._index.close()
        self._files.close()
