"""Bytes of files: write, read, append, truncate, map, and what is open but has no name."""

import errno
import mmap
import os
import random
import threading
from pathlib import Path

import pytest

from dfsfs.testing.mountpoint import MountedNode

BLOCK = 1 << 18


@pytest.mark.parametrize("size", [0, 1, 4096, 4097, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK + 777])
def test_what_is_written_is_read(directory: Path, size: int) -> None:
    data = random.Random(size).randbytes(size)
    (directory / "file").write_bytes(data)
    assert (directory / "file").read_bytes() == data
    assert (directory / "file").stat().st_size == size


def test_reading_what_is_not_yet_closed(directory: Path) -> None:
    with (directory / "file").open("wb", buffering=0) as writer:
        writer.write(b"first")
        assert (directory / "file").read_bytes() == b"first"
        assert (directory / "file").stat().st_size == 5
        writer.write(b" second")
        assert (directory / "file").read_bytes() == b"first second"
        writer.seek(1_000_000)
        writer.write(b"far")
        assert (directory / "file").stat().st_size == 1_000_003
        assert (directory / "file").read_bytes() == b"first second" + bytes(999_988) + b"far"


def test_append_is_at_the_end_whoever_wrote(directory: Path) -> None:
    path = directory / "log"
    path.touch()
    with path.open("ab", buffering=0) as one, path.open("ab", buffering=0) as two:
        for number in range(100):
            (one if number % 2 else two).write(b"%04d\n" % number)
            if number == 50:
                with path.open("r+b", buffering=0) as other:
                    other.seek(0)
                    other.write(b"----\n")
    lines = path.read_bytes().splitlines()
    assert lines == [b"----", *(b"%04d" % number for number in range(1, 100))]


