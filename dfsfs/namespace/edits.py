"""The changes a user can make to an inode: content, attributes, extended attributes.

An inode without live links is its opener's private affair: what is changed there stays in the table
`orphan` of this node, so that a write into an open, removed file cannot revive it elsewhere. It
goes with the last close, or at the next start.
"""

import logging

from dfsfs.base.codec import encode
from dfsfs.base.errors import DfsError, Exists, Full, Invalid, IsDirectory, NoAttribute, NotFound
from dfsfs.base.limits import (
    FILE_BYTES_MAX,
    INLINE_BYTES_MAX,
    PATCHES_PACKED_BYTES_MAX,
    XATTR_INODE_BYTES_MAX,
    XATTR_NAME_BYTES_MAX,
    XATTR_VALUE_BYTES_MAX,
)
from dfsfs.base.types import ROOT_INODE, ContentRef, FileKind, InodeId, Stamp
from dfsfs.namespace.conflicts import siblings
from dfsfs.namespace.local import LocalState, Transaction
from dfsfs.namespace.pins import Pins, seen_vector
from dfsfs.namespace.quick import Quick
from dfsfs.namespace.reading import Reader, read_private
from dfsfs.namespace.rows import AttributeRow, ContentRow, Field, Row, pack_owner
from dfsfs.namespace.types import AttributeChanges, Inode
from dfsfs.namespace.verbs import pin
from dfsfs.namespace.working import Irregular, read_slots
from dfsfs.runtime import Database

log = logging.getLogger(__name__)

# A conflict copy that the view makes up shows the attributes of its file.
_SHOWN_LIKE = "coalesce((SELECT original FROM copy WHERE inode=?1), ?1)"


