"""Flushes of the segment store while other things happen to its files."""

import resource
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
import trio

from dfsfs.base.limits import SEGMENT_BYTES
from dfsfs.base.units import MIB
from dfsfs.blocks import SegmentStore
from dfsfs.blocks.segments import SegmentFile
from dfsfs.runtime import RealWorld
from tests.unit.blocks.test_store import assert_serves, block, segments

T = TypeVar("T")


class HeldWorld(RealWorld):
    """Flushes of segment files wait until they are let go."""

    def __init__(self) -> None:
        super().__init__()
        self.flushing = trio.Event()
        self.let_go = trio.Event()
        self.flushed: list[int] = []  # segments

    async def run_blocking(self, function: Callable[..., T], *args: object) -> T:
        """Run it, later if it is such a flush."""
        file = getattr(function, "__self__", None)
        if isinstance(file, SegmentFile) and function.__name__ == "sync":
            self.flushing.set()
            await self.let_go.wait()
            self.flushed.append(file.number)
        return await super().run_blocking(function, *args)


async def test_a_segment_may_go_while_the_one_before_it_is_flushed(tmp_path: Path) -> None:
    """A small cache on a slow disk: what is fetched leaves again before a flush has ended."""
    count = SEGMENT_BYTES // (4 * MIB)
    world = HeldWorld()
    store = await SegmentStore.open(world, tmp_path)
    blocks = [block(4 * MIB, seed) for seed in range(2 * count + 1)]
    for each in blocks[: count + 1]:
        await store.put(*each)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.sync)
        await world.flushing.wait()
        for each in blocks[count + 1 : 2 * count]:
            await store.put(*each)
        nursery.start_soon(store.put, *blocks[2 * count])  # begins a segment, when that is flushed
        for digest, _ in blocks[count : 2 * count]:
            await store.remove(digest)
        world.let_go.set()
    await store.sync()
    await assert_serves(store, [*blocks[:count], blocks[2 * count]])
    await store.close()
    assert len(segments(tmp_path)) == 2


@pytest.mark.announce("the block index is damaged")  # a limit is not to be told from a fault
async def test_a_flush_that_cannot_be_noted_flushes_everything(tmp_path: Path) -> None:
    """Promise 9 where the log of the index takes no more; the limit stands for a full disk."""
    world = HeldWorld()
    world.let_go.set()
    store = await SegmentStore.open(world, tmp_path)
    for seed in range(SEGMENT_BYTES // (4 * MIB) + 1):
        await store.put(*block(4 * MIB, seed))
    await store.put(*block(100))  # in the index, which has to be flushed as well
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (tmp_path / "index.db-wal").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        await store.sync()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert world.flushed == [1, 2]
    await store.close()
