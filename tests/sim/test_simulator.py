"""The simulation itself: it repeats itself, and it notices when something is wrong.

Each planted bug is a way in which a node could break a promise. A simulation that would not see it
proves nothing by being green.
"""

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from dfsfs.base.errors import Unavailable
from dfsfs.base.limits import SESSION_LEASE_S
from dfsfs.base.types import ROOT_INODE, ContentRef
from dfsfs.base.units import KIB, NS_PER_S
from dfsfs.testing import checkers, copies
from dfsfs.testing.faults import HARM
from dfsfs.testing.history import Call, History
from dfsfs.testing.simnode import Crashed, SimNode
from dfsfs.testing.simulator import Simulation, simulate
from dfsfs.testing.workload import FAULTS, mix_of, random_life
from dfsfs.testing.world import EPOCH_NS, SimWorld

SEED = 3
SECONDS = 10.0


# -- it repeats itself ----------------------------------------------------------------------------


async def _short_life(sim: Simulation) -> str:
    return await random_life(sim, seconds=SECONDS)


def test_equal_seeds_give_equal_runs_and_others_do_not() -> None:
    first = simulate(SEED, _short_life)
    assert simulate(SEED, _short_life) == first
    assert simulate(SEED + 1, _short_life) != first


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_a_run_is_the_same_in_another_process_with_other_hashes(hash_seed: str) -> None:
    program = (
        "from dfsfs.testing.simulator import simulate\n"
        "from dfsfs.testing.workload import random_life\n"
        f"print(simulate({SEED}, lambda sim: random_life(sim, seconds={SECONDS})))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == simulate(SEED, _short_life)


async def test_stories_run_in_simulated_time(sim: Simulation) -> None:
    start_s = trio.current_time()
    await trio.sleep(7 * 24 * 3600.0)
    assert trio.current_time() - start_s == 7 * 24 * 3600.0


def test_seeds_differ_in_what_they_try() -> None:
    mixes = [mix_of(Simulation(seed).dice, 60.0) for seed in range(100)]
    for name in FAULTS:
        absent = sum(not mix.rates[name] for mix in mixes)
        assert 0 < absent < len(mixes), name
    assert {mix.harm for mix in mixes} == {"", *HARM}


# -- its twins ------------------------------------------------------------------------------------


async def test_a_world_has_a_clock_that_can_be_wrong(sim: Simulation) -> None:
    world = SimWorld(1, skew_s=2.0)
    start_ns = world.wall_ns()
    await trio.sleep(3.0)
    assert world.wall_ns() - start_ns == 3 * NS_PER_S
    assert world.wall_ns() >= EPOCH_NS + 5 * NS_PER_S
    world.jump(-10.0)
    assert world.wall_ns() - start_ns == -7 * NS_PER_S
    assert world.skew_s == -8.0


async def test_a_blocking_call_takes_time_and_always_ends(sim: Simulation) -> None:
    world = SimWorld(1)
    done: list[int] = []
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.run_blocking, done.append, 1)
            await trio.lowlevel.checkpoint()
            scope.cancel()
    assert done == [1]
    start_s = trio.current_time()
    assert await world.run_blocking(len, b"123") == 3
    assert trio.current_time() > start_s


async def test_a_call_that_its_node_does_not_survive_is_not_acknowledged(sim: Simulation) -> None:
    (a, b) = await sim.start_nodes(2)
    async with trio.open_nursery() as nursery:

        async def write() -> None:
            with pytest.raises(Crashed):
                await a.write("/x", bytes(300 * KIB))

        nursery.start_soon(write)
        await trio.testing.wait_all_tasks_blocked()
        sim.crash(a)
    assert [call.acknowledged for call in sim.history.calls] == [False]
    with pytest.raises(Crashed):
        await a.read("/x")
    assert b.up


async def test_a_restart_gets_what_was_there_at_the_crash_and_nothing_later(
    sim: Simulation,
) -> None:
    a, b = await sim.start_nodes(2)
    await a.write("/before", b"1")
    ghost = a.node
    sim.crash(a)
    ghost.namespace.create(
        ROOT_INODE, b"after", kind=ghost.namespace.get(ROOT_INODE).kind, mode=0o755, uid=0, gid=0
    )
    await sim.restart(a)
    await sim.converge()
    assert a.names() == b.names() == ["before"]


# -- planted bugs ---------------------------------------------------------------------------------


async def test_it_notices_a_close_that_returns_before_anything_is_stored(sim: Simulation) -> None:
    a, b = await sim.start_nodes(2)
    await a.write("/x", b"good")
    lie = Call("a", "write", "/y", written=ContentRef(size=3, inline=b"bad"))
    sim.history.end(sim.history.begin(lie))
    with pytest.raises(AssertionError, match="never committed"):
        sim.no_acknowledged_write_lost()
    assert b.up


