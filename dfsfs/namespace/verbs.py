"""The changes a user can make to names: create, link, unlink, rmdir, rename.

A verb checks its preconditions against the view, pins what is implicit around it, and joins the
plain rows that say what was asked for, in one transaction. Preconditions are checked before the
transaction opens: nothing awaits in between, so nothing can change.
What is ordinary on both sides takes the short way of `quick`, with the same outcome.

Permissions are the business of vfs and kernel.
"""

from dfsfs.base.errors import (
    Exists,
    Invalid,
    IsDirectory,
    NameTooLong,
    NotDirectory,
    NotEmpty,
    NotFound,
    NotPermitted,
    TooManyLinks,
)
from dfsfs.base.limits import LINKS_MAX, NAME_BYTES_MAX, SYMLINK_BYTES_MAX
from dfsfs.base.types import ROOT_INODE, ZERO_STAMP, FileKind, InodeId, LinkId, Stamp
from dfsfs.namespace.local import LocalState, Transaction
from dfsfs.namespace.pins import Pins, removals
from dfsfs.namespace.quick import Quick
from dfsfs.namespace.reading import Found, Reader
from dfsfs.namespace.rows import (
    CLASS_MADE,
    CLASS_MOVED,
    LinkRow,
    NodeRow,
    Row,
    TouchRow,
    is_name,
)
from dfsfs.namespace.types import Inode, Removed
from dfsfs.namespace.working import Irregular


