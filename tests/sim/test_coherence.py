"""Many mounts, one truth: exclusive calls, appends, leases, joining and losing each other.

The numbers are those of the promises.
"""

import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

import pytest
import trio

from dfsfs.base.errors import DfsError, Exists, NotFound, ReadOnly
from dfsfs.base.limits import LEASE_TIMEOUT_S, SESSION_LEASE_S
from dfsfs.base.types import ROOT_INODE
from dfsfs.base.units import KIB
from dfsfs.testing import checkers
from dfsfs.testing.simnode import PROGRAM, SimNode
from dfsfs.testing.simulator import Simulation


async def together(*calls: Callable[[], Awaitable[object]]) -> list[type[DfsError] | None]:
    """Make all calls at once; the class of what each failed with."""
    results: list[type[DfsError] | None] = [None] * len(calls)

    async def one(place: int, call: Callable[[], Awaitable[object]]) -> None:
        try:
            await call()
        except DfsError as error:
            results[place] = type(error)

    async with trio.open_nursery() as nursery:
        for place, call in enumerate(calls):
            nursery.start_soon(one, place, call)
    return results


def requests(*nodes: SimNode) -> int:
    """Lease requests sent so far."""
    return sum(node.node.cluster.leases.statistics.requests for node in nodes)


# -- exclusive ------------------------------------------------------------------------------------


async def test_of_many_who_make_one_directory_one_succeeds(sim: Simulation) -> None:
    """Promise 5."""
    nodes = await sim.start_nodes(4)
    for round_ in range(12):
        results = await together(*(partial(n.mkdir, f"/{round_}") for n in nodes))
        assert sorted(map(str, results)) == sorted(map(str, [None, Exists, Exists, Exists]))
    await sim.converge()
    assert nodes[0].node.namespace.conflicts(None, 10) == []


async def test_of_many_who_create_one_name_exclusively_one_succeeds(sim: Simulation) -> None:
    """Promise 5."""
    nodes = await sim.start_nodes(3)
    for round_ in range(12):
        calls = [partial(n.create, "/lock", n.name.encode()) for n in nodes]
        results = await together(*calls)
        winner = nodes[results.index(None)]
        assert results.count(None) == 1
        assert await nodes[round_ % 3].read("/lock") == winner.name.encode()
        await nodes[(round_ + 1) % 3].unlink("/lock")
    await sim.converge()
    assert not checkers.shared_wins(sim.history)


async def test_one_name_is_removed_once(sim: Simulation) -> None:
    """Promise 5."""
    nodes = await sim.start_nodes(3)
    for round_ in range(8):
        await nodes[round_ % 3].mkdir("/d")
        results = await together(*(partial(n.rmdir, "/d") for n in nodes))
        assert results.count(None) == 1
        assert results.count(NotFound) == 2


async def test_nothing_is_created_in_a_directory_that_is_removed(sim: Simulation) -> None:
    """Promise 5: rmdir and create in it; one of them fails."""
    a, b, _ = await sim.start_nodes(3)
    for _ in range(8):
        await a.mkdir("/d")
        results = await together(partial(a.rmdir, "/d"), partial(b.create, "/d/x", b"1"))
        assert results.count(None) == 1, results
        if results[0] is not None:
            await b.unlink("/d/x")
            await a.rmdir("/d")
    await sim.converge()


async def test_two_moves_at_a_time_make_no_circle(sim: Simulation) -> None:
    """Promise 5."""
    a, b, _ = await sim.start_nodes(3)
    for round_ in range(6):
        one, two = f"/{round_}.1", f"/{round_}.2"
        await a.mkdir(one)
        await b.mkdir(two)
        results = await together(
            partial(a.rename, one, f"{two}/x"), partial(b.rename, two, f"{one}/x")
        )
        assert results.count(None) == 1
    await sim.converge()


async def test_a_replaced_name_is_seen_by_one_rename_at_a_time(sim: Simulation) -> None:
    """Promises 1 and 5: whoever renames over a name replaces what is there, and nothing is left."""
    nodes = await sim.start_nodes(3)
    for round_ in range(8):
        for node in nodes:
            await node.write(f"/{node.name}", f"{node.name} {round_}".encode())
        moves = [partial(n.rename, f"/{n.name}", "/x") for n in nodes]
        assert await together(*moves) == [None] * 3
        assert nodes[0].names() == ["x"]
    await sim.converge()
    await sim.check()


# -- appends --------------------------------------------------------------------------------------


async def test_appends_of_many_at_once_are_all_there(sim: Simulation) -> None:
    """Promise 1 across mounts: no record is lost or torn."""
    nodes = await sim.start_nodes(3)
    await nodes[0].write("/log", b"")

    async def append(node: SimNode) -> None:
        for number in range(25):
            await node.append("/log", f"{node.name} {number:04} {'.' * 300}\n".encode())

    async with trio.open_nursery() as nursery:
        for node in nodes:
            nursery.start_soon(append, node)
    lines = (await nodes[1].read("/log")).decode().splitlines()
    assert len(lines) == 75
    for node in nodes:
        own = [line for line in lines if line.startswith(node.name)]
        assert own == [f"{node.name} {number:04} {'.' * 300}" for number in range(25)]
    await sim.converge()


