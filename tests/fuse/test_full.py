"""A full disk: ENOSPC where the program can see it, nothing harmed, and space that comes back.

Real nodes alone, with a small capacity and on a small disk.
"""

import contextlib
import errno
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from dfsfs.base.units import MIB
from dfsfs.testing.processes import PROGRAMS, ProcessNetwork, ProcessNode, wait_until

FILE_BYTES = 3 * MIB
CAPACITY = 64 * MIB


def content(number: int) -> bytes:
    return random.Random(number).randbytes(FILE_BYTES)


def write_file(path: Path, data: bytes) -> int:
    """0 if it was acknowledged, else the errno of the call that failed."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    except OSError as error:
        return error.errno or 0
    failed = 0
    try:
        for at in range(0, len(data), MIB):
            os.write(handle, data[at : at + MIB])
    except OSError as error:
        failed = error.errno or 0
    try:
        os.close(handle)
    except OSError as error:
        failed = failed or error.errno or 0
    return failed


def fill(root: Path, limit: int) -> int:
    """Write files until one fails; how many were acknowledged."""
    for number in range(limit):
        failed = write_file(root / f"{number}", content(number))
        if failed:
            assert failed == errno.ENOSPC, os.strerror(failed)
            return number
    raise AssertionError("it never became full")


def check_full(node: ProcessNode, count: int) -> None:
    """What was acknowledged is there, what exists can be used, and one thing less makes room."""
    for number in range(count):
        assert (node.path / f"{number}").read_bytes() == content(number)
    assert write_file(node.path / "another", content(999)) == errno.ENOSPC
    assert os.statvfs(node.path).f_bavail < 2 * FILE_BYTES // 4096
    # Names need no blocks, and removing them must always work.
    (node.path / "0").rename(node.path / "renamed")
    (node.path / "directory").mkdir()
    (node.path / "renamed").chmod(0o600)
    (node.path / "directory").rmdir()
    (node.path / "renamed").rename(node.path / "0")


def check_space_comes_back(node: ProcessNode, count: int) -> None:
    back = count // 3  # fewer than are removed: logs and indices take their part
    for number in range(count // 2):
        (node.path / f"{number}").unlink()
    for name in (f"{count}", "another"):
        (node.path / name).unlink(missing_ok=True)

    def collected() -> bool:
        command: list[str | Path] = [PROGRAMS / "dfs", "gc", "--state", node.state]
        subprocess.run(command, check=True, capture_output=True)
        free = os.statvfs(node.path).f_bavail * 4096
        return free > back * FILE_BYTES

    wait_until(collected)
    for number in range(back):
        assert write_file(node.path / f"{number}", content(number)) == 0
    for number in [*range(back), *range(count // 2, count)]:
        assert (node.path / f"{number}").read_bytes() == content(number)


def test_a_node_at_its_capacity(tmp_path: Path) -> None:
    with ProcessNetwork(tmp_path) as network:
        node = network.start("alone", "--capacity", f"{CAPACITY}", "--gc-grace", "1s")
        count = fill(node.path, 40)
        assert count >= CAPACITY // FILE_BYTES * 3 // 4
        check_full(node, count)
        check_space_comes_back(node, count)
        node.stop()
        node.start("--capacity", f"{CAPACITY}", "--gc-grace", "1s")
        assert (node.path / f"{count - 1}").read_bytes() == content(count - 1)


def use_up(path: Path) -> None:
    """Write a file until not one more byte fits."""
    with path.open("wb", buffering=0) as file:
        for size in (MIB, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0:
        pytest.skip("a small filesystem needs root to mount it")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=120m", "none", disk], check=True)
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.announce("full")
def test_a_node_on_a_small_disk(small_disk: Path) -> None:
    with ProcessNetwork(small_disk) as network:
        node = network.start("alone", "--gc-grace", "1s")
        count = fill(node.path, 60)
        assert count >= 15
        check_full(node, count)
        check_space_comes_back(node, count)


def test_a_disk_that_others_filled(small_disk: Path) -> None:
    """Not even names fit: still ENOSPC, still readable, and fine when there is room again."""
    with ProcessNetwork(small_disk) as network:
        node = network.start("alone")
        assert write_file(node.path / "before", content(1)) == 0
        ballast = small_disk / "ballast"
        use_up(ballast)
        failures = set()
        for number in range(3000):
            try:
                (node.path / f"name-{number}").mkdir()
            except OSError as error:
                failures.add(error.errno)
                break
        assert write_file(node.path / "large", content(2)) == errno.ENOSPC
        assert failures <= {errno.ENOSPC}
        assert (node.path / "before").read_bytes() == content(1)
        ballast.unlink()
        assert write_file(node.path / "after", content(3)) == 0
        assert (node.path / "after").read_bytes() == content(3)
        node.kill()
        node.start()
        for name, number in (("before", 1), ("after", 3)):
            assert (node.path / name).read_bytes() == content(number)
