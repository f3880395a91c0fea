"""The small parts of blocks: batching, budget, pins, the map of what was verified."""

import random

import pytest
import trio
import trio.testing

from dfsfs.base.errors import DfsError, Full
from dfsfs.base.types import DigestKind, digest_of
from dfsfs.base.units import KIB, MIB
from dfsfs.blocks import ByteBudget, LocalStorage, MemoryStore, Pins
from dfsfs.blocks.batching import Batcher
from dfsfs.blocks.records import HEADER_BYTES, decode_header, encode_header
from dfsfs.blocks.verified import VerifiedMap
from dfsfs.runtime import RealWorld

# -- batching -----------------------------------------------------------------------------------


class Work:
    """Doubles numbers in batches; each batch waits until it is let go."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go = trio.Semaphore(0)

    async def __call__(self, items: list[int]) -> list[int | DfsError]:
        self.batches.append(items)
        await self.go.acquire()
        if items == [13]:
            raise Full("all of them")
        return [Full("this one") if item < 0 else item * 2 for item in items]


async def test_what_waits_is_done_together() -> None:
    work = Work()
    batcher = Batcher[int, int](work, count_max=4)
    results: dict[int, int] = {}

    async def submit(item: int) -> None:
        results[item] = await batcher.submit(item)

    async with trio.open_nursery() as nursery:
        for item in range(10):
            nursery.start_soon(submit, item)
            await trio.testing.wait_all_tasks_blocked()
        for _ in range(4):
            work.go.release()
    assert work.batches == [[0], [1, 2, 3, 4], [5, 6, 7, 8], [9]]
    assert results == {item: item * 2 for item in range(10)}


async def test_batches_are_bounded_by_weight_but_never_empty() -> None:
    work = Work()
    batcher = Batcher[int, int](work, count_max=100, weight=lambda item: item, weight_max=10)
    async with trio.open_nursery() as nursery:
        for item in (1, 50, 4, 6, 1):
            nursery.start_soon(batcher.submit, item)
            await trio.testing.wait_all_tasks_blocked()
        for _ in range(4):
            work.go.release()
    assert work.batches == [[1], [50], [4, 6], [1]]


async def test_failures_reach_whom_they_concern() -> None:
    work = Work()
    work.go = trio.Semaphore(100)
    batcher = Batcher[int, int](work, count_max=4)
    with pytest.raises(Full, match="this one"):
        await batcher.submit(-1)
    with pytest.raises(Full, match="all of them"):
        await batcher.submit(13)
    assert await batcher.submit(2) == 4


@pytest.mark.parametrize("cancelled", range(6))
async def test_a_cancelled_caller_stops_nobody_else(cancelled: int) -> None:
    """The leader, one that is being served, the next leader, or one that waits."""
    work = Work()
    batcher = Batcher[int, int](work, count_max=2)
    done: list[int] = []
    scopes = [trio.CancelScope() for _ in range(6)]

    async def submit(item: int) -> None:
        with scopes[item]:
            await batcher.submit(item)
        done.append(item)

    async with trio.open_nursery() as nursery:
        for item in range(6):
            nursery.start_soon(submit, item)
            await trio.testing.wait_all_tasks_blocked()
        work.go.release()
        scopes[cancelled].cancel()
        for _ in range(5):
            await trio.testing.wait_all_tasks_blocked()
            work.go.release()
    assert sorted(done) == list(range(6))
    worked = [item for batch in work.batches for item in batch]
    assert set(range(6)) - {cancelled} <= set(worked)
    assert await batcher.submit(21) == 42


@pytest.mark.parametrize("delay", range(8))
async def test_a_caller_cancelled_in_the_instant_it_is_served_ends_like_any(delay: int) -> None:
    """Trio's order of tasks is random: often enough to meet each of them."""
    for _ in range(20):
        work = Work()
        batcher = Batcher[int, int](work, count_max=2)
        scope = trio.CancelScope()

        async def submit_and_give_up(batcher: Batcher[int, int], scope: trio.CancelScope) -> None:
            with scope:
                await batcher.submit(2)

        async with trio.open_nursery() as nursery:
            for item in (0, 1):
                nursery.start_soon(batcher.submit, item)
                await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(submit_and_give_up, batcher, scope)
            await trio.testing.wait_all_tasks_blocked()
            work.go.release()
            for _ in range(delay):
                await trio.lowlevel.checkpoint()
            scope.cancel()
            work.go.release()
        work.go.release()
        assert await batcher.submit(21) == 42