async def test_what_is_written_and_not_closed_goes_with_the_lease(sim: Simulation) -> None:
    """An open file with bytes not yet committed: another mount's append comes after them."""
    a, b, _ = await sim.start_nodes(3)
    await a.write("/log", b"0\n")
    filesystem = a.node.filesystem
    inode = filesystem.lookup(ROOT_INODE, b"log").inode
    opened = await filesystem.open(inode, 0o2001, PROGRAM)
    await filesystem.write(opened.number, 0, b"1\n")
    await b.append("/log", b"2\n")
    await filesystem.write(opened.number, 0, b"3\n")
    await filesystem.flush(opened.number)
    await filesystem.release(opened.number)
    assert await b.read("/log") == b"0\n1\n2\n3\n"
    assert a.node.cluster.leases.statistics.written_back == 1


# -- what it costs --------------------------------------------------------------------------------


async def test_who_works_below_a_directory_of_its_own_asks_nobody(sim: Simulation) -> None:
    nodes = await sim.start_nodes(3)
    for node in nodes:
        await node.mkdir(f"/{node.name}")
    before = requests(*nodes)
    for node in nodes:
        for number in range(5):
            await node.mkdir(f"/{node.name}/{number}")
            await node.write(f"/{node.name}/{number}/x", b"1")
            await node.rename(f"/{node.name}/{number}/x", f"/{node.name}/{number}/y")
    assert requests(*nodes) == before


async def test_a_single_writer_asks_once(sim: Simulation) -> None:
    nodes = await sim.start_nodes(3)
    await nodes[0].mkdir("/d")
    writer = nodes[2]
    await writer.write("/d/0", b"1")
    before = requests(*nodes)
    for number in range(10):
        await writer.write(f"/d/{number}", b"2")
    assert requests(*nodes) == before


# -- losing each other ----------------------------------------------------------------------------


async def test_who_is_cut_off_knows_before_the_others_go_on(sim: Simulation) -> None:
    """Promise 4: while a mount believes that it is connected, it is shown what was closed."""
    a, b, c = await sim.start_nodes(3)
    await a.write("/x", b"old")
    sim.partition([a, c], [b])
    start_s = trio.current_time()
    await a.write("/x", b"new")
    waited_s = trio.current_time() - start_s
    assert SESSION_LEASE_S / 2 < waited_s < 2 * SESSION_LEASE_S
    assert a.identity.node_id not in b.node.endpoint.sessions
    assert await c.read("/x") == b"new"


async def test_what_builds_on_rows_of_who_is_not_connected_is_shown(sim: Simulation) -> None:
    """Promise 4: a file in a directory whose maker only the writer of the file can reach."""
    a, b, c = await sim.start_nodes(3)
    sim.partition([c], [a, b])
    await c.mkdir("/d")
    sim.heal()
    sim.partition([c], [b])
    await sim.until(lambda: a.names("/") == ["d"], within_s=60)
    await a.write("/d/f", b"1")
    assert await b.read("/d/f") == b"1"


async def test_a_holder_that_dies_frees_its_leases(sim: Simulation) -> None:
    a, b, c = await sim.start_nodes(3)
    await a.mkdir("/d")
    await c.write("/d/x", b"1")
    sim.crash(c)
    start_s = trio.current_time()
    await b.write("/d/y", b"2")
    assert trio.current_time() - start_s < 2 * SESSION_LEASE_S
    await sim.restart(c)
    await sim.converge()
    await c.write("/d/z", b"3")
    assert a.names("/d") == ["x", "y", "z"]


async def test_no_wait_is_longer_than_its_bound(sim: Simulation) -> None:
    """Promise 16: a slow peer, and one that comes and goes."""
    nodes = await sim.start_nodes(3)
    await nodes[0].mkdir("/d")
    sim.slow(nodes[1], 0.4)
    for round_ in range(6):
        calls = [partial(n.create, f"/d/{round_}", b"1") for n in nodes]
        results = await together(*calls)
        assert results.count(None) == 1
    assert not checkers.slow_calls(sim.history, LEASE_TIMEOUT_S)


async def test_a_partition_in_the_middle_of_a_fight(sim: Simulation) -> None:
    """Promises 5 and 13: exclusive while connected, merged afterwards."""
    nodes = await sim.start_nodes(3)
    dice = random.Random(1)

    async def fight(node: SimNode) -> None:
        for round_ in range(40):
            with suppress(DfsError):
                await node.create(f"/{round_}", f"{node.name} {round_}".encode())
            await trio.sleep(dice.uniform(0, 0.3))

    async with trio.open_nursery() as nursery:
        for node in nodes:
            nursery.start_soon(fight, node)
        await trio.sleep(2)
        sim.partition(nodes[:1], nodes[1:])
        await trio.sleep(4)
        sim.heal()
    await sim.converge()
    await sim.check()
    assert not checkers.shared_wins(sim.history)


