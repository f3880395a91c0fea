"""Open files: open, read, write, flush, fsync, release, truncate.

A file that nobody writes is read from its content ref. The first write or truncation gives it a
`WriteBuffer`, which all its handles share; closing a writable handle (flush) commits it
(`WriteBack`). fsync does the same and waits for stable storage. Errors come out of both; bytes that
could not be stored stay dirty and are tried again until the last handle is released.
"""

import dataclasses
import logging
import os
from collections.abc import Awaitable, Iterator
from typing import NamedTuple

import trio

from dfsfs.base.errors import BadHandle, Corrupt, DfsError, Invalid, IsDirectory, NotFound
from dfsfs.base.limits import (
    NODE_CACHE_BYTES_MAX,
    PATCHES_BYTES_MAX,
    SHARED_FILE_S,
    SHARED_FILES_MAX,
    UNFOLDED_LEAVES_MAX,
)
from dfsfs.base.types import Buffer, ContentRef, FileKind, InodeId
from dfsfs.blocks import Storage
from dfsfs.content import ContentReader, NodeCache, extends
from dfsfs.namespace import Inode, Namespace
from dfsfs.runtime import Bounds, World
from dfsfs.vfs.attributes import SUID_SGID, Caller, atime_is_due
from dfsfs.vfs.budget import WriteBudget
from dfsfs.vfs.buffer import WriteBuffer
from dfsfs.vfs.handles import FileHandle, HandleTable, OpenFile
from dfsfs.vfs.interface import Publication
from dfsfs.vfs.kernel import KernelView
from dfsfs.vfs.leasing import Leasing
from dfsfs.vfs.privileges import CAPABILITY, drop_privileges, open_capability
from dfsfs.vfs.readers import Readers
from dfsfs.vfs.writeback import WriteBack

