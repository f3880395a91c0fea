"""The outbox alone: order, limits, and what happens when the stream stops taking bytes."""

from collections import deque

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from dfsfs.base import limits
from dfsfs.base.errors import DfsError, Overloaded, PeerUnreachable
from dfsfs.base.types import NodeId
from dfsfs.net import SessionStatistics
from dfsfs.net.outbox import Outbox

BULK = b"b" * (limits.URGENT_FRAME_BYTES_MAX + 1)


class Sink:
    """A stream that takes as many bytes as the test allows."""

    remote = "sink"
    peer_id: NodeId | None = None
    local = False

    def __init__(self) -> None:
        self.room = 0
        self.calls = 0
        self.taken = b""
        self.broken = False
        self.changed = trio.lowlevel.ParkingLot()

    def allow(self, count: int) -> None:
        self.room += count
        self.changed.unpark_all()

    async def handshake(self) -> None:
        await trio.lowlevel.checkpoint()

    def send_nowait(self, parts: deque[memoryview]) -> None:
        self.calls += 1
        if self.broken:
            raise PeerUnreachable("broken")
        while parts and self.room:
            part = parts.popleft()
            count = min(len(part), self.room)
            self.room -= count
            self.taken += part[:count]
            if count < len(part):
                parts.appendleft(part[count:])

    async def wait_sendable(self) -> None:
        await trio.lowlevel.checkpoint()
        while not self.room:
            await self.changed.park()

    async def receive_into(self, buffer: memoryview) -> int:
        await trio.sleep_forever()

    def close(self) -> None:
        pass


class Bench:
    def __init__(self) -> None:
        self.sink = Sink()
        self.errors: list[DfsError] = []
        self.statistics = SessionStatistics()
        self.outbox = Outbox(self.sink, self.statistics, self.errors.append)


@pytest.fixture
async def bench(nursery: trio.Nursery) -> Bench:
    bench = Bench()
    nursery.start_soon(bench.outbox.run)
    await wait_all_tasks_blocked()
    return bench


async def drain(bench: Bench) -> bytes:
    bench.sink.allow(1 << 30)
    await wait_all_tasks_blocked()
    return bench.sink.taken


async def test_an_idle_outbox_sends_at_once_in_the_callers_task(bench: Bench) -> None:
    bench.sink.allow(100)
    bench.outbox.put(1, b"head", b"payload")
    assert bench.sink.taken == b"headpayload"
    assert bench.statistics.bytes_sent == 11


async def test_what_is_put_while_held_leaves_together(bench: Bench) -> None:
    bench.sink.allow(100)
    bench.outbox.hold()
    for number in range(5):
        bench.outbox.put(number, b"%d" % number)
    assert bench.sink.taken == b""
    calls = bench.sink.calls
    bench.outbox.release()
    assert bench.sink.taken == b"01234"
    assert bench.sink.calls == calls + 1


async def test_small_overtakes_large_but_not_within_a_stream(bench: Bench) -> None:
    bench.outbox.put(1, b"<1>", BULK)  # begun, and stuck
    bench.outbox.put(2, b"<2>", BULK)
    bench.outbox.put(2, b"<2 small>")
    bench.outbox.put(3, b"<3 small>")
    taken = await drain(bench)
    assert taken == b"<1>" + BULK + b"<3 small>" + b"<2>" + BULK + b"<2 small>"


async def test_large_ones_get_their_turn(bench: Bench) -> None:
    bench.outbox.put(1, b"<1>", BULK)
    bench.outbox.put(2, b"<2>", BULK)
    small = b"s" * (limits.URGENT_FRAME_BYTES_MAX // 2)
    count = limits.URGENT_BURST_MAX + 20
    for number in range(count):
        bench.outbox.put(10 + number, small)
    taken = await drain(bench)
    before = taken.index(b"<2>") - len(b"<1>" + BULK)
    assert before <= (limits.URGENT_BURST_MAX + 1) * len(small)
    assert taken.count(b"s") == count * len(small)


async def test_withdrawing_what_has_not_begun(bench: Bench) -> None:
    bench.outbox.put(1, b"<1>", BULK)
    bench.outbox.put(2, b"<2>", BULK)
    bench.outbox.put(3, b"<3>")
    assert not bench.outbox.withdraw(1)
    assert bench.outbox.withdraw(2)
    assert bench.outbox.withdraw(3)
    assert not bench.outbox.withdraw(2)
    assert await drain(bench) == b"<1>" + BULK


@pytest.mark.parametrize("size", [100, len(BULK)])
async def test_waiting_for_room(bench: Bench, nursery: trio.Nursery, size: int) -> None:
    count = 0
    bench.outbox.put(0, b"x", BULK)  # begun, and stuck
    while bench.outbox.has_room(size):
        count += 1
        bench.outbox.put(count, bytes(size))
    limit = limits.URGENT_QUEUE_BYTES_MAX if size == 100 else limits.SEND_QUEUE_BYTES_MAX
    assert limit <= count * size < limit + size
    passed = trio.Event()

    async def wait() -> None:
        await bench.outbox.wait_room(size)
        passed.set()

    nursery.start_soon(wait)
    await wait_all_tasks_blocked()
    assert not passed.is_set()
    bench.sink.allow(len(BULK) + 1 + limits.URGENT_FRAME_BYTES_MAX * 2)
    with trio.fail_after(20):
        await passed.wait()


async def test_closing_refuses_whoever_waits(bench: Bench, nursery: trio.Nursery) -> None:
    bench.outbox.put(0, b"x", BULK)
    while bench.outbox.has_room(len(BULK)):
        bench.outbox.put(1, BULK)

    async def wait() -> None:
        with pytest.raises(PeerUnreachable):
            await bench.outbox.wait_room(len(BULK))

    async with trio.open_nursery() as inner:
        inner.start_soon(wait)
        await wait_all_tasks_blocked()
        bench.outbox.close()
    bench.outbox.put(5, b"never")
    assert b"never" not in await drain(bench)


async def test_small_frames_nobody_reads_end_the_session(bench: Bench) -> None:
    for number in range(10):
        bench.outbox.put(number, b"x" * limits.URGENT_FRAME_BYTES_MAX)
    while not bench.errors:
        bench.outbox.put(1000, b"x" * limits.URGENT_FRAME_BYTES_MAX)
    assert isinstance(bench.errors[0], Overloaded)


async def test_a_broken_stream_is_told_once_and_fails_no_putter(bench: Bench) -> None:
    bench.sink.broken = True
    bench.outbox.put(1, b"x")
    bench.outbox.put(2, b"y")
    assert [str(error) for error in bench.errors] == ["broken"]


async def test_a_peer_that_takes_nothing_is_given_up(autojump_clock: MockClock) -> None:
    bench = Bench()
    started = trio.current_time()

    bench.outbox.put(1, b"x")
    with pytest.raises(PeerUnreachable, match="takes nothing"):
        await bench.outbox.run()
    assert trio.current_time() - started == pytest.approx(limits.SEND_STALL_S)
