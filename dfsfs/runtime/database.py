"""SQLite through apsw: open, pragmas, numbered schema, transactions, checkpoints, durability.

The only importer of apsw. Sync: every method is a short statement and may run on the loop, except
`sync` and `checkpoint`, which wait for the disk and belong in `World.run_blocking`.

Durability: the database is in WAL mode with synchronous=NORMAL, so a commit survives the end of the
process at once, and a power cut only after `sync()` returned (which flushes the WAL file itself:
https://sqlite.org/wal.html, "durability"). apsw bundles an SQLite without the WAL-reset bug.

Integrity: a page carries a checksum that SQLite's own shim verifies when the page comes from
the disk (https://sqlite.org/cksumvfs.html), so rotten bytes are an error and never a row.
"""

import contextlib
import functools
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import apsw
import apsw.sqlite_extra

from dfsfs.base.errors import Corrupt, DfsError, Full, Misconfigured
from dfsfs.base.limits import LOG_LOOK_TRANSACTIONS, WAL_BYTES_MAX, WAL_TIGHT_BYTES_MAX
from dfsfs.base.units import KIB
from dfsfs.runtime.figures import Bounds
from dfsfs.runtime.reserve import Reserve

log = logging.getLogger(__name__)

Row = tuple[Any, ...]
SNAPSHOT_CACHE_BYTES = 16 * 1024 * 1024
_FILES = ("", "-wal", "-shm")  # a database is these
_VERSION_MAX = 1 << 16  # a greater one was never written by any version of this program
_PAGE_BYTES = 4096
_CHECKSUM_BYTES = 8  # at the end of each page: what cksumvfs asks for
_FOLDS_MAX = 4
_FOLDED_WAITING_COUNT = 256  # pages: a MiB that writers wait for
_RESTART_WAIT_MS = 200  # for a moment between two writers
_STATEMENTS_CACHED = 400  # above what one part has: preparing costs several times a point query


