"""What was removed is forgotten, and nothing else is: stories of rounds, horizons and returns."""

import random

import pytest
import trio

from dfsfs.base.types import ROOT_INODE
from dfsfs.base.units import MIB
from dfsfs.testing.simnode import PROGRAM, SimNode
from dfsfs.testing.simulator import Simulation

HORIZON_S = 100.0
WAIT_S = 60.0  # for all rounds of nodes that reach each other


def dead(node: SimNode) -> int:
    return len(node.node.namespace.judge().inodes)


def forgetting(node: SimNode) -> dict[str, object]:
    report: dict[str, object] = node.node.status()["forgetting"]
    return report


async def make_and_remove(node: SimNode, count: int = 20) -> None:
    await node.mkdir("/gone")
    for number in range(count):
        await node.write(f"/gone/{number}", b"%d" % number)
    for number in range(count):
        await node.unlink(f"/gone/{number}")
    await node.rmdir("/gone")


async def test_all_forget_what_was_removed(sim: Simulation) -> None:
    nodes = await sim.start_nodes(3, horizon_s=HORIZON_S)
    a, b, c = nodes
    await b.write("/kept", b"kept")
    await make_and_remove(a)
    await sim.until(lambda: all(dead(node) == 21 for node in nodes), within_s=5)
    await sim.until(lambda: not any(map(dead, nodes)), within_s=WAIT_S)
    assert [forgetting(node)["forgotten"] for node in nodes] == [21, 21, 21]
    assert [forgetting(node)["snapshots_taken"] for node in nodes] == [0, 0, 0]
    await c.write("/gone", b"the name is free")
    await sim.converge()
    await sim.check()


async def test_a_member_that_is_away_is_waited_for_and_named(sim: Simulation) -> None:
    a, b, c = await sim.start_nodes(3, horizon_s=HORIZON_S)
    await a.write("/kept", b"kept")
    await sim.converge()
    await sim.stop(c)
    await make_and_remove(a)
    await sim.until(lambda: forgetting(a)["waiting_for"] == [c.name], within_s=WAIT_S)
    assert dead(a) == dead(b) == forgetting(a)["dead"] == 21
    await sim.restart(c)
    await sim.until(lambda: not any(map(dead, (a, b, c))), within_s=WAIT_S)
    assert forgetting(c)["snapshots_taken"] == 0
    await sim.converge()
    await sim.check()


async def test_a_removed_member_is_not_waited_for(sim: Simulation) -> None:
    a, b, c = await sim.start_nodes(3, horizon_s=1000.0)
    await sim.stop(c)
    await make_and_remove(a)
    async for _ in a.node.upkeep("peers", {"name": c.name}):
        pass
    await sim.until(lambda: dead(a) + dead(b) == 0, within_s=2 * WAIT_S)


async def test_beyond_the_horizon_nobody_is_waited_for_and_a_return_loses_nothing(
    sim: Simulation,
) -> None:
    a, b, c = await sim.start_nodes(3, horizon_s=HORIZON_S)
    for directory in ("/both", "/there"):
        await a.mkdir(directory)
    for path in ("/both/untouched", "/both/edited", "/both/renamed", "/there/untouched"):
        await a.write(path, path.encode())
    await sim.converge()
    sim.partition([a, b], [c])
    await c.write("/both/edited", b"edited far away")
    await c.rename("/both/renamed", "/both/another name")
    await c.write("/both/new", b"made far away")
    await c.write("/alone", b"in no directory that went")
    for path in ("/both/untouched", "/both/edited", "/both/renamed", "/there/untouched"):
        await a.unlink(path)
    await b.rmdir("/both")
    await b.rmdir("/there")
    await sim.until(lambda: dead(a) + dead(b) == 0, within_s=HORIZON_S + WAIT_S)
    assert forgetting(a)["beyond_horizon"] == [c.name]
    sim.heal()
    await sim.converge()
    assert forgetting(c)["snapshots_taken"] == 1
    for node in (a, b, c):
        assert node.names() == ["alone", "both"]
        assert node.names("/both") == ["another name", "edited", "new"]
        assert await node.read("/both/edited") == b"edited far away"
        assert await node.read("/both/another name") == b"/both/renamed"
        assert await node.read("/both/new") == b"made far away"
        assert node.node.namespace.check() == []
    await sim.until(lambda: not any(map(dead, (a, b, c))), within_s=WAIT_S)


