"""The threads that make the kernel forget: merging, waiting, bounds. The kernel is a gate here."""

import threading
from collections.abc import Callable, Iterator

import pytest
import trio
import trio.testing

from dfsfs.base.types import InodeId
from dfsfs.fuse.invalidate import LANE_THREADS, Lane, Target


class Gate:
    """Takes note of what reaches the kernel, and lets it in when told to."""

    def __init__(self) -> None:
        self.reached: list[Target] = []
        self.entered = 0
        self.knows_epochs = True
        self.looks = 0
        self._allowed: set[Target] | None = set()
        self._changed = threading.Condition()

    def act(self, target: Target) -> None:
        """What a lane's thread does."""
        with self._changed:
            self.entered += 1
            self._changed.wait_for(lambda: self._allowed is None or target in self._allowed)
            self.reached.append(target)

    def look_at_all(self) -> bool:
        """What the kernel's epoch does."""
        self.looks += self.knows_epochs
        return self.knows_epochs

    def allow(self, *targets: Target) -> None:
        """Let these in."""
        with self._changed:
            assert self._allowed is not None
            self._allowed.update(targets)
            self._changed.notify_all()

    def open(self) -> None:
        """Let everything in."""
        with self._changed:
            self._allowed = None
            self._changed.notify_all()

    def reached_of(self, *numbers: int) -> list[Target]:
        """What came in of the targets with these numbers, sorted."""
        wanted = {name(number) for number in numbers}
        return sorted(target for target in self.reached if target in wanted)


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate()
    yield made
    made.open()


def name(number: int) -> Target:
    return InodeId(1), b"%d" % number


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(60):
        while not condition():
            await trio.testing.wait_all_tasks_blocked(0.001)


async def _occupied(gate: Gate) -> Lane:
    """A lane all of whose threads are in the kernel."""
    lane = Lane("test", gate.act, gate.look_at_all, waiting_max=5)
    for number in range(LANE_THREADS):
        lane.ask(name(100 + number))
    await until(lambda: gate.entered == LANE_THREADS)
    return lane


async def test_equal_requests_merge_while_they_wait(gate: Gate) -> None:
    lane = await _occupied(gate)
    for _ in range(3):
        lane.ask(name(1))
        lane.ask(name(2))
    assert lane.pending(name(1))
    gate.open()
    await lane.settled()
    assert gate.reached_of(1, 2) == [name(1), name(2)]
    assert not lane.pending(name(1))
    lane.close()


async def test_a_request_made_while_its_like_is_in_the_kernel_is_carried_out_again(
    gate: Gate,
) -> None:
    lane = await _occupied(gate)
    lane.ask(name(100))
    gate.open()
    await lane.settled()
    assert gate.reached.count(name(100)) == 2
    lane.close()


async def test_settled_waits_for_what_was_asked_before_and_not_for_what_comes_after(
    gate: Gate,
) -> None:
    lane = await _occupied(gate)
    done: list[int] = []

    async def wait(number: int) -> None:
        await lane.settled()
        done.append(number)

    async with trio.open_nursery() as nursery:
        lane.ask(name(1))
        nursery.start_soon(wait, 1)
        await trio.testing.wait_all_tasks_blocked()
        lane.ask(name(1))  # merges; the first waiter still waits for it
        lane.ask(name(2))
        lane.ask(name(3))
        gate.allow(*[name(100 + number) for number in range(LANE_THREADS)], name(2))
        await until(lambda: gate.reached_of(2) == [name(2)])
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert done == []
        gate.allow(name(1))
        await until(lambda: done == [1])
        assert lane.pending(name(3))
        gate.open()
    lane.close()


async def test_nothing_asked_is_settled_at_once(gate: Gate) -> None:
    lane = Lane("test", gate.act, gate.look_at_all)
    await lane.settled()
    lane.close()


async def test_too_many_names_become_one_look_at_all_and_pages_stay(gate: Gate) -> None:
    """Nothing is given up: the kernel would believe what it has cached (promise 4)."""
    lane = await _occupied(gate)
    pages: Target = (InodeId(7), None)
    lane.ask(pages)
    for number in range(4):
        lane.ask(name(number))
    assert (lane.waiting, gate.looks) == (5, 0)
    done = trio.Event()

    async def wait() -> None:
        await lane.settled()
        done.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        lane.ask(name(4))
        assert (lane.waiting, lane.merged, gate.looks) == (1, 5, 1)
        assert lane.pending(pages)
        await trio.testing.wait_all_tasks_blocked()
        assert not done.is_set()
        lane.ask(name(9))
        gate.open()
        await done.wait()
        await lane.settled()
    assert pages in gate.reached
    assert gate.reached_of(*range(10)) == [name(9)]
    lane.close()


async def test_a_kernel_that_cannot_look_at_all_is_told_every_name(gate: Gate) -> None:
    gate.knows_epochs = False
    lane = await _occupied(gate)
    for number in range(8):
        lane.ask(name(number))
    assert (lane.waiting, lane.merged) == (8, 0)
    gate.open()
    await lane.settled()
    assert gate.reached_of(*range(8)) == [name(number) for number in range(8)]
    lane.close()
