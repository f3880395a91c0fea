"""Processes that share a mount: descriptors, locks, events, pipes; and what they are told.

Attributes and limits as other users and other mounts see them.
"""

import array
import ctypes
import errno
import fcntl
import os
import shutil
import socket
import stat
import struct
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from dfsfs.testing.mountpoint import MountedNode
from dfsfs.testing.processes import ProcessNetwork, ProcessNode
from tests.fuse.calls import fails, in_children, libc
from tests.fuse.test_attributes import as_nobody, needs_root, reachable

__all__ = ["reachable"]


def test_descriptors_pass_between_processes(directory: Path) -> None:
    here, there = socket.socketpair()

    def send(_: int) -> None:
        handle = os.open(directory / "file", os.O_CREAT | os.O_RDWR)
        os.write(handle, b"from the child")
        os.unlink(directory / "file")
        socket.send_fds(there, [b"x"], [handle])

    in_children(1, send)
    _, handles, _, _ = socket.recv_fds(here, 1, 1)
    assert os.pread(handles[0], 100, 0) == b"from the child"
    os.write(handles[0], b" and the parent")
    assert os.pread(handles[0], 100, 0) == b"from the child and the parent"
    os.close(handles[0])
    here.close()
    there.close()


def test_record_locks(directory: Path) -> None:
    path = directory / "file"
    path.write_bytes(bytes(100))
    with path.open("r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX, 10, 0)

        def try_lock(_: int) -> None:
            with path.open("r+b") as other:
                fcntl.lockf(other, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 10)
                try:
                    fcntl.lockf(other, fcntl.LOCK_SH | fcntl.LOCK_NB, 10, 5)
                except BlockingIOError:
                    return
                raise AssertionError

        in_children(1, try_lock)
        fcntl.lockf(file, fcntl.LOCK_UN)
    # Locks of an open file description: two handles of one process exclude each other.
    one, two = os.open(path, os.O_RDWR), os.open(path, os.O_RDWR)
    request = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 10, 0)
    fcntl.fcntl(one, fcntl.F_OFD_SETLK, request)
    fails(errno.EAGAIN, fcntl.fcntl, two, fcntl.F_OFD_SETLK, request)
    os.close(one)
    fcntl.fcntl(two, fcntl.F_OFD_SETLK, request)
    os.close(two)


def test_inotify(directory: Path) -> None:
    watch = libc.inotify_init1(os.O_NONBLOCK)
    assert libc.inotify_add_watch(watch, os.fsencode(directory), 0xFFF) > 0
    (directory / "file").write_bytes(b"x")
    (directory / "file").rename(directory / "moved")
    (directory / "moved").chmod(0o600)
    (directory / "moved").unlink()
    data, seen = os.read(watch, 65536), []
    while data:
        _, mask, _, length = struct.unpack_from("iIII", data)
        seen.append((mask, data[16 : 16 + length].rstrip(b"\0")))
        data = data[16 + length :]
    os.close(watch)
    create, modify, close_write, moved_from, moved_to, attributes, delete = (
        0x100, 0x2, 0x8, 0x40, 0x80, 0x4, 0x200,
    )  # fmt: skip
    for event in (
        (create, b"file"), (modify, b"file"), (close_write, b"file"), (moved_from, b"file"),
        (moved_to, b"moved"), (attributes, b"moved"), (delete, b"moved"),
    ):  # fmt: skip
        assert event in seen


def test_splice(directory: Path) -> None:
    data = os.urandom(300_000)
    (directory / "from").write_bytes(data)
    source = os.open(directory / "from", os.O_RDONLY)
    target = os.open(directory / "to", os.O_CREAT | os.O_WRONLY)
    reading, writing = os.pipe()
    left = len(data)
    while left:
        count = os.splice(source, writing, left)
        left -= count
        while count:
            count -= os.splice(reading, target, count)
    for handle in (source, target, reading, writing):
        os.close(handle)
    assert (directory / "to").read_bytes() == data


def test_running_programs_cannot_be_written(directory: Path) -> None:
    sleep = shutil.which("sleep")
    assert sleep
    shutil.copy2(sleep, directory / "program")
    with subprocess.Popen([directory / "program", "600"]) as process:
        try:
            fails(errno.ETXTBSY, os.open, directory / "program", os.O_WRONLY)
            (directory / "program").unlink()
            assert process.poll() is None
        finally:
            process.kill()


# -- attributes ---------------------------------------------------------------------------------


