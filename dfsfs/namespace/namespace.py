"""The namespace of one node: what the vfs calls, and what the cluster exchanges.

Every method is one SQLite transaction at most and never awaits, hence atomic towards other tasks.
"""

from collections.abc import Callable, Mapping, Sequence

from dfsfs.base.types import ContentRef, FileKind, InodeId, Origin
from dfsfs.crdt import HybridClock
from dfsfs.namespace.types import (
    AttributeChanges,
    Batch,
    Change,
    Conflict,
    Entry,
    Inode,
    Removed,
    SnapshotPage,
    Totals,
)
from dfsfs.runtime import Database


class Namespace:
    """This node's replica of all rows, and the tree they make."""

    def __init__(
        self,
        database: Database,
        *,
        origin: Origin,
        clock: HybridClock,
        node_name: Callable[[Origin], str],
    ) -> None:
        """`database` was opened with `SCHEMA` and `SCHEMA_VERSION` and belongs to this object."""
        raise NotImplementedError

    # -- reading ------------------------------------------------------------------------------

    def get(self, inode: InodeId) -> Inode:
        raise NotImplementedError

    def lookup(self, parent: InodeId, name: bytes) -> Inode:
        raise NotImplementedError

    def list(self, directory: InodeId, after: bytes | None, limit: int) -> list[Entry]:
        raise NotImplementedError

    def names(self, directory: InodeId) -> "list[tuple[bytes, InodeId, FileKind]]":
        raise NotImplementedError

    def parent(self, directory: InodeId) -> InodeId:
        raise NotImplementedError

    def path(self, inode: InodeId) -> bytes:
        raise NotImplementedError

    def has_children(self, directory: InodeId) -> bool:
        raise NotImplementedError

    # -- verbs --------------------------------------------------------------------------------

    def create(
        self,
        parent: InodeId,
        name: bytes,
        *,
        kind: FileKind,
        mode: int,
        uid: int,
        gid: int,
        rdev: int = 0,
        target: bytes = b"",
    ) -> Inode:
        raise NotImplementedError

    def link(self, inode: InodeId, parent: InodeId, name: bytes) -> Inode:
        raise NotImplementedError

    def unlink(self, parent: InodeId, name: bytes) -> Removed:
        raise NotImplementedError

    def rmdir(self, parent: InodeId, name: bytes) -> Removed:
        raise NotImplementedError

    def rename(
        self,
        parent: InodeId,
        name: bytes,
        new_parent: InodeId,
        new_name: bytes,
        *,
        exchange: bool = False,
        no_replace: bool = False,
    ) -> Removed | None:
        raise NotImplementedError

    def write(self, inode: InodeId, content: ContentRef, *, mtime_ns: int) -> Inode:
        raise NotImplementedError

    def set_attributes(self, inode: InodeId, changes: AttributeChanges) -> Inode:
        raise NotImplementedError

    def get_xattr(self, inode: InodeId, name: bytes) -> bytes:
        raise NotImplementedError

    def list_xattrs(self, inode: InodeId) -> "list[bytes]":
        raise NotImplementedError

    def set_xattr(
        self,
        inode: InodeId,
        name: bytes,
        value: bytes,
        *,
        create: bool = False,
        replace: bool = False,
    ) -> None:
        raise NotImplementedError

    def remove_xattr(self, inode: InodeId, name: bytes) -> None:
        raise NotImplementedError

    def touch_atime(self, inode: InodeId, atime_ns: int) -> None:
        raise NotImplementedError

    def hold_orphan(self, inode: InodeId) -> None:
        """An inode that lost its last link is open here: its content counts in `contents`."""
        raise NotImplementedError

    def drop_orphan(self, inode: InodeId) -> None:
        raise NotImplementedError

    # -- exchange -----------------------------------------------------------------------------

    @property
    def position(self) -> int:
        raise NotImplementedError

    def have(self) -> dict[Origin, int]:
        raise NotImplementedError

    def feed(self, origin: Origin, after: int, *, bytes_max: int) -> Batch | None:
        raise NotImplementedError

    def apply(self, batches: Sequence[Batch]) -> "list[Change]":
        raise NotImplementedError

    def snapshot(self, cursor: bytes | None, *, bytes_max: int) -> SnapshotPage:
        raise NotImplementedError

    def load(self, page: SnapshotPage) -> None:
        raise NotImplementedError

    def finish_load(self, have: Mapping[Origin, int]) -> "list[Change]":
        raise NotImplementedError

    def subscribe(self, callback: Callable[[Change], None]) -> None:
        raise NotImplementedError

    # -- whole tree ---------------------------------------------------------------------------

    def conflicts(self, after: tuple[InodeId, bytes] | None, limit: int) -> "list[Conflict]":
        raise NotImplementedError

    def contents(self, after: InodeId | None, limit: int) -> "list[tuple[InodeId, ContentRef]]":
        raise NotImplementedError

    def totals(self) -> Totals:
        raise NotImplementedError

    def check(self) -> "list[str]":
        raise NotImplementedError
