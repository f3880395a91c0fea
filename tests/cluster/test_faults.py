"""Writers and everything that can go wrong, then a checker (promises 8 to 11, 13 and 15).

Three to five mounts on real processes. Each has a writer, which notes in a file outside what was
acknowledged to it, while nodes are killed and stopped, a disk fills up and is cleared, bytes on
another disk flip and the state directory of a node is deleted. Afterwards every mount must show, of
every file, what was acknowledged last, or what was being written later; everything must be at its
replication factor, and `dfs fsck` content.

Some `DFS_FAULT_SECONDS` of faults, drawn from `DFS_FAULT_SEED`, with a deleted state directory in
the middle of every `ROUND_S`. A failure tells what was done when; the nodes' logs are kept.
"""

import contextlib
import errno
import itertools
import mmap
import os
import random
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from dfsfs.base.units import GIB, KIB, MIB
from dfsfs.testing.fixtures import disk_at
from dfsfs.testing.processes import (
    DEADLINE_S,
    PROGRAMS,
    ProcessNetwork,
    ProcessNode,
    read_whole,
    wait_until,
)

SECONDS = float(os.environ.get("DFS_FAULT_SECONDS", "10"))
SEED = os.environ.get("DFS_FAULT_SEED", "0")
ROUND_S = 60.0
SIZES = (0, 11, 4 * KIB, 30 * KIB, 300 * KIB, 2 * MIB)
FILES_PER_WRITER = 6
RECORD_BYTES_MAX = 3 * KIB
DISK_BYTES = GIB
SMALL_DISK_BYTES = 192 * MIB
# The reserve leaves the databases of the small disk room to grow: their logs take tens of MiB.
OPTIONS = (
    *("--replicas", "3", "--repair-after", "4", "--gc-grace", "20"),
    *("--capacity", "400M", "--reserve", "96M"),
)


# -- what is written ----------------------------------------------------------------------------


def version_of(name: str, version: int) -> bytes | None:
    """The bytes of one version, its own whatever was there before; None: the file is removed."""
    dice = random.Random(f"{name}/{version}")
    if version == 0 or dice.random() < 0.1:
        return None
    return b"%s %d\n" % (name.encode(), version) + dice.randbytes(dice.choice(SIZES))


def record_of(name: str, number: int) -> bytes:
    """One line of a journal."""
    dice = random.Random(f"{name}/{number}")
    return b"%d %s\n" % (number, dice.randbytes(dice.randrange(RECORD_BYTES_MAX)).hex().encode())


