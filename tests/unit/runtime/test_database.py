"""The database door: what is committed stays, and the write-ahead log is really folded."""

from pathlib import Path

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
