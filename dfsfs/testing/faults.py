"""What can go wrong in a life: faults that come and go, and harm that stays.

A *fault* happens again and again, one of its kind at a time, and is over after a while. *Harm*
comes once in a life, one kind of it, because two together may take the last copy of something: a
lost node, a state directory that goes back in time, flipped bits, a full disk, a clock years off.

Nodes that separate from the rest do so one at a time, and not again before all have met, in a mix
whose grace period of garbage collection is short: what it promises is bounded by that period.
"""

import random
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import trio

from dfsfs.base.errors import DfsError
from dfsfs.base.types import Digest
from dfsfs.blocks.index import SMALL
from dfsfs.blocks.records import HEADER_BYTES
from dfsfs.cluster.placement import replica_set
from dfsfs.runtime import ungrouped
from dfsfs.testing import copies
from dfsfs.testing.simnode import SimNode
from dfsfs.testing.simulator import Simulation

APART_S = (0.5, 3.0, 15.0)
"""Shorter than a session lease: nobody notices but who waits. Longer: sessions end."""
JOINS_MAX = 2
DRAIN_S = 60.0
MEET_S = 120.0
WHOLE_S = 240.0
POLL_S = 0.25
MOMENT_S = 3.0
NO_ROOM_BYTES = 1 << 60
SKEW_MAX_S = 1500.0  # so that no two clocks are an hour apart
HOUR_S = 3600.0
YEARS_S = 10 * 365 * 86_400.0


@dataclass(slots=True)
class Trouble:
    """The faults of one life. `newcomer` is told of every mount that joins."""

    sim: Simulation
    alone: bool  # nodes separate one at a time
    newcomer: Callable[[SimNode], None]
    settings: dict[str, Any]  # of nodes that join
    lock: trio.Lock = field(default_factory=trio.Lock)
    quiet: int = 0  # while it is not 0, no node separates from the others
    joined: int = 0

    def nodes(self) -> list[SimNode]:
        """Those that are not gone."""
        return [node for node in self.sim.nodes if not node.gone]

    async def run(self, fault: "Fault", rate: float, dice: random.Random, until_s: float) -> None:
        """One kind of fault, `rate` times a second."""
        while True:
            with trio.move_on_at(until_s) as scope:
                await trio.sleep(dice.expovariate(rate))
            if scope.cancelled_caught:
                return
            await fault(self, dice)

    async def separate(self, part: Callable[[], Awaitable[None]]) -> None:
        """Run a fault that takes nodes apart."""
        if self.quiet:
            return
        if not self.alone:
            await part()
            return
        async with self.lock:
            await self.meet()
            await part()
            await self.meet()

    async def meet(self) -> None:
        """Wait until all nodes that are up are connected."""
        await self.sim.until(self.sim.all_connected, within_s=MEET_S, what="all are connected")

    async def worst_moment(self, node: SimNode, dice: random.Random) -> None:
        """Half the time, wait until a write there has just been acknowledged."""
        if dice.random() < 0.5:
            with trio.move_on_after(MOMENT_S):
                await self.sim.history.write_returned(node.name)

    async def whole(self) -> None:
        """Wait until every block is on all nodes that should have it."""
        end_s = trio.current_time() + WHOLE_S
        while missing := await copies.missing_copies(self.sim.up(), self.sim.needs):
            assert trio.current_time() < end_s, f"after {WHOLE_S} s: {missing[:5]}"
            await trio.sleep(POLL_S)

    @asynccontextmanager
    async def lull(self) -> AsyncIterator[None]:
        """All are up and connected, and stay so inside; what was under way has ended."""
        self.quiet += 1
        async with self.lock:
            await self.sim.until(
                lambda: all(node.up for node in self.nodes()), within_s=MEET_S, what="all are up"
            )
            self.sim.heal()
            await self.meet()
            try:
                yield
            finally:
                self.quiet -= 1


Fault = Callable[[Trouble, random.Random], Awaitable[None]]


def _while(dice: random.Random) -> float:
    return dice.choice(APART_S) * dice.uniform(0.5, 1.5)


async def partition(trouble: Trouble, dice: random.Random) -> None:
    """Cut the network in two for a while."""

    async def part() -> None:
        nodes = trouble.nodes()
        dice.shuffle(nodes)
        place = dice.randint(1, len(nodes) - 1)
        trouble.sim.partition(nodes[:place], nodes[place:])
        await trio.sleep(_while(dice))
        trouble.sim.heal()

    await trouble.separate(part)


def _may_start(sim: Simulation) -> list[SimNode]:
    """Those that run and may be started again soon.

    One that starts with a clock an hour ahead is kept apart: decision 22.
    """
    return [node for node in sim.up() if abs(node.world.skew_s) <= SKEW_MAX_S]


