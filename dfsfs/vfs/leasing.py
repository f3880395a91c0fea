"""Which leases a verb needs, and waiting for them with the kernel's locks in mind.

A verb validates and acts in the step in which `one` or `every` has returned: see `Leases`. While it
waits, what the kernel has locked for it is busy (`KernelView`), so that no other mount waits for
this one to forget it.
"""

import contextlib
from collections.abc import Callable

from dfsfs.base.errors import NotFound
from dfsfs.base.types import TREE_SHAPE, FileKind, InodeId
from dfsfs.namespace import Namespace
from dfsfs.vfs.interface import Leases
from dfsfs.vfs.kernel import KernelView

Inodes = tuple[InodeId, ...]


class Leasing:
    """Owned by a filesystem."""

    def __init__(self, namespace: Namespace, leases: Leases, kernel: KernelView) -> None:
        self._namespace = namespace
        self._leases = leases
        self._kernel = kernel

    def held(self, inodes: Inodes) -> bool:
        """Whether nothing has to be waited for."""
        return self._leases.held(inodes)

    async def one(self, *inodes: InodeId) -> None:
        """Return when these may be changed."""
        if not self._leases.held(inodes):
            await self._acquire(inodes)

    async def every(self, wanted: Callable[[], Inodes]) -> Inodes:
        """Return when everything that `wanted` finds may be changed, and what it is.

        It looks again after every wait: what a name meant may have changed meanwhile.
        """
        inodes = wanted()
        while not self._leases.held(inodes):
            await self._acquire(inodes)
            again = wanted()
            if set(again) <= set(inodes):
                return inodes
            inodes = again
        return inodes

    async def _acquire(self, inodes: Inodes) -> None:
        self._kernel.begin(inodes)
        try:
            await self._leases.acquire(inodes)
        finally:
            self._kernel.end(inodes)

    async def removal(self, parent: InodeId, name: bytes) -> Inodes:
        """For unlink and rmdir: the directory, and what loses the name.

        So nobody creates in it or writes it meanwhile.
        """
        return await self.every(lambda: (parent, self._namespace.lookup(parent, name).inode))

    async def move(
        self, parent: InodeId, name: bytes, new_parent: InodeId, new_name: bytes
    ) -> Inodes:
        """For rename: both directories, a directory that moves, what is replaced.

        And the shape of the tree, if a directory gets another parent: two such moves at a time
        could make a circle.
        """

        def wanted() -> Inodes:
            inodes = [parent, new_parent]
            moved = self._namespace.lookup(parent, name)
            found = [moved]
            with contextlib.suppress(NotFound):
                replaced = self._namespace.lookup(new_parent, new_name)
                inodes.append(replaced.inode)
                found.append(replaced)
            if moved.kind is FileKind.DIRECTORY:
                inodes.append(moved.inode)
            if parent != new_parent and any(value.kind is FileKind.DIRECTORY for value in found):
                inodes.append(TREE_SHAPE)
            return tuple(inodes)

        return await self.every(wanted)
