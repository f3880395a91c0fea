"""Commands that keep data safe, on real nodes: what they do, and what they exit with."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from dfsfs.base.units import KIB, MIB
from dfsfs.testing.fixtures import some_bytes
from dfsfs.testing.processes import (
    DEADLINE_S,
    PROGRAMS,
    ProcessNetwork,
    ProcessNode,
    read_whole,
    wait_until,
)

Done = subprocess.CompletedProcess[str]


def dfs(node: ProcessNode, *words: str | Path) -> Done:
    group = 2 if words[0] == "peers" else 1
    return subprocess.run(
        [PROGRAMS / "dfs", *words[:group], "--state", node.state, *words[group:]],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def good(done: Done) -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def replication(node: ProcessNode) -> dict[str, Any]:
    found: dict[str, Any] = node.status()["replication"]
    return found


def is_whole(node: ProcessNode) -> bool:
    """Whether a look found everything at its factor, and nothing is on its way."""
    found = replication(node)
    return bool(
        found["at_factor"]
        and found["on_two_nodes"]
        and not found["queued_copies"]
        and found["looks"] > 0
    )


def stored(node: ProcessNode) -> int:
    count: int = node.status()["storage"]["block_count"]
    return count


def corrupt(node: ProcessNode, count: int, *, skip: int = 0) -> None:
    """Flip a byte in each of `count` large blocks on disk; those replaced lately are at the end."""
    flipped = 0
    for path in sorted((node.state / "blocks" / "segments").glob("*.seg")):
        with path.open("r+b") as stream:
            size = path.stat().st_size
            for offset in range(100_000 + skip * 262_208, size, 262_208):
                if flipped == count:
                    return
                stream.seek(offset)
                byte = stream.read(1)[0]
                stream.seek(offset)
                stream.write(bytes((byte ^ 0x55,)))
                flipped += 1
    assert flipped == count, f"only {flipped}"


def test_what_was_removed_goes_after_its_grace_and_nothing_else(network: ProcessNetwork) -> None:
    """Promise 18."""
    a, b = (network.start(name, "--gc-grace", "2") for name in "ab")
    network.wait_connected()
    (a.path / "kept").write_bytes(some_bytes(3 * MIB, 1))
    (a.path / "gone").write_bytes(some_bytes(3 * MIB, 2))
    (a.path / "open").write_bytes(some_bytes(3 * MIB, 3))
    held = os.open(b.path / "open", os.O_RDONLY)
    wait_until(lambda: is_whole(a) and is_whole(b))
    before = stored(a)
    (a.path / "gone").unlink()
    (a.path / "open").unlink()
    report = good(dfs(a, "gc", "--dry-run"))
    assert "would go    0 blocks" in report or "would go" in report
    wait_until(lambda: stored(a) <= before - 12 and stored(b) <= before - 12)
    # b reads on in what it has open: its blocks stay, on a too, for as long as that lasts.
    good(dfs(a, "gc"))
    assert os.pread(held, 3 * MIB, 0) == some_bytes(3 * MIB, 3)
    os.close(held)
    assert read_whole(b.path / "kept") == some_bytes(3 * MIB, 1)
    wait_until(lambda: stored(a) <= before - 24 and stored(b) <= before - 24)
    for node in (a, b):
        assert good(dfs(node, "fsck")) == "clean\n"
        assert read_whole(node.path / "kept") == some_bytes(3 * MIB, 1)


def test_bad_blocks_are_found_mended_or_named(network: ProcessNetwork) -> None:
    """Promise 15."""
    a, b = (network.start(name, "--repair-after", "1h") for name in "ab")
    network.wait_connected()
    (a.path / "file").write_bytes(some_bytes(4 * MIB))
    wait_until(lambda: is_whole(a) and is_whole(b))
    assert good(dfs(a, "fsck")) == "clean\n"

    corrupt(a, 3)
    found = dfs(a, "fsck")
    assert found.returncode == 4, found.stdout
    assert found.stdout.count("LEFT: bad block") == 3
    assert "of file:" in found.stdout
    mended = dfs(a, "fsck", "--repair")
    assert mended.returncode == 1, mended.stdout
    assert mended.stdout.count("mended: bad block") == 3
    assert good(dfs(a, "fsck")) == "clean\n"

    corrupt(a, 2, skip=4)
    assert "2 mended" in good(dfs(a, "scrub", a.path / "file"))
    assert "good" in good(dfs(a, "scrub"))

    # No other copy in reach: the file is named, and nothing wrong is ever read.
    b.kill()
    corrupt(a, 1, skip=8)
    lost = dfs(a, "scrub")
    assert lost.returncode == 4
    assert "file" in lost.stdout
    assert list(replication(a)["lost_blocks"].values()) == [["file"]]
    b.start("--repair-after", "1h")
    network.wait_connected()
    # b compares its blocks with a's when they meet again, or this scrub gets it from b.
    wait_until(lambda: dfs(a, "scrub").returncode == 0)
    assert replication(a)["lost_blocks"] == {}
    assert read_whole(a.path / "file") == some_bytes(4 * MIB)


def test_fsck_says_when_it_cannot_run(tmp_path: Path) -> None:
    done = subprocess.run(
        [PROGRAMS / "dfs", "fsck", "--state", tmp_path],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 8
    assert "Traceback" not in done.stderr


def test_a_node_that_is_lost_is_replaced_and_one_that_returns_counts_again(
    network: ProcessNetwork,
) -> None:
    """Promise 10."""
    options = ("--replicas", "2", "--repair-after", "2", "--cache", "0")
    nodes = [network.start(name, *options) for name in "abcd"]
    a, b, _, d = nodes
    network.wait_connected()
    for number in range(8):
        (a.path / str(number)).write_bytes(some_bytes(MIB, number))
    wait_until(lambda: all(map(is_whole, nodes)))
    d.kill()
    wait_until(lambda: replication(a)["absent"] == ["d"])
    rest = nodes[:3]
    wait_until(lambda: all(is_whole(node) and replication(node)["absent"] for node in rest))
    assert sum(map(stored, rest)) >= 2 * 8 * 4
    d.start(*options)
    network.wait_connected()
    wait_until(lambda: all(is_whole(node) and not replication(node)["absent"] for node in nodes))
    # What was copied meanwhile is surplus now, and goes: two copies of each block, give or take
    # what somebody is just about to drop.
    wait_until(lambda: sum(map(stored, nodes)) <= 2 * 8 * 5)
    for number in range(8):
        assert read_whole(b.path / str(number)) == some_bytes(MIB, number)


def test_a_member_is_removed_and_taken_back(network: ProcessNetwork) -> None:
    """Promise 10."""
    options = ("--replicas", "2")
    nodes = [network.start(name, *options) for name in "abc"]
    a, b, c = nodes
    network.wait_connected()
    (c.path / "file").write_bytes(some_bytes(3 * MIB))
    wait_until(lambda: all(map(is_whole, nodes)))
    assert good(dfs(a, "peers", "remove", "c")) == "c is removed\n"
    assert dfs(a, "peers", "remove", "c").returncode == 1
    wait_until(lambda: c.sees() == set() and a.sees() == {"b"} and b.sees() == {"a"})
    wait_until(lambda: is_whole(a) and is_whole(b) and stored(a) == stored(b) >= 12)
    assert read_whole(b.path / "file") == some_bytes(3 * MIB)
    c.stop()
    c.start(*options)  # it is not let in by coming back
    wait_until(lambda: "was removed from the network" in c.log.read_text())
    assert c.sees() == set()
    good(dfs(b, "peers", "add", "c"))
    network.wait_connected()
    wait_until(lambda: all(map(is_whole, nodes)))


def test_a_node_is_drained_and_can_be_switched_off(network: ProcessNetwork) -> None:
    options = ("--replicas", "2", "--repair-after", "1h")
    a, b, c = nodes = [network.start(name, *options) for name in "abc"]
    network.wait_connected()
    for number in range(6):
        (a.path / str(number)).write_bytes(some_bytes(MIB, number))
    wait_until(lambda: all(map(is_whole, nodes)))
    reports = [json.loads(line) for line in good(dfs(a, "drain", "--json")).splitlines()]
    assert reports[-1] == {"result": "drained"}
    assert replication(a)["draining"]
    a.kill()  # as safe as an orderly end
    for number in range(6):
        assert read_whole(c.path / str(number)) == some_bytes(MIB, number)
    wait_until(lambda: stored(b) >= 24 and stored(c) >= 24)
    a.start(*options)
    assert replication(a)["draining"]
    good(dfs(a, "drain", "--stay"))
    assert not replication(a)["draining"]


def test_a_node_alone_cannot_be_drained(network: ProcessNetwork) -> None:
    a = network.start("a")
    (a.path / "file").write_bytes(some_bytes(300 * KIB))
    done = dfs(a, "drain")
    assert done.returncode == 4
    assert "no other node" in done.stdout


def test_a_lost_state_directory_fills_again_by_itself(network: ProcessNetwork) -> None:
    """Promise 10: a node that lost everything comes back empty, under a new identity."""
    options = ("--replicas", "3", "--repair-after", "3")
    a, b, c = (network.start(name, *options) for name in "abc")
    network.wait_connected()
    for number in range(8):
        (a.path / str(number)).write_bytes(some_bytes(MIB, number))
    wait_until(lambda: all(map(is_whole, (a, b, c))))
    c.kill()
    subprocess.run(["rm", "-rf", c.state], check=True)
    c.start("--bootstrap", a.address, *options)
    wait_until(lambda: stored(c) == stored(a) >= 32)
    wait_until(lambda: replication(c)["on_two_nodes"] and not replication(a)["missing_copies"])
    for number in range(8):
        assert read_whole(c.path / str(number)) == some_bytes(MIB, number)
    assert good(dfs(c, "fsck")) == "clean\n"


def test_a_state_directory_from_a_backup_becomes_another_incarnation(
    network: ProcessNetwork,
) -> None:
    """Nothing that was written after the backup is lost, and no inode number is used twice."""
    a, b = (network.start(name) for name in "ab")
    network.wait_connected()
    (a.path / "before").write_bytes(b"1")
    a.stop()
    subprocess.run(["cp", "-a", a.state, f"{a.state}.backup"], check=True)
    a.start()
    network.wait_connected()
    (a.path / "after").write_bytes(some_bytes(MIB))
    (a.path / "before").write_bytes(b"2")
    inode = (a.path / "after").stat().st_ino
    for _ in range(2):  # and again: the backup does not know of the incarnation after it
        a.kill()
        subprocess.run(["rm", "-rf", a.state], check=True)
        subprocess.run(["cp", "-a", f"{a.state}.backup", a.state], check=True)
        a.start()
        network.wait_connected()
        wait_until(lambda: (a.path / "after").exists())
        assert read_whole(a.path / "after") == some_bytes(MIB)
        assert read_whole(a.path / "before") == b"2"
        fresh = a.path / f"fresh {inode}"
        fresh.write_bytes(b"3")
        assert fresh.stat().st_ino not in {(b.path / "after").stat().st_ino, inode}
        inode = fresh.stat().st_ino
        assert read_whole(b.path / fresh.name) == b"3"
    for node in (a, b):
        assert good(dfs(node, "fsck")) == "clean\n"
        assert sorted(path.name for path in node.path.iterdir()) == sorted(
            path.name for path in a.path.iterdir()
        )


def test_stopping_the_last_holder_of_anything_warns(network: ProcessNetwork) -> None:
    a, b = (network.start(name, "--repair-after", "1h") for name in "ab")
    network.wait_connected()
    b.kill()
    (a.path / "file").write_bytes(some_bytes(MIB))
    wait_until(lambda: replication(a)["single_blocks"] > 0)
    assert not replication(a)["on_two_nodes"]
    assert replication(a)["short_writes"] > 0
    assert "file (on 1)" in good(dfs(a, "status"))
    a.stop()
    assert "the only one in reach that holds" in a.log.read_text()
