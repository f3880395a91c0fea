"""Power cuts of real nodes on real disks (promises 9 and 11).

The state of two mounts lies on ext4 in image files, mounted so that the kernel writes nothing out
by itself for long. Programs write and fsync, among them SQLite and git. A power cut: the nodes are
stopped, the images are copied as they are, without anything that only the page cache has, and the
nodes are killed. Then the machines start again: another boot id, the copies in place of the disks,
ext4 replays its journal, the nodes recover. Every fsync that had returned must have been true.

All of it happens in a mount namespace of its own, so nothing is left behind, and the boot id is a
file of this test. `DFS_POWER_SECONDS` of writing, with a cut about every two (default 2: one).
"""

import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from dfsfs.base.units import KIB, MIB
from dfsfs.testing.processes import ProcessNetwork, ProcessNode, read_whole, wait_until

SECONDS = float(os.environ.get("DFS_POWER_SECONDS", "2"))
SEED = os.environ.get("DFS_POWER_SEED", "0")
CUT_S = 2.0
DISK_BYTES = 320 * MIB
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
SIZES = (0, 11, 4 * KIB, 9 * KIB, 30 * KIB, 300 * KIB, MIB)
FILES = 3  # of each writer


def test_what_was_fsynced_survives_power_cuts_of_all_nodes(tmp_path: Path) -> None:
    done = subprocess.run(
        ["unshare", "-m", "--propagation", "private", sys.executable, "-m", __name__, tmp_path],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    assert " acknowledged" in done.stdout


# -- in the namespace -----------------------------------------------------------------------------


starting = threading.Lock()
"""Held while a process is started, and while mounts do not answer: a new process closes what is
open here, waits for the mount in that, and has this whole process wait for it."""


def _copy(source: Path, target: Path) -> None:
    """Copy a sparse file, without a process."""
    with source.open("rb") as old, target.open("wb") as new:
        size = os.fstat(old.fileno()).st_size
        new.truncate(size)
        start = 0
        while start < size:
            try:
                start = os.lseek(old.fileno(), start, os.SEEK_DATA)
            except OSError:  # ENXIO: holes to the end
                break
            end = os.lseek(old.fileno(), start, os.SEEK_HOLE)
            while start < end:
                start += os.copy_file_range(old.fileno(), new.fileno(), end - start, start, start)


def _run(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True)


class Machines:
    """The disks of all nodes, and what is told apart by the start of a machine."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._cuts = 0
        self._images: dict[Path, Path] = {}  # by mount point

    def add_disk(self, state: Path) -> None:
        """A new disk for a state directory."""
        image = self._directory / f"{state.name}.0.img"
        with image.open("wb") as file:
            file.truncate(DISK_BYTES)
        _run("mkfs.ext4", "-q", "-m", "0", image)
        state.mkdir()
        self._attach(image, state)

    def _attach(self, image: Path, state: Path) -> None:
        _run("mount", "-o", "loop,commit=900", image, state)
        self._images[state] = image

    def boot(self) -> None:
        """The machine has been started."""
        boot_id = self._directory / f"boot.{self._cuts}"
        boot_id.write_text(f"{uuid.uuid4()}\n")
        _run("mount", "--bind", boot_id, BOOT_ID)

    def power_cut(self, nodes: list[ProcessNode]) -> None:
        """What is not on the disks is gone."""
        self._cuts += 1
        pids = [node.status()["node"]["pid"] for node in nodes]
        disks = dict(self._images)
        with starting:
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            for state, image in disks.items():
                self._images[state] = image.with_name(f"{state.name}.{self._cuts}.img")
                _copy(image, self._images[state])
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
        for node in nodes:
            node.kill()  # and the dead mount is taken away
        for state, image in disks.items():
            _run("umount", state)
            image.unlink()
            self._attach(self._images[state], state)
        self.boot()


class Writer:
    """A program on one mount, and what it was told is done."""

    def __init__(self, node: ProcessNode, name: str) -> None:
        self.node = node
        self.name = name
        self.acknowledged = 0
        self._end = threading.Event()
        self._thread = threading.Thread()
        self._error: BaseException | None = None

    def start(self) -> None:
        """Write until `end`, or until the mount dies."""
        self.begin()
        self._end.clear()
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def end(self) -> None:
        """Return when nothing is written any more."""
        self._end.set()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        try:
            while not self._end.is_set():
                self.step()
                self.acknowledged += 1
        except (OSError, sqlite3.Error, subprocess.CalledProcessError):
            return  # the power is gone; what a program does that fails for another reason, shows
        except BaseException as error:  # reported by `end`
            self._error = error

    def begin(self) -> None:
        """What was under way at the power cut has been judged."""

    def step(self) -> None:
        """Write something durably."""
        raise NotImplementedError

    def check(self, mount: Path) -> None:
        """What was acknowledged is there."""
        raise NotImplementedError


class Saver(Writer):
    """Saves files whole: with fsync, without, and by renaming a draft over the old file."""

    def __init__(self, node: ProcessNode, name: str) -> None:
        super().__init__(node, name)
        self._dice = random.Random(f"{SEED}/{name}")
        self._written = dict.fromkeys(range(FILES), 0)
        self._synced = dict.fromkeys(range(FILES), 0)
        self._unfinished: set[int] = set()  # being written over

    def _path(self, file: int) -> str:
        return f"{self.name}-{file}"

    def _bytes(self, file: int, version: int) -> bytes:
        dice = random.Random(f"{self.name}/{file}/{version}")
        return b"%d\n" % version + dice.randbytes(dice.choice(SIZES))

    def begin(self) -> None:
        """A file that was left with the beginning of a version gets a whole one."""
        for file in sorted(self._unfinished):
            self._save(file, "fsync")

    def step(self) -> None:
        """Save one file in one of three ways."""
        way = self._dice.choice(("fsync", "fsync", "close", "rename"))
        self._save(self._dice.randrange(FILES), way)

    def _save(self, file: int, way: str) -> None:
        self._written[file] += 1
        version = self._written[file]
        path, data = self.node.path / self._path(file), self._bytes(file, version)
        target = path.with_name(f"{path.name}.draft") if way == "rename" else path
        if target == path:
            self._unfinished.add(file)
        with target.open("wb") as stream:
            stream.write(data)
            if way == "fsync":
                stream.flush()
                os.fsync(stream.fileno())
                self._synced[file] = version
        self._unfinished.discard(file)
        if way == "rename":
            target.rename(path)

    def check(self, mount: Path) -> None:
        """Each file has the version that was fsynced last, or a later one, whole.

        One that was being written over may have the beginning of that: when a process is started,
        it closes what is open here, and what has been written until then counts as closed.
        """
        for file, synced in self._synced.items():
            path = mount / self._path(file)
            data = read_whole(path) if path.exists() or synced else b"0\n"
            if file in self._unfinished and self._bytes(file, self._written[file]).startswith(data):
                continue
            version = int(data.partition(b"\n")[0] or b"0")
            assert synced <= version <= self._written[file], f"{path}: {version}, not {synced}"
            assert not version or data == self._bytes(file, version), f"{path}: other bytes"
            self._synced[file] = max(self._synced[file], version)


class Sqlite(Writer):
    """A database with synchronous=FULL: a commit that returned stays."""

    def step(self) -> None:
        """One transaction."""
        with contextlib.closing(sqlite3.connect(self.node.path / "db", timeout=30)) as database:
            database.execute("PRAGMA journal_mode=TRUNCATE")
            database.execute("PRAGMA synchronous=FULL")
            database.execute("CREATE TABLE IF NOT EXISTS t(a INTEGER PRIMARY KEY, b)")
            with database:
                database.execute("INSERT INTO t(b) VALUES(?)", (bytes(3000),))

    def check(self, mount: Path) -> None:
        """Sound, and nothing that was committed is missing."""
        if not self.acknowledged:
            return
        # On a copy: the check itself would roll back, and two mounts do not share locks.
        copy = mount.parent / "db.copy"
        for suffix in ("", "-journal"):
            source = mount / f"db{suffix}"
            if source.exists():
                copy.with_name(f"db.copy{suffix}").write_bytes(read_whole(source))
        with contextlib.closing(sqlite3.connect(copy)) as database:
            assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            ((count,),) = database.execute("SELECT count(*) FROM t")
        assert count >= self.acknowledged, f"{count} rows of {self.acknowledged}"


class Git(Writer):
    """A repository: commits, each followed by an fsync that covers the names it changed."""

    def _git(self, mount: Path, *words: str) -> str:
        with starting:
            git = subprocess.Popen(
                ["git", "-c", "core.fsync=all", "-c", "user.name=x", "-c", "user.email=x@x",
                 "-c", "safe.directory=*", "-c", "gc.auto=0", "-C", mount / "repository", *words],
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )  # fmt: skip
        said, _ = git.communicate()
        if git.returncode:
            raise subprocess.CalledProcessError(git.returncode, words, said)
        return said

    def step(self) -> None:
        """One commit."""
        repository = self.node.path / "repository"
        if not (repository / ".git").exists():
            repository.mkdir(exist_ok=True)
            self._git(self.node.path, "init", "-q")
        number = self.acknowledged + 1
        (repository / f"{number % 7}").write_bytes(b"%d" % number + bytes(9000))
        for lock in (repository / ".git").glob("*.lock"):
            lock.unlink()  # of a git that lost its power
        self._git(self.node.path, "add", "-A")
        self._git(self.node.path, "commit", "-q", "--allow-empty", "-m", f"{number}")
        descriptor = os.open(repository / ".git", os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def check(self, mount: Path) -> None:
        """Sound, and the last commit that was acknowledged is in its history."""
        if not self.acknowledged:
            return
        self._git(mount, "fsck", "--full")
        subjects = self._git(mount, "log", "--format=%s").split()
        assert f"{self.acknowledged}" in subjects, f"{subjects[:3]}, not {self.acknowledged}"


def _eventually(check: Callable[[Path], None], mount: Path) -> None:
    """A file may be away until the nodes have agreed what is left of it; wrong it may never be."""

    def holds() -> bool:
        try:
            check(mount)
        except OSError:
            return False
        return True

    wait_until(holds)


def _main(directory: Path) -> None:
    machines = Machines(directory)
    machines.boot()
    with ProcessNetwork(directory) as network:
        for name in "ab":
            machines.add_disk(directory / f"{name}.state")
            network.start(name)
        network.wait_connected()
        a, b = network.nodes
        writers = [Saver(a, "one"), Saver(b, "two"), Sqlite(a, "sqlite"), Git(b, "git")]
        dice = random.Random(SEED)
        for _ in range(max(1, round(SECONDS / CUT_S))):
            for writer in writers:
                writer.start()
            wait_until(lambda: all(writer.acknowledged for writer in writers))
            time.sleep(CUT_S * dice.uniform(0.5, 1.5))
            machines.power_cut(network.nodes)
            for writer in writers:
                writer.end()
            for node in network.nodes:
                node.start()
            network.wait_connected()
            for writer in writers:
                for node in network.nodes:
                    _eventually(writer.check, node.path)
        for writer in writers:
            sys.stdout.write(f"{writer.name}: {writer.acknowledged} acknowledged\n")


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
