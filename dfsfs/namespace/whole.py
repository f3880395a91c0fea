"""Walks over the whole tree in pages: conflict copies, and contents that are in use."""

from dfsfs.base.types import ContentRef, InodeId
from dfsfs.namespace.conflicts import CONFLICT_MARK, siblings
from dfsfs.namespace.fallbacks import read_fallbacks
from dfsfs.namespace.reading import read_private
from dfsfs.namespace.types import Conflict, ContentsPage
from dfsfs.namespace.working import read_slots
from dfsfs.runtime import Database

# The condition repeats that of the index link_conflict, word for word.
_CONFLICTS = """
SELECT a.directory, a.name, l.name, a.inode, l.origin, l.time
  FROM alias a JOIN link l ON l.link = a.link
  WHERE a.is_copy = 0 AND (a.directory, a.name) > (?1, ?2)
UNION ALL
SELECT a.directory, a.name, c.name, a.inode, c.origin, c.time
  FROM alias a JOIN copy c ON c.inode = a.inode
  WHERE a.is_copy = 1 AND (a.directory, a.name) > (?1, ?2)
UNION ALL
SELECT directory, name, NULL, inode, origin, time
  FROM link INDEXED BY link_conflict
  WHERE directory IS NOT NULL AND instr(name, CAST(' (conflict from ' AS BLOB)) > 0
    AND role IN (1, 2) AND (directory, name) > (?1, ?2)
ORDER BY 1, 2 LIMIT ?3
"""


def read_conflicts(
    database: Database, after: tuple[InodeId, bytes] | None, limit: int
) -> list[Conflict]:
    """See Namespace.conflicts."""
    directory, name = (InodeId(0), b"") if after is None else after
    return [
        Conflict(row[0], row[1], _original(row[1]) if row[2] is None else row[2], *row[3:])
        for row in database.rows(_CONFLICTS, (directory, name, limit))
    ]


def _original(name: bytes) -> bytes:
    """The name a conflict name was made from, as far as it was not cut."""
    stem, _, rest = name.partition(CONFLICT_MARK)
    return stem + rest.rpartition(b")")[2]


def read_contents(
    database: Database, after: InodeId | None, limit: int, *, fallbacks: bool
) -> ContentsPage:
    """See Namespace.contents."""
    start = 0 if after is None else after
    inodes = database.rows(
        "SELECT i.inode FROM inode i WHERE i.kind = 8 AND i.inode > ?1 AND (i.explicit > 0"
        " OR i.nlink > 0 OR EXISTS(SELECT 1 FROM link WHERE inode = i.inode AND live = 2)"
        " OR EXISTS(SELECT 1 FROM orphan o WHERE o.inode = i.inode)) ORDER BY i.inode LIMIT ?2",
        (start, limit),
    )
    found: list[tuple[InodeId, ContentRef]] = []
    has_fallbacks = fallbacks and database.row("SELECT 1 FROM fallback LIMIT 1") is not None
    for (inode,) in inodes:
        rows = database.rows(
            "SELECT size, root, inline, shift, stored FROM content WHERE inode=?", (inode,)
        )
        if len(rows) > 1:  # what another writer has replaced needs no blocks any more
            found += [(inode, slot.content) for slot in siblings(read_slots(database, inode))]
        else:
            found += [(inode, ContentRef(*row)) for row in rows]
        private = read_private(database, inode)
        if private is not None:
            found.append((inode, ContentRef(*private["content"])))
        if has_fallbacks:
            found += [(inode, fallback.content) for fallback in read_fallbacks(database, inode)]
    return ContentsPage(found, inodes[-1][0] if len(inodes) == limit else None)
