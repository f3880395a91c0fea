"""The simulation must notice every bug that is planted into a node (`dfsfs/testing/planted.py`).

Each runs until it is noticed, for a bounded number of seeds; without it the same run finds nothing.
"""

import os
import random
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
import trio

from dfsfs.base.errors import DfsError, NotFound
from dfsfs.base.limits import SESSION_LEASE_S
from dfsfs.base.types import ROOT_INODE, Digest
from dfsfs.base.units import KIB
from dfsfs.cluster.placement import ranked
from dfsfs.node import Node
from dfsfs.runtime import failures_in
from dfsfs.testing import faults
from dfsfs.testing.planted import (
    Blind,
    Eager,
    Forgetful,
    Greedy,
    Gullible,
    Hasty,
    LastWriterWins,
    Leaky,
    Rash,
)
from dfsfs.testing.simnode import PROGRAM
from dfsfs.testing.simulator import Simulation, simulate
from dfsfs.testing.workload import random_life

SEEDS_MAX = 8
GRACE_S = 5.0


# -- what they do ---------------------------------------------------------------------------------


async def _some_writes(sim: Simulation) -> None:
    """Promises 10 and 13."""
    nodes = await sim.start_nodes(3)
    for number in range(36):
        await nodes[number % 3].write(f"/{number}", sim.dice.randbytes(8 * KIB))
    await sim.converge(within_s=15)
    await sim.check()


async def _read_after_write(sim: Simulation) -> None:
    a, b = await sim.start_nodes(2)
    sim.slow(b, 0.1)
    for number in range(10):
        await a.write("/x", b"%d" % number)
        with suppress(NotFound):
            await b.read("/x")
    sim.slow(b, 0)
    await sim.converge()
    await sim.check()


async def _writer_is_lost(sim: Simulation) -> None:
    """Promise 8: what was closed is on one more node."""
    a, _, c = await sim.start_nodes(3, repair_after_s=10.0)
    sim.slow(c, 0.3)
    await a.write("/x", sim.dice.randbytes(300 * KIB))
    faults.lose(sim, a)
    sim.slow(c, 0)
    await sim.converge(restored=True)
    await sim.check()


async def _edited_after_removal(sim: Simulation) -> None:
    """Promise 18: who was away for less than the grace period needs the old blocks."""
    a, b, c, d = await sim.start_nodes(4, replicas=2, gc_grace_s=60.0, cache_bytes=0)
    paths = [f"/{number}" for number in range(3)]
    for path in paths:
        await a.write(path, sim.dice.randbytes(600 * KIB))
    await sim.converge()
    sim.partition([a, b, c], [d])
    await sim.until(lambda: not d.node.endpoint.sessions, within_s=10)
    for path in paths:
        with suppress(DfsError):  # the last block may be out of reach: then it is no edit
            await d.append(path, b"more")
        await a.unlink(path)
    await trio.sleep(10)
    sim.heal()
    await sim.converge()
    await sim.check()


async def _slow_writer(sim: Simulation) -> None:
    """Promise 18: a file that is being written for longer than the grace period."""
    a, _ = await sim.start_nodes(2, gc_grace_s=GRACE_S)
    filesystem = a.node.filesystem
    opened, _ = await filesystem.create(ROOT_INODE, b"x", 0o644, os.O_WRONLY, PROGRAM)
    for number in range(8):
        piece = random.Random(number).randbytes(128 * KIB)
        await filesystem.write(opened.number, number * 128 * KIB, piece)
        await trio.sleep(GRACE_S)
    await filesystem.flush(opened.number)
    await filesystem.release(opened.number)
    await sim.converge()
    await sim.check()


async def _bad_copy_and_losses(sim: Simulation) -> None:
    """Promise 15: the node whose duty it is to repair has a bad copy itself."""
    nodes = await sim.start_nodes(4, replicas=3, repair_after_s=10.0)
    await nodes[0].write("/x", sim.dice.randbytes(200 * KIB))
    await sim.converge()
    content = nodes[0].node.namespace.lookup(ROOT_INODE, b"x").content
    assert content.root is not None
    by_id = {node.identity.node_id: node for node in nodes}
    order = [by_id[i] for i in ranked(content.root, nodes[0].node.members.candidates)]
    bad, good, lost, fourth = order
    await fourth.node.store.remove(content.root)  # it may have a copy of its own writing
    ((segment, position, _),) = faults.place_of(bad, content.root)
    await sim.stop(bad)
    faults.flip(bad, segment, position, 1)
    await sim.restart(bad)
    await sim.until(sim.all_connected, within_s=30)
    faults.lose(sim, lost)
    await sim.until(lambda: fourth.node.store.has(Digest(content.root or b"")), within_s=60)
    await trio.sleep(5)
    faults.lose(sim, good)
    await trio.sleep(SESSION_LEASE_S)
    await sim.converge()
    await sim.check()


async def _race(sim: Simulation) -> None:
    """Promise 5."""
    nodes = await sim.start_nodes(3)
    for round_ in range(10):
        async with trio.open_nursery() as nursery:
            for node in nodes:
                nursery.start_soon(_try, node.create, f"/{round_}")
    await sim.converge()
    await sim.check()


async def _try(call: Callable[[str], Awaitable[object]], path: str) -> None:
    with suppress(DfsError):
        await call(path)


async def _edits_apart(sim: Simulation) -> None:
    """Promise 13."""
    a, b, c = await sim.start_nodes(3)
    await a.write("/x", b"old")
    sim.partition([a], [b, c])
    await a.write("/x", b"from a")
    await b.write("/x", b"from b")
    sim.heal()
    await sim.converge()
    await sim.check()


PLANTED = [
    (Hasty, _read_after_write, "older than|nothing, not"),
    (Leaky, _some_writes, "is not on|cannot"),
    (Forgetful, _some_writes, "rows|shows|check"),
    (Rash, _writer_is_lost, "cannot|is not on"),
    (Eager, _edited_after_removal, "cannot|is not on"),
    (Blind, _slow_writer, "cannot|is not on"),
    (Gullible, _bad_copy_and_losses, "cannot"),
    (Greedy, _race, "both won"),
    (LastWriterWins, _edits_apart, "is gone"),
]


TOLD = pytest.mark.announce(
    "bad block|damaged|no good copy|broke the protocol|sent bad bytes|went back in time"
)


@TOLD
@pytest.mark.parametrize(("bug", "scenario", "words"), PLANTED)
def test_it_notices_a_node_that_is(
    bug: type[Node], scenario: Callable[[Simulation], Awaitable[None]], words: str
) -> None:
    simulate(0, scenario)  # without the bug there is nothing to notice
    said = ""
    for seed in range(SEEDS_MAX):
        try:
            simulate(seed, scenario, node_type=bug)
        except* AssertionError as errors:
            said += " ".join(str(error) for error in failures_in(errors))
        if re.search(words, said):
            return
    raise AssertionError(f"nobody noticed: {said}")


@pytest.mark.parametrize("bug", [Greedy, LastWriterWins])
@pytest.mark.announce(".")
def test_random_lives_notice_a_node_that_is(bug: type[Node]) -> None:
    """For all of them: `make seeds SIM_BUG=Leaky`, which says after how many lives."""
    with pytest.raises((AssertionError, ExceptionGroup)) as caught:
        _lives(bug)
    assert isinstance(failures_in(caught.value)[0], AssertionError)


def _lives(bug: type[Node]) -> None:
    for seed in range(SEEDS_MAX):
        simulate(seed, lambda sim: random_life(sim, seconds=10.0), node_type=bug)
