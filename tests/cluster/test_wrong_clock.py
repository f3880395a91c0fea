"""Nodes whose wall clock is wrong, by a shim in their process (promise 14)."""

import os
import subprocess
from pathlib import Path

from dfsfs.testing.processes import ProcessNetwork, ProcessNode, read_whole, wait_until

HOUR_S = 3600
YEARS_S = 10 * 365 * 24 * HOUR_S


def with_clock(directory: Path, offset_s: int) -> tuple[str, ...]:
    """What a node's program is run by to have its clock so far ahead."""
    shim = directory / "wrong_clock.so"
    source = Path(__file__).with_name("wrong_clock.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", shim, source], check=True)
    return ("env", f"LD_PRELOAD={shim}", f"DFS_CLOCK_OFFSET_S={offset_s}")


def has(node: ProcessNode, name: str, data: bytes) -> bool:
    path = node.path / name
    return path.exists() and read_whole(path) == data


def test_a_clock_less_than_an_hour_off_is_nobodys_concern(
    network: ProcessNetwork, tmp_path: Path
) -> None:
    a = network.start("a")
    b = network.make("b", mount=True)
    b.prefix = with_clock(tmp_path, 50 * 60)
    network.nodes.append(b)
    b.start("--bootstrap", a.address)
    network.wait_connected()
    for turn in range(3):  # each overwrites what the other wrote, whoever's clock is later
        (b.path / "file").write_bytes(b"b%d" % turn)
        assert read_whole(a.path / "file") == b"b%d" % turn
        (a.path / "file").write_bytes(b"a%d" % turn)
        assert read_whole(b.path / "file") == b"a%d" % turn
    assert os.listdir(a.path) == os.listdir(b.path) == ["file"]


def test_a_clock_ten_years_behind_loses_nothing(network: ProcessNetwork, tmp_path: Path) -> None:
    """Its node is apart until the clock is right again, and then everybody has everything."""
    a, b = network.start("a"), network.start("b")
    network.wait_connected()
    (a.path / "before").write_bytes(b"1")
    assert read_whole(b.path / "before") == b"1"
    b.kill()
    (a.path / "from a").write_bytes(b"2")
    b.prefix = with_clock(tmp_path, -YEARS_S)
    b.start()
    (b.path / "from b").write_bytes(b"3")
    (b.path / "before").write_bytes(b"4")
    b.kill()
    b.prefix = ()
    b.start()
    network.wait_connected()
    for node in (a, b):
        for name, data in (("from a", b"2"), ("from b", b"3"), ("before", b"4")):
            wait_until(lambda node=node, name=name, data=data: has(node, name, data))  # type: ignore[misc]
