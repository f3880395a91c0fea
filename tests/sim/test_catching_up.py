"""Stories of nodes that catch up, and of those that give them what they lack."""

import trio

from dfsfs.namespace import Change
from dfsfs.testing.fixtures import some_bytes
from dfsfs.testing.simnode import SimNode
from dfsfs.testing.simulator import Simulation


async def half_given(sim: Simulation) -> tuple[SimNode, SimNode, SimNode]:
    """The third has what the first did by way of the second, but not what the second did to that.

    The first is away. What the second does comes later, because it has done something before.
    """
    author, giver, taker = await sim.start_nodes(3)
    await author.mkdir("/d")
    await giver.write("/before", b"1")
    sim.crash(taker)
    await author.write("/d/old", b"precious")
    sim.crash(author)
    for number in range(10):
        await giver.write(f"/{number}", some_bytes(3000, number))
    await giver.rename("/d/old", "/d/new")
    sim.partition([giver], [taker])
    await sim.restart(taker)
    rows, wanted, given = taker.node.namespace, author.node.namespace, giver.node.namespace

    def cut(change: Change) -> None:
        if giver.incarnation == 0 and rows.held(wanted.origin) == wanted.position:
            sim.crash(giver)

    rows.subscribe(cut)
    sim.heal()
    await sim.until(lambda: not giver.up, within_s=30)
    assert rows.held(given.origin) < given.position, "it was cut too late"
    assert taker.names("/d") == []
    return author, giver, taker


async def test_a_giver_that_goes_away_half_way_hides_nothing(sim: Simulation) -> None:
    """Promises 4 and 13: a closed file is there on every connected mount."""
    author, giver, taker = await half_given(sim)
    await sim.restart(author)
    await sim.until(sim.all_connected, within_s=30)
    await trio.sleep(5)
    assert author.names("/d") == taker.names("/d") == ["old"]
    assert await taker.read("/d/old") == b"precious"
    await sim.restart(giver)
    await sim.converge()
    assert taker.names("/d") == ["new"]
    await sim.check()
    assert not any(node.node.namespace.gaps.possible for node in sim.up())


async def test_what_may_be_missing_is_known_after_a_crash(sim: Simulation) -> None:
    """Promise 11; and who restarts says it first, so nobody is counted before it is there."""
    author, giver, taker = await half_given(sim)
    sim.crash(taker)
    await sim.restart(author)
    await sim.restart(taker)
    await sim.until(sim.all_connected, within_s=30)
    assert taker.names("/d") == ["old"]
    newcomer = await sim.start_node()
    await sim.until(sim.all_connected, within_s=30)
    assert newcomer.names("/d") == ["old"]
    sim.crash(author)
    await sim.restart(giver)
    await sim.converge()
    assert newcomer.names("/d") == taker.names("/d") == ["new"]
    await sim.check()
