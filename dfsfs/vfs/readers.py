"""A change from elsewhere waits a moment for those who read the old version of a file here.

The kernel has one size for each inode, and clips what it reads from its page cache with it. A
reader in the middle of a version would see it end where the new one does (promise 6). So while
somebody is in the middle, the old size stays, and the change is not acknowledged: its writer waits
in close(2), as it would wait for the inode's lock on a local filesystem. Not for long, and not
twice for the same handle: a program that keeps a file open without reading holds nobody up.

Later opens of such a file bypass the page cache (`Files`), where nothing is clipped.
Owned by the filesystem; sync but for `settled`.
"""

import math
from collections.abc import Callable, Iterable

import trio

from dfsfs.base.limits import READER_PATIENCE_S, READER_SETTLE_S
from dfsfs.base.types import InodeId
from dfsfs.blocks import Storage
from dfsfs.content import starts_with
from dfsfs.runtime import World
from dfsfs.vfs.handles import FileHandle, OpenFile

END_GRACE_S = 0.05  # the kernel reads ahead: from its last request until the program has the bytes


class Readers:
    """Files whose present size the kernel is not told yet."""

    def __init__(self, world: World, storage: Storage) -> None:
        self._world = world
        self._storage = storage
        self._held: dict[InodeId, OpenFile] = {}
        self._grown: dict[InodeId, list[int]] = {}  # size still shown, changes on their way
        self._released = trio.lowlevel.ParkingLot()
        self.waits = 0

    def hold(self, file: OpenFile) -> None:
        """The content was changed elsewhere: keep its size back if somebody is in the middle."""
        now_s, grows = self._world.now_s(), file.content.size > file.cached.size
        for handle in file.handles:
            # Who is not waited for any more may still be shown what was only appended.
            may_follow = grows and not handle.direct and handle.is_reading(now_s)
            if may_follow or self._patience_s(handle) > 0:
                self._held[file.inode] = file

    def advance_later(
        self, file: OpenFile, nursery: trio.Nursery, advance: Callable[[OpenFile], None]
    ) -> None:
        """Call `advance` when those who are at its end will have seen it; once, however often."""
        waiting = file.settles_at_s is not None
        file.settles_at_s = self._world.now_s() + READER_SETTLE_S
        if not waiting:
            nursery.start_soon(self._advance_later, file, advance)

    async def _advance_later(self, file: OpenFile, advance: Callable[[OpenFile], None]) -> None:
        # Every further change puts it off, and tries by itself (`Files.changed`).
        while True:
            wait_s = (file.settles_at_s or 0.0) - self._world.now_s()
            if wait_s <= 0:
                break
            await trio.sleep(wait_s)
        file.settles_at_s = None
        advance(file)

    def size_of(self, file: OpenFile) -> int | None:
        """The size that is still shown of a file that is held back."""
        if file.inode in self._grown:
            return self._grown[file.inode][0]
        held = self._held and self._held.get(file.inode) is file
        return file.cached.size if held else None

    def hold_growth(self, file: OpenFile) -> None:
        """Bytes were appended elsewhere: keep its size until its pages have been dropped.

        The page with its old end is zeros from there on: who was shown the new size before the
        kernel dropped that page would read them. Until `pages_dropped`.
        """
        self._grown.setdefault(file.inode, [file.cached.size, 0])[1] += 1

    def pages_dropped(self, inodes: Iterable[InodeId]) -> list[InodeId]:
        """What `hold_growth` waited for, of a change to these; whose new size may be shown now."""
        shown = []
        for inode in inodes:
            if inode in self._grown:
                self._grown[inode][1] -= 1
                if not self._grown[inode][1]:
                    del self._grown[inode]
                    shown.append(inode)
        return shown

    def released(self) -> None:
        """A handle was closed, or came to the end."""
        if self._held:
            self._released.unpark_all()

    async def settled(self, inodes: Iterable[InodeId]) -> list[InodeId]:
        """Wait for the readers of these; returns the files whose new size may be shown now."""
        held = [inode for inode in inodes if inode in self._held]
        if held:
            self.waits += 1
            with trio.move_on_after(READER_PATIENCE_S):
                for inode in held:
                    # Another change of the same file may have ended the wait for its readers.
                    file = self._held.get(inode)
                    if file is not None and not await self._has_only_grown(file):
                        await self._wait(file)
            for inode in held:
                file = self._held.pop(inode, None)
                for handle in () if file is None or self.is_growing(inode) else file.handles:
                    handle.patient = False
        return held

    async def _has_only_grown(self, file: OpenFile) -> bool:
        """Whether bytes were appended and none changed; then its readers may have the new ones."""
        content, old = file.content, file.cached
        if content.size < old.size or not await starts_with(self._storage, content, old):
            return False
        if file.content is not content or file.cached is not old or file.buffer is not None:
            return False  # it changed again meanwhile
        self.hold_growth(file)
        file.cached = content
        return True

    def is_growing(self, inode: InodeId) -> bool:
        """Whether `hold_growth` keeps its size back."""
        return inode in self._grown

    async def _wait(self, file: OpenFile) -> None:
        while (wait_s := max(map(self._patience_s, file.handles), default=0.0)) > 0:
            with trio.move_on_after(wait_s):
                await self._released.park()

    def _patience_s(self, handle: FileHandle) -> float:
        """How long it may still be in the middle of what the page cache has."""
        if handle.direct or not handle.started or not handle.patient:
            return 0.0
        if handle.end_s is None:
            return math.inf
        return handle.end_s + END_GRACE_S - self._world.now_s()
