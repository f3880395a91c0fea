"""Blocks whose holders are away: who waits for them, and whom that costs what."""

from collections.abc import Awaitable

import pytest
import trio

from dfsfs.base.errors import Unavailable
from dfsfs.base.limits import FETCHES_MAX, HEDGE_S
from dfsfs.base.types import DigestKind, digest_of
from dfsfs.base.units import MIB
from dfsfs.cluster.fetch import METHOD_GET, RETRY_S
from dfsfs.net import Reply, Request, Session
from dfsfs.testing.fixtures import some_bytes
from dfsfs.testing.simulator import Simulation


async def test_blocks_that_nobody_in_reach_has_keep_nobody_from_others(sim: Simulation) -> None:
    """Promises 12 and 16: reading what is away, however much of it, slows down nothing else."""
    a, b, c = await sim.start_nodes(3, replicas=1, write_concern=1)
    data = some_bytes(MIB)
    await b.write("/here", data)
    await sim.converge()
    sim.crash(c)
    await sim.until(lambda: len(a.node.endpoint.sessions) == 1, within_s=9)
    async with trio.open_nursery() as nursery:

        async def read_what_is_away(number: int) -> None:
            digest = digest_of(DigestKind.BLAKE3, b"only on c: %d" % number)
            with pytest.raises(Unavailable):
                await a.node.cluster.storage.get(digest)

        for number in range(2 * FETCHES_MAX):
            nursery.start_soon(read_what_is_away, number)
        await trio.sleep(1.0)
        start_s = trio.current_time()
        assert await a.read("/here") == data
        assert trio.current_time() - start_s < 2 * HEDGE_S


async def test_a_reader_that_waits_has_its_block_as_soon_as_its_holder_is_back(
    sim: Simulation,
) -> None:
    """And asks those who are there, and have it not, seldom."""
    a, b, c = await sim.start_nodes(3)
    data = some_bytes(MIB // 4)
    digest = digest_of(DigestKind.BLAKE3, data)
    await c.node.store.put(digest, data)
    handlers = b.node.endpoint._handlers.calls
    get, asked = handlers[METHOD_GET], 0

    def counted(session: Session, request: Request) -> Reply | Awaitable[Reply]:
        nonlocal asked
        asked += 1
        return get(session, request)

    handlers[METHOD_GET] = counted
    sim.partition([a, b], [c])
    await sim.until(lambda: len(a.node.endpoint.sessions) == 1, within_s=9)
    async with trio.open_nursery() as nursery:
        back_at_s = 0.0

        async def come_back() -> None:
            nonlocal back_at_s
            await trio.sleep(18)
            sim.heal()
            await sim.until(lambda: len(a.node.endpoint.sessions) == 2, within_s=30)
            back_at_s = trio.current_time()

        nursery.start_soon(come_back)
        assert await a.node.cluster.storage.get(digest) == data
        assert not back_at_s or trio.current_time() - back_at_s < RETRY_S
    assert asked <= 10
