"""An inode that others have forgotten, or are about to, and that must live: it is made again.

A new inode takes over its names, content and attributes, or what is in it; the old one is removed
for good, by tombstones that have seen everything this replica or the forgetter ever held. It never
lives on under its old number: others hold more of it, or less, or nothing, and trees would differ.
Replicas that do this apart make equal things under one name, which are shown once.

One transaction an inode, from below: what is in a directory and stays has been made again before.
Names and attributes are as they are shown here; the kernel sees one file go and another come.
"""

from collections.abc import Callable, Iterable, Mapping

from dfsfs.base.types import ROOT_INODE, FileKind, InodeId, LinkId, Origin
from dfsfs.crdt import join
from dfsfs.namespace.conflicts import siblings
from dfsfs.namespace.local import LocalState, Transaction
from dfsfs.namespace.pins import seen_vector
from dfsfs.namespace.purge import links_of
from dfsfs.namespace.reading import Reader
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
)
from dfsfs.namespace.verbs import pin
from dfsfs.namespace.working import Irregular, LinkState, WorkingSet
from dfsfs.runtime import Database

_DEPTH_MAX = 1 << 16


class Again:
    """Makes inodes again. Owned by the namespace."""

    def __init__(
        self, database: Database, reader: Reader, local: LocalState, irregular: Irregular
    ) -> None:
        self._database = database
        self._reader = reader
        self._local = local
        self._irregular = irregular

    def is_live(self, inode: InodeId) -> bool:
        """Whether any link shows it."""
        return any(live for _, _, live in links_of(self._database, inode))

    def is_directory(self, inode: InodeId) -> bool:
        """Whether its node row is here and says so."""
        kind = self._database.value("SELECT kind FROM inode WHERE inode=?", (inode,))
        return bool(kind == FileKind.DIRECTORY)

    def has_children(self, directory: InodeId) -> bool:
        """Whether anything live is in this directory itself."""
        work = WorkingSet(self._database, self._irregular, str)
        return bool(self._children(work, directory))

    def from_below(self, inodes: Iterable[InodeId]) -> list[InodeId]:
        """Files, then directories with the deepest first."""
        return sorted(
            inodes, key=lambda one: -self._depth(one) if self.is_directory(one) else -_DEPTH_MAX
        )

    def uncut(self, is_leaving: Callable[[InodeId], bool]) -> None:
        """Where a cycle is cut and something of it leaves: say by rows what is shown.

        Whoever never hears of it, or no longer, sees no cycle there, and nothing of what is in it.
        """
        if not any(map(is_leaving, self._in_cycles())):
            return
        with self._local.transaction() as transaction:
            pin(transaction, self._reader, self._local, (), [])
            stamp = transaction.stamp()
            rows: list[Row] = []
            for inode in sorted(self._irregular.broken):  # dead: what is live has been pinned
                state = transaction.work.link(LinkId(inode))
                assert state is not None
                place = self._parent(state), state.name, ROOT_INODE, state.merge_class
                rows.append(LinkRow(stamp, state.link, inode, *place))
                rows.append(TombstoneRow(stamp, state.link, stamp, None))
            transaction.join(rows)

    def _in_cycles(self) -> set[InodeId]:
        found: set[InodeId] = set()
        for inode in self._irregular.broken:
            while inode not in found:
                found.add(inode)
                inode = self._database.value("SELECT parent FROM link WHERE link=?", (inode,))
        return found

    def remove(self, inode: InodeId, seen: Mapping[Origin, int], *, make: bool) -> InodeId:
        """Remove an inode for everybody and, if `make`, put another in its place; which it is then.

        `seen`: everything that anybody held who decided on this. A content here may be newer, if a
        snapshot brought it that was written while its pages were read.
        """
        made = self._local.new_id() if make else inode
        with self._local.transaction() as transaction:
            if make:
                if transaction.work.inode(inode).siblings > 1:  # each copy becomes a file
                    pin(transaction, self._reader, self._local, (), [], inode)
                transaction.join(self._copy(transaction, inode, made))
            stamp = transaction.stamp()
            vector = seen_vector(transaction.work.slots_of(inode).values())
            join(vector, seen)
            for row in transaction.rows:
                vector[row.stamp.origin] = max(vector.get(row.stamp.origin, 0), row.stamp.time)
            transaction.join(
                [
                    # It wins over tombstones of others that saw a later link row, but less content.
                    TombstoneRow(stamp, link, stamp, vector)
                    for link, _, _ in links_of(self._database, inode)
                ]
            )
        return made

    def _copy(self, transaction: Transaction, inode: InodeId, made: InodeId) -> list[Row]:
        work = transaction.work
        seen = self._reader.get(inode)
        stamp = transaction.stamp()
        rows: list[Row] = [
            NodeRow(stamp, made, seen.kind, seen.mode, seen.uid, seen.gid, seen.rdev, seen.target)
        ]
        is_directory = seen.kind == FileKind.DIRECTORY
        link = LinkId(made)
        for state in self._live_links(work, inode):
            merge_class = CLASS_MADE if is_directory else CLASS_MOVED
            parent = self._parent(state)
            rows.append(LinkRow(stamp, link, made, parent, state.name, ROOT_INODE, merge_class))
            link = LinkId(self._local.new_id())
        if is_directory:
            rows += [
                LinkRow(
                    stamp, child.link, child.inode, made, child.name, ROOT_INODE, child.merge_class
                )
                for child in self._children(work, inode)
            ]
        elif slots := work.slots_of(inode):
            content = siblings(slots)[0]
            rows.append(ContentRow(stamp, made, content.content, content.mtime_ns, {}, stamp))
        stamp = transaction.stamp()  # after the birth: an explicit time is the newer one
        rows.append(AttributeRow(stamp, made, Field.MTIME, seen.mtime_ns))
        rows.append(AttributeRow(stamp, made, Field.ATIME, seen.atime_ns))
        rows += [
            AttributeRow(stamp, made, name, value)
            for name, value in self._database.rows(
                "SELECT field, value FROM attribute WHERE inode=? AND field>=x''"
                " AND value IS NOT NULL ORDER BY field",
                (inode,),
            )
        ]
        return rows

    def _live_links(self, work: WorkingSet, inode: InodeId) -> list[LinkState]:
        states = [work.link(link) for link, _, live in links_of(self._database, inode) if live]
        return [state for state in states if state is not None]

    def _parent(self, state: LinkState) -> InodeId:
        return self._irregular.broken.get(state.inode, state.parent)

    def _children(self, work: WorkingSet, directory: InodeId) -> list[LinkState]:
        """Live links in a directory itself, not in those it is shown as one with."""
        shown = self._irregular.representative(directory)
        states = [
            work.link(link)
            for (link,) in self._database.rows(
                "SELECT link FROM link WHERE directory=? ORDER BY link", (shown,)
            )
        ]
        return [state for state in states if state and self._parent(state) == directory]

    def _depth(self, inode: InodeId) -> int:
        depth = 0
        while inode != ROOT_INODE and depth < _DEPTH_MAX:
            parent = self._irregular.broken.get(inode) or self._database.value(
                "SELECT parent FROM link WHERE link=?", (inode,)
            )
            if parent is None:
                break
            inode, depth = parent, depth + 1
        return depth
