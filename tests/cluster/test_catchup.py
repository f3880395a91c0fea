"""Two mounts that were apart for long: catching up stops neither of them.

DFS_CATCHUP_FILES: files that each made meanwhile, three rows each (default 4,000, for CI).
"""

import os
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dfsfs.base.limits import JOINING_ROWS_MAX, JOINING_TIMEOUT_S
from dfsfs.base.types import ROOT_INODE, ContentRef, FileKind, Origin
from dfsfs.crdt import HybridClock
from dfsfs.namespace import SCHEMA, SCHEMA_VERSION, Namespace
from dfsfs.runtime import Database, RealWorld
from dfsfs.testing.namespaces import CuttableNetwork, why_not
from dfsfs.testing.processes import ProcessNode, wait_until

FILES = int(os.environ.get("DFS_CATCHUP_FILES", "4000"))
PER_DIRECTORY = 100
DIRECTORIES = FILES // PER_DIRECTORY

pytestmark = pytest.mark.timeout(180 + FILES // 50)


def fill(node: ProcessNode) -> None:
    """What a busy mount does in a week, straight into the rows of a node that does not run."""
    database = Database(
        node.state / "namespace.db", schema=SCHEMA, version=SCHEMA_VERSION, cache_bytes=1 << 26
    )
    origin = Origin(database.value("SELECT origin FROM state"))
    clock = HybridClock(RealWorld())
    namespace = Namespace(database, origin=origin, clock=clock, node_name=str)
    for number in range(DIRECTORIES):
        name = f"{node.name}-{number}".encode()
        directory = namespace.create(
            ROOT_INODE, name, kind=FileKind.DIRECTORY, mode=0o755, uid=0, gid=0
        )
        for at in range(PER_DIRECTORY):
            file = namespace.create(
                directory.inode, b"%d" % at, kind=FileKind.REGULAR, mode=0o644, uid=0, gid=0
            )
            data = name + b"/%d" % at
            namespace.write(
                file.inode, ContentRef(size=len(data), root=None, inline=data), mtime_ns=at
            )
    database.close()


def paths(root: Path, maker: str) -> Iterator[tuple[Path, str]]:
    for number in range(DIRECTORIES):
        for at in range(PER_DIRECTORY):
            yield root / f"{maker}-{number}" / str(at), f"{maker}-{number}/{at}"


class User:
    """Looks, reads and makes files on one mount all the time, and takes the time of each call."""

    def __init__(self, node: ProcessNode) -> None:
        self.times_s: dict[str, list[float]] = defaultdict(list)
        self.made = 0
        self._node = node
        self._own = node.path / f"own-{node.name}"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._failure: BaseException | None = None
        self._thread.start()

    def _run(self) -> None:
        dice = random.Random(self._node.name)
        try:
            self._time("mkdir", self._own.mkdir)
            while not self._stop.wait(0.01):
                directory = f"{self._node.name}-{dice.randrange(DIRECTORIES)}"
                path = self._node.path / directory / str(dice.randrange(PER_DIRECTORY))
                self._time("stat", path.stat)
                self._time("read", path.read_bytes)
                self._time("create", (self._own / str(self.made)).touch)
                self.made += 1
        except BaseException as error:
            self._failure = error

    def _time(self, what: str, call: Callable[[], object]) -> None:
        start_s = time.monotonic()
        call()
        self.times_s[what].append(time.monotonic() - start_s)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def report(self) -> None:
        for what, times in self.times_s.items():
            times.sort()
            at = {name: 1e3 * times[int(len(times) * part)] for name, part in PARTS}
            figures = ", ".join(f"{name} {ms:.1f} ms" for name, ms in at.items())
            print(f"{self._node.name} {what}: {len(times)} calls, {figures}, {1e3 * times[-1]:.1f}")


PARTS = (("p50", 0.5), ("p99", 0.99))


def peak_kib(node: ProcessNode) -> int:
    """Most memory the node's process ever had."""
    status = Path(f"/proc/{node.status()['node']['pid']}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def to_come(node: ProcessNode) -> int:
    (peer,) = node.status()["peers"]
    count: int = peer["rows_to_come"]
    return count


def is_level(*nodes: ProcessNode) -> bool:
    return all(node.status()["coherence"]["mounts_connected"] == len(nodes) for node in nodes)


@pytest.fixture
def apart(tmp_path: Path) -> Iterator[tuple[CuttableNetwork, ProcessNode, ProcessNode]]:
    """Two nodes that know each other, have each done much alone, and run, still apart."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    with CuttableNetwork(tmp_path) as network:
        a, b = network.start("a"), network.start("b")
        network.wait_connected()
        for node in (a, b):
            node.stop()
            fill(node)
        network.cut("b")
        for node in (a, b):
            node.start()
        yield network, a, b


def test_a_week_apart_stops_neither_mount(
    apart: tuple[CuttableNetwork, ProcessNode, ProcessNode],
) -> None:
    """Promises 13 and 16, and what makes them bearable."""
    assert 3 * FILES > JOINING_ROWS_MAX, "the way is not long enough to show anything"
    network, a, b = apart
    users = [User(a), User(b)]
    peaks = [peak_kib(node) for node in (a, b)]
    start_s = time.monotonic()
    network.join("b")
    wait_until(lambda: to_come(a) > 0 and to_come(b) > 0)  # `dfs status` tells how far it is
    wait_until(lambda: is_level(a, b))
    took_s = time.monotonic() - start_s
    print(f"{3 * FILES} rows each way in {took_s:.1f} s")
    for user in users:
        user.stop()
        user.report()
        # Nobody waited as long as a mount may that has only a short way to go.
        assert max(map(max, user.times_s.values())) < JOINING_TIMEOUT_S
    assert (to_come(a), to_come(b)) == (0, 0)
    for node, before, log in zip((a, b), peaks, (a.log, b.log), strict=True):
        after = peak_kib(node)
        print(f"{node.name}: {before} KiB before, {after} KiB at most")
        assert after < before + 100 * 1024
        assert "is silent for" not in log.read_text(), "a loop stood still"
    for root in (a.path, b.path):
        for maker, user in zip("ab", users, strict=True):
            assert all(path.read_text() == text for path, text in paths(root, maker))
            assert len(os.listdir(root / f"own-{maker}")) == user.made


def test_catching_up_goes_on_where_it_was_cut(
    apart: tuple[CuttableNetwork, ProcessNode, ProcessNode],
) -> None:
    network, a, b = apart
    network.join("b")
    wait_until(lambda: to_come(b) > 0)
    before = len(os.listdir(b.path))
    wait_until(lambda: len(os.listdir(b.path)) > before + DIRECTORIES // 8)
    b.kill()
    b.start()
    assert len(os.listdir(b.path)) > before + DIRECTORIES // 8, "it kept what it had"
    network.cut("b")
    wait_until(lambda: not b.sees())
    network.join("b")
    wait_until(lambda: is_level(a, b))
    for root in (a.path, b.path):
        for maker in "ab":
            assert all(path.read_text() == text for path, text in paths(root, maker))
