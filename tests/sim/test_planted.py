"""Bugs planted into a node, each of which breaks a promise: the simulation must notice every one.

A simulation that would not see them proves nothing by being green. Each runs until it is noticed,
for a bounded number of seeds; without the bug the same run finds nothing.
"""

import os
import random
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace

import pytest
import trio

from dfsfs.base.errors import DfsError, NotFound
from dfsfs.base.limits import SESSION_LEASE_S
from dfsfs.base.types import ROOT_INODE, Buffer, Digest, InodeId, Stamp
from dfsfs.base.units import KIB
from dfsfs.blocks.index import SMALL
from dfsfs.blocks.records import HEADER_BYTES
from dfsfs.cluster.placement import ranked
from dfsfs.namespace import Batch, Change
from dfsfs.namespace.rows import ContentRow, Row, decode_rows, encode_rows
from dfsfs.net import Reply, Request, Session
from dfsfs.node import Node
from dfsfs.runtime import failures_in
from dfsfs.testing import faults
from dfsfs.testing.simnode import PROGRAM
from dfsfs.testing.simulator import Simulation, simulate

SEEDS_MAX = 8
GRACE_S = 5.0


# -- nodes with a bug -----------------------------------------------------------------------------


class Hasty(Node):
    """Its calls return before anybody else has seen what they changed."""

    def _build(self) -> None:
        super()._build()

        async def at_once(position: int) -> None:
            await trio.lowlevel.checkpoint()

        self.cluster.publication.visible = at_once  # type: ignore[method-assign]


class Forgetful(Node):
    """It loses one in thirty of the changes it hears of, and says nothing."""

    def _build(self) -> None:
        super()._build()
        apply = self.namespace.apply

        def lossy(batches: Sequence[Batch]) -> list[Change]:
            lost = self.world.random.random() < 1 / 30
            empty = encode_rows([])
            return apply([replace(batch, rows=empty) if lost else batch for batch in batches])

        self.namespace.apply = lossy  # type: ignore[method-assign]


class Leaky(Node):
    """Its store acknowledges blocks and keeps two of three."""

    def _build(self) -> None:
        super()._build()
        put = self.store.put

        async def leak(digest: Digest, data: Buffer) -> bool:
            return digest[-1] % 3 == 0 or await put(digest, data)

        self.store.put = leak  # type: ignore[method-assign]


class Rash(Node):
    """It acknowledges a write before another node has stored it."""

    def _build(self) -> None:
        super()._build()
        self.cluster.replicator._concern = 1


class Eager(Node):
    """It collects what it finds unreferenced at once."""

    def _build(self) -> None:
        super()._build()
        self.cluster.upkeep.collector._grace_s = 0.0


class Blind(Node):
    """It collects what nothing refers to yet, because it is still being written."""

    def _build(self) -> None:
        super()._build()
        pins = self.store.pins
        pins.is_pinned = lambda digest: False  # type: ignore[method-assign]
        pins.all = list  # type: ignore[method-assign]


class Gullible(Node):
    """It copies blocks without a look at their bytes, and stores what it is sent."""

    def _build(self) -> None:
        super()._build()
        verified = self.store.get

        async def get(digest: Digest) -> Buffer:
            where = self.store._index.find(digest)
            if where is None or where.segment == SMALL:
                return await verified(digest)
            with self.store._files.using(where.segment) as file:
                return file.read(where.position + HEADER_BYTES, where.length)

        async def put(session: Session, request: Request) -> Reply:
            return Reply([await self.store.put(Digest(request.body[0]), request.payload)])

        self.store.get = get  # type: ignore[method-assign]
        self.endpoint._handlers.calls["blocks.put"] = put


class Greedy(Node):
    """It believes that every lease is its own."""

    def _build(self) -> None:
        super()._build()
        self.cluster.leases.held = lambda inodes: True  # type: ignore[method-assign]


class LastWriterWins(Node):
    """Of two edits made apart it keeps the later one, on every node the same."""

    def _build(self) -> None:
        super()._build()
        apply = self.namespace.apply
        newest: dict[InodeId, Stamp] = {}

        def note(change: Change) -> None:
            for inode in change.contents:
                newest[inode] = max(change.stamp, newest.get(inode, change.stamp))

        def judged(rows: Iterable[Row]) -> Iterable[Row]:
            seen = self.namespace.have()
            for row in rows:
                if not isinstance(row, ContentRow):
                    yield row
                elif row.stamp > newest.get(row.inode, row.stamp._replace(time=0)):
                    others = {o: time for o, time in seen.items() if o != row.stamp.origin}
                    yield row._replace(vector={**row.vector, **others})

        def merge(batches: Sequence[Batch]) -> list[Change]:
            changes: list[Change] = []
            for batch in batches:
                rows = decode_rows(batch.rows, batch.origin, batch.after, batch.upto)
                changes += apply([replace(batch, rows=encode_rows(judged(rows)))])
            return changes

        self.namespace.subscribe(note)
        self.namespace.apply = merge  # type: ignore[method-assign]


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


@pytest.mark.announce(
    "bad block|damaged|no good copy|broke the protocol|sent bad bytes|went back in time"
)
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
