"""Open files: open, read, write, flush, fsync, release, truncate.

A file that nobody writes is read from its content ref. The first write or truncation gives it a
`WriteBuffer`, which all its handles share; closing a writable handle (flush) commits it:

    write_back     blocks are in the store, content ref made     under the buffer's lock
    settle         blocks are on as many nodes as promised       writing goes on meanwhile
    namespace      one transaction names the new content         sync
    publication    every connected mount has seen it             writing goes on meanwhile

fsync does the same and waits for stable storage. Errors come out of flush and fsync; bytes that
could not be stored stay dirty and are tried again until the last handle is released.

A file that lost its last name is not committed any more: its bytes stay here until it is released.
"""

import dataclasses
import logging
import os
from collections.abc import Awaitable, Iterator
from typing import NamedTuple

import trio

from dfsfs.base.errors import BadHandle, DfsError, Invalid, IsDirectory, NoAttribute
from dfsfs.base.limits import RELATIME_S, UNFOLDED_LEAVES_MAX
from dfsfs.base.types import Buffer, ContentRef, FileKind, InodeId
from dfsfs.base.units import NS_PER_S
from dfsfs.blocks import Storage
from dfsfs.content import ContentReader
from dfsfs.namespace import AttributeChanges, Inode, Namespace
from dfsfs.runtime import World
from dfsfs.vfs.attributes import SUID_SGID, Caller, without_privileges
from dfsfs.vfs.budget import WriteBudget
from dfsfs.vfs.buffer import WriteBuffer
from dfsfs.vfs.handles import FileHandle, HandleTable, OpenFile
from dfsfs.vfs.interface import Publication
from dfsfs.vfs.kernel import KernelView

log = logging.getLogger(__name__)

CAPABILITY = b"security.capability"
_RELATIME_NS = int(RELATIME_S) * NS_PER_S


class Opened(NamedTuple):
    """What open(2) gives the kernel."""

    number: int
    direct: bool  # bypass the page cache
    keep_pages: bool  # what the page cache has of the file is right