@asynccontextmanager
async def _deaf(node: SimNode) -> AsyncIterator[None]:
    """A node that acknowledges rows of its peers and does not keep them."""
    namespace = node.node.namespace
    apply = namespace.apply
    namespace.apply = lambda batches: []  # type: ignore[method-assign]
    try:
        yield
    finally:
        namespace.apply = apply  # type: ignore[method-assign]


async def test_it_notices_rows_that_are_acknowledged_and_not_kept(sim: Simulation) -> None:
    a, b = await sim.start_nodes(2)
    await a.write("/x", b"old")
    async with _deaf(b):
        with trio.move_on_after(5):
            await a.write("/x", b"new")
        with pytest.raises(AssertionError, match="different rows"):
            await sim.converge(within_s=1.5)


def test_it_notices_a_stale_read() -> None:
    history = History()
    old, new = ContentRef(size=1, inline=b"1"), ContentRef(size=1, inline=b"2")
    history.replaced[old] = {new}

    def read(node: str, what: ContentRef, start: int, epoch: int) -> Call:
        return Call(node, "read", "/x", start=start, end=9, read=what, epochs={"a": epoch})

    write = Call("a", "write", "/x", start=1, end=3, written=new, epochs={"b": 7})
    history.calls += (write, read("b", old, 4, 7), read("b", new, 4, 7))
    assert len(checkers.stale_reads(history)) == 1
    # The connection ended in between, or the read began before the close: nothing was promised.
    history.calls = [write, read("b", old, 4, 8), read("b", old, 2, 7), read("c", old, 4, 7)]
    assert not checkers.stale_reads(history)


def test_it_notices_a_name_that_is_not_seen_and_not_removed() -> None:
    history = History()
    new = ContentRef(size=1, inline=b"2")
    history.calls += (
        Call("a", "write", "/x", start=1, end=2, written=new, epochs={"b": 7}),
        Call("b", "read", "/x", start=3, end=4, error="NotFound", epochs={"a": 7}),
        Call("c", "rename", "/x /y", start=5),
    )
    assert len(checkers.stale_reads(history)) == 1
    history.calls[2].start = 3
    assert not checkers.stale_reads(history)


async def test_it_notices_a_lost_write_that_was_shown_for_a_while(sim: Simulation) -> None:
    a, _ = await sim.start_nodes(2)
    await a.write("/x", b"old")
    await a.write("/x", b"new")
    await sim.converge()
    assert sim.no_acknowledged_write_lost()
    # As if nobody had ever seen the old bytes when they went.
    sim.history.replaced.clear()
    with pytest.raises(AssertionError, match="what it committed is gone"):
        sim.no_acknowledged_write_lost()


async def test_it_notices_missing_copies_and_unreadable_files(sim: Simulation) -> None:
    a, b = await sim.start_nodes(2, fetch_timeout_s=1.0)
    await a.write("/x", bytes(range(256)) * 300)
    await sim.converge()
    for digest in b.node.store.page(None, 10):
        await b.node.store.remove(digest)
    assert await copies.missing_copies([a, b], sim.needs)
    sim.partition([a], [b])
    assert await checkers.unreadable([b])
    assert not await checkers.unreadable([a])
    with pytest.raises(Unavailable):
        await b.read("/x")


async def test_it_notices_a_call_that_takes_too_long(sim: Simulation) -> None:
    a, b = await sim.start_nodes(2)
    sim.partition([a], [b])
    await a.write("/x", b"1")
    assert checkers.slow_calls(sim.history, 0.5)
    assert not checkers.slow_calls(sim.history, 2 * SESSION_LEASE_S)


def test_it_notices_two_winners_of_an_exclusive_create() -> None:
    history = History()
    history.calls += (
        Call("a", "create", "/x", start=1, end=3, epochs={"b": 1}, end_epochs={"b": 1}),
        Call("b", "create", "/x", start=2, end=4, epochs={"a": 1}, end_epochs={"a": 1}),
        Call("b", "create", "/y", start=2, end=4, epochs={"a": 1}, end_epochs={"a": 1}),
    )
    assert len(checkers.shared_wins(history)) == 1
    history.calls[1].end_epochs = {"a": 2}  # the connection ended meanwhile
    assert not checkers.shared_wins(history)


def test_a_name_that_was_made_again_between_has_two_who_removed_it() -> None:
    """The one removes it before it is made again, the other, who has asked first, after that."""
    a, b = {"a": 1}, {"b": 1}
    slow = Call("a", "unlink", "/x", start=1, end=9, epochs=b, end_epochs=b)
    quick = Call("b", "unlink", "/x", start=2, end=3, epochs=a, end_epochs=a)
    again = Call("b", "write", "/x", start=4, end=5, epochs=a, end_epochs=a)
    history = History()
    history.calls += (slow, quick, again)
    assert not checkers.shared_wins(history)
    again.start, again.end = 10, 11
    assert len(checkers.shared_wins(history)) == 1