async def test_groups_that_forgot_apart_lose_nothing(sim: Simulation) -> None:
    a, b, c, d = nodes = await sim.start_nodes(4, horizon_s=HORIZON_S)
    for name in ("1", "2", "3", "4"):
        await a.write(f"/{name}", name.encode())
    await sim.converge()
    sim.partition([a, b], [c, d])
    await a.unlink("/1")
    await a.unlink("/2")
    await b.write("/3", b"edited by b")
    await c.unlink("/3")
    await c.unlink("/1")
    await d.write("/2", b"edited by d")
    await sim.until(lambda: not any(map(dead, nodes)), within_s=HORIZON_S + WAIT_S)
    sim.heal()
    await sim.converge()
    for node in nodes:
        assert node.names() == ["2", "3", "4"]
        assert await node.read("/2") == b"edited by d"
        assert await node.read("/3") == b"edited by b"
        assert node.node.namespace.check() == []


async def test_a_newcomer_takes_a_snapshot_of_who_has_forgotten(sim: Simulation) -> None:
    a, b = await sim.start_nodes(2, horizon_s=HORIZON_S)
    await a.write("/kept", b"kept")
    await make_and_remove(a)
    await sim.until(lambda: dead(a) + dead(b) == 0, within_s=WAIT_S)
    newcomer = await sim.start_node(horizon_s=HORIZON_S)
    await sim.converge()
    assert newcomer.names() == ["kept"]
    assert dead(newcomer) == 0
    await newcomer.write("/new", b"new")
    await sim.converge()
    await sim.check()


async def test_clocks_of_the_wall_do_not_matter(sim: Simulation) -> None:
    """Promise 14."""
    a, b = await sim.start_nodes(2, horizon_s=HORIZON_S)
    await sim.stop(b)
    await make_and_remove(a)
    a.world.jump(3600 * 24 * 3650)
    await trio.sleep(HORIZON_S / 2)
    assert dead(a) == 21


@pytest.mark.announce("goes on as another incarnation")
async def test_a_crash_at_any_moment_loses_nothing(sim: Simulation) -> None:
    """Promise 11. Of who asks, who answers, who returns, and who gives the snapshot."""
    a, b, c = nodes = await sim.start_nodes(3, horizon_s=HORIZON_S)
    for number in range(5):
        await a.write(f"/{number}", b"%d" % number)
    await sim.converge()
    for turn in range(3):
        sim.partition([a, b], [c])
        await c.write(f"/{turn}", b"edited far away %d" % turn)
        await a.unlink(f"/{turn}")
        await make_and_remove(b, 3)
        await trio.sleep(HORIZON_S * 1.2)
        victim = nodes[turn % 3]
        sim.crash(victim)
        await sim.restart(victim)
        await trio.sleep(1 + turn)
        sim.heal()
        await trio.sleep(0.1 * turn)
        sim.power_cut(c if turn % 2 else a)
        await sim.restart(c if turn % 2 else a)
        await sim.converge()
    for node in nodes:
        assert node.names() == ["0", "1", "2", "3", "4"]
        for turn in range(3):
            assert await node.read(f"/{turn}") == b"edited far away %d" % turn
    await sim.until(lambda: not any(map(dead, nodes)), within_s=WAIT_S)


