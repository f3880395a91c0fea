"""Real nodes that meet, share, die and come back: packaging, kernel and operating system included.

The same promises as in tests/sim, fewer cases, real time.
"""

import contextlib
import os
import threading
from pathlib import Path

from dfsfs.base.units import KIB, MIB
from dfsfs.testing.fixtures import some_bytes
from dfsfs.testing.processes import ProcessNetwork, read_whole, wait_until


def test_what_is_closed_here_is_read_there_also_when_here_is_killed(
    network: ProcessNetwork,
) -> None:
    """Promises 4, 8 and 11."""
    a, b, c = (network.start(name) for name in "abc")
    network.wait_connected()
    for size in (0, 100, 5 * KIB, 3 * MIB):
        (a.path / f"{size}").write_bytes(some_bytes(size, size))
        assert read_whole(b.path / f"{size}") == some_bytes(size, size)
    # One that b has not fetched before.
    (a.path / "last").write_bytes(some_bytes(2 * MIB, 7))
    a.kill()
    for node in (b, c):
        assert read_whole(node.path / "last") == some_bytes(2 * MIB, 7)
        assert read_whole(node.path / f"{3 * MIB}") == some_bytes(3 * MIB, 3 * MIB)
    (b.path / "meanwhile").write_bytes(b"1")

    # It comes back by itself: its bootstrap address is not told again.
    a.start()
    network.wait_connected()
    wait_until(lambda: (a.path / "meanwhile").exists())
    assert read_whole(a.path / "last") == some_bytes(2 * MIB, 7)
    (a.path / "again").write_bytes(b"2")
    assert read_whole(c.path / "again") == b"2"


def test_names_change_for_everybody_when_the_call_returns(network: ProcessNetwork) -> None:
    """Promise 4: entries and attributes that the other kernel had cached, too."""
    a, b = network.start("a"), network.start("b")
    network.wait_connected()
    (a.path / "d").mkdir()
    assert sorted(os.listdir(b.path)) == ["d"]
    for number in range(20):
        old, new = f"d/{number}", f"d/{number}-moved"
        assert not (b.path / old).exists()  # the kernel of b may remember that
        (a.path / old).write_bytes(bytes(number))
        assert (b.path / old).stat().st_size == number
        (b.path / old).rename(b.path / new)
        assert not (a.path / old).exists()
        assert (a.path / new).stat().st_size == number
        (a.path / new).write_bytes(bytes(number + 1))
        assert read_whole(b.path / new) == bytes(number + 1)
    for number in range(20):
        (b.path / f"d/{number}-moved").unlink()
    (a.path / "d").rmdir()
    assert os.listdir(b.path) == []


def test_the_bootstrap_node_may_go_for_good(network: ProcessNetwork) -> None:
    a = network.start("a", mount=False)
    b, c = network.start("b"), network.start("c")
    network.wait_connected()
    a.kill()
    (b.path / "x").write_bytes(b"1")
    assert read_whole(c.path / "x") == b"1"
    c.stop()
    c.start()
    network.wait_connected()
    assert read_whole(c.path / "x") == b"1"
    d = network.start("d")
    assert read_whole(d.path / "x") == b"1"


def test_a_kill_in_the_middle_of_writes_leaves_whole_files(network: ProcessNetwork) -> None:
    """Promises 6 and 11."""
    a, b = network.start("a"), network.start("b")
    network.wait_connected()
    closed: list[int] = []

    def write_on() -> None:
        with contextlib.suppress(OSError):  # the mount dies under it
            for number in range(10_000):
                (a.path / f"{number % 8}").write_bytes(some_bytes(300 * KIB, number))
                closed.append(number)

    writer = threading.Thread(target=write_on)
    writer.start()
    wait_until(lambda: len(closed) > 20)
    a.kill()
    writer.join()
    last = {number % 8: number for number in closed}
    unfinished = len(closed)
    for name, number in last.items():
        good = {some_bytes(300 * KIB, number)}
        if unfinished % 8 == name:
            good |= {some_bytes(300 * KIB, unfinished), b""}
        assert read_whole(b.path / f"{name}") in good
    a.start()
    network.wait_connected()
    for name in last:
        wait_until(lambda name=name: _same(a.path / f"{name}", b.path / f"{name}"))  # type: ignore[misc]


def _same(one: Path, other: Path) -> bool:
    return read_whole(one) == read_whole(other)


def test_a_peer_that_hangs_delays_the_others_by_a_bounded_time(network: ProcessNetwork) -> None:
    """Promise 16. What took place while it hung it sees when it goes on."""
    a, b, c = (network.start(name) for name in "abc")
    network.wait_connected()
    (a.path / "before").write_bytes(b"1")
    c.pause()
    try:
        (a.path / "x").write_bytes(some_bytes(MIB))  # returns: that is the test
        assert read_whole(b.path / "x") == some_bytes(MIB)
    finally:
        c.resume()
    network.wait_connected()
    wait_until(lambda: (c.path / "x").exists())
    assert read_whole(c.path / "x") == some_bytes(MIB)


def test_everything_survives_a_kill_of_all(network: ProcessNetwork) -> None:
    """Promise 11."""
    nodes = [network.start(name) for name in "abc"]
    network.wait_connected()
    data = {node.name: some_bytes(MIB, number) for number, node in enumerate(nodes)}
    for node in nodes:
        (node.path / node.name).write_bytes(data[node.name])
    for node in nodes:
        node.kill()
    for node in nodes:
        node.start()
    network.wait_connected()
    for node in nodes:
        for name, expected in data.items():
            wait_until(lambda path=node.path / name: path.exists())  # type: ignore[misc]
            assert read_whole(node.path / name) == expected
