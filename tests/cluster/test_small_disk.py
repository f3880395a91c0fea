"""A disk that is too small, a real one: who adds is refused early, who removes never is.

Promises 2, 8 and 18. What fills it is the node itself: blocks, names, attributes, and its logs.
"""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dfsfs.base.units import KIB, MIB
from dfsfs.runtime import reserve_bytes
from dfsfs.testing.fixtures import disk_at, some_bytes
from dfsfs.testing.processes import ProcessNetwork, ProcessNode, read_whole, wait_until

DISK_BYTES = 64 * MIB
GRACE = ("--gc-grace", "1")


@pytest.fixture
def node(tmp_path: Path) -> Iterator[ProcessNode]:
    disk = disk_at(tmp_path / "a.state", DISK_BYTES)
    with disk, ProcessNetwork(tmp_path) as network:
        yield network.start("a", *GRACE)


def free_bytes(node: ProcessNode) -> int:
    space = os.statvfs(node.state)
    return space.f_bavail * space.f_frsize


def until_full(add: Callable[[int], None]) -> int:
    """Add one thing after another until one is refused with ENOSPC; how many were taken."""
    for number in range(10_000):
        try:
            add(number)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                return number
            raise
    pytest.fail("the disk was never full")


def test_a_disk_filled_by_its_own_node_is_emptied_by_removing(node: ProcessNode) -> None:
    reserve = reserve_bytes(DISK_BYTES, None)

    def add_blocks(number: int) -> None:
        (node.path / f"blocks{number}").write_bytes(some_bytes(300 * KIB, number))

    def add_attributes(number: int) -> None:
        (node.path / f"names{number}").touch()
        for part in range(4):
            os.setxattr(
                node.path / f"names{number}",
                f"user.{part}",
                some_bytes(60 * KIB, 4 * number + part),
            )

    blocks = until_full(add_blocks)
    assert blocks > 30
    names = until_full(add_attributes)
    assert names > 5
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        (node.path / "another").mkdir()
    assert free_bytes(node) > reserve // 4  # it was early: the other part is for what follows

    for number in range(blocks):
        assert read_whole(node.path / f"blocks{number}") == some_bytes(300 * KIB, number)
    assert os.getxattr(node.path / "names0", "user.3") == some_bytes(60 * KIB, 3)
    (node.path / "names0").chmod(0o600)  # what adds nothing goes on
    (node.path / "names0").rename(node.path / "renamed")

    for path in sorted(node.path.iterdir()):
        path.unlink()
    wait_until(lambda: takes(node, "again", 8 * MIB))
    node.kill()
    node.start(*GRACE)
    assert read_whole(node.path / "again") == some_bytes(8 * MIB, 0)


def takes(node: ProcessNode, name: str, size: int) -> bool:
    try:
        (node.path / name).write_bytes(some_bytes(size, 0))
    except OSError as error:
        if error.errno == errno.ENOSPC:
            return False
        raise
    return True


def test_a_disk_filled_by_somebody_else_to_the_last_byte(node: ProcessNode) -> None:
    """A node that was killed on it starts, reads, and removes: with what it had held back."""
    for number in range(8):
        (node.path / str(number)).write_bytes(some_bytes(MIB, number))
    filler = node.state / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as stream:
        while stream.write(bytes(MIB)):
            pass
    node.kill()
    assert free_bytes(node) < MIB
    node.start(*GRACE)
    for number in range(8):
        assert read_whole(node.path / str(number)) == some_bytes(MIB, number)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        (node.path / "more").write_bytes(b"1")
    for number in range(4):
        (node.path / str(number)).unlink()
    assert len(os.listdir(node.path)) == 4
    filler.unlink()
    wait_until(lambda: takes(node, "again", 4 * MIB))
    wait_until((node.state / "ballast").exists)  # for the next time
