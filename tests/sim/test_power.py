"""Power cuts: what each call has promised survives them (promises 8, 9 and 11).

SIM_POWER: how many random lives (default 12), SIM_FIRST: the first of them.
"""

import datetime
import os
from collections.abc import Awaitable, Callable

import pytest
import trio

from dfsfs.base.errors import DfsError
from dfsfs.base.limits import SESSION_LEASE_S
from dfsfs.base.types import ROOT_INODE
from dfsfs.base.units import KIB
from dfsfs.node import Node
from dfsfs.runtime import failures_in
from dfsfs.testing import planted
from dfsfs.testing.outage import Versions, power_life
from dfsfs.testing.simnode import PROGRAM, SimNode
from dfsfs.testing.simulator import Simulation, simulate

CUTS = 6  # lives of each story; each loses something else
LIVES = int(os.environ.get("SIM_POWER", "12"))
FIRST = int(os.environ.get("SIM_FIRST", str(datetime.date.today().toordinal() * 1000)))

BIG = b"1" * 300 * KIB
OLD, NEW = b"old" * 100 * KIB, b"new" * 100 * KIB

losses = pytest.mark.announce(
    "is gone with|bytes are gone|torn|another incarnation|was not flushed and no node has it"
)


async def _power_returns(sim: Simulation, nodes: list[SimNode]) -> None:
    for node in nodes:
        await sim.restart(node)
    await sim.converge(within_s=120)


async def _fsynced(sim: Simulation) -> None:
    nodes = await sim.start_nodes(3)
    files = {"/big": BIG, "/small": b"1" * 100, "/middle": b"1" * 10 * KIB}
    for name, data in files.items():
        await nodes[0].fsynced(name, data)
    sim.power_cut()
    await _power_returns(sim, nodes)
    for node in nodes:
        for name, data in files.items():
            assert await node.read(name) == data


async def _fsynced_and_writer_lost(sim: Simulation) -> None:
    """What fsync has on stable storage here it has there, too (promise 9)."""
    nodes = await sim.start_nodes(3)
    await nodes[0].fsynced("/x", BIG)
    sim.power_cut()
    await _power_returns(sim, nodes[1:])
    for node in nodes[1:]:
        assert await node.read("/x") == BIG


async def _fsync(node: SimNode, name: str) -> None:
    """Of what was closed before."""
    filesystem = node.node.filesystem
    inode = filesystem.lookup(ROOT_INODE, name.encode()).inode
    opened = await filesystem.open(inode, os.O_RDONLY, PROGRAM)
    await filesystem.fsync(opened.number)
    await filesystem.release(opened.number)


async def _fsynced_after_the_holder_was_away(sim: Simulation, *, loses_power: bool) -> None:
    nodes = await sim.start_nodes(3, replicas=2)
    writer, *others = nodes
    names = [f"{number}" for number in range(6)]
    for name in names:
        await writer.write(f"/{name}", name.encode() * 300 * KIB)
    sim.partition([writer], others)
    await trio.sleep(2 * SESSION_LEASE_S)
    for node in others if loses_power else []:
        sim.power_cut(node)
        await sim.restart(node)
    sim.heal()
    await sim.until(sim.all_connected, within_s=60)
    for name in names:
        await _fsync(writer, name)
    sim.power_cut()
    await _power_returns(sim, others)
    for node in others:
        for name in names:
            assert await node.read(f"/{name}") == name.encode() * 300 * KIB


async def _fsynced_after_a_cut(sim: Simulation) -> None:
    """Blocks that a peer took in a session that ended are on its disk after an fsync as well."""
    await _fsynced_after_the_holder_was_away(sim, loses_power=False)


async def _fsynced_after_holders_lost_power(sim: Simulation) -> None:
    """Blocks that a peer took and lost before it flushed them are put there again."""
    await _fsynced_after_the_holder_was_away(sim, loses_power=True)


