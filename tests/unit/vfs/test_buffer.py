"""The write buffer against a bytearray, over a real tree in a memory store."""

import random
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from dfsfs.base.errors import DfsError, Full, TooBig
from dfsfs.base.limits import FILE_BYTES_MAX, INLINE_BYTES_MAX, UNFOLDED_LEAVES_MAX
from dfsfs.base.types import EMPTY_CONTENT, Buffer, ContentRef, Digest
from dfsfs.blocks import LocalStorage, MemoryStore, Upload
from dfsfs.content import ContentReader, ContentWriter, fold, walk
from dfsfs.runtime import RealWorld
from dfsfs.vfs.budget import WriteBudget
from dfsfs.vfs.buffer import WriteBuffer

SHIFT = 12
BLOCK = 1 << SHIFT


class GatedStorage(LocalStorage):
    """A storage whose puts can be held up, or made to fail, and whose reads can be held up."""

    def __init__(self, store: MemoryStore) -> None:
        super().__init__(RealWorld(), store)
        self.gate = trio.Event()
        self.gate.set()
        self.failure: DfsError | None = None
        self.reading = trio.Event()
        self.reading.set()

    def read_nowait(self, digest: Digest, offset: int, size: int) -> Buffer | None:
        """Nothing while reads are held up."""
        return super().read_nowait(digest, offset, size) if self.reading.is_set() else None

    async def read(self, digest: Digest, offset: int, size: int) -> Buffer:
        """Wait, then read."""
        await self.reading.wait()
        return await super().read(digest, offset, size)

    async def put_pinned(self, data: Buffer, pinned: list[Digest]) -> Digest:
        """Wait at the gate, then store."""
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        return await super().put_pinned(data, pinned)


class Bench:
    """Buffers over one store."""

    def __init__(self, nursery: trio.Nursery, *, budget: int = 1 << 30) -> None:
        self.store = MemoryStore()
        self.storage: GatedStorage = GatedStorage(self.store)
        self.budget = WriteBudget(budget)
        self.nursery = nursery

    def buffer(self, base: ContentRef = EMPTY_CONTENT) -> WriteBuffer:
        """A new buffer over `base`."""
        return WriteBuffer(self.storage, self.budget, self.nursery, base, shift=SHIFT)

    async def collect(self, in_use: ContentRef) -> None:
        """What garbage collection might do at this moment, with no grace."""
        page = await walk(self.storage, in_use, None, 1 << 20)
        needed = {*page.digests, *self.storage.pins.all()}
        for digest in self.store.page(None, 1 << 20):
            if digest not in needed:
                await self.store.remove(digest)

    async def bytes_of(self, content: ContentRef) -> bytes:
        """All bytes of a content ref."""
        return bytes(await ContentReader(self.storage, content).read(0, content.size))


@pytest.fixture
async def bench(nursery: trio.Nursery) -> Bench:
    return Bench(nursery)


async def test_small_content_is_inline_and_needs_no_block(bench: Bench) -> None:
    buffer = bench.buffer()
    buffer.write(0, b"hello")
    written = await buffer.write_back()
    assert written.content.inline == b"hello"
    assert bench.store.usage().block_count == 0
    assert buffer.upload is None


async def test_whole_blocks_are_stored_while_writing_goes_on(bench: Bench) -> None:
    buffer = bench.buffer()
    data = random.Random(1).randbytes(3 * BLOCK + 7)
    buffer.write(0, data)
    with trio.fail_after(30):
        while bench.store.usage().block_count < 3:
            await trio.testing.wait_all_tasks_blocked(0.001)
    assert await buffer.read(0, len(data)) == data
    written = await buffer.write_back()
    assert await bench.bytes_of(written.content) == data
    assert bench.budget.used == 0


