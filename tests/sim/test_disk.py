"""The disk model: what was flushed stays, what was not may go, and nothing else ever appears."""

import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw
import pytest

from dfsfs.testing.disk import PAGE, Disk, watched_flushes

LIVES = 60


@pytest.fixture
def home() -> Iterator[Path]:
    memory = Path("/dev/shm")
    path = Path(tempfile.mkdtemp(prefix="dfsfs-disk-", dir=memory if memory.is_dir() else None))
    yield path
    shutil.rmtree(path)


def _outcomes(home: Path, act: Callable[[Path], None]) -> list[Path]:
    """The directories that many power cuts leave after `act` on an empty one."""
    left = []
    for seed in range(LIVES):
        start = home / f"{seed}"
        start.mkdir()
        disk = Disk(start)

        def flushed(path: str, is_directory: bool, disk: Disk = disk) -> None:
            disk.flushed(Path(path), is_directory=is_directory)

        with watched_flushes(flushed):
            act(start)
        left.append(home / f"{seed}.left")
        disk.power_cut(left[-1], random.Random(seed))
        assert disk.directory == left[-1]
    return left


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def test_what_was_flushed_with_its_name_stays(home: Path) -> None:
    def act(start: Path) -> None:
        (start / "x").write_bytes(b"flushed")
        _flush(start / "x")
        _flush(start)

    assert {(left / "x").read_bytes() for left in _outcomes(home, act)} == {b"flushed"}


def test_a_flush_of_a_file_does_not_flush_its_name(home: Path) -> None:
    def act(start: Path) -> None:
        (start / "x").write_bytes(b"flushed")
        _flush(start / "x")

    found = {(left / "x").exists() for left in _outcomes(home, act)}
    assert found == {True, False}


def test_what_was_not_flushed_is_lost_kept_or_torn(home: Path) -> None:
    old, new = b"o" * (8 * PAGE), b"n" * (12 * PAGE)

    def act(start: Path) -> None:
        (start / "x").write_bytes(old)
        _flush(start / "x")
        _flush(start)
        (start / "x").write_bytes(new)

    left = [(path / "x").read_bytes() for path in _outcomes(home, act)]
    assert old in left
    assert new in left
    torn = [data for data in left if data not in (old, new)]
    assert torn
    for data in torn:
        assert set(data) <= set(b"on\0")
        assert len(old) <= len(data) <= len(new)
        assert b"\0" not in data[: len(old)]


def test_a_rename_happens_or_does_not(home: Path) -> None:
    def act(start: Path) -> None:
        for name, data in (("x", b"old"), ("y", b"new")):
            (start / name).write_bytes(data)
            _flush(start / name)
        _flush(start)
        (start / "y").rename(start / "x")

    found = {
        tuple((path.name, path.read_bytes()) for path in sorted(left.iterdir()))
        for left in _outcomes(home, act)
    }
    assert found == {(("x", b"old"), ("y", b"new")), (("x", b"new"),)}


def test_directories_need_a_flush_of_their_own(home: Path) -> None:
    def act(start: Path) -> None:
        (start / "d").mkdir()
        (start / "d" / "x").write_bytes(b"1")
        _flush(start / "d" / "x")
        _flush(start / "d")

    found = {(left / "d" / "x").exists() for left in _outcomes(home, act)}
    assert found == {True, False}
    for left in home.glob("*.left"):
        assert (left / "d" / "x").exists() == (left / "d").exists()


def test_a_crash_keeps_what_only_a_power_cut_takes(home: Path) -> None:
    (home / "a").mkdir()
    (home / "a" / "x").write_bytes(b"old")
    lost = set()
    for seed in range(LIVES):
        disk = Disk(home / "a")
        (home / "a" / "x").write_bytes(b"new")
        disk.move(home / f"b{seed}")
        assert (home / f"b{seed}" / "x").read_bytes() == b"new"
        disk.power_cut(home / f"c{seed}", random.Random(seed))
        lost.add((home / f"c{seed}" / "x").read_bytes())
        (home / "a" / "x").write_bytes(b"old")
    assert {b"old", b"new"} <= lost


@pytest.mark.parametrize("synchronous", ["FULL", "NORMAL"])
def test_sqlite_keeps_the_commits_it_flushed_and_loses_others(home: Path, synchronous: str) -> None:
    """Its own flushes are seen: with FULL every commit stays, with NORMAL some are lost."""

    def act(start: Path) -> None:
        connection = apsw.Connection(str(start / "db"))
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute(f"PRAGMA synchronous={synchronous}")
        connection.execute("CREATE TABLE t(a)")
        for number in range(20):
            connection.execute("INSERT INTO t VALUES(?)", (number,))
        connections.append(connection)  # closing it would fold the log

    connections: list[apsw.Connection] = []
    counts: set[int] = set()
    for left in _outcomes(home, act):
        database = apsw.Connection(str(left / "db"))
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        if database.execute("SELECT 1 FROM sqlite_schema").fetchall():
            ((count,),) = database.execute("SELECT count(*) FROM t")
            assert isinstance(count, int)
            counts.add(count)
        else:
            counts.add(-1)
        database.close()
    for connection in connections:
        connection.close()
    if synchronous == "FULL":
        assert counts == {20}
    else:
        assert min(counts) < 20
        assert 20 in counts


def test_databases_open_after_the_first_of_a_process_was_watched(home: Path) -> None:
    script = """
import sys
from pathlib import Path
from dfsfs.runtime import Database
from dfsfs.testing.disk import watched_flushes

def use(name):
    database = Database(Path(sys.argv[1], name), schema="", version=1, cache_bytes=1 << 20)
    database.close()

with watched_flushes(lambda path, is_directory: None):
    use("watched")
use("later")
"""
    subprocess.run([sys.executable, "-c", script, str(home)], check=True)
