"""Changes made elsewhere: this mount's kernel must show them once they are acknowledged."""

import contextlib
import mmap
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dfsfs.base.limits import INVALIDATION_TIMEOUT_S
from dfsfs.testing.mountpoint import MountedNode


@contextlib.contextmanager
def generous_deadline() -> Iterator[Callable[[], bool]]:
    """A generous deadline for what must happen some time."""
    end = time.monotonic() + 60
    yield lambda: time.monotonic() > end


def inside(directory: Path) -> str:
    return directory.name


def test_a_file_that_was_missing_appears(node: MountedNode, directory: Path) -> None:
    path = directory / "file"
    assert not path.exists()
    node.ask("create", path=f"{inside(directory)}/file", data="from elsewhere")
    assert path.read_bytes() == b"from elsewhere"
    assert os.listdir(directory) == ["file"]


def test_new_bytes_replace_cached_ones(node: MountedNode, directory: Path) -> None:
    path = directory / "file"
    for size in (10, 5, 3000, 1):
        path.write_bytes(b"a" * 2000)
        assert path.read_bytes() == b"a" * 2000
        assert path.stat().st_size == 2000
        node.ask("write", path=f"{inside(directory)}/file", data="b" * size)
        assert path.stat().st_size == size
        assert path.read_bytes() == b"b" * size


def test_a_mapping_shows_new_bytes(node: MountedNode, directory: Path) -> None:
    path = directory / "file"
    path.write_bytes(b"a" * 3000)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert mapped[:3] == b"aaa"
        node.ask("write", path=f"{inside(directory)}/file", data="b" * 3000)
        assert path.read_bytes() == b"b" * 3000
        # Who has read to the end is given the new version when he is sure to have seen the old.
        with generous_deadline() as expired:
            while mapped[:3] == b"aaa" and not expired():
                time.sleep(0.05)
        assert mapped[:] == b"b" * 3000


def test_names_that_go_and_move(node: MountedNode, directory: Path) -> None:
    for name in ("one", "two"):
        (directory / name).write_bytes(name.encode())
    node.ask("unlink", path=f"{inside(directory)}/one")
    assert not (directory / "one").exists()
    node.ask("rename", path=f"{inside(directory)}/two", to=f"{inside(directory)}/three")
    assert not (directory / "two").exists()
    assert (directory / "three").read_bytes() == b"two"
    node.ask("mkdir", path=f"{inside(directory)}/inner", mode=0o700)
    assert (directory / "inner").is_dir()
    node.ask("rename", path=f"{inside(directory)}/three", to=f"{inside(directory)}/inner/four")
    assert (directory / "inner" / "four").read_bytes() == b"two"
    assert directory.stat().st_nlink == 3


def test_attributes_change(node: MountedNode, directory: Path) -> None:
    path = directory / "file"
    path.touch()
    assert path.stat().st_mode & 0o777 != 0o604
    node.ask("chmod", path=f"{inside(directory)}/file", mode=0o604)
    assert path.stat().st_mode & 0o777 == 0o604


def test_an_open_file_removed_elsewhere_lives_until_it_is_closed(
    node: MountedNode, directory: Path
) -> None:
    path = directory / "file"
    path.write_bytes(b"data")
    with path.open("r+b", buffering=0) as file:
        node.ask("unlink", path=f"{inside(directory)}/file")
        assert not path.exists()
        assert os.fstat(file.fileno()).st_nlink == 0
        assert file.read() == b"data"
        file.write(b"more")
        file.seek(0)
        assert file.read() == b"datamore"
    assert not path.exists()


def test_bytes_not_yet_closed_here_win(node: MountedNode, directory: Path) -> None:
    path = directory / "file"
    path.write_bytes(b"old")
    with path.open("r+b", buffering=0) as file:
        file.write(b"here")
        node.ask("write", path=f"{inside(directory)}/file", data="elsewhere, and longer")
        file.seek(0)
        assert file.read() == b"here"
        assert path.stat().st_size == 4
    assert path.read_bytes() == b"here"