def test_append_by_many_threads_loses_nothing(directory: Path) -> None:
    path = directory / "log"

    def append(name: int) -> None:
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        for number in range(100):
            os.write(handle, b"%02d %03d\n" % (name, number))
        os.close(handle)

    threads = [threading.Thread(target=append, args=(name,)) for name in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = path.read_bytes().splitlines()
    assert sorted(lines) == sorted(
        b"%02d %03d" % (name, number) for name in range(6) for number in range(100)
    )


def test_append_and_read_through_one_handle(directory: Path) -> None:
    handle = os.open(directory / "file", os.O_RDWR | os.O_APPEND | os.O_CREAT)
    os.write(handle, b"one")
    os.pwrite(handle, b"two", 0)  # Linux appends whatever the offset
    assert os.pread(handle, 10, 0) == b"onetwo"
    os.close(handle)


def test_truncation(directory: Path) -> None:
    path = directory / "file"
    data = random.Random(1).randbytes(3 * BLOCK)
    path.write_bytes(data)
    os.truncate(path, BLOCK + 100)
    assert path.read_bytes() == data[: BLOCK + 100]
    os.truncate(path, 2 * BLOCK)
    assert path.read_bytes() == data[: BLOCK + 100] + bytes(BLOCK - 100)
    with path.open("r+b", buffering=0) as file:
        file.truncate(10)
        assert os.fstat(file.fileno()).st_size == 10
        assert path.read_bytes() == data[:10]
        file.truncate(0)
        file.write(b"new")
    assert path.read_bytes() == b"new"
    with path.open("wb"):
        assert path.stat().st_size == 0
    assert path.read_bytes() == b""
    with pytest.raises(OSError, check=lambda error: error.errno == errno.EISDIR):
        os.truncate(directory, 0)


def test_sparse_files_cost_what_they_hold(directory: Path) -> None:
    path = directory / "sparse"
    with path.open("wb") as file:
        file.truncate(1 << 40)
        file.seek(1 << 39)
        file.write(b"middle")
    status = path.stat()
    assert status.st_size == 1 << 40
    assert 0 < status.st_blocks * 512 <= 2 * BLOCK
    with path.open("rb") as file:
        assert file.read(1 << 20) == bytes(1 << 20)
        file.seek((1 << 39) - 5)
        assert file.read(16) == bytes(5) + b"middle" + bytes(5)
        file.seek((1 << 40) - 3)
        assert file.read(16) == bytes(3)


def test_a_file_without_a_name_lives_until_it_is_closed(node: MountedNode, directory: Path) -> None:
    path = directory / "file"
    data = random.Random(2).randbytes(2 * BLOCK)
    path.write_bytes(data)
    handle = os.open(path, os.O_RDWR)
    path.unlink()
    assert os.fstat(handle).st_nlink == 0
    assert os.pread(handle, 2 * BLOCK, 0) == data
    os.pwrite(handle, b"still here", BLOCK)
    os.fsync(handle)
    os.fchmod(handle, 0o600)
    assert os.fstat(handle).st_mode & 0o777 == 0o600
    os.ftruncate(handle, BLOCK + 5)
    assert os.pread(handle, 100, BLOCK) == b"still"
    path.write_bytes(b"another")
    assert os.pread(handle, 5, 0) == data[:5]
    os.close(handle)
    assert path.read_bytes() == b"another"


def test_a_file_created_and_removed_before_it_is_closed(directory: Path) -> None:
    handle = os.open(directory / "file", os.O_RDWR | os.O_CREAT)
    os.write(handle, b"temporary" * 100_000)
    (directory / "file").unlink()
    assert os.pread(handle, 9, 0) == b"temporary"
    os.close(handle)
    assert list(directory.iterdir()) == []


def test_a_shared_mapping_and_read_write_see_the_same(directory: Path) -> None:
    path = directory / "file"
    path.write_bytes(bytes(3 * 4096))
    handle = os.open(path, os.O_RDWR)
    with mmap.mmap(handle, 3 * 4096) as mapped:
        mapped[100:110] = b"by mapping"
        mapped.flush()
        assert os.pread(handle, 10, 100) == b"by mapping"
        os.pwrite(handle, b"by handle!", 5000)
        assert mapped[5000:5010] == b"by handle!"
        writer = os.open(path, os.O_WRONLY)  # bypasses the page cache
        os.write(writer, b"directly")
        assert mapped[:8] == b"directly"
        assert os.pread(handle, 8, 0) == b"directly"
        os.close(writer)
        os.close(handle)
        mapped[8192:8200] = b"late one"  # written after the last close
    assert path.read_bytes()[8192:8200] == b"late one"
    assert path.read_bytes()[100:110] == b"by mapping"


def test_a_mapping_outlives_the_name(directory: Path) -> None:
    path = directory / "file"
    path.write_bytes(b"a" * 8192)
    handle = os.open(path, os.O_RDWR)
    with mmap.mmap(handle, 8192) as mapped:
        os.close(handle)
        path.unlink()
        mapped[:3] = b"xyz"
        mapped.flush()
        assert mapped[:4] == b"xyza"


def test_synchronous_handles(directory: Path) -> None:
    for flag in (os.O_SYNC, os.O_DSYNC):
        handle = os.open(directory / "file", os.O_WRONLY | os.O_CREAT | flag)
        os.write(handle, b"at once")
        os.close(handle)
    assert (directory / "file").read_bytes() == b"at once"
    handle = os.open(directory, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def test_direct_io(directory: Path) -> None:
    buffer = mmap.mmap(-1, 2 * BLOCK)
    data = random.Random(4).randbytes(2 * BLOCK)
    buffer[:] = data
    handle = os.open(directory / "file", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    assert os.pwrite(handle, buffer, 0) == 2 * BLOCK
    buffer[:] = bytes(2 * BLOCK)
    assert os.preadv(handle, [buffer], 0) == 2 * BLOCK
    assert buffer[:] == data
    os.close(handle)


def test_the_kernel_copies_between_files(directory: Path) -> None:
    data = random.Random(5).randbytes(BLOCK + 1000)
    (directory / "one").write_bytes(data)
    with (directory / "one").open("rb") as one, (directory / "two").open("wb") as two:
        left = len(data)
        while left:
            left -= os.copy_file_range(one.fileno(), two.fileno(), left)
    assert (directory / "two").read_bytes() == data
    with (directory / "one").open("rb") as one, (directory / "three").open("wb") as three:
        sent = 0
        while sent < len(data):
            sent += os.sendfile(three.fileno(), one.fileno(), sent, len(data) - sent)
    assert (directory / "three").read_bytes() == data


def test_modes_of_handles(directory: Path) -> None:
    path = directory / "file"
    path.write_bytes(b"x")
    reader = os.open(path, os.O_RDONLY)
    writer = os.open(path, os.O_WRONLY)
    for call in (lambda: os.write(reader, b"y"), lambda: os.read(writer, 1)):
        with pytest.raises(OSError, check=lambda error: error.errno == errno.EBADF):
            call()
    os.close(reader)
    os.close(writer)


def test_reads_and_writes_in_parallel(directory: Path) -> None:
    path = directory / "file"
    size = 16 * BLOCK
    path.write_bytes(bytes(size))
    handle = os.open(path, os.O_RDWR)
    failures: list[str] = []

    def work(number: int) -> None:
        rng = random.Random(number)
        mine = bytearray(size // 8)
        base = number * len(mine)
        for _ in range(60):
            at = rng.randrange(len(mine) - 50_000)
            data = rng.randbytes(rng.randrange(1, 50_000))
            os.pwrite(handle, data, base + at)
            mine[at : at + len(data)] = data
            at = rng.randrange(len(mine) - 50_000)
            if os.pread(handle, 50_000, base + at) != mine[at : at + 50_000]:
                failures.append(f"{number} at {at}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.close(handle)
    assert failures == []


def test_nothing_stays_open(node: MountedNode, directory: Path) -> None:
    (directory / "file").write_bytes(b"x" * 100_000)
    (directory / "file").read_bytes()
    # The kernel releases handles some time after close(2) has returned.
    for _ in range(1000):
        if node.ask("contents_in_use") == 0:
            return
    raise AssertionError(node.ask("contents_in_use"))
