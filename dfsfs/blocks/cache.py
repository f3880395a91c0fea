"""A bounded cache of whole blocks in front of any `BlockSource`: least recently used goes first.

A decorator: it looks like its source, and never changes what the source would return. Useful where
the source is slower than a copy from the page cache; a `SegmentStore` needs none. Loop only.
"""

from collections.abc import Sequence

import trio

from dfsfs.base.limits import BLOCK_CACHE_BYTES_MAX
from dfsfs.base.types import Buffer, Digest
from dfsfs.blocks.interface import BlockSource


class BlockCache:
    """Implements `BlockSource`; `bytes` never exceeds `bytes_max`."""

    def __init__(self, source: BlockSource, *, bytes_max: int = BLOCK_CACHE_BYTES_MAX) -> None:
        self._source = source
        self._bytes_max = bytes_max
        self._blocks: dict[Digest, Buffer] = {}  # least recently used first
        self.bytes = 0
        self.hits = 0
        self.misses = 0

    async def get(self, digest: Digest) -> Buffer:
        """The block, from here or from the source."""
        data = self._find(digest)
        if data is not None:
            await trio.lowlevel.checkpoint()
            return data
        self.misses += 1
        return self._keep(digest, await self._source.get(digest))

    def get_nowait(self, digest: Digest) -> Buffer | None:
        """The block if it is here, or the source has it at hand."""
        data = self._find(digest)
        return self._source.get_nowait(digest) if data is None else data

    async def read(self, digest: Digest, offset: int, size: int) -> Buffer:
        """A part of the block; the whole of it is kept."""
        return memoryview(await self.get(digest))[offset : offset + size]

    def read_nowait(self, digest: Digest, offset: int, size: int) -> Buffer | None:
        """A part of the block if it is here, or the source has it at hand."""
        data = self._find(digest)
        if data is None:
            return self._source.read_nowait(digest, offset, size)
        return memoryview(data)[offset : offset + size]

    def prefetch(self, digests: Sequence[Digest]) -> None:
        """Pass the hint on for what is not here."""
        self._source.prefetch([digest for digest in digests if digest not in self._blocks])

    def _find(self, digest: Digest) -> Buffer | None:
        data = self._blocks.pop(digest, None)
        if data is not None:
            self._blocks[digest] = data
            self.hits += 1
        return data

    def _keep(self, digest: Digest, data: Buffer) -> Buffer:
        if len(data) <= self._bytes_max and digest not in self._blocks:
            self._blocks[digest] = data
            self.bytes += len(data)
            while self.bytes > self._bytes_max:
                self.bytes -= len(self._blocks.pop(next(iter(self._blocks))))
        return data
