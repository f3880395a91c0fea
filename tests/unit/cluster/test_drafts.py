"""Drafts: two tables and the messages between them, in every order that a channel allows."""

from collections import deque
from collections.abc import Callable

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from dfsfs.base.errors import RemoteProtocolError
from dfsfs.base.limits import DRAFT_S, DRAFTS_HEARD_MAX, DRAFTS_MAX, LEASE_TIMEOUT_S
from dfsfs.base.types import InodeId, NodeId
from dfsfs.cluster.drafts import Drafts

A, B, C = (NodeId(bytes([n]) * 32) for n in (1, 2, 3))
FILE, OTHER = InodeId(70), InodeId(71)


class Wire:
    """The way from one table to another: what is put on it arrives, in order, when told to."""

    def __init__(self, sender: NodeId, receiver: Drafts) -> None:
        self._sender = sender
        self._receiver = receiver
        self._under_way: deque[Callable[[], object]] = deque()

    def mark(self, mark: int) -> None:
        if mark > 0:
            self._under_way.append(lambda: self._receiver.begun(self._sender, [InodeId(mark)]))
        else:
            self._under_way.append(lambda: self._receiver.ended([InodeId(-mark)]))

    def ask(self, inode: InodeId) -> None:
        self._under_way.append(lambda: self._receiver.asked(self._sender, inode))

    def hurry(self) -> None:
        pass

    def deliver(self) -> None:
        while self._under_way:
            self._under_way.popleft()()

    def lose(self) -> None:
        self._under_way.clear()


class Pair:
    """The tables of two connected mounts."""

    def __init__(self) -> None:
        self.a, self.b = Drafts(), Drafts()
        self.to_a, self.to_b = Wire(B, self.a), Wire(A, self.b)
        self.a.met(B, self.to_b)
        self.b.met(A, self.to_a)
        self.a.connected(B)
        self.b.connected(A)

    def deliver(self) -> None:
        for _ in range(3):
            self.to_a.deliver()
            self.to_b.deliver()


async def settles(drafts: Drafts, inode: InodeId = FILE) -> bool:
    """Whether `settled` returns without anything else happening."""
    with trio.move_on_after(0.01):
        await drafts.settled([inode])
        return True
    return False


async def test_who_shows_a_draft_of_another_mount_asks_and_that_ends_it() -> None:
    """Promise 4."""
    pair = Pair()
    pair.a.begin(FILE)
    pair.a.begin(OTHER)
    pair.deliver()
    assert pair.a.is_own(FILE)
    assert pair.b.is_elsewhere(FILE)
    assert not pair.b.is_own(FILE)
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(pair.b.settled, [FILE])
        await wait_all_tasks_blocked()
        assert pair.b.questions == 1
        pair.to_a.deliver()
        assert not pair.a.is_own(FILE)  # from now on its maker waits for everybody ...
        await wait_all_tasks_blocked()
        assert pair.b.is_elsewhere(FILE)  # ... and what it did not wait for is still under way
        pair.to_b.deliver()
    assert not pair.b.is_elsewhere(FILE)
    assert pair.a.is_own(OTHER)
    assert pair.b.is_elsewhere(OTHER)


async def test_a_draft_that_is_closed_costs_no_question() -> None:
    pair = Pair()
    pair.a.begin(FILE)
    assert pair.a.end(FILE)
    assert not pair.a.end(FILE)
    pair.deliver()
    assert not pair.b.elsewhere
    assert await settles(pair.b)
    assert pair.b.questions == 0


async def test_a_question_that_crosses_the_end_is_answered() -> None:
    pair = Pair()
    pair.a.begin(FILE)
    pair.deliver()
    assert not await settles(pair.b)
    pair.a.end(FILE)
    pair.deliver()
    assert await settles(pair.b)


async def test_an_end_that_was_lost_in_a_gap_is_said_again() -> None:
    pair = Pair()
    pair.a.begin(FILE)
    pair.deliver()
    pair.a.end(FILE)
    pair.to_b.lose()  # it came with rows that did not follow, so it did not count
    assert not await settles(pair.b)
    pair.deliver()
    assert await settles(pair.b)


async def test_who_connects_has_no_marks_so_drafts_end() -> None:
    pair = Pair()
    pair.a.begin(FILE)
    pair.deliver()
    pair.a.met(C, Wire(A, Drafts()))
    assert pair.a.is_own(FILE)
    pair.a.connected(C)
    assert not pair.a.is_own(FILE)
    pair.deliver()
    assert not pair.b.is_elsewhere(FILE)


async def test_a_maker_that_is_gone_is_not_waited_for() -> None:
    pair = Pair()
    pair.a.begin(FILE)
    pair.deliver()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pair.b.settled, [FILE])
        await wait_all_tasks_blocked()
        pair.b.disconnected(A)


async def test_a_new_session_has_brought_everything_when_it_is_level() -> None:
    pair = Pair()
    pair.a.begin(FILE)
    pair.deliver()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pair.b.settled, [FILE])
        await wait_all_tasks_blocked()  # its question went with the old session
        pair.b.met(A, Wire(B, pair.a))
        await wait_all_tasks_blocked()
        assert pair.b.questions == 2
        pair.b.level(A)
    assert not pair.b.is_elsewhere(FILE)


async def test_a_wait_for_a_silent_maker_ends(autojump_clock: MockClock) -> None:
    """Promise 16."""
    pair = Pair()
    pair.a.begin(FILE)
    pair.deliver()
    begun_s = trio.current_time()
    await pair.b.settled([FILE])
    assert trio.current_time() - begun_s == pytest.approx(LEASE_TIMEOUT_S)
    assert not pair.b.is_elsewhere(FILE)


async def test_a_file_that_stays_open_is_no_draft_for_long(autojump_clock: MockClock) -> None:
    pair = Pair()
    pair.a.begin(FILE)
    await trio.sleep(DRAFT_S + 1)
    pair.a.begin(OTHER)
    assert not pair.a.is_own(FILE)
    pair.deliver()
    assert list(pair.b.elsewhere) == [OTHER]


async def test_drafts_are_bounded() -> None:
    """Promise 16."""
    pair = Pair()
    for number in range(DRAFTS_MAX + 5):
        pair.a.begin(InodeId(1000 + number))
    assert pair.a.is_own(InodeId(1000 + DRAFTS_MAX - 1))
    assert not pair.a.is_own(InodeId(1000 + DRAFTS_MAX))  # what is set of it is waited for
    with pytest.raises(RemoteProtocolError):
        pair.b.begun(A, map(InodeId, range(1, DRAFTS_HEARD_MAX + 2)))