async def test_dirty_bytes_that_meet_a_newer_version_are_kept_beside_it(sim: Simulation) -> None:
    """Promise 13: what was closed elsewhere meanwhile is not overwritten unseen."""
    a, b, _ = await sim.start_nodes(3)
    await a.write("/x", b"old" * KIB)
    filesystem = a.node.filesystem
    inode = filesystem.lookup(ROOT_INODE, b"x").inode
    opened = await filesystem.open(inode, 0o1, PROGRAM)
    sim.partition([a], sim.nodes[1:])
    await sim.until(lambda: not a.node.endpoint.sessions, within_s=10)
    await trio.sleep(SESSION_LEASE_S)
    await filesystem.write(opened.number, 0, b"from a")
    await b.write("/x", b"from b")
    sim.heal()
    await sim.until(sim.all_connected, within_s=60)
    await filesystem.flush(opened.number)
    await filesystem.release(opened.number)
    await sim.converge()
    contents = [await b.read(f"/{name}") for name in b.names()]
    assert len(contents) == 2
    assert b"from b" in contents
    assert b"from a" + (b"old" * KIB)[6:] in contents


@pytest.mark.parametrize("seed", range(6))
async def test_a_fight_for_everything(sim: Simulation, seed: int) -> None:
    """Random exclusive calls on few names by all; the local rules hold for all together."""
    nodes = await sim.start_nodes(3)
    dice = random.Random(seed)
    made = dict.fromkeys(map(str, range(3)), 0)

    async def program(node: SimNode, mine: random.Random) -> None:
        for _ in range(30):
            name = str(mine.randrange(3))
            with suppress(DfsError):
                if mine.random() < 0.5:
                    await node.mkdir(f"/{name}")
                    made[name] += 1
                else:
                    await node.rmdir(f"/{name}")
                    made[name] -= 1
            await trio.sleep(mine.choice((0, 0, 0.001, 0.01)))

    async with trio.open_nursery() as nursery:
        for node in nodes:
            nursery.start_soon(program, node, random.Random(dice.random()))
    for name, count in made.items():
        assert count == nodes[0].exists(f"/{name}"), f"{name} was made {count} times more"
    await sim.converge()


# -- partitions -----------------------------------------------------------------------------------


@pytest.mark.announce("read-only")
async def test_a_minority_may_be_told_to_change_nothing(sim: Simulation) -> None:
    """Promise 12: `--on-partition readonly`."""
    a, b, c = await sim.start_nodes(3, on_partition="readonly")
    await a.write("/x", b"old")
    sim.partition([a], [b, c])
    await sim.until(lambda: a.node.cluster.leases.read_only, within_s=10)
    for call in (
        partial(a.write, "/x", b"new"),
        partial(a.mkdir, "/d"),
        partial(a.rename, "/x", "/y"),
        partial(a.unlink, "/x"),
    ):
        with pytest.raises(ReadOnly):
            await call()
    assert await a.read("/x") == b"old"
    await b.write("/x", b"from b")
    await c.mkdir("/d")
    assert a.node.cluster.partition.status()["state"] == "minority"
    assert b.node.cluster.partition.status()["state"] == "majority"
    sim.heal()
    await sim.until(sim.all_connected, within_s=60)
    await a.write("/x", b"new")
    assert await c.read("/x") == b"new"
    await sim.converge()
    await sim.check()


@pytest.mark.announce("read-only")
async def test_of_two_equal_halves_one_goes_on(sim: Simulation) -> None:
    """Promise 12."""
    a, b = await sim.start_nodes(2, on_partition="readonly")
    sim.partition([a], [b])
    await sim.until(
        lambda: a.node.cluster.leases.read_only or b.node.cluster.leases.read_only, within_s=10
    )
    await trio.sleep(2 * SESSION_LEASE_S)
    first, second = sorted((a, b), key=lambda node: node.identity.node_id)
    assert not first.node.cluster.leases.read_only
    assert second.node.cluster.leases.read_only


async def test_calls_need_not_wait_for_other_mounts(sim: Simulation) -> None:
    """`--visibility async`: exclusive all the same."""
    nodes = await sim.start_nodes(3, visibility="async", write_concern=1)
    await nodes[0].mkdir("/d")
    await sim.until(lambda: nodes[1].exists("/d"), within_s=10)
    for node in nodes:
        sim.slow(node, 0.2)
    start_s = trio.current_time()
    await nodes[0].write("/d/x", b"1")
    assert trio.current_time() - start_s < 0.1
    results = await together(*(partial(n.mkdir, "/d/lock") for n in nodes))
    assert results.count(None) == 1
    await sim.converge()
