"""What is open: one `OpenFile` per inode, one `FileHandle` or `DirectoryHandle` per open(2).

Handle numbers are never reused. An open file holds the present content of its inode for all its
handles, because the kernel's page cache knows only inodes. Readers keep a `ContentReader` each, so
that every sequential reader has its own read-ahead.

Sync and owned by the filesystem; nothing here waits or writes.
"""

import os
from typing import NamedTuple, TypeVar

from dfsfs.base.errors import BadHandle, NotFound, TooManyOpen
from dfsfs.base.limits import LISTED_NAMES_MAX, OPEN_HANDLES_MAX, READER_SETTLE_S
from dfsfs.base.types import ContentRef, FileKind, InodeId
from dfsfs.blocks import Storage
from dfsfs.content import ContentReader, NodeCache
from dfsfs.namespace import Inode, Namespace
from dfsfs.runtime import Bounds
from dfsfs.vfs.buffer import WriteBuffer

H = TypeVar("H")
DirectoryItem = tuple[bytes, InodeId, FileKind]


class OpenFile:
    """An inode with at least one handle, or with bytes not yet committed.

    `content` is what the namespace says. While `buffer` is there it rules instead: changes from
    elsewhere are noted in `content`, and seen when the buffer has been committed or given up.

    `cached` is what the kernel's page cache has, hence what every handle that uses it reads. It
    stays behind `content` while one of them is in the middle of the file, so that no reader gets a
    mixture of two versions (promise 6). Handles opened meanwhile bypass the page cache.
    """

    __slots__ = (
        "atime_due",
        "base",
        "bereft",
        "buffer",
        "cached",
        "capable",
        "committed",
        "content",
        "handles",
        "heir",
        "inode",
        "mtime_ns",
        "privileged",
        "settles_at_s",
        "unlinked",
        "unseen",
    )

    def __init__(self, inode: InodeId, content: ContentRef, *, privileged: bool) -> None:
        self.inode = inode
        self.content = content
        self.cached = content
        self.handles: set[FileHandle] = set()
        self.buffer: WriteBuffer | None = None
        self.base = content  # what `buffer` was made of, or committed last
        self.committed = 0  # `buffer.sequence` that the namespace and the mounts have seen
        self.unseen = 0  # position of a commit here that nobody has waited for yet
        self.mtime_ns = 0  # of the buffer's last change
        self.settles_at_s: float | None = None  # when `Readers` lets the page cache go on
        self.unlinked = False
        self.bereft = False  # removed by somebody who had not seen what is written here
        self.heir = inode  # the inode that has what is written: another if it had to be made again
        self.atime_due = True
        self.capable = True  # may have security.capability, for all we know
        self.privileged = privileged  # may have suid, sgid or capabilities that a write must clear

    def advance(self, now_s: float) -> bool:
        """Let the page cache have the present content, if nobody is in the middle of the old."""
        if self.cached is self.content or any(
            not handle.direct and handle.is_reading(now_s) for handle in self.handles
        ):
            return False
        self.cached = self.content
        return True

    def replace(self, content: ContentRef) -> None:
        """This mount wrote new content: all its handles see it."""
        self.content = self.cached = self.base = content
        for handle in self.handles:
            handle.content = None
            handle.restart()


class FileHandle:
    """One open(2) of a file.

    It keeps the version of its first read until it has come to the end, and stayed there for
    `limits.READER_SETTLE_S`: the kernel reads ahead of the reader, and asks for the last page again
    when a reader looks whether there is more. So `tail -f` moves on, and a reader that goes through
    a file never sees two versions.
    """

    __slots__ = (
        "append",
        "content",
        "direct",
        "end_s",
        "file",
        "outstanding",
        "patient",
        "readable",
        "reader",
        "root",
        "started",
        "sync",
        "writable",
    )

    def __init__(self, file: OpenFile, flags: int, *, root: bool, shared: bool) -> None:
        """`shared`: others change the file while it is read here."""
        mode = flags & os.O_ACCMODE
        self.file = file
        self.readable = mode in (os.O_RDONLY, os.O_RDWR)
        self.writable = mode in (os.O_WRONLY, os.O_RDWR)
        self.append = bool(flags & os.O_APPEND)
        self.sync = bool(flags & (os.O_SYNC | os.O_DSYNC))
        # A write through the page cache costs a second request, for security.capability. A handle
        # that can only write cannot be mapped, so it can do without (decision 7).
        # Nor should one that shares the page cache with readers of another version.
        self.direct = (
            self.readable != self.writable if shared else self.writable and not self.readable
        ) or file.cached is not file.content
        self.root = root  # opened by uid 0: writes leave suid and sgid alone
        self.end_s: float | None = None  # when it came to the end
        self.outstanding = 0  # reads that are not answered: a fetch may take long
        self.patient = True  # others wait for its reader: see `Readers`
        self.restart()
        self.reader: ContentReader | None = None
        self.content: ContentRef | None = None  # what `reader` reads

    def restart(self) -> None:
        """Its reader has seen nothing yet, as far as we know.

        Who only reads may be reading pages that the kernel has, of which we are not told. Who also
        writes counts when he is seen to read: such handles stay open long and do neither.
        """
        self.started = not self.writable
        self.end_s = None

    def is_reading(self, now_s: float) -> bool:
        """Whether it may be in the middle of its version."""
        if self.outstanding:
            return True
        return self.started and (self.end_s is None or now_s - self.end_s < READER_SETTLE_S)

    def reader_of(self, storage: Storage, wanted: ContentRef, nodes: NodeCache) -> ContentReader:
        """A reader of the version this handle is to see."""
        if self.reader is None or self.content is not wanted:
            self.content = wanted
            self.reader = ContentReader(storage, wanted, nodes=nodes)
            self.started, self.end_s = True, None
        return self.reader


