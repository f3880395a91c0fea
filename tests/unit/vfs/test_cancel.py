"""Every verb is given up at every point where it waits: a deadline, or a caller who was killed.

What is left must be what there was before or what was asked for, whole, and nothing held for it.
"""

import os
from collections.abc import Awaitable, Callable, Sequence

import pytest
import trio
import trio.testing

from dfsfs.base.errors import NotFound
from dfsfs.base.types import ROOT_INODE, Buffer, Digest, InodeId
from dfsfs.vfs import Filesystem, SetAttributes
from tests.unit.vfs.conftest import BLOCK, ROOT, SHIFT, Bench, FailingStorage

OLD = bytes(range(256)) * (BLOCK // 256) * 3
NEW = OLD[100:] + OLD[:5000]
_STEPS_MAX = 200


class CancelAtStep(trio.abc.Instrument):
    """Cancels a scope when a task has waited so many times."""

    def __init__(self, step: int, scope: trio.CancelScope) -> None:
        self._task = trio.lowlevel.current_task()
        self._left = step
        self._scope = scope

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """A task has stopped to wait."""
        if task is self._task:
            self._left -= 1
            if not self._left:
                self._scope.cancel()


class WaitingLeases:
    """Every lease has to be waited for."""

    def held(self, inodes: Sequence[InodeId]) -> bool:
        return False

    async def acquire(self, inodes: Sequence[InodeId]) -> None:
        await trio.lowlevel.checkpoint()


class WaitingStorage(FailingStorage):
    """Every block has to be waited for."""

    def get_nowait(self, digest: Digest) -> Buffer | None:
        return None

    def read_nowait(self, digest: Digest, offset: int, size: int) -> Buffer | None:
        return None

    async def put_pinned(self, data: Buffer, pinned: list[Digest]) -> Digest:
        await trio.lowlevel.checkpoint()
        return await super().put_pinned(data, pinned)


class WaitingPublication:
    """Somebody else always has to see it first."""

    async def visible(self, position: int) -> None:
        await trio.lowlevel.checkpoint()

    async def durable(self, position: int) -> None:
        await trio.lowlevel.checkpoint()


class WaitingBench(Bench):
    """Everything waits."""

    def __init__(self) -> None:
        super().__init__()
        self.storage = WaitingStorage(self.world, self.store)
        facts = self.filesystem._facts
        self.filesystem = Filesystem(
            self.world,
            self.namespace,
            self.storage,
            WaitingPublication(),
            facts=facts,
            leases=WaitingLeases(),
            shift=SHIFT,
        )
        self.filesystem.attach(self.kernel, atime=True)

    def assert_nothing_is_held(self) -> None:
        """By a call that has ended."""
        fs = self.filesystem
        assert not len(fs._handles)
        assert not fs._files._open
        assert not fs._kernel._busy
        assert not fs._files.readers._held
        assert not fs._budget._buffers
        assert fs._budget.used == 0
        assert not self.storage.pins.all()
        assert self.namespace.check() == []


@pytest.fixture
async def waiting(nursery: trio.Nursery) -> WaitingBench:
    made = WaitingBench()
    await nursery.start(made.filesystem.run)
    return made


class Try:
    """One run of a case: a file of its own, and one call that may be given up."""

    def __init__(self, waiting: WaitingBench, step: int) -> None:
        self.fs = waiting.filesystem
        self.namespace = waiting.namespace
        self.waiting = waiting
        self.name = b"f%d" % step
        self.other = b"g%d" % step
        self._step = step
        self._open: list[int] = []
        self.given_up = False

    async def file(self, data: bytes = OLD) -> InodeId:
        """Make the file."""
        return await self.waiting.put(self.name, data)

    async def open(self, inode: InodeId, flags: int = os.O_RDWR) -> int:
        """Open it; closed at the end."""
        number = (await self.fs.open(inode, flags, ROOT)).number
        self._open.append(number)
        return number

    async def call(self, awaitable: Awaitable[object]) -> None:
        """Make the call, and give it up at this run's step."""
        with trio.CancelScope() as scope:
            instrument = CancelAtStep(self._step, scope)
            trio.lowlevel.add_instrument(instrument)
            try:
                await awaitable
            finally:
                trio.lowlevel.remove_instrument(instrument)
        self.given_up = scope.cancelled_caught

    async def end(self) -> None:
        """Close what is open, as the kernel does; nothing is held then."""
        for number in self._open:
            await self.fs.flush(number)
            await self.fs.release(number)
        await trio.testing.wait_all_tasks_blocked()
        self.waiting.assert_nothing_is_held()

    async def bytes(self, name: bytes) -> bytes | None:
        """What a file has now; None if there is none."""
        try:
            inode = self.namespace.lookup(ROOT_INODE, name).inode
        except NotFound:
            return None
        found = await self.waiting.bytes_of(inode)
        self.waiting.assert_nothing_is_held()
        return found


Case = Callable[[Try], Awaitable[set[bytes | None]]]
CASES: list[Case] = []


def case(function: Case) -> Case:
    """A call, and what the file `name` may have afterwards."""
    CASES.append(function)
    return function


@case
async def create(it: Try) -> set[bytes | None]:
    async def make() -> None:
        opened, _ = await it.fs.create(ROOT_INODE, it.name, 0o644, os.O_RDWR, ROOT)
        it._open.append(opened.number)

    await it.call(make())
    return {b"", None}


@case
async def open_and_truncate(it: Try) -> set[bytes | None]:
    inode = await it.file()
    await it.call(it.open(inode, os.O_RDWR | os.O_TRUNC))
    return {OLD, b""}


@case
async def write(it: Try) -> set[bytes | None]:
    number = await it.open(await it.file())
    await it.call(it.fs.write(number, 100, NEW))
    return {OLD, OLD[:100] + NEW}


@case
async def write_synchronously(it: Try) -> set[bytes | None]:
    number = await it.open(await it.file(), os.O_RDWR | os.O_SYNC)
    await it.call(it.fs.write(number, 100, NEW))
    return {OLD, OLD[:100] + NEW}


@case
async def flush(it: Try) -> set[bytes | None]:
    number = await it.open(await it.file())
    await it.fs.write(number, 100, NEW)
    await it.call(it.fs.flush(number))
    return {OLD[:100] + NEW}


@case
async def flush_small(it: Try) -> set[bytes | None]:
    number = await it.open(await it.file())
    await it.fs.setattr(it.fs.inode_of(number), SetAttributes(size=3000), number)
    await it.fs.write(number, 100, b"xyz")
    await it.call(it.fs.flush(number))
    return {OLD[:100] + b"xyz" + OLD[103:3000]}


@case
async def fsync(it: Try) -> set[bytes | None]:
    number = await it.open(await it.file())
    await it.fs.write(number, 5 * BLOCK, b"xyz")
    await it.call(it.fs.fsync(number))
    return {OLD.ljust(5 * BLOCK, b"\0") + b"xyz"}


@case
async def hand_over(it: Try) -> set[bytes | None]:
    number = await it.open(await it.file())
    await it.fs.write(number, 100, NEW)
    await it.call(it.fs.hand_over(it.fs.inode_of(number)))
    return {OLD[:100] + NEW}


@case
async def truncate(it: Try) -> set[bytes | None]:
    inode = await it.file()
    await it.call(it.fs.setattr(inode, SetAttributes(size=BLOCK + 5)))
    return {OLD, OLD[: BLOCK + 5]}


@case
async def truncate_through_a_handle(it: Try) -> set[bytes | None]:
    inode = await it.file()
    number = await it.open(inode)
    await it.fs.write(number, 0, OLD)
    await it.call(it.fs.setattr(inode, SetAttributes(size=BLOCK + 5), number))
    return {OLD, OLD[: BLOCK + 5]}


@case
async def truncate_while_it_is_open(it: Try) -> set[bytes | None]:
    inode = await it.file()
    number = await it.open(inode)
    await it.fs.write(number, 0, b"xyz")
    await it.call(it.fs.setattr(inode, SetAttributes(size=BLOCK + 5)))
    changed = b"xyz" + OLD[3:]
    return {changed, changed[: BLOCK + 5]}


@case
async def read_while_it_is_written(it: Try) -> set[bytes | None]:
    number = await it.open(await it.file())
    await it.fs.write(number, 100, b"xyz")
    await it.call(it.fs.read(number, 0, 2 * BLOCK))
    return {OLD[:100] + b"xyz" + OLD[103:]}


@case
async def read(it: Try) -> set[bytes | None]:
    number = await it.open(await it.file())
    await it.call(it.fs.read(number, 0, 2 * BLOCK))
    return {OLD}


@case
async def rename_over_what_is_open(it: Try) -> set[bytes | None]:
    number = await it.open(await it.file())
    await it.fs.write(number, 0, NEW)
    await it.waiting.put(it.other, b"other")
    await it.call(it.fs.rename(ROOT_INODE, it.other, ROOT_INODE, it.name))
    return {NEW + OLD[len(NEW) :], b"other"}


@case
async def unlink_what_is_open(it: Try) -> set[bytes | None]:
    number = await it.open(await it.file())
    await it.fs.write(number, 0, NEW)
    await it.call(it.fs.unlink(ROOT_INODE, it.name))
    return {NEW + OLD[len(NEW) :], None}


@case
async def names_and_attributes(it: Try) -> set[bytes | None]:
    inode = await it.file(b"1")

    async def change() -> None:
        await it.fs.mkdir(ROOT_INODE, it.other, 0o755, ROOT)
        await it.fs.rmdir(ROOT_INODE, it.other)
        await it.fs.symlink(ROOT_INODE, it.other, b"target", ROOT)
        await it.fs.unlink(ROOT_INODE, it.other)
        await it.fs.link(inode, ROOT_INODE, it.other)
        await it.fs.setattr(inode, SetAttributes(mode=0o600))
        await it.fs.setxattr(inode, b"user.x", b"1")
        await it.fs.removexattr(inode, b"user.x")
        await it.fs.rename(ROOT_INODE, it.other, ROOT_INODE, it.name)

    await it.call(change())
    return {b"1"}


@pytest.mark.parametrize("tried", CASES, ids=lambda function: function.__name__)
async def test_a_call_that_is_given_up_leaves_nothing_behind(
    waiting: WaitingBench, tried: Case
) -> None:
    for step in range(1, _STEPS_MAX):
        it = Try(waiting, step)
        allowed = await tried(it)
        await it.end()
        assert await it.bytes(it.name) in allowed, step
        if not it.given_up:
            assert step > 1
            return
    raise AssertionError("it never ends")