async def crash(trouble: Trouble, dice: random.Random) -> None:
    """Kill a node; it is back after a while."""

    async def part() -> None:
        if up := _may_start(trouble.sim):
            node = dice.choice(up)
            await trouble.worst_moment(node, dice)
            if node.up and not trouble.quiet:  # still
                await _killed(trouble.sim, node, _while(dice))

    await trouble.separate(part)


async def _killed(sim: Simulation, node: SimNode, for_s: float) -> None:
    sim.crash(node)
    await trio.sleep(for_s)
    if not node.gone and not node.up:
        await sim.restart(node)


async def outage(trouble: Trouble, dice: random.Random) -> None:
    """The machine of a node loses power; what it has lost, it has back before the next does.

    Nobody else separates meanwhile: a closed file survives one failure of this kind, not two.
    """
    if trouble.quiet:
        return
    async with trouble.lull():
        await trouble.whole()
        if not (up := _may_start(trouble.sim)):
            return
        node = dice.choice(up)
        if dice.random() < 0.5:
            trouble.sim.power_cut_in_flush(node, dice.randint(1, 8))
            await trio.sleep(MOMENT_S)
        else:
            await trouble.worst_moment(node, dice)
        if node.up:
            trouble.sim.power_cut(node)
        await trio.sleep(_while(dice))
        await _power_returns(trouble, [node])


async def _power_returns(trouble: Trouble, nodes: Sequence[SimNode]) -> None:
    """Start nodes in this order; what they have lost they get back from the others."""
    for node in nodes:
        await trouble.sim.restart(node)
    await trouble.meet()
    await trouble.whole()


async def jump(trouble: Trouble, dice: random.Random) -> None:
    """Somebody sets a clock."""
    world = dice.choice(trouble.nodes()).world
    wanted_s = world.skew_s + dice.choice((1.0, 60.0, 1200.0)) * dice.uniform(-1, 1)
    world.jump(max(-SKEW_MAX_S, min(wanted_s, SKEW_MAX_S)) - world.skew_s)


async def slow(trouble: Trouble, dice: random.Random) -> None:
    """The links of a node are slow for a while."""
    node = dice.choice(trouble.nodes())
    trouble.sim.slow(node, dice.choice((0.05, 0.3, 1.0)))
    await trio.sleep(dice.uniform(1, 15))
    trouble.sim.slow(node, 0)


async def stall(trouble: Trouble, dice: random.Random) -> None:
    """The disk of a node is slow for a while."""
    world = dice.choice(trouble.nodes()).world
    world.disk_s = dice.choice((0.05, 0.3, 1.0))
    await trio.sleep(dice.uniform(1, 15))
    world.disk_s = 0.0


async def join(trouble: Trouble, dice: random.Random) -> None:
    """A new node joins, if it can reach the network."""
    if trouble.joined >= JOINS_MAX or not trouble.sim.up():
        return
    trouble.joined += 1
    mount = dice.random() < 0.5
    with suppress(DfsError), ungrouped():
        await trouble.sim.start_node(mount=mount, **trouble.settings)
    newcomer = trouble.sim.nodes[-1]
    if not newcomer.up:
        newcomer.gone = True  # it never was there
    elif mount:
        trouble.newcomer(newcomer)


# -- harm -----------------------------------------------------------------------------------------


async def lost(trouble: Trouble, dice: random.Random) -> None:
    """A node is gone for good; maybe somebody says so."""
    async with trouble.lull():
        node = dice.choice(trouble.sim.up())
        await trouble.worst_moment(node, dice)
        lose(trouble.sim, node)
    if dice.random() < 0.5:
        await trio.sleep(_while(dice))
        await _remove(trouble, dice, node)


def lose(sim: Simulation, node: SimNode) -> None:
    """Kill a node that will not come back."""
    sim.history.lost_states.append((node.name, sim.history.event()))
    node.gone = True
    sim.crash(node)


async def _remove(trouble: Trouble, dice: random.Random, node: SimNode) -> None:
    async with trouble.lull():
        await run_task(dice.choice(trouble.sim.up()), "peers", name=node.identity.node_id.hex())


async def drained(trouble: Trouble, dice: random.Random) -> None:
    """A node gives everything away, ends and is removed; unless something comes in between."""
    async with trouble.lull():
        node = dice.choice(trouble.sim.up())
        with trio.move_on_after(DRAIN_S) as scope:
            result = await run_task(node, "drain")
        if scope.cancelled_caught:
            await run_task(node, "drain", stay=True)
            return
        assert result == {"result": "drained"}, result
        node.gone = True
        await trouble.sim.stop(node)
    await _remove(trouble, dice, node)


