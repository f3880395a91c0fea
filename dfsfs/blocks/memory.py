"""The twin of `SegmentStore` in memory: for tests, simulation and nodes that store nothing.

It keeps every guarantee of `BlockStore` but survival of the process.
"""

import trio

from dfsfs.base.errors import Full, NotFound
from dfsfs.base.types import Buffer, Digest, digest_text
from dfsfs.blocks.interface import StoreUsage
from dfsfs.blocks.pins import Pins

_CAPACITY_BYTES = 1 << 62


class MemoryStore:
    """Implements `BlockStore` on a dict."""

    def __init__(self, *, capacity_bytes: int | None = None) -> None:
        self.pins = Pins()
        self._blocks: dict[Digest, bytes] = {}
        self._bytes = 0
        self._capacity_bytes = _CAPACITY_BYTES if capacity_bytes is None else capacity_bytes

    async def put(self, digest: Digest, data: Buffer) -> bool:
        """Store a block the caller has hashed."""
        await trio.lowlevel.checkpoint()
        if digest in self._blocks:
            return False
        if self._bytes + len(data) > self._capacity_bytes:
            raise Full("the memory store is full")
        self._blocks[digest] = bytes(data)
        self._bytes += len(data)
        return True

    async def get(self, digest: Digest) -> Buffer:
        """The block."""
        await trio.lowlevel.checkpoint()
        try:
            return self._blocks[digest]
        except KeyError:
            raise NotFound(f"no block {digest_text(digest)}") from None

    async def verify(self, digest: Digest) -> None:
        """Memory needs no scrubbing."""
        await self.get(digest)

    def get_nowait(self, digest: Digest) -> Buffer | None:
        """The block, or None."""
        return self._blocks.get(digest)

    async def read(self, digest: Digest, offset: int, size: int) -> Buffer:
        """A part of the block."""
        return memoryview(await self.get(digest))[offset : offset + size]

    def read_nowait(self, digest: Digest, offset: int, size: int) -> Buffer | None:
        """A part of the block, or None."""
        data = self._blocks.get(digest)
        return None if data is None else memoryview(data)[offset : offset + size]

    def has(self, digest: Digest) -> bool:
        """Whether the block is here."""
        return digest in self._blocks

    def size(self, digest: Digest) -> int | None:
        """Bytes of the block, or None."""
        data = self._blocks.get(digest)
        return None if data is None else len(data)

    async def remove(self, digest: Digest) -> bool:
        """Forget a block."""
        data = self._blocks.pop(digest, None)
        self._bytes -= len(data or b"")
        await trio.lowlevel.checkpoint()
        return data is not None

    async def sync(self) -> None:
        """As durable as it gets already."""
        await trio.lowlevel.checkpoint()

    def page(self, after: Digest | None, limit: int) -> list[Digest]:
        """Up to `limit` digests greater than `after` in byte order."""
        return sorted(digest for digest in self._blocks if after is None or digest > after)[:limit]

    def usage(self) -> StoreUsage:
        """Figures for status and df."""
        return StoreUsage(len(self._blocks), self._bytes, self._bytes, self._capacity_bytes)

    async def close(self) -> None:
        """Nothing to release."""
        await trio.lowlevel.checkpoint()
