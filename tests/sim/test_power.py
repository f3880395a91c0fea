"""Power cuts: what each call has promised survives them (promises 8, 9 and 11)."""

import pytest

from dfsfs.base.units import KIB
from dfsfs.testing.simnode import SimNode
from dfsfs.testing.simulator import Simulation, simulate

CUTS = 6  # lives of each story; each loses something else

BIG = b"1" * 300 * KIB
SMALL = b"1" * 100
MIDDLE = b"1" * 10 * KIB  # a small block, which lives in the index


async def _power_returns(sim: Simulation, nodes: list[SimNode]) -> None:
    for node in nodes:
        await sim.restart(node)
    await sim.converge()


async def _fsynced(sim: Simulation) -> None:
    nodes = await sim.start_nodes(3)
    for name, data in (("/big", BIG), ("/small", SMALL), ("/middle", MIDDLE)):
        await nodes[0].fsynced(name, data)
    sim.power_cut()
    await _power_returns(sim, nodes)
    for node in nodes:
        assert await node.read("/big") == BIG
        assert await node.read("/small") == SMALL
        assert await node.read("/middle") == MIDDLE
    await sim.check()


@pytest.mark.announce("is gone with|bytes are gone|torn")
@pytest.mark.parametrize("seed", range(CUTS))
def test_what_was_fsynced_survives_a_power_cut_of_all_nodes(seed: int) -> None:
    simulate(seed, _fsynced)