log = logging.getLogger(__name__)


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
        leasing: Leasing,
        *,
        kernel: KernelView,
        handles: HandleTable,
        budget: WriteBudget,
        shift: int,
    ) -> None:
        self._namespace = namespace
        self._storage = storage
        self._world = world
        self._write_back = WriteBack(namespace, publication, kernel)
        self._leasing = leasing
        self._kernel = kernel
        self._handles = handles
        self._budget = budget
        self._shift = shift
        self.atime = True  # off for a mount with `noatime`
        self._open: dict[InodeId, OpenFile] = {}
        self._nodes = NodeCache()
        self.readers = Readers(world, storage)
        self._shared: dict[InodeId, float] = {}  # until when, in the order of the last collision
        self._nursery: trio.Nursery | None = None

    def bounded(self) -> Bounds:
        """What of it is bounded, and how full that is."""
        return {
            "tree_nodes_bytes": [self._nodes.bytes, NODE_CACHE_BYTES_MAX],
            "shared_files": [len(self._shared), SHARED_FILES_MAX],
        }

    def start(self, nursery: trio.Nursery) -> None:
        """From now on files can be written."""
        self._nursery = nursery

    @property
    def _background(self) -> trio.Nursery:
        assert self._nursery is not None, "the filesystem does not run"
        return self._nursery

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
                    drop_privileges(self._namespace, self._kernel, handle)
                await self._resize(handle.file, 0)
            except BaseException:
                self._discard(opened.number)
                raise
        return opened

    def add(self, value: Inode, flags: int, caller: Caller, *, privileged: bool) -> Opened:
        """Number a handle of a file that exists or was just created."""
        if value.kind is not FileKind.REGULAR:
            raise (IsDirectory if value.kind is FileKind.DIRECTORY else Invalid)("not a file")
        file = self._find(value, privileged=privileged)
        # While the kernel is still being told, what it learns of the size may be dropped again, and
        # would clip what is read through its page cache.
        pending = self._kernel.pages_pending(value.inode)
        shared = pending or (
            bool(self._shared) and self._shared.get(value.inode, 0.0) > self._world.now_s()
        )
        handle = FileHandle(file, flags, root=caller.uid == 0, shared=shared)
        if (
            handle.root
            and handle.writable
            and value.mode & SUID_SGID
            and file.cached is file.content
        ):
            # Root may hand it to others. We are not told who writes, but the page cache is.
            handle.direct = False
        file.handles.add(handle)
        try:
            number = self._handles.add_file(handle)
        except DfsError:
            self._let_go(handle)
            raise
        return Opened(number, handle.direct, not pending)

    def _find(self, value: Inode, *, privileged: bool) -> OpenFile:
        file = self._open.get(value.inode)
        if file is None:
            file = OpenFile(value.inode, value.content, privileged=privileged)
            file.unlinked = value.nlink == 0
            self._open[value.inode] = file
        return file

    def _discard(self, number: int) -> None:
        """Undo an open that failed."""
        self._let_go(self._handles.remove_file(number))

    async def release(self, number: int) -> None:
        """The last close of a handle; commits what a mapping wrote after the last flush."""
        handle = self._handles.remove_file(number)
        file = handle.file
        if len(file.handles) == 1 and file.buffer is not None and not file.unlinked:
            try:
                await self._commit_last(file)
            except BaseException as error:
                if isinstance(error, Exception):
                    self._let_go(handle)
                else:  # it took too long to be waited for; but what it waits for has an end
                    self._background.start_soon(self._release_later, handle)
                raise
        self._let_go(handle)

    async def _release_later(self, handle: FileHandle) -> None:
        await self._commit_last(handle.file)
        self._let_go(handle)

    async def _commit_last(self, file: OpenFile) -> None:
        buffer = file.buffer
        try:
            await self._write_back.commit(file)
        except DfsError as error:
            if buffer and file.buffer is buffer and file.committed < buffer.sequence:
                path = self._path(file.inode)
                log.error("%r: %d bytes written were lost: %s", path, buffer.size, error)

    def _path(self, inode: InodeId) -> bytes:
        try:
            return self._namespace.path(inode)
        except NotFound:
            return b"(removed file %d)" % inode

    def _let_go(self, handle: FileHandle) -> None:
        file = handle.file
        file.handles.discard(handle)
        self.readers.released()
        if file.handles:
            self._advance(file)
            return
        if file.buffer is not None:
            self._give_up(file)
        elif file.cached is not file.content:
            self._kernel.pages_changed(file.inode)
        del self._open[file.inode]
        if file.unlinked or file.bereft:
            self._namespace.drop_orphan(file.inode)

    def _advance(self, file: OpenFile) -> None:
        if file.advance(self._world.now_s()):
            self._kernel.pages_changed(file.inode)

    def _give_up(self, file: OpenFile) -> None:
        """Forget what is not committed."""
        assert file.buffer is not None
        file.buffer.close()
        file.buffer = None
        if not file.unlinked:
            self._kernel.pages_changed(file.inode)

    # -- reading ------------------------------------------------------------------------------

    def read_nowait(self, number: int, offset: int, size: int) -> Buffer | None:
        """What `read` would return, if that needs no waiting: the bytes are at hand."""
        handle = self._handles.file(number)
        file = handle.file
        if file.atime_due:
            self._touch_atime(file)
        if file.buffer is not None:
            return None
        data = self._reader(handle, offset, size).read_nowait(offset, size)
        if data is not None:
            self._note_end(handle, offset, size)
        return data

    async def read(self, number: int, offset: int, size: int) -> Buffer:
        """Bytes [offset, offset + size), clipped at the end of the file.

        Raises:
            BadHandle: no such handle.
        """
        handle = self._handles.file(number)
        file = handle.file
        if file.buffer is not None:
            return await self._waiting(handle, file.buffer.read(offset, size))
        data = await self._waiting(handle, self._reader(handle, offset, size).read(offset, size))
        self._note_end(handle, offset, size)
        return data

    def _reader(self, handle: FileHandle, offset: int, size: int) -> ContentReader:
        file = handle.file
        content = file.content if handle.direct else file.cached
        if content is not handle.content or file.cached is not file.content:
            content = self._version(handle)
        reader = handle.reader_of(self._storage, content, self._nodes)
        if offset + size < content.size:
            handle.end_s = None
        elif handle.end_s is None:
            handle.end_s = self._world.now_s()
            self.readers.released()
            self._answered(handle)
        return reader

    def _answered(self, handle: FileHandle) -> None:
        """It has come to the end not when it asked, but when it is given the bytes."""
        if handle.end_s is not None:
            handle.end_s = self._world.now_s()
            if handle.file.cached is not handle.file.content:
                self.readers.advance_later(handle.file, self._background, self._advance)

    def _note_end(self, handle: FileHandle, offset: int, size: int) -> None:
        """The kernel takes a short answer for the end of the file.

        If that is the end of an old version, it must look again what the size is now; after it has
        the answer.
        """
        content = handle.content
        if content is None or content is handle.file.content or handle.direct:
            return
        if offset + size > content.size:
            self._background.start_soon(self._correct_size, handle.file.inode)

    def _version(self, handle: FileHandle) -> ContentRef:
        """What a handle reads when there is more than one version."""
        file = handle.file
        if handle.direct:
            if handle.content is None or extends(file.content, handle.content):
                return file.content
            return handle.content if handle.is_reading(self._world.now_s()) else file.content
        self._advance(file)
        return file.cached

    async def _correct_size(self, inode: InodeId) -> None:
        self._kernel.attributes_changed(inode)

    async def _waiting(self, handle: FileHandle, read: Awaitable[Buffer]) -> Buffer:
        # The kernel has locked the pages being read.
        busy = (handle.file.inode,)
        self._kernel.begin(busy)
        handle.outstanding += 1
        try:
            return await read
        except NotFound as error:  # a block, which is not for programs to know: EIO
            raise Corrupt(str(error)) from error
        finally:
            handle.outstanding -= 1
            self._answered(handle)
            self._kernel.end(busy)

    def _touch_atime(self, file: OpenFile) -> None:
        file.atime_due = False
        if self.atime and not file.unlinked:
            self.touch_atime(self._namespace.get(file.inode))

    def touch_atime(self, value: Inode) -> None:
        """Note that an inode was read, as seldom as Linux does with `relatime`."""
        if self.atime and atime_is_due(value, now := self._world.wall_ns()):
            self._namespace.touch_atime(value.inode, now)

    # -- writing ------------------------------------------------------------------------------

    def write_nowait(self, number: int, offset: int, data: Buffer) -> bool:
        """Put `data` at `offset` if that needs no waiting, as `write` does; False if it does."""
        handle = self._handles.file(number)
        buffer = handle.file.buffer
        if (
            buffer is None
            or buffer.error is not None
            or buffer.unfolded >= UNFOLDED_LEAVES_MAX
            or handle.sync
            or self._budget.exceeded
            or not self._may_change(handle.file)
        ):
            return False
        self._put(handle, buffer, offset, data)
        return True

    async def write(self, number: int, offset: int, data: Buffer) -> None:
        """Put `data` at `offset`, or at the end for O_APPEND; it must not change afterwards.

        Raises:
            BadHandle: not open for writing. Full: no space, and the node's write buffer is full.
        """
        handle = self._handles.file(number)
        if self._budget.exceeded:
            await self._budget.relieve()
        buffer = handle.file.buffer
        if buffer is not None and buffer.error is not None:
            buffer.error = None
            await buffer.spill()
            if buffer.error is not None:
                raise buffer.error
        if buffer is not None and buffer.unfolded >= UNFOLDED_LEAVES_MAX:
            await buffer.fold()
        await self._lease(handle.file)
        # What was awaited may have let another handle's flush end this buffer.
        self._put(handle, handle.file.buffer or self._begin(handle.file), offset, data)
        if handle.sync:
            await self._write_back.commit(handle.file, durable=True)

    def _put(self, handle: FileHandle, buffer: WriteBuffer, offset: int, data: Buffer) -> None:
        if not handle.writable:
            raise BadHandle("the file is not open for writing")
        file = handle.file
        if handle.direct and file.privileged:
            drop_privileges(self._namespace, self._kernel, handle)
        if handle.append and offset != buffer.size:
            # The kernel appends where it believes the end to be.
            offset = buffer.size
            self._kernel.attributes_changed(file.inode)
        buffer.write(offset, data)
        file.mtime_ns = self._world.wall_ns()

    def _begin(self, file: OpenFile) -> WriteBuffer:
        file.buffer = WriteBuffer(
            self._storage, self._budget, self._background, file.content, shift=self._shift
        )
        file.committed = 0
        file.base = file.content
        file.mtime_ns = self._world.wall_ns()
        return file.buffer

    def capability(self, inode: InodeId) -> bytes:
        """The value of `security.capability`.

        Raises:
            NoAttribute: hardly a file has it.
        """
        file = self._open.get(inode)
        if file is None:
            return self._namespace.get_xattr(inode, CAPABILITY)
        return open_capability(self._namespace, file)

    async def truncate(self, value: Inode, size: int, number: int | None) -> None:
        """Set the size: through an open handle until it is flushed, else committed at once."""
        if size < 0:
            raise Invalid("negative size")
        if number is not None:
            await self._resize(self._handles.file(number).file, size)
            return
        if value.kind is not FileKind.REGULAR:
            raise (IsDirectory if value.kind is FileKind.DIRECTORY else Invalid)("not a file")
        handle = FileHandle(
            self._find(value, privileged=False), os.O_WRONLY, root=True, shared=False
        )
        handle.file.handles.add(handle)
        try:
            await self._resize(handle.file, size)
            if not handle.file.unlinked:
                await self._write_back.commit(handle.file)
        finally:
            self._let_go(handle)

    async def _resize(self, file: OpenFile, size: int) -> None:
        while True:
            await self._lease(file)
            buffer = file.buffer or self._begin(file)
            await buffer.truncate(size)
            if file.buffer is buffer:
                break  # else another handle's flush, or a lease that went, has ended it meanwhile
        file.mtime_ns = self._world.wall_ns()

    # -- leases -------------------------------------------------------------------------------

    def _may_change(self, file: OpenFile) -> bool:
        return file.unlinked or self._leasing.held((file.inode,))

    async def _lease(self, file: OpenFile) -> None:
        """Return when the file may be changed, in this step."""
        if not file.unlinked:
            await self._leasing.one(file.inode)

    def has_uncommitted(self, inode: InodeId) -> bool:
        """Whether `hand_over` has anything to do."""
        file = self._open.get(inode)
        return file is not None and file.buffer is not None and not file.unlinked

    async def hand_over(self, inode: InodeId) -> None:
        """Commit what is written here of a file that another mount is about to change.

        Its lease is on its way out, so no write begins meanwhile.
        """
        file = self._open.get(inode)
        while file is not None and (buffer := file.buffer) is not None and not file.unlinked:
            await self._write_back.store(file, PATCHES_BYTES_MAX)
            self._write_back.drop_clean(file, buffer)

    # -- committing ---------------------------------------------------------------------------

    def is_clean(self, number: int) -> bool:
        """Whether a flush or release of the handle has nothing to wait for."""
        file = self._handles.file(number).file
        return file.unlinked or (file.buffer is None and not file.unseen)

    async def flush(self, number: int) -> None:
        """A close(2): what the handle wrote is committed and visible (promises 4 and 8)."""
        handle = self._handles.file(number)
        if handle.writable and not self.is_clean(number):
            await self._write_back.commit(handle.file)

    async def fsync(self, number: int) -> None:
        """Everything written is committed, visible and on stable storage (promise 9)."""
        file = self._handles.file(number).file
        if not file.unlinked:
            await self._write_back.commit(file, durable=True)

    async def commit_all(self) -> None:
        """Commit every file that has bytes not yet committed: before an orderly end."""
        for file in list(self._open.values()):
            if file.buffer is not None and not file.unlinked:
                try:
                    await self._write_back.commit(file)
                except DfsError as error:
                    log.error("%r: not written back: %s", self._path(file.inode), error)

    # -- what others must know ----------------------------------------------------------------

    def overlay(self, value: Inode) -> Inode:
        """What stat(2) shows here of an inode: with what is written and not yet committed."""
        file = self._open.get(value.inode)
        if file is None:
            return value
        if file.buffer is None or file.committed == file.buffer.sequence:
            held = self.readers.size_of(file)
            return value if held is None else dataclasses.replace(value, size=held)
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
            file.privileged = file.capable = True
            file.atime_due = True
            if mtime_ns is not None:
                file.mtime_ns = mtime_ns

    def unlinked(self, inode: InodeId) -> None:
        """An inode lost its last name; if it is open here it lives until it is released."""
        file = self._open.get(inode)
        if file is not None and not file.unlinked:
            file.unlinked = True
            self._namespace.hold_orphan(inode)

    def changed(self, inode: InodeId, content: ContentRef | None, *, local: bool) -> None:
        """A commit, from anywhere, changed an inode; `content` if its bytes changed."""
        file = self._open.get(inode)
        if file is None:
            return
        file.privileged = file.capable = True
        file.atime_due = True
        if content is not None:
            if file.cached is file.content and extends(content, file.content):
                # Whoever is in the middle reads the same bytes, and then more: no other version.
                if not local:
                    self.readers.hold_growth(file)
                file.cached = content
            file.content = content
            if not file.advance(self._world.now_s()) and file.cached is not content:
                # Those at their end already get it when it is sure that they have seen it.
                self.note_shared(inode)
                if not local and file.buffer is None:
                    self.readers.hold(file)
                self.readers.advance_later(file, self._background, self._advance)

    def note_shared(self, inode: InodeId) -> None:
        """Have those who open this file from now on bypass the page cache, for a while."""
        self._shared.pop(inode, None)
        self._shared[inode] = self._world.now_s() + SHARED_FILE_S
        if len(self._shared) > SHARED_FILES_MAX:
            del self._shared[next(iter(self._shared))]

    def recheck_links(self, inode: InodeId, *, local: bool) -> None:
        """An inode may have lost or found a name: elsewhere, or by who does not tell."""
        file = self._open.get(inode)
        if file is None or file.heir != inode:
            return
        if self._namespace.get(inode).nlink:
            file.unlinked = file.bereft = False
        elif not local and file.buffer is not None and file.committed < file.buffer.sequence:
            # Who removes a file takes its lease, with which this would have been written back.
            file.bereft = True
            self._namespace.hold_orphan(inode)
        else:
            self.unlinked(inode)

    def keeps_pages(self, inode: InodeId) -> bool:
        """Whether what the page cache has stays for now, although the content changed.

        It has bytes not yet committed, or somebody is reading it.
        """
        file = self._open.get(inode)
        return file is not None and (file.buffer is not None or file.cached is not file.content)

    def contents_in_use(self) -> Iterator[tuple[InodeId, ContentRef]]:
        """What open files may still read, whatever the namespace says by now: for gc."""
        for file in self._open.values():
            yield file.inode, file.content
            yield file.inode, file.cached
            if file.buffer is not None:
                yield file.inode, file.buffer.base
            for handle in file.handles:
                if handle.content is not None:
                    yield file.inode, handle.content