class Verbs:
    """Owned by the namespace."""

    def __init__(
        self, local: LocalState, reader: Reader, irregular: Irregular, quick: Quick
    ) -> None:
        self._local = local
        self._reader = reader
        self._irregular = irregular
        self._quick = quick

    # -- making -------------------------------------------------------------------------------

    def create(
        self,
        parent: InodeId,
        name: bytes,
        *,
        kind: FileKind,
        mode: int,
        uid: int,
        gid: int,
        rdev: int,
        target: bytes,
    ) -> Inode:
        """Make an inode under a new name; see Namespace.create."""
        if (kind == FileKind.SYMLINK) != bool(target) or b"\0" in target:
            raise Invalid("a symlink has a target, and nothing else has")
        if len(target) > SYMLINK_BYTES_MAX:
            raise NameTooLong("the target of a symlink is too long")
        directory = self._new_name(parent, name)
        inode = self._local.new_id()
        node = NodeRow(_UNSTAMPED, inode, kind, mode & 0o7777, uid, gid, rdev, target)
        if self._quick.may_name(directory, name):
            return self._quick.create(node, directory, name)
        with self._local.transaction() as transaction:
            self._pin(transaction, directory)
            stamp = transaction.stamp()
            merge_class = CLASS_MADE if kind == FileKind.DIRECTORY else CLASS_MOVED
            link = LinkRow(stamp, LinkId(inode), inode, directory, name, ROOT_INODE, merge_class)
            transaction.join([node._replace(stamp=stamp), link, TouchRow(stamp, directory)])
        return self._reader.get(inode)

    def link(self, inode: InodeId, parent: InodeId, name: bytes) -> Inode:
        """Give a file another name; see Namespace.link."""
        found = self._reader.get(inode)
        if found.kind == FileKind.DIRECTORY:
            raise NotPermitted("a directory has one name")
        directory = self._new_name(parent, name)
        if found.nlink == 0:
            raise NotFound(f"inode {inode} has been removed")
        if found.nlink >= LINKS_MAX:
            raise TooManyLinks(f"inode {inode} has {found.nlink} links")
        link = LinkId(self._local.new_id())
        if self._quick.may_name(directory, name) and self._quick.may_change(inode):
            return self._quick.link(inode, link, directory, name)
        with self._local.transaction() as transaction:
            self._pin(transaction, directory, inode=inode)
            stamp = transaction.stamp()
            row = LinkRow(stamp, link, inode, directory, name, ROOT_INODE, CLASS_MOVED)
            transaction.join([row, TouchRow(stamp, directory)])
        return self._reader.get(inode)

    # -- removing -----------------------------------------------------------------------------

    def unlink(self, parent: InodeId, name: bytes) -> Removed:
        """Remove a name that is not a directory's; see Namespace.unlink."""
        found = self._existing(parent, name)
        inode = self._reader.get(found.inode)
        if inode.kind == FileKind.DIRECTORY:
            raise IsDirectory(f"{name!r} is a directory")
        return self._remove(found)

    def rmdir(self, parent: InodeId, name: bytes) -> Removed:
        """Remove an empty directory; see Namespace.rmdir."""
        found = self._existing(parent, name)
        if self._reader.get(found.inode).kind != FileKind.DIRECTORY:
            raise NotDirectory(f"{name!r} is not a directory")
        if self._reader.has_children(found.inode):
            raise NotEmpty(f"{name!r} has entries")
        return self._remove(found)

    def _remove(self, found: Found) -> Removed:
        if self._quick.may_change_entry(found):
            return self._quick.remove(found)
        with self._local.transaction() as transaction:
            self._pin(transaction, entries=[found])
            found = self._again(found)
            stamp = transaction.stamp()
            transaction.join(
                [*self._removal(transaction, found, stamp), TouchRow(stamp, found.directory)]
            )
        return self._removed(found.inode)

    def _removal(self, transaction: Transaction, found: Found, stamp: Stamp) -> list[Row]:
        """Tombstones of one pinned entry; a file that keeps other names shows it in its ctime."""
        links = self._links_of(found)
        rows = removals(transaction.work, stamp, links)
        if self._reader.get(found.inode).nlink > 1 and links == [found.link]:
            rows.append(TouchRow(stamp, found.inode))
        return rows

    def _removed(self, inode: InodeId) -> Removed:
        return Removed(inode, self._reader.get(inode).nlink)

    # -- moving -------------------------------------------------------------------------------

    def rename(
        self,
        parent: InodeId,
        name: bytes,
        new_parent: InodeId,
        new_name: bytes,
        *,
        exchange: bool,
        no_replace: bool,
    ) -> Removed | None:
        """Move a name, or exchange two; see Namespace.rename."""
        if exchange and no_replace:
            raise Invalid("a rename either exchanges or does not replace")
        found = self._existing(parent, name)
        directory = self._name_in(new_parent, new_name)
        target = self._reader.find(directory, new_name)
        if target is None and exchange:
            raise NotFound(f"no entry {new_name!r}")
        if target is not None and no_replace:
            raise Exists(f"{new_name!r} exists")
        moved = self._reader.get(found.inode)
        if moved.kind == FileKind.DIRECTORY:
            self._check_not_below(found.inode, directory)
        if target is not None:
            replaced = self._reader.get(target.inode)
            if exchange and replaced.kind == FileKind.DIRECTORY:
                self._check_not_below(target.inode, found.directory)
            if target.inode == found.inode:
                return None  # POSIX: two names of one file, nothing happens
            if not exchange:
                self._check_replaceable(moved, replaced)
        if not exchange and self._may_rename_quickly(found, directory, new_name, target):
            return self._quick.rename(found, directory, new_name, target)
        self._rename(found, directory, new_name, target, exchange=exchange)
        return None if target is None or exchange else self._removed(target.inode)

    def _may_rename_quickly(
        self,
        found: Found,
        directory: InodeId,
        new_name: bytes,
        target: Found | None,
    ) -> bool:
        return (
            self._quick.may_name(directory, new_name)
            and self._quick.may_change_entry(found)
            and (target is None or self._quick.may_change_entry(target))
        )

    def _rename(
        self,
        found: Found,
        directory: InodeId,
        new_name: bytes,
        target: Found | None,
        *,
        exchange: bool,
    ) -> None:
        entries = [found] if target is None else [found, target]
        with self._local.transaction() as transaction:
            self._pin(transaction, directory, entries=entries)
            found = self._again(found)
            stamp = transaction.stamp()
            rows = self._moves(found, directory, new_name, stamp)
            if target is not None:
                target = self._again(target)
                if exchange:
                    rows += self._moves(target, found.directory, found.name, stamp)
                else:
                    rows += self._removal(transaction, target, stamp)
            rows += [TouchRow(stamp, touched) for touched in sorted({found.directory, directory})]
            transaction.join(rows)

    def _moves(self, found: Found, directory: InodeId, name: bytes, stamp: Stamp) -> list[Row]:
        is_directory = self._reader.get(found.inode).kind == FileKind.DIRECTORY
        links = self._links_of(found)
        previous = found.directory if is_directory else ROOT_INODE
        # Several directories shown as one stay one, and merge with nothing they meet.
        merge_class = found.inode if len(links) > 1 else CLASS_MOVED
        return [
            LinkRow(
                stamp,
                link,
                InodeId(link) if is_directory else found.inode,
                directory,
                name,
                previous,
                merge_class,
            )
            for link in links
        ]

    def _check_not_below(self, moved: InodeId, directory: InodeId) -> None:
        while directory != ROOT_INODE:
            if directory == moved:
                raise Invalid("a directory cannot be moved into itself")
            directory = self._reader.parent(directory)

    def _check_replaceable(self, moved: Inode, replaced: Inode) -> None:
        if moved.kind == FileKind.DIRECTORY:
            if replaced.kind != FileKind.DIRECTORY:
                raise NotDirectory("a directory cannot replace something else")
            if self._reader.has_children(replaced.inode):
                raise NotEmpty("the directory to replace has entries")
        elif replaced.kind == FileKind.DIRECTORY:
            raise IsDirectory("only a directory can replace a directory")

    # -- shared -------------------------------------------------------------------------------

    def _pin(
        self,
        transaction: Transaction,
        *directories: InodeId,
        entries: list[Found] | None = None,
        inode: InodeId | None = None,
    ) -> None:
        pin(transaction, self._reader, self._local, directories, entries or [], inode)

    def _again(self, found: Found) -> Found:
        """An entry after pins: the same name and inode, now on rows of its own."""
        again = self._reader.find(found.directory, found.name)
        assert again is not None
        assert again.inode == found.inode
        assert not again.is_copy
        return again

    def _links_of(self, found: Found) -> list[LinkId]:
        """A file's entry is one link; a merged directory has one for each member."""
        if found.link != LinkId(found.inode):
            return [found.link]
        return [LinkId(member) for member in self._irregular.class_of(found.inode)]

    def _existing(self, parent: InodeId, name: bytes) -> Found:
        if len(name) > NAME_BYTES_MAX:
            raise NameTooLong("a name is too long")
        found = self._reader.find(parent, name)
        if found is None:
            self._reader.directory(parent)
            raise NotFound(f"no entry {name!r}")
        return found

    def _name_in(self, parent: InodeId, name: bytes) -> InodeId:
        """The shown directory a name is to be made in, which must be live."""
        if len(name) > NAME_BYTES_MAX:
            raise NameTooLong("a name is too long")
        if not is_name(name):
            raise Invalid(f"{name!r} cannot be a name")
        directory = self._reader.directory(self._irregular.representative(parent))
        if directory.nlink == 0:
            raise NotFound(f"directory {parent} has been removed")
        return directory.inode

    def _new_name(self, parent: InodeId, name: bytes) -> InodeId:
        directory = self._name_in(parent, name)
        if self._reader.find(directory, name) is not None:
            raise Exists(f"{name!r} exists")
        return directory


def pin(
    transaction: Transaction,
    reader: Reader,
    local: LocalState,
    directories: "tuple[InodeId, ...]",
    entries: list[Found],
    inode: InodeId | None = None,
) -> None:
    """Make explicit what a verb is about to touch, as the first step of its transaction."""
    pins = Pins(transaction.work, reader, local.origin)
    pins.pin_cycles()
    for directory in directories:
        pins.pin_directory(directory)
    for found in entries:
        pins.pin_entry(found)
    if inode is not None:
        if transaction.work.inode(inode).kind == 0:
            pins.pin_copy(inode)
        else:
            pins.pin_home(inode)
            pins.pin_file(inode)
    stamp = Stamp(0, local.origin)
    if pins.rows(stamp):
        transaction.join(pins.rows(transaction.stamp()))
        reader.forget_all()


_UNSTAMPED = ZERO_STAMP  # replaced before it is used
