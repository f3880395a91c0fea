"""Files being made: when their close has to wait, and what to do before one is shown.

A file is a draft from the call that makes it until the first close of it: see `Drafts`.
"""

from collections.abc import Awaitable, Callable, Iterable

from dfsfs.base.errors import NotFound
from dfsfs.base.types import InodeId
from dfsfs.namespace import Inode, Namespace
from dfsfs.vfs.handles import HandleTable
from dfsfs.vfs.interface import Drafts, Publication
from dfsfs.vfs.kernel import KernelView


class Drafting:
    """Owned by a filesystem."""

    def __init__(
        self,
        namespace: Namespace,
        drafts: Drafts,
        kernel: KernelView,
        handles: HandleTable,
        publication: Publication,
    ) -> None:
        self._namespace = namespace
        self._drafts = drafts
        self._kernel = kernel
        self._handles = handles
        self._publication = publication

    # -- made here ------------------------------------------------------------------------------

    def begin(self, inode: InodeId) -> None:
        """It was made in this step, and somebody has it open."""
        self._drafts.begin(inode)

    def all_own(self, inodes: Iterable[InodeId]) -> bool:
        """Whether nobody needs to wait for a change of these."""
        return all(map(self._drafts.is_own, inodes))

    def has(self, number: int) -> bool:
        """Whether a close of this handle has to wait for what was set of its file."""
        return self._drafts.is_own(self._handles.file(number).file.inode)

    async def flush(self, number: int, flush: Callable[[int], Awaitable[None]]) -> None:
        """A close(2): `flush` commits what is written; what was set is visible as well."""
        file = self._handles.file(number).file
        waits = self._drafts.end(file.inode) and file.buffer is None
        await flush(number)
        if waits:
            busy = (file.inode,)
            self._kernel.begin(busy)
            try:
                await self._publication.visible(self._namespace.position)
            finally:
                self._kernel.end(busy)

    def linked(self, inode: InodeId) -> None:
        """It is about to have a second name."""
        self._drafts.end(inode)

    def released(self, number: int) -> None:
        """The last close of a handle, which may not have been flushed."""
        self._drafts.end(self._handles.file(number).file.inode)

    # -- made elsewhere -------------------------------------------------------------------------

    def is_elsewhere(self, inode: InodeId) -> bool:
        """Whether it must be `settled` before it is shown."""
        return self._drafts.is_elsewhere(inode)

    async def lookup(
        self, lookup: Callable[[InodeId, bytes], Inode], parent: InodeId, name: bytes
    ) -> Inode:
        """What `lookup` finds, when all that was set of it elsewhere is here."""
        while self._drafts.is_elsewhere(inode := lookup(parent, name).inode):
            await self._settled(parent, [inode])
        return lookup(parent, name)

    async def settle_directory(self, number: int) -> None:
        """Return when all that was set elsewhere of what this directory shows is here."""
        if elsewhere := self._drafts.elsewhere:
            directory = self._handles.directory(number).inode
            drafts = [inode for inode in elsewhere if self._is_in(directory, inode)]
            if drafts:
                await self._settled(directory, drafts)

    def _is_in(self, directory: InodeId, inode: InodeId) -> bool:
        try:
            return self._namespace.parent(inode) == directory  # it has one name: see `linked`
        except NotFound:
            return False

    async def _settled(self, directory: InodeId, inodes: list[InodeId]) -> None:
        # The kernel has locked the directory: nobody waits for it to forget names there.
        busy = (directory,)
        self._kernel.begin(busy)
        try:
            await self._drafts.settled(inodes)
        finally:
            self._kernel.end(busy)
