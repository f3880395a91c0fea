"""The index of a store: which digest is where, in SQLite. Knows no files but its own database.

Every method is one short transaction, so it survives kill -9 once it returned; a power cut may take
the last ones back, all of them after some point. What follows from that:
- rows of segments need no flush of their own: records found past `indexed` are added at start;
- small blocks do (`sync`), they are only here;
- the space of a removed record may be given back only after the removal was flushed, else the
  index could come back with a row whose bytes are gone. Hence the table garbage.

Sync: used on the loop, by one owner; `sync` and `fold` block and belong in a thread.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from dfsfs.base.errors import Corrupt, DfsError
from dfsfs.base.limits import (
    LOCATIONS_CACHED_MAX,
    STORE_INDEX_CACHE_BYTES,
    STORE_WAL_BYTES_MAX,
    STORE_WAL_KEPT_BYTES,
)
from dfsfs.base.types import Buffer, Digest
from dfsfs.runtime import Bounds, Database

log = logging.getLogger(__name__)

VERSION = 1
SMALL = 0
"""The segment number that means: in the table small."""


class Location(NamedTuple):
    """Where a block is: a record of a segment, or a row of the table small."""

    segment: int
    position: int
    length: int


@dataclass(slots=True)
class SegmentRow:
    """What the index knows of a segment; kept in memory, written with the rows it counts."""

    number: int
    indexed: int = 0
    synced: int = 0
    blocks: int = 0
    bytes: int = 0


class Index:
    """Owned by one `SegmentStore`."""

    def __init__(self, path: Path | None) -> None:
        """Open or create the index.

        Raises:
            Corrupt: not an index. Misconfigured: one of another version.
        """
        schema = resources.files("dfsfs.blocks").joinpath("index.sql").read_text()
        self._database = Database(
            path,
            schema=schema,
            version=VERSION,
            cache_bytes=STORE_INDEX_CACHE_BYTES,
            checksums=False,  # what it holds and where it leads is verified by digest
        )
        # Overwriting the log in place makes flushes cheap; more of it than this is returned.
        self._database.execute(f"PRAGMA journal_size_limit={STORE_WAL_KEPT_BYTES}")
        self._path = path
        self._distrusted = False
        self._locations: dict[Digest, Location] = {}  # hot ones, oldest first
        self.segments: dict[int, SegmentRow] = {}
        self.garbage: list[Location] = []
        self.garbage_bytes = 0
        self.blocks = 0
        self.bytes = 0
        self._load()

    # -- looking up -----------------------------------------------------------------------------

    def find(self, digest: Digest) -> Location | None:
        """Where a block is."""
        location = self._locations.get(digest)
        if location is not None:
            return location
        with self._watched():
            row = self._database.row(
                "SELECT segment, position, length FROM block WHERE digest = ?", (digest,)
            )
        return None if row is None else self._remember(digest, Location(*row))

    def indexed(self, segment: int) -> int:
        """Where the next record of a segment goes."""
        row = self.segments.get(segment)
        return 0 if row is None else row.indexed

    def unused(self, active: int) -> list[int]:
        """Segments without live blocks, but for the one being appended to."""
        rows = self.segments.values()
        return [row.number for row in rows if not row.blocks and row.number not in (SMALL, active)]

    def small(self, location: Location) -> bytes:
        """The bytes of a small block, not verified."""
        with self._watched():
            data = self._database.value("SELECT data FROM small WHERE id = ?", (location.position,))
        return b"" if data is None else data

    def page(self, after: Digest | None, limit: int) -> list[Digest]:
        """Up to `limit` digests greater than `after`."""
        with self._watched():
            rows = self._database.rows(
                "SELECT digest FROM block WHERE digest > ? ORDER BY digest LIMIT ?",
                (after or b"", limit),
            )
        return [row[0] for row in rows]

    def in_segment(self, segment: int, start: int) -> list[tuple[Digest, Location]]:
        """The blocks of a segment from an offset on. Reads the whole index: for recovery."""
        rows = self._database.rows(
            "SELECT digest, segment, position, length FROM block"
            " WHERE segment = ? AND position >= ?",
            (segment, start),
        )
        return [(Digest(row[0]), Location(*row[1:])) for row in rows]

    # -- changing -------------------------------------------------------------------------------

    def add_records(
        self, segment: int, indexed: int, records: Iterable[tuple[Digest, int, int]]
    ) -> None:
        """Add (digest, position, length) of records appended to a segment.

        The segment now reaches to `indexed`. A digest that is known moves here; its old record
        becomes garbage.
        """
        with self._transaction():
            row = self.segments.setdefault(segment, SegmentRow(segment))
            for digest, position, length in records:
                old = self.find(digest)
                if old is not None:
                    self._drop(digest, old)
                self._insert(digest, Location(segment, position, length))
            row.indexed = indexed
            self._write_row(row)

    def add_small(self, digest: Digest, data: Buffer) -> None:
        """Add a small block; replaces what is known of the digest."""
        with self._transaction():
            old = self.find(digest)
            if old is not None:
                self._drop(digest, old)
            self._database.execute("INSERT INTO small (data) VALUES (?)", (data,))
            row_id = self._database.value("SELECT last_insert_rowid()")
            self._insert(digest, Location(SMALL, row_id, len(data)))
            self._write_row(self.segments[SMALL])

    def remove(self, digest: Digest) -> bool:
        """Forget a block; the space of its record waits in `garbage`."""
        location = self.find(digest)
        if location is None:
            return False
        with self._transaction():
            self._drop(digest, location)
        return True

    def reclaimed(self, garbage: Sequence[Location], segments: Iterable[int]) -> None:
        """Forget garbage whose space was given back, and unlinked segments."""
        gone = set(garbage)
        with self._transaction():
            self._database.executemany(
                "DELETE FROM garbage WHERE segment = ? AND position = ?",
                [(item.segment, item.position) for item in garbage],
            )
            for number in segments:
                self._database.execute("DELETE FROM segment WHERE number = ?", (number,))
                self._database.execute("DELETE FROM garbage WHERE segment = ?", (number,))
                del self.segments[number]
                gone.update(item for item in self.garbage if item.segment == number)
        self.garbage = [item for item in self.garbage if item not in gone]
        self.garbage_bytes = sum(item.length for item in self.garbage)

    def lose(self, digest: Digest, location: Location) -> None:
        """Forget a block whose record turned out not to be on disk: nothing to give back."""
        with self._transaction():
            self._locations.pop(digest, None)
            self._database.execute("DELETE FROM block WHERE digest = ?", (digest,))
            self._count(location, -1)
            self._write_row(self.segments[location.segment])

    def note_synced(self, segment: int, synced: int, *, now: bool) -> None:
        """Remember how far a segment is flushed; unless `now`, its next change writes it."""
        row = self.segments.get(segment)
        if row is None:
            return
        row.synced = synced
        if now:
            with self._transaction():
                self._write_row(row)

    # -- the database ---------------------------------------------------------------------------

    def bounded(self) -> Bounds:
        """What of it is bounded, and how full that is."""
        return {
            **self._database.bounded("index"),
            "index_log_bytes": [self.log_bytes(), STORE_WAL_BYTES_MAX],
            "block_locations": [len(self._locations), LOCATIONS_CACHED_MAX],
        }

    def sync(self) -> None:
        """Wait until everything is on stable storage. Blocks."""
        try:
            self._database.sync()
        except OSError as error:
            raise DfsError(f"cannot flush {self._path}: {error.strerror}") from error

    def log_bytes(self) -> int:
        """Size of the write-ahead log; folding it may take as much again. A quick call."""
        return self._database.wal_bytes()

    def fold(self) -> None:
        """Fold the write-ahead log into the database. Blocks."""
        self._database.checkpoint()

    def touch(self) -> None:
        """Write something, so that a log that was folded begins anew and gives back its space."""
        with self._transaction():
            self._write_row(self.segments[SMALL])

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    # -- within a transaction -------------------------------------------------------------------

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Commit, or leave the memory as the database is."""
        try:
            with self._watched(), self._database.transaction():
                yield
        except BaseException:
            with self._watched():
                self._load()
            raise

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Leave a mark for recovery when the database turns out to be damaged."""
        try:
            yield
        except Corrupt as error:
            if self._path is not None and not self._distrusted:
                log.error("the block index is damaged, the next start builds a new one: %s", error)
                self._distrusted = True
                Database.mark_distrusted(self._path)
            raise

    def _load(self) -> None:
        self._locations.clear()
        rows = self._database.rows("SELECT number, indexed, synced, blocks, bytes FROM segment")
        self.segments = {row[0]: SegmentRow(*row) for row in rows}
        garbage = self._database.rows("SELECT segment, position, length FROM garbage")
        self.garbage = [Location(*row) for row in garbage]
        self.garbage_bytes = sum(item.length for item in self.garbage)
        self.blocks = sum(row.blocks for row in self.segments.values())
        self.bytes = sum(row.bytes for row in self.segments.values())

    def _remember(self, digest: Digest, location: Location) -> Location:
        if len(self._locations) >= LOCATIONS_CACHED_MAX:
            del self._locations[next(iter(self._locations))]
        self._locations[digest] = location
        return location

    def _insert(self, digest: Digest, location: Location) -> None:
        self._database.execute("INSERT INTO block VALUES (?, ?, ?, ?)", (digest, *location))
        self._count(location, +1)
        self._remember(digest, location)

    def _count(self, location: Location, sign: int) -> None:
        row = self.segments[location.segment]
        row.blocks += sign
        row.bytes += sign * location.length
        self.blocks += sign
        self.bytes += sign * location.length

    def _drop(self, digest: Digest, location: Location) -> None:
        self._locations.pop(digest, None)
        self._database.execute("DELETE FROM block WHERE digest = ?", (digest,))
        self._count(location, -1)
        if location.segment == SMALL:
            self._database.execute("DELETE FROM small WHERE id = ?", (location.position,))
        else:
            self._database.execute("INSERT INTO garbage VALUES (?, ?, ?)", location)
            self.garbage.append(location)
            self.garbage_bytes += location.length
        self._write_row(self.segments[location.segment])

    def _write_row(self, row: SegmentRow) -> None:
        self._database.execute(
            "INSERT OR REPLACE INTO segment VALUES (?, ?, ?, ?, ?)",
            (row.number, row.indexed, row.synced, row.blocks, row.bytes),
        )