class Edits:
    """Owned by the namespace."""

    def __init__(
        self,
        database: Database,
        local: LocalState,
        reader: Reader,
        irregular: Irregular,
        quick: Quick,
    ) -> None:
        self._database = database
        self._local = local
        self._reader = reader
        self._irregular = irregular
        self._quick = quick
        with database.transaction():  # nobody has anything open yet
            database.execute("DELETE FROM orphan")

    # -- content ------------------------------------------------------------------------------

    def write(
        self, inode: InodeId, content: ContentRef, *, mtime_ns: int, seen: ContentRef | None
    ) -> Inode:
        """Give a file other bytes; see Namespace.write."""
        found = self._reader.get(inode)
        if found.kind != FileKind.REGULAR:
            error = IsDirectory if found.kind == FileKind.DIRECTORY else Invalid
            raise error(f"inode {inode} is not a regular file")
        inline_max = PATCHES_PACKED_BYTES_MAX if content.patched else INLINE_BYTES_MAX
        if content.size > FILE_BYTES_MAX or len(content.inline or b"") > inline_max:
            raise Invalid("a content ref beyond its limits")
        if self._is_orphan(found):
            return self._edit_private(found, content=_plain(content), mtime_ns=mtime_ns)
        if seen is not None and seen != found.content:
            return self._write_beside(found, content, mtime_ns, seen)
        if self._quick.may_change(inode):
            return self._quick.write(found, content, mtime_ns)
        with self._local.transaction() as transaction:
            if found.nlink:  # a hidden twin needs no pins: writing it brings it into sight
                pin(transaction, self._reader, self._local, (), [], inode)
            self._replace(transaction, inode, content, mtime_ns)
        return self._reader.get(inode)

    def revive(self, inode: InodeId, content: ContentRef, *, mtime_ns: int) -> None:
        """Give a removed file bytes that its remover had not seen; see Namespace.revive."""
        with self._local.transaction() as transaction:
            self._replace(transaction, inode, content, mtime_ns)

    def _replace(
        self, transaction: Transaction, inode: InodeId, content: ContentRef, mtime_ns: int
    ) -> None:
        """One content row in place of all that are here."""
        stamp = transaction.stamp()
        vector = seen_vector(read_slots(self._database, inode).values())
        vector.pop(self._local.origin, None)
        transaction.join([ContentRow(stamp, inode, content, mtime_ns, vector, stamp)])

    def _write_beside(
        self, found: Inode, content: ContentRef, mtime_ns: int, seen: ContentRef
    ) -> Inode:
        """A version made from `seen`, which is not what the file has by now: both stay."""
        origin = self._local.origin
        with self._local.transaction() as transaction:
            slots = read_slots(self._database, found.inode)
            rows: list[Row] = []
            own = slots.get(origin)
            if own is not None and own.content != seen and own in siblings(slots) and found.nlink:
                # A writer has one row for each file, and this one is about to be replaced.
                pins = Pins(transaction.work, self._reader, origin)
                pins.pin_version(found.inode, own, self._local.name_of(origin))
                rows = pins.rows(transaction.stamp())
            vector = seen_vector(slot for slot in slots.values() if slot.content == seen)
            vector.pop(origin, None)
            stamp = transaction.stamp()
            rows.append(ContentRow(stamp, found.inode, content, mtime_ns, vector, stamp))
            transaction.join(rows)
        return self._reader.get(found.inode)

    # -- attributes ---------------------------------------------------------------------------

    def set_attributes(self, inode: InodeId, changes: AttributeChanges) -> Inode:
        """Set what is not None; see Namespace.set_attributes."""
        inode = self._irregular.representative(inode)
        found = self._reader.get(inode)
        if self._is_orphan(found):
            return self._edit_private(found, **_given(changes))
        fields: list[tuple[Field, int | bytes]] = []
        if changes.mode is not None:
            fields.append((Field.MODE, changes.mode & 0o7777))
        if changes.uid is not None or changes.gid is not None:
            uid = found.uid if changes.uid is None else changes.uid
            gid = found.gid if changes.gid is None else changes.gid
            fields.append((Field.OWNER, pack_owner(uid, gid)))
        if changes.atime_ns is not None:
            fields.append((Field.ATIME, changes.atime_ns))
        if changes.mtime_ns is not None:
            fields.append((Field.MTIME, changes.mtime_ns))
        if not fields:
            return found
        if self._quick.is_known(inode):
            return self._quick.set_attributes(found, fields)
        self._set(inode, fields)
        return self._reader.get(inode)

    def own_root(self, uid: int, gid: int, now_ns: int) -> None:
        """The root of a new network; see Namespace.own_root."""
        with self._local.transaction() as transaction:
            stamp = Stamp(1, self._local.origin)  # whatever anybody else says of the root is newer
            transaction.join(
                [
                    AttributeRow(stamp, ROOT_INODE, Field.OWNER, pack_owner(uid, gid)),
                    AttributeRow(stamp, ROOT_INODE, Field.ATIME, now_ns),
                    AttributeRow(stamp, ROOT_INODE, Field.MTIME, now_ns),
                ]
            )

    def _set(
        self,
        inode: InodeId,
        fields: "list[tuple[Field, int | bytes]] | list[tuple[bytes, bytes | None]]",
    ) -> None:
        with self._local.transaction() as transaction:
            if transaction.work.inode(inode).kind == 0:  # a conflict copy
                pin(transaction, self._reader, self._local, (), [], inode)
            stamp = transaction.stamp()
            rows: list[Row] = [AttributeRow(stamp, inode, field, value) for field, value in fields]
            transaction.join(rows)

    def touch_atime(self, inode: InodeId, atime_ns: int) -> None:
        """Note a read, on this node alone; a disk that takes nothing can still be read."""
        found = self._reader.get(inode)
        sql = "UPDATE inode SET atime_ns=? WHERE inode=?"
        try:
            if self._is_orphan(found):
                self._edit_private(found, atime_ns=atime_ns)
                return
            with self._database.transaction():
                self._database.execute(sql, (atime_ns, inode))
        except DfsError as error:
            log.debug("inode %d was read, which cannot be noted: %s", inode, error)
        self._reader.forget([inode])

    # -- extended attributes ------------------------------------------------------------------

    def get_xattr(self, inode: InodeId, name: bytes) -> bytes:
        """The value of an extended attribute; see Namespace.get_xattr."""
        value = self._xattr(inode, name)
        if value is None:
            raise NoAttribute(f"no attribute {name!r}")
        return value

    def list_xattrs(self, inode: InodeId) -> list[bytes]:
        """The names of all extended attributes, in byte order."""
        inode = self._irregular.representative(inode)
        if self._is_orphan(self._reader.get(inode)):
            private = read_private(self._database, inode)
            if private is not None:
                return sorted(private["xattrs"])
        rows = self._database.rows(
            f"SELECT field FROM attribute WHERE inode={_SHOWN_LIKE} AND field>=x''"
            " AND value IS NOT NULL ORDER BY field",
            (inode,),
        )
        return [name for (name,) in rows]

    def set_xattr(
        self, inode: InodeId, name: bytes, value: bytes, *, create: bool, replace: bool
    ) -> None:
        """Set an extended attribute; see Namespace.set_xattr."""
        if not 0 < len(name) <= XATTR_NAME_BYTES_MAX or b"\0" in name:
            raise Invalid("a bad attribute name")
        if len(value) > XATTR_VALUE_BYTES_MAX:
            raise Full("the value of an attribute is too long")
        before = self._xattr(inode, name)
        if create and before is not None:
            raise Exists(f"attribute {name!r} exists")
        if replace and before is None:
            raise NoAttribute(f"no attribute {name!r}")
        others = self._xattr_bytes(inode) - (0 if before is None else len(name) + len(before))
        if others + len(name) + len(value) > XATTR_INODE_BYTES_MAX:
            raise Full("the attributes of an inode are too long")
        self._put_xattr(inode, name, value)

    def remove_xattr(self, inode: InodeId, name: bytes) -> None:
        """Remove an extended attribute; see Namespace.remove_xattr."""
        if self._xattr(inode, name) is None:
            raise NoAttribute(f"no attribute {name!r}")
        self._put_xattr(inode, name, None)

    def _put_xattr(self, inode: InodeId, name: bytes, value: bytes | None) -> None:
        inode = self._irregular.representative(inode)
        found = self._reader.get(inode)
        if self._is_orphan(found):
            private = self._private(found)
            xattrs = private["xattrs"]
            assert isinstance(xattrs, dict)
            xattrs.pop(name, None)
            if value is not None:
                xattrs[name] = value
            self._save_private(inode, private)
        else:
            self._set(inode, [(name, value)])

    def _xattr(self, inode: InodeId, name: bytes) -> bytes | None:
        inode = self._irregular.representative(inode)
        if self._is_orphan(self._reader.get(inode)):
            private = read_private(self._database, inode)
            if private is not None:
                return private["xattrs"].get(name)  # type: ignore[no-any-return]  # as it was saved
        return self._database.value(  # type: ignore[no-any-return]  # the column's type
            f"SELECT value FROM attribute WHERE inode={_SHOWN_LIKE} AND field=?2", (inode, name)
        )

    def _xattr_bytes(self, inode: InodeId) -> int:
        inode = self._irregular.representative(inode)
        total = self._database.value(
            "SELECT sum(length(field) + length(value)) FROM attribute"
            f" WHERE inode={_SHOWN_LIKE} AND field>=x'' AND value IS NOT NULL",
            (inode,),
        )
        return total or 0

    # -- orphans ------------------------------------------------------------------------------

    def hold_orphan(self, inode: InodeId) -> None:
        """Remember that a removed inode is open here; see Namespace.hold_orphan."""
        with self._database.transaction():
            self._database.execute("INSERT OR IGNORE INTO orphan VALUES(?, NULL)", (inode,))

    def drop_orphan(self, inode: InodeId) -> None:
        """Forget what was private; see Namespace.drop_orphan."""
        if self._database.row("SELECT 1 FROM orphan WHERE inode=?", (inode,)) is None:
            return
        with self._database.transaction():
            self._database.execute("DELETE FROM orphan WHERE inode=?", (inode,))
        self._reader.forget([inode])

    def _is_orphan(self, found: Inode) -> bool:
        """Whether nothing links to it; a file that is only hidden behind its twin is none."""
        if found.nlink:
            return False
        return (
            self._database.row(
                "SELECT 1 FROM inode WHERE inode=?1 AND explicit>0"
                " UNION ALL SELECT 1 FROM link WHERE inode=?1 AND live=2 LIMIT 1",
                (found.inode,),
            )
            is None
        )

    def _edit_private(self, found: Inode, **changes: object) -> Inode:
        private = self._private(found) | changes
        self._save_private(found.inode, private)
        return self._reader.get(found.inode)

    def _private(self, found: Inode) -> dict[str, object]:
        private = read_private(self._database, found.inode)
        if private is not None:
            return private
        rows = self._database.rows(
            "SELECT field, value FROM attribute WHERE inode=? AND field>=x'' AND value IS NOT NULL",
            (found.inode,),
        )
        return {
            "mode": found.mode,
            "uid": found.uid,
            "gid": found.gid,
            "atime_ns": found.atime_ns,
            "mtime_ns": found.mtime_ns,
            "ctime_ns": found.ctime_ns,
            "content": _plain(found.content),
            "xattrs": dict(rows),
        }

    def _save_private(self, inode: InodeId, private: dict[str, object]) -> None:
        if self._reader.get(inode).birth_ns == 0:
            raise NotFound(f"inode {inode} is not known here")
        private["ctime_ns"] = Stamp(self._local.clock.tick(), self._local.origin).time * 1000
        with self._database.transaction():
            self._database.execute(
                "INSERT OR REPLACE INTO orphan VALUES(?,?)", (inode, encode(private))
            )
        self._reader.forget([inode])


def _plain(content: ContentRef) -> list[object]:
    return [content.size, content.root, content.inline, content.shift, content.stored]


def _given(changes: AttributeChanges) -> dict[str, object]:
    given = {
        "mode": changes.mode,
        "uid": changes.uid,
        "gid": changes.gid,
        "atime_ns": changes.atime_ns,
        "mtime_ns": changes.mtime_ns,
    }
    return {name: value for name, value in given.items() if value is not None}