async def _stopped(sim: Simulation) -> None:
    """Who says that it has ended in good order has flushed blocks as well as rows."""
    (node,) = await sim.start_nodes(1)
    for flushes in range(1, 9):
        name = f"/{flushes}"
        await node.write(name, BIG)
        origin = node.node.origin
        sim.power_cut_in_flush(node, flushes)
        await sim.stop(node)
        await sim.restart(node)
        if node.node.origin == origin:  # it takes no other, so it believes in its past
            assert await node.read(name) == BIG


async def _closed(sim: Simulation) -> None:
    nodes = await sim.start_nodes(2)
    await trio.sleep(1)
    await nodes[0].write("/x", BIG)
    sim.power_cut(nodes[0])
    await _power_returns(sim, nodes[:1])
    for node in nodes:
        assert await node.read("/x") == BIG


async def _rows_are_flushed(nodes: list[SimNode]) -> None:
    """An fsync of something else flushes all rows a node has, and only the blocks it has."""
    for node in nodes:
        await node.fsynced(f"/of {node.name}", b"1")


async def _rewritten(sim: Simulation) -> None:
    """The row of what was only closed may survive, and its blocks not: then the old bytes stay."""
    nodes = await sim.start_nodes(4, write_concern=1, replicas=1)
    await nodes[0].fsynced("/x", OLD)
    await nodes[1].write("/x", NEW)
    await _rows_are_flushed(nodes[2:])
    sim.power_cut()
    await _power_returns(sim, nodes)
    assert {await node.read("/x") for node in nodes} < {OLD, NEW}


async def _replaced(sim: Simulation) -> None:
    """The idiom of editors that do not fsync: the old file or the new one, never none."""
    nodes = await sim.start_nodes(4, write_concern=1, replicas=1)
    await nodes[0].fsynced("/x", OLD)
    await nodes[1].write("/draft", NEW)
    await nodes[1].rename("/draft", "/x")
    await _rows_are_flushed(nodes[2:])
    sim.power_cut()
    await _power_returns(sim, nodes)
    assert {await node.read("/x") for node in nodes} < {OLD, NEW}


async def _flush_nothing() -> None:
    await trio.lowlevel.checkpoint()


async def _versions_apart(sim: Simulation) -> list[SimNode]:
    """A file has a conflict copy, all power is lost, and of both versions nobody has all blocks."""
    nodes = await sim.start_nodes(4, write_concern=1, replicas=1)
    one, other, *rest = nodes
    await one.fsynced("/x", OLD)
    sim.partition([one], [other, *rest])
    await sim.until(lambda: not one.node.endpoint.sessions, within_s=10)
    for node in one, other:
        node.node.cluster.publication.flush_local = _flush_nothing  # type: ignore[method-assign]
        await node.write("/x", node.name.encode() * 300 * KIB)
    sim.heal()
    await sim.until(lambda: len(rest[0].names()) == len(rest[1].names()) == 2, within_s=60)
    await _rows_are_flushed(rest)
    sim.power_cut()
    return nodes


async def _conflict(sim: Simulation) -> None:
    """A conflict copy that is lost is empty then, as a new file is on ext4; it can be read."""
    nodes = await _versions_apart(sim)
    await _power_returns(sim, nodes)
    await sim.check()


async def _conflict_resolved(sim: Simulation) -> None:
    """Also if the copy is made a file of its own before anybody has seen that it is lost."""
    nodes = await _versions_apart(sim)
    for node in nodes:
        await sim.restart(node)
    await sim.until(sim.all_connected, within_s=60)
    await nodes[2].write("/x", NEW)
    await sim.converge(within_s=120)
    await sim.check()


async def _strangers(sim: Simulation) -> None:
    """Nodes that all lose power know each other afterwards."""
    nodes = await sim.start_nodes(3)
    await trio.sleep(1)
    sim.power_cut()
    await _power_returns(sim, nodes)


