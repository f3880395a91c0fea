"""The database door when the disk fails: the failure comes out as what it is, and stays one."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dfsfs.base.errors import DfsError, Full
from dfsfs.runtime import Database


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(
        tmp_path / "some.db", schema="CREATE TABLE t (data BLOB)", version=1, cache_bytes=1 << 20
    )
    yield made
    made.close()


def _fill(database: Database) -> None:
    with database.transaction():
        for _ in range(100):
            database.execute("INSERT INTO t VALUES (randomblob(4000))")


def test_a_full_disk_within_a_transaction_is_full_and_the_database_goes_on(
    database: Database,
) -> None:
    """Promise 2: SQLite has rolled back by itself then, so that there is nothing to roll back."""
    database.execute("PRAGMA max_page_count=20")
    with pytest.raises(Full):
        _fill(database)
    assert database.value("SELECT count(*) FROM t") == 0
    database.execute("PRAGMA max_page_count=1000")
    with database.transaction():
        database.execute("INSERT INTO t VALUES (x'01')")
    assert database.value("SELECT count(*) FROM t") == 1


def test_a_flush_that_failed_is_an_error_of_ours_and_final(
    database: Database, tmp_path: Path
) -> None:
    """Promise 9: the kernel forgets what it could not write, so no later flush can be believed."""
    database.execute("INSERT INTO t VALUES (x'01')")
    database.sync()
    log, aside = tmp_path / "some.db-wal", tmp_path / "aside"
    log.rename(aside)
    log.symlink_to(os.devnull)  # fdatasync(2) of it is an error
    with pytest.raises(DfsError, match="flush"):
        database.sync()
    aside.replace(log)
    with pytest.raises(DfsError, match="flush"):
        database.sync()