class Notes:
    """A file outside of the mounts: what was tried, and what was acknowledged, by name."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def tried(self, name: str, number: int) -> None:
        """Something may be seen from now on."""
        self._note("tried", name, number)

    def acknowledged(self, name: str, number: int, level: str) -> None:
        """The call that promises it has returned: close, fsync, unlink."""
        self._note(level, name, number)

    def full(self, name: str, number: int) -> None:
        """The program was told that the disk is full: its O_TRUNC may be all that was done."""
        self._note("full", name, number)

    def _note(self, what: str, name: str, number: int) -> None:
        with self._path.open("a") as stream:
            stream.write(f"{what} {name} {number}\n")

    def read(self) -> dict[str, "Noted"]:
        """What was noted, by name."""
        found: dict[str, Noted] = {}
        for line in self._path.read_text().splitlines():
            what, name, number = line.split()
            noted = found.setdefault(name, Noted([], [], []))
            numbers = {"tried": noted.tried, "full": noted.full}.get(what, noted.acknowledged)
            numbers.append(int(number))
        return found


class Noted(NamedTuple):
    """Of one file: numbers of versions or records."""

    tried: list[int]
    acknowledged: list[int]
    full: list[int]


class Writer:
    """One program on one mount, with files of its own."""

    def __init__(self, node: ProcessNode, notes: Notes) -> None:
        self.node = node
        self._notes = notes
        self._dice = random.Random(f"{SEED}/{node.name}")
        self._numbers: dict[str, Iterator[int]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._acts = (self._replace, self._replace, self._rewrite, self._append)

    def start(self) -> None:
        """Write, until stopped."""
        self._stop.clear()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        """Let the call that is under way return."""
        self._stop.set()
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive(), f"a call on {self.node.name} does not return"

    def _run(self) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(OSError):  # killed, or full: nothing was promised
                self._dice.choice(self._acts)()
            self._stop.wait(0.03)

    def _try(self, kind: str) -> tuple[Path, int]:
        """A file and the number of what is tried with it."""
        name = f"{self.node.name}-{kind}"
        number = next(self._numbers.setdefault(name, itertools.count(1)))
        self._notes.tried(name, number)
        # A directory that only the mount has: nothing is written below a mountpoint.
        return self.node.path / "work" / name, number

    def _write(self, path: Path, name: str, number: int, data: bytes, flags: int) -> None:
        """Write, perhaps fsync, close; an error of any of them counts."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | flags)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            if flags & os.O_APPEND and self._dice.random() < 0.5:
                os.fsync(descriptor)
                self._notes.acknowledged(name, number, "fsync")
            elif self._dice.random() < 0.3:
                os.fsync(descriptor)
        except BaseException:
            with contextlib.suppress(OSError):
                os.close(descriptor)
            raise
        os.close(descriptor)

    def _replace(self) -> None:
        """A new version under the old name, as careful programs do; or none."""
        path, version = self._try(f"replaced{self._dice.randrange(FILES_PER_WRITER)}")
        data = version_of(path.name, version)
        if data is None:
            directory = os.open(path.parent, os.O_RDONLY)  # an error if there is no mount now
            try:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path.name, dir_fd=directory)
            finally:
                os.close(directory)
            self._notes.acknowledged(path.name, version, "unlink")
            return
        aside = path.with_suffix(".new")
        self._write(aside, path.name, version, data, os.O_TRUNC)
        aside.rename(path)
        self._notes.acknowledged(path.name, version, "close")

    def _rewrite(self) -> None:
        """A new version in the place of the old one."""
        path, version = self._try(f"rewritten{self._dice.randrange(FILES_PER_WRITER)}")
        data = version_of(path.name, version) or b""
        try:
            self._write(path, path.name, version, data, os.O_TRUNC)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                self._notes.full(path.name, version)
            raise
        self._notes.acknowledged(path.name, version, "close")

    def _append(self) -> None:
        """One more record in a journal."""
        path, number = self._try("journal")
        self._write(path, path.name, number, record_of(path.name, number), os.O_APPEND)
        self._notes.acknowledged(path.name, number, "close")


# -- what goes wrong ----------------------------------------------------------------------------