def test_a_replaced_file_is_another(node: MountedNode, directory: Path) -> None:
    path = directory / "file"
    path.write_bytes(b"first")
    before = path.stat().st_ino
    with path.open("rb") as file:
        node.ask("create", path=f"{inside(directory)}/new", data="second")
        node.ask("rename", path=f"{inside(directory)}/new", to=f"{inside(directory)}/file")
        assert path.stat().st_ino != before
        assert path.read_bytes() == b"second"
        assert file.read() == b"first"


@pytest.mark.parametrize("verb", ["create", "mkdir"])
def test_a_busy_directory_does_not_hold_up_the_acknowledgement(
    node: MountedNode, directory: Path, verb: str
) -> None:
    """Two mounts that create in one directory at a time must not wait for each other."""
    assert not (directory / "there").exists()
    node.ask("hold")
    thread = threading.Thread(target=(directory / "here").mkdir)
    thread.start()
    try:
        while node.ask("waiting") == 0 and thread.is_alive():
            pass
        # The kernel holds the directory until mkdir returns, so it cannot forget an entry now.
        took = node.ask(verb, path=f"{inside(directory)}/there")
        assert took < INVALIDATION_TIMEOUT_S
        assert thread.is_alive()
    finally:
        node.ask("release")
        thread.join(timeout=60)
    for _ in range(10_000):
        if (directory / "there").exists():
            break
    assert sorted(os.listdir(directory)) == ["here", "there"]
    assert (directory / "there").exists()


def test_many_changes_at_once(node: MountedNode, directory: Path) -> None:
    for number in range(200):
        (directory / f"{number}").write_bytes(b"here")
        (directory / f"{number}").read_bytes()
    for number in range(0, 200, 2):
        node.ask("write", path=f"{inside(directory)}/{number}", data="there")
        assert (directory / f"{number}").read_bytes() == b"there"
        assert (directory / f"{number + 1}").read_bytes() == b"here"


def test_a_reader_in_the_middle_of_a_file_keeps_its_version(
    node: MountedNode, directory: Path
) -> None:
    path, name = directory / "file", f"{inside(directory)}/file"
    old, new = b"o" * 3_000_000, b"n" * 3_500_000
    path.write_bytes(old)
    with path.open("rb", buffering=0) as reader:
        os.posix_fadvise(reader.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # no read-ahead
        read = reader.read(500_000)
        node.ask("write_blocks", path=name, letter="n", size=len(new))
        # Others see the new version at once, whole.
        assert path.stat().st_size == len(new)
        with path.open("rb") as other:
            assert other.read() == new
        while piece := reader.read(500_000):
            read += piece
        assert read == old
        # At its end it moves on, as tail -f wants.
        with generous_deadline() as expired:
            while not (piece := reader.read()) and not expired():
                time.sleep(0.05)
        assert piece == new[len(old) :]
    assert path.read_bytes() == new
    # Read-only handles bypass the page cache of a file that others change just now.
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert mapped[:] == new


def test_readers_see_whole_versions_while_others_write(node: MountedNode, directory: Path) -> None:
    """Promise 6: versions of one letter each; never two letters in one pass through the file."""
    path, name = directory / "file", f"{inside(directory)}/file"
    path.write_bytes(b"A" * 2_500_000)
    letters = "BCDEFGHIJKLMNOPQRSTUVWXYZ" * 2
    stop = threading.Event()
    mixed: list[str] = []
    passes = [0]

    def read() -> None:
        while not stop.is_set():
            with path.open("rb", buffering=0) as file:
                data = bytearray()
                while piece := file.read(100_000):
                    data += piece
            passes[0] += 1
            if len(set(data)) != 1:
                mixed.append(f"{len(data)} bytes of {sorted(set(data))}")

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for step, letter in enumerate(letters):
            # Never shorter: the kernel has one size for all readers of an inode (decision 7).
            node.ask("write_blocks", path=name, letter=letter, size=2_500_000 + 1000 * step)
            assert set(path.read_bytes()) == {ord(letter)}
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert mixed == []
    assert passes[0] > 3
