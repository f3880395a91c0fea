"""Leases in use: tasks that wait, write-backs, deadlines, joining. Channels are queues here."""

from dataclasses import dataclass, field

import pytest
import trio
import trio.testing

from dfsfs.base.errors import ReadOnly, RemoteProtocolError
from dfsfs.base.limits import JOINING_TIMEOUT_S, LEASE_TIMEOUT_S
from dfsfs.base.types import ROOT_INODE, InodeId, NodeId, Origin
from dfsfs.cluster.lease import Grant, Request
from dfsfs.cluster.leases import Leases
from dfsfs.runtime import RealWorld

INODES = [ROOT_INODE, InodeId(5), InodeId(9)]


@dataclass
class Side:
    """One node's leases, and the bytes it has not written back."""

    number: int
    leases: Leases = field(init=False)
    dirty: set[InodeId] = field(default_factory=set)
    deaf: bool = False  # takes no messages
    gate: trio.Event = field(default_factory=trio.Event)

    def __post_init__(self) -> None:
        self.node = NodeId(bytes([self.number]) * 32)
        self.origin = Origin(self.number)
        self.gate.set()
        self.leases = Leases(
            RealWorld(),
            self.node,
            self.origin,
            mounts=True,
            is_dirty=lambda inode: inode in self.dirty,
            write_back=self._write_back,
        )

    async def _write_back(self, inode: InodeId) -> None:
        await self.gate.wait()
        self.dirty.discard(inode)

    def connect(self, other: "Side") -> None:
        def send(action: Request | Grant) -> None:
            body = [action.inode, action.stamp] if isinstance(action, Request) else [action.inode]
            if not other.deaf:
                other.leases.received(self.node, [body])

        self.leases.met(other.node)
        self.leases.connected(other.node, other.origin, mounts=True, level=False, channel=send)


@pytest.fixture
async def pair(nursery: trio.Nursery, autojump_clock: trio.testing.MockClock) -> tuple[Side, Side]:
    one, two = Side(1), Side(2)
    for side in (one, two):
        await nursery.start(side.leases.run)
    one.connect(two)
    two.connect(one)
    one.leases.level(two.node)
    two.leases.level(one.node)
    return one, two


async def test_what_is_not_here_is_asked_for(pair: tuple[Side, Side]) -> None:
    one, two = pair
    assert one.leases.held(INODES)
    assert not two.leases.held([ROOT_INODE])
    await two.leases.acquire(INODES)
    assert two.leases.held(INODES)
    assert not one.leases.held([ROOT_INODE])
    assert two.leases.statistics.requests == len(INODES)


async def test_only_one_holds_whoever_asks_whenever(pair: tuple[Side, Side]) -> None:
    turns = []

    async def use(side: Side) -> None:
        for _ in range(20):
            if not side.leases.held(INODES):
                await side.leases.acquire(INODES)
            other = pair[side is pair[0]]
            assert not other.leases.held(INODES[:1])
            turns.append(side.number)
            await trio.sleep(0.001)

    async with trio.open_nursery() as nursery:
        for side in (*pair, *pair):
            nursery.start_soon(use, side)
    assert turns.count(1) == turns.count(2) == 40


async def test_what_is_dirty_is_written_back_first(pair: tuple[Side, Side]) -> None:
    one, two = pair
    one.dirty.add(ROOT_INODE)
    one.gate = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(two.leases.acquire, INODES)
        await trio.sleep(0.1)
        assert not two.leases.held([ROOT_INODE])
        assert not one.leases.held([ROOT_INODE]), "nobody begins to write meanwhile"
        one.gate.set()
    assert not one.dirty
    assert one.leases.statistics.written_back == 1


async def test_who_gives_no_answer_is_not_waited_for_long_nor_again(
    pair: tuple[Side, Side], autojump_clock: trio.testing.MockClock
) -> None:
    one, two = pair
    one.deaf = True
    start_s = trio.current_time()
    await two.leases.acquire([ROOT_INODE])
    assert trio.current_time() - start_s == pytest.approx(LEASE_TIMEOUT_S, abs=0.1)
    assert two.leases.held([ROOT_INODE])
    assert two.leases.statistics.timeouts == 1


async def test_a_wait_that_is_given_up_leaves_nothing(pair: tuple[Side, Side]) -> None:
    one, two = pair
    one.dirty.add(ROOT_INODE)
    one.gate = trio.Event()
    with trio.move_on_after(0.1):
        await two.leases.acquire(INODES)
    one.gate.set()
    await trio.sleep(1)
    await one.leases.acquire(INODES)
    assert one.leases.held(INODES)


async def test_the_end_of_a_session_frees_what_is_waited_for(pair: tuple[Side, Side]) -> None:
    one, two = pair
    one.deaf = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(two.leases.acquire, INODES)
        await trio.sleep(1)
        two.leases.disconnected(one.node)
    assert two.leases.held(INODES)
    assert two.leases.count == 0


async def test_who_starts_or_comes_back_waits_until_it_is_level(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    one, two, three = Side(1), Side(2), Side(3)
    await nursery.start(two.leases.run)
    assert two.leases.held(INODES)
    two.leases.met(one.node)
    assert not two.leases.held(INODES)
    start_s = trio.current_time()
    await two.leases.acquire(INODES)
    assert trio.current_time() - start_s == pytest.approx(JOINING_TIMEOUT_S, abs=0.1)
    assert two.leases.held(INODES), "it goes on alone"
    two.connect(three)
    two.leases.level(three.node)
    two.leases.met(one.node)
    assert two.leases.held([InodeId(2 << 40 | 1)]), "others wait for a newcomer's sake no more"


async def test_nobody_waits_for_the_end_of_a_long_way(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    one, two = Side(1), Side(2)
    await nursery.start(two.leases.run)
    two.leases.met(one.node)
    async with trio.open_nursery() as waiting:
        waiting.start_soon(two.leases.acquire, INODES)
        await trio.sleep(0.1)
        two.leases.join_later()
    assert trio.current_time() < JOINING_TIMEOUT_S
    assert two.leases.held(INODES)


async def test_a_read_only_mount_gets_none(pair: tuple[Side, Side]) -> None:
    one, _ = pair
    one.leases.read_only = True
    assert not one.leases.held([ROOT_INODE])
    with pytest.raises(ReadOnly):
        await one.leases.acquire([ROOT_INODE])


@pytest.mark.parametrize(
    "body", [None, {}, [[]], [[1, 2, 3]], [["1"]], [[True]], [[0]], [[-1]], [[1 << 63]], [[1]]]
)
async def test_malformed_messages_are_refused(pair: tuple[Side, Side], body: object) -> None:
    one, two = pair
    with pytest.raises(RemoteProtocolError):
        one.leases.received(two.node, body)
