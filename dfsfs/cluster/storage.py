"""The blocks of the whole network, as if they were here: `Storage` over a store and peers."""

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

from dfsfs.base.errors import Corrupt, DfsError, NotFound
from dfsfs.base.types import Buffer, Digest, DigestKind, digest_text
from dfsfs.blocks import BlockStore, Pins, Upload
from dfsfs.cluster.cache import CacheKeeper
from dfsfs.cluster.fetch import Fetcher
from dfsfs.cluster.members import MemberTable
from dfsfs.cluster.publication import Publication
from dfsfs.cluster.replicate import ReplicatedUpload, Replicator
from dfsfs.cluster.settings import ClusterSettings
from dfsfs.net import Endpoint
from dfsfs.runtime import World

log = logging.getLogger(__name__)


class ClusterStorage:
    """What content and vfs see. Reads the own store first, then the network."""

    def __init__(
        self,
        store: BlockStore,
        pins: Pins,
        fetcher: Fetcher,
        replicator: Replicator,
        cache: CacheKeeper,
        *,
        kind: DigestKind,
    ) -> None:
        self._store = store
        self._pins = pins
        self._fetcher = fetcher
        self._replicator = replicator
        self._cache = cache
        self.kind = kind
        self.bad_blocks = 0
        self.mended_blocks = 0

    async def get(self, digest: Digest) -> Buffer:
        """All bytes of a block, verified. See `blocks.BlockSource.get`."""
        try:
            return await self._store.get(digest)
        except NotFound:
            return await self._fetcher.fetch(digest)
        except Corrupt:
            return await self._replace(digest)

    def get_nowait(self, digest: Digest) -> Buffer | None:
        """The block if it is here, verified and in the page cache."""
        return self._store.get_nowait(digest)

    async def read(self, digest: Digest, offset: int, size: int) -> Buffer:
        """Part of a block, verified. See `blocks.BlockSource.read`."""
        try:
            return await self._store.read(digest, offset, size)
        except NotFound:
            block = await self._fetcher.fetch(digest)
        except Corrupt:
            block = await self._replace(digest)
        return memoryview(block)[offset : offset + size]

    def read_nowait(self, digest: Digest, offset: int, size: int) -> Buffer | None:
        """What `read` would return if that needs no waiting."""
        return self._store.read_nowait(digest, offset, size)

    def prefetch(self, digests: Sequence[Digest]) -> None:
        """Start to fetch what is not here."""
        self._fetcher.prefetch(digests)

    def removed(self, digest: Digest) -> None:
        """The block has left this node's store."""
        self._cache.forget(digest)

    def upload(self) -> Upload:
        """Begin to store blocks."""
        return ReplicatedUpload(self._pins, self._replicator, self.kind, self._cache.put)

    async def verify(self, digest: Digest) -> bool:
        """Read this node's copy from its disk; one that is bad is replaced. Whether it was good.

        Raises:
            NotFound: there is none here. Corrupt, Unavailable: it is bad, and no other can be had.
        """
        try:
            await self._store.verify(digest)
        except Corrupt:
            await self._replace(digest)
            return False
        return True

    async def _replace(self, digest: Digest) -> Buffer:
        """The copy here is damaged: another one takes its place (promise 15)."""
        self.bad_blocks += 1
        log.warning("block %s is damaged on this disk; fetching a copy", digest_text(digest))
        try:
            block = await self._fetcher.fetch(digest)
        except NotFound as error:
            raise Corrupt(f"all copies of block {digest_text(digest)} are gone or bad") from error
        # The store refuses to serve the damaged bytes; a put of the same digest replaces them.
        try:
            await self._cache.put(digest, block)
        except DfsError as error:
            # A disk that fails or is full does not keep the reader from good bytes.
            log.warning("the copy of %s is not kept: %s", digest_text(digest), error)
        else:
            self.mended_blocks += 1
        return block


class StorageParts(NamedTuple):
    """What a storage over peers is made of; the cluster runs the first three."""

    replicator: Replicator
    cache: CacheKeeper
    fetcher: Fetcher
    storage: ClusterStorage


def assemble_storage(
    world: World,
    store: BlockStore,
    pins: Pins,
    endpoint: Endpoint,
    members: MemberTable,
    publication: Publication,
    settings: ClusterSettings,
    *,
    is_unreferenced: Callable[[Digest], bool],
) -> StorageParts:
    """Make the storage of a node, and its parts."""
    replicator = Replicator(
        world,
        store,
        endpoint,
        members,
        publication,
        copies=settings.copies,
        concern=settings.concern,
        strict=settings.strict,
    )
    cache = CacheKeeper(
        store,
        pins,
        endpoint,
        members,
        replicator,
        copies=settings.copies,
        bytes_max=settings.cache_bytes_max,
        is_unreferenced=is_unreferenced,
    )
    fetcher = Fetcher(
        world,
        store,
        endpoint,
        members,
        timeout_s=settings.fetch_timeout_s,
        keeps=cache.keeps,
        kept=cache.kept,
    )
    storage = ClusterStorage(store, pins, fetcher, replicator, cache, kind=settings.kind)
    return StorageParts(replicator, cache, fetcher, storage)