async def restored(trouble: Trouble, dice: random.Random) -> None:
    """The state directory of a node is put back from a backup, while it can ask the others."""
    sim = trouble.sim
    node = dice.choice(trouble.nodes())
    backup = node.state.with_name(f"{node.name}.backup")
    shutil.copytree(node.state, backup, ignore=shutil.ignore_patterns("*-shm"))
    await trio.sleep(_while(dice) + dice.uniform(0, 15))
    async with trouble.lull():
        await sim.put_back(node, backup)


async def blackout(trouble: Trouble, dice: random.Random) -> None:
    """All machines lose power at once: what was not fsynced may be lost."""
    async with trouble.lull():
        nodes = trouble.sim.up()
        await trouble.worst_moment(dice.choice(nodes), dice)
        trouble.sim.power_cut(*nodes)
        await trio.sleep(_while(dice))
        await _power_returns(trouble, dice.sample(nodes, len(nodes)))


async def rotten(trouble: Trouble, dice: random.Random) -> None:
    """Bits flip on the disk of a node, in blocks of which another holder has a good copy."""
    sim = trouble.sim
    for _ in range(dice.randint(1, 3)):
        async with trouble.lull():
            up = sim.up()
            node = up[0]  # always the same one, or two bad copies could be all there are
            places = [
                place for digest in _safe_elsewhere(node, up) for place in place_of(node, digest)
            ]
            await sim.stop(node)  # else what was not flushed is verified at the next start
            for segment, start, size in dice.sample(places, min(len(places), 3)):
                flip(node, segment, start + dice.randrange(size), dice.randrange(1, 256))
            await trio.sleep(_while(dice))
            await sim.restart(node)
        await trio.sleep(_while(dice))


def _safe_elsewhere(node: SimNode, up: list[SimNode]) -> list[Digest]:
    """Blocks here of which another node has a copy that it will keep."""
    names = {other.identity.node_id: other for other in up if other is not node}
    members = node.node.members.candidates
    return [
        digest
        for digest in node.node.store.page(None, 256)
        if any(
            home in names and names[home].node.store.has(digest)
            for home in replica_set(digest, members, node.config.replicas)
        )
    ]


def place_of(node: SimNode, digest: Digest) -> list[tuple[int, int, int]]:
    """Segment, start and size of a block's bytes, if they are in a segment."""
    where = node.node.store._index.find(digest)
    if where is None or where.segment == SMALL:
        return []
    return [(where.segment, where.position + HEADER_BYTES, where.length)]


def flip(node: SimNode, segment: int, position: int, bits: int) -> None:
    """Change one byte of a segment of a node that is down."""
    (path,) = (p for p in (node.state / "blocks").rglob("*.seg") if int(p.stem) == segment)
    with path.open("r+b") as file:
        file.seek(position)
        (old,) = file.read(1)
        file.seek(position)
        file.write(bytes([old ^ bits]))


async def full(trouble: Trouble, dice: random.Random) -> None:
    """Something else fills a node's disk, and is removed again."""
    store = dice.choice(trouble.sim.up()).node.store
    reserve, store._reserve_bytes = store._reserve_bytes, NO_ROOM_BYTES
    await trio.sleep(_while(dice) + dice.uniform(0, 20))
    store._reserve_bytes = reserve  # also if the node was restarted: then it had room at once


async def away(trouble: Trouble, dice: random.Random) -> None:
    """A node works alone for long: longer than a short horizon, not than a short grace period."""

    async def part() -> None:
        node = dice.choice(trouble.nodes())
        trouble.sim.partition([node], [other for other in trouble.nodes() if other is not node])
        await trio.sleep(dice.uniform(40, 55))
        trouble.sim.heal()

    await trouble.separate(part)


async def clock_off(trouble: Trouble, dice: random.Random) -> None:
    """A clock is an hour or ten years off, until somebody sees it."""
    node = dice.choice(trouble.sim.up() or trouble.nodes())
    before_s = node.world.skew_s
    node.world.jump(dice.choice((HOUR_S, YEARS_S)) * dice.choice((-1, 1)))
    await trio.sleep(_while(dice) + dice.uniform(0, 20))
    node.world.jump(before_s - node.world.skew_s)  # whatever else has set it since


HARM: dict[str, Fault] = {
    "lost": lost,
    "drained": drained,
    "restored": restored,
    "blackout": blackout,
    "rotten": rotten,
    "full": full,
    "away": away,
    "clock": clock_off,
}


async def run_task(node: SimNode, task: str, **arguments: Any) -> dict[str, Any]:
    """The last report of a task of the operator."""
    last: dict[str, Any] = {}
    async for report in node.node.upkeep(task, arguments):
        last = report
    return last
