"""Reading the tree: point queries on the columns the view has settled. Changes nothing.

`get` and `lookup` are what every filesystem call does first; decoded inodes are kept in a bounded
cache that the namespace empties of whatever a commit changed.
"""

import builtins
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NamedTuple

from dfsfs.base.codec import decode
from dfsfs.base.errors import NotDirectory, NotFound
from dfsfs.base.limits import INODE_CACHE_BYTES_MAX, INODE_CACHE_COUNT, ROWS_MESSAGE_BYTES_MAX
from dfsfs.base.types import (
    EMPTY_CONTENT,
    ROOT_INODE,
    ContentRef,
    FileKind,
    InodeId,
    LinkId,
)
from dfsfs.namespace.types import Entry, Inode
from dfsfs.namespace.working import ALONE, KEEPS, LOSER, UNKNOWN_KIND, Irregular, read_slots
from dfsfs.runtime import Bounds, Database

_COLUMNS = (
    "i.inode, i.kind, COALESCE(i.set_mode, i.mode), COALESCE(i.set_uid, i.uid),"
    " COALESCE(i.set_gid, i.gid), i.rdev, i.target, i.time, i.atime_ns, i.mtime_ns, i.changed,"
    " i.explicit, i.nlink"
)
_CONTENT_COLUMNS = "c.size, c.root, c.inline, c.shift, c.stored"
# Two point queries: one with a join takes four times as long.
_GET = f"SELECT {_COLUMNS}, i.writer FROM inode i WHERE i.inode=?"
_GET_CONTENT = f"SELECT {_CONTENT_COLUMNS} FROM content c WHERE c.inode=? AND c.writer=?"
_LIST = (
    f"SELECT l.name, {_COLUMNS}, {_CONTENT_COLUMNS} FROM link l JOIN inode i ON i.inode = l.inode"
    " LEFT JOIN content c ON c.inode = i.inode AND c.writer = i.writer"
    " WHERE l.directory=? AND l.name>? AND l.role IN (1, 2) ORDER BY l.name LIMIT ?"
)
_LOOKUP = "SELECT link, inode, role FROM link WHERE directory=? AND name=? AND role IN (1, 2)"
_ALIAS = "SELECT link, inode, is_copy FROM alias WHERE directory=? AND name=?"
Row = tuple[Any, ...]
_KINDS = {int(kind): kind for kind in FileKind}


_FOLLOWING = (
    "SELECT l.inode, l.name, i.kind FROM link l JOIN inode i ON i.inode = l.inode"
    " WHERE l.directory=? AND l.name>? AND l.role=1 ORDER BY l.name LIMIT ?"
)


class Found(NamedTuple):
    """What is behind a name."""

    directory: InodeId
    name: bytes
    link: LinkId  # of a copy: its inode
    inode: InodeId
    role: int
    is_copy: bool


def _large_bytes(inode: Inode) -> int:
    """What of an inode is as large as users make it."""
    return len(inode.content.inline or b"") + len(inode.target)


