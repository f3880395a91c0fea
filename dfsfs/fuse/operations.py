"""One method for every FUSE request: convert, call the vfs, convert. Nothing is decided here.

pyfuse3 replies in the same step in which a handler returns, so what a handler fetched after its
last await is still true when the kernel gets it. Lookup counts are kept for every entry the kernel
is given (`remember`) until it forgets them.
"""

from collections.abc import Sequence

import pyfuse3
from pyfuse3 import (
    EntryAttributes,
    FileHandleT,
    FileInfo,
    FileNameT,
    FlagT,
    InodeT,
    ModeT,
    ReaddirToken,
    RequestContext,
    SetattrFields,
    StatvfsData,
    XAttrNameT,
)

from dfsfs.base.errors import NotFound
from dfsfs.base.types import Buffer, InodeId
from dfsfs.fuse import convert
from dfsfs.fuse.border import Failures, handler, sync_handler
from dfsfs.fuse.callers import Callers
from dfsfs.namespace import Inode
from dfsfs.runtime import CallTable
from dfsfs.vfs import VIRTUAL_XATTR_PREFIX, Filesystem

_DOTS = (b".", b"..")


class Operations(pyfuse3.Operations):
    """The handlers pyfuse3 calls; made by `serve`."""

    supports_dot_lookup = True
    enable_writeback_cache = False  # it ignores sizes and times from other mounts (decision 7)
    enable_acl = False

    def __init__(self, filesystem: Filesystem, calls: CallTable) -> None:
        self._filesystem = filesystem
        self.failures = Failures(calls)
        self.callers = Callers(filesystem.inode_of)

    def _attributes(self, value: Inode) -> EntryAttributes:
        return convert.attributes(value, dirty=self._filesystem.is_dirty(value.inode))

    def _entry(self, value: Inode, directory: int) -> EntryAttributes:
        """Attributes of an inode the kernel will count one more lookup of."""
        self._filesystem.remember(value.inode)
        return self._named(self._attributes(value), directory)

    def _named(self, entry: EntryAttributes, directory: int) -> EntryAttributes:
        if self._filesystem.is_contended(InodeId(directory)):
            entry.entry_timeout = 0
        return entry

    # -- names --------------------------------------------------------------------------------

    @sync_handler
    async def lookup(
        self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        """Find a name; that it does not exist is remembered, too."""
        try:
            value = self._filesystem.lookup(InodeId(parent_inode), name)
            if self._filesystem.drafts.is_elsewhere(value.inode):
                value = await self._lookup_draft(InodeId(parent_inode), name)
            return self._entry(value, parent_inode)
        except NotFound:
            return self._named(convert.no_entry(), parent_inode)

    @handler
    async def _lookup_draft(self, parent: InodeId, name: bytes) -> Inode:
        """Find a file that is being made on another mount."""
        return await self._filesystem.drafts.lookup(self._filesystem.lookup, parent, name)

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        """Give lookups back. Must not fail: there is nobody to tell."""
        for inode, count in inode_list:
            self._filesystem.forget(InodeId(inode), count)

    @handler
    async def mknod(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        """Make a file, device, FIFO or socket."""
        return self._entry(
            await self._filesystem.mknod(
                InodeId(parent_inode), name, mode, rdev, convert.caller(ctx)
            ),
            parent_inode,
        )

    @handler
    async def mkdir(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, ctx: RequestContext
    ) -> EntryAttributes:
        """Make a directory."""
        return self._entry(
            await self._filesystem.mkdir(InodeId(parent_inode), name, mode, convert.caller(ctx)),
            parent_inode,
        )

    @handler
    async def symlink(
        self, parent_inode: InodeT, name: FileNameT, target: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        """Make a symlink."""
        return self._entry(
            await self._filesystem.symlink(
                InodeId(parent_inode), name, target, convert.caller(ctx)
            ),
            parent_inode,
        )

    @handler
    async def link(
        self, inode: InodeT, new_parent_inode: InodeT, new_name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        """Give an inode another name."""
        return self._entry(
            await self._filesystem.link(InodeId(inode), InodeId(new_parent_inode), new_name),
            new_parent_inode,
        )

    @handler
    async def unlink(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        """Remove a name."""
        await self._filesystem.unlink(InodeId(parent_inode), name)

    @handler
    async def rmdir(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        """Remove an empty directory."""
        await self._filesystem.rmdir(InodeId(parent_inode), name)

    @handler
    async def rename(
        self,
        parent_inode_old: InodeT,
        name_old: FileNameT,
        parent_inode_new: InodeT,
        name_new: FileNameT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> None:
        """Move a name."""
        await self._filesystem.rename(
            InodeId(parent_inode_old), name_old, InodeId(parent_inode_new), name_new, flags
        )

    # -- attributes ---------------------------------------------------------------------------

    @sync_handler
    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        """What stat(2) shows."""
        return self._attributes(self._filesystem.getattr(InodeId(inode)))

    @handler
    async def setattr(
        self,
        inode: InodeT,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: FileHandleT | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        """Change attributes, the size among them."""
        return self._attributes(
            await self._filesystem.setattr(InodeId(inode), convert.changes(attr, fields), fh)
        )

    @sync_handler
    async def readlink(self, inode: InodeT, ctx: RequestContext) -> FileNameT:
        """The target of a symlink."""
        return self._filesystem.readlink(InodeId(inode))

    @sync_handler
    async def access(self, inode: InodeT, mode: ModeT, ctx: RequestContext) -> bool:
        """Whether the caller has these rights; only asked without `default_permissions`."""
        return self._filesystem.access(InodeId(inode), mode, convert.caller(ctx, groups=True))

    @sync_handler
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        """What df(1) shows."""
        return convert.statistics(self._filesystem.statfs())

    @sync_handler
    async def getxattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> bytes:
        """The value of an extended attribute; the kernel asks for one before most writes."""
        if name.startswith(VIRTUAL_XATTR_PREFIX):
            return await self._virtual_xattr(InodeId(inode), name)
        return self._filesystem.getxattr(InodeId(inode), name)

    @handler
    async def _virtual_xattr(self, inode: InodeId, name: bytes) -> bytes:
        return await self._filesystem.virtual_xattr(inode, name)

    @sync_handler
    async def listxattr(self, inode: InodeT, ctx: RequestContext) -> Sequence[XAttrNameT]:
        """The names of extended attributes."""
        return self._filesystem.listxattr(InodeId(inode), convert.caller(ctx))

    @handler
    async def setxattr(
        self, inode: InodeT, name: XAttrNameT, value: bytes, ctx: RequestContext
    ) -> None:
        """Set an extended attribute; pyfuse3 checks XATTR_CREATE and XATTR_REPLACE before."""
        await self._filesystem.setxattr(InodeId(inode), name, value)

    @handler
    async def removexattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> None:
        """Remove an extended attribute."""
        await self._filesystem.removexattr(InodeId(inode), name)

    # -- directories --------------------------------------------------------------------------

    @sync_handler
    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        """Open a directory."""
        return FileHandleT(self._filesystem.opendir(InodeId(inode)))

    @sync_handler
    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        """As many entries as fit; each but `.` and `..` counts as a lookup."""
        directory = self._filesystem.directory_of(fh)
        await self._filesystem.drafts.settle_directory(fh)
        for name, value, position in self._filesystem.readdir(fh, start_id):
            entry = self._named(self._attributes(value), directory)
            if not pyfuse3.readdir_reply(token, name, entry, position):
                return
            if name not in _DOTS:
                self._filesystem.remember(value.inode)

    @sync_handler
    async def releasedir(self, fh: FileHandleT) -> None:
        """Close a directory."""
        self._filesystem.releasedir(fh)

    @handler
    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        """Make names durable."""
        await self._filesystem.fsyncdir(fh)

    # -- files --------------------------------------------------------------------------------

    @handler
    async def create(
        self,
        parent_inode: InodeT,
        name: FileNameT,
        mode: ModeT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> tuple[FileInfo, EntryAttributes]:
        """Make a file and open it."""
        opened, value = await self._filesystem.create(
            InodeId(parent_inode), name, mode, flags, convert.caller(ctx)
        )
        return convert.file_info(opened), self._entry(value, parent_inode)

    @handler
    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        """Give a file a handle."""
        return convert.file_info(
            await self._filesystem.open(InodeId(inode), flags, convert.caller(ctx))
        )

    # Most reads, writes and closes have nothing to wait for, and need no deadline.

    @sync_handler
    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        """Bytes; fewer than `size` only at the end of the file."""
        data = self._filesystem.read_nowait(fh, off, size)
        if data is None:
            data = await self._read(fh, off, size)
        # Any contiguous buffer will do: pyfuse3 copies it before anything else runs.
        return data  # type: ignore[return-value]

    @handler
    async def _read(self, fh: FileHandleT, off: int, size: int) -> Buffer:
        return await self._filesystem.read(fh, off, size)

    @sync_handler
    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        """Put bytes; pyfuse3 made `buf` for us alone."""
        if not self._filesystem.write_nowait(fh, off, buf):
            await self._write(fh, off, buf)
        return len(buf)

    @handler
    async def _write(self, fh: FileHandleT, off: int, buf: bytes) -> None:
        await self._filesystem.write(fh, off, buf)

    @sync_handler
    async def flush(self, fh: FileHandleT) -> None:
        """One close(2) of a handle."""
        if not self._filesystem.is_clean(fh):
            await self._flush(fh)

    @handler
    async def _flush(self, fh: FileHandleT) -> None:
        await self._filesystem.flush(fh)

    @sync_handler
    async def release(self, fh: FileHandleT) -> None:
        """The last close of a handle."""
        if self._filesystem.is_clean(fh):
            await self._filesystem.release(fh)
        else:
            await self._release(fh)

    @handler
    async def _release(self, fh: FileHandleT) -> None:
        await self._filesystem.release(fh)

    @handler
    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        """Make a file durable."""
        await self._filesystem.fsync(fh)
