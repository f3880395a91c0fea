"""What POSIX and Linux say, line by line, where no other file here has it already.

`DFS_BIG=1` runs the large ones at full size: 65,000 links, 100,000 names in a directory.
"""

import ctypes
import errno
import mmap
import os
import subprocess
from pathlib import Path

import pytest

from dfsfs.base.limits import FILE_BYTES_MAX, LINKS_MAX
from dfsfs.testing.mountpoint import MountedNode
from tests.fuse.calls import fails, in_children, libc
from tests.fuse.test_attributes import as_nobody, needs_root, reachable

__all__ = ["reachable"]

BIG = os.environ.get("DFS_BIG") == "1"
PAGE = mmap.PAGESIZE
PATH_MAX = 4096  # with the zero at its end


# -- names --------------------------------------------------------------------------------------


def test_many_hard_links(directory: Path) -> None:
    """32, which every program may count on; with DFS_BIG all there can be."""
    path = directory / "file"
    path.write_bytes(b"one file")
    count = LINKS_MAX if BIG else 32
    for number in range(1, count):
        os.link(path, directory / f"{number}")
    assert path.stat().st_nlink == count
    if BIG:
        fails(errno.EMLINK, os.link, path, directory / "one-too-many")
    assert (directory / f"{count - 1}").read_bytes() == b"one file"
    path.unlink()
    for number in range(1, count - 1):
        (directory / f"{number}").unlink()
    assert (directory / f"{count - 1}").stat().st_nlink == 1


def test_a_large_directory(node: MountedNode, directory: Path) -> None:
    count = 100_000 if BIG else 5_000
    for number in range(count):
        os.mknod(directory / f"{number}")
    names = os.listdir(directory)
    assert len(names) == count
    assert set(names) == {f"{number}" for number in range(count)}
    for number in range(0, count, 2):
        os.unlink(directory / f"{number}")
    assert set(os.listdir(directory)) == {f"{number}" for number in range(1, count, 2)}
    node.stop()
    node.start()
    assert set(os.listdir(directory)) == {f"{number}" for number in range(1, count, 2)}


def test_deep_trees(directory: Path) -> None:
    """As long as a path may be, and below that from directory to directory."""
    name = "d" * 99
    room = PATH_MAX - 1 - len(os.fsencode(directory))
    deepest = directory
    for _ in range(room // 100):
        deepest = deepest / name
    os.makedirs(deepest)
    left = room - 100 * (room // 100)
    if left < 2:
        deepest, left = deepest.parent, left + 100
    path = f"{deepest}/{'f' * (left - 1)}"
    assert len(os.fsencode(path)) == PATH_MAX - 1
    Path(path).write_bytes(b"deep")
    assert Path(path).read_bytes() == b"deep"
    fails(errno.ENAMETOOLONG, os.stat, path + "f")
    handle = os.open(deepest, os.O_RDONLY)
    for _ in range(60):  # three PATH_MAX in all
        os.mkdir(name, dir_fd=handle)
        inner = os.open(name, os.O_RDONLY, dir_fd=handle)
        os.close(handle)
        handle = inner
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=handle))
    assert os.listdir(handle) == ["file"]
    os.close(handle)
    subprocess.run(["rm", "-rf", directory / name], check=True)
    assert os.listdir(directory) == []


def test_symlinks_that_go_on_for_ever(directory: Path) -> None:
    (directory / "a").symlink_to("b")
    (directory / "b").symlink_to("a")
    fails(errno.ELOOP, os.stat, directory / "a")
    fails(errno.ELOOP, os.open, directory / "a", os.O_RDONLY | os.O_NOFOLLOW)
    os.symlink("t" * (PATH_MAX - 1), directory / "long")
    assert os.readlink(directory / "long") == "t" * (PATH_MAX - 1)
    fails(errno.ENAMETOOLONG, os.symlink, "t" * PATH_MAX, directory / "longer")


def test_nothing_moves_to_another_filesystem(directory: Path, tmp_path: Path) -> None:
    (directory / "file").touch()
    fails(errno.EXDEV, os.rename, directory / "file", tmp_path / "file")
    fails(errno.EXDEV, os.link, directory / "file", tmp_path / "file")


@needs_root
def test_sticky_directories(reachable: Path) -> None:
    reachable.chmod(0o1777)
    for name in ("file", "other"):
        (reachable / name).write_bytes(b"root's")
        (reachable / name).chmod(0o666)
    (reachable / "inner").mkdir()
    assert as_nobody((reachable / "own").touch) == 0
    for call, arguments in (
        (os.unlink, [reachable / "file"]),
        (os.rmdir, [reachable / "inner"]),
        (os.rename, [reachable / "file", reachable / "moved"]),
        (os.rename, [reachable / "own", reachable / "file"]),
    ):
        assert as_nobody(call, *arguments) == errno.EPERM
    assert as_nobody(os.rename, reachable / "own", reachable / "mine") == 0
    assert as_nobody(os.unlink, reachable / "mine") == 0


def test_links_of_directories_are_counted(directory: Path) -> None:
    assert directory.stat().st_nlink == 2
    for name in ("one", "two", "three"):
        (directory / name).mkdir()
    (directory / "file").touch()
    assert directory.stat().st_nlink == 5
    (directory / "one").rename(directory / "two" / "one")
    assert (directory.stat().st_nlink, (directory / "two").stat().st_nlink) == (4, 3)
    fails(errno.ENOTEMPTY, os.rmdir, directory / "two")
    fails(errno.ENOTEMPTY, os.rename, directory / "three", directory / "two")
    (directory / "two" / "one").rename(directory / "three")
    assert (directory.stat().st_nlink, (directory / "two").stat().st_nlink) == (4, 2)


