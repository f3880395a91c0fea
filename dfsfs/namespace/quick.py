"""The short way of the verbs: a handful of point statements where everything is ordinary.

Ordinary means: no cycle is cut anywhere; the directory is not merged and neither it nor anything
above it is only implicitly alive; the name is uncontested and could not collide with a conflict
name; the inode has no siblings, no contested names and was not revived. Then no pins are due, no
other name is affected, and the derived columns change by one here and there.

The rows are the same as those of the long way, and so is the view afterwards: the property tests
run histories in which both are taken. The `may_` methods are constant in the size of directories
and in the number of links; only the way up to the root counts, and that only while something in
the tree is implicit.
"""

from collections.abc import Mapping
from dataclasses import replace

from dfsfs.base.types import ROOT_INODE, ContentRef, FileKind, InodeId, LinkId, Origin, Stamp
from dfsfs.crdt import join
from dfsfs.namespace.conflicts import CONFLICT_MARK
from dfsfs.namespace.fallbacks import note_rename, note_written
from dfsfs.namespace.local import LocalState
from dfsfs.namespace.reading import Found, Reader
from dfsfs.namespace.rows import (
    CLASS_MADE,
    CLASS_MOVED,
    AttributeRow,
    ContentRow,
    Field,
    LinkRow,
    NodeRow,
    Row,
    TombstoneRow,
    TouchRow,
    decode_vector,
    encode_vector,
    unpack_owner,
)
from dfsfs.namespace.types import Inode, Removed
from dfsfs.namespace.working import ALONE, Irregular
from dfsfs.runtime import Database

_ORDINARY_INODE = (
    "SELECT 1 FROM inode i WHERE i.inode=? AND i.kind>0 AND i.explicit>0 AND i.siblings<2"
    " AND NOT EXISTS(SELECT 1 FROM link WHERE inode=i.inode AND role>1)"
)
_INSERT_INODE = (
    "INSERT INTO inode(inode, kind, mode, uid, gid, rdev, target, time, origin, mtime_ns, changed,"
    " explicit, nlink) VALUES(?,?,?,?,?,?,?,?,?,?,?,1,?)"
)
_INSERT_LINK = (
    "INSERT INTO link(link, inode, parent, name, previous, class, time, origin, live, directory,"
    " role) VALUES(?,?,?,?,?,?,?,?,1,?,1)"
)
_MOVE_LINK = (
    "UPDATE link SET parent=?, name=?, previous=?, class=?, time=?, origin=?, directory=?"
    " WHERE link=?"
)
_TOUCH_DIRECTORY = (
    "UPDATE inode SET touch_time=?1, touch_origin=?2, changed=?1, mtime_ns=?1*1000,"
    " children=children+?3, nlink=nlink+?4 WHERE inode=?5"
)
_WRITE_CONTENT = (
    "INSERT OR REPLACE INTO content(inode, writer, time, size, root, inline, shift, stored,"
    " mtime_ns, vector, dot_time, dot_origin) VALUES(?,?,?,?,?,?,?,?,?,?,?,?)"
)


