"""The database door: what is committed stays, and the write-ahead log is really folded."""

import threading
from pathlib import Path

import pytest

from dfsfs.base.errors import Corrupt
from dfsfs.base.limits import WAL_BYTES_MAX
from dfsfs.runtime import Database


def test_a_checkpoint_folds_the_log_into_the_database(tmp_path: Path) -> None:
    path = tmp_path / "some.db"
    database = Database(path, schema="CREATE TABLE t (data BLOB)", version=1, cache_bytes=1 << 20)
    for _ in range(50):
        database.execute("INSERT INTO t VALUES (randomblob(4000))")
    before = database.wal_bytes()
    assert path.stat().st_size < 50 * 4000 < before
    database.checkpoint()
    assert path.stat().st_size > 50 * 4000
    for _ in range(10):
        database.execute("INSERT INTO t VALUES (randomblob(4000))")
    assert database.wal_bytes() == before  # written over from its start, not longer
    assert database.value("SELECT count(*) FROM t") == 60
    database.close()


def test_pages_in_memory_stay_within_the_bound(tmp_path: Path) -> None:
    """Promise 16. What SQLite needs beside each page is counted, too."""
    for cache_bytes in (1 << 20, 8 << 20):
        path = tmp_path / str(cache_bytes)
        database = Database(path, schema="", version=1, cache_bytes=cache_bytes)
        database.execute("CREATE TABLE filler (data BLOB)")
        with database.transaction():
            for _ in range(3000):
                database.execute("INSERT INTO filler VALUES (randomblob(4000))")
        assert len(database.rows("SELECT * FROM filler")) == 3000
        bounded = database.bounded("x")
        used, most = bounded["x_pages_bytes"]
        assert 0.9 * most < used <= most == cache_bytes
        assert bounded["x_log_bytes"][0] == database.wal_bytes() > 3000 * 4000
        database.close()


def test_a_log_does_not_grow_for_ever_under_a_writer_that_never_rests(tmp_path: Path) -> None:
    """Promise 16: a checkpoint that always finds new rows behind it would never begin anew."""
    database = Database(
        tmp_path / "d", schema="CREATE TABLE t (data BLOB)", version=1, cache_bytes=1 << 20
    )
    longest = 0
    rounds, writes = 60, 10
    for _ in range(rounds):
        folder = threading.Thread(target=database.checkpoint)
        folder.start()
        for _ in range(writes):  # meanwhile, and no more: however slow the machine is
            database.execute("INSERT INTO t VALUES (randomblob(200000))")
        folder.join()
        longest = max(longest, database.wal_bytes())
    assert rounds * writes * 200_000 > 1.5 * WAL_BYTES_MAX > longest
    assert database.value("SELECT count(*) FROM t") == rounds * writes
    database.close()


def test_a_log_is_given_back_unless_somebody_reads(tmp_path: Path) -> None:
    schema = "CREATE TABLE t (value BLOB)"
    database = Database(tmp_path / "x.db", schema=schema, version=1, cache_bytes=1 << 20)
    database.execute("INSERT INTO t VALUES (1), (2)")
    database.give_back_log()
    assert database.wal_bytes() == 0
    with database.snapshot() as seen:
        assert seen.value("SELECT count(*) FROM t") == 2
        database.execute("INSERT INTO t VALUES (3)")
        database.give_back_log()
        assert seen.value("SELECT count(*) FROM t") == 2
    assert database.value("SELECT count(*) FROM t") == 3
    database.close()


def test_unused_pages_are_given_back(tmp_path: Path) -> None:
    path = tmp_path / "d"
    database = Database(path, schema="CREATE TABLE t (data BLOB)", version=1, cache_bytes=1 << 20)
    with database.transaction():
        for _ in range(20):
            database.execute("INSERT INTO t VALUES (randomblob(100000))")
    database.checkpoint()
    full = path.stat().st_size
    assert database.unused_pages() == 0
    database.execute("DELETE FROM t")
    unused = database.unused_pages()
    database.reclaim(100)
    assert database.unused_pages() == unused - 100
    while database.unused_pages():
        database.reclaim(100)
    database.checkpoint()
    assert path.stat().st_size < full // 10


def flip_a_bit_of_a_row(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[data.rindex(b"acknowledged")] ^= 1
    path.write_bytes(data)


def a_database(path: Path, *, remembers_damage: bool = False) -> Database:
    return Database(
        path,
        schema="CREATE TABLE t (a TEXT)",
        version=1,
        cache_bytes=1 << 20,
        remembers_damage=remembers_damage,
    )


def test_a_flipped_bit_in_a_row_is_an_error_and_no_row(tmp_path: Path) -> None:
    """Promise 15: SQLite by itself would return the wrong bytes."""
    path = tmp_path / "d"
    database = a_database(path)
    database.execute("INSERT INTO t VALUES ('acknowledged')")
    database.checkpoint()
    database.close()
    flip_a_bit_of_a_row(path)
    database = a_database(path)
    with pytest.raises(Corrupt):
        database.rows("SELECT a FROM t")
    database.close()
    a_database(path).close()  # nobody asked to remember it


@pytest.mark.announce("is damaged")
def test_damage_is_remembered_until_the_file_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "d"
    database = a_database(path, remembers_damage=True)
    database.execute("INSERT INTO t VALUES ('acknowledged')")
    database.checkpoint()
    database.close()
    flip_a_bit_of_a_row(path)
    database = a_database(path, remembers_damage=True)
    with pytest.raises(Corrupt), database.snapshot() as seen:
        seen.rows("SELECT a FROM t")
    database.close()
    with pytest.raises(Corrupt, match="used last"):
        a_database(path, remembers_damage=True)
    Database.set_aside(path)
    database = a_database(path, remembers_damage=True)
    assert database.rows("SELECT a FROM t") == []
    database.close()