# -- open files ---------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [os.O_RDWR, os.O_WRONLY])
def test_a_file_that_was_renamed_over_lives_until_it_is_closed(
    node: MountedNode, directory: Path, flags: int
) -> None:
    path = directory / "file"
    path.write_bytes(b"old" * 100_000)
    handle = os.open(path, flags)
    reader = os.open(path, os.O_RDONLY)
    (directory / "new").write_bytes(b"new")
    (directory / "new").rename(path)
    assert os.fstat(handle).st_nlink == 0
    assert os.pread(reader, 6, 299_994) == b"oldold"
    os.pwrite(handle, b"still", 400_000)
    os.ftruncate(handle, 400_004)
    os.fchmod(handle, 0o600)
    os.setxattr(handle, "user.late", b"yes")
    os.fsync(handle)
    assert os.pread(reader, 10, 399_998) == b"\0\0stil"
    assert os.fstat(reader).st_size == 400_004
    assert os.getxattr(handle, "user.late") == b"yes"
    assert path.read_bytes() == b"new"
    back = os.fsencode(directory / "back")
    follow = 0x400
    assert libc.linkat(-100, b"/proc/self/fd/%d" % handle, -100, back, follow) == -1
    assert ctypes.get_errno() == errno.ENOENT
    os.close(handle)
    os.close(reader)
    assert [entry.name for entry in directory.iterdir()] == ["file"]


def test_appending_processes_never_overwrite(directory: Path) -> None:
    path = directory / "log"
    path.touch()

    def append(number: int) -> None:
        flags = os.O_APPEND | (os.O_WRONLY if number % 2 else os.O_RDWR)
        handle = os.open(path, flags)
        for line in range(200):
            os.write(handle, b"%d %4d %s\n" % (number, line, b"x" * (line % 50)))
        os.close(handle)

    in_children(4, append)
    lines = path.read_bytes().splitlines()
    assert len(lines) == 800
    for number in range(4):
        assert [int(line[2:6]) for line in lines if line[:1] == b"%d" % number] == list(range(200))


def test_files_of_eight_exbibytes(directory: Path) -> None:
    path = directory / "file"
    with path.open("wb") as file:
        file.truncate(FILE_BYTES_MAX)
        file.seek(FILE_BYTES_MAX - 5)
        file.write(b"end")
    assert path.stat().st_size == FILE_BYTES_MAX > (8 << 60) - 5000
    assert path.stat().st_blocks * 512 < 1 << 20
    with path.open("rb") as file:
        file.seek(FILE_BYTES_MAX - 8)
        assert file.read() == b"\0\0\0end\0\0"
        file.seek(1 << 62)
        assert file.read(100) == bytes(100)
    handle = os.open(path, os.O_RDWR)
    os.ftruncate(handle, 1 << 61)
    os.pwrite(handle, b"middle", 1 << 60)
    os.fsync(handle)
    os.ftruncate(handle, 10)
    os.close(handle)
    assert path.read_bytes() == bytes(10)


def test_a_file_has_a_largest_size(directory: Path) -> None:
    handle = os.open(directory / "file", os.O_RDWR | os.O_CREAT)
    fails(errno.EFBIG, os.ftruncate, handle, (1 << 63) - 1)
    fails(errno.EINVAL, os.ftruncate, handle, -1)
    fails(errno.EFBIG, os.pwrite, handle, b"x", FILE_BYTES_MAX)
    assert os.fstat(handle).st_size == 0
    os.close(handle)


@pytest.mark.parametrize("whole", [1000, 100_000, 3_000_000])
def test_holes_stay_holes(directory: Path, whole: int) -> None:
    """What is cut off never comes back, whichever way the file grows again."""
    path = directory / "file"
    for grow in ("truncate", "seek", "write"):
        path.write_bytes(b"x" * whole)
        handle = os.open(path, os.O_RDWR)
        os.ftruncate(handle, whole // 3)
        if grow == "truncate":
            os.ftruncate(handle, whole)
        elif grow == "seek":
            os.pwrite(handle, b"\0", whole - 1)
        else:
            os.pwrite(handle, bytes(whole - whole // 2), whole // 2)
        os.close(handle)
        assert path.read_bytes() == b"x" * (whole // 3) + bytes(whole - whole // 3)


@pytest.mark.parametrize(
    ("flags", "asked"),
    [
        (os.O_WRONLY, 0),
        (os.O_WRONLY | os.O_APPEND, 0),
        (os.O_RDWR | os.O_DIRECT, 1),
        (os.O_RDWR, 1),
    ],
)
def test_what_a_write_costs(node: MountedNode, directory: Path, flags: int, asked: int) -> None:
    """One request; one more, for security.capability, through a handle that could be mapped."""
    handle = os.open(directory / "file", flags | os.O_CREAT)
    with mmap.mmap(-1, PAGE) as page:
        os.writev(handle, [page])
        before = node.ask("requests")
        for _ in range(50):
            os.writev(handle, [page])
        after = node.ask("requests")
    os.close(handle)
    assert (after[0] - before[0], after[1] - before[1]) == (50, 50 * asked)
