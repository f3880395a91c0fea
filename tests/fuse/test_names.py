"""Names: create, link, symlink, rename, remove, and the errors Linux gives."""

import ctypes
import errno
import os
import stat
import threading
from pathlib import Path

import pytest

NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4
AT_FDCWD = -100
_libc = ctypes.CDLL(None, use_errno=True)


def renameat2(old: Path, new: Path, flags: int) -> None:
    result = _libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags)
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def fails(number: int) -> "pytest.RaisesExc[OSError]":
    return pytest.raises(OSError, check=lambda error: error.errno == number)


def test_names_are_any_bytes(directory: Path) -> None:
    base = os.fsencode(directory)
    names = [b"\xff\xfe", b" ", b"\n", b"a" * 255, "é".encode(), "e\u0301".encode(), b"-", b"..."]
    for name in names:
        with open(base + b"/" + name, "wb") as file:
            file.write(name)
    assert sorted(os.listdir(base)) == sorted(names)
    for name in names:
        with open(base + b"/" + name, "rb") as file:
            assert file.read() == name


def test_a_name_has_at_most_255_bytes(directory: Path) -> None:
    name = directory / ("x" * 256)
    for call in (name.mkdir, name.touch, name.stat, lambda: name.symlink_to("a")):
        with fails(errno.ENAMETOOLONG):
            call()