class Quick:
    """Owned by the namespace; asked by verbs and edits."""

    def __init__(
        self, database: Database, local: LocalState, reader: Reader, irregular: Irregular
    ) -> None:
        self._database = database
        self._local = local
        self._reader = reader
        self._irregular = irregular

    # -- whether ------------------------------------------------------------------------------

    def may_name(self, directory: InodeId, name: bytes) -> bool:
        """Whether an uncontested `name` can come or go in `directory` without touching others."""
        return self._is_ordinary_directory(directory) and CONFLICT_MARK not in name

    def may_change(self, inode: InodeId) -> bool:
        """Whether an inode can get content or links without touching others."""
        irregular = self._irregular
        if irregular.broken:
            return False
        if irregular.implicit:  # somewhere: is it above the first name of this file?
            home = self._database.value("SELECT directory FROM link WHERE link=?", (inode,))
            if home is None or not self._is_ordinary_directory(home):
                return False
        return self._database.row(_ORDINARY_INODE, (inode,)) is not None

    def may_change_entry(self, found: Found) -> bool:
        """Whether an entry can be removed or moved without touching others."""
        irregular = self._irregular
        inode = found.inode
        return (
            found.role == ALONE
            and not found.is_copy
            and inode not in irregular.members
            and inode not in irregular.merged
            and inode not in irregular.implicit
            and self.may_name(found.directory, found.name)
            and self._database.row(_ORDINARY_INODE, (inode,)) is not None
        )

    def is_known(self, inode: InodeId) -> bool:
        """Whether an inode has rows of its own, unlike a conflict copy."""
        return (
            self._database.row("SELECT 1 FROM inode WHERE inode=? AND kind>0", (inode,)) is not None
        )

    def _is_ordinary_directory(self, directory: InodeId) -> bool:
        irregular = self._irregular
        if irregular.broken or directory in irregular.members or directory in irregular.merged:
            return False
        if irregular.implicit:
            while directory != ROOT_INODE:
                if directory in irregular.implicit or directory in irregular.members:
                    return False
                directory = self._reader.parent(directory)
        return True

    # -- names --------------------------------------------------------------------------------

    def create(self, node: NodeRow, directory: InodeId, name: bytes) -> Inode:
        """An inode under a new name."""
        stamp = self._stamp()
        inode = node.inode
        is_directory = node.kind == FileKind.DIRECTORY
        node = node._replace(stamp=stamp)
        merge_class = CLASS_MADE if is_directory else CLASS_MOVED
        link = LinkRow(stamp, LinkId(inode), inode, directory, name, ROOT_INODE, merge_class)
        born_ns = stamp.time * 1000
        execute = self._database.execute
        with self._local.undoing(), self._database.transaction():
            execute(
                _INSERT_INODE,
                (
                    inode, int(node.kind), node.mode, node.uid, node.gid, node.rdev, node.target,
                    stamp.time, stamp.origin, born_ns, stamp.time, int(not is_directory),
                ),
            )  # fmt: skip
            execute(_INSERT_LINK, (*link[1:], *stamp, directory))
            self._touch(stamp, directory, children=1, directories=int(is_directory))
            if not is_directory:
                self._irregular.files += 1
            self._save(stamp)
        made = Inode(
            inode=inode,
            kind=FileKind(node.kind),
            mode=node.mode,
            uid=node.uid,
            gid=node.gid,
            nlink=2 if is_directory else 1,
            size=len(node.target),
            rdev=node.rdev,
            atime_ns=born_ns,
            mtime_ns=born_ns,
            ctime_ns=born_ns,
            birth_ns=born_ns,
            content=_EMPTY,
            target=node.target,
        )
        self._touched(stamp, directory, directories=int(is_directory))
        self._reader.remember(made)
        rows: list[Row] = [node, link, TouchRow(stamp, directory)]
        self._local.announce(
            stamp, rows, entries=((directory, name),), attributes=(directory, inode)
        )
        return made

    def link(self, inode: InodeId, link: LinkId, directory: InodeId, name: bytes) -> Inode:
        """Another name of a file."""
        stamp = self._stamp()
        row = LinkRow(stamp, link, inode, directory, name, ROOT_INODE, CLASS_MOVED)
        with self._local.undoing(), self._database.transaction():
            self._database.execute(_INSERT_LINK, (*row[1:], *stamp, directory))
            self._database.execute(
                "UPDATE inode SET explicit=explicit+1, nlink=nlink+1, changed=? WHERE inode=?",
                (stamp.time, inode),
            )
            self._touch(stamp, directory, children=1)
            self._save(stamp)
        self._touched(stamp, directory)
        self._reader.forget([inode])
        self._local.announce(
            stamp,
            [row, TouchRow(stamp, directory)],
            entries=((directory, name),),
            attributes=(directory, inode),
        )
        return self._reader.get(inode)

    def remove(self, found: Found) -> Removed:
        """The name of a file, or of an empty directory."""
        stamp = self._stamp()
        inode = self._reader.get(found.inode)
        with self._local.undoing(), self._database.transaction():
            rows = self._remove(stamp, found, inode)
            is_directory = inode.kind == FileKind.DIRECTORY
            self._touch(stamp, found.directory, children=-1, directories=-int(is_directory))
            self._save(stamp)
        self._touched(stamp, found.directory, directories=-int(is_directory))
        self._reader.forget([found.inode])
        self._local.announce(
            stamp,
            [*rows, TouchRow(stamp, found.directory)],
            entries=((found.directory, found.name),),
            attributes=(found.directory, found.inode),
        )
        return Removed(found.inode, 0 if is_directory else inode.nlink - 1)

    def rename(
        self, found: Found, directory: InodeId, name: bytes, target: Found | None
    ) -> Removed | None:
        """A name moves, maybe over another."""
        stamp = self._stamp()
        moved = self._reader.get(found.inode)
        is_directory = moved.kind == FileKind.DIRECTORY
        previous = found.directory if is_directory else ROOT_INODE
        row = LinkRow(stamp, found.link, found.inode, directory, name, previous, CLASS_MOVED)
        rows: list[Row] = [row]
        removed = None
        entries = ((found.directory, found.name), (directory, name))
        with self._local.undoing(), self._database.transaction():
            gone = 0
            if target is not None:
                replaced = self._reader.get(target.inode)
                rows += self._remove(stamp, target, replaced)
                note_rename(self._database, found.inode, target.inode)
                gone = 1
                last = replaced.kind == FileKind.DIRECTORY
                removed = Removed(target.inode, 0 if last else replaced.nlink - 1)
            self._database.execute(
                _MOVE_LINK, (directory, name, previous, CLASS_MOVED, *stamp, directory, found.link)
            )
            self._database.execute(
                "UPDATE inode SET changed=? WHERE inode=?", (stamp.time, found.inode)
            )
            if directory != found.directory:
                self._touch(stamp, found.directory, children=-1, directories=-int(is_directory))
                rows.append(TouchRow(stamp, found.directory))
            arriving = int(directory != found.directory)
            subdirectories = int(is_directory) * (arriving - gone)
            self._touch(stamp, directory, children=arriving - gone, directories=subdirectories)
            rows.append(TouchRow(stamp, directory))
            self._save(stamp)
        changed = {found.inode, found.directory, directory}
        if target is not None:
            changed.add(target.inode)
        self._reader.forget(changed)
        self._local.announce(stamp, rows, entries=entries, attributes=tuple(sorted(changed)))
        return removed

    def _remove(self, stamp: Stamp, found: Found, inode: Inode) -> list[Row]:
        """The tombstone of a link; its inode may have others."""
        database = self._database
        seen = database.row("SELECT time, origin FROM link WHERE link=?", (found.link,))
        assert seen is not None
        vector: dict[Origin, int] | None = None
        left = 0 if inode.kind == FileKind.DIRECTORY else inode.nlink - 1
        if left == 0 and inode.kind != FileKind.DIRECTORY:
            vector = self._seen(found.inode)
        row = TombstoneRow(stamp, found.link, Stamp(*seen), vector)
        database.execute(
            "INSERT OR REPLACE INTO tombstone(link, seen_time, seen_origin, vector, time, origin)"
            " VALUES(?,?,?,?,?,?)",
            (found.link, *seen, None if vector is None else encode_vector(vector), *stamp),
        )
        database.execute(
            "UPDATE link SET live=0, directory=NULL, role=0 WHERE link=?", (found.link,)
        )
        if left:
            database.execute(
                "UPDATE inode SET explicit=explicit-1, nlink=nlink-1, changed=?1, touch_time=?1,"
                " touch_origin=?2 WHERE inode=?3",
                (*stamp, found.inode),
            )
            return [row, TouchRow(stamp, found.inode)]
        if inode.kind == FileKind.DIRECTORY:
            database.execute("UPDATE inode SET explicit=0 WHERE inode=?", (found.inode,))
        else:
            database.execute("UPDATE inode SET explicit=0, nlink=0 WHERE inode=?", (found.inode,))
            self._irregular.files -= 1
            if inode.kind == FileKind.REGULAR:
                self._irregular.bytes -= inode.size
        return [row]

    # -- inodes -------------------------------------------------------------------------------

    def write(self, found: Inode, content: ContentRef, mtime_ns: int) -> Inode:
        """Other bytes in a file."""
        stamp = self._stamp()
        vector = self._seen(found.inode)
        vector.pop(stamp.origin, None)
        row = ContentRow(stamp, found.inode, content, mtime_ns, vector, stamp)
        with self._local.undoing(), self._database.transaction():
            note_written(self._database, found.inode, stamp, content)
            self._database.execute(
                _WRITE_CONTENT,
                (
                    found.inode, stamp.origin, stamp.time, content.size, content.root,
                    content.inline, content.shift, content.stored, mtime_ns, encode_vector(vector),
                    *stamp,
                ),
            )  # fmt: skip
            self._database.execute(
                "UPDATE inode SET writer=?, siblings=1, size=?, mtime_ns=?, changed=?"
                " WHERE inode=?",
                (stamp.origin, content.size, mtime_ns, stamp.time, found.inode),
            )
            self._irregular.bytes += content.size - found.size
            self._save(stamp)
        written = replace(
            found,
            size=content.size,
            mtime_ns=mtime_ns,
            ctime_ns=stamp.time * 1000,
            content=content,
        )
        self._reader.remember(written)
        self._local.announce(
            stamp, [row], attributes=(found.inode,), contents={found.inode: content}
        )
        return written

    def set_attributes(self, found: Inode, fields: list[tuple[Field, int | bytes]]) -> Inode:
        """Mode, owner, times."""
        stamp = self._stamp()
        changes: dict[str, int] = {}
        columns: dict[str, int] = {}
        with self._local.undoing(), self._database.transaction():
            for field, value in fields:
                self._database.execute(
                    "INSERT OR REPLACE INTO attribute(inode, field, value, time, origin)"
                    " VALUES(?,?,?,?,?)",
                    (found.inode, int(field), value, *stamp),
                )
                if field == Field.OWNER:
                    assert isinstance(value, bytes)
                    changes["uid"], changes["gid"] = unpack_owner(value)
                    columns["set_uid"], columns["set_gid"] = changes["uid"], changes["gid"]
                else:
                    assert isinstance(value, int)
                    attribute, column = _COLUMNS[field]
                    changes[attribute] = columns[column] = value
            columns["changed"] = stamp.time
            assigned = ", ".join(f"{column}=?" for column in columns)
            self._database.execute(
                f"UPDATE inode SET {assigned} WHERE inode=?", (*columns.values(), found.inode)
            )
            self._save(stamp)
        changes["ctime_ns"] = stamp.time * 1000
        changed = replace(found, **changes)  # type: ignore[arg-type]  # all of them are numbers
        self._reader.remember(changed)
        rows: list[Row] = [
            AttributeRow(stamp, found.inode, field, value) for field, value in fields
        ]
        copies = self._reader.copies_of(found.inode)
        self._reader.forget(copies)
        self._local.announce(stamp, rows, attributes=(found.inode, *copies))
        return changed

    # -- shared -------------------------------------------------------------------------------

    def _stamp(self) -> Stamp:
        return Stamp(self._local.clock.tick(), self._local.origin)

    def _seen(self, inode: InodeId) -> dict[Origin, int]:
        """All contents of a file, as its caller sees them."""
        vector: dict[Origin, int] = {}
        for writer, time, replaced in self._database.rows(
            "SELECT writer, time, vector FROM content WHERE inode=?", (inode,)
        ):
            join(vector, {writer: time})
            if replaced:
                join(vector, decode_vector(replaced))
        return vector

    def _touch(
        self, stamp: Stamp, directory: InodeId, *, children: int = 0, directories: int = 0
    ) -> None:
        self._database.execute(
            _TOUCH_DIRECTORY, (stamp.time, stamp.origin, children, directories, directory)
        )
        self._irregular.directories += directories

    def _touched(self, stamp: Stamp, directory: InodeId, *, directories: int = 0) -> None:
        """What `_touch` did, in the cache."""
        cached = self._reader.cached(directory)
        if cached is not None:
            now_ns = stamp.time * 1000
            nlink = cached.nlink + directories
            self._reader.remember(replace(cached, mtime_ns=now_ns, ctime_ns=now_ns, nlink=nlink))

    def _save(self, stamp: Stamp) -> None:
        self._local.advance(stamp)


_EMPTY = ContentRef(0)
_COLUMNS: Mapping[Field, tuple[str, str]] = {
    Field.MODE: ("mode", "set_mode"),
    Field.ATIME: ("atime_ns", "atime_ns"),
    Field.MTIME: ("mtime_ns", "mtime_ns"),
}
