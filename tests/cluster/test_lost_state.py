"""A node's own memory is lost, damaged or put back from a backup: real nodes, real files.

What peers have comes back; what nobody has is said; nothing is given out twice (promises 8 to 15).
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from dfsfs.base.units import KIB, MIB
from dfsfs.testing.fixtures import some_bytes
from dfsfs.testing.processes import PROGRAMS, ProcessNetwork, ProcessNode, read_whole, wait_until


def fsck(node: ProcessNode) -> str:
    done = subprocess.run(
        [PROGRAMS / "dfs", "fsck", "--state", node.state],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.stdout + done.stderr


def tree(node: ProcessNode) -> dict[str, bytes]:
    return {name: read_whole(node.path / name) for name in sorted(os.listdir(node.path))}


def put_back(backup: Path, state: Path) -> None:
    shutil.rmtree(state)
    subprocess.run(["cp", "-a", backup, state], check=True)


def test_a_backup_put_back_while_nobody_is_there_forks_nothing(network: ProcessNetwork) -> None:
    """What was written before the peer is heard gets inode numbers nobody else has (promise 13)."""
    a, b = network.start("a"), network.start("b")
    network.wait_connected()
    (a.path / "before").write_bytes(b"1")
    a.stop()
    backup = a.state.with_suffix(".backup")
    subprocess.run(["cp", "-a", a.state, backup], check=True)
    a.start()
    network.wait_connected()
    (a.path / "after").write_bytes(some_bytes(MIB, 1))
    (a.path / "before").write_bytes(b"2")
    a.kill()
    b.kill()
    put_back(backup, a.state)
    a.start()
    assert read_whole(a.path / "before") == b"1"
    (a.path / "alone").write_bytes(some_bytes(MIB, 2))
    b.start()
    network.wait_connected()
    expected = {"after": some_bytes(MIB, 1), "alone": some_bytes(MIB, 2), "before": b"2"}
    for node in (a, b):
        wait_until(lambda node=node: len(os.listdir(node.path)) == 3)  # type: ignore[misc]
        assert tree(node) == expected
        assert fsck(node) == "clean\n"


def test_a_copy_of_a_state_directory_is_another_incarnation(network: ProcessNetwork) -> None:
    """Also when the copy is of a node that was killed, twice in a row."""
    a, b = network.start("a"), network.start("b")
    network.wait_connected()
    (a.path / "0").write_bytes(b"0")
    a.kill()
    b.kill()
    backup = a.state.with_suffix(".backup")
    subprocess.run(["cp", "-a", a.state, backup], check=True)
    for name in ("1", "2"):
        put_back(backup, a.state)
        a.start()
        (a.path / name).write_bytes(some_bytes(MIB, int(name)))
        b.start()
        network.wait_connected()
        wait_until(lambda name=name: (b.path / name).exists())  # type: ignore[misc]
        wait_until(lambda: a.status()["replication"]["short_count"] == 0)
        a.kill()
        b.kill()
    b.start()
    a.start()
    network.wait_connected()
    wait_until(lambda: len(os.listdir(a.path)) == 3)
    expected = {"0": b"0", "1": some_bytes(MIB, 1), "2": some_bytes(MIB, 2)}
    assert tree(a) == tree(b) == expected
    assert len({path.stat().st_ino for path in b.path.iterdir()}) == 3
    assert fsck(a) == fsck(b) == "clean\n"


@pytest.mark.parametrize("damage", ["gone", "no database", "torn pages"])
def test_names_that_are_lost_here_come_back_from_a_peer(
    network: ProcessNetwork, damage: str
) -> None:
    a, b = network.start("a"), network.start("b")
    network.wait_connected()
    for number in range(200):
        (a.path / str(number)).write_bytes(b"%d" % number)
    (a.path / "large").write_bytes(some_bytes(3 * MIB))
    a.stop()
    spoil(a.state / "namespace.db", damage)
    a.start()
    wait_until(lambda: len(os.listdir(a.path)) == 201)
    assert tree(a) == tree(b)
    if damage == "torn pages":  # found when it is needed; the next start does without it
        a.kill()
        a.start()
        assert tree(a) == tree(b)
    assert "the names of all files are lost here" in a.log.read_text()
    (a.path / "new").write_bytes(b"new")
    assert read_whole(b.path / "new") == b"new"
    assert (b.path / "new").stat().st_ino not in {
        (b.path / str(number)).stat().st_ino for number in range(200)
    }
    assert a.status()["files"]["names_lost"] == ""
    assert fsck(a) == fsck(b) == "clean\n"


def test_the_founder_is_found_by_the_others_when_it_has_lost_everything(
    network: ProcessNetwork,
) -> None:
    """Promise 10: restarted as it was, without an address to join, it is filled again."""
    options = ("--repair-after", "3")
    a, b = network.start("a", *options), network.start("b", *options)
    network.wait_connected()
    for number in range(4):
        (a.path / str(number)).write_bytes(some_bytes(MIB, number))
    (a.path / "inline").write_bytes(b"1")
    wait_until(lambda: b.status()["replication"]["at_factor"] is True)
    a.kill()
    shutil.rmtree(a.state)
    a.start(*options)
    wait_until(lambda: (a.path / "inline").exists() and len(os.listdir(a.path)) == 5)
    wait_until(lambda: a.status()["storage"]["block_count"] >= 16)
    wait_until(lambda: b.status()["replication"]["restored"] is not None)
    restored = b.status()["replication"]["restored"]
    assert restored["bytes"] >= 4 * MIB
    assert restored["seconds"] > 0
    assert "all copies are there again" in b.log.read_text()
    b.kill()
    for number in range(4):
        assert read_whole(a.path / str(number)) == some_bytes(MIB, number)


def spoil(path: Path, damage: str) -> None:
    """Damage the database of a node that was stopped."""
    if damage == "gone":
        path.unlink()
        return
    size = path.stat().st_size
    with path.open("r+b") as stream:
        for start in range(0 if damage == "no database" else 8 * KIB, size, 4 * KIB):
            stream.seek(start)
            stream.write(b"\xff" * 512)


def test_a_node_alone_does_not_start_without_the_names(network: ProcessNetwork) -> None:
    """An empty tree in their place would be believed; the message says what can be done."""
    a = network.start("a")
    (a.path / "file").write_bytes(some_bytes(MIB))
    a.stop()
    database = a.state / "namespace.db"
    good = database.read_bytes()
    spoil(database, "no database")
    with pytest.raises(AssertionError, match="names of all files are damaged"):
        a.start()
    database.write_bytes(good)
    a.start()
    assert read_whole(a.path / "file") == some_bytes(MIB)
    a.stop()

    # Told to begin with an empty tree it does, and keeps the blocks: the names may be put back.
    aside = database.rename(database.with_suffix(".aside"))
    a.start("--gc-grace", "0")
    assert os.listdir(a.path) == []
    assert "is gone" in a.status()["files"]["names_lost"]
    held = a.status()["storage"]["block_count"]
    assert held > 0
    refused = subprocess.run(
        [PROGRAMS / "dfs", "gc", "--state", a.state], capture_output=True, text=True, check=False
    )
    assert refused.returncode == 1
    assert "everything is kept" in refused.stderr
    assert a.status()["storage"]["block_count"] == held
    a.stop()
    aside.rename(database)
    a.start()
    assert read_whole(a.path / "file") == some_bytes(MIB)