@needs_root
def test_whatever_changes_bytes_for_others_ends_suid(reachable: Path) -> None:
    path = reachable / "file"

    def mode_after(call: Callable[..., object], *arguments: object) -> int:
        path.write_bytes(b"program")
        path.chmod(0o6777)
        assert as_nobody(call, *arguments) == 0
        return stat.S_IMODE(path.stat().st_mode)

    def write_both_ways() -> None:
        handle = os.open(path, os.O_RDWR)
        os.write(handle, b"x")

    assert mode_after(os.truncate, path, 3) == 0o777
    assert mode_after(write_both_ways) == 0o777
    assert mode_after(os.open, path, os.O_RDWR | os.O_TRUNC) == 0o777
    assert mode_after(os.open, path, os.O_WRONLY | os.O_TRUNC) == 0o777
    assert mode_after(os.open, path, os.O_RDWR) == 0o6777
    path.chmod(0o2767)  # without group execution sgid means something else, and stays
    assert as_nobody(os.truncate, path, 3) == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o2767


@needs_root
@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR])
def test_a_descriptor_opened_by_root_ends_suid_for_others(reachable: Path, flags: int) -> None:
    path = reachable / "file"
    path.write_bytes(b"program")
    path.chmod(0o6777)
    handle = os.open(path, flags)
    os.pwrite(handle, b"by root", 0)
    assert stat.S_IMODE(path.stat().st_mode) == 0o6777
    assert as_nobody(os.pwrite, handle, b"by others", 0) == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o777
    os.close(handle)


def test_times_now_and_omitted(directory: Path) -> None:
    path = directory / "file"
    path.touch()
    os.utime(path, ns=(10**18 + 1, 10**18 + 2))
    now, omit = (0, (1 << 30) - 1), (0, (1 << 30) - 2)

    def utimensat(*times: tuple[int, int]) -> None:
        flat = (ctypes.c_long * 4)(*times[0], *times[1])
        assert libc.utimensat(-100, os.fsencode(path), flat, 0) == 0

    utimensat(omit, (2 * 10**9, 999_999_999))
    assert (path.stat().st_atime_ns, path.stat().st_mtime_ns) == (
        10**18 + 1,
        2 * 10**18 + 999999999,
    )
    before = path.stat().st_ctime_ns
    utimensat(now, omit)
    assert path.stat().st_atime_ns > 10**18 + 1
    assert path.stat().st_mtime_ns == 2 * 10**18 + 999_999_999
    assert path.stat().st_ctime_ns > before
    utimensat((-1, 500_000_000), (0, 0))  # before 1970
    assert (path.stat().st_atime_ns, path.stat().st_mtime_ns) == (-500_000_000, 0)
    (directory / "link").symlink_to("file")
    os.utime(directory / "link", ns=(5, 6), follow_symlinks=False)
    assert (directory / "link").lstat().st_mtime_ns == 6
    assert path.stat().st_mtime_ns == 0


def test_limits_of_extended_attributes(directory: Path) -> None:
    path = directory / "file"
    path.touch()
    os.setxattr(path, "user." + "n" * 250, b"")
    fails(errno.ERANGE, os.setxattr, path, "user." + "n" * 251, b"")
    fails(errno.EOPNOTSUPP, os.setxattr, path, "other.name", b"")
    fails(errno.EINVAL, os.setxattr, path, "user.", b"")
    os.setxattr(path, "user.value", b"v" * 100)
    # os.getxattr grows its buffer by itself.
    buffer = ctypes.create_string_buffer(200)
    name = os.fsencode(path), b"user.value"
    assert libc.getxattr(*name, buffer, 99) == -1
    assert ctypes.get_errno() == errno.ERANGE
    assert libc.getxattr(*name, None, 0) == 100
    assert libc.getxattr(*name, buffer, 200) == 100
    assert libc.listxattr(os.fsencode(path), buffer, 10) == -1
    assert ctypes.get_errno() == errno.ERANGE
    for number in range(3):
        os.setxattr(path, f"user.large{number}", bytes(65536))
    with pytest.raises(OSError, check=lambda error: error.errno == errno.ENOSPC):
        os.setxattr(path, "user.large3", bytes(65536))
    os.mkfifo(directory / "fifo")
    fails(errno.EPERM, os.setxattr, directory / "fifo", "user.one", b"")
    if os.geteuid() == 0:
        os.setxattr(directory / "fifo", "trusted.one", b"1")
        assert os.getxattr(directory / "fifo", "trusted.one") == b"1"


