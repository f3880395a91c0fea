"""A replica that was away for too long takes a snapshot of a peer, and loses nothing of its own.

What the peers have forgotten since (`purge`) they cannot tell row by row. So a replica below a
peer's floor takes all rows of that peer, and compares. An inode whose birth one of the two knew and
that only the other still has was forgotten by the one, hence *doomed*:

- as it was when it was forgotten, it goes here too, and nobody is told;
- with news, rows that the forgetter has not heard of, it is removed for everybody. If the news is a
  new content or a new name, or something in it stays, it is made again first (`again`). So an edit
  beats a delete, and creating inside beats removing, also after the horizon.

Invariants: pages are only collected until all are here; then this replica is not whole until it
holds what the peer held after the last one, and gives its rows to nobody (`Namespace.is_whole`).
Each step is one transaction that leaves a valid tree, so local verbs may come between.
Durable: what is complete is in the database, and is gone through again after a crash: the peer may
never come back, and who has a part of a snapshot can neither give rows nor take them.
"""

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from dfsfs.base.errors import RemoteProtocolError
from dfsfs.base.limits import (
    PURGE_STEP_COUNT,
    ROWS_BATCH_COUNT_MAX,
    ROWS_SLICE_BYTES,
    SNAPSHOT_BYTES_MAX,
)
from dfsfs.base.types import ROOT_INODE, InodeId, Origin, Stamp
from dfsfs.crdt import covers, join
from dfsfs.namespace.again import Again
from dfsfs.namespace.feed import decode_page
from dfsfs.namespace.local import LocalState
from dfsfs.namespace.pins import seen_vector
from dfsfs.namespace.purge import Purge, links_of, stamps_of
from dfsfs.namespace.rows import NodeRow, Row, TombstoneRow
from dfsfs.namespace.types import Change, SnapshotPage
from dfsfs.namespace.update import join_rows
from dfsfs.namespace.working import WorkingSet
from dfsfs.runtime import Database

SCHEMA = """
-- A peer's snapshot, until all of it is here.
CREATE TABLE IF NOT EXISTS staged_page(number INTEGER PRIMARY KEY, rows BLOB NOT NULL);
-- The inodes in it, and whether this replica holds everything up to their birth.
CREATE TABLE IF NOT EXISTS staged_inode(inode INTEGER PRIMARY KEY, known INTEGER NOT NULL);
-- What the peer held before the first page; nothing until the last is here.
CREATE TABLE IF NOT EXISTS staged_have(origin INTEGER PRIMARY KEY, time INTEGER NOT NULL);
"""


class Doomed(NamedTuple):
    """An inode that one side has forgotten."""

    inode: InodeId
    forgetter: Mapping[Origin, int]  # what the side that forgot it held


