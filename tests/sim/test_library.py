"""Streams by key, told as stories: the library's face owes what a mount owes."""

from collections.abc import AsyncIterator

import pytest
import trio

from dfsfs.base.errors import Full
from dfsfs.base.units import MIB
from dfsfs.testing.fixtures import some_bytes
from dfsfs.testing.simulator import Simulation

GRACE_S = 60.0


async def stream(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def test_a_stream_that_is_read_keeps_its_blocks_everywhere(sim: Simulation) -> None:
    """Promise 18: it is an open file, whoever removes the name meanwhile."""
    a, _, c = await sim.start_nodes(3, gc_grace_s=GRACE_S, replicas=2)
    data = some_bytes(4 * MIB)
    await a.node.put("file", stream(data))
    await sim.converge()
    async with c.node.get("file") as pieces:
        found = b""
        async for piece in pieces:
            if not found:
                await a.node.remove("file")
                await trio.sleep(5 * GRACE_S)
            found += piece
    assert found == data
    nodes = [node.node.store for node in sim.up()]
    await sim.until(
        lambda: not any(store.usage().block_count for store in nodes), within_s=6 * GRACE_S
    )


async def test_what_is_left_of_a_full_disk_is_for_removals(sim: Simulation) -> None:
    """Small files need no blocks, but rows."""
    (a,) = await sim.start_nodes(1)
    await a.node.put("old", stream(b"1"))
    a.node._reserve._size_bytes = 1 << 60  # something else fills its disk
    with pytest.raises(Full):
        await a.node.put("new", stream(b"2"))
    await a.node.remove("old")
    assert a.names() == []


async def test_a_store_that_is_full_is_that_error_and_no_other(sim: Simulation) -> None:
    """Blocks of a stream are stored several at a time; who put it catches what is documented."""
    (a,) = await sim.start_nodes(1, capacity_bytes=64 * MIB)
    with pytest.raises(Full):
        await a.node.put("large", stream(some_bytes(80 * MIB)))
    assert a.names() == []