def test_exclusive_creation_has_one_winner(directory: Path) -> None:
    won: list[int] = []

    def race(number: int) -> None:
        for round_ in range(50):
            try:
                os.close(os.open(directory / str(round_), os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            except FileExistsError:
                continue
            won.append(round_)

    threads = [threading.Thread(target=race, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == list(range(50))


def test_mkdir_and_rmdir(directory: Path) -> None:
    inner = directory / "a"
    inner.mkdir(mode=0o750)
    assert stat.S_IMODE(inner.stat().st_mode) == 0o750
    assert directory.stat().st_nlink == 3
    assert inner.stat().st_nlink == 2
    with fails(errno.EEXIST):
        inner.mkdir()
    (inner / "file").touch()
    with fails(errno.ENOTEMPTY):
        inner.rmdir()
    with fails(errno.ENOTDIR):
        (inner / "file").rmdir()
    with fails(errno.EISDIR):
        inner.unlink()
    (inner / "file").unlink()
    inner.rmdir()
    assert directory.stat().st_nlink == 2
    assert list(directory.iterdir()) == []


def test_hard_links(directory: Path) -> None:
    first = directory / "first"
    first.write_bytes(b"data")
    for number in range(32):
        os.link(first, directory / f"link{number}")
    assert first.stat().st_nlink == 33
    (directory / "link7").write_bytes(b"other")
    assert first.read_bytes() == b"other"
    assert (directory / "link3").stat().st_ino == first.stat().st_ino
    first.unlink()
    assert (directory / "link0").stat().st_nlink == 32
    assert (directory / "link0").read_bytes() == b"other"
    with fails(errno.EPERM):
        os.link(directory, directory / "loop")
    with fails(errno.EEXIST):
        os.link(directory / "link0", directory / "link1")


def test_symlinks(directory: Path) -> None:
    link = directory / "link"
    target = "t" * 4000
    link.symlink_to(target)
    assert os.readlink(link) == target
    assert link.lstat().st_size == 4000
    assert stat.S_ISLNK(link.lstat().st_mode)
    with fails(errno.ENAMETOOLONG):
        link.stat()
    (directory / "round").symlink_to("round")
    with fails(errno.ELOOP):
        (directory / "round").read_bytes()
    (directory / "to").symlink_to("file")
    (directory / "to").write_bytes(b"through")
    assert (directory / "file").read_bytes() == b"through"


def test_special_files(directory: Path) -> None:
    os.mkfifo(directory / "fifo", 0o640)
    os.mknod(directory / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.mknod(directory / "socket", stat.S_IFSOCK | 0o600)
    os.mknod(directory / "file", stat.S_IFREG | 0o600)
    assert stat.S_ISFIFO((directory / "fifo").stat().st_mode)
    assert (directory / "device").stat().st_rdev == os.makedev(1, 3)
    assert stat.S_ISSOCK((directory / "socket").stat().st_mode)
    assert (directory / "file").read_bytes() == b""
    reader = os.open(directory / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(directory / "fifo", os.O_WRONLY)
    os.write(writer, b"through")
    assert os.read(reader, 100) == b"through"
    os.close(reader)
    os.close(writer)


def test_rename_replaces_atomically(directory: Path) -> None:
    old, new = directory / "old", directory / "new"
    old.write_bytes(b"old")
    new.write_bytes(b"new")
    number = old.stat().st_ino
    with new.open("rb") as opened:
        old.rename(new)
        assert opened.read() == b"new"
        assert os.fstat(opened.fileno()).st_nlink == 0
    assert new.read_bytes() == b"old"
    assert new.stat().st_ino == number
    assert not old.exists()


def test_rename_of_directories(directory: Path) -> None:
    one, two = directory / "one", directory / "two"
    (one / "inner").mkdir(parents=True)
    two.mkdir()
    with fails(errno.EINVAL):
        one.rename(one / "inner" / "below")
    one.rename(two)
    assert [path.name for path in two.iterdir()] == ["inner"]
    with fails(errno.ENOTEMPTY):
        (two / "inner").rename(two)
    (directory / "file").touch()
    with fails(errno.ENOTDIR):
        two.rename(directory / "file")
    with fails(errno.EISDIR):
        (directory / "file").rename(two)
    with fails(errno.ENOENT):
        (directory / "nothing").rename(two)
    target = directory / "target"
    target.mkdir()
    (two / "inner").rename(target / "moved")
    assert (target / "moved" / "..").resolve() == target.resolve()
    assert os.stat(target / "moved" / "..").st_ino == target.stat().st_ino


def test_rename_onto_another_link_of_the_same_file_does_nothing(directory: Path) -> None:
    one = directory / "one"
    one.write_bytes(b"x")
    os.link(one, directory / "two")
    one.rename(directory / "two")
    assert sorted(path.name for path in directory.iterdir()) == ["one", "two"]


def test_rename_flags(directory: Path) -> None:
    one, two = directory / "one", directory / "two"
    one.write_bytes(b"1")
    two.mkdir()
    (two / "inside").touch()
    with fails(errno.EEXIST):
        renameat2(one, two, NOREPLACE)
    renameat2(one, two, EXCHANGE)
    assert two.read_bytes() == b"1"
    assert (one / "inside").exists()
    renameat2(two, directory / "three", NOREPLACE)
    assert not two.exists()
    with fails(errno.EINVAL):
        renameat2(one, directory / "three", NOREPLACE | EXCHANGE)
    with fails(errno.EINVAL):
        renameat2(directory / "three", directory / "four", WHITEOUT)
    with fails(errno.ENOENT):
        renameat2(one, directory / "nothing", EXCHANGE)


def test_a_missing_name_is_remembered_and_forgotten(directory: Path) -> None:
    for _ in range(3):
        assert not (directory / "later").exists()
    (directory / "later").write_bytes(b"now")
    assert (directory / "later").read_bytes() == b"now"
    (directory / "later").unlink()
    assert not (directory / "later").exists()
    other = directory / "other"
    other.touch()
    other.rename(directory / "later")
    assert (directory / "later").exists()


def test_a_removed_directory_that_is_open_is_empty(directory: Path) -> None:
    inner = directory / "inner"
    inner.mkdir()
    handle = os.open(inner, os.O_RDONLY)
    inner.rmdir()
    assert os.listdir(handle) == []
    assert os.fstat(handle).st_nlink == 0
    with fails(errno.ENOENT):
        os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=handle)
    os.close(handle)


def test_setgid_directories_hand_down_their_group(directory: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a directory a group it is not in")
    os.chown(directory, -1, 12345)
    directory.chmod(0o2775)
    (directory / "file").touch()
    (directory / "inner").mkdir()
    os.symlink("x", directory / "link")
    assert (directory / "file").stat().st_gid == 12345
    assert (directory / "link").lstat().st_gid == 12345
    assert (directory / "inner").stat().st_gid == 12345
    assert (directory / "inner").stat().st_mode & stat.S_ISGID
