"""Starts that are interrupted, or meet a disk that cannot read."""

from pathlib import Path

import pytest

from dfsfs.base.errors import DfsError
from dfsfs.base.units import KIB
from dfsfs.runtime import Database
from tests.unit.blocks.test_store import assert_serves, fill, opened


@pytest.mark.announce("block index|is gone")
@pytest.mark.parametrize("segments", [0, 1])
async def test_a_start_that_fails_while_it_builds_an_index_loses_no_small_blocks(
    tmp_path: Path, segments: int
) -> None:
    """They are in the old index only, which is out of the way by then."""
    async with opened(tmp_path) as store:
        blocks = await fill(store, [2 * KIB + seed for seed in range(50)] + [20 * KIB] * segments)
    Database.mark_distrusted(tmp_path / "index.db")
    in_the_way = tmp_path / "segments" / "00000009.seg"
    in_the_way.mkdir()
    for _ in range(2):
        with pytest.raises(DfsError):
            async with opened(tmp_path):
                pass
    in_the_way.rmdir()
    async with opened(tmp_path) as store:
        await assert_serves(store, blocks)


@pytest.mark.announce("block index|is gone")
async def test_small_blocks_alone_are_found_where_an_index_was_put_aside(tmp_path: Path) -> None:
    """As a kill at that very moment leaves it."""
    async with opened(tmp_path) as store:
        blocks = await fill(store, [2 * KIB + seed for seed in range(50)])
    Database.set_aside(tmp_path / "index.db")
    async with opened(tmp_path) as store:
        await assert_serves(store, blocks)
