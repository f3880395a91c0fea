"""Forgetting: an inode without live links leaves the replica, with all its rows.

It goes whole or not at all, never row by row: two replicas of which one has forgotten some rows of
an inode may show different trees. What is asked of the other members before, and why that is
enough, is in doc/decisions/0019-purge.md; here is what one replica does.

- `judge` finds what is dead, and named by nothing that is not dead too, at one moment: the cut.
- The *floor* is a have-vector: whoever holds less may have missed what was forgotten here and may
  take no feed from this replica; it takes a snapshot instead (`rejoin`).
- *Dying* are the inodes judged at the floor, until they are forgotten. A snapshot leaves them out,
  as if they had gone; what brings one back has it made again under another number (`again`).

Invariants: the floor only rises, and all rows of what was forgotten are covered by it.
Durable: as every commit.
"""

from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from dfsfs.base.errors import Unavailable
from dfsfs.base.types import InodeId, LinkId, Origin, Stamp
from dfsfs.crdt import covers, join
from dfsfs.namespace.conflicts import copy_inode
from dfsfs.namespace.reading import Reader
from dfsfs.namespace.rows import Row, TombstoneRow
from dfsfs.runtime import Database

SCHEMA = """
-- Whoever holds less than this takes a snapshot, not a feed.
CREATE TABLE IF NOT EXISTS floor(origin INTEGER PRIMARY KEY, time INTEGER NOT NULL);
-- Rows of a snapshot may be as new as this; until this is held, rows may be missing between.
CREATE TABLE IF NOT EXISTS reach(origin INTEGER PRIMARY KEY, time INTEGER NOT NULL);
-- Inodes that never live again: judged dead at the floor, or forgotten by a peer.
CREATE TABLE IF NOT EXISTS dying(inode INTEGER PRIMARY KEY);
"""

