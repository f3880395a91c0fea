"""Random operations on one file against a bytearray, as fsx does: 20,000 from a fixed seed."""

import mmap
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from dfsfs.testing.mountpoint import MountedNode

STEPS = 20_000
SIZE_MAX = 300_000


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedNode]:
    """A mount with small blocks, so that a small file has many."""
    base = tmp_path_factory.mktemp("node")
    with MountedNode(base / "mount", base / "state", shift=14) as mounted:
        yield mounted
        assert mounted.ask("check") == []


class Model:
    """A file and what it must hold."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path = path
        self.random = random.Random(seed)
        self.bytes = bytearray()
        self.handle = os.open(path, os.O_RDWR | os.O_CREAT)

    def _range(self) -> tuple[int, int]:
        offset = self.random.randrange(SIZE_MAX)
        size = int(self.random.paretovariate(0.5)) % 40_000 + 1
        return offset, min(size, SIZE_MAX - offset) or 1

    def _put(self, offset: int, data: bytes) -> None:
        if len(self.bytes) < offset:
            self.bytes.extend(bytes(offset - len(self.bytes)))
        self.bytes[offset : offset + len(data)] = data

    def write(self) -> None:
        offset, size = self._range()
        data = self.random.randbytes(size)
        assert os.pwrite(self.handle, data, offset) == size
        self._put(offset, data)

    def write_only(self) -> None:
        offset, size = self._range()
        data = self.random.randbytes(size)
        handle = os.open(self.path, os.O_WRONLY)
        assert os.pwrite(handle, data, offset) == size
        os.close(handle)
        self._put(offset, data)

    def append(self) -> None:
        if len(self.bytes) > SIZE_MAX:
            return
        data = self.random.randbytes(self.random.randrange(1, 3000))
        handle = os.open(self.path, self.random.choice([os.O_WRONLY, os.O_RDWR]) | os.O_APPEND)
        assert os.write(handle, data) == len(data)
        os.close(handle)
        self.bytes += data

    def read(self) -> None:
        offset, size = self._range()
        assert os.pread(self.handle, size, offset) == self.bytes[offset : offset + size]

    def map_read(self) -> None:
        if not self.bytes:
            return
        with mmap.mmap(self.handle, len(self.bytes), access=mmap.ACCESS_READ) as mapped:
            offset, size = self._range()
            assert mapped[offset : offset + size] == self.bytes[offset : offset + size]

    def map_write(self) -> None:
        offset, size = self._range()
        size = min(size, len(self.bytes) - offset)
        if size <= 0:
            return
        with mmap.mmap(self.handle, len(self.bytes)) as mapped:
            mapped[offset : offset + size] = data = self.random.randbytes(size)
            if self.random.random() < 0.5:
                mapped.flush()
        self._put(offset, data)

    def truncate(self) -> None:
        size = self.random.choice([0, self.random.randrange(SIZE_MAX), self._range()[1]])
        if self.random.random() < 0.5:
            os.ftruncate(self.handle, size)
        else:
            os.truncate(self.path, size)
        del self.bytes[size:]
        self.bytes.extend(bytes(size - len(self.bytes)))

    def reopen(self) -> None:
        os.close(self.handle)
        self.handle = os.open(self.path, os.O_RDWR)

    def sync(self) -> None:
        os.fsync(self.handle)

    def size(self) -> None:
        assert os.fstat(self.handle).st_size == len(self.bytes)

    def forget(self) -> None:
        """Have the kernel forget its pages, so that the next reads are ours."""
        os.posix_fadvise(self.handle, 0, 0, os.POSIX_FADV_DONTNEED)

    def check(self) -> None:
        assert os.pread(self.handle, SIZE_MAX * 2, 0) == self.bytes


def test_any_history_reads_as_a_bytearray(node: MountedNode) -> None:
    model = Model(node.path / "file", 20_26)
    steps = [model.write] * 10 + [model.write_only] * 3 + [model.append] * 2 + [model.read] * 12
    steps += [model.map_read] * 2 + [model.map_write] * 3 + [model.truncate, model.reopen]
    steps += [model.size] * 2 + [model.forget]
    rare = [model.sync, model.check]
    for number in range(STEPS):
        step = model.random.choice(rare if number % 40 == 0 else steps)
        try:
            step()
        except AssertionError as error:
            raise AssertionError(f"step {number}, {step.__name__}") from error
    model.check()
    os.close(model.handle)
    assert (node.path / "file").read_bytes() == model.bytes
    node.stop()
    node.start()
    assert (node.path / "file").read_bytes() == model.bytes
