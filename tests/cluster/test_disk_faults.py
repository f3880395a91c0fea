"""A disk that fails while a node runs on it: EIO from the kernel, made by a shim in its process.

Promises 2, 9, 15: nobody gets wrong bytes, nothing is acknowledged that is not there, nothing dies.
"""

import errno
import os
import subprocess
from pathlib import Path

import pytest

from dfsfs.base.units import KIB, MIB
from dfsfs.testing.fixtures import some_bytes
from dfsfs.testing.processes import PROGRAMS, ProcessNetwork, ProcessNode, read_whole, wait_until

LATER = ("--repair-after", "1h", "--fetch-timeout", "2")


class FaultyDisk:
    """What fails on the disk of a node that was started with `prefix`."""

    def __init__(self, directory: Path) -> None:
        shim = directory / "faulty_disk.so"
        source = Path(__file__).with_name("faulty_disk.c")
        command: list[str | Path] = ["gcc", "-shared", "-fPIC", "-O1", "-o", shim, source, "-ldl"]
        subprocess.run(command, check=True)
        self._list = directory / "faults"
        self.prefix = ("env", f"LD_PRELOAD={shim}", f"DFS_FAULTS={self._list}")

    def fail(self, *faults: str) -> None:
        """From now on these fail, such as "read .seg"; none: nothing does."""
        aside = self._list.with_suffix(".new")
        aside.write_text("".join(f"{fault}\n" for fault in faults))
        aside.rename(self._list)


@pytest.fixture
def disk(tmp_path: Path) -> FaultyDisk:
    return FaultyDisk(tmp_path)


def start_on(network: ProcessNetwork, disk: FaultyDisk) -> tuple[ProcessNode, ProcessNode]:
    """The node with the faulty disk, and its peer."""
    b = network.start("b", *LATER)
    a = network.make("a", mount=True)
    a.prefix = disk.prefix
    network.nodes.append(a)
    a.start("--bootstrap", b.address, *LATER)
    network.wait_connected()
    return a, b


def fsync_of(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        os.write(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def dfs(node: ProcessNode, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PROGRAMS / "dfs", *words, "--state", node.state],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_what_the_disk_cannot_read_comes_from_the_peer(
    network: ProcessNetwork, disk: FaultyDisk
) -> None:
    a, b = start_on(network, disk)
    for number in range(3):
        (a.path / str(number)).write_bytes(some_bytes(2 * MIB, number))
    wait_until(lambda: a.status()["replication"]["at_factor"] is True)
    a.stop()
    a.start(*LATER)  # what it reads now it has to verify
    network.wait_connected()
    disk.fail("read .seg")
    assert read_whole(a.path / "0") == some_bytes(2 * MIB, 0)
    b.kill()
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        read_whole(a.path / "1")
    (a.path / "written").write_bytes(some_bytes(300 * KIB, 9))  # the mount goes on
    disk.fail()
    assert dfs(a, "scrub").returncode == 0  # read again, all of it is good
    assert read_whole(a.path / "1") == some_bytes(2 * MIB, 1)
    assert read_whole(a.path / "written") == some_bytes(300 * KIB, 9)


def test_a_node_starts_although_its_disk_cannot_read_what_was_written_last(
    network: ProcessNetwork, disk: FaultyDisk
) -> None:
    """A start looks at what was not flushed; a bad sector there costs what is in it at most."""
    a, b = start_on(network, disk)
    data = some_bytes(2 * MIB)
    (a.path / "x").write_bytes(data)
    wait_until(lambda: a.status()["replication"]["at_factor"] is True)
    a.kill()
    disk.fail("read .seg")
    a.start(*LATER)
    network.wait_connected()
    assert read_whole(a.path / "x") == data
    (a.path / "y").write_bytes(some_bytes(MIB, 1))
    disk.fail()
    b.kill()
    assert read_whole(a.path / "x") == data  # nothing of it was forgotten here
    assert read_whole(a.path / "y") == some_bytes(MIB, 1)


def test_a_flush_that_failed_is_an_error_and_final_until_restart(
    network: ProcessNetwork, disk: FaultyDisk
) -> None:
    """The kernel forgets which pages it could not write: no later flush could be believed."""
    a, b = start_on(network, disk)
    fsync_of(a.path / "before", some_bytes(MIB, 1))
    disk.fail("sync .seg")
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        fsync_of(a.path / "during", some_bytes(MIB, 2))
    disk.fail()
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        fsync_of(a.path / "after", some_bytes(MIB, 3))
    assert read_whole(a.path / "before") == some_bytes(MIB, 1)  # it still reads,
    fsync_of(b.path / "elsewhere", some_bytes(MIB, 4))  # and holds up nobody
    assert read_whole(a.path / "elsewhere") == some_bytes(MIB, 4)
    assert "takes no more blocks" in a.log.read_text()
    a.kill()
    a.start(*LATER)
    network.wait_connected()
    fsync_of(a.path / "again", some_bytes(MIB, 5))
    for name, seed in (("before", 1), ("elsewhere", 4), ("again", 5)):
        assert read_whole(a.path / name) == read_whole(b.path / name) == some_bytes(MIB, seed)
    assert dfs(a, "fsck").stdout == "clean\n"


@pytest.mark.parametrize("part", ["namespace.db", ".seg", "index.db"])
def test_what_the_disk_does_not_take_is_an_error_and_nothing_is_torn(
    network: ProcessNetwork, disk: FaultyDisk, part: str
) -> None:
    a, b = start_on(network, disk)
    (a.path / "file").write_bytes(some_bytes(MIB, 1))
    disk.fail(f"write {part}")
    for _ in range(3):
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            (a.path / "file").write_bytes(some_bytes(MIB, 2))
    disk.fail()
    # Whole, whichever it is: the truncation may have got through, or the write after all.
    assert read_whole(b.path / "file") in (some_bytes(MIB, 1), some_bytes(MIB, 2), b"")
    (a.path / "file").write_bytes(some_bytes(MIB, 3))
    assert read_whole(a.path / "file") == read_whole(b.path / "file") == some_bytes(MIB, 3)
    assert dfs(a, "fsck").stdout == dfs(b, "fsck").stdout == "clean\n"