class Database:
    """One SQLite file and its connection; owned by the part that made it, used from the loop."""

    def __init__(
        self,
        path: Path | None,
        *,
        schema: str,
        version: int,
        cache_bytes: int,
        reserve: Reserve | None = None,
        checksums: bool = True,
        remembers_damage: bool = False,
    ) -> None:
        """Open or create `path` (None: in memory) and apply `schema` to a new file.

        `reserve` is that of its disk: the nearer it is to full, the shorter is the log.
        `checksums`: of the pages of a new file, unless its rows are verified in another way.
        `remembers_damage`: when damage is found later, the next start does not open the file.

        Raises:
            Corrupt: not a database, or a damaged one. Misconfigured: one of another `version`.
            Full, DfsError: the disk fails.
        """
        self._path = path
        self._version = version
        self._cache_bytes = cache_bytes
        self._reserve = reserve
        self._remembers_damage = remembers_damage
        self._transactions = 0
        self._flush_failure = ""  # of the first flush that failed
        _verify_pages()
        if path is not None and remembers_damage and Database.distrust_mark(path).exists():
            raise Corrupt(f"{path}: found damaged when it was used last")
        try:
            self._connection = apsw.Connection(
                ":memory:" if path is None else str(path), statementcachesize=_STATEMENTS_CACHED
            )
            self._connection.set_busy_timeout(5000)
            execute = self._connection.execute
            if path is not None:
                if checksums:
                    self._connection.reserve_bytes(reserve=_CHECKSUM_BYTES)  # of a new file
                execute("PRAGMA auto_vacuum=INCREMENTAL")  # of a new file: see reclaim()
                execute("PRAGMA journal_mode=WAL")
            execute("PRAGMA synchronous=NORMAL")
            execute(
                "PRAGMA wal_autocheckpoint=0"
            )  # a checkpoint waits for the disk: see checkpoint()
            execute(f"PRAGMA journal_size_limit={WAL_BYTES_MAX}")
            # What SQLite allocates is some 3 % more than what it counts.
            execute(f"PRAGMA cache_size=-{cache_bytes * 15 // 16 // KIB}")
            execute("PRAGMA temp_store=MEMORY")
            found = self.value("PRAGMA user_version")
            if found == 0:
                with self.transaction():
                    execute(schema)
                    execute(f"PRAGMA user_version={version}")
            elif found != version:
                kind = Misconfigured if 0 < found < _VERSION_MAX else Corrupt
                raise kind(f"{path}: database of version {found}, this program knows {version}")
        except apsw.Error as error:
            raise self._translated(error) from error

    @staticmethod
    def distrust_mark(path: Path) -> Path:
        """The file that says: this database was found damaged, do not use it again."""
        return path.with_name(f"{path.name}.distrusted")

    @staticmethod
    def mark_distrusted(path: Path) -> None:
        """Have the next start make a new one."""
        with contextlib.suppress(OSError):  # then the next start finds the damage by itself, later
            Database.distrust_mark(path).touch()

    @staticmethod
    def asides(path: Path) -> list[Path]:
        """What `set_aside` has kept of a database, the newest first."""
        found = {
            int(number): aside
            for aside in path.parent.glob(f"{path.name}.damaged-*")
            if (number := aside.name.rpartition("-")[2]).isdecimal()
        }
        return [found[number] for number in sorted(found, reverse=True)]

    @staticmethod
    def set_aside(path: Path) -> Path:
        """Move a damaged database out of the way, and keep it; its new place."""
        count = 0
        while (aside := path.with_name(f"{path.name}.damaged-{count}")).exists():
            count += 1
        for suffix in _FILES:
            old = path.with_name(path.name + suffix)
            if old.exists():
                old.rename(aside.with_name(aside.name + suffix))
        Database.distrust_mark(path).unlink(missing_ok=True)
        return aside

    @property
    def path(self) -> Path | None:
        """Where the file is; None for a database in memory."""
        return self._path

    def execute(self, sql: str, bindings: Sequence[Any] = ()) -> None:
        """Run one statement for its effect."""
        try:
            self._connection.execute(sql, bindings)
        except apsw.Error as error:
            raise self._translated(error) from error

    def executemany(self, sql: str, bindings: Sequence[Sequence[Any]]) -> None:
        """Run one statement for each tuple of bindings."""
        try:
            self._connection.executemany(sql, bindings)
        except apsw.Error as error:
            raise self._translated(error) from error

    def rows(self, sql: str, bindings: Sequence[Any] = ()) -> list[Row]:
        """All rows of a query; give it a LIMIT when it may be long."""
        try:
            return list(self._connection.execute(sql, bindings))
        except apsw.Error as error:
            raise self._translated(error) from error

    def row(self, sql: str, bindings: Sequence[Any] = ()) -> Row | None:
        """The first row of a query, or None."""
        try:
            return self._connection.execute(sql, bindings).fetchone()
        except apsw.Error as error:
            raise self._translated(error) from error

    def value(self, sql: str, bindings: Sequence[Any] = ()) -> Any:
        """The first column of the first row, or None."""
        row = self.row(sql, bindings)
        return None if row is None else row[0]

    def changes(self) -> int:
        """Rows changed by the last statement."""
        return self._connection.changes()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit on normal exit, roll back on an exception. Not nestable; no await inside."""
        self._bound_log()
        self.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            if self._connection.in_transaction:  # else a full disk, say, has ended it
                self._connection.execute("ROLLBACK")
            raise
        try:
            self.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def _bound_log(self) -> None:
        """On a disk that is nearly full the log must not grow until somebody folds it.

        Worth stopping the loop for a moment: without room nothing at all can be removed.
        """
        self._transactions += 1
        if self._reserve is None or self._transactions % LOG_LOOK_TRANSACTIONS:
            return
        if self.wal_bytes() > WAL_TIGHT_BYTES_MAX and self._reserve.is_touched:
            self.give_back_log()

    @contextlib.contextmanager
    def snapshot(self) -> Iterator["Database"]:
        """The database as it is now, for long reads in a thread while others go on writing.

        Its write-ahead log cannot be folded meanwhile. In memory there is no other view: itself.
        """
        if self._path is None:
            yield self
            return
        other = Database(
            self._path,
            schema="",
            version=self._version,
            cache_bytes=SNAPSHOT_CACHE_BYTES,
            remembers_damage=self._remembers_damage,
        )
        try:
            other.execute("BEGIN")
            yield other
        finally:
            other.close()

    def sync(self) -> None:
        """Wait until every commit so far is on stable storage. Blocks: call it in a thread.

        Raises:
            DfsError: the disk failed. The kernel forgets what it could not write, so that is final.
        """
        if self._path is None:
            return
        if self._flush_failure:
            raise DfsError(self._flush_failure)
        # SQLite's locks are on the database file: closing another descriptor of the WAL is safe.
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(f"{self._path}-wal", os.O_RDONLY)
            try:
                os.fdatasync(descriptor)
            except OSError as error:
                self._flush_failure = f"cannot flush {self._path}: {error.strerror}"
                raise DfsError(self._flush_failure) from error
            finally:
                os.close(descriptor)

    def wal_bytes(self) -> int:
        """Size of the write-ahead log: what a checkpoint could fold into the database."""
        try:
            return 0 if self._path is None else os.stat(f"{self._path}-wal").st_size
        except FileNotFoundError:
            return 0

    def bounded(self, name: str) -> Bounds:
        """Its page cache and its write-ahead log, which a checkpoint folds when it can."""
        cached_bytes, _ = self._connection.status(apsw.SQLITE_DBSTATUS_CACHE_USED)
        return {
            f"{name}_pages_bytes": [cached_bytes, self._cache_bytes],
            f"{name}_log_bytes": [self.wal_bytes(), WAL_BYTES_MAX],
        }

    def checkpoint(self) -> None:
        """Fold the WAL into the database. Blocks: call it in a thread.

        Writers go on. But one that never rests has always written something new when all before it
        is folded, and then the WAL does not begin anew: when it has become long, writers wait for
        the last part. (https://sqlite.org/wal.html, "checkpoint starvation")
        """
        if self._path is None:
            return
        # A connection of its own: the loop's stays free while this one waits for the disk.
        connection = apsw.Connection(str(self._path))
        try:
            # Until it has read something a connection does not know of the WAL and folds nothing.
            connection.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchone()
            pages, folded = connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
            if pages * _PAGE_BYTES > WAL_BYTES_MAX // 2:
                _begin_anew(connection, folded)
        except apsw.Error as error:
            raise self._translated(error) from error
        finally:
            connection.close()

    def give_back_log(self) -> None:
        """Fold all of the WAL and give its bytes to the disk. Blocks, and writers wait meanwhile.

        Unless somebody reads a snapshot: then it has to be tried again later.
        """
        if self._path is None:
            return
        connection = apsw.Connection(str(self._path))
        try:
            connection.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchone()
            connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        except apsw.BusyError:
            return
        except apsw.Error as error:
            raise self._translated(error) from error
        finally:
            connection.close()

    def unused_pages(self) -> int:
        """Pages that could be given back; 0 in a file that was made without room for that."""
        if self.value("PRAGMA auto_vacuum") == 0:
            return 0
        count: int = self.value("PRAGMA freelist_count")
        return count

    def reclaim(self, pages: int) -> None:
        """Give up to `pages` unused pages back to the disk.

        The file is shorter after the next checkpoint. Writers wait for as long as this takes: call
        it in a thread, with few pages.
        """
        if self._path is None:
            return
        connection = apsw.Connection(str(self._path))
        try:
            connection.set_busy_timeout(5000)
            list(connection.execute(f"PRAGMA incremental_vacuum({pages})"))
        except apsw.Error as error:
            raise self._translated(error) from error
        finally:
            connection.close()

    def close(self) -> None:
        """Close the connection; nothing durable depends on it."""
        self._connection.close()

    def _translated(self, error: apsw.Error) -> DfsError:
        if isinstance(error, apsw.FullError):
            return Full(f"{self._path}: {error}")
        if isinstance(error, apsw.CorruptError | apsw.NotADBError) or (
            getattr(error, "extendedresult", 0) == apsw.SQLITE_IOERR_DATA
        ):
            self._note_damage(error)
        return Corrupt(f"{self._path}: {error}")

    def _note_damage(self, error: apsw.Error) -> None:
        if self._path is None or not self._remembers_damage:
            return
        with contextlib.suppress(OSError):  # a disk that fails altogether
            if Database.distrust_mark(self._path).exists():
                return
        log.error("%s is damaged (%s); restart this node to have it made anew", self._path, error)
        Database.mark_distrusted(self._path)


def _begin_anew(connection: apsw.Connection, folded: int) -> None:
    """Have the next commit write over the WAL from its start; `folded` pages of it are folded."""
    for _ in range(_FOLDS_MAX):  # so that writers wait for little
        before = folded
        pages, folded = connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        if pages - folded < _FOLDED_WAITING_COUNT:
            break
        if folded == before:
            return  # a snapshot that somebody reads for long holds it
    connection.set_busy_timeout(_RESTART_WAIT_MS)
    with contextlib.suppress(apsw.BusyError):
        connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_RESTART)


@functools.cache
def _verify_pages() -> None:
    """Once for a process: whatever is opened from now on verifies the checksums of its pages."""
    loader = apsw.Connection(":memory:")
    try:
        apsw.sqlite_extra.load(loader, "cksumvfs")
    finally:
        loader.close()