async def test_writing_goes_on_during_a_write_back(bench: Bench) -> None:
    buffer = bench.buffer()
    first = random.Random(2).randbytes(2 * BLOCK + 100)
    buffer.write(0, first)
    bench.storage.gate = trio.Event()
    results = []

    async def write_back() -> None:
        results.append(await buffer.write_back())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write_back)
        await trio.testing.wait_all_tasks_blocked()
        buffer.write(BLOCK - 50, b"y" * 100)
        buffer.write(len(first), b"more")
        expected = bytearray(first) + b"more"
        expected[BLOCK - 50 : BLOCK + 50] = b"y" * 100
        assert await buffer.read(0, 4 * BLOCK) == expected
        bench.storage.gate.set()
    assert results[0].sequence < buffer.sequence
    # What was stored is a version that was written, not one with zeros nobody wrote.
    assert await bench.bytes_of(results[0].content) == first
    assert await buffer.read(0, 4 * BLOCK) == expected
    second = await buffer.write_back()
    assert second.sequence == buffer.sequence
    assert await bench.bytes_of(second.content) == expected


async def test_a_failed_put_loses_nothing(bench: Bench) -> None:
    buffer = bench.buffer()
    data = random.Random(3).randbytes(2 * BLOCK)
    bench.storage.failure = Full("no space")
    buffer.write(0, data)
    with pytest.raises(Full):
        await buffer.write_back()
    buffer.write(BLOCK // 2, b"z" * 10)
    expected = bytearray(data)
    expected[BLOCK // 2 : BLOCK // 2 + 10] = b"z" * 10
    assert await buffer.read(0, len(data)) == expected
    bench.storage.failure = None
    written = await buffer.write_back()
    assert await bench.bytes_of(written.content) == expected
    assert bench.budget.used == 0


async def test_the_budget_makes_writers_wait_and_others_give_way(nursery: trio.Nursery) -> None:
    bench = Bench(nursery, budget=4 * BLOCK)
    idle, busy = bench.buffer(), bench.buffer()
    idle.write(0, b"i" * (BLOCK - 1))
    for index in range(100):
        busy.write(index * BLOCK, b"b" * (BLOCK - 1))
        with trio.fail_after(30):
            await bench.budget.relieve()
        assert bench.budget.used <= 4 * BLOCK
    assert await idle.read(0, BLOCK) == b"i" * (BLOCK - 1)
    written = await busy.write_back()
    piece = b"b" * (BLOCK - 1) + b"\0"
    assert await bench.bytes_of(written.content) == (piece * 100)[:-1]


async def test_what_a_small_write_costs_is_counted_and_given_back(bench: Bench) -> None:
    """One byte in each of many blocks is little data and much memory."""
    buffer = bench.buffer()
    for index in range(100):
        buffer.write(index * BLOCK + 7, b"x")
        buffer.write(index * BLOCK + 99, b"x")
    assert bench.budget.used > 100 * 400
    data = bytearray(await buffer.read(0, buffer.size))
    buffer.write(0, b"y" * (BLOCK - 1))  # grows to a whole block: stored while others wait
    buffer.write(BLOCK - 1, b"y")
    data[:BLOCK] = b"y" * BLOCK
    await buffer.truncate(50 * BLOCK + 50)
    written = await buffer.write_back()
    assert await bench.bytes_of(written.content) == data[: 50 * BLOCK + 50]
    assert bench.budget.used == 0


async def test_what_is_folded_is_in_use_and_needs_no_pins(bench: Bench) -> None:
    """Memory does not grow with the file, and no collection, at any moment, takes what it needs."""
    buffer = bench.buffer()
    dice = random.Random(5)
    data = bytearray()
    pinned_max = 0
    for turn in range(60):
        piece = dice.randbytes(100 * BLOCK)
        at = len(data) if turn % 4 else dice.randrange(len(data) + 1)
        buffer.write(at, piece)
        data[at : at + len(piece)] = piece
        await trio.testing.wait_all_tasks_blocked()
        if buffer.unfolded >= UNFOLDED_LEAVES_MAX:
            await buffer.fold()
        await bench.collect(buffer.base)
        pinned_max = max(pinned_max, len(bench.storage.pins))
    assert len(data) > 4 * UNFOLDED_LEAVES_MAX * BLOCK
    assert pinned_max < 2 * UNFOLDED_LEAVES_MAX
    assert await buffer.read(0, len(data)) == data
    await buffer.truncate(len(data) // 2)
    await bench.collect(buffer.base)
    written = await buffer.write_back()
    await bench.collect(written.content)
    assert await bench.bytes_of(written.content) == data[: len(data) // 2]


async def test_a_full_store_fails_the_writer_instead_of_stopping_it(nursery: trio.Nursery) -> None:
    bench = Bench(nursery, budget=2 * BLOCK)
    bench.storage.failure = Full("no space")
    buffer = bench.buffer()

    async def write_on() -> None:
        for index in range(10):
            buffer.write(index * BLOCK, b"b" * BLOCK)
            await bench.budget.relieve()

    with pytest.raises(Full), trio.fail_after(30):
        await write_on()
    buffer.close()
    with trio.fail_after(30):
        while bench.budget.used:
            await trio.testing.wait_all_tasks_blocked(0.001)


async def test_a_full_store_fails_writers_of_other_files_as_well(nursery: trio.Nursery) -> None:
    """What cannot be stored fills the budget, and a file that holds nothing of it frees nothing."""
    bench = Bench(nursery, budget=2 * BLOCK)
    other = bench.buffer()
    other.write(0, b"b" * BLOCK)
    await trio.testing.wait_all_tasks_blocked()
    assert bench.budget.used == 0
    bench.storage.failure = Full("no space")
    buffer = bench.buffer()
    for index in range(4):
        buffer.write(index * BLOCK, b"b" * BLOCK)
    await trio.testing.wait_all_tasks_blocked()
    with pytest.raises(Full), trio.fail_after(30):
        await bench.budget.relieve()
    bench.storage.failure = None  # room was made: nobody need know whose bytes did not fit
    with trio.fail_after(30):
        await bench.budget.relieve()
    assert bench.budget.used <= 2 * BLOCK
    for each in (buffer, other):
        each.close()


async def _stored(bench: Bench, data: bytes) -> ContentRef:
    """Content of its own tree."""
    writer = ContentWriter(bench.storage.upload(), shift=SHIFT, inline_bytes_max=0)
    await writer.write(data)
    return await writer.finish()


async def test_a_read_that_waits_sees_no_bytes_that_were_overwritten_before_it(
    bench: Bench,
) -> None:
    """Whatever is cut off while it waits for what lies below."""
    buffer = bench.buffer(await _stored(bench, b"a" * 3 * BLOCK))
    buffer.write(BLOCK + 10, b"b" * 100)
    bench.storage.reading = trio.Event()
    found = b""

    async def read() -> None:
        nonlocal found
        found = bytes(await buffer.read(BLOCK, 200))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        await buffer.truncate(BLOCK + 50)
        bench.storage.reading.set()
    assert found[10:110] in (b"b" * 100, b"b" * 40, b"b" * 40 + bytes(60))


async def test_a_block_written_while_a_small_file_is_written_back_is_kept(bench: Bench) -> None:
    """A file of one block can be small enough to live in its row."""
    assert BLOCK <= INLINE_BYTES_MAX
    buffer = bench.buffer(await _stored(bench, b"a" * 3 * BLOCK))
    await buffer.truncate(BLOCK)
    bench.storage.reading = bench.storage.gate = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(buffer.write_back)
        await trio.testing.wait_all_tasks_blocked()
        buffer.write(0, b"b" * BLOCK)
        bench.storage.reading.set()
    assert await buffer.read(0, BLOCK) == b"b" * BLOCK
    written = await buffer.write_back()
    assert await bench.bytes_of(written.content) == b"b" * BLOCK


async def test_a_block_that_grows_while_its_put_fails_is_whole(bench: Bench) -> None:
    """Although whoever could not store it still has its bytes in hand: an error keeps its frames.

    The failure of that would be one of the whole filesystem.
    """
    buffer = bench.buffer()
    data = b"a" * BLOCK + b"b" + bytes(8)  # trailing zeros are not stored: a view of the bytes
    for at in range(0, len(data), 3):
        buffer.write(at, data[at : at + 3])
    bench.storage.gate = trio.Event()
    bench.storage.failure = Full("no space")
    async with trio.open_nursery() as nursery:

        async def write_back() -> None:
            with pytest.raises(Full):
                await buffer.write_back()

        nursery.start_soon(write_back)
        await trio.testing.wait_all_tasks_blocked()
        buffer.write(len(data), b"c")
        bench.storage.gate.set()
    bench.storage.failure = None
    assert await buffer.read(0, buffer.size) == data + b"c"
    written = await buffer.write_back()
    assert await bench.bytes_of(written.content) == data + b"c"


async def test_a_file_may_not_grow_beyond_its_limit(bench: Bench) -> None:
    buffer = bench.buffer()
    with pytest.raises(TooBig):
        buffer.write(FILE_BYTES_MAX, b"x")
    with pytest.raises(TooBig):
        await buffer.truncate(FILE_BYTES_MAX + 1)
    buffer.write(FILE_BYTES_MAX - 1, b"x")
    written = await buffer.write_back()
    assert written.content.size == FILE_BYTES_MAX
    assert written.content.stored <= BLOCK


class Model:
    """Random steps on a buffer and a bytearray."""

    def __init__(self, bench: Bench, seed: int) -> None:
        self.bench = bench
        self.random = random.Random(seed)
        self.model = bytearray()
        self.buffer = bench.buffer()
        self.limit = self.random.choice([INLINE_BYTES_MAX, 3 * BLOCK, 10 * BLOCK])

    async def write(self) -> None:
        """Write anywhere, often aligned."""
        offset = self.random.randrange(self.limit)
        size = self.random.choice([1, 7, 100, BLOCK, 2 * BLOCK, self.random.randrange(1, BLOCK)])
        if self.random.random() < 0.3:
            offset &= ~(BLOCK - 1)
        data = bytes(size) if self.random.random() < 0.1 else self.random.randbytes(size)
        self.buffer.write(offset, data)
        if len(self.model) < offset:
            self.model.extend(bytes(offset - len(self.model)))
        self.model[offset : offset + size] = data

    async def append(self) -> None:
        """Write at the end."""
        data = self.random.randbytes(self.random.randrange(1, 600))
        self.buffer.write(len(self.model), data)
        self.model.extend(data)

    async def read(self) -> None:
        """Read anywhere."""
        offset = self.random.randrange(self.limit + BLOCK)
        size = self.random.randrange(1, 3 * BLOCK)
        assert await self.buffer.read(offset, size) == self.model[offset : offset + size]

    async def truncate(self) -> None:
        """Set a size."""
        size = self.random.choice([0, BLOCK, self.random.randrange(self.limit + BLOCK)])
        await self.buffer.truncate(size)
        del self.model[size:]
        self.model.extend(bytes(size - len(self.model)))

    async def write_back(self) -> ContentRef:
        """Make content of it, with or without patches."""
        patches = self.random.choice([0, 200, 2 * BLOCK])
        written = await self.buffer.write_back(patches_bytes_max=patches)
        content = written.content
        assert written.sequence == self.buffer.sequence
        assert content.size == len(self.model)
        assert (content.root is None) or len(self.model) > INLINE_BYTES_MAX
        assert await self.bench.bytes_of(content) == self.model
        assert not content.patched or patches
        upload = self.bench.storage.upload()
        folded = await fold(self.bench.storage, upload, content)
        writer = ContentWriter(upload, SHIFT)
        await writer.write(bytes(self.model))
        if folded.root is not None:  # the same bytes have the same tree, however they came about
            assert folded == await writer.finish()
        upload.close()
        return content

    async def reopen(self) -> None:
        """Begin again from what was made."""
        content = await self.write_back()
        self.buffer.close()
        self.buffer = self.bench.buffer(content)

    async def spill(self) -> None:
        """As under memory pressure."""
        await self.buffer.spill()

    async def pause(self) -> None:
        """Let background puts run."""
        await trio.testing.wait_all_tasks_blocked()

    async def run(self, steps: int) -> None:
        """A random history."""
        verbs: list[Callable[[], Awaitable[object]]] = []
        verbs += [self.write] * 8 + [self.append] * 4
        verbs += [self.read] * 6 + [self.truncate] * 2 + [self.write_back, self.reopen]
        verbs += [self.spill] * 2 + [self.pause]
        for _ in range(steps):
            await self.random.choice(verbs)()
        await self.reopen()
        self.buffer.close()


@pytest.mark.parametrize("seed", range(12))
async def test_any_history_reads_as_a_bytearray(nursery: trio.Nursery, seed: int) -> None:
    bench = Bench(nursery)
    model = Model(bench, seed)
    await model.run(150)
    with trio.fail_after(30):
        while bench.budget.used:
            await trio.testing.wait_all_tasks_blocked(0.001)


class SlowStorage(GatedStorage):
    """A storage in which nothing is at hand, and every call lets others run first."""

    def __init__(self, store: MemoryStore, seed: int) -> None:
        super().__init__(store)
        self._random = random.Random(seed)

    def read_nowait(self, digest: Digest, offset: int, size: int) -> Buffer | None:
        return None

    def get_nowait(self, digest: Digest) -> Buffer | None:
        return None

    async def _pause(self) -> None:
        for _ in range(self._random.randrange(8)):
            await trio.lowlevel.checkpoint()

    async def read(self, digest: Digest, offset: int, size: int) -> Buffer:
        await self._pause()
        return await super().read(digest, offset, size)

    async def get(self, digest: Digest) -> Buffer:
        await self._pause()
        return await super().get(digest)

    async def put_pinned(self, data: Buffer, pinned: list[Digest]) -> Digest:
        await self._pause()
        return await super().put_pinned(data, pinned)


@pytest.mark.parametrize("seed", range(12))
async def test_writing_while_write_backs_run(nursery: trio.Nursery, seed: int) -> None:
    """Whatever overlaps: each write-back is a version that was written, the last one the last."""
    bench = Bench(nursery)
    bench.storage = SlowStorage(bench.store, seed)
    rng = random.Random(seed)
    first = rng.randbytes(6 * BLOCK)
    base = bench.buffer()
    base.write(0, first)
    buffer = bench.buffer((await base.write_back()).content)
    model = bytearray(first)

    async def write_back() -> None:
        await buffer.write_back()

    async with trio.open_nursery() as inner:
        for step in range(120):
            size = rng.choice([3, 500, BLOCK, BLOCK + 9])
            offset = rng.randrange(8 * BLOCK) & (~(BLOCK - 1) if rng.random() < 0.4 else ~0)
            data = rng.randbytes(size)
            buffer.write(offset, data)
            model.extend(bytes(max(0, offset + size - len(model))))
            model[offset : offset + size] = data
            if step % 3 == 0:
                inner.start_soon(write_back if rng.random() < 0.7 else buffer.spill)
            for _ in range(rng.randrange(6)):
                await trio.lowlevel.checkpoint()
            at = rng.randrange(len(model))
            assert await buffer.read(at, 2 * BLOCK) == model[at : at + 2 * BLOCK]
    written = await buffer.write_back()
    assert written.sequence == buffer.sequence
    assert await bench.bytes_of(written.content) == model


async def test_equal_bytes_have_equal_content_however_they_were_written(bench: Bench) -> None:
    data = random.Random(5).randbytes(5 * BLOCK + 11)
    at_once, piecewise, rewritten = bench.buffer(), bench.buffer(), bench.buffer()
    at_once.write(0, data)
    for start in range(0, len(data), 777):
        piecewise.write(start, data[start : start + 777])
    rewritten.write(0, bytes(6 * BLOCK))
    await rewritten.write_back()
    await rewritten.truncate(len(data))
    for start in reversed(range(0, len(data), 1000)):
        rewritten.write(start, data[start : start + 1000])
    refs = {(await buffer.write_back()).content for buffer in (at_once, piecewise, rewritten)}
    assert len(refs) == 1


async def test_uploads_are_closed_with_the_buffer(bench: Bench) -> None:
    buffer = bench.buffer()
    buffer.write(0, random.Random(6).randbytes(2 * BLOCK))
    await buffer.write_back()
    upload: Upload | None = buffer.upload
    assert upload is not None
    digest = bench.store.page(None, 1)[0]
    assert bench.store.pins.is_pinned(digest)
    buffer.close()
    assert not bench.store.pins.is_pinned(digest)


async def test_an_upload_is_closed_after_the_last_put_of_a_buffer_given_up(bench: Bench) -> None:
    buffer = bench.buffer()
    bench.storage.gate = trio.Event()
    buffer.write(0, random.Random(7).randbytes(BLOCK))
    await trio.testing.wait_all_tasks_blocked()
    buffer.close()
    bench.storage.gate.set()
    with trio.fail_after(30):
        while bench.budget.used:
            await trio.testing.wait_all_tasks_blocked(0.001)
    assert len(bench.store.pins) == 0
