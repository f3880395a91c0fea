"""Who watches a file on one mount while programs change it on another: what sees it, what does not.

Issue: the kernel makes inotify events only for calls of its own machine (doc/posix.md). Programs
that poll see everything, because attributes and bytes are never old (promise 4).
"""

import ctypes
import os
import select
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from dfsfs.testing.processes import DEADLINE_S, ProcessNetwork, wait_until

POLL = ("-s", "0.05")  # of tail: it polls on FUSE, by default every second
EVERYTHING = 0xFFF  # IN_ALL_EVENTS


@pytest.fixture(scope="module")
def mounts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    with ProcessNetwork(tmp_path_factory.mktemp("watching")) as network:
        here, there = network.start("here"), network.start("there")
        network.wait_connected()
        yield here.path, there.path


@contextmanager
def following(*command: str | Path) -> Iterator[Callable[[], str]]:
    """Run a program that goes on printing; gives a function for what it has printed."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        text = bytearray()

        def printed() -> str:
            text.extend(process.stdout.read() or b"")  # type: ignore[union-attr] # asserted above
            return text.decode()

        try:
            yield printed
        finally:
            process.kill()


def save(path: Path, text: str) -> None:
    """As editors do: another file, flushed, takes its place."""
    other = path.with_name(f".{path.name}.new")
    with other.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    other.rename(path)


def edit(path: Path, command: str) -> None:
    """vim in ex mode, with a swap file and a backup, saving by rename."""
    vim = shutil.which("vim")
    assert vim, "this test needs vim"
    settings = "set backupdir=. backupskip= swapfile backup backupcopy=no"
    subprocess.run(
        [vim, "-E", "-s", "-u", "NONE", "-c", settings, "-c", command, "-c", "wq", path],
        check=True,
        timeout=DEADLINE_S,
    )


def test_tail_follows_what_another_mount_appends(mounts: tuple[Path, Path]) -> None:
    here, there = (path / "log" for path in mounts)
    here.write_text("one\n")
    with following("tail", *POLL, "-n", "+1", "-f", there) as printed:

        def has(end: str) -> bool:
            return printed().endswith(end)

        text = "one\n"
        for number in range(20):
            line = f"line {number} {'.' * 300}\n"  # so that what began in its row ends in blocks
            with here.open("a") as log:
                log.write(line)
            text += line
            wait_until(partial(has, line))
        assert printed() == text


def test_tail_follows_a_name_through_the_saves_of_an_editor(mounts: tuple[Path, Path]) -> None:
    here, there = (path / "notes" for path in mounts)
    here.write_text("one\n")
    with following("tail", *POLL, "-n", "+1", "-F", there) as printed:
        wait_until(lambda: printed() == "one\n")
        save(here, "two\n")
        wait_until(lambda: printed().endswith("two\n"))
        edit(here, "%s/two/three by vim/")
        wait_until(lambda: printed().endswith("three by vim\n"))
        here.unlink()
        wait_until(lambda: not there.exists())
        here.write_text("four\n")
        wait_until(lambda: printed().endswith("four\n"))


class Inotify:
    """Events of one path, as their names in a directory (b"" for itself)."""

    def __init__(self, path: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        assert libc.inotify_add_watch(self._descriptor, os.fsencode(path), EVERYTHING) > 0

    def has_events(self, wait_s: float = 0.0) -> bool:
        """Whether anything came; forgets it."""
        if not select.select([self._descriptor], [], [], wait_s)[0]:
            return False
        return bool(os.read(self._descriptor, 1 << 16))

    def close(self) -> None:
        os.close(self._descriptor)


def test_inotify_tells_of_this_machine_alone(mounts: tuple[Path, Path]) -> None:
    """What doc/posix.md says; should the kernel learn it, that page gets better."""
    here, there = (path / "watched" for path in mounts)
    here.mkdir()
    (here / "file").write_text("one")
    assert (there / "file").read_text() == "one"
    watches = [Inotify(there), Inotify(there / "file")]
    before = (there / "file").stat()
    (here / "file").write_text("longer")
    save(here / "other", "new")
    (here / "file").chmod(0o600)
    # It has all reached that machine, where whoever looks sees it (and makes events by looking).
    after = os.stat(there / "file")
    assert (after.st_size, after.st_mode & 0o777) == (6, 0o600)
    assert after.st_mtime_ns > before.st_mtime_ns
    assert not any(watch.has_events() for watch in watches)
    (there / "file").write_text("by itself")
    assert all(watch.has_events(DEADLINE_S) for watch in watches)
    for watch in watches:
        watch.close()


def test_git_sees_what_another_mount_changed(mounts: tuple[Path, Path]) -> None:
    here, there = (path / "repository" for path in mounts)

    def git(*words: str, at: Path = there) -> str:
        command = ["git", "-c", "safe.directory=*", "-c", "user.name=a", "-c", "user.email=a@b"]
        done = subprocess.run(
            [*command, *words], cwd=at, capture_output=True, text=True, check=True
        )
        return done.stdout

    here.mkdir()
    git("init", "-q", at=here)
    for name in ("edited", "same size", "removed", "untouched"):
        (here / name).write_text("text")
    git("add", ".")
    git("commit", "-qm", "first")
    assert git("status", "--short") == ""
    (here / "edited").write_text("text and more")
    (here / "same size").write_text("TEXT")
    (here / "removed").unlink()
    (here / "new").touch()
    found = sorted(git("status", "--short").splitlines())
    assert found == [" D removed", ' M "same size"', " M edited", "?? new"]
