"""What the rest of the house may know about where blocks are: guarantees in words.

`BlockStore` is one node's own disk (or its memory twin). `Storage` is what `content` and `vfs` see:
the whole network's blocks as if they were here. `cluster` implements `Storage` on top of a
`BlockStore` and the peers; `blocks.LocalStorage` implements it on a store alone.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from dfsfs.base.types import Buffer, Digest
from dfsfs.blocks.pins import Pins


class BlockSource(Protocol):
    """Verified blocks by digest."""

    async def get(self, digest: Digest) -> Buffer:
        """All bytes of a block; they match `digest`.

        The result must not be changed and may be shared.

        Raises:
            NotFound: nobody has it. Unavailable: whoever has it cannot be reached in time.
            Corrupt: only bad copies exist.
        """
        ...

    def get_nowait(self, digest: Digest) -> Buffer | None:
        """The block if that needs no waiting (in memory, or verified and in the page cache)."""
        ...

    async def read(self, digest: Digest, offset: int, size: int) -> Buffer:
        """Bytes [offset, offset + size) of a block, clipped at its end; raises as `get` does.

        Cheaper than `get` when the block was verified before and its source can read a part.
        """
        ...

    def read_nowait(self, digest: Digest, offset: int, size: int) -> Buffer | None:
        """What `read` would return if that needs no waiting."""
        ...

    def prefetch(self, digests: Sequence[Digest]) -> None:
        """A hint that these will be wanted soon, in this order. Never fails, never waits."""
        ...


class Upload(Protocol):
    """Blocks being made safe together, before a name refers to them.

    Blocks put here are kept from garbage collection until `close`. Bounded: `put` waits while more
    than `limits.UPLOAD_BYTES_MAX` of the node are on their way.
    """

    async def put(self, data: Buffer) -> Digest:
        """Hash `data` (in a thread), store it on this node, start copying it to its holders.

        `data` belongs to the upload until `put` returns. Idempotent for equal data.

        Raises:
            Full: this node has no space.
        """
        ...

    async def settle(self) -> None:
        """Wait until every block put so far is held by as many nodes as the write concern asks.

        Or by all that can be reached (promise 8); not necessarily on stable storage.

        Raises:
            Unavailable: the write concern is strict and cannot be met.
        """
        ...

    def keep(self, digests: Iterable[Digest]) -> None:
        """End the protection of all others that were put; what is being put stays protected.

        For an upload of any length: what is in a tree that collection is told of as being in use
        needs no protection here. Does nothing while a collection is looking.
        """
        ...

    def close(self) -> None:
        """End the protection from garbage collection. Idempotent."""
        ...


class Storage(BlockSource, Protocol):
    """The network's blocks, as content and vfs see them."""

    def upload(self) -> Upload:
        """Begin to store blocks."""
        ...


@dataclass(frozen=True, slots=True)
class StoreUsage:
    """Bytes of one store."""

    block_count: int
    block_bytes: int
    disk_bytes: int
    capacity_bytes: int  # block_bytes that would fit if nothing else grew


class BlockStore(Protocol):
    """One node's own blocks. Survives kill -9 once `put` returned, power loss once `sync` did."""

    @property
    def pins(self) -> Pins:
        """What garbage collection must leave alone; uploads pin, collectors ask."""
        ...

    async def put(self, digest: Digest, data: Buffer) -> bool:
        """Store a block the caller has hashed; True if it was new. Visible to `get` at once.

        Raises:
            Full: no space. Nothing that was stored before is harmed.
        """
        ...

    async def get(self, digest: Digest) -> Buffer:
        """The block, verified when it is read for the first time since start.

        Raises:
            NotFound: not here.
            Corrupt: the bytes on disk do not match; the store will not serve them.
        """
        ...

    def get_nowait(self, digest: Digest) -> Buffer | None:
        """The block if it is verified already and its bytes are in the page cache; never blocks."""
        ...

    async def read(self, digest: Digest, offset: int, size: int) -> Buffer:
        """Bytes [offset, offset + size) of the block, clipped at its end; raises as `get` does.

        The block as a whole is verified first if it was not yet since start.
        """
        ...

    def read_nowait(self, digest: Digest, offset: int, size: int) -> Buffer | None:
        """What `read` would return, if the block is verified and those bytes are in the page cache.

        Never blocks.
        """
        ...

    async def verify(self, digest: Digest) -> None:
        """Read the block from the disk itself and compare it with its digest: for scrubbing.

        Raises:
            NotFound, Corrupt: as `get` does.
        """
        ...

    def has(self, digest: Digest) -> bool:
        """Whether the block is here, as far as the index knows. One index look-up."""
        ...

    def size(self, digest: Digest) -> int | None:
        """Bytes of the block, or None if it is not here."""
        ...

    async def remove(self, digest: Digest) -> bool:
        """Forget a block and give its space back; False if it was not here.

        Atomic: the block is gone from the index before the first checkpoint, so a caller that looks
        at its pins and calls this in one step cannot lose a block that is pinned in between.
        """
        ...

    async def sync(self) -> None:
        """Return when everything put before the call is on stable storage.

        Concurrent calls share one flush.
        """
        ...

    def page(self, after: Digest | None, limit: int) -> list[Digest]:
        """Up to `limit` digests greater than `after` in byte order: a stable walk of the store."""
        ...

    def usage(self) -> StoreUsage:
        """Figures for status and df; cheap."""
        ...

    async def close(self) -> None:
        """Release files. Nothing durable depends on it."""
        ...