class Faults:
    """What happens to the nodes, one thing at a time. Nothing of it may cost what was promised."""

    def __init__(self, network: ProcessNetwork, writers: Mapping[str, Writer], disk: Path) -> None:
        self._network = network
        self._nodes = network.nodes
        self._writers = writers
        self._disk = disk
        self._filler = disk / "filler"
        self._dice = random.Random(f"{SEED}/faults")
        self._begun_s = time.monotonic()
        self._whole = True  # every block has been at its replication factor since the last deletion
        self.done: list[str] = []

    def _did(self, what: str) -> None:
        self.done.append(f"{time.monotonic() - self._begun_s:.1f} {what}")
        print(self.done[-1])  # for who looks at the time a healthy run takes

    def go_on(self, seconds: float) -> None:
        """Faults for so long."""
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            time.sleep(self._dice.uniform(0.2, 1.5))
            kinds = [self._kill, self._kill, self._kill, self._fill, self._pause]
            # Bytes flip on one node only, and not while another may hold the only other copy.
            self._dice.choice([*kinds, self._flip] if self._whole else kinds)()

    def heal(self) -> None:
        """Everybody is up, the disk has room; then everything gets back to its place."""
        self._clear()
        for node in self._nodes:
            if not node.runs:
                node.start(*OPTIONS)
                self._did(f"start {node.name}")
        self._network.wait_connected()
        self._did("connected")
        wait_until(lambda: all(map(is_replicated, self._nodes)))
        self._whole = True
        self._did("replicated")

    def delete(self) -> None:
        """A node loses everything it has, and is started again as it was the first time.

        Everything was at its replication factor before, and what its own writer would write while
        no peer is in reach nobody else would have: so that one rests until the node is back.
        """
        for writer in self._writers.values():
            writer.stop()
        self.heal()
        node = self._dice.choice(self._nodes)
        for name, writer in self._writers.items():
            if name != node.name:
                writer.start()
        node.kill()
        for path in node.state.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        self._whole = False
        self._did(f"delete {node.name}")
        through = next(other for other in self._nodes if other.runs)
        node.start("--bootstrap", through.address, *OPTIONS)
        self._writers[node.name].start()

    def _clear(self) -> None:
        if self._filler.exists():
            self._filler.unlink()
            self._did("clear")

    def _kill(self) -> None:
        down = [node for node in self._nodes if not node.runs]
        if down:
            self._clear()  # what starts on a disk without a single free byte may not get far
            down[0].start(*OPTIONS)
            self._did(f"start {down[0].name}")
            return
        node = self._dice.choice(self._nodes)
        node.kill()
        self._did(f"kill {node.name}")

    def _pause(self) -> None:
        node = self._dice.choice(self._nodes)
        if node.runs:
            pause_s = self._dice.uniform(0.1, 4.0)
            self._did(f"stop {node.name} for {pause_s:.1f} s")
            node.pause()
            time.sleep(pause_s)
            node.resume()

    def _fill(self) -> None:
        if self._filler.exists():
            self._clear()
            return
        with contextlib.suppress(OSError), self._filler.open("wb") as stream:
            while True:
                stream.write(bytes(MIB))
        self._did("fill")

    def _flip(self) -> None:
        """One bit of one block of the second node: two others hold each of its blocks, or will.

        It flips on the disk (O_DIRECT), as rot does: what is in memory stays good.
        """
        segments = sorted((self._nodes[1].state / "blocks" / "segments").glob("*.seg"))
        if not segments:
            return
        path = self._dice.choice(segments)
        whole_pages = path.stat().st_size // mmap.PAGESIZE  # nothing is appended to these any more
        if not whole_pages:
            return
        offset = self._dice.randrange(whole_pages) * mmap.PAGESIZE
        descriptor = os.open(path, os.O_RDWR | os.O_DIRECT)
        try:
            with mmap.mmap(-1, mmap.PAGESIZE) as page:  # aligned
                os.preadv(descriptor, [page], offset)
                page[self._dice.randrange(mmap.PAGESIZE)] ^= 1
                os.pwritev(descriptor, [page], offset)
        finally:
            os.close(descriptor)
        self._did("flip")


# -- what must be true afterwards ---------------------------------------------------------------


def is_replicated(node: ProcessNode) -> bool:
    """Whether it says that everything is on as many nodes as it should be."""
    found = node.status()["replication"]
    return found["on_two_nodes"] and found["at_factor"] and not found["queued_copies"]


def problems_of(directory: Path, written: Mapping[str, Noted]) -> list[str]:
    """What a mount shows and must not, or does not show and must."""
    problems = []
    for name, noted in sorted(written.items()):
        try:
            found: bytes | None = read_whole(directory / name)
        except FileNotFoundError:
            found = None
        except OSError as error:
            problems.append(f"{directory}/{name}: {error}")
            continue
        judge = journal_problem if name.endswith("journal") else version_problem
        if problem := judge(name, found, noted):
            problems.append(f"{directory}/{name} {problem}")
    return problems


def version_problem(name: str, found: bytes | None, noted: Noted) -> str:
    """Why these bytes are not the last acknowledged version or a later one; "": they are."""
    last = max(noted.acknowledged, default=0)
    versions = [last, *(version for version in noted.tried if version > last)]
    wanted = [version_of(name, version) for version in versions]
    if "rewritten" in name:  # is never removed; empty from its creation to its first close,
        wanted = [*(data or b"" for data in wanted), *([None] if last == 0 else [])]
        if any(version > last for version in noted.full):  # or where nothing came after O_TRUNC
            wanted.append(b"")
    if found in wanted:
        return ""
    head = "nothing" if found is None else f"{len(found)} bytes, {found[:30]!r}"
    return f"is {head}, and not one of {versions}"


