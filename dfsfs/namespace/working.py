"""The working set of one update: lines of `inode` and `link` while rows join and the view follows.

A line is read when it is first needed and written when it differs from what was read. Rules of the
view live in `liveness` and `slots`; here are only the lines, what the update has touched, and what
of the tree is not ordinary (`Irregular`): kept in memory, because it is almost always empty.
"""

from collections.abc import Callable, Iterable

from dfsfs.base.types import (
    ROOT_INODE,
    ContentRef,
    Digest,
    FileKind,
    InodeId,
    LinkId,
    Origin,
    Stamp,
)
from dfsfs.namespace.conflicts import Slot
from dfsfs.namespace.rows import decode_vector
from dfsfs.runtime import Database

DEAD, EXPLICIT, IMPLICIT = 0, 1, 2  # link.live
ALONE, KEEPS, LOSER, HIDDEN = 1, 2, 3, 4  # link.role; 0: dead
UNKNOWN_KIND = 0

_INODE_COLUMNS = (
    "kind, mode, uid, gid, rdev, target, time, origin, touch_time, touch_origin, "
    "set_mode, set_uid, set_gid, atime_ns, mtime_ns, changed, explicit, nlink, children, writer, "
    "siblings, size"
)
_ROW_COUNT = 10  # of the columns above, those before the derived ones
_SELECT_INODE = f"SELECT {_INODE_COLUMNS} FROM inode WHERE inode=?"
_INSERT_INODE = f"INSERT INTO inode(inode, {_INODE_COLUMNS}) VALUES(?{',?' * 22})"
_UPDATE_INODE = "UPDATE inode SET " + "=?, ".join(_INODE_COLUMNS.split(", ")) + "=? WHERE inode=?"
# An UPDATE rewrites the index entries of every column it names, so the common one names few.
_UPDATE_INODE_DERIVED = (
    "UPDATE inode SET " + "=?, ".join(_INODE_COLUMNS.split(", ")[_ROW_COUNT:]) + "=? WHERE inode=?"
)
_SELECT_LINK = (
    "SELECT l.inode, l.parent, l.name, l.previous, l.class, l.time, l.origin, l.live, l.directory,"
    " l.role, t.seen_time, t.seen_origin"
    " FROM link l LEFT JOIN tombstone t ON t.link = l.link WHERE l.link=?"
)
_INSERT_LINK = (
    "INSERT INTO link(link, inode, parent, name, previous, class, time, origin, live, directory,"
    " role) VALUES(?,?,?,?,?,?,?,?,?,?,?)"
)
_UPDATE_LINK = (
    "UPDATE link SET inode=?, parent=?, name=?, previous=?, class=?, time=?, origin=?, live=?,"
    " directory=?, role=? WHERE link=?"
)
_UPDATE_LINK_DERIVED = "UPDATE link SET live=?, directory=?, role=? WHERE link=?"


def pack_total(total: int) -> int | bytes:
    """A sum of file sizes as the database keeps it: two sparse files may be more than 2**63."""
    return total if total < 1 << 63 else total.to_bytes(16, "big")


def unpack_total(stored: int | bytes) -> int:
    """What `pack_total` packed."""
    return int.from_bytes(stored, "big") if isinstance(stored, bytes) else stored


