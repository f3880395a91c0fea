"""The POSIX verbs of one mount (or of a program without one) over the namespace and the blocks.

Names are bytes, inodes are numbers, errors are `base.errors` with their errno. Permission bits are
not checked here: the kernel does that with the caller's credentials (`default_permissions`); what
the kernel leaves to a filesystem is here: setgid directories, suid and sgid after writes, relatime.

A verb that changes the namespace is one synchronous transaction followed by `_publish`: it returns
when every connected mount has seen it. Verbs that only look are sync, so what they return is still
true when the kernel gets it; a verb that waited fetches its result again if anything changed.

Other commits of this node (peers' changes, the library API) reach the kernel through `changed`.
"""

import contextlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import ParamSpec, TypeVar

import trio

from dfsfs.base.errors import (
    DfsError,
    Exists,
    Invalid,
    NameTooLong,
    NoAttribute,
    NotDirectory,
    NotFound,
    Stale,
    Unavailable,
)
from dfsfs.base.limits import BLOCK_SHIFT_DEFAULT, NAME_BYTES_MAX, WRITE_BUFFER_BYTES_MAX
from dfsfs.base.types import Buffer, ContentRef, FileKind, InodeId
from dfsfs.blocks import Storage
from dfsfs.namespace import AttributeChanges, Change, Inode, Namespace, Removed
from dfsfs.runtime import Bounds, World
from dfsfs.vfs.attributes import (
    MODE_MASK,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    Caller,
    SetAttributes,
    kind_of_mode,
    may_access,
)
from dfsfs.vfs.budget import WriteBudget
from dfsfs.vfs.drafting import Drafting
from dfsfs.vfs.files import Files, Opened
from dfsfs.vfs.handles import DirectoryEntry, DirectoryHandle, HandleTable
from dfsfs.vfs.interface import Drafts, FileFacts, Invalidator, Leases, Publication, Statistics
from dfsfs.vfs.kernel import EntryName, KernelView
from dfsfs.vfs.leasing import Leasing
from dfsfs.vfs.local import NO_DRAFTS, NO_LEASES, NoKernel
from dfsfs.vfs.privileges import CAPABILITY
from dfsfs.vfs.xattrs import KEY_XATTR, REPLICAS_XATTR, check_name, check_writable

P = ParamSpec("P")
T = TypeVar("T")


