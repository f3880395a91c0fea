"""Removed files leave the databases of real nodes; who was away beyond the horizon loses nothing.

`DFS_FORGET_FILES=20000` for the size of a build tree; CI removes fewer.
"""

import os
from pathlib import Path

import pytest

from dfsfs.base.limits import RECLAIM_KEPT_COUNT
from dfsfs.base.units import MIB
from dfsfs.testing.processes import ProcessNetwork, ProcessNode, read_whole, wait_until

FILES = int(os.environ.get("DFS_FORGET_FILES", "2000"))
PAGE_BYTES = 4096  # of a database


def database_bytes(node: ProcessNode) -> int:
    """Without its log, which has a bound of its own and is used again."""
    return (node.state / "namespace.db").stat().st_size


def resident_bytes(node: ProcessNode) -> int:
    pid = node.status()["node"]["pid"]
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


def forgetting(node: ProcessNode) -> dict[str, object]:
    report: dict[str, object] = node.status()["forgetting"]
    return report


def make_and_remove(directory: Path, count: int) -> None:
    directory.mkdir()
    for number in range(count):
        (directory / f"{number:06}").write_bytes(b"%d" % number)
    for number in range(count):
        (directory / f"{number:06}").unlink()
    directory.rmdir()


def test_space_comes_back_and_a_return_beyond_the_horizon_loses_nothing(
    network: ProcessNetwork, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--horizon", "15s", "--visibility", "async", "--write-concern", "1")
    a, b = network.start("a", *options), network.start("b", *options)
    network.wait_connected()
    (a.path / "kept").write_bytes(b"kept")
    for name in ("edited", "untouched"):
        (a.path / name).write_bytes(name.encode())
    wait_until(lambda: set(os.listdir(b.path)) == {"kept", "edited", "untouched"})
    make_and_remove(a.path / "warm", 200)
    wait_until(lambda: forgetting(a)["forgotten"] == forgetting(b)["forgotten"] == 201)
    before = resident_bytes(a)

    b.stop()  # nobody else is there: what it does alone nobody has
    a.stop()
    b.start(*options)
    (b.path / "edited").write_bytes(b"edited while alone")
    b.kill()
    a.start(*options)
    (a.path / "edited").unlink()
    (a.path / "untouched").unlink()
    make_and_remove(a.path / "many", FILES)
    largest = database_bytes(a)
    wait_until(lambda: forgetting(a)["forgotten"] == FILES + 3)
    wait_until(lambda: database_bytes(a) < RECLAIM_KEPT_COUNT * PAGE_BYTES + 2 * MIB)
    after = resident_bytes(a)
    with capsys.disabled():
        sizes = f"{largest // 1024} -> {database_bytes(a) // 1024} KiB"
        print(f"\n{FILES} files: database {sizes}, RSS {before // MIB} -> {after // MIB} MiB")

    b.start(*options)
    network.wait_connected()
    wait_until(lambda: os.listdir(b.path) == os.listdir(a.path))
    for node in (a, b):
        assert set(os.listdir(node.path)) == {"kept", "edited"}
        assert read_whole(node.path / "edited") == b"edited while alone"
    assert forgetting(b)["snapshots_taken"] == 1
    wait_until(lambda: forgetting(a)["dead"] == forgetting(b)["dead"] == 0)
