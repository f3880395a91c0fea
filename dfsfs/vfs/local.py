"""The simplest publication, facts and invalidator: a node alone, a filesystem without a mount."""

from collections.abc import Awaitable, Callable, Collection, Sequence

from dfsfs.base.types import ContentRef, DigestKind, InodeId
from dfsfs.content import content_key
from dfsfs.vfs.interface import Space


class LocalPublication:
    """Everything is visible at once, and durable when the local disk has it."""

    def __init__(self, sync: Callable[[], Awaitable[None]]) -> None:
        """`sync` flushes the block store, then the database."""
        self._sync = sync

    async def visible(self, position: int) -> None:
        """Nobody else looks."""

    async def durable(self, position: int) -> None:
        """Flush the local disk."""
        await self._sync()


class NoLeases:
    """Nobody else changes anything."""

    def held(self, inodes: Sequence[InodeId]) -> bool:
        """Always."""
        return True

    async def acquire(self, inodes: Sequence[InodeId]) -> None:
        """Never needed."""


NO_LEASES = NoLeases()


class NoDrafts:
    """Nobody else looks."""

    elsewhere: Collection[InodeId] = ()

    def begin(self, inode: InodeId) -> None:
        """Nobody to tell."""

    def end(self, inode: InodeId) -> bool:
        """It never was one."""
        return False

    def is_own(self, inode: InodeId) -> bool:
        """Never: waiting costs nothing."""
        return False

    def is_elsewhere(self, inode: InodeId) -> bool:
        """Never."""
        return False

    async def settled(self, inodes: Sequence[InodeId]) -> None:
        """Always."""


NO_DRAFTS = NoDrafts()


class LocalFacts:
    """One node holds everything."""

    def __init__(self, kind: DigestKind, space: Callable[[], Space]) -> None:
        self._kind = kind
        self._space = space

    async def key_of(self, content: ContentRef) -> str:
        """The digest of the tree's root block, and the size."""
        return content_key(self._kind, content)

    async def replicas(self, content: ContentRef) -> str:
        """One."""
        return "1"

    def space(self) -> Space:
        """What the store says."""
        return self._space()

    def has_room(self) -> bool:
        """The store knows best."""
        return True


class NoKernel:
    """The invalidator of a filesystem without a mount."""

    def entry(self, directory: InodeId, name: bytes, *, busy: bool) -> None:
        """Nothing to forget."""

    def attributes(self, inode: InodeId) -> bool:
        """Nothing to forget."""
        return True

    def pages(self, inode: InodeId, *, busy: bool) -> bool:
        """Nothing to forget."""
        return True

    def busy(self, inode: InodeId) -> None:
        """Nothing was asked for."""

    def pages_pending(self, inode: InodeId) -> bool:
        """Nothing ever is."""
        return False

    @property
    def waiting(self) -> int:
        """Nothing ever does."""
        return 0

    async def settled(self) -> None:
        """Nothing to wait for."""
