"""`Storage` on one store alone: a file system without peers.

Hashing happens here: on the loop up to `INLINE_HASH_BYTES_MAX`, in a thread above. What is put is
pinned until its upload ends. Loop only.
"""

from collections.abc import Iterable, Sequence

import trio

from dfsfs.base.limits import INLINE_HASH_BYTES_MAX, UPLOAD_BYTES_MAX
from dfsfs.base.types import Buffer, Digest, DigestKind, digest_of
from dfsfs.blocks.budget import ByteBudget
from dfsfs.blocks.interface import BlockStore
from dfsfs.runtime import World


class LocalStorage:
    """Implements `Storage`; owned by the node, which also owns the store."""

    def __init__(
        self,
        world: World,
        store: BlockStore,
        *,
        kind: DigestKind = DigestKind.BLAKE3,
        upload_bytes_max: int = UPLOAD_BYTES_MAX,
    ) -> None:
        self._world = world
        self._store = store
        self._kind = kind
        self._budget = ByteBudget(upload_bytes_max)
        self.pins = store.pins

    async def get(self, digest: Digest) -> Buffer:
        """The block, or `NotFound`."""
        return await self._store.get(digest)

    def get_nowait(self, digest: Digest) -> Buffer | None:
        """The block if that needs no waiting."""
        return self._store.get_nowait(digest)

    async def read(self, digest: Digest, offset: int, size: int) -> Buffer:
        """A part of the block."""
        return await self._store.read(digest, offset, size)

    def read_nowait(self, digest: Digest, offset: int, size: int) -> Buffer | None:
        """A part of the block if that needs no waiting."""
        return self._store.read_nowait(digest, offset, size)

    def prefetch(self, digests: Sequence[Digest]) -> None:
        """Nothing to do: blocks written in order lie in order, the kernel reads ahead by itself.

        (posix_fadvise WILLNEED of 8 MiB keeps the caller for 0.5 ms: not for the loop.)
        """

    def upload(self) -> "LocalUpload":
        """Begin to store blocks."""
        return LocalUpload(self)

    async def sync(self) -> None:
        """Return when every block put so far is on stable storage."""
        await self._store.sync()

    async def put_pinned(self, data: Buffer, pinned: list[Digest]) -> Digest:
        """Hash, pin (noted in `pinned`) and store one block."""
        size = len(data)
        async with self._budget.hold(size):
            if size <= INLINE_HASH_BYTES_MAX:
                digest = digest_of(self._kind, data)
            else:
                digest = await self._world.run_blocking(digest_of, self._kind, data)
            self.pins.pin(digest)
            pinned.append(digest)
            await self._store.put(digest, data)
        return digest


class LocalUpload:
    """Implements `Upload`: with no peers a block is settled once it is stored."""

    def __init__(self, storage: LocalStorage) -> None:
        self._storage = storage
        self._pinned: list[Digest] = []
        self._putting: list[Digest] = []  # pinned as well; of those that failed, too

    async def put(self, data: Buffer) -> Digest:
        """Hash and store a block; it is pinned until `close`."""
        digest = await self._storage.put_pinned(data, self._putting)
        self._putting.remove(digest)
        self._pinned.append(digest)
        return digest

    async def settle(self) -> None:
        """This node is every node: what was put is held by all that can be reached."""
        await trio.lowlevel.checkpoint()

    def keep(self, digests: Iterable[Digest]) -> None:
        """End the protection of all others that were put."""
        if self._storage.pins.looked_at:
            return
        wanted = set(digests)
        self._unpin([digest for digest in self._pinned if digest not in wanted])
        self._pinned = [digest for digest in self._pinned if digest in wanted]

    def close(self) -> None:
        """End the protection from garbage collection. Idempotent."""
        self._unpin([*self._pinned, *self._putting])
        self._pinned, self._putting = [], []

    def _unpin(self, digests: Sequence[Digest]) -> None:
        for digest in digests:
            self._storage.pins.unpin(digest)