# Links come with their inode's number first. A link row that has not come yet may revive it.
_DEAD = """
INSERT INTO temp.dead SELECT i.inode, i.kind = 4 FROM inode i
  WHERE i.kind <> 0 AND i.inode <> 1 AND i.explicit = 0 AND i.nlink = 0
    AND EXISTS(SELECT 1 FROM link WHERE link = i.inode AND live = 0)
    AND NOT EXISTS(SELECT 1 FROM link WHERE inode = i.inode AND inode <> link AND live <> 0)
    AND i.inode NOT IN (SELECT inode FROM broken)
UNION ALL
-- What came for an inode after it was forgotten. Nobody who counts has its birth any more.
SELECT inode, 0 FROM inode WHERE kind = 0 AND inode <> 1 AND children = 0 AND nlink = 0
"""
# The same of links.
_STRAYS = "SELECT link FROM tombstone WHERE link > ? AND link NOT IN (SELECT link FROM link)"
_NAMED = """
INSERT INTO temp.named
  SELECT l.parent, l.inode FROM link l JOIN temp.dead d ON d.inode = l.parent
  UNION ALL
  SELECT l.previous, l.inode FROM link l JOIN temp.dead d ON d.inode = l.previous
"""
_KEEP = """
DELETE FROM temp.dead WHERE inode IN (
  SELECT n.inode FROM temp.named n WHERE n.by NOT IN (SELECT inode FROM temp.dead))
"""
# Contents that are, or soon may be, shown as conflict copies.
_CONTESTED = """
SELECT c.inode, c.dot_time, c.dot_origin FROM inode i JOIN content c ON c.inode = i.inode
  WHERE i.siblings > 1
"""
_STAMPS = """
SELECT time, origin FROM inode WHERE inode=?1
UNION ALL SELECT touch_time, touch_origin FROM inode WHERE inode=?1
UNION ALL SELECT time, origin FROM attribute WHERE inode=?1
UNION ALL SELECT time, writer FROM content WHERE inode=?1
UNION ALL SELECT time, origin FROM link WHERE link=?1 AND inode=?1
UNION ALL SELECT time, origin FROM link WHERE inode=?1 AND inode<>link
UNION ALL SELECT t.time, t.origin FROM link l JOIN tombstone t ON t.link=l.link
  WHERE l.link=?1 AND l.inode=?1
UNION ALL SELECT t.time, t.origin FROM link l JOIN tombstone t ON t.link=l.link
  WHERE l.inode=?1 AND l.inode<>l.link
"""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What was dead at one moment, and what this replica held then."""

    cut: Mapping[Origin, int]
    inodes: "array[int]"  # in order
    strays: "array[int]"  # tombstones of links that are not here, in order


def judge(database: Database) -> Judgement:
    """Everything that is dead, unless a link of something else names it. Reads all links once."""
    with database.snapshot() as seen:
        cut: dict[Origin, int] = dict(seen.rows("SELECT origin, time FROM have"))
        own = seen.row("SELECT origin, position FROM state WHERE position > 0")
        if own is not None:
            cut[own[0]] = own[1]
        try:
            seen.execute("CREATE TEMP TABLE dead(inode INTEGER PRIMARY KEY, is_directory INTEGER)")
            seen.execute("CREATE TEMP TABLE named(inode INTEGER, by INTEGER)")
            seen.execute(_DEAD)
            # A conflict copy that was made a file, and removed: forgotten, it would be shown again.
            seen.executemany(
                "DELETE FROM temp.dead WHERE inode=?",
                [
                    (copy_inode(inode, Stamp(time, origin)),)
                    for inode, time, origin in seen.rows(_CONTESTED)
                ],
            )
            if seen.value("SELECT 1 FROM temp.dead WHERE is_directory LIMIT 1"):
                seen.execute(_NAMED)
                kept = 1
                while kept:
                    seen.execute(_KEEP)
                    kept = seen.changes()
            inodes = _ids(seen, "SELECT inode FROM temp.dead WHERE inode > ? ORDER BY inode")
            strays = _ids(seen, f"{_STRAYS} ORDER BY link")
        finally:
            seen.execute("DROP TABLE IF EXISTS temp.named")
            seen.execute("DROP TABLE IF EXISTS temp.dead")
    return Judgement(cut, inodes, strays)


def _ids(database: Database, query: str) -> "array[int]":
    found: array[int] = array("q")
    while page := database.rows(f"{query} LIMIT 4096", (found[-1] if found else 0,)):
        found.extend(number for (number,) in page)
    return found


def links_of(database: Database, inode: InodeId) -> list[tuple[LinkId, Stamp, int]]:
    """Every link of an inode: its id, the stamp of its row, and `live`."""
    rows = database.rows(
        "SELECT link, time, origin, live FROM link WHERE link=?1 AND inode=?1 UNION ALL"
        " SELECT link, time, origin, live FROM link WHERE inode=?1 AND inode<>link",
        (inode,),
    )
    return [(link, Stamp(time, origin), live) for link, time, origin, live in rows]


def stamps_of(database: Database, inode: InodeId) -> list[Stamp]:
    """The stamps of every row of an inode."""
    rows = database.rows(_STAMPS, (inode,))
    return [Stamp(time, origin) for time, origin in rows if origin]


class Purge:
    """Floor, dying and forgetting of one replica. Owned by the namespace."""

    def __init__(self, database: Database, reader: Reader) -> None:
        self._database = database
        self._reader = reader
        database.execute(SCHEMA)
        self.floor: dict[Origin, int] = dict(database.rows("SELECT origin, time FROM floor"))
        self.reach: dict[Origin, int] = dict(database.rows("SELECT origin, time FROM reach"))
        self.dying_possible = self._dying_count() > 0
        self.version = 0

    def raise_floor(self, cut: Mapping[Origin, int]) -> None:
        """From now on who holds less than `cut` takes a snapshot. Part of a transaction."""
        risen = {origin: time for origin, time in cut.items() if time > self.floor.get(origin, 0)}
        self._database.executemany(
            "INSERT OR REPLACE INTO floor VALUES(?,?)", sorted(risen.items())
        )
        self.floor.update(risen)
        self.version += 1

    def begin_reach(self, reach: Mapping[Origin, int]) -> None:
        """Rows up to `reach` are about to be joined, in any order. Part of a transaction."""
        join(self.reach, reach)
        self._database.executemany(
            "INSERT OR REPLACE INTO reach VALUES(?,?)", sorted(self.reach.items())
        )

    def mark(self, inodes: Iterable[int]) -> None:
        """Some inodes are dying, unless they live. Part of a transaction."""
        self._database.executemany(
            "INSERT OR IGNORE INTO dying SELECT ?1"
            " WHERE NOT EXISTS(SELECT 1 FROM link WHERE link=?1 AND live<>0)"
            " AND NOT EXISTS(SELECT 1 FROM link WHERE inode=?1 AND inode<>link AND live<>0)",
            [(inode,) for inode in inodes],
        )
        self.dying_possible = True

    def come_back(self) -> list[InodeId]:
        """Those of the dying that live."""
        return [
            inode
            for (inode,) in self._database.rows(
                "SELECT d.inode FROM dying d JOIN link l ON l.link=d.inode WHERE l.live<>0"
                " UNION SELECT d.inode FROM dying d JOIN link l ON l.inode=d.inode"
                " AND l.inode<>l.link WHERE l.live<>0"
            )
        ]

    def leaves_out(self, row: Row) -> bool:
        """Whether a snapshot leaves this row out: it is of an inode that is dying.

        Raises:
            Unavailable: the inode has come back, and has to be made again first.
        """
        inode = (
            self._database.value("SELECT inode FROM link WHERE link=?", (row.link,))
            if isinstance(row, TombstoneRow)
            else row.inode
        )
        if not self.is_dying(inode):
            return False
        if any(live for _, _, live in links_of(self._database, inode)):
            raise Unavailable("something has come back")
        return True

    def is_dying(self, inode: InodeId) -> bool:
        """Whether it never lives again: if anything brings it back, it is made again."""
        row = self._database.row("SELECT 1 FROM dying WHERE inode=?", (inode,))
        return row is not None

    def _dying_count(self) -> int:
        found: int = self._database.value("SELECT count(*) FROM dying")
        return found

    def forget(self, inodes: Iterable[InodeId], cut: Mapping[Origin, int]) -> int:
        """Delete those that are dead, not open here, and as they were at `cut`; how many.

        Part of the caller's transaction.
        """
        count = 0
        for inode in inodes:
            held = self._database.row("SELECT 1 FROM orphan WHERE inode=?", (inode,))
            if held is None and self._is_settled(inode, cut):
                self.delete(inode)
                count += 1
        self.version += count > 0
        return count

    def forget_strays(self, links: Iterable[LinkId], cut: Mapping[Origin, int]) -> None:
        """Delete tombstones of links that are not here, unless they came after `cut`.

        Part of the caller's transaction.
        """
        for link in links:
            row = self._database.row(
                "SELECT time, origin FROM tombstone WHERE link=?1"
                " AND NOT EXISTS(SELECT 1 FROM link WHERE link=?1)",
                (link,),
            )
            if row is not None and covers(cut, Stamp(*row)):
                self._database.execute("DELETE FROM tombstone WHERE link=?", (link,))

    def delete(self, inode: InodeId) -> None:
        """Delete a dead inode's rows. Part of the caller's transaction."""
        execute = self._database.execute
        for link, _, live in links_of(self._database, inode):
            assert not live, f"inode {inode} is not dead"
            execute("DELETE FROM tombstone WHERE link=?", (link,))
            execute("DELETE FROM link WHERE link=?", (link,))
        execute("DELETE FROM content WHERE inode=?", (inode,))
        execute("DELETE FROM attribute WHERE inode=?", (inode,))
        execute("DELETE FROM inode WHERE inode=?", (inode,))
        execute("DELETE FROM dying WHERE inode=?", (inode,))
        self._reader.forget([inode])

    def _is_settled(self, inode: InodeId, cut: Mapping[Origin, int]) -> bool:
        links = links_of(self._database, inode)
        stamps = stamps_of(self._database, inode)
        return not any(live for _, _, live in links) and all(covers(cut, stamp) for stamp in stamps)