def journal_problem(name: str, found: bytes | None, noted: Noted) -> str:
    """What is wrong with a journal: a record torn, twice, in disorder, or lost; "": nothing."""
    lines = (found or b"").splitlines(keepends=True)
    numbers: list[int] = []
    for line in lines:
        number = int(line.partition(b" ")[0] or b"0")
        if line != record_of(name, number):
            return f"has a torn record after {numbers[-1:]}: {line[:30]!r}"
        numbers.append(number)
    if sorted(set(numbers)) != numbers or not set(numbers) <= set(noted.tried):
        return f"has records in disorder: {numbers}"
    lost = sorted(set(noted.acknowledged) - set(numbers))
    return f"lost {lost}" if lost else ""


def fsck(node: ProcessNode, *options: str) -> tuple[int, str]:
    """Its exit status and what it said."""
    command: list[str | Path] = [PROGRAMS / "dfs", "fsck", *options, "--state", node.state]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    return done.returncode, f"{node.name}: {done.stdout}{done.stderr}"


def test_the_checker_finds_what_is_lost(tmp_path: Path) -> None:
    notes = Notes(tmp_path / "notes")
    for number in (1, 2, 3):
        notes.tried("a-rewritten0", number)
        notes.tried("a-journal", number)
    notes.acknowledged("a-rewritten0", 2, "close")
    notes.acknowledged("a-journal", 1, "fsync")
    notes.acknowledged("a-journal", 3, "close")
    written = notes.read()
    file, journal = tmp_path / "a-rewritten0", tmp_path / "a-journal"
    records = [record_of("a-journal", number) for number in range(4)]
    assert len(problems_of(tmp_path, written)) == 2
    for version, good in ((1, False), (2, True), (3, True)):
        file.write_bytes(version_of("a-rewritten0", version) or b"")
        journal.write_bytes(records[1] + records[3])
        assert (problems_of(tmp_path, written) == []) == good
    file.write_bytes(b"")
    assert len(problems_of(tmp_path, written)) == 1
    notes.full("a-rewritten0", 3)
    assert not problems_of(tmp_path, notes.read())
    file.write_bytes(version_of("a-rewritten0", 3) or b"")
    for bad in (
        records[1],
        records[3] + records[1],
        records[1] + records[2] + records[2] + records[3],
        records[1] + records[3][:-5] + b"\n",
        records[0] + records[1] + records[3],
    ):
        journal.write_bytes(bad)
        assert len(problems_of(tmp_path, written)) == 1


@pytest.mark.timeout(SECONDS + (6 + SECONDS / ROUND_S) * DEADLINE_S)
def test_what_was_acknowledged_is_there_after_everything_went_wrong(tmp_path: Path) -> None:
    names = "abcde"[: random.Random(f"{SEED}/nodes").choice((3, 4, 5))]
    notes = Notes(tmp_path / "notes")
    with (
        disk_at(tmp_path / "b.state", DISK_BYTES),
        disk_at(tmp_path / "c.state", SMALL_DISK_BYTES) as disk,
        ProcessNetwork(tmp_path) as network,
    ):
        for name in names:
            network.start(name, *OPTIONS)
        network.wait_connected()
        (network.nodes[0].path / "work").mkdir()
        writers = {node.name: Writer(node, notes) for node in network.nodes}
        faults = Faults(network, writers, disk)
        for writer in writers.values():
            writer.start()
        try:
            rounds = max(1, round(SECONDS / ROUND_S))
            for _ in range(rounds):
                faults.go_on(SECONDS / rounds / 2)
                faults.delete()
                faults.go_on(SECONDS / rounds / 2)
        except BaseException as error:
            error.add_note("\n".join(faults.done))
            raise
        finally:
            for writer in writers.values():
                writer.stop()
        faults.heal()
        written = notes.read()
        assert any(noted.acknowledged for noted in written.values())
        problems = [
            line for node in network.nodes for line in problems_of(node.path / "work", written)
        ]
        assert not problems, "\n".join([*problems, *faults.done])
        for node in network.nodes:
            status, said = fsck(node, "--repair")  # bytes that flipped and nobody has read since
            assert status in (0, 1), said
            assert "Traceback" not in node.log.read_text(), node.log.read_text()[-5000:]
        for node in network.nodes:
            status, said = fsck(node)
            assert status == 0, said
