"""What a file had before, as long as its content may not survive a power cut.

Rows and blocks reach stable storage at different times and on different nodes: rows share a log
with the fsyncs of others, blocks of a file that was only closed are flushed later. So after a power
cut of several nodes a row may be there and the blocks it names nowhere, and it has replaced the row
of content that was fsynced. Therefore whoever joins a content row that names a new tree keeps, in
the same transaction, the content the file had until then: its *fallback*. It goes when the writer
says that it has flushed everything up to that row (`flushed`), or when somebody has looked and
found all blocks flushed (`forget`). If blocks of the content are lost instead, the newest fallback
that can be read is written back: `cluster.settle` does both.

A new name over an old file counts as writing, as programs use it so: the file that takes the name
has what was replaced to fall back to, instead of nothing.

Belongs to this node alone, is never sent. Knows no blocks; no decision is made here.
Sync: every method runs within a transaction of the caller, but those that say otherwise.
Durable: exactly when the row is, being in the same transaction.
"""

from collections.abc import Iterable
from typing import NamedTuple

from dfsfs.base.limits import BLOCK_SHIFT_DEFAULT
from dfsfs.base.types import ContentRef, InodeId, LinkId, Origin, Stamp
from dfsfs.namespace.rows import LinkRow, Row, TombstoneRow
from dfsfs.namespace.working import WorkingSet
from dfsfs.runtime import Database

SCHEMA = """
-- This node alone: contents whose blocks are not known to be on stable storage, by the stamp of
-- their row, and what the file had before. IF NOT EXISTS: older databases have no such table.
CREATE TABLE IF NOT EXISTS fallback(
  inode INTEGER NOT NULL,
  time INTEGER NOT NULL,
  origin INTEGER NOT NULL,
  size INTEGER NOT NULL,         -- the content before: as in table content
  root BLOB,
  inline BLOB,
  shift INTEGER NOT NULL,
  stored INTEGER NOT NULL,
  mtime_ns INTEGER NOT NULL,
  PRIMARY KEY(inode, time, origin)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS fallback_stamp ON fallback(origin, time);
"""
_INSERT = "INSERT OR IGNORE INTO fallback VALUES(?,?,?,?,?,?,?,?,?)"
# The newest row, not the one the view shows: that is settled after all rows of a batch have joined.
_NEWEST = (
    "SELECT size, root, inline, shift, stored, mtime_ns FROM content WHERE inode=?"
    " ORDER BY time DESC, writer DESC LIMIT 1"
)
_NOTHING = (0, None, None, BLOCK_SHIFT_DEFAULT, 0, 0)


class Fallback(NamedTuple):
    """What a file had before the content row of `stamp`."""

    inode: InodeId
    stamp: Stamp
    content: ContentRef
    mtime_ns: int


def note_written(database: Database, inode: InodeId, stamp: Stamp, content: ContentRef) -> None:
    """A content row is about to be stored: keep what the file has now, if it may be needed."""
    if content.root is None:
        return  # it needs no blocks
    before = database.row(_NEWEST, (inode,)) or _NOTHING
    if before[1] != content.root:
        database.execute(_INSERT, (inode, *stamp, *before))


def note_renames(work: WorkingSet, rows: Iterable[Row]) -> None:
    """Rows have joined, and the view is not settled yet: find names that went to another file."""
    removed: dict[Stamp, list[LinkId]] = {}
    moved: list[LinkRow] = []
    for row in rows:
        if isinstance(row, TombstoneRow):
            removed.setdefault(row.stamp, []).append(row.link)
        elif isinstance(row, LinkRow):
            moved.append(row)
    for row in sorted(moved, key=lambda row: row.stamp) if removed else ():
        for link in removed.get(row.stamp, ()):
            gone = work.link(link)
            if gone is not None and (gone.parent, gone.name) == (row.parent, row.name):
                note_rename(work.database, row.inode, gone.inode)


def note_rename(database: Database, inode: InodeId, replaced: InodeId) -> None:
    """A file takes the name of another: where it had nothing before, it falls back to that one."""
    if inode == replaced:
        return
    if database.row("SELECT 1 FROM fallback WHERE inode=?", (inode,)) is None:
        return
    before = database.row(_NEWEST, (replaced,))
    if before is None:
        return
    database.execute(
        "UPDATE fallback SET size=?, root=?, inline=?, shift=?, stored=?, mtime_ns=?"
        " WHERE inode=? AND size=0",
        (*before, inode),
    )
    # And if that is lost as well, to what it had been before.
    database.execute(
        "INSERT OR IGNORE INTO fallback SELECT ?, time, origin, size, root, inline, shift, stored,"
        " mtime_ns FROM fallback WHERE inode=?",
        (inode, replaced),
    )


def read_fallbacks(database: Database, inode: InodeId) -> list[Fallback]:
    """See Fallbacks.of."""
    rows = database.rows(
        "SELECT time, origin, size, root, inline, shift, stored, mtime_ns FROM fallback"
        " WHERE inode=? ORDER BY time DESC, origin DESC",
        (inode,),
    )
    return [
        Fallback(inode, Stamp(time, origin), ContentRef(*content), mtime_ns)
        for time, origin, *content, mtime_ns in rows
    ]


def note_copy(database: Database, inode: InodeId, stamp: Stamp, copy: InodeId) -> None:
    """The content of `stamp` becomes a file of its own, by rows that say nothing of its blocks.

    So it is not flushed when whoever makes that file has flushed these rows.
    """
    database.execute(
        "INSERT OR IGNORE INTO fallback SELECT ?, time, origin, ?, ?, ?, ?, ?, ? FROM fallback"
        " WHERE inode=? AND time=? AND origin=?",
        (copy, *_NOTHING, inode, *stamp),
    )


class Fallbacks:
    """The table as a whole. Owned by the namespace; the methods are transactions of their own."""

    def __init__(self, database: Database) -> None:
        self._database = database
        database.execute(SCHEMA)

    def flushed(self, origin: Origin, after: int, upto: int) -> None:
        """Rows of `origin` between these, and their blocks, are on its stable storage."""
        self._database.execute(
            "DELETE FROM fallback WHERE origin=? AND time<=? AND +time>?", (origin, upto, after)
        )

    def forget(self, inode: InodeId, upto: Stamp) -> None:
        """A file can be read, and all of it is on stable storage: so it was up to a row."""
        self._database.execute(
            "DELETE FROM fallback WHERE inode=? AND (time, origin) <= (?, ?)", (inode, *upto)
        )

    def inodes(self, after: InodeId, limit: int) -> list[tuple[InodeId, Stamp]]:
        """Up to `limit` files greater than `after` that have fallbacks; the newest row of each."""
        rows = self._database.rows(
            "SELECT inode, max(time), origin FROM fallback WHERE inode>? GROUP BY inode"
            " ORDER BY inode LIMIT ?",
            (after, limit),
        )
        return [(InodeId(inode), Stamp(time, origin)) for inode, time, origin in rows]

    def of(self, inode: InodeId) -> list[Fallback]:
        """What a file may fall back to, the newest first."""
        return read_fallbacks(self._database, inode)

    def count(self, origin: Origin | None = None) -> int:
        """Contents that are not known to be on stable storage, of one writer or of all."""
        if origin is None:
            return int(self._database.value("SELECT count(*) FROM fallback"))
        return int(self._database.value("SELECT count(*) FROM fallback WHERE origin=?", (origin,)))