class Reader:
    """The tree as it is now. Owned by the namespace."""

    def __init__(self, database: Database, irregular: Irregular) -> None:
        self._database = database
        self._irregular = irregular
        self._cache: OrderedDict[InodeId, Inode] = OrderedDict()
        self._cache_bytes = 0  # of inline content, patches, targets: 1 GiB, if all were large

    def forget(self, inodes: Iterable[InodeId]) -> None:
        """Drop inodes that changed from the cache."""
        for inode in inodes:
            known = self._cache.pop(inode, None)
            if known is not None:
                self._cache_bytes -= _large_bytes(known)

    def forget_all(self) -> None:
        """Empty the cache: nobody knows what a rolled back update had made visible."""
        self._cache.clear()
        self._cache_bytes = 0

    def remember(self, inode: Inode) -> None:
        """Put an inode as just committed into the cache."""
        cache = self._cache
        known = cache.get(inode.inode)
        if known is not None:
            self._cache_bytes -= _large_bytes(known)
        cache[inode.inode] = inode
        self._cache_bytes += _large_bytes(inode)
        while len(cache) > INODE_CACHE_COUNT or self._cache_bytes > INODE_CACHE_BYTES_MAX:
            self._cache_bytes -= _large_bytes(cache.popitem(last=False)[1])

    def bounded(self) -> Bounds:
        """What of it is bounded, and how full that is."""
        return {
            "inode_cache": [len(self._cache), INODE_CACHE_COUNT],
            "inode_cache_bytes": [self._cache_bytes, INODE_CACHE_BYTES_MAX],
        }

    def cached(self, inode: InodeId) -> Inode | None:
        """The inode if it is in the cache."""
        return self._cache.get(inode)

    def get(self, inode: InodeId) -> Inode:
        """The inode, live or not.

        Raises:
            NotFound: nothing is known of it here.
        """
        found = self._cache.get(inode)
        if found is not None:
            self._cache.move_to_end(inode)
            return found
        found = self._read(inode) or self._get_copy(inode)
        if found.nlink == 0:
            found = self._with_private(found)
        self.remember(found)
        return found

    def _read(self, inode: InodeId) -> Inode | None:
        row = self._database.row(_GET, (inode,))
        if row is None or row[1] == UNKNOWN_KIND:
            return None
        if row[13] is None:
            return _inode_of(row[:13], None)
        return _inode_of(row[:13], self._database.row(_GET_CONTENT, (inode, row[13])))

    def copies_of(self, inode: InodeId) -> builtins.list[InodeId]:
        """The conflict copies of a file; they show its mode and owner."""
        return [
            copy
            for (copy,) in self._database.rows(
                "SELECT inode FROM copy WHERE original=? ORDER BY inode", (inode,)
            )
        ]

    def _get_copy(self, inode: InodeId) -> Inode:
        row = self._database.row("SELECT original, writer FROM copy WHERE inode=?", (inode,))
        if row is None:
            raise NotFound(f"no inode {inode}")
        original = self._read(row[0])
        assert original is not None
        slot = read_slots(self._database, row[0])[row[1]]
        return replace(
            original,
            inode=inode,
            nlink=1,
            size=slot.content.size,
            atime_ns=slot.mtime_ns,
            mtime_ns=slot.mtime_ns,
            ctime_ns=slot.stamp.time * 1000,
            content=slot.content,
        )

    def _with_private(self, found: Inode) -> Inode:
        private = read_private(self._database, found.inode)
        if private is None:
            return found
        return replace(
            found,
            mode=private["mode"],
            uid=private["uid"],
            gid=private["gid"],
            atime_ns=private["atime_ns"],
            mtime_ns=private["mtime_ns"],
            ctime_ns=private["ctime_ns"],
            content=ContentRef(*private["content"]),
            size=private["content"][0] if found.kind == FileKind.REGULAR else found.size,
        )

    def find(self, parent: InodeId, name: bytes) -> Found | None:
        """What is shown as `name` in a directory."""
        directory = self._irregular.merged.get(parent, parent)
        row = self._database.row(_LOOKUP, (directory, name))
        if row is not None:
            return Found(directory, name, row[0], row[1], row[2], False)
        row = self._database.row(_ALIAS, (directory, name))
        if row is not None:
            return Found(directory, name, row[0], row[1], LOSER, bool(row[2]))
        return None

    def lookup(self, parent: InodeId, name: bytes) -> Inode:
        """The inode behind a name.

        Raises:
            NotFound: no such name. NotDirectory: the parent cannot have any.
        """
        row = self._database.row(_LOOKUP, (self._irregular.merged.get(parent, parent), name))
        if row is not None:
            return self.get(row[1])
        found = self.find(parent, name)
        if found is None:
            self.directory(parent)
            raise NotFound(f"no entry {name!r}")
        return self.get(found.inode)

    def directory(self, inode: InodeId) -> Inode:
        """A directory, live or not.

        Raises:
            NotFound, NotDirectory: as they say.
        """
        found = self.get(inode)
        if found.kind != FileKind.DIRECTORY:
            raise NotDirectory(f"inode {inode} is not a directory")
        return found

    def list(self, directory: InodeId, after: bytes | None, limit: int) -> builtins.list[Entry]:
        """Up to `limit` entries with names greater than `after`, in byte order."""
        self.directory(directory)
        directory = self._irregular.representative(directory)
        start = b"" if after is None else after
        entries = [
            Entry(row[0], _inode_of(row[1:14], row[14:]))
            for row in self._database.rows(_LIST, (directory, start, limit))
        ]
        aliases = self._database.rows(
            "SELECT name, inode FROM alias WHERE directory=? AND name>? ORDER BY name LIMIT ?",
            (directory, start, limit),
        )
        if aliases:
            entries += [Entry(name, self.get(inode)) for name, inode in aliases]
            entries.sort(key=lambda entry: entry.name)
        return entries[:limit]

    def names(self, directory: InodeId) -> builtins.list[tuple[bytes, InodeId, FileKind]]:
        """All names of a directory with inode and kind, in byte order."""
        self.directory(directory)
        directory = self._irregular.representative(directory)
        found = [
            (name, inode, _KINDS[kind])
            for name, inode, kind in self._database.rows(
                "SELECT l.name, l.inode, i.kind FROM link l JOIN inode i ON i.inode = l.inode"
                " WHERE l.directory=? AND l.role IN (1, 2) ORDER BY l.name",
                (directory,),
            )
        ]
        aliases = self._database.rows(
            "SELECT name, inode FROM alias WHERE directory=?", (directory,)
        )
        if aliases:
            found += [(name, inode, self.get(inode).kind) for name, inode in aliases]
            found.sort()
        return found

    def following(self, inode: InodeId, limit: int) -> builtins.list[InodeId]:
        """What stands behind an inode when the tree is gone through in the order of names."""
        found: builtins.list[InodeId] = []
        places = [(inode, b"")]  # where to go on, the last one first
        while inode != ROOT_INODE:
            place = self._database.row("SELECT directory, name FROM link WHERE link=?", (inode,))
            if place is None or place[0] is None:
                break
            places.insert(0, (InodeId(place[0]), place[1]))
            inode = InodeId(place[0])
        while places and len(found) < limit:
            directory, after = places.pop()
            for child, name, kind in self._database.rows(
                _FOLLOWING, (directory, after, limit - len(found))
            ):
                found.append(InodeId(child))
                if kind == FileKind.DIRECTORY:
                    places += [(directory, name), (InodeId(child), b"")]
                    break
        return found

    def parent(self, directory: InodeId) -> InodeId:
        """The directory a directory is shown in; the root is its own.

        Raises:
            NotFound: it is not shown anywhere.
        """
        if directory == ROOT_INODE:
            return ROOT_INODE
        shown = self._irregular.representative(directory)
        parent = self._database.value("SELECT directory FROM link WHERE link=?", (shown,))
        if parent is None:
            raise NotFound(f"directory {directory} has no parent")
        return InodeId(parent)

    def path(self, inode: InodeId) -> bytes:
        """One path of an inode, without a slash in front; the root's is empty.

        Raises:
            NotFound: it is not shown anywhere.
        """
        parts: builtins.list[bytes] = []
        inode = self._irregular.representative(inode)
        while inode != ROOT_INODE:
            directory, name = self._place(inode)
            parts.append(name)
            inode = directory
        return b"/".join(reversed(parts))

    def _place(self, inode: InodeId) -> tuple[InodeId, bytes]:
        row = self._database.row(
            "SELECT link, directory, name, role FROM link WHERE link=?1 AND inode=?1"
            " AND role IN (1, 2, 3) UNION ALL SELECT link, directory, name, role FROM link"
            " WHERE inode=?1 AND inode<>link AND role IN (1, 2, 3) LIMIT 1",
            (inode,),
        )
        link = inode if row is None else row[0]
        if row is None or row[3] == LOSER:
            alias = self._database.row("SELECT directory, name FROM alias WHERE link=?", (link,))
            if alias is None:
                raise NotFound(f"inode {inode} has no name")
            return alias[0], alias[1]
        assert row[3] in (ALONE, KEEPS)
        return row[1], row[2]

    def has_children(self, directory: InodeId) -> bool:
        """Whether anything is shown in a directory."""
        shown = self._irregular.representative(directory)
        return (
            self._database.row("SELECT 1 FROM link WHERE directory=? LIMIT 1", (shown,)) is not None
        )


