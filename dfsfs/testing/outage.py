"""Random lives with power cuts, judged by what each call had promised.

One program at a time writes a few files, by every way programs save: over the old bytes, or to a
new file that is renamed over the old one, with and without fsync. Then the power of one node or of
all is cut: between two calls, at any moment of one, or while something is being flushed. When it is
back, each file must have a version that its calls allow (`Versions`), and be readable everywhere.

What is judged are calls and bytes alone: this knows no rows, blocks or flushes.
"""

import random
from collections.abc import Awaitable, Callable, Sequence

import trio

from dfsfs.base.errors import DfsError, NotFound
from dfsfs.base.units import KIB
from dfsfs.testing import checkers
from dfsfs.testing.simnode import Crashed, SimNode
from dfsfs.testing.simulator import Simulation

NAMES = ("/f0", "/f1", "/f2")
SIZES = (10, 9 * KIB, 30 * KIB, 300 * KIB)  # inline; a small block; one and several in a segment
NODES = (1, 2, 3, 4)
MEET_S = 1.0  # for nodes that have just met to flush what they know of each other
CALLS_S_MAX = 20.0
SETTLE_S = 180.0


class Versions:
    """What one file may have: versions in the order in which they were written."""

    def __init__(self) -> None:
        self._versions: list[bytes] = [b""]
        self._closed = self._synced = 0

    def begin(self, data: bytes) -> None:
        """A call that writes this begins: from now on the file may have it."""
        self._versions.append(data)

    def closed(self) -> None:
        """It returned: more than one power cut at a time is needed to lose it (promise 11)."""
        self._closed = len(self._versions) - 1

    def synced(self) -> None:
        """It returned from fsync: nothing older is allowed any more (promises 9 and 11)."""
        self._closed = self._synced = len(self._versions) - 1

    def found(self, data: bytes, *, all_cut: bool) -> str:
        """After a power cut the file has this; what is wrong with that."""
        first = self._synced if all_cut else self._closed
        if data not in self._versions[first:]:
            wanted = [version[:8] for version in self._versions[first:]]
            return f"{data[:8]!r} of {len(data)} bytes, not one of {wanted}"
        self._versions, self._closed, self._synced = [data], 0, 0
        return ""


class Outage:
    """A network, what is written to it, and its power cuts."""

    def __init__(self, sim: Simulation) -> None:
        self._sim = sim
        self._dice = random.Random(f"{sim.seed}/outage")
        self._files = {name: Versions() for name in NAMES}
        self._count = 0
        self._nodes: list[SimNode] = []

    async def run(self) -> None:
        """Write and cut a few times.

        Raises:
            AssertionError: a promise was broken.
        """
        dice, sim = self._dice, self._sim
        # A short one: what somebody may have to fall back to must not be collected. If it is much
        # shorter, blocks go before their rows have come back from a peer, and repair is later.
        grace_s = dice.choice((20.0, 24 * 3600.0))
        count = dice.choice(NODES)
        self._nodes = await sim.start_nodes(count, fetch_timeout_s=2.0, gc_grace_s=grace_s)
        await trio.sleep(MEET_S)
        for _ in range(dice.choice((1, 2, 3))):
            one = count > 1 and dice.random() < 0.5
            victims = [dice.choice(self._nodes)] if one else self._nodes
            await self._write_until_cut(victims)
            for node in dice.sample(victims, len(victims)):
                await sim.restart(node)
            await sim.converge(within_s=SETTLE_S)
            await self._judge(all_cut=not one)

    async def _write_until_cut(self, victims: Sequence[SimNode]) -> None:
        dice, sim = self._dice, self._sim
        moment = dice.choice(("after", "within", "flush"))
        if moment == "flush":
            for node in victims:
                sim.power_cut_in_flush(node, dice.randint(1, 12))
        with trio.move_on_after(dice.uniform(0, 3) if moment == "within" else CALLS_S_MAX):
            for _ in range(dice.randrange(2, 14)):
                await self._save()
                if dice.random() < 0.2:
                    await trio.sleep(dice.choice((0.1, 1.0, 8.0)))
        if any(node.up for node in victims):
            sim.power_cut(*victims)

    async def _save(self) -> None:
        dice = self._dice
        name = dice.choice(NAMES)
        up = self._sim.up()
        if not up:
            return
        node, file = dice.choice(up), self._files[name]
        self._count += 1
        data = b"%d\n" % self._count + dice.randbytes(dice.choice(SIZES))
        draft = f"/draft{self._count}"
        write: Callable[[str, bytes], Awaitable[None]] = dice.choice((node.write, node.fsynced))
        try:
            if dice.random() < 0.5:
                file.begin(data)
                await write(name, data)
                file.synced() if write == node.fsynced else file.closed()
            else:
                await write(draft, data)
                file.begin(data)
                await node.rename(draft, name)
                file.closed()
        except (Crashed, DfsError):
            return  # nobody was told that it is done

    async def _judge(self, *, all_cut: bool) -> None:
        problems = await checkers.unreadable(self._sim.up())
        for name, file in self._files.items():
            try:
                data = await self._nodes[0].read(name)
            except NotFound:
                data = b""
            if problem := file.found(data, all_cut=all_cut):
                problems.append(f"{name} has {problem}")
        assert not problems, f"seed {self._sim.seed}: {problems[:5]}"


async def power_life(sim: Simulation) -> str:
    """One random life with power cuts; returns the trace of the run."""
    await Outage(sim).run()
    return sim.trace
