"""Writers and everything that can go wrong, then a checker (promises 8, 10, 11, 13 and 15).

Four mounts on real processes. Writers note outside what was acknowledged, while nodes are killed,
a disk fills up and is cleared, and bytes on disks flip. Afterwards every mount must show, of every
file, the last version that was acknowledged, or a later one that was being written.

Half a minute, or `DFS_FAULT_SECONDS`; the faults are drawn from `DFS_FAULT_SEED`.
"""

import contextlib
import os
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dfsfs.base.units import KIB, MIB
from dfsfs.testing.processes import (
    DEADLINE_S,
    PROGRAMS,
    ProcessNetwork,
    ProcessNode,
    read_whole,
    wait_until,
)

SECONDS = float(os.environ.get("DFS_FAULT_SECONDS", "30"))
SEED = os.environ.get("DFS_FAULT_SEED", "0")
SIZES = (0, 11, 4 * KIB, 30 * KIB, 300 * KIB, 2 * MIB)
FILES_PER_WRITER = 6
DISK_BYTES = 192 * MIB
# The reserve leaves the databases of the small disk room to grow: their logs take tens of MiB.
OPTIONS = (
    *("--replicas", "3", "--repair-after", "8", "--gc-grace", "20"),
    *("--capacity", "400M", "--reserve", "96M"),
)

pytestmark = pytest.mark.skipif(
    not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="no /dev/fuse on this machine"
)


def version_of(name: str, version: int) -> bytes:
    """The bytes of one version; its own, whatever was there before."""
    dice = random.Random(f"{name}/{version}")
    size = dice.choice(SIZES)
    return b"%s %d\n" % (name.encode(), version) + dice.randbytes(size)


@dataclass
class Written:
    """What a writer knows of one file."""

    acknowledged: int = 0  # the last version whose close returned
    attempted: int = 0


@dataclass
class Writer:
    """One program on one mount, with files of its own."""

    node: ProcessNode
    stop: threading.Event
    files: dict[str, Written] = field(default_factory=dict)
    errors: int = 0

    def run(self) -> None:
        dice = random.Random(f"{SEED}/{self.node.name}")
        while not self.stop.is_set():
            name = f"{self.node.name}{dice.randrange(FILES_PER_WRITER)}"
            written = self.files.setdefault(name, Written())
            version = written.attempted = written.attempted + 1
            try:
                write(self.node.path / name, version_of(name, version), sync=dice.random() < 0.3)
            except OSError:
                self.errors += 1  # killed, or full: nothing was promised
                time.sleep(0.1)
                continue
            written.acknowledged = version


def write(path: Path, data: bytes, *, sync: bool) -> None:
    """A new version under the old name, as careful programs do; an error of close counts."""
    aside = path.with_name(path.name + ".new")
    assert path.parent.is_mount() or path.parent.stat()
    if not path.parent.is_mount():
        raise OSError("not mounted now")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        if sync:
            os.fsync(descriptor)
    except BaseException:
        with contextlib.suppress(OSError):
            os.close(descriptor)
        raise
    os.close(descriptor)
    aside.rename(path)


@contextlib.contextmanager
def small_disk(directory: Path) -> Iterator[Path]:
    """A file system of `DISK_BYTES` of its own, if this user may mount one."""
    directory.mkdir()
    command: list[str | Path] = [
        "mount",
        "-t",
        "tmpfs",
        "-o",
        f"size={DISK_BYTES}",
        "tmpfs",
        directory,
    ]
    if subprocess.run(command, check=False, capture_output=True).returncode != 0:
        pytest.skip("mounting a small disk needs root")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", directory], check=True)


