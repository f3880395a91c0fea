"""Blocks whose bytes left the page cache: the disk need not give what it was given."""

import os
from pathlib import Path

import pytest

from dfsfs.base.errors import Corrupt
from dfsfs.base.units import KIB, MIB
from tests.unit.blocks.test_store import evict, fill, flip, opened, segments


def rot(path: Path, offset: int) -> None:
    """Have the disk give another byte than it was given."""
    flip(path, offset)
    with path.open("r+b") as stream:
        os.fsync(stream)  # only clean pages can be dropped
    evict(path)


@pytest.mark.announce("bad block")
@pytest.mark.parametrize("size", [64 * KIB, MIB])
async def test_what_the_disk_gives_is_verified_again(tmp_path: Path, size: int) -> None:
    """Promise 15: a block that was good when it was put, or read before, may have rotted since."""
    async with opened(tmp_path) as store:
        (digest, data), other = await fill(store, [size, size])
        await store.sync()
        assert await store.read(digest, 1000, 40) == data[1000:1040]
        path = segments(tmp_path)[0]
        rot(path, path.read_bytes().find(data[2000:2040]))
        for offset in (1000, 2000):  # a part that is still good vouches for nothing
            with pytest.raises(Corrupt):
                await store.read(digest, offset, 40)
        assert not store.has(digest)
        assert await store.get(other[0]) == other[1]
        assert await store.put(digest, data)
        assert await store.get(digest) == data


async def test_what_is_read_of_one_block_brings_no_bytes_of_the_next(tmp_path: Path) -> None:
    """What the kernel reads ahead would be in the page cache without having been verified."""
    async with opened(tmp_path) as store:
        blocks = await fill(store, [256 * KIB] * 3)
        await store.sync()
        evict(segments(tmp_path)[0])
        assert await store.get(blocks[0][0]) == blocks[0][1]
        assert await store.get(blocks[1][0]) == blocks[1][1]
        assert store.read_nowait(blocks[2][0], 100 * KIB, 10) is None