class Files:
    """Owned by a filesystem; `nursery` runs its background stores."""

    def __init__(
        self,
        world: World,
        namespace: Namespace,
        storage: Storage,
        publication: Publication,
        *,
        kernel: KernelView,
        handles: HandleTable,
        budget: WriteBudget,
        shift: int,
    ) -> None:
        self._namespace = namespace
        self._storage = storage
        self._world = world
        self._publication = publication
        self._kernel = kernel
        self._handles = handles
        self._budget = budget
        self._shift = shift
        self.atime = True  # off for a mount with `noatime`
        self._open: dict[InodeId, OpenFile] = {}
        self._nursery: trio.Nursery | None = None

    def start(self, nursery: trio.Nursery) -> None:
        """From now on files can be written."""
        self._nursery = nursery

    # -- open and close -----------------------------------------------------------------------

    async def open(self, value: Inode, flags: int, caller: Caller) -> Opened:
        """Open a regular file that exists; truncates it if `flags` say so.

        Raises:
            IsDirectory: it is one. Invalid: neither file nor directory.
        """
        opened = self.add(value, flags, caller, privileged=True)
        if flags & os.O_TRUNC:
            handle = self._handles.file(opened.number)
            try:
                if value.mode & SUID_SGID and caller.uid != 0:
                    self._drop_privileges(handle)
                await self._resize(handle.file, 0)
            except BaseException:
                self._discard(opened.number)
                raise
        return opened

    def add(self, value: Inode, flags: int, caller: Caller, *, privileged: bool) -> Opened:
        """Number a handle of a file that exists or was just created."""
        if value.kind is not FileKind.REGULAR:
            raise (IsDirectory if value.kind is FileKind.DIRECTORY else Invalid)("not a file")
        file = self._hold(value, privileged=privileged)
        handle = FileHandle(file, flags, root=caller.uid == 0)
        # A write through the page cache costs a second request, for security.capability. A handle
        # that can only write cannot be mapped, so it can do without the page cache (decision 7).
        direct = handle.writable and not handle.readable
        handle.direct = direct
        try:
            number = self._handles.add_file(handle)
        except DfsError:
            self._let_go(file)
            raise
        return Opened(number, direct, not self._kernel.pages_pending(value.inode))

    def _hold(self, value: Inode, *, privileged: bool) -> OpenFile:
        file = self._open.get(value.inode)
        if file is None:
            file = OpenFile(value.inode, value.content, privileged=privileged)
            file.unlinked = value.nlink == 0
            self._open[value.inode] = file
        file.handles += 1
        return file

    def _discard(self, number: int) -> None:
        """Undo an open that failed."""
        self._let_go(self._handles.remove_file(number).file)

    async def release(self, number: int) -> None:
        """The last close of a handle; commits what a mapping wrote after the last flush."""
        file = self._handles.remove_file(number).file
        buffer = file.buffer
        if file.handles == 1 and buffer is not None and not file.unlinked:
            try:
                await self._commit(file)
            except DfsError as error:
                if file.buffer is buffer and file.committed < buffer.sequence:
                    log.error(
                        "%r: %d bytes written were lost: %s",
                        self._namespace.path(file.inode),
                        buffer.size,
                        error,
                    )
        self._let_go(file)

    def _let_go(self, file: OpenFile) -> None:
        file.handles -= 1
        if file.handles:
            return
        if file.buffer is not None:
            self._give_up(file)
        del self._open[file.inode]
        if file.unlinked:
            self._namespace.drop_orphan(file.inode)

    def _give_up(self, file: OpenFile) -> None:
        """Forget what is not committed."""
        assert file.buffer is not None
        file.buffer.close()
        file.buffer = None
        if not file.unlinked:
            self._kernel.pages_changed(file.inode)

    # -- reading ------------------------------------------------------------------------------

    async def read(self, number: int, offset: int, size: int) -> Buffer:
        """Bytes [offset, offset + size), clipped at the end of the file.

        Raises:
            BadHandle: not open for reading.
        """
        handle = self._handles.file(number)
        file = handle.file
        if file.atime_due:
            self._touch_atime(file)
        if file.buffer is not None:
            return await self._waiting(file.inode, file.buffer.read(offset, size))
        reader = handle.reader
        if reader is None or handle.content is not file.content:
            handle.content = file.content
            reader = handle.reader = ContentReader(self._storage, file.content)
        data = reader.read_nowait(offset, size)
        if data is None:
            data = await self._waiting(file.inode, reader.read(offset, size))
        return data

    async def _waiting(self, inode: InodeId, read: Awaitable[Buffer]) -> Buffer:
        # The kernel has locked the pages being read.
        busy = (inode,)
        self._kernel.begin(busy)
        try:
            return await read
        finally:
            self._kernel.end(busy)

    def _touch_atime(self, file: OpenFile) -> None:
        file.atime_due = False
        if self.atime and not file.unlinked:
            self.touch_atime(self._namespace.get(file.inode))

    def touch_atime(self, value: Inode) -> None:
        """Note that an inode was read, as seldom as Linux does with `relatime`."""
        now = self._world.wall_ns()
        atime = value.atime_ns
        if self.atime and (
            atime <= value.mtime_ns or atime <= value.ctime_ns or now - atime >= _RELATIME_NS
        ):
            self._namespace.touch_atime(value.inode, now)

    # -- writing ------------------------------------------------------------------------------

    async def write(self, number: int, offset: int, data: Buffer) -> int:
        """Put `data` at `offset`, or at the end for O_APPEND; it must not change afterwards.

        Raises:
            BadHandle: not open for writing. Full: no space, and the node's write buffer is full.
        """
        handle = self._handles.file(number)
        if not handle.writable:
            raise BadHandle(f"file {number} is not open for writing")
        file = handle.file
        buffer = file.buffer or self._begin(file)
        if buffer.error is not None:
            buffer.error = None
            await buffer.spill()
            if buffer.error is not None:
                raise buffer.error
        if handle.direct and file.privileged:
            self._drop_privileges(handle)
        if handle.append and offset != buffer.size:
            # The kernel appends where it believes the end to be.
            offset = buffer.size
            self._kernel.attributes_changed(file.inode)
        buffer.write(offset, data)
        file.mtime_ns = self._world.wall_ns()
        if buffer.unfolded >= UNFOLDED_LEAVES_MAX:
            await buffer.fold()
        if self._budget.exceeded:
            await self._budget.relieve()
        if handle.sync:
            await self._commit(file, durable=True)
        return len(data)

    def _begin(self, file: OpenFile) -> WriteBuffer:
        assert self._nursery is not None, "the filesystem does not run"
        file.buffer = WriteBuffer(
            self._storage, self._budget, self._nursery, file.content, shift=self._shift
        )
        file.committed = 0
        file.mtime_ns = self._world.wall_ns()
        return file.buffer

    def _drop_privileges(self, handle: FileHandle) -> None:
        """A write ends what suid, sgid and file capabilities were granted for other bytes."""
        file = handle.file
        file.privileged = False
        mode = self._namespace.get(file.inode).mode
        if not handle.root and mode & SUID_SGID and without_privileges(mode) != mode:
            self._namespace.set_attributes(
                file.inode, AttributeChanges(mode=without_privileges(mode))
            )
            self._kernel.attributes_changed(file.inode)
        try:
            self._namespace.get_xattr(file.inode, CAPABILITY)
        except NoAttribute:
            return
        self._namespace.remove_xattr(file.inode, CAPABILITY)

    async def truncate(self, value: Inode, size: int, number: int | None) -> None:
        """Set the size: through an open handle until it is flushed, else committed at once."""
        if size < 0:
            raise Invalid("negative size")
        if number is not None:
            await self._resize(self._handles.file(number).file, size)
            return
        if value.kind is not FileKind.REGULAR:
            raise (IsDirectory if value.kind is FileKind.DIRECTORY else Invalid)("not a file")
        file = self._hold(value, privileged=False)
        try:
            await self._resize(file, size)
            if not file.unlinked:
                await self._commit(file)
        finally:
            self._let_go(file)

    async def _resize(self, file: OpenFile, size: int) -> None:
        buffer = file.buffer or self._begin(file)
        await buffer.truncate(size)
        file.mtime_ns = self._world.wall_ns()

    # -- committing ---------------------------------------------------------------------------

    async def flush(self, number: int) -> None:
        """A close(2): what the handle wrote is committed and visible (promises 4 and 8)."""
        handle = self._handles.file(number)
        if handle.writable and handle.file.buffer is not None and not handle.file.unlinked:
            await self._commit(handle.file)

    async def fsync(self, number: int) -> None:
        """Everything written is committed, visible and on stable storage (promise 9)."""
        file = self._handles.file(number).file
        if not file.unlinked:
            await self._commit(file, durable=True)

    async def _commit(self, file: OpenFile, *, durable: bool = False) -> None:
        busy = (file.inode,)
        self._kernel.begin(busy)
        try:
            buffer = file.buffer
            if buffer is not None and file.committed < buffer.sequence:
                written = await buffer.write_back()
                if buffer.upload is not None:
                    await buffer.upload.settle()
                if (
                    file.buffer is buffer
                    and file.committed < written.sequence
                    and not file.unlinked
                ):
                    self._namespace.write(file.inode, written.content, mtime_ns=file.mtime_ns)
                    file.content = written.content
                    file.committed = written.sequence
            reached = self._publication.durable if durable else self._publication.visible
            await reached(self._namespace.position)
        finally:
            self._kernel.end(busy)
        if buffer is not None and file.buffer is buffer and file.committed == buffer.sequence:
            buffer.close()
            file.buffer = None
            file.atime_due = True

    async def commit_all(self) -> None:
        """Commit every file that has bytes not yet committed: before an orderly end."""
        for file in list(self._open.values()):
            if file.buffer is not None and not file.unlinked:
                try:
                    await self._commit(file)
                except DfsError as error:
                    log.error("%r: not written back: %s", self._namespace.path(file.inode), error)

    # -- what others must know ----------------------------------------------------------------

    def overlay(self, value: Inode) -> Inode:
        """What stat(2) shows here of an inode: with what is written and not yet committed."""
        file = self._open.get(value.inode)
        if file is None or file.buffer is None or file.committed == file.buffer.sequence:
            return value
        size = file.buffer.size
        return dataclasses.replace(
            value,
            size=size,
            mtime_ns=file.mtime_ns,
            ctime_ns=max(value.ctime_ns, file.mtime_ns),
            content=ContentRef(size=size, stored=size),
        )

    def is_dirty(self, inode: InodeId) -> bool:
        """Whether stat(2) here differs from what the namespace says."""
        file = self._open.get(inode)
        return file is not None and file.buffer is not None

    def attributes_set(self, inode: InodeId, *, mtime_ns: int | None) -> None:
        """Attributes of an inode were set by a call: they hold for what was written before it."""
        file = self._open.get(inode)
        if file is not None:
            file.privileged = True
            file.atime_due = True
            if mtime_ns is not None:
                file.mtime_ns = mtime_ns

    def unlinked(self, inode: InodeId) -> None:
        """An inode lost its last name; if it is open here it lives until it is released."""
        file = self._open.get(inode)
        if file is not None and not file.unlinked:
            file.unlinked = True
            self._namespace.hold_orphan(inode)

    def changed(self, inode: InodeId, content: ContentRef | None) -> None:
        """A commit, from anywhere, changed an inode; `content` if its bytes changed."""
        file = self._open.get(inode)
        if file is None:
            return
        file.privileged = True
        file.atime_due = True
        if content is not None:
            file.content = content

    def recheck_links(self, inode: InodeId) -> None:
        """An inode may have lost or found a name elsewhere."""
        file = self._open.get(inode)
        if file is not None:
            if self._namespace.get(inode).nlink == 0:
                self.unlinked(inode)
            else:
                file.unlinked = False

    def dirty(self) -> set[InodeId]:
        """Inodes with bytes not yet committed."""
        return {file.inode for file in self._open.values() if file.buffer is not None}

    def contents_in_use(self) -> Iterator[tuple[InodeId, ContentRef]]:
        """What open files may still read, whatever the namespace says by now: for gc."""
        for file in self._open.values():
            yield file.inode, file.content
        for handle in self._handles.files():
            if handle.content is not None and handle.content is not handle.file.content:
                yield handle.file.inode, handle.content