@needs_root
def test_trusted_attributes_are_for_root(reachable: Path) -> None:
    path = reachable / "file"
    path.touch()
    path.chmod(0o666)
    for name in ("user.one", "trusted.one", "security.one"):
        os.setxattr(path, name, b"1")
    assert sorted(os.listxattr(path)) == ["security.one", "trusted.one", "user.one"]

    def look() -> None:
        assert sorted(os.listxattr(path)) == ["security.one", "user.one"]
        os.setxattr(path, "user.two", b"2")

    assert as_nobody(look) == 0
    assert as_nobody(os.getxattr, path, "trusted.one") == errno.ENODATA
    assert as_nobody(os.setxattr, path, "trusted.one", b"2") == errno.EPERM


def test_two_mounts_show_the_same_inodes(tmp_path: Path) -> None:
    with ProcessNetwork(tmp_path) as network:
        a, b = network.start("a"), network.start("b")
        network.wait_connected()
        for number in range(20):
            (a.path / f"a{number}").write_bytes(bytes(number))
            (b.path / f"b{number}").mkdir()
        os.link(a.path / "a3", a.path / "b3" / "linked")

        def numbers(node: ProcessNode) -> dict[str, tuple[int, int]]:
            found = [path.lstat() for path in sorted(node.path.rglob("*"))]
            names = [str(path.relative_to(node.path)) for path in sorted(node.path.rglob("*"))]
            return {
                name: (status.st_ino, status.st_nlink)
                for name, status in zip(names, found, strict=True)
            }

        before = numbers(a)
        assert len(before) == 41
        assert before == numbers(b)
        assert before["a3"] == before["b3/linked"]
        a.stop()
        b.stop()
        b.start()
        a.start("--bootstrap", b.address)
        assert numbers(a) == numbers(b) == before


def test_df(node: MountedNode) -> None:
    for option in ("-P", "-Pi"):
        line = subprocess.run(
            ["df", option, node.path], capture_output=True, text=True, check=True
        ).stdout.splitlines()[1]
        source, total, used, free, *_ = line.split()
        assert source == "dfs"
        assert 0 <= int(used) < int(total)
        assert 0 < int(free) <= int(total)


# -- what pyfuse3 cannot express (doc/posix.md) -------------------------------------------------


def test_what_is_not_offered_says_so(directory: Path) -> None:
    handle = os.open(directory / "file", os.O_RDWR | os.O_CREAT)
    os.write(handle, b"0123456789")
    offset = ctypes.c_long
    assert libc.fallocate(handle, 0, offset(0), offset(1 << 20)) == -1
    assert ctypes.get_errno() == errno.EOPNOTSUPP
    fails(errno.EOPNOTSUPP, os.open, directory, os.O_TMPFILE | os.O_RDWR)
    fails(errno.ENOTTY, fcntl.ioctl, handle, 0x80086601, array.array("l", [0]))  # FS_IOC_GETFLAGS
    fails(errno.EOPNOTSUPP, fcntl.ioctl, handle, 0x40049409, handle)  # FICLONE
    # The workarounds: what glibc does instead, and what SEEK_HOLE may always say.
    os.posix_fallocate(handle, 0, 100_000)
    assert os.fstat(handle).st_size == 100_000
    assert os.pread(handle, 12, 0) == b"0123456789\0\0"
    assert os.lseek(handle, 0, os.SEEK_DATA) == 0
    assert os.lseek(handle, 0, os.SEEK_HOLE) == 100_000
    os.close(handle)


def test_rename_flags_that_are_unknown(directory: Path) -> None:
    (directory / "file").touch()
    for flags in (4, 8, 3):  # RENAME_WHITEOUT is for overlays
        old, new = (os.fsencode(directory / name) for name in ("file", "other"))
        assert libc.renameat2(-100, old, -100, new, flags) == -1
        assert ctypes.get_errno() == errno.EINVAL
    assert os.listdir(directory) == ["file"]


def test_names_come_and_go_while_a_directory_is_read(directory: Path) -> None:
    """What was there all along is listed once; the kernel's buffer holds a part of it at a time."""
    steady = {f"steady-{number:04}-{'x' * 100}" for number in range(1500)}
    for name in steady:
        (directory / name).touch()
    stop = threading.Event()

    def churn() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            path = directory / f"fleeting-{number % 50}"
            path.touch()
            path.rename(directory / f"moved-{number % 7}")

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(10):
            names = [name for name in os.listdir(directory) if name.startswith("steady")]
            assert len(names) == len(steady)
            assert set(names) == steady
    finally:
        stop.set()
        thread.join()
