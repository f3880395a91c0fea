"""The segment store against damage: crashes, bad disks, lost files, full disks."""

import os
import random
import resource
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import trio

from dfsfs.base.errors import Corrupt, Full, Misconfigured, NotFound
from dfsfs.base.limits import RECLAIM_COUNT_MAX, SEGMENT_BYTES
from dfsfs.base.types import Digest, DigestKind, digest_of
from dfsfs.base.units import KIB, MIB
from dfsfs.blocks import SegmentStore
from dfsfs.blocks.records import HEADER_BYTES
from dfsfs.runtime import RealWorld

Block = tuple[Digest, bytes]


def block(size: int, seed: int = 0) -> Block:
    data = random.Random(f"{seed}/{size}").randbytes(size)
    return digest_of(DigestKind.BLAKE3, data), data


@asynccontextmanager
async def opened(
    directory: Path, *, capacity_bytes: int | None = None
) -> AsyncIterator[SegmentStore]:
    store = await SegmentStore.open(RealWorld(), directory, capacity_bytes=capacity_bytes)
    try:
        yield store
    finally:
        with trio.CancelScope(shield=True):
            await store.close()


def segments(directory: Path) -> list[Path]:
    return sorted((directory / "segments").glob("*.seg"))


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as stream:
        stream.seek(offset)
        byte = stream.read(1)[0]
        stream.seek(offset)
        stream.write(bytes((byte ^ 0x10,)))


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(data)


def copied(directory: Path, copy: Path) -> Path:
    """The files as they are now, while the store is open: what a crash would leave."""
    (copy / "segments").mkdir(parents=True)
    for path in [*directory.glob("index.db*"), *segments(directory)]:
        (copy / path.relative_to(directory)).write_bytes(path.read_bytes())
    return copy


def drop_index(directory: Path) -> None:
    for path in directory.glob("index.db*"):
        path.unlink()


async def fill(store: SegmentStore, sizes: list[int]) -> list[Block]:
    blocks = [block(size, seed) for seed, size in enumerate(sizes)]
    for each in blocks:
        await store.put(*each)
    return blocks


async def assert_serves(store: SegmentStore, blocks: list[Block]) -> None:
    for digest, data in blocks:
        assert bytes(await store.get(digest)) == data
        assert bytes(await store.read(digest, 3, 5)) == data[3:8]


# -- ordinary life ------------------------------------------------------------------------------