class Rejoin:
    """At most one snapshot of one peer. Owned by the namespace."""

    def __init__(
        self,
        database: Database,
        local: LocalState,
        purge: Purge,
        again: Again,
        working_set: Callable[[], WorkingSet],
        holds: Callable[[], Mapping[Origin, int]],
    ) -> None:
        """`holds`: what this replica does now."""
        database.execute(SCHEMA)
        self._database = database
        self._local = local
        self._purge = purge
        self._again = again
        self._holds = holds
        self._working_set = working_set
        # What the peer held before the first page.
        self.have: dict[Origin, int] = dict(database.rows("SELECT origin, time FROM staged_have"))
        self.is_complete = bool(self.have)  # all pages are here, and not all are applied
        self._pages, self.staged_bytes = database.rows(
            "SELECT count(*), coalesce(sum(max(length(rows), ?)), 0) FROM staged_page",
            (ROWS_SLICE_BYTES,),
        )[0]

    # -- collecting ---------------------------------------------------------------------------

    def begin(self, have: Mapping[Origin, int]) -> None:
        """Take a snapshot of a peer that holds `have`; `stage` every page, then `complete`."""
        assert not self.is_complete, "one snapshot is applied before the next is taken"
        self.clear()
        self.have = dict(have)

    def clear(self) -> None:
        """Nothing is staged."""
        with self._database.transaction():
            for table in ("staged_page", "staged_inode", "staged_have"):
                self._database.execute(f"DELETE FROM {table}")
        self.have, self._pages, self.staged_bytes, self.is_complete = {}, 0, 0, False

    def stage(self, page: SnapshotPage) -> None:
        """Keep a page.

        Raises:
            RemoteProtocolError: something is malformed, or there is too much of it.
            Refused: a stamp too far in the future.
        """
        rows = decode_page(page)
        # Pages are larger than this but for the last, and where much is left out.
        self.staged_bytes += max(len(page.rows), ROWS_SLICE_BYTES)
        if self.staged_bytes > SNAPSHOT_BYTES_MAX:
            raise RemoteProtocolError("a snapshot without an end")
        for row in rows:
            self._local.clock.check(row.stamp.time)
        own = self._holds()
        with self._database.transaction():
            self._database.execute("INSERT INTO staged_page VALUES(?,?)", (self._pages, page.rows))
            self._database.executemany(
                "INSERT OR REPLACE INTO staged_inode VALUES(?,?)",
                [(row.inode, covers(own, row.stamp)) for row in rows if isinstance(row, NodeRow)],
            )
        self._pages += 1

    def complete(self, floor: Mapping[Origin, int], reach: Mapping[Origin, int]) -> None:
        """All pages are here, of a peer with this floor, which held `reach` after the last.

        From now on this replica is not whole until all is applied and it holds `reach`.
        """
        with self._database.transaction():
            self._purge.begin_reach(reach)
            self._purge.raise_floor(floor)
            self._database.executemany(
                "INSERT INTO staged_have VALUES(?,?)", sorted(self.have.items())
            )
        self.is_complete = True

    # -- comparing ----------------------------------------------------------------------------

    def apply(self) -> Iterator[list[Change]]:
        """Join everything, then remove what was forgotten: a transaction a step, and its changes.

        The caller sets the have-vector when this ends.
        """
        own = self._holds()
        forgotten_here = self._forgotten_here()
        for start in range(0, len(forgotten_here), ROWS_BATCH_COUNT_MAX):
            with self._database.transaction():  # so that it is known after a crash as well
                self._purge.mark(forgotten_here[start : start + ROWS_BATCH_COUNT_MAX])
            yield []
        for number in range(self._pages):
            yield self._join_page(number)
        doomed = [Doomed(InodeId(inode), own) for inode in forgotten_here]
        for page in self._forgotten_there():
            doomed += [Doomed(inode, self.have) for inode in page]
            yield []
        while doomed:  # once, unless another peer's rows bring something back meanwhile
            yield from self._remove(doomed)
            doomed = [one for one in doomed if self._again.is_live(one.inode)]

    def _forgotten_here(self) -> "array[int]":
        """Inodes of the snapshot of which nothing is here, though their birth was.

        Or nothing but what this snapshot brought, before a crash.
        """
        return array(
            "q",
            (
                inode
                for (inode,) in self._database.rows(
                    "SELECT s.inode FROM staged_inode s WHERE s.known"
                    " AND (NOT EXISTS(SELECT 1 FROM inode i WHERE i.inode=s.inode)"
                    " OR EXISTS(SELECT 1 FROM dying d WHERE d.inode=s.inode)) ORDER BY s.inode"
                )
            ),
        )

    def _join_page(self, number: int) -> list[Change]:
        data = self._database.value("SELECT rows FROM staged_page WHERE number=?", (number,))
        rows = decode_page(SnapshotPage(data, None))
        if not rows:
            return []
        newest = max(row.stamp.time for row in rows)
        self._local.clock.observe(newest)
        return [self._local.update(self._working_set(), lambda work: join_rows(work, rows))]

    def _forgotten_there(self) -> Iterator[list[InodeId]]:
        """Inodes that are here and not in the snapshot, though the peer held their birth."""
        after = ROOT_INODE
        while page := self._database.rows(
            "SELECT inode, time, origin FROM inode i WHERE inode>? AND kind<>0 AND NOT EXISTS"
            "(SELECT 1 FROM staged_inode s WHERE s.inode=i.inode) ORDER BY inode LIMIT 1024",
            (after,),
        ):
            after = page[-1][0]
            yield [inode for inode, time, origin in page if covers(self.have, Stamp(time, origin))]

    def _remove(self, doomed: list[Doomed]) -> Iterator[list[Change]]:
        forgetters = {one.inode: one.forgetter for one in doomed}
        going: list[InodeId] = []  # empty at every yield: who writes meanwhile makes news
        for inode in self._again.from_below(forgetters):
            forgetter = forgetters[inode]
            self._again.uncut(forgetters.__contains__)
            if self._again.is_directory(inode):  # nothing is in it that is about to go
                yield self._take_away(going)
            make = self._again.is_live(inode) and self._stays(inode, forgetter)
            if make or self._has_news(inode, forgetter):
                changes = self._take_away(going)
                seen = dict(self.have)
                join(seen, self._holds())
                self._again.remove(inode, seen, make=make)
                with self._database.transaction():
                    self._purge.mark([inode])
                yield changes
                continue
            going.append(inode)
            if len(going) >= PURGE_STEP_COUNT:
                yield self._take_away(going)
        yield self._take_away(going)

    def _take_away(self, going: list[InodeId]) -> list[Change]:
        changes: list[Change] = []
        if any(map(self._again.is_live, going)):
            changes.append(self._local.update(self._working_set(), lambda work: bury(work, going)))
        with self._database.transaction():
            for inode in going:  # what is open here stays until its turn among the dead of all
                held = self._database.row("SELECT 1 FROM orphan WHERE inode=?", (inode,))
                if held is None:
                    self._purge.delete(inode)
                else:
                    self._purge.mark([inode])
        going.clear()
        return changes

    def _stays(self, inode: InodeId, forgetter: Mapping[Origin, int]) -> bool:
        """Whether a name or content is news to the forgetter, or something in it stays."""
        links = links_of(self._database, inode)
        if any(live and not covers(forgetter, stamp) for _, stamp, live in links):
            return True
        if self._again.is_directory(inode):
            return self._again.has_children(inode)
        written = self._database.rows("SELECT time, writer FROM content WHERE inode=?", (inode,))
        return not all(covers(forgetter, Stamp(*stamp)) for stamp in written)

    def _has_news(self, inode: InodeId, forgetter: Mapping[Origin, int]) -> bool:
        return not all(covers(forgetter, stamp) for stamp in stamps_of(self._database, inode))


def bury(work: WorkingSet, inodes: Iterable[InodeId]) -> None:
    """Make inodes dead here, whoever wrote them; what says so is never sent."""
    rows: list[Row] = []
    for inode in inodes:
        vector = seen_vector(work.slots_of(inode).values())
        for link, stamp, _ in links_of(work.database, inode):
            # One that is here may have seen less, and be the newer one all the same.
            work.database.execute("DELETE FROM tombstone WHERE link=?", (link,))
            rows.append(TombstoneRow(stamp, link, stamp, vector))
    join_rows(work, rows)
