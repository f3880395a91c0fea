"""The list of files on too few nodes is true, whatever happens to one of them."""

import random

import trio

from dfsfs.base.codec import encode
from dfsfs.base.errors import Full
from dfsfs.base.limits import CALL_TIMEOUT_S, SHORT_CHECK_S
from dfsfs.base.types import ROOT_INODE
from dfsfs.base.units import MIB
from dfsfs.cluster.replicate import METHOD_LACKS, METHOD_PUT
from dfsfs.cluster.short import FACT
from dfsfs.net import Reply, Request, Session
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


async def test_the_list_survives_a_restart_but_for_what_is_gone(sim: Simulation) -> None:
    """Promise 8."""
    a, b = await sim.start_nodes(2)
    await sim.stop(b)
    await a.write("/kept", b"1" * MIB)
    inode = a.node.namespace.lookup(ROOT_INODE, b"kept").inode
    await trio.sleep(2 * SHORT_CHECK_S)  # the list has been written down
    a.node.members.set_fact(FACT, encode([[inode + 1, inode], 0]))
    sim.crash(a)
    await sim.restart(a)
    assert [file["path"] for file in a.node.cluster.upkeep.replication()["short_files"]] == ["kept"]


async def test_a_node_that_does_not_answer_keeps_the_list_from_no_step(sim: Simulation) -> None:
    """Promise 16: nor a file from leaving it that others have."""
    a, b, c = await sim.start_nodes(3)
    await sim.stop(b)

    async def silent(session: Session, request: Request) -> Reply:
        await trio.sleep_forever()
        raise AssertionError

    def full(session: Session, request: Request) -> Reply:
        raise Full("no space")

    c.node.endpoint._handlers.calls.update({METHOD_LACKS: silent, METHOD_PUT: full})
    for number in range(9):
        await a.write(f"/{number}", b"%d" % number * 10_000)
    (worker,) = (w for w in a.node.cluster.upkeep.workers if w.status.name == "short files")
    steps = worker.status.steps
    await trio.sleep(4 * CALL_TIMEOUT_S)
    assert worker.status.steps >= steps + 3
    await sim.restart(b)
    await sim.until(
        lambda: not a.node.cluster.upkeep.replication()["short_count"],
        within_s=15 * CALL_TIMEOUT_S,
    )
