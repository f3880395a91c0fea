"""What the namespace takes and gives. Names are bytes; times are nanoseconds since the epoch."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from dfsfs.base.types import ContentRef, FileKind, InodeId, Origin, Stamp


@dataclass(frozen=True, slots=True, kw_only=True)
class Inode:
    """What stat(2) shows of an inode in the current view, and where its bytes are."""

    inode: InodeId
    kind: FileKind
    mode: int  # permission bits, suid, sgid, sticky: 0o7777
    uid: int
    gid: int
    nlink: int  # 0: no live link, the node's own private copy until the last close
    size: int  # bytes; length of the target for symlinks
    rdev: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    birth_ns: int
    content: ContentRef  # regular files; EMPTY_CONTENT otherwise
    target: bytes  # symlinks; b"" otherwise


@dataclass(frozen=True, slots=True)
class Entry:
    """One name of a directory as users see it (a conflict copy's name is made up by the view)."""

    name: bytes
    inode: Inode


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributeChanges:
    """Fields of setattr; None leaves one alone. Size is not among them: see `Namespace.write`."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Removed:
    """An inode that lost a name; `nlink` 0 means it was the last (a directory always is)."""

    inode: InodeId
    nlink: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Transactions of one origin, in stamp order, ready for the wire.

    It follows position `after` of that origin and reaches `upto`: whoever holds everything up to
    `after` holds everything up to `upto` once it is applied. `rows` is the canonical encoding
    (codec, versioned) of all rows with after < stamp <= upto still current at the sender.
    """

    origin: Origin
    after: int
    upto: int
    rows: bytes


@dataclass(frozen=True, slots=True)
class Change:
    """What one commit, local or applied, changed in the view: for kernel caches and for fetching.

    `entries`: names whose binding may have changed, as (directory, name). `attributes`: inodes
    whose attributes may have changed. `contents`: files whose bytes changed, with their new ref.
    `directories`: directories where more changed than entries names (merge, revival): forget all
    their entries. `local` tells whether this node's own verb did it.
    """

    stamp: Stamp
    local: bool
    entries: tuple[tuple[InodeId, bytes], ...] = ()
    attributes: tuple[InodeId, ...] = ()
    contents: Mapping[InodeId, ContentRef] = field(default_factory=dict)
    directories: tuple[InodeId, ...] = ()
    batch: Batch | None = None  # local commits: the rows to push, following the commit before


@dataclass(frozen=True, slots=True)
class Conflict:
    """A conflict copy in the view: shown as `name` in `directory`, beside `original`."""

    directory: InodeId
    name: bytes
    original: bytes
    inode: InodeId
    writer: Origin
    time: int  # microseconds, from the stamp


@dataclass(frozen=True, slots=True)
class ContentsPage:
    """Some contents that inodes refer to, and where to go on; it may be empty and not the last."""

    contents: list[tuple[InodeId, ContentRef]]  # those of an inode come together
    next: InodeId | None  # the last inode that was looked at; None: there are no more


@dataclass(frozen=True, slots=True)
class SnapshotPage:
    """Rows of every origin, by kind and key; `next` is the cursor of the page after."""

    rows: bytes
    next: bytes | None


@dataclass(frozen=True, slots=True)
class Totals:
    """What statfs counts: shown inodes, and the sizes of regular files."""

    files: int  # everything that is not a directory
    directories: int  # the root included
    bytes: int