async def test_a_store_is_the_same_after_it_was_opened_again(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        blocks = await fill(store, [100, 20 * KIB, 16 * KIB, 256 * KIB, MIB])
        usage = store.usage()
    async with opened(tmp_path) as store:
        assert store.usage().block_bytes == usage.block_bytes
        assert store.usage().disk_bytes == usage.disk_bytes
        for digest, _ in blocks[3:]:
            assert store.read_nowait(digest, 0, 10) is None  # not verified yet
        await assert_serves(store, blocks)
        for digest, data in blocks:
            assert bytes(store.read_nowait(digest, 7, 10) or b"") == data[7:17]


async def test_segments_are_filled_one_after_the_other(tmp_path: Path) -> None:
    count = SEGMENT_BYTES // (4 * MIB) * 2 + 2
    async with opened(tmp_path) as store:
        blocks = await fill(store, [4 * MIB] * count)
        await store.sync()
        assert len(segments(tmp_path)) == 3
        for digest, _ in blocks[: count // 2]:
            await store.remove(digest)
    async with opened(tmp_path) as store:
        assert len(segments(tmp_path)) == 2  # an empty segment is unlinked
        await assert_serves(store, blocks[count // 2 :])
        for digest, _ in blocks[: count // 2]:
            assert not store.has(digest)


async def test_space_of_removed_blocks_comes_back(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        blocks = await fill(store, [64 * KIB] * (RECLAIM_COUNT_MAX + 20))
        await store.sync()
        (segment,) = segments(tmp_path)
        before = segment.stat().st_blocks * 512
        for digest, _ in blocks[:RECLAIM_COUNT_MAX]:
            await store.remove(digest)
        assert segment.stat().st_blocks * 512 < before - RECLAIM_COUNT_MAX * 56 * KIB
        assert store.usage().disk_bytes == 20 * (64 * KIB + HEADER_BYTES)
        await assert_serves(store, blocks[RECLAIM_COUNT_MAX:])


@pytest.mark.parametrize("size", [8 * KIB, 64 * KIB])
async def test_a_full_store_uses_what_was_removed(tmp_path: Path, size: int) -> None:
    async with opened(tmp_path, capacity_bytes=20 * size) as store:
        for seed in range(200):
            await store.put(*block(size, seed))
            if seed >= 10:
                assert await store.remove(block(size, seed - 10)[0])
        assert store.usage().block_count == 10


async def test_reads_go_on_while_blocks_are_removed_and_come_back(tmp_path: Path) -> None:
    """A read that races a removal gets the block or NotFound, never a hole's zeros."""
    blocks = [block(64 * KIB, seed) for seed in range(8)]  # with garbage more than fits: reclaims
    async with opened(tmp_path, capacity_bytes=MIB) as store:
        outcomes = {"read": 0, "absent": 0}

        async def read(cold: bool) -> None:
            dice = random.Random(cold)
            for _ in range(200):
                digest, data = dice.choice(blocks)
                try:
                    if cold:
                        for path in segments(tmp_path):
                            evict(path)
                    assert bytes(await store.read(digest, 5000, 4096)) == data[5000:9096]
                    outcomes["read"] += 1
                except NotFound:
                    outcomes["absent"] += 1

        async def churn() -> None:
            dice = random.Random(3)
            for _ in range(200):
                await store.put(*dice.choice(blocks))
                await store.put(*dice.choice(blocks))
                await store.remove(dice.choice(blocks)[0])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, True)
            nursery.start_soon(read, False)
            nursery.start_soon(churn)
        assert outcomes["read"] > 0


def evict(path: Path) -> None:
    """Have a file's clean pages dropped from the page cache."""
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


async def test_a_cold_block_is_not_read_on_the_loop(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        blocks = await fill(store, [256 * KIB])
        await store.sync()
        evict(segments(tmp_path)[0])
        assert store.get_nowait(blocks[0][0]) is None
        await assert_serves(store, blocks)
        assert store.get_nowait(blocks[0][0]) is not None


# -- crashes ------------------------------------------------------------------------------------

_WRITER = """
import random, sys, trio
from pathlib import Path
from dfsfs.base.types import DigestKind, digest_of
from dfsfs.blocks import SegmentStore
from dfsfs.runtime import RealWorld

async def main():
    store = await SegmentStore.open(RealWorld(), Path(sys.argv[1]))
    async def put(first):
        for seed in range(first, 100000, 4):
            size = (100, 9000, 20_000, 300_000)[seed // 4 % 4]
            data = random.Random(f"{seed}/{size}").randbytes(size)
            await store.put(digest_of(DigestKind.BLAKE3, data), data)
            print(seed, size, flush=True)
            if seed % 50 == 3:
                await store.sync()
            if seed % 7 == 5:
                size = (100, 9000, 20_000, 300_000)[(seed - 4) // 4 % 4]
                gone = random.Random(f"{seed - 4}/{size}").randbytes(size)
                print("removing", seed - 4, flush=True)
                await store.remove(digest_of(DigestKind.BLAKE3, gone))
    async with trio.open_nursery() as nursery:
        for first in (4, 5, 6, 7):
            nursery.start_soon(put, first)

trio.run(main)
"""


def write_and_kill(directory: Path, lines: int) -> tuple[dict[int, int], set[int]]:
    """Run a process that puts blocks until it has acknowledged some, then kill it.

    Returns the acknowledged blocks by seed with their sizes, and the seeds it began to remove.
    """
    with subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(directory)], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        said = [child.stdout.readline() for _ in range(lines)]
        child.send_signal(signal.SIGKILL)
        said += child.stdout.readlines()
    put: dict[int, int] = {}
    removed: set[int] = set()
    for line in said:
        words = line.split()
        if len(words) == 2 and line.endswith("\n"):
            if words[0] == "removing":
                removed.add(int(words[1]))
            else:
                put[int(words[0])] = int(words[1])
    return put, removed


@pytest.mark.parametrize("lines", [1, 10, 57, 200, 600])
async def test_what_was_acknowledged_survives_kill_9(tmp_path: Path, lines: int) -> None:
    put: dict[int, int] = {}
    removed: set[int] = set()
    for _ in range(2):  # the second run starts on what the first left
        more, gone = write_and_kill(tmp_path, lines)
        put |= more
        removed |= gone
        async with opened(tmp_path) as store:
            for seed, size in put.items():
                if seed not in removed:
                    digest, data = block(size, seed)
                    assert bytes(await store.get(digest)) == data
            count = 0
            after: Digest | None = None
            while page := store.page(after, 100):
                after = page[-1]
                count += len(page)
                for digest in page:
                    await store.get(digest)  # whole, whatever else is here
            assert count == store.usage().block_count


@pytest.mark.announce("block index|is gone")
async def test_after_kill_9_a_lost_index_costs_only_small_blocks(tmp_path: Path) -> None:
    put, removed = write_and_kill(tmp_path, 300)
    drop_index(tmp_path)
    async with opened(tmp_path) as store:
        for seed, size in put.items():
            if size > 16 * KIB and seed not in removed:
                digest, data = block(size, seed)
                assert bytes(await store.get(digest)) == data


async def test_a_torn_tail_is_cut_and_written_over(tmp_path: Path) -> None:
    """Every length of a torn record, as far as headers and data go."""
    async with opened(tmp_path) as store:
        blocks = await fill(store, [20 * KIB, 30 * KIB])
    size = segments(tmp_path)[0].stat().st_size
    more = block(40 * KIB, 77)
    whole = tmp_path / "whole"
    async with opened(whole) as store:
        await store.put(*more)
    record = segments(whole)[0].read_bytes()
    for cut in (1, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + 1, len(record) - 1):
        with segments(tmp_path)[0].open("ab") as stream:
            stream.write(record[:cut])
        async with opened(tmp_path) as store:
            assert segments(tmp_path)[0].stat().st_size == size
            assert not store.has(more[0])
            await assert_serves(store, blocks)
            blocks.append(block(17 * KIB, cut))
            await store.put(*blocks[-1])
        size = segments(tmp_path)[0].stat().st_size
        async with opened(tmp_path) as store:
            await assert_serves(store, blocks)
    with segments(tmp_path)[0].open("ab") as stream:
        stream.write(record)
    async with opened(tmp_path) as store:  # a whole record that was not indexed is
        await assert_serves(store, [*blocks, more])


@pytest.mark.announce("torn|are gone")
@pytest.mark.parametrize("lost", [1, 100, 30 * KIB, 30 * KIB + HEADER_BYTES, 45 * KIB])
async def test_a_segment_that_lost_its_end(tmp_path: Path, lost: int) -> None:
    """The index knows more than the disk kept: what is gone is gone, the rest is served."""
    async with opened(tmp_path) as store:
        blocks = await fill(store, [20 * KIB, 20 * KIB, 30 * KIB])
    path = segments(tmp_path)[0]
    os.truncate(path, path.stat().st_size - lost)
    async with opened(tmp_path) as store:
        kept = [each for each in blocks if store.has(each[0])]
        assert kept == blocks[: 2 if lost <= 30 * KIB + HEADER_BYTES else 1]
        await assert_serves(store, kept)
        assert await store.put(*blocks[2])
        await assert_serves(store, [blocks[2]])
        extra = block(50 * KIB, 9)
        await store.put(*extra)
    async with opened(tmp_path) as store:
        await assert_serves(store, [*kept, blocks[2], extra])


@pytest.mark.announce("torn|segment 1 is gone")
async def test_a_power_cut_that_lost_unsynced_bytes(tmp_path: Path) -> None:
    """The index reached the disk, the bytes it tells of did not: the file has zeros there."""
    store = await SegmentStore.open(RealWorld(), tmp_path)
    safe = await fill(store, [20 * KIB, 30 * KIB])
    await store.sync()
    lost = block(40 * KIB, 5)
    after = block(40 * KIB, 6)
    await store.put(*lost)
    await store.put(*after)
    copy = copied(tmp_path, tmp_path / "copy")
    await store.close()
    overwrite(segments(copy)[0], 50 * KIB + 2 * HEADER_BYTES + 8 * KIB, bytes(4 * KIB))
    async with opened(copy) as store:
        assert not store.has(lost[0])
        await assert_serves(store, [*safe, after])
        assert await store.put(*lost)
    async with opened(copy) as store:
        await assert_serves(store, [*safe, after, lost])


@pytest.mark.announce("torn|segment . is gone|bytes are gone")
@pytest.mark.parametrize("seed", range(12))
async def test_what_was_synced_survives_power_loss(tmp_path: Path, seed: int) -> None:
    """The disk keeps what was flushed, and any pages of what was written later.

    Of the index it keeps the state of the last flush, or that of the moment of the cut.
    """
    dice = random.Random(seed)
    live = tmp_path / "live"
    store = await SegmentStore.open(RealWorld(), live)
    blocks: list[Block] = []
    synced: list[Block] = []
    sizes: dict[str, int] = {}
    flushed = tmp_path / "flushed"
    for turn in range(dice.randrange(5, 60)):
        blocks.append(block(dice.choice((100, 9_000, 17_000, 50_000, 300_000)), turn))
        await store.put(*blocks[-1])
        if dice.random() < 0.15:
            await store.sync()
            synced = list(blocks)
            sizes = {path.name: path.stat().st_size for path in segments(live)}
            flushed = copied(live, tmp_path / f"flushed-{turn}")
    cut = copied(live, tmp_path / "cut")
    await store.close()
    if dice.random() < 0.5:
        drop_index(cut)
        for path in flushed.glob("index.db*"):
            path.rename(cut / path.name)
        if not flushed.exists():
            synced = []
    for path in segments(cut):
        lose_pages(path, sizes.get(path.name, 0), dice)
    for _ in range(2):
        async with opened(cut) as store:
            await assert_serves(store, synced)
            served = [each for each in blocks if store.has(each[0])]
            await assert_serves(store, served)  # nothing half
            blocks.append(block(40 * KIB, 1000 + len(blocks)))
            await store.put(*blocks[-1])
            synced.append(blocks[-1])


def lose_pages(path: Path, kept: int, dice: random.Random) -> None:
    """Make zeros of some pages after `kept`, and let the file end somewhere there."""
    data = bytearray(path.read_bytes())
    for start in range(-(-kept // 4096) * 4096, len(data), 4096):
        if dice.random() < 0.2:
            data[start : start + 4096] = bytes(len(data[start : start + 4096]))
    path.write_bytes(data[: dice.randint(kept, len(data))])


# -- damage -------------------------------------------------------------------------------------


@pytest.mark.announce("bad block")
@pytest.mark.parametrize("size", [8 * KIB, 64 * KIB, MIB])
async def test_a_flipped_bit_is_found_and_a_good_copy_heals(tmp_path: Path, size: int) -> None:
    async with opened(tmp_path) as store:
        blocks = await fill(store, [size, size, size])
    bad = blocks[1]
    found = 0
    for path in [tmp_path / "index.db", *segments(tmp_path)]:
        at = path.read_bytes().find(bad[1][1000:1040])
        if at >= 0:
            flip(path, at)
            found += 1
    assert found == 1
    async with opened(tmp_path) as store:
        assert store.has(bad[0])  # as far as the index knows
        assert store.get_nowait(bad[0]) is None
        for _ in range(2):
            with pytest.raises(Corrupt):
                await store.get(bad[0])
            with pytest.raises(Corrupt):
                await store.read(bad[0], 0, 10)
        assert not store.has(bad[0])
        assert store.size(bad[0]) is None
        await assert_serves(store, [blocks[0], blocks[2]])
        assert await store.put(*bad)
        await assert_serves(store, blocks)
    async with opened(tmp_path) as store:
        await assert_serves(store, blocks)
        assert store.usage().block_count == 3


@pytest.mark.announce("bad block")
async def test_a_put_over_an_unknown_bad_copy_heals_it(tmp_path: Path) -> None:
    """`put` must not believe an index row when the caller has the bytes in hand."""
    async with opened(tmp_path) as store:
        blocks = await fill(store, [64 * KIB])
    flip(segments(tmp_path)[0], HEADER_BYTES + 500)
    async with opened(tmp_path) as store:
        assert await store.put(*blocks[0])
        await assert_serves(store, blocks)


@pytest.mark.announce("block index|cannot read further|is gone|reclaim")
@pytest.mark.parametrize("damage", ["deleted", "noise", "truncated", "page"])
async def test_a_lost_index_is_built_again(tmp_path: Path, damage: str) -> None:
    async with opened(tmp_path) as store:
        blocks = await fill(store, [17 * KIB + seed for seed in range(200)])
        small = await fill(store, [2 * KIB + seed for seed in range(50)])
        for digest, _ in blocks[:20]:
            await store.remove(digest)
    path = tmp_path / "index.db"
    if damage == "deleted":
        drop_index(tmp_path)
    elif damage == "noise":
        path.write_bytes(random.Random(1).randbytes(100 * KIB))
    elif damage == "truncated":
        os.truncate(path, path.stat().st_size // 2)
    else:  # the page of the schema's second table and those after it
        overwrite(path, 4096, bytes(8 * KIB))
        async with opened(tmp_path) as store:
            with pytest.raises(Corrupt):
                await assert_serves(store, blocks[20:])  # found out now, mended by the next start
    async with opened(tmp_path) as store:
        await assert_serves(store, blocks[20:])
        for digest, _ in blocks[:20]:
            assert not store.has(digest)  # removed before: does not come back
        saved = [each for each in small if store.has(each[0])]
        await assert_serves(store, saved)
        await store.put(*block(100 * KIB, 999))
        usage = store.usage()
    async with opened(tmp_path) as store:  # and stays
        await assert_serves(store, [*blocks[20:], *saved, block(100 * KIB, 999)])
        assert store.usage().block_count == usage.block_count
        assert store.usage().block_bytes == usage.block_bytes


@pytest.mark.announce("block index|is gone")
async def test_a_rebuilt_index_passes_over_damaged_headers(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        blocks = await fill(store, [20 * KIB] * 10)
    drop_index(tmp_path)
    flip(segments(tmp_path)[0], 3 * (20 * KIB + HEADER_BYTES) + 20)
    async with opened(tmp_path) as store:
        assert not store.has(blocks[3][0])
        await assert_serves(store, blocks[:3] + blocks[4:])


@pytest.mark.announce("segment 1 is gone")
async def test_a_lost_segment_loses_its_blocks_only(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        blocks = await fill(store, [20 * KIB, 100])
    segments(tmp_path)[0].unlink()
    async with opened(tmp_path) as store:
        assert not store.has(blocks[0][0])
        await assert_serves(store, blocks[1:])
        await store.put(*blocks[0])
        await assert_serves(store, blocks)


@pytest.mark.announce("bad block")
async def test_a_read_that_the_disk_refuses_is_corrupt(tmp_path: Path) -> None:
    """A directory in the place of a segment cannot even be opened."""
    async with opened(tmp_path) as store:
        blocks = await fill(store, [20 * KIB])
    store = await SegmentStore.open(RealWorld(), tmp_path)
    path = segments(tmp_path)[0]
    store._files.close()  # so that the next read opens it again
    path.unlink()
    path.mkdir()
    with pytest.raises(Corrupt):
        await store.get(blocks[0][0])
    assert not store.has(blocks[0][0])
    path.rmdir()
    store._index.close()


async def test_an_index_of_another_version_is_left_alone(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await fill(store, [20 * KIB, 100])
    path = tmp_path / "index.db"
    with path.open("r+b") as stream:
        stream.seek(60)
        stream.write((7).to_bytes(4, "big"))
    before = path.read_bytes()
    with pytest.raises(Misconfigured, match="of version 7"):
        await SegmentStore.open(RealWorld(), tmp_path)
    assert path.read_bytes() == before


# -- full disks ---------------------------------------------------------------------------------


async def test_a_disk_that_fills_up_during_an_append_harms_nothing(tmp_path: Path) -> None:
    """The file size limit of the process stands for ENOSPC: the write ends in its middle."""
    async with opened(tmp_path) as store:
        blocks = await fill(store, [20 * KIB, 30 * KIB])
        size = segments(tmp_path)[0].stat().st_size
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50 * KIB, hard))
        try:
            with pytest.raises(Full):
                await store.put(*block(100 * KIB, 5))
            assert segments(tmp_path)[0].stat().st_size == size
            blocks.append(block(20 * KIB, 6))
            await store.put(*blocks[-1])  # this one fits
            await assert_serves(store, blocks)
            assert not store.has(block(100 * KIB, 5)[0])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        blocks.append(block(100 * KIB, 5))
        await store.put(*blocks[-1])
    async with opened(tmp_path) as store:
        await assert_serves(store, blocks)


@contextmanager
def small_disk(path: Path) -> Iterator[None]:
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", path], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
async def test_a_really_full_disk(tmp_path: Path) -> None:
    """Large and small blocks until nothing more fits; then room is made."""
    disk = tmp_path / "disk"
    with small_disk(disk):
        async with opened(disk / "blocks") as store:
            stored: list[Block] = []
            refused = 0
            for seed in range(1600):
                each = block((30 * KIB, 9 * KIB)[seed % 2], seed)
                try:
                    await store.put(*each)
                    stored.append(each)
                except Full:
                    refused += 1
            assert refused
            assert sum(len(data) for _, data in stored) > 16 * MIB
            await assert_serves(store, stored)
            assert store.usage().capacity_bytes < 32 * MIB
            for digest, _ in stored[:200]:
                await store.remove(digest)
            await store.put(*block(30 * KIB, 1000))
            await assert_serves(store, [*stored[200:], block(30 * KIB, 1000)])
        async with opened(disk / "blocks") as store:
            await assert_serves(store, stored[200:])