# -- budget -------------------------------------------------------------------------------------


async def test_a_budget_is_kept_and_served_in_order() -> None:
    budget = ByteBudget(10)
    order: list[int] = []

    async def use(size: int) -> None:
        async with budget.hold(size):
            order.append(size)
            assert budget.in_use <= 10 or budget.in_use == size
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        await budget.acquire(8)
        for size in (8, 5, 40, 2):
            nursery.start_soon(use, size)
            await trio.testing.wait_all_tasks_blocked()
        assert order == []  # the first does not fit, and nobody overtakes it
        budget.release(8)
    assert order == [8, 5, 40, 2]
    assert budget.in_use == 0


async def test_a_cancelled_wait_leaves_the_budget_whole() -> None:
    budget = ByteBudget(10)
    await budget.acquire(10)
    got: list[int] = []

    async def use(size: int, scope: trio.CancelScope) -> None:
        with scope:
            await budget.acquire(size)
            got.append(size)
            budget.release(size)

    async with trio.open_nursery() as nursery:
        scopes = [trio.CancelScope(), trio.CancelScope()]
        for size, scope in zip((9, 3), scopes, strict=True):
            nursery.start_soon(use, size, scope)
            await trio.testing.wait_all_tasks_blocked()
        scopes[0].cancel()
        await trio.testing.wait_all_tasks_blocked()
        budget.release(10)
        scopes[1].cancel()  # at the same instant as its grant
    assert budget.in_use == 0


# -- pins ---------------------------------------------------------------------------------------


async def test_an_upload_pins_until_it_ends() -> None:
    store = MemoryStore()
    storage = LocalStorage(RealWorld(), store)
    first, second = storage.upload(), storage.upload()
    digest = await first.put(b"some bytes")
    assert await second.put(b"some bytes") == digest
    await first.settle()
    first.close()
    first.close()
    assert store.pins.is_pinned(digest)
    second.close()
    assert not store.pins.is_pinned(digest)


async def test_a_failed_put_is_unpinned_with_its_upload() -> None:
    store = MemoryStore(capacity_bytes=1)
    upload = LocalStorage(RealWorld(), store).upload()
    with pytest.raises(Full):
        await upload.put(b"too much")
    upload.close()
    assert len(store.pins) == 0


def test_pins_count() -> None:
    pins = Pins()
    digest = digest_of(DigestKind.SHA1, b"")
    pins.pin(digest)
    pins.pin(digest)
    pins.unpin(digest)
    assert pins.is_pinned(digest)
    pins.unpin(digest)
    assert not pins.is_pinned(digest)
    with pytest.raises(KeyError):
        pins.unpin(digest)


# -- records and marks --------------------------------------------------------------------------


def test_a_header_has_these_bytes() -> None:
    digest = digest_of(DigestKind.SHA1, b"a")
    assert encode_header(digest, 70000).hex() == (
        "64667342" "01" "00" "15" "00" "00011170"
        "0386f7e437faa5a7fce15d1ddcb9eaeaea377667b8" + "00" * 19 + "00" * 8
        + encode_header(digest, 70000)[-4:].hex()
    )  # fmt: skip


def test_every_flipped_bit_of_a_header_but_the_state_is_noticed() -> None:
    header = encode_header(digest_of(DigestKind.BLAKE3, b"a"), 70000)
    assert len(header) == HEADER_BYTES
    for position in range(HEADER_BYTES):
        for bit in range(8):
            bad = bytearray(header)
            bad[position] ^= 1 << bit
            found = decode_header(bytes(bad))
            assert (found is not None and found.removed) == (position == 5)
    assert decode_header(header[:-1]) is None


def test_marks_are_exact() -> None:
    marks = VerifiedMap()
    dice = random.Random(1)
    position, positions = 0, []
    while position < 64 * MIB:
        positions.append(position)
        position += HEADER_BYTES + 16 * KIB + 1 + dice.randrange(30 * KIB)
    marked = set(dice.sample(positions, len(positions) // 2))
    for each in marked:
        marks.mark(3, each)
    assert {each for each in positions if marks.has(3, each)} == marked
    assert not marks.has(4, positions[0])
    marks.forget(3)
    assert not any(marks.has(3, each) for each in positions)