class DirectoryEntry(NamedTuple):
    """One name as readdir(3) gives it; reading on at `position` gives the next."""

    name: bytes
    inode: Inode
    position: int


class DirectoryHandle:
    """One opendir(3): the names as they were when it was last read from its beginning.

    Positions count `.` and `..` first, so they stay valid whatever is created or removed meanwhile.
    """

    __slots__ = ("inode", "items")

    def __init__(self, inode: InodeId) -> None:
        self.inode = inode
        self.items: list[DirectoryItem] | None = None

    @property
    def count(self) -> int:
        """Names it holds."""
        return 0 if self.items is None else len(self.items)

    def read(self, namespace: Namespace) -> None:
        """Take the names as they are now; a removed directory has none."""
        try:
            parent = namespace.parent(self.inode)
            names = namespace.names(self.inode)
        except NotFound:
            self.items = []
            return
        dots = [
            (b".", self.inode, FileKind.DIRECTORY),
            (b"..", parent, FileKind.DIRECTORY),
        ]
        self.items = dots + names


class HandleTable:
    """All handles of a mount by number."""

    def __init__(self) -> None:
        self._files: dict[int, FileHandle] = {}
        self._directories: dict[int, DirectoryHandle] = {}
        self._next = 1
        self._listed = 0  # names that directory handles hold

    def __len__(self) -> int:
        return len(self._files) + len(self._directories)

    def bounded(self) -> Bounds:
        """What of it is bounded, and how full that is."""
        return {
            "open_handles": [len(self), OPEN_HANDLES_MAX],
            "listed_names": [self._listed, LISTED_NAMES_MAX],
        }

    def add_file(self, handle: FileHandle) -> int:
        """Number a handle."""
        return self._add(self._files, handle)

    def add_directory(self, handle: DirectoryHandle) -> int:
        """Number a handle."""
        return self._add(self._directories, handle)

    def _add(self, table: dict[int, H], handle: H) -> int:
        if len(self) >= OPEN_HANDLES_MAX:
            raise TooManyOpen("too many open files")
        number = self._next
        self._next += 1
        table[number] = handle
        return number

    def file(self, number: int) -> FileHandle:
        """The handle of an open file.

        Raises:
            BadHandle: no such handle.
        """
        try:
            return self._files[number]
        except KeyError:
            raise BadHandle(f"no open file {number}") from None

    def directory(self, number: int) -> DirectoryHandle:
        """The handle of an open directory.

        Raises:
            BadHandle: no such handle.
        """
        try:
            return self._directories[number]
        except KeyError:
            raise BadHandle(f"no open directory {number}") from None

    def remove_file(self, number: int) -> FileHandle:
        """Take a handle out; its number never comes back."""
        handle = self.file(number)
        del self._files[number]
        return handle

    def remove_directory(self, number: int) -> None:
        """Take a handle out; its number never comes back."""
        self._listed -= self.directory(number).count
        del self._directories[number]

    def read_names(self, handle: DirectoryHandle, namespace: Namespace) -> None:
        """Have an open directory hold its names as they are now.

        Raises:
            TooManyOpen: others hold so many that there is no room. One alone may hold any number.
        """
        self._listed -= handle.count
        handle.read(namespace)
        if self._listed and self._listed + handle.count > LISTED_NAMES_MAX:
            handle.items = None
            raise TooManyOpen("open directories hold too many names")
        self._listed += handle.count
