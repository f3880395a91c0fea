"""The list of files on too few nodes is true, whatever happens to one of them."""

import random

from dfsfs.base.codec import encode
from dfsfs.base.types import ROOT_INODE
from dfsfs.base.units import MIB
from dfsfs.cluster.short import FACT
from dfsfs.testing.simulator import Simulation


async def test_a_file_that_is_lost_keeps_no_other_on_the_list(sim: Simulation) -> None:
    """Promise 8."""
    a, b = await sim.start_nodes(2)
    sim.crash(b)
    for seed, path in enumerate(("/lost", "/kept")):
        await a.write(path, random.Random(seed).randbytes(MIB))
    root = a.node.namespace.lookup(ROOT_INODE, b"lost").content.root
    assert root is not None
    await a.node.store.remove(root)

    def listed() -> list[str]:
        return [file["path"] for file in a.node.cluster.upkeep.replication()["short_files"]]

    await sim.until(lambda: "kept" in listed(), within_s=60, what="both are known to be short")
    await sim.restart(b)
    await sim.until(lambda: listed() == ["lost"], within_s=120, what="the other is on two nodes")
    await a.unlink("/lost")
    await sim.until(lambda: listed() == [], within_s=60, what="what was removed is not missed")


async def test_a_file_that_is_forgotten_keeps_no_other_from_the_list_after_a_start(
    sim: Simulation,
) -> None:
    """Promise 8: the list is kept across restarts, and may be older than what it names."""
    a, b = await sim.start_nodes(2)
    sim.crash(b)
    await a.write("/kept", random.Random(1).randbytes(MIB))
    inode = a.node.namespace.lookup(ROOT_INODE, b"kept").inode
    a.node.members.set_fact(FACT, encode([[ROOT_INODE + 100, inode], 0]))
    sim.crash(a)
    await sim.restart(a)
    listed = [file["path"] for file in a.node.cluster.upkeep.replication()["short_files"]]
    assert listed == ["kept"]
