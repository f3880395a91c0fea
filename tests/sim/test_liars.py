"""Members that have the key and say what makes no sense, or is not so: told as stories."""

import pytest
import trio

from dfsfs.base.limits import CALL_TIMEOUT_S, HEDGE_S
from dfsfs.base.types import DigestKind, digest_of
from dfsfs.base.units import MIB
from dfsfs.net import Reply, Request, Session
from dfsfs.testing.fixtures import some_bytes
from dfsfs.testing.simnode import SimNode
from dfsfs.testing.simulator import Simulation


def answer(node: SimNode, method: str, reply: object) -> None:
    """From now on a node answers calls of a method with this."""
    node.node.endpoint._handlers.calls[method] = lambda session, request: Reply(reply)


@pytest.mark.parametrize("nonsense", [[[1], {}], {}, [None, 3], "x"])
async def test_answers_that_make_no_sense_are_no_answers(sim: Simulation, nonsense: object) -> None:
    """Whether a block is there is asked of all; one that cannot say has it or has it not."""
    a, b, _ = await sim.start_nodes(3, replicas=2)
    for method in ("blocks.offer", "blocks.lacks"):
        answer(b, method, nonsense)
    for name in ("/x", "/same"):
        await a.write(name, some_bytes(MIB))
    a.node.cluster.upkeep.repairer.look_now()
    await trio.sleep(30)
    assert a.up
    assert await a.read("/x") == await a.read("/same") == some_bytes(MIB)


async def test_a_holder_that_never_gives_what_it_has_is_passed_by(sim: Simulation) -> None:
    """Promise 16: it answers everything else, so its session lives."""
    a, b, c = await sim.start_nodes(3, replicas=3)
    data = some_bytes(8 * MIB)
    await a.write("/x", data)
    await sim.converge()
    d = await sim.start_node(replicas=3)
    await sim.until(sim.all_connected, within_s=30)

    async def never(session: Session, request: Request) -> Reply:
        await trio.sleep_forever()
        raise AssertionError

    for node in (b, c):
        node.node.endpoint._handlers.calls["blocks.get"] = never
    start_s = trio.current_time()
    assert await d.read("/x") == data
    assert trio.current_time() - start_s < CALL_TIMEOUT_S + len(data) // MIB * 2 * HEDGE_S


async def test_a_peer_that_takes_no_block_holds_writers_up_once(sim: Simulation) -> None:
    """Promise 16: a disk that hangs, say, while everything else is answered."""
    a, b, c = await sim.start_nodes(3, replicas=2)

    async def never(session: Session, request: Request) -> Reply:
        await trio.sleep_forever()
        raise AssertionError

    b.node.endpoint._handlers.calls["blocks.put"] = never
    start_s = trio.current_time()
    for number in range(16):
        await a.write(f"/{number}", some_bytes(MIB // 4, number))
    took_s = trio.current_time() - start_s
    assert took_s < 1.5 * CALL_TIMEOUT_S
    for number in range(16):
        assert c.node.store.has(digest_of(DigestKind.BLAKE3, some_bytes(MIB // 4, number)))