@losses
@pytest.mark.parametrize("seed", range(CUTS))
@pytest.mark.parametrize(
    "story",
    [
        _fsynced,
        _fsynced_and_writer_lost,
        _fsynced_after_a_cut,
        _fsynced_after_holders_lost_power,
        _stopped,
        _closed,
        _rewritten,
        _replaced,
        _conflict,
        _conflict_resolved,
        _strangers,
    ],
)
def test_power_cuts(story: Callable[[Simulation], Awaitable[None]], seed: int) -> None:
    simulate(seed, story)


async def _settled(sim: Simulation) -> None:
    nodes = await sim.start_nodes(3)
    await nodes[0].write("/x", BIG)
    assert all(node.node.namespace.fallbacks.count() for node in nodes)
    await sim.until(
        lambda: not any(node.node.namespace.fallbacks.count() for node in nodes),
        within_s=15,
        what="all know that what was closed is flushed",
    )
    # So now even that survives a power cut of all.
    sim.power_cut()
    await _power_returns(sim, nodes)
    assert await nodes[1].read("/x") == BIG


@losses
@pytest.mark.parametrize("seed", range(CUTS))
def test_what_was_closed_is_flushed_soon_and_all_hear_of_it(seed: int) -> None:
    simulate(seed, _settled)


@losses
@pytest.mark.parametrize("seed", range(FIRST, FIRST + LIVES))
def test_random_power_cuts(seed: int) -> None:
    simulate(seed, power_life)


# -- it notices -----------------------------------------------------------------------------------


class FlushesNothing(Node):
    """A node whose fsync returns without flushing, its own and that it does for others."""

    async def _flush(self) -> None:
        await trio.lowlevel.checkpoint()


class FlushesRowsOnly(Node):
    """A node that flushes names and forgets the blocks."""

    async def _flush(self) -> None:
        await self.world.run_blocking(self._state.namespace.sync)


class FlushesForNobodyElse(Node):
    """A node that tells its peers that it has flushed, and has not."""

    def _build(self) -> None:
        super()._build()
        self.cluster.publication.flush_local = _flush_nothing  # type: ignore[method-assign]


class Hasty(planted.Hasty):
    """A node whose calls return before anybody else has what they wrote."""

    def _build(self) -> None:
        super()._build()
        self.cluster.replicator.begin = (  # type: ignore[method-assign]
            lambda digest, data, *, new, flight: self.cluster.replicator.budget.release(len(data))
        )


class FallsBackToNothing(Node):
    """A node that forgets what a file had as soon as it is written over."""

    def _build(self) -> None:
        super()._build()
        database = self._state.namespace
        self.namespace.subscribe(lambda change: database.execute("DELETE FROM fallback"))


@losses
@pytest.mark.parametrize(
    ("bug", "story"),
    [
        (FlushesNothing, _fsynced),
        (FlushesNothing, power_life),
        (FlushesRowsOnly, _fsynced),
        (FlushesForNobodyElse, _fsynced_and_writer_lost),
        (Hasty, _closed),
        (FallsBackToNothing, _rewritten),
        (FallsBackToNothing, _replaced),
    ],
)
def test_it_notices_a_node_that(
    bug: type[Node], story: Callable[[Simulation], Awaitable[object]]
) -> None:
    said: list[str] = []  # without the bug the tests above have nothing to say
    for seed in range(40):
        try:
            simulate(seed, story, node_type=bug)
        except* (AssertionError, DfsError) as errors:
            said += [str(error) for error in failures_in(errors)]
        if said:
            return
    raise AssertionError("nobody noticed")


def test_versions_know_what_each_call_promised() -> None:
    def written() -> Versions:
        versions = Versions()
        for data, done in ((b"1", versions.synced), (b"2", versions.closed), (b"3", None)):
            versions.begin(data)
            if done is not None:
                done()
        return versions

    for data, all_cut, good in (
        (b"", True, False), (b"1", True, True), (b"2", True, True), (b"3", True, True),
        (b"1", False, False), (b"2", False, True), (b"3", False, True), (b"4", False, False),
    ):  # fmt: skip
        assert (written().found(data, all_cut=all_cut) == "") == good