async def test_who_has_begun_to_apply_a_snapshot_needs_its_giver_no_more(sim: Simulation) -> None:
    """Nothing waits for ever: b has a part of it, c is below its floor, and a is gone for good."""
    a, b, c = await sim.start_nodes(3, horizon_s=HORIZON_S)
    await a.mkdir("/kept")
    for number in range(20):
        await a.write(f"/kept/{number}", b"%d" % number)
    await sim.converge()
    sim.partition([a], [b], [c])
    await make_and_remove(a)
    await b.write("/of b", b"b")
    await c.write("/of c", b"c")
    await sim.until(lambda: dead(a) == 0, within_s=HORIZON_S + WAIT_S)
    sim.heal()
    sim.partition([a, b], [c])
    begun = trio.Event()
    space = b.node.namespace
    space.subscribe(lambda change: None if space.is_whole else begun.set())
    with trio.fail_after(WAIT_S):
        await begun.wait()
    sim.crash(a)
    assert not space.is_whole
    sim.crash(b)
    await sim.restart(b)
    a.gone = True
    sim.heal()
    await sim.converge()
    for node in (b, c):
        assert node.names() == ["kept", "of b", "of c"]
        assert len(node.names("/kept")) == 20
    assert forgetting(c)["snapshots_taken"] == 1


async def test_what_a_mount_that_is_away_may_edit_is_not_collected(sim: Simulation) -> None:
    """Promise 13, of blocks that the one who edits does not hold. It goes when that one is back."""
    a, b, c = await sim.start_nodes(3, gc_grace_s=20.0, replicas=1, write_concern=1)
    removed, kept = random.Random(1).randbytes(4 * MIB), random.Random(2).randbytes(4 * MIB)
    await a.write("/removed", removed)
    await a.write("/kept", kept)
    filesystem = c.node.filesystem
    for name in (b"removed", b"kept"):  # the root of the tree, and what is read ahead
        opened = await filesystem.open(filesystem.lookup(ROOT_INODE, name).inode, 0, PROGRAM)
        await filesystem.read(opened.number, 0, 1)
        await filesystem.release(opened.number)
    await sim.converge()
    sim.partition([a, b], [c])
    await c.append("/kept", b"and more")
    await a.unlink("/removed")
    await a.unlink("/kept")
    await trio.sleep(200.0)
    sim.heal()
    await sim.converge()
    for node in (a, b, c):
        assert await node.read("/kept") == kept + b"and more"
    bytes_left = 1.5 * len(kept)  # with what is cached of it
    await sim.until(
        lambda: all(n.node.store.usage().block_bytes < bytes_left for n in (a, b, c)),
        within_s=WAIT_S,
        what="the other is collected",
    )


async def test_nobody_is_waited_for_when_space_is_needed(sim: Simulation) -> None:
    """Removing a file must help on a full disk, whoever is away."""
    capacity_bytes = 64 * MIB
    a, b, c = await sim.start_nodes(
        3, gc_grace_s=20.0, replicas=1, write_concern=1, capacity_bytes=capacity_bytes
    )
    await a.write("/old", random.Random(1).randbytes(3 * MIB))
    content = a.node.namespace.lookup(ROOT_INODE, b"old").content
    assert content.root is not None
    sim.partition([a, b], [c])
    await a.unlink("/old")
    await trio.sleep(100.0)
    assert a.node.store.has(content.root)
    await a.write("/new", random.Random(2).randbytes(49 * MIB))
    root = content.root
    await sim.until(lambda: not a.node.store.has(root), within_s=10)
    assert a.node.store.usage().block_bytes > capacity_bytes / 2


async def test_blocks_that_others_collected_come_back_with_an_edit(sim: Simulation) -> None:
    """Promises 13 and 10: the file was removed and collected everywhere else meanwhile."""
    a, b, c = await sim.start_nodes(3, horizon_s=HORIZON_S, gc_grace_s=20.0)
    old = random.Random(1).randbytes(MIB)
    await a.write("/file", old)
    await sim.converge()
    sim.partition([a, b], [c])
    await a.unlink("/file")
    await c.append("/file", b"and more")
    await trio.sleep(HORIZON_S * 1.5)
    assert a.node.store.usage().block_count == b.node.store.usage().block_count == 0
    sim.heal()
    await sim.converge(WAIT_S, restored=True)
    for node in (a, b, c):
        assert await node.read("/file") == old + b"and more"
    await sim.stop(c)
    assert await b.read("/file") == old + b"and more"
