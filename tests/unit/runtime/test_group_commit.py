"""Group commit: callers share flushes, but only those that began after they came."""

import pytest
import trio
import trio.testing

from dfsfs.base.errors import Full
from dfsfs.runtime import GroupCommit


class Disk:
    """A flush that takes until it is let go."""

    def __init__(self) -> None:
        self.begun = 0
        self.go = trio.Event()
        self.fail_at = -1

    async def flush(self) -> None:
        self.begun += 1
        number = self.begun
        await self.go.wait()
        if number == self.fail_at:
            raise Full("no space")

    def release(self) -> None:
        self.go.set()
        self.go = trio.Event()


async def test_callers_that_gather_share_the_next_flush() -> None:
    disk = Disk()
    commit = GroupCommit(disk.flush)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(commit)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(64):
            nursery.start_soon(commit)
        await trio.testing.wait_all_tasks_blocked()
        assert disk.begun == 1
        disk.release()
        await trio.testing.wait_all_tasks_blocked()
        assert disk.begun == 2
        disk.release()
    assert (commit.flushes, commit.calls) == (2, 65)


async def test_a_failure_reaches_every_caller_it_served_and_nobody_else() -> None:
    disk = Disk()
    disk.fail_at = 2
    commit = GroupCommit(disk.flush)
    failures: list[int] = []

    async def call(number: int) -> None:
        try:
            await commit()
        except Full:
            failures.append(number)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call, 0)
        await trio.testing.wait_all_tasks_blocked()
        for number in (1, 2):
            nursery.start_soon(call, number)
        for _ in range(2):
            await trio.testing.wait_all_tasks_blocked()
            disk.release()
    assert sorted(failures) == [1, 2]
    disk.go.set()
    await commit()


async def test_a_cancelled_caller_does_not_stop_the_flush() -> None:
    disk = Disk()
    commit = GroupCommit(disk.flush)
    async with trio.open_nursery() as nursery:

        async def impatient() -> None:
            with trio.move_on_after(0.01):
                await commit()

        nursery.start_soon(impatient)
        await trio.sleep(0.05)
        disk.release()
    assert commit.flushes == 1


async def test_errors_keep_their_message() -> None:
    disk = Disk()
    disk.fail_at = 1
    disk.go.set()
    with pytest.raises(Full, match="no space"):
        await GroupCommit(disk.flush)()


async def test_a_flush_that_breaks_is_a_success_for_nobody() -> None:
    """Promise 9, whatever the failure is: a bug, perhaps."""
    go = trio.Event()
    begun = 0

    async def broken() -> None:
        nonlocal begun
        begun += 1
        await go.wait()
        raise ValueError("a bug")

    commit = GroupCommit(broken)
    failures: list[Exception] = []

    async def call() -> None:
        try:
            await commit()
        except Exception as error:  # whatever it is
            failures.append(error)

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(call)
            await trio.testing.wait_all_tasks_blocked()
        go.set()
    assert (begun, len(failures)) == (2, 4)
