"""Readers and writers: cost, read-ahead, and trees made up by a lying peer."""

import contextlib
import os
import random
from collections.abc import Iterable, Sequence

import pytest
import trio

from dfsfs.base.errors import Corrupt, Invalid, NotFound
from dfsfs.base.limits import READ_AHEAD_BYTES_MAX, WRITER_BYTES_MAX
from dfsfs.base.types import Buffer, ContentRef, Digest, DigestKind, digest_of
from dfsfs.base.units import GIB, KIB, MIB
from dfsfs.blocks import LocalStorage, MemoryStore
from dfsfs.content import (
    ContentReader,
    ContentWriter,
    Leaf,
    NodeCache,
    inline_ref,
    patch,
    put_leaf,
    walk,
)
from dfsfs.content.tree import encode_node
from dfsfs.runtime import RealWorld


class Watched:
    """A source that remembers what it was asked; blocks can be made slow."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.storage = LocalStorage(RealWorld(), self.store)
        self.cold: set[Digest] = set()
        self.prefetched: list[Digest] = []
        self.gets = 0

    async def get(self, digest: Digest) -> Buffer:
        self.gets += 1
        self.cold.discard(digest)
        return await self.storage.get(digest)

    def get_nowait(self, digest: Digest) -> Buffer | None:
        return None if digest in self.cold else self.storage.get_nowait(digest)

    async def read(self, digest: Digest, offset: int, size: int) -> Buffer:
        return memoryview(await self.get(digest))[offset : offset + size]

    def read_nowait(self, digest: Digest, offset: int, size: int) -> Buffer | None:
        return None if digest in self.cold else self.storage.read_nowait(digest, offset, size)

    def prefetch(self, digests: Sequence[Digest]) -> None:
        self.prefetched += digests

    async def put(self, data: bytes) -> Digest:
        digest = digest_of(DigestKind.BLAKE3, data)
        await self.store.put(digest, data)
        return digest

    async def file(self, data: bytes, shift: int = 12) -> ContentRef:
        writer = ContentWriter(self.storage.upload(), shift, inline_bytes_max=0)
        await writer.write(data)
        return await writer.finish()


async def test_a_one_block_overwrite_rewrites_one_path() -> None:
    """In 100 GiB: a leaf, and a node for each level."""
    source = Watched()
    upload = source.storage.upload()
    size = 100 * GIB
    leaves = {
        index: await put_leaf(upload, bytes((index % 251 + 1,))) for index in range(0, 409_600, 61)
    }
    base = await patch(source, upload, ContentRef(size=0), leaves, size)
    blocks = source.store.usage().block_count
    leaf = await put_leaf(upload, b"new")
    ref = await patch(source, upload, base, {200_000: leaf}, size)
    assert source.store.usage().block_count == blocks + 1 + 3
    assert bytes(await ContentReader(source, ref).read(200_000 << 18, 4)) == b"new\0"


async def test_content_of_a_few_bytes_is_inline() -> None:
    source = Watched()
    for data in (b"", b"a", os.urandom(4 * KIB)):
        writer = ContentWriter(source.storage.upload())
        await writer.write(data)
        ref = await writer.finish()
        assert ref == inline_ref(data)
        assert bytes(await ContentReader(source, ref).read(1, 10)) == data[1:11]
    assert source.store.usage().block_count == 0
    writer = ContentWriter(source.storage.upload())
    await writer.write(os.urandom(4 * KIB + 1))
    assert (await writer.finish()).root is not None


async def test_a_range_within_a_block_is_not_copied() -> None:
    source = Watched()
    data = os.urandom(64 * KIB)
    reader = ContentReader(source, await source.file(data, shift=16))
    part = await reader.read(5, 1000)
    assert isinstance(part, memoryview)
    assert part.obj is source.store.get_nowait(digest_of(DigestKind.BLAKE3, data))


async def test_a_writer_holds_a_bounded_part() -> None:
    put: list[int] = []

    class Slow:
        async def put(self, data: Buffer) -> Digest:
            put.append(len(data))
            await trio.lowlevel.checkpoint()
            return digest_of(DigestKind.SHA1, data)

        async def settle(self) -> None: ...

        def keep(self, digests: Iterable[Digest]) -> None: ...

        def close(self) -> None: ...

    writer = ContentWriter(Slow())
    piece = random.Random(1).randbytes(MIB - 1)
    for turn in range(1, 20):
        await writer.write(piece)
        assert turn * len(piece) - sum(put) <= WRITER_BYTES_MAX
    await writer.finish()
    with pytest.raises(Invalid):
        await writer.write(b"more")


async def test_sequential_reads_are_read_ahead_and_jumps_are_not() -> None:
    source = Watched()
    data = random.Random(1).randbytes(24 * MIB)
    ref = await source.file(data, shift=18)
    _, *order = (await walk(source, ref, None, 1000)).digests
    reader = ContentReader(source, ref)
    for offset in range(0, 16 * MIB, 128 * KIB):
        assert reader.read_nowait(offset, 128 * KIB) == data[offset : offset + 128 * KIB]
        ahead = [index for index, digest in enumerate(order) if digest in set(source.prefetched)]
        assert len(source.prefetched) == len(set(source.prefetched))
        if offset > MIB:  # what comes next was announced, but not more than the window
            assert offset // (256 * KIB) + 1 in ahead
            assert (ahead[-1] << 18) - offset <= READ_AHEAD_BYTES_MAX + MIB
    source.prefetched.clear()
    dice = random.Random(2)
    reader = ContentReader(source, ref)
    for _ in range(50):
        reader.read_nowait(dice.randrange(8, 20) * MIB, 4 * KIB)
        reader.read_nowait(dice.randrange(0, 4) * MIB, 4 * KIB)
    assert len(source.prefetched) < 10


async def test_reads_that_come_a_little_out_of_order_are_sequential() -> None:
    source = Watched()
    ref = await source.file(random.Random(1).randbytes(16 * MIB), shift=18)
    reader = ContentReader(source, ref)
    for first in range(0, 32, 4):
        for place in (1, 0, 3, 2):
            reader.read_nowait((first + place) * 256 * KIB, 256 * KIB)
    assert len(source.prefetched) > 40
    assert len(source.prefetched) == len(set(source.prefetched))


async def test_a_read_over_many_cold_blocks_asks_for_all_at_once() -> None:
    source = Watched()
    data = random.Random(1).randbytes(40 * KIB)
    ref = await source.file(data)
    page = await walk(source, ref, None, 100)
    source.cold.update(page.digests)
    reader = ContentReader(source, ref)
    assert reader.read_nowait(0, 40 * KIB) is None
    assert bytes(await reader.read(0, 40 * KIB)) == data
    assert set(source.prefetched) >= set(page.digests[:1])


async def test_many_tasks_read_through_one_reader() -> None:
    source = Watched()
    data = random.Random(1).randbytes(400 * KIB)
    ref = await source.file(data)
    source.cold.update((await walk(source, ref, None, 1000)).digests)
    reader = ContentReader(source, ref, nodes=NodeCache(bytes_max=1))  # none stays

    async def read(seed: int) -> None:
        dice = random.Random(seed)
        for _ in range(20):
            offset = dice.randrange(len(data))
            assert bytes(await reader.read(offset, 9000)) == data[offset : offset + 9000]

    async with trio.open_nursery() as nursery:
        for seed in range(10):
            nursery.start_soon(read, seed)


async def test_a_missing_block_is_the_sources_affair() -> None:
    source = Watched()
    ref = await source.file(os.urandom(20 * KIB))
    page = await walk(source, ref, None, 100)
    await source.store.remove(page.digests[2])
    reader = ContentReader(source, ref)
    assert reader.read_nowait(4 * KIB, 10) is None
    with pytest.raises(NotFound):
        await reader.read(4 * KIB, 10)
    assert len(await reader.read(0, 10)) == 10


async def attack(source: Watched, ref: ContentRef) -> None:
    """Whatever the tree is, every use of it ends in bytes of the right number or in Corrupt."""
    for offset in (0, ref.size // 2, ref.size - 1):
        reader = ContentReader(source, ref)
        for size in (1, 5000):
            try:
                found = await reader.read(offset, size)
                assert len(found) == min(size, ref.size - offset)
            except Corrupt:
                pass
        for new_size in (1, offset + 1, ref.size, ref.size * 2):
            try:
                upload = source.storage.upload()
                leaf = await put_leaf(upload, b"x")
                await patch(source, upload, ref, {offset >> 12: leaf}, new_size, ref.shift)
            except Corrupt:
                pass
    with contextlib.suppress(Corrupt):
        await walk(source, ref, None, 1000)


async def test_trees_made_up_by_a_peer() -> None:
    source = Watched()
    leaf = Leaf(await source.put(b"x" * 4096), 4096)
    short = Leaf(await source.put(b"x" * 10), 4096)
    long = Leaf(await source.put(b"x" * 9000), 9000)

    async def node(level: int, children: list[Leaf | None], lie: int = 0) -> Leaf:
        data = encode_node(level, 12, children) or b""
        return Leaf(await source.put(data), sum(c.stored for c in children if c) + lie)

    tops = [
        leaf,  # a leaf where a node is due
        await node(1, [short] * 3),
        await node(1, [long, leaf]),
        await node(1, [leaf] * 256),
        await node(1, [leaf] * 3, lie=1),
        await node(2, [await node(1, [leaf] * 256)] * 200),
        await node(2, [leaf] * 3),
        await node(3, [await node(1, [leaf])]),
        await node(1, [None, Leaf(leaf.digest, 1 << 50)]),
    ]
    for top in tops:
        for size in (2, 4096, 4097, 3 * 4096, 256 * 4096, 257 * 4096, 1 << 40):
            for stored in {top.stored, 1, size}:
                if 0 < stored <= size:
                    await attack(
                        source, ContentRef(size=size, root=top.digest, shift=12, stored=stored)
                    )
    for top in (await node(1, [long, leaf]), await node(1, [leaf, None, long])):
        ref = ContentRef(size=5 * 4096, root=top.digest, shift=12, stored=top.stored)
        with pytest.raises(Corrupt):
            await ContentReader(source, ref).read(0, 10)
        with pytest.raises(Corrupt):
            await walk(source, ref, None, 10)
    for ref in (
        ContentRef(size=10, root=leaf.digest, shift=12, stored=4096),  # stores more than it has
        ContentRef(size=10, root=leaf.digest, shift=12),
        ContentRef(size=10, root=leaf.digest, shift=60, stored=10),
    ):
        with pytest.raises(Corrupt):
            ContentReader(source, ref)
        with pytest.raises(Corrupt):
            await walk(source, ref, None, 10)


async def test_a_tree_that_names_one_block_for_ever_is_walked_in_pages() -> None:
    source = Watched()
    data = b"y" * 4096
    top = Leaf(await source.put(data), 4096)
    for level in range(1, 7):
        node = encode_node(level, 12, [top] * 256) or b""
        top = Leaf(await source.put(node), top.stored * 256)
    ref = ContentRef(size=top.stored, root=top.digest, shift=12, stored=top.stored)
    page = await walk(source, ref, None, 500)
    assert 500 <= len(page.digests) < 510
    assert page.next is not None
    seen: set[Digest] = set()

    def known(digest: Digest) -> bool:
        if digest in seen:
            return True
        seen.add(digest)
        return False

    page = await walk(source, ref, None, 500, skip=known)
    assert len(page.digests) == 7
    assert page.next is None