class Faults:
    """What happens to the nodes, one thing at a time."""

    def __init__(self, nodes: list[ProcessNode], disk: Path) -> None:
        self._nodes = nodes
        self._disk = disk
        self._dice = random.Random(f"{SEED}/faults")
        self.done: list[str] = []

    def one(self) -> None:
        """Something goes wrong; nothing of it may cost an acknowledged byte."""
        kind = self._dice.choice(("kill", "kill", "kill", "fill", "flip"))
        getattr(self, f"_{kind}")()

    def heal(self) -> None:
        """Everybody is up, and the disk has room."""
        (self._disk / "filler").unlink(missing_ok=True)
        for node in self._nodes:
            if not node.runs:
                node.start(*OPTIONS)

    def _kill(self) -> None:
        down = [node for node in self._nodes if not node.runs]
        if down:
            # What starts on a disk without a single free byte may not get far.
            (self._disk / "filler").unlink(missing_ok=True)
            down[0].start(*OPTIONS)
            self.done.append(f"start {down[0].name}")
            return
        node = self._dice.choice(self._nodes)
        node.kill()
        self.done.append(f"kill {node.name}")

    def _fill(self) -> None:
        filler = self._disk / "filler"
        if filler.exists():
            filler.unlink()
            self.done.append("clear")
            return
        with contextlib.suppress(OSError), filler.open("wb") as stream:
            while True:
                stream.write(bytes(MIB))
        self.done.append("fill")

    def _flip(self) -> None:
        """One byte of one block of the second node: two others hold each of its blocks, or will."""
        segments = sorted((self._nodes[1].state / "blocks" / "segments").glob("*.seg"))
        if not segments:
            return
        path = self._dice.choice(segments)
        with path.open("r+b") as stream:
            offset = self._dice.randrange(max(1, path.stat().st_size))
            stream.seek(offset)
            byte = stream.read(1)
            stream.seek(offset)
            stream.write(bytes((byte[0] ^ 1,)) if byte else b"")
        self.done.append("flip")


def is_settled(node: ProcessNode) -> bool:
    found = node.status()["replication"]
    return not found["missing_copies"] and not found["queued_copies"] and not found["absent"]


def problems_of(node: ProcessNode, writers: list[Writer]) -> list[str]:
    """What the mount shows and must not, or does not show and must."""
    problems = []
    for writer in writers:
        for name, written in writer.files.items():
            if not written.acknowledged:
                continue
            try:
                found = read_whole(node.path / name)
            except OSError as error:
                problems.append(f"{node.name}: {name} v{written.acknowledged}: {error}")
                continue
            versions = range(written.acknowledged, written.attempted + 1)
            if all(found != version_of(name, version) for version in versions):
                head = found.partition(b"\n")[0]
                problems.append(f"{node.name}: {name} is {head!r}, not {versions}")
    return problems


@pytest.mark.faults
@pytest.mark.timeout(SECONDS + 4 * DEADLINE_S)
def test_what_was_acknowledged_is_there_after_everything_went_wrong(tmp_path: Path) -> None:
    with small_disk(tmp_path / "d.state") as disk, ProcessNetwork(tmp_path) as network:
        nodes = [network.start(name, *OPTIONS) for name in "abcd"]
        network.wait_connected()
        stop = threading.Event()
        writers = [Writer(node, stop) for node in nodes]
        threads = [threading.Thread(target=writer.run) for writer in writers]
        for thread in threads:
            thread.start()
        faults = Faults(nodes, disk)
        try:
            end_s = time.monotonic() + SECONDS
            while time.monotonic() < end_s:
                time.sleep(1.0)
                faults.one()
        finally:
            stop.set()
            for thread in threads:
                thread.join(DEADLINE_S)
        faults.heal()
        network.wait_connected()
        wait_until(lambda: all(map(is_settled, nodes)))
        acknowledged = sum(w.acknowledged for writer in writers for w in writer.files.values())
        assert acknowledged > 0
        problems = [line for node in nodes for line in problems_of(node, writers)]
        assert not problems, "\n".join([*problems, *faults.done])
        for node in nodes:
            check = subprocess.run(
                [PROGRAMS / "dfs", "fsck", "--repair", "--state", node.state],
                capture_output=True,
                text=True,
                timeout=DEADLINE_S,
                check=False,
            )
            assert check.returncode in (0, 1), check.stdout + check.stderr
            assert "Traceback" not in node.log.read_text(), node.log.read_text()[-5000:]
