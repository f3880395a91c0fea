"""Random operations on one file against a bytearray, as fsx does.

`DFS_FSX_STEPS` (20,000) and `DFS_FSX_SEED` choose another run; a failure prints the seed and the
last steps. The mix changes every few hundred steps, so that there are times of small synchronous
writes (patches, decision 9) and times of large ones (blocks), mappings that stay, kernels that
remember nothing, and nodes that are unmounted or killed in between.
"""

import contextlib
import mmap
import os
import random
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dfsfs.testing.mountpoint import MountedNode
from dfsfs.testing.processes import ProcessNetwork, read_whole

STEPS = int(os.environ.get("DFS_FSX_STEPS", "20000")) // 2  # for each size of blocks
SEED = int(os.environ.get("DFS_FSX_SEED", "2026"))
SIZE_MAX = 400_000
PHASE_STEPS = 400
PAGE = mmap.PAGESIZE


@pytest.fixture(scope="module", params=[14, 18])
def node(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[MountedNode]:
    """A mount; with small blocks, a small file has many."""
    base = tmp_path_factory.mktemp("node")
    with MountedNode(base / "mount", base / "state", shift=request.param) as mounted:
        yield mounted
        assert mounted.ask("check") == []


class Model:
    """A file and what it must hold."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path = path
        self.random = random.Random(seed)
        self.bytes = bytearray()
        self.handle = os.open(self.path, os.O_RDWR | os.O_CREAT)
        self.mapped: mmap.mmap | None = None
        self.scale = 1000  # typical size of an access in this phase
        self.span = SIZE_MAX  # where in the file it works in this phase
        self.aligned = False
        self.note = ""
        self._direct = mmap.mmap(-1, 64 * PAGE)  # page-aligned memory for O_DIRECT

    # -- choosing -----------------------------------------------------------------------------

    def new_phase(self) -> list[Callable[[], None]]:
        """Another mix of steps, in which some kinds do not occur at all."""
        choose = self.random
        self.scale = choose.choice([1, 50, 1000, 5000, 30_000])
        self.span = choose.choice([3000, 20_000, 100_000, SIZE_MAX])
        self.aligned = choose.random() < 0.3
        usual = [
            (self.write, 10), (self.write_only, 4), (self.append, 3), (self.read, 8),
            (self.map_read, 3), (self.map_write, 3), (self.keep_mapping, 1),
            (self.write_kept, 4), (self.sync, 4), (self.reopen, 3), (self.truncate, 2),
            (self.cut_and_grow, 2), (self.start_anew, 1), (self.direct_write, 2),
            (self.direct_read, 2), (self.copy_within, 1), (self.forget, 2), (self.size, 2),
            (self.check, 1),
        ]  # fmt: skip
        return [step for step, weight in usual for _ in range(weight * choose.choice([0, 1, 1, 3]))]

    def _range(self) -> tuple[int, int]:
        size = min(int(self.random.expovariate(1 / self.scale)) + 1, 100_000)
        offset = self.random.randrange(self.span)
        if self.aligned:
            offset, size = offset & -PAGE, (size + PAGE - 1) & -PAGE
        self.note = f"[{offset}, +{size})"
        return offset, size

    def _inside(self) -> tuple[int, int]:
        """A range that the file has, or an empty one."""
        offset, size = self._range()
        if offset >= len(self.bytes):
            offset = self.random.randrange(len(self.bytes)) if self.bytes else 0
        size = min(size, len(self.bytes) - offset)
        self.note = f"[{offset}, +{size})"
        return offset, size

    def _put(self, offset: int, data: bytes) -> None:
        if len(self.bytes) < offset:
            self.bytes.extend(bytes(offset - len(self.bytes)))
        self.bytes[offset : offset + len(data)] = data

    def expect(self, found: bytes, offset: int) -> None:
        expected = self.bytes[offset : offset + len(found)]
        if found == expected:
            return
        at = next(i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b)
        raise AssertionError(
            f"byte {offset + at} of {len(self.bytes)} is {found[at]:#x}, not {expected[at]:#x}"
        )

    # -- writing ------------------------------------------------------------------------------

    def write(self) -> None:
        offset, size = self._range()
        data = self.random.randbytes(size)
        assert os.pwrite(self.handle, data, offset) == size
        self._put(offset, data)

    def write_only(self) -> None:
        offset, size = self._range()
        data = self.random.randbytes(size)
        handle = os.open(self.path, os.O_WRONLY | self.random.choice([0, 0, os.O_SYNC]))
        assert os.pwrite(handle, data, offset) == size
        self._put(offset, data)
        if self.random.random() < 0.2:  # two handles, one version
            self.read()
        os.close(handle)

    def append(self) -> None:
        if len(self.bytes) > SIZE_MAX:
            return
        data = self.random.randbytes(self.random.randrange(1, 3000))
        self.note = f"{len(data)}"
        handle = os.open(self.path, self.random.choice([os.O_WRONLY, os.O_RDWR]) | os.O_APPEND)
        assert os.write(handle, data) == len(data)
        os.close(handle)
        self.bytes += data

    def direct_write(self) -> None:
        offset, size = self._range()
        offset, size = offset & -PAGE, min((size + PAGE - 1) & -PAGE, len(self._direct))
        self.note = f"[{offset}, +{size})"
        self._direct[:size] = data = self.random.randbytes(size)
        handle = os.open(self.path, self.random.choice([os.O_WRONLY, os.O_RDWR]) | os.O_DIRECT)
        with memoryview(self._direct) as view:
            assert os.pwritev(handle, [view[:size]], offset) == size
        os.close(handle)
        self._put(offset, data)

    def copy_within(self) -> None:
        """copy_file_range(2) from one place to another that does not overlap it."""
        source, size = self._inside()
        target = self.random.randrange(self.span)
        size = min(size, abs(target - source))
        self.note = f"[{source}, +{size}) -> {target}"
        if size:
            count = os.copy_file_range(self.handle, self.handle, size, source, target)
            self._put(target, bytes(self.bytes[source : source + count]))

    def map_write(self) -> None:
        offset, size = self._inside()
        if not size:
            return
        with mmap.mmap(self.handle, len(self.bytes)) as mapped:
            mapped[offset : offset + size] = data = self.random.randbytes(size)
            if self.random.random() < 0.5:
                mapped.flush()
        self._put(offset, data)

    def keep_mapping(self) -> None:
        """Map the file; the mapping stays over the steps that follow, the handle need not."""
        self.unmap()
        if self.bytes:
            self.mapped = mmap.mmap(self.handle, len(self.bytes))

    def write_kept(self) -> None:
        """Write through the mapping that stayed, where the file has not been cut since."""
        if self.mapped is None:
            return
        offset, size = self._inside()
        size = min(size, len(self.mapped) - offset)
        self.note = f"[{offset}, +{size})"
        if size <= 0:
            return
        self.expect(self.mapped[offset : offset + size], offset)
        data = self.random.randbytes(size)
        self.mapped[offset : offset + size] = data
        self._put(offset, data)
        if self.random.random() < 0.3:
            self.mapped.flush()

    def unmap(self) -> None:
        if self.mapped is not None:
            self.mapped.close()
            self.mapped = None

    # -- cutting ------------------------------------------------------------------------------

    def truncate(self) -> None:
        self._resize(self.random.choice([self.random.randrange(SIZE_MAX), self._range()[0]]))

    def cut_and_grow(self) -> None:
        """Make a hole at the end: what is cut off must not come back."""
        before = len(self.bytes)
        self._resize(max(0, before - self._range()[1]))
        self._resize(self.random.choice([before, before + self._range()[1]]))

    def _resize(self, size: int) -> None:
        size = min(size, SIZE_MAX)
        self.note += f" to {size}"
        if self.random.random() < 0.5:
            os.ftruncate(self.handle, size)
        else:
            os.truncate(self.path, size)
        del self.bytes[size:]
        self.bytes.extend(bytes(size - len(self.bytes)))

    def start_anew(self) -> None:
        os.close(os.open(self.path, os.O_TRUNC | self.random.choice([os.O_WRONLY, os.O_RDWR])))
        self.bytes.clear()

    # -- reading ------------------------------------------------------------------------------

    def read(self) -> None:
        offset, size = self._range()
        found = os.pread(self.handle, size, offset)
        assert len(found) == len(self.bytes[offset : offset + size])
        self.expect(found, offset)

    def direct_read(self) -> None:
        offset, size = self._range()
        offset, size = offset & -PAGE, min((size + PAGE - 1) & -PAGE, len(self._direct))
        self.note = f"[{offset}, +{size})"
        handle = os.open(self.path, os.O_RDONLY | os.O_DIRECT)
        with memoryview(self._direct) as view:
            count = os.preadv(handle, [view[:size]], offset)
        os.close(handle)
        assert count == len(self.bytes[offset : offset + size])
        self.expect(self._direct[:count], offset)

    def map_read(self) -> None:
        offset, size = self._inside()
        if not size:
            return
        with mmap.mmap(self.handle, len(self.bytes), access=mmap.ACCESS_READ) as mapped:
            self.expect(mapped[offset : offset + size], offset)

    def size(self) -> None:
        assert os.fstat(self.handle).st_size == self.path.stat().st_size == len(self.bytes)

    def check(self) -> None:
        found = os.pread(self.handle, SIZE_MAX * 2, 0)
        self.expect(found, 0)
        assert len(found) == len(self.bytes)

    # -- closing ------------------------------------------------------------------------------

    def sync(self) -> None:
        self.random.choice([os.fsync, os.fdatasync])(self.handle)

    def reopen(self) -> None:
        os.close(self.handle)
        self.handle = os.open(self.path, os.O_RDWR)

    def forget(self) -> None:
        """Have the kernel forget its pages, so that the next reads are ours."""
        os.posix_fadvise(self.handle, 0, 0, os.POSIX_FADV_DONTNEED)

    def finish(self) -> None:
        self.unmap()
        os.close(self.handle)


class Remounts:
    """Steps that end the node below a model: in order, or as a power cut would."""

    def __init__(self, model: Model, node: MountedNode) -> None:
        self._model = model
        self._node = node

    def remount(self) -> None:
        self._model.finish()
        self._node.stop()
        self._start()

    def crash(self) -> None:
        """What was closed, and what was fsynced through a handle still open, survives."""
        model = self._model
        if model.mapped is not None:
            model.mapped.flush()
            model.unmap()
        if model.random.random() < 0.5:
            os.fsync(model.handle)
            self._node.kill()
            with contextlib.suppress(OSError):  # ENOTCONN: nobody is there to flush
                os.close(model.handle)
        else:
            os.close(model.handle)
            self._node.kill()
        self._start()

    def _start(self) -> None:
        self._node.start()
        self._model.handle = os.open(self._model.path, os.O_RDWR)
        self._model.check()


class Run:
    """A history of a model; a failure tells its seed and the steps before it."""

    def __init__(self, model: Model, seed: int) -> None:
        self._model = model
        self._seed = seed
        self._last: deque[str] = deque(maxlen=60)
        self._usual = model.new_phase()
        self._number = 0

    def step(self, special: Callable[[], None] | None = None) -> None:
        """One step: a usual one of the present phase, unless a special one is given."""
        model = self._model
        if self._number % PHASE_STEPS == 0:
            self._usual = model.new_phase() or self._usual
        step = special or model.random.choice(self._usual)
        model.note = ""
        try:
            step()
        except Exception as error:
            history = "\n".join([*self._last, f"{step.__name__} {model.note}"])
            raise AssertionError(
                f"seed {self._seed}, step {self._number}: {error}\n{history}"
            ) from error
        self._last.append(f"{step.__name__} {model.note}")
        self._number += 1


@pytest.mark.timeout(max(300, STEPS // 20))
def test_any_history_reads_as_a_bytearray(node: MountedNode) -> None:
    model = Model(node.path / "file", SEED)
    remounts = Remounts(model, node)
    run = Run(model, SEED)
    rare = STEPS // min(STEPS, 6 + STEPS // 5000)
    for number in range(STEPS):
        ends = number % rare == 0
        run.step(model.random.choice([remounts.remount, remounts.crash]) if ends else None)
    remounts.remount()
    model.finish()
    assert model.path.read_bytes() == model.bytes


@pytest.mark.timeout(max(300, STEPS // 20))
def test_another_mount_reads_every_version_that_was_closed(tmp_path: Path) -> None:
    with ProcessNetwork(tmp_path) as network:
        here, there = network.start("here"), network.start("there")
        network.wait_connected()
        model = Model(here.path / "file", SEED)
        run = Run(model, SEED)

        def look_elsewhere() -> None:
            """After a close or an fsync, as close-to-open has it."""
            if model.mapped is not None:
                model.mapped.flush()
            model.random.choice([model.sync, model.reopen])()
            found = read_whole(there.path / "file")
            assert len(found) == len(model.bytes) == (there.path / "file").stat().st_size
            model.expect(found, 0)

        for number in range(STEPS // 10):
            run.step(look_elsewhere if number % 7 == 6 else None)
        model.finish()
