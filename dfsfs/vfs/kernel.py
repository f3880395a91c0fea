"""What the kernel of this mount knows of the tree, and what it must forget.

Entries, attributes and pages are cached by the kernel for a long time (`limits.KERNEL_CACHE_S`), so
every change that did not come through this mount has to be told to it. This module decides what;
an `Invalidator` does it.

Two facts make that exact and free of deadlocks. Lookup counts say which inodes the kernel can have
anything cached of: the rest costs nothing. And while a handler of this mount waits for others, the
kernel holds the lock of the directory or file it works on, so it cannot obey an invalidation there
until the handler has returned; two mounts that waited for each other's would wait for ever.
So invalidations of a busy inode are asked for, and not waited for; names in such a directory are
looked up again before they are used, or not cached for a while (`is_contended`).

Sync except `invalidated`; called from the loop only.
"""

from collections.abc import Callable, Iterable, Sequence

import trio

from dfsfs.base.errors import DfsError
from dfsfs.base.limits import CONTENDED_MAX, CONTENDED_S, INVALIDATIONS_MAX
from dfsfs.base.types import ROOT_INODE, InodeId
from dfsfs.namespace import Change, Namespace
from dfsfs.runtime import Bounds
from dfsfs.vfs.interface import Invalidator
from dfsfs.vfs.local import NoKernel

EntryName = tuple[InodeId, bytes]


class KernelView:
    """Owned by one filesystem; one for each mount."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace
        self._invalidator: Invalidator = NoKernel()
        self._lookups: dict[InodeId, int] = {}
        self._busy: dict[InodeId, int] = {}
        self._contended: dict[InodeId, float] = {}
        self.foreign_changes = 0  # grows whenever values fetched before may be out of date

    def attach(self, invalidator: Invalidator) -> None:
        """A kernel that knows nothing yet but the root."""
        self._invalidator = invalidator
        self._lookups = {ROOT_INODE: 1}

    def bounded(self) -> Bounds:
        """What of it is bounded, and how full that is."""
        return {
            "kernel_inodes": [len(self._lookups), 0],
            "contended_directories": [len(self._contended), CONTENDED_MAX],
            "invalidations": [self._invalidator.waiting, INVALIDATIONS_MAX],
        }

    # -- what the kernel knows ----------------------------------------------------------------

    def remember(self, inode: InodeId) -> None:
        """The kernel is about to be given this inode once more."""
        self._lookups[inode] = self._lookups.get(inode, 0) + 1

    def forget(self, inode: InodeId, count: int) -> None:
        """The kernel gave back `count` of its lookups."""
        left = self._lookups.get(inode, 0) - count
        if left > 0 or inode == ROOT_INODE:
            self._lookups[inode] = max(left, 1)
        else:
            self._lookups.pop(inode, None)

    def knows(self, inode: InodeId) -> bool:
        """Whether the kernel can have anything of this inode cached."""
        return inode in self._lookups

    # -- handlers that wait -------------------------------------------------------------------

    def begin(self, inodes: Iterable[InodeId]) -> None:
        """A handler that works on these is about to wait."""
        for inode in inodes:
            count = self._busy.get(inode, 0)
            self._busy[inode] = count + 1
            if not count:
                self._invalidator.busy(inode)

    def end(self, inodes: Iterable[InodeId]) -> None:
        """It does not wait any more."""
        for inode in inodes:
            left = self._busy[inode] - 1
            if left:
                self._busy[inode] = left
            else:
                del self._busy[inode]

    # -- what it must forget ------------------------------------------------------------------

    def changed(
        self,
        change: Change,
        *,
        expected: Iterable[EntryName] | None,
        keeps_pages: Callable[[InodeId], bool],
        unknown: Callable[[InodeId], None],
    ) -> None:
        """Have the kernel forget what a commit changed.

        `expected`: entries the kernel changes by itself, because its own call made the commit; None
        if something else did. `keeps_pages`: whether a file's pages must stay for now. `unknown`:
        called for files whose old size the kernel may be about to learn.
        """
        known, busy = self._lookups, self._busy
        for directory, name in change.entries:
            if directory in known and (expected is None or (directory, name) not in expected):
                if directory in busy:
                    self._note_contended(directory)
                self._invalidator.entry(directory, name, busy=directory in busy)
        for directory in change.directories:
            self._forget_directory(directory)
        if expected is not None:
            return
        self.foreign_changes += 1
        for inode in change.attributes:
            if inode in known and inode not in change.contents:
                self._invalidator.attributes(inode)
        for inode in change.contents:
            if inode in known:
                if keeps_pages(inode):
                    told = self._invalidator.attributes(inode)
                else:
                    told = self._invalidator.pages(inode, busy=inode in busy)
                if not told:
                    unknown(inode)

    def _note_contended(self, directory: InodeId) -> None:
        self._contended.pop(directory, None)
        self._contended[directory] = trio.current_time() + CONTENDED_S
        if len(self._contended) > CONTENDED_MAX:
            del self._contended[next(iter(self._contended))]

    def is_contended(self, directory: InodeId) -> bool:
        """Whether names here were lately changed elsewhere while a handler was waiting in it.

        Then the kernel could not be made to forget them at once, and should not keep others.
        """
        if not self._contended:
            return False
        return self._contended.get(directory, 0.0) > trio.current_time()

    def _forget_directory(self, directory: InodeId) -> None:
        """More changed below than names can tell: drop the directory's own entry with all below.

        The names it shows now are dropped one by one, which also reaches the root's.
        """
        if directory not in self._lookups:
            return
        busy = directory in self._busy
        self._invalidator.attributes(directory)
        try:
            for name, _inode, _kind in self._namespace.names(directory):
                self._invalidator.entry(directory, name, busy=busy)
            if directory != ROOT_INODE:
                parent = self._namespace.parent(directory)
                name = self._namespace.path(directory).rpartition(b"/")[2]
                self._invalidator.entry(parent, name, busy=parent in self._busy)
        except DfsError:
            return  # it is gone: its own entry was among those that changed

    def pages_pending(self, inode: InodeId) -> bool:
        """Whether the kernel may still have old bytes of a file."""
        return self._invalidator.pages_pending(inode)

    def attributes_changed(self, inode: InodeId) -> None:
        """This mount changed attributes in a way the kernel does not expect."""
        self._invalidator.attributes(inode)

    def readers_gone(self, inode: InodeId, *, only_grown: bool) -> None:
        """A change is not kept back for its readers any more.

        `only_grown`: bytes were appended, and `invalidated` waits until its pages are dropped.
        """
        if only_grown:
            self._invalidator.pages(inode, busy=inode in self._busy)
        else:
            self._invalidator.attributes(inode)

    def pages_changed(self, inode: InodeId) -> None:
        """This mount changed bytes in a way the kernel does not expect."""
        self._invalidator.pages(inode, busy=True)

    async def invalidated(self, changes: Sequence[Change]) -> None:
        """Return when the kernel has forgotten what `changes` changed, busy inodes excepted."""
        if changes:
            await self._invalidator.settled()
