"""What every block store promises, run on every implementation."""

import random
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Protocol

import pytest
import trio

from dfsfs.base.errors import Full, NotFound
from dfsfs.base.limits import SMALL_BLOCK_BYTES_MAX
from dfsfs.base.types import Digest, DigestKind, digest_of
from dfsfs.base.units import KIB, MIB
from dfsfs.blocks import (
    BlockSource,
    BlockStore,
    LocalStorage,
    MemoryStore,
    SegmentStore,
)
from dfsfs.runtime import RealWorld

SIZES = (1, 4 * KIB, SMALL_BLOCK_BYTES_MAX, SMALL_BLOCK_BYTES_MAX + 1, 256 * KIB, 4 * MIB)


class Opener(Protocol):
    def __call__(
        self, *, capacity_bytes: int | None = None
    ) -> AbstractAsyncContextManager[BlockStore]: ...


@pytest.fixture(params=["memory", "segments"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Opener:
    @asynccontextmanager
    async def open_store(*, capacity_bytes: int | None = None) -> AsyncIterator[BlockStore]:
        store: BlockStore
        if request.param == "memory":
            store = MemoryStore(capacity_bytes=capacity_bytes)
        else:
            store = await SegmentStore.open(RealWorld(), tmp_path, capacity_bytes=capacity_bytes)
        try:
            yield store
        finally:
            with trio.CancelScope(shield=True):
                await store.close()

    return open_store


def block(size: int, seed: int = 0, kind: DigestKind = DigestKind.BLAKE3) -> tuple[Digest, bytes]:
    data = random.Random(f"{seed}/{size}").randbytes(size)
    return digest_of(kind, data), data


@pytest.mark.parametrize("kind", list(DigestKind))
async def test_what_was_put_is_got(opened: Opener, kind: DigestKind) -> None:
    async with opened() as store:
        for size in SIZES:
            digest, data = block(size, kind=kind)
            assert not store.has(digest)
            assert store.size(digest) is None
            assert store.get_nowait(digest) is None
            with pytest.raises(NotFound):
                await store.get(digest)
            assert await store.put(digest, data)
            assert not await store.put(digest, data)
            assert store.has(digest)
            assert store.size(digest) == size
            assert bytes(await store.get(digest)) == data
            assert bytes(store.get_nowait(digest) or b"") == data  # just written: in memory
        assert store.usage().block_count == len(SIZES)
        assert store.usage().block_bytes == sum(SIZES)


async def test_any_buffer_can_be_put(opened: Opener) -> None:
    async with opened() as store:
        for size in SIZES:
            digest, data = block(size)
            buffer = bytearray(b"x" + data)
            await store.put(digest, memoryview(buffer)[1:])
            buffer[:] = bytes(len(buffer))  # the caller's again
            assert bytes(await store.get(digest)) == data


async def test_parts_are_clipped_at_the_end(opened: Opener) -> None:
    async with opened() as store:
        for size in SIZES:
            digest, data = block(size)
            with pytest.raises(NotFound):
                await store.read(digest, 0, 1)
            assert store.read_nowait(digest, 0, 1) is None
            await store.put(digest, data)
            for offset in (0, 1, size // 2, size - 1, size, size + 5):
                for part in (0, 1, 4096, size, size + 1):
                    expected = data[offset : offset + part]
                    assert bytes(await store.read(digest, offset, part)) == expected
                    assert bytes(store.read_nowait(digest, offset, part) or b"") == expected


async def test_a_removed_block_is_gone_and_can_come_back(opened: Opener) -> None:
    async with opened() as store:
        for size in SIZES:
            digest, data = block(size)
            assert not await store.remove(digest)
            await store.put(digest, data)
            assert await store.remove(digest)
            assert not await store.remove(digest)
            assert not store.has(digest)
            assert store.get_nowait(digest) is None
            with pytest.raises(NotFound):
                await store.get(digest)
            assert await store.put(digest, data)
            assert bytes(await store.get(digest)) == data


async def test_removal_is_visible_before_the_first_checkpoint(opened: Opener) -> None:
    """So that a collector can look at the pins and remove in one step."""
    async with opened() as store:
        digest, data = block(64 * KIB)
        await store.put(digest, data)
        with trio.CancelScope() as scope:
            scope.cancel()  # the first checkpoint ends it
            await store.remove(digest)
        assert not store.has(digest)


async def test_pages_walk_the_store_in_order(opened: Opener) -> None:
    async with opened() as store:
        digests = set()
        for seed in range(40):
            digest, data = block(SMALL_BLOCK_BYTES_MAX - 20 + seed, seed)
            await store.put(digest, data)
            digests.add(digest)
        found: list[Digest] = []
        while page := store.page(found[-1] if found else None, 7):
            assert len(page) <= 7
            found += page
            if len(found) == 21:  # a change during the walk harms nobody else
                digests.remove(found[0])
                await store.remove(found[0])
        assert found == sorted(found)
        assert set(found[1:]) == digests


async def test_many_at_once(opened: Opener) -> None:
    """Concurrent puts of new, equal and small blocks, with syncs between."""
    async with opened() as store:
        news: list[bool] = []

        async def put(size: int, seed: int) -> None:
            digest, data = block(size, seed)
            news.append(await store.put(digest, data))
            assert store.has(digest)
            if seed % 5 == 0:
                await store.sync()
            assert bytes(await store.get(digest)) == data

        async with trio.open_nursery() as nursery:
            for seed in range(60):
                for size in (100, 20 * KIB, 256 * KIB):
                    nursery.start_soon(put, size, seed % 20)
        assert sum(news) == 60
        assert store.usage().block_count == 60


@pytest.mark.parametrize("size", [8 * KIB, 64 * KIB])
async def test_a_full_store_refuses_and_keeps_what_it_has(opened: Opener, size: int) -> None:
    async with opened(capacity_bytes=10 * size + 4 * KIB) as store:
        stored = []
        refused = False
        for seed in range(20):
            try:
                await store.put(*block(size, seed))
                stored.append(block(size, seed))
            except Full:
                refused = True
                break
        assert refused
        assert 5 < len(stored) <= 10
        assert store.usage().capacity_bytes < 11 * size
        for digest, data in stored:
            assert not await store.put(digest, data)  # what is here needs no room
            assert bytes(await store.get(digest)) == data
        await store.remove(stored.pop()[0])
        await store.put(*block(size, 99))
        assert bytes(await store.get(block(size, 99)[0])) == block(size, 99)[1]


async def test_a_full_store_takes_what_fits_of_a_batch(opened: Opener) -> None:
    async with opened(capacity_bytes=MIB) as store:
        outcomes: list[str] = []

        async def put(seed: int) -> None:
            try:
                await store.put(*block(100 * KIB, seed))
            except Full:
                outcomes.append("full")
            else:
                outcomes.append("put")

        async with trio.open_nursery() as nursery:
            for seed in range(16):
                nursery.start_soon(put, seed)
        assert outcomes.count("put") == store.usage().block_count == 10


async def test_a_cancelled_put_leaves_the_store_whole(opened: Opener) -> None:
    """Whenever it is cancelled: the block is there whole or not at all, others go on."""
    async with opened() as store:
        for cancelled in range(8):
            async with trio.open_nursery() as nursery:
                scopes = [trio.CancelScope() for _ in range(8)]

                async def put(seed: int, scope: trio.CancelScope) -> None:
                    with scope:
                        await store.put(*block(64 * KIB, seed))

                for place, scope in enumerate(scopes):
                    nursery.start_soon(put, cancelled * 8 + place, scope)
                for _ in range(cancelled % 4):
                    await trio.lowlevel.checkpoint()
                scopes[cancelled].cancel()
                scopes[0].cancel()
            for place in range(8):
                digest, data = block(64 * KIB, cancelled * 8 + place)
                if place in (0, cancelled):
                    await store.put(digest, data)  # either way this works
                assert bytes(await store.get(digest)) == data


async def test_a_source_serves_what_the_store_has(opened: Opener) -> None:
    async with opened() as store:
        storage = LocalStorage(RealWorld(), store)
        source: BlockSource = storage
        upload = storage.upload()
        for size in SIZES:
            digest, data = block(size)
            with pytest.raises(NotFound):
                await source.get(digest)
            assert source.get_nowait(digest) is None
            assert await upload.put(data) == digest
            source.prefetch([digest])
            for _ in range(2):
                assert bytes(await source.get(digest)) == data
                assert bytes(await source.read(digest, 1, 5)) == data[1:6]
                assert bytes(source.get_nowait(digest) or b"") == data
                assert bytes(source.read_nowait(digest, 1, 5) or b"") == data[1:6]
        upload.close()