def read_private(database: Database, inode: InodeId) -> dict[str, Any] | None:
    """What this node alone changed in an inode without links; None: nothing."""
    data = database.value("SELECT private FROM orphan WHERE inode=?", (inode,))
    if data is None:
        return None
    private = decode(data, size_max=ROWS_MESSAGE_BYTES_MAX)
    assert isinstance(private, dict)
    return private


def _inode_of(line: Row, content_line: Row | None) -> Inode:
    (
        inode, kind, mode, uid, gid, rdev, target, time, atime_ns, mtime_ns, changed, explicit,
        nlink,
    ) = line  # fmt: skip
    birth_ns = time * 1000
    if content_line is None or content_line[0] is None:
        content = EMPTY_CONTENT
        size = len(target)
    else:
        content = ContentRef(*content_line)
        size = content.size
    if kind == FileKind.DIRECTORY:
        nlink = nlink + 2 if explicit else 0
    return Inode(
        inode=inode,
        kind=_KINDS[kind],
        mode=mode,
        uid=uid,
        gid=gid,
        nlink=nlink,
        size=size,
        rdev=rdev,
        atime_ns=birth_ns if atime_ns is None else atime_ns,
        mtime_ns=mtime_ns,
        ctime_ns=changed * 1000,
        birth_ns=birth_ns,
        content=content,
        target=target,
    )