class Irregular:
    """What of the tree is not ordinary: mirrors of small tables, exact after every commit.

    Owned by the namespace; updates change it together with the tables, and it is read again from
    them when an update is rolled back.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self.merged: dict[InodeId, InodeId] = {}  # member -> representative, which is not a key
        self.members: dict[InodeId, set[InodeId]] = {}  # representative -> all, itself included
        self.broken: dict[InodeId, InodeId] = {}
        self.implicit: set[InodeId] = set()  # directories alive only through what is in them
        self.files = self.directories = self.bytes = 0
        self.reload()

    def reload(self) -> None:
        """Read everything from the tables."""
        rows = self._database.rows
        self.merged = {}
        self.members = {}
        for member, representative in rows("SELECT member, representative FROM merged"):
            self.merge(member, representative)
        self.broken = dict(rows("SELECT inode, parent FROM broken"))
        self.implicit = {
            inode
            for (inode,) in rows(
                "SELECT l.inode FROM link l JOIN inode i ON i.inode = l.inode"
                " WHERE l.live = 2 AND i.kind = 4"
            )
        }
        ((self.files, self.directories, total),) = rows(
            "SELECT files, directories, bytes FROM state"
        )
        self.bytes = unpack_total(total)

    def representative(self, directory: InodeId) -> InodeId:
        """The directory users see in place of `directory`."""
        return self.merged.get(directory, directory)

    def class_of(self, representative: InodeId) -> list[InodeId]:
        """All directories shown as `representative`, in order."""
        return sorted(self.members.get(representative, (representative,)))

    def merge(self, member: InodeId, representative: InodeId) -> None:
        """Note that `member` is shown as `representative`, which may be itself."""
        before = self.merged.pop(member, member)
        if before in self.members:
            group = self.members[before]
            group.discard(member)
            if len(group) < 2:
                del self.members[before]
        if member != representative:
            self.merged[member] = representative
            self.members.setdefault(representative, {representative}).add(member)


class InodeState:
    """One line of `inode`, and what is stored of it now."""

    __slots__ = (
        "atime_ns", "changed", "children", "explicit", "gid", "inode", "kind", "mode", "mtime_ns",
        "nlink", "origin", "rdev", "set_gid", "set_mode", "set_uid", "siblings", "size", "stored",
        "target", "time", "touch_origin", "touch_time", "uid", "writer",
    )  # fmt: skip

    def __init__(self, inode: InodeId, stored: tuple[object, ...] | None) -> None:
        self.inode = inode
        self.stored = stored
        self.kind: int
        self.mode: int
        self.uid: int
        self.gid: int
        self.rdev: int
        self.target: bytes
        self.time: int
        self.origin: Origin
        self.touch_time: int
        self.touch_origin: Origin
        self.set_mode: int | None
        self.set_uid: int | None
        self.set_gid: int | None
        self.atime_ns: int | None
        self.mtime_ns: int
        self.changed: int
        self.explicit: int
        self.nlink: int
        self.children: int
        self.writer: int | None
        self.siblings: int
        self.size: int
        (
            self.kind, self.mode, self.uid, self.gid, self.rdev, self.target, self.time,
            self.origin, self.touch_time, self.touch_origin, self.set_mode, self.set_uid,
            self.set_gid, self.atime_ns, self.mtime_ns, self.changed, self.explicit, self.nlink,
            self.children, self.writer, self.siblings, self.size,
        ) = stored or _EMPTY_INODE  # type: ignore[assignment]  # a line of SQL  # fmt: skip

    def columns(self) -> tuple[object, ...]:
        """The line as it should be stored, in the order of the columns."""
        return (
            self.kind, self.mode, self.uid, self.gid, self.rdev, self.target, self.time,
            self.origin, self.touch_time, self.touch_origin, self.set_mode, self.set_uid,
            self.set_gid, self.atime_ns, self.mtime_ns, self.changed, self.explicit, self.nlink,
            self.children, self.writer, self.siblings, self.size,
        )  # fmt: skip

    @property
    def is_directory(self) -> bool:
        """Whether the node row is here and says so."""
        return self.kind == FileKind.DIRECTORY


_EMPTY_INODE = (
    UNKNOWN_KIND, 0, 0, 0, 0, b"", 0, 0, 0, 0, None, None, None, None, 0, 0, 0, 0, 0, None, 0, 0,
)  # fmt: skip


class LinkState:
    """One line of `link`, with the stamp its tombstone saw, and what is stored of it now."""

    __slots__ = (
        "directory", "effective", "inode", "link", "live", "merge_class", "name", "origin",
        "parent", "place", "previous", "role", "seen", "stored", "time",
    )  # fmt: skip

    def __init__(
        self,
        link: LinkId,
        stored: tuple[object, ...] | None,
        seen: Stamp | None,
        effective: InodeId | None,
    ) -> None:
        self.link = link
        self.stored = stored
        self.seen = seen
        self.effective = effective  # stored state: whose child it counts as, None: dead
        self.inode: InodeId
        self.parent: InodeId
        self.name: bytes
        self.previous: InodeId
        self.merge_class: int
        self.time: int
        self.origin: Origin
        self.live: int
        self.directory: InodeId | None
        self.role: int
        (
            self.inode, self.parent, self.name, self.previous, self.merge_class, self.time,
            self.origin, self.live, self.directory, self.role,
        ) = stored or _EMPTY_LINK  # type: ignore[assignment]  # a line of SQL  # fmt: skip
        # The slot it is counted in now; differs from the columns while an update is under way.
        self.place = None if self.directory is None else (self.directory, self.name)

    def columns(self) -> tuple[object, ...]:
        """The line as it should be stored, in the order of the columns."""
        return (
            self.inode, self.parent, self.name, self.previous, self.merge_class, self.time,
            self.origin, self.live, self.directory, self.role,
        )  # fmt: skip

    @property
    def stamp(self) -> Stamp:
        """Of the link row."""
        return Stamp(self.time, self.origin)

    def is_explicit(self) -> bool:
        """Whether no tombstone saw the link row as it is now."""
        return self.seen is None or self.seen < (self.time, self.origin)


_EMPTY_LINK = (0, 0, b"", ROOT_INODE, 0, 0, 0, DEAD, None, 0)


class WorkingSet:
    """Everything one update reads, changes and has to look at again. Lives for one transaction."""

    def __init__(
        self, database: Database, irregular: Irregular, node_name: Callable[[Origin], str]
    ) -> None:
        self.database = database
        self.irregular = irregular
        self.node_name = node_name
        self.settled_until = 0  # contents up to this time were flushed long ago: see `fallbacks`
        self.inodes: dict[InodeId, InodeState] = {}
        self.links: dict[LinkId, LinkState] = {}
        # Touched by rows that joined. Dictionaries serve as sets that keep their order.
        self.touched: dict[LinkId, None] = {}
        self.arrived: dict[InodeId, None] = {}  # node rows
        self.written: dict[InodeId, None] = {}  # content rows
        self.times: dict[InodeId, None] = {}  # whatever decides an mtime
        # To be settled.
        self.slots: dict[tuple[InodeId, bytes], None] = {}
        self.copies: dict[InodeId, None] = {}  # files whose conflict copies may differ
        self.aliases: dict[InodeId, None] = {}  # directories whose conflict names may differ
        # What the view changed, for `Change`.
        self.entries: dict[tuple[InodeId, bytes], None] = {}
        self.attributes: dict[InodeId, None] = {}
        self.directories: dict[InodeId, None] = {}
        self.contents: dict[InodeId, None] = {}

    def inode(self, inode: InodeId) -> InodeState:
        """The line of `inode`; an empty one if nothing is known of it."""
        state = self.inodes.get(inode)
        if state is None:
            state = InodeState(inode, self.database.row(_SELECT_INODE, (inode,)))
            self.inodes[inode] = state
        return state

    def link(self, link: LinkId) -> LinkState | None:
        """The line of `link`, if its row is here."""
        state = self.links.get(link)
        if state is None:
            row = self.database.row(_SELECT_LINK, (link,))
            if row is None:
                return None
            seen = None if row[10] is None else Stamp(row[10], row[11])
            effective = self.irregular.broken.get(row[0], row[1]) if row[7] else None
            state = LinkState(link, row[:10], seen, effective)
            self.links[link] = state
        return state

    def new_link(self, link: LinkId) -> LinkState:
        """An empty line for a link row that is about to be filled in."""
        row = self.database.row(
            "SELECT seen_time, seen_origin FROM tombstone WHERE link=?", (link,)
        )
        state = LinkState(link, None, None if row is None else Stamp(*row), None)
        self.links[link] = state
        return state

    def slots_of(self, inode: InodeId) -> dict[Origin, Slot]:
        """All content rows of a file."""
        return read_slots(self.database, inode)

    def flush_link(self, state: LinkState) -> None:
        """Write a link's line if it differs."""
        now = state.columns()
        stored = state.stored
        if now == stored:
            return
        if stored is None:
            self.database.execute(_INSERT_LINK, (state.link, *now))
        elif now[:7] == stored[:7]:
            self.database.execute(_UPDATE_LINK_DERIVED, (*now[7:], state.link))
        else:
            self.database.execute(_UPDATE_LINK, (*now, state.link))
        state.stored = now

    def flush_links(self, states: Iterable[LinkState]) -> None:
        """Write several links' lines."""
        for state in states:
            self.flush_link(state)

    def flush_inodes(self) -> None:
        """Write all inode lines that differ, and count what is shown of them."""
        irregular = self.irregular
        for state in self.inodes.values():
            now = state.columns()
            stored = state.stored
            if now == (stored or _EMPTY_INODE):
                continue
            if stored is None:
                self.database.execute(_INSERT_INODE, (state.inode, *now))
            elif now[:_ROW_COUNT] == stored[:_ROW_COUNT]:
                self.database.execute(_UPDATE_INODE_DERIVED, (*now[_ROW_COUNT:], state.inode))
            else:
                self.database.execute(_UPDATE_INODE, (*now, state.inode))
            state.stored = now
            self.attributes[state.inode] = None
            if state.is_directory or state.kind == UNKNOWN_KIND:
                continue
            was_known = stored is not None and stored[0] != UNKNOWN_KIND
            was_shown, was_size = (stored[17], stored[21]) if stored and was_known else (0, 0)
            irregular.files += bool(state.nlink) - bool(was_shown)
            irregular.bytes += (state.size if state.nlink else 0) - (was_size if was_shown else 0)  # type: ignore[operator]  # a line of SQL

    def forget_touched(self) -> None:
        """After everything is settled: what joins next is a new step of the same transaction."""
        self.touched.clear()
        self.arrived.clear()
        self.written.clear()
        self.times.clear()
        self.copies.clear()
        self.aliases.clear()


_SELECT_SLOTS = (
    "SELECT writer, time, size, root, inline, shift, stored, mtime_ns, vector, dot_time, dot_origin"
    " FROM content WHERE inode=?"
)


def read_slots(database: Database, inode: InodeId) -> dict[Origin, Slot]:
    """All content rows of a file, by writer."""
    slots = {}
    for row in database.rows(_SELECT_SLOTS, (inode,)):
        writer, time, size, root, inline, shift, stored, mtime_ns, vector, dot_time, dot_origin = (
            row
        )
        content = ContentRef(size, None if root is None else Digest(root), inline, shift, stored)
        stamp = Stamp(time, writer)
        dot = Stamp(dot_time, dot_origin)
        slots[writer] = Slot(stamp, content, mtime_ns, decode_vector(vector), dot)
    return slots