class Filesystem:
    """Owned by the node; one for each mount. `run` must be running while files are written."""

    def __init__(
        self,
        world: World,
        namespace: Namespace,
        storage: Storage,
        publication: Publication,
        *,
        facts: FileFacts,
        leases: Leases = NO_LEASES,
        drafts: Drafts = NO_DRAFTS,
        shift: int = BLOCK_SHIFT_DEFAULT,
        write_buffer_bytes_max: int = WRITE_BUFFER_BYTES_MAX,
    ) -> None:
        """`shift`: log2 of the block size of new files."""
        self._namespace = namespace
        self._publication = publication
        self._facts = facts
        self._kernel = KernelView(namespace)
        self._leasing = Leasing(namespace, leases, self._kernel)
        self._handles = HandleTable()
        self.drafts = Drafting(namespace, drafts, self._kernel, self._handles, publication)
        self._expected: tuple[EntryName, ...] | None = None
        self._budget = WriteBudget(write_buffer_bytes_max, facts.has_room)
        self._files = Files(
            world,
            namespace,
            storage,
            publication,
            self._leasing,
            kernel=self._kernel,
            handles=self._handles,
            budget=self._budget,
            shift=shift,
        )
        namespace.subscribe(self.changed)

    def attach(self, invalidator: Invalidator, *, atime: bool) -> None:
        """A kernel mounts this filesystem; `atime`: False for the mount option `noatime`."""
        self._kernel.attach(invalidator)
        self._files.atime = atime

    def detach(self) -> None:
        """The kernel is gone, and with it all it had cached and open."""
        self._kernel.attach(NoKernel())

    def bounded(self) -> Bounds:
        """What of it is bounded, and how full that is."""
        return {
            **self._budget.bounded(),
            **self._handles.bounded(),
            **self._files.bounded(),
            **self._kernel.bounded(),
        }

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Store blocks in the background until cancelled; commit what is open at the end."""
        async with trio.open_nursery() as nursery:
            self._files.start(nursery)
            task_status.started()
            await trio.sleep_forever()

    async def commit_all(self) -> None:
        """Commit every file that has bytes not yet committed: before an orderly end."""
        await self._files.commit_all()

    # -- looking ------------------------------------------------------------------------------

    def lookup(self, parent: InodeId, name: bytes) -> Inode:
        """What `name` in `parent` is; `.` and `..` too.

        Raises:
            NotFound, NotDirectory, NameTooLong.
        """
        if name == b".":
            return self.getattr(parent)
        if name == b"..":
            return self.getattr(self._namespace.parent(parent))
        if len(name) > NAME_BYTES_MAX:  # the kernel passes on what it is given
            raise NameTooLong(f"a name of {len(name)} bytes")
        return self._files.overlay(self._namespace.lookup(parent, name))

    def getattr(self, inode: InodeId) -> Inode:
        """What stat(2) shows, with what is written here and not yet committed.

        Raises:
            NotFound: no such inode.
        """
        return self._files.overlay(self._namespace.get(inode))

    def is_dirty(self, inode: InodeId) -> bool:
        """Whether attributes change without any call: nobody should cache them."""
        return self._files.is_dirty(inode)

    def readlink(self, inode: InodeId) -> bytes:
        """The target of a symlink.

        Raises:
            Invalid: not a symlink.
        """
        value = self._namespace.get(inode)
        if value.kind is not FileKind.SYMLINK:
            raise Invalid("not a symlink")
        self._files.touch_atime(value)
        return value.target

    def access(self, inode: InodeId, mask: int, caller: Caller) -> bool:
        """Whether permission bits grant `mask` (R_OK, W_OK, X_OK) to `caller`."""
        value = self._namespace.get(inode)
        mode = value.mode | (stat.S_IFDIR if value.kind is FileKind.DIRECTORY else stat.S_IFREG)
        return may_access(mode, value.uid, value.gid, mask, caller)

    def statfs(self) -> Statistics:
        """What df(1) shows."""
        space, totals = self._facts.space(), self._namespace.totals()
        return Statistics(
            space.capacity_bytes,
            space.free_bytes,
            totals.files + totals.directories,
            NAME_BYTES_MAX,
        )

    # -- making and removing names ------------------------------------------------------------

    async def mknod(
        self, parent: InodeId, name: bytes, mode: int, rdev: int, caller: Caller
    ) -> Inode:
        """Make a file, device, FIFO or socket."""
        kind = kind_of_mode(mode)
        await self._leasing.one(parent)
        value = self._make(parent, name, kind, mode & MODE_MASK, caller, rdev=rdev)
        return await self._published(value, parent)

    async def mkdir(self, parent: InodeId, name: bytes, mode: int, caller: Caller) -> Inode:
        """Make a directory."""
        await self._leasing.one(parent)
        value = self._make(parent, name, FileKind.DIRECTORY, mode & MODE_MASK, caller)
        return await self._published(value, parent)

    async def symlink(self, parent: InodeId, name: bytes, target: bytes, caller: Caller) -> Inode:
        """Make a symlink."""
        await self._leasing.one(parent)
        value = self._make(parent, name, FileKind.SYMLINK, 0o777, caller, target=target)
        return await self._published(value, parent)

    async def create(
        self, parent: InodeId, name: bytes, mode: int, flags: int, caller: Caller
    ) -> tuple[Opened, Inode]:
        """Make a file and open it.

        Raises:
            Exists: the name is taken, and the caller asked for O_EXCL.
            Stale: the name is taken, and the caller would take the file that has it.
        """
        await self._leasing.one(parent)
        try:
            value = self._make(parent, name, FileKind.REGULAR, mode & MODE_MASK, caller)
        except Exists:
            if flags & os.O_EXCL:
                raise
            raise Stale("the file was created elsewhere") from None
        opened = self._files.add(
            value, flags, caller, privileged=bool(mode & (stat.S_ISUID | stat.S_ISGID))
        )
        self.drafts.begin(value.inode)
        try:
            return opened, await self._published(value, parent)
        except BaseException:
            await self._abandon(opened.number)
            raise

    async def _abandon(self, number: int) -> None:
        with trio.CancelScope(shield=True):
            await self.release(number)

    def _make(
        self,
        parent: InodeId,
        name: bytes,
        kind: FileKind,
        mode: int,
        caller: Caller,
        *,
        rdev: int = 0,
        target: bytes = b"",
    ) -> Inode:
        self._budget.check_room()
        directory = self._namespace.get(parent)
        gid = caller.gid
        if directory.mode & stat.S_ISGID:
            gid = directory.gid
            if kind is FileKind.DIRECTORY:
                mode |= stat.S_ISGID
        return self._own(
            ((parent, name),),
            self._namespace.create,
            parent,
            name,
            kind=kind,
            mode=mode,
            uid=caller.uid,
            gid=gid,
            rdev=rdev,
            target=target,
        )

    async def link(self, inode: InodeId, parent: InodeId, name: bytes) -> Inode:
        """Give an inode another name."""
        self._budget.check_room()
        await self._leasing.one(inode, parent)
        self.drafts.linked(inode)
        value = self._own(((parent, name),), self._namespace.link, inode, parent, name)
        return await self._published(value, parent, inode)

    async def unlink(self, parent: InodeId, name: bytes) -> None:
        """Remove a name that is not a directory's."""
        locked = await self._leasing.removal(parent, name)
        removed = self._own(((parent, name),), self._namespace.unlink, parent, name)
        self._removed(removed)
        await self._publish(*locked)

    async def rmdir(self, parent: InodeId, name: bytes) -> None:
        """Remove an empty directory."""
        locked = await self._leasing.removal(parent, name)
        self._own(((parent, name),), self._namespace.rmdir, parent, name)
        await self._publish(*locked)

    async def rename(
        self, parent: InodeId, name: bytes, new_parent: InodeId, new_name: bytes, flags: int = 0
    ) -> None:
        """Move a name, replacing or exchanging what has the new one.

        Raises:
            Invalid: flags other than one of RENAME_NOREPLACE and RENAME_EXCHANGE.
        """
        if flags not in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
            raise Invalid(f"rename flags {flags}")
        locked = await self._leasing.move(parent, name, new_parent, new_name)
        removed = self._own(
            ((parent, name), (new_parent, new_name)),
            self._namespace.rename,
            parent,
            name,
            new_parent,
            new_name,
            exchange=flags == RENAME_EXCHANGE,
            no_replace=flags == RENAME_NOREPLACE,
        )
        if removed is not None:
            self._removed(removed)
        await self._publish(*locked)

    def _removed(self, removed: Removed) -> None:
        if removed.nlink == 0:
            self._files.unlinked(removed.inode)

    # -- attributes ---------------------------------------------------------------------------

    async def setattr(
        self, inode: InodeId, wanted: SetAttributes, number: int | None = None
    ) -> Inode:
        """Change attributes; a size through open handle `number` is committed with its flush."""
        value = self._namespace.get(inode)
        if wanted.size is not None:
            await self._files.truncate(value, wanted.size, number)
        changes = AttributeChanges(
            mode=None if wanted.mode is None else wanted.mode & MODE_MASK,
            uid=wanted.uid,
            gid=wanted.gid,
            atime_ns=wanted.atime_ns,
            mtime_ns=wanted.mtime_ns,
        )
        if wanted == SetAttributes():
            # chown(2) to the same owner: the kernel leaves nothing of it but the change of ctime.
            changes = AttributeChanges(mode=value.mode)
        if changes != AttributeChanges():
            if value.nlink:
                await self._leasing.one(inode)
            self._own((), self._namespace.set_attributes, inode, changes)
            self._files.attributes_set(inode, mtime_ns=wanted.mtime_ns)
            await self._publish(inode)
        return self.getattr(inode)

    def getxattr(self, inode: InodeId, name: bytes) -> bytes:
        """The value of an extended attribute that was set.

        Raises:
            NoAttribute: not set. NotSupported: a namespace dfsfs does not keep, such as ACLs.
        """
        if name == CAPABILITY:
            return self._files.capability(inode)
        check_name(name)
        return self._namespace.get_xattr(inode, name)

    async def virtual_xattr(self, inode: InodeId, name: bytes) -> bytes:
        """The value of an attribute whose name begins with `VIRTUAL_XATTR_PREFIX`.

        Raises:
            NoAttribute: there is none of this name, or not on this kind of inode.
        """
        value = self._namespace.get(inode)
        if value.kind is FileKind.REGULAR:
            if name == KEY_XATTR:
                return (await self._facts.key_of(value.content)).encode()
            if name == REPLICAS_XATTR:
                return (await self._facts.replicas(value.content)).encode()
        raise NoAttribute("no such virtual attribute")

    def listxattr(self, inode: InodeId, caller: Caller) -> list[bytes]:
        """The names that are set, `trusted.` for root alone.

        Virtual ones are not listed, so that tools do not copy them.
        """
        hidden = (b"trusted.",) if caller.uid != 0 else ()
        return [name for name in self._namespace.list_xattrs(inode) if not name.startswith(hidden)]

    async def setxattr(
        self,
        inode: InodeId,
        name: bytes,
        value: bytes,
        *,
        create: bool = False,
        replace: bool = False,
    ) -> None:
        """Set an extended attribute.

        Raises:
            NotSupported: a namespace dfsfs does not keep. NotPermitted: a virtual attribute.
        """
        check_writable(name)
        self._budget.check_room()
        await self._leasing.one(inode)
        self._own((), self._namespace.set_xattr, inode, name, value, create=create, replace=replace)
        if name == CAPABILITY:
            self._files.attributes_set(inode, mtime_ns=None)
        await self._publish(inode)

    async def removexattr(self, inode: InodeId, name: bytes) -> None:
        """Remove an extended attribute.

        Raises:
            NoAttribute: not set. NotPermitted: a virtual attribute.
        """
        check_writable(name)
        await self._leasing.one(inode)
        self._own((), self._namespace.remove_xattr, inode, name)
        await self._publish(inode)

    # -- directories --------------------------------------------------------------------------

    def opendir(self, inode: InodeId) -> int:
        """Open a directory for reading.

        Raises:
            NotDirectory: it is none.
        """
        if self._namespace.get(inode).kind is not FileKind.DIRECTORY:
            raise NotDirectory("not a directory")
        return self._handles.add_directory(DirectoryHandle(inode))

    def readdir(self, number: int, position: int) -> Iterator[DirectoryEntry]:
        """Entries from `position` on, which is 0 or came with an entry.

        Position 0 looks at the directory anew. From then on an entry that was there all along is
        given exactly once, whatever is created or removed meanwhile; one removed since is left out.
        """
        handle = self._handles.directory(number)
        if position == 0 or handle.items is None:
            self._files.touch_atime(self._namespace.get(handle.inode))
            self._handles.read_names(handle, self._namespace)
        assert handle.items is not None
        for at in range(position, len(handle.items)):
            name, inode, _kind = handle.items[at]
            try:
                value = self._namespace.get(inode)
            except NotFound:
                continue
            if value.nlink:
                yield DirectoryEntry(name, self._files.overlay(value), at + 1)

    def releasedir(self, number: int) -> None:
        """Close a directory."""
        self._handles.remove_directory(number)

    async def fsyncdir(self, number: int) -> None:
        """Every change of names so far is on stable storage (promise 9)."""
        self._handles.directory(number)
        await self._publication.durable(self._namespace.position)

    # -- files --------------------------------------------------------------------------------

    async def open(self, inode: InodeId, flags: int, caller: Caller) -> Opened:
        """Give a file a handle, as its flags ask."""
        return await self._files.open(self._namespace.get(inode), flags, caller)

    def read_nowait(self, number: int, offset: int, size: int) -> Buffer | None:
        """What `read` would return, if the bytes are at hand; else None."""
        return self._files.read_nowait(number, offset, size)

    async def read(self, number: int, offset: int, size: int) -> Buffer:
        """Bytes [offset, offset + size), clipped at the end of the file."""
        return await self._files.read(number, offset, size)

    def write_nowait(self, number: int, offset: int, data: Buffer) -> bool:
        """Write, if nothing has to be waited for; else False."""
        return self._files.write_nowait(number, offset, data)

    async def write(self, number: int, offset: int, data: Buffer) -> None:
        """Put `data` at `offset`, or at the end for O_APPEND; it must not change afterwards."""
        await self._files.write(number, offset, data)

    def is_clean(self, number: int) -> bool:
        """Whether a flush or release of the handle has nothing to wait for."""
        return self._files.is_clean(number) and not self.drafts.has(number)

    async def flush(self, number: int) -> None:
        """A close(2) of the handle: what it wrote is committed and visible."""
        await self.drafts.flush(number, self._files.flush)

    async def fsync(self, number: int) -> None:
        """Everything written is committed, visible and on stable storage."""
        await self._files.fsync(number)

    async def release(self, number: int) -> None:
        """The last close of a handle."""
        self.drafts.released(number)
        await self._files.release(number)

    def inode_of(self, number: int) -> InodeId:
        """The file behind a handle."""
        return self._handles.file(number).file.inode

    def contents_in_use(self) -> Iterable[tuple[InodeId, ContentRef]]:
        """What open files may still read, whatever the namespace says by now: for gc."""
        return self._files.contents_in_use()

    # -- the kernel's caches ------------------------------------------------------------------

    def is_contended(self, directory: InodeId) -> bool:
        """Whether the kernel should not cache names of this directory now."""
        return self._kernel.is_contended(directory)

    def directory_of(self, number: int) -> InodeId:
        """What an open directory handle reads."""
        return self._handles.directory(number).inode

    def remember(self, inode: InodeId) -> None:
        """The kernel is about to be given this inode once more (its lookup count grows)."""
        self._kernel.remember(inode)

    def forget(self, inode: InodeId, count: int) -> None:
        """The kernel gave back `count` lookups."""
        self._kernel.forget(inode, count)

    def changed(self, change: Change) -> None:
        """A commit of this node's namespace, from anywhere. Subscribed by the constructor."""
        expected = self._expected if change.local else None
        for inode in change.attributes:
            if inode not in change.contents:
                self._files.changed(inode, None, local=change.local)
        for inode, content in change.contents.items():
            self._files.changed(inode, content, local=change.local)
        if expected is None:
            for inode in change.attributes:
                self._files.recheck_links(inode, local=change.local)
        self._kernel.changed(
            change,
            expected=expected,
            keeps_pages=self._files.keeps_pages,
            unknown=self._files.note_shared,
        )

    async def invalidated(self, changes: Sequence[Change]) -> None:
        """Return when this mount's kernel has forgotten what `changes` changed.

        Not waited for is what the kernel cannot forget before a handler of this mount has returned.
        Bounded by `limits.INVALIDATION_TIMEOUT_S`.
        """
        readers, inodes = self._files.readers, [i for change in changes for i in change.contents]
        try:
            for inode in await readers.settled(inodes):
                self._kernel.readers_gone(inode, only_grown=readers.is_growing(inode))
            await self._kernel.invalidated(changes)
        finally:
            for inode in (shown := readers.pages_dropped(inodes)):
                self._kernel.attributes_changed(inode)
        await self._kernel.invalidated(changes if shown else ())  # their sizes, too

    def has_uncommitted(self, inode: InodeId) -> bool:
        """Whether `hand_over` has something to do."""
        return self._files.has_uncommitted(inode)

    async def hand_over(self, inode: InodeId) -> None:
        """Commit what is written here of a file that another mount may change next."""
        await self._files.hand_over(inode)

    # -- committing ---------------------------------------------------------------------------

    def _own(
        self,
        entries: tuple[EntryName, ...],
        verb: Callable[P, T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run a namespace verb that the kernel asked for: it knows what becomes of `entries`."""
        self._expected = entries
        try:
            return verb(*args, **kwargs)
        finally:
            self._expected = None

    async def _publish(self, *inodes: InodeId) -> None:
        """Wait until what was just committed is visible; the kernel has locked `inodes`.

        It is done: a strict write concern is for close and fsync, a name that was made is no error.
        """
        if self.drafts.all_own(inodes):
            return
        self._kernel.begin(inodes)
        try:
            with contextlib.suppress(Unavailable):
                await self._publication.visible(self._namespace.position)
        finally:
            self._kernel.end(inodes)

    async def _published(self, value: Inode, *inodes: InodeId) -> Inode:
        """Publish, and return `value` as it is afterwards."""
        before = self._kernel.foreign_changes
        await self._publish(*inodes)
        if self._kernel.foreign_changes != before:
            try:
                return self.getattr(value.inode)
            except DfsError:
                return value
        return self._files.overlay(value)
