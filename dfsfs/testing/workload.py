"""A random life for a simulated network: programs on every node, and faults among them.

The seed chooses everything: how many nodes, which calls, which kinds of faults happen at all and
how often ("swarm testing": Groce et al. 2012; a run without crashes explores partitions more
deeply than one with a little of everything). First the faults, with what must always hold checked
as it goes; then everything is repaired, and what must become true has a bounded time to do so.
"""

import math
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import trio

from dfsfs.base.errors import DfsError
from dfsfs.base.limits import (
    CALL_TIMEOUT_S,
    FETCH_TIMEOUT_S,
    GC_GRACE_DEFAULT_S,
    HORIZON_DEFAULT_S,
    SESSION_LEASE_S,
)
from dfsfs.base.units import KIB
from dfsfs.testing import checkers, copies, faults
from dfsfs.testing.faults import HARM, Fault, Trouble, run_task
from dfsfs.testing.simnode import READ_BYTES, Crashed, SimNode
from dfsfs.testing.simulator import Simulation

DIRECTORIES = ("", "/d", "/e", "/d/f")
FILES_PER_DIRECTORY = 3
SIZES_MIN = (1, 1, 5 * KIB, 20 * KIB)  # half may be inline, a quarter needs a segment
SETTLE_S = 240.0
SHORT_GRACE_S = 60.0  # longer than any node is away
SHORT_HORIZON_S = 40.0
STRETCH = 4  # a life with a short grace period is so much longer, with twice the calls
SCRUB_S = 60.0
CALL_S_MAX = FETCH_TIMEOUT_S + CALL_TIMEOUT_S + 2 * SESSION_LEASE_S
"""Longest any call may take, whatever the peers do (promise 16): one fetch, one put that is not
answered, one lease."""

FAULTS: dict[str, tuple[float, Fault]] = {
    "partitions": (15, faults.partition),
    "crashes": (20, faults.crash),
    "jumps": (20, faults.jump),
    "slowness": (30, faults.slow),
    "stalls": (30, faults.stall),
    "joins": (60, faults.join),
    "outages": (60, faults.outage),
}
"""Each kind of fault, and after how many seconds it comes in a usual mix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """What a seed chose."""

    nodes: int
    mounts: int
    replicas: int
    pause_s: float  # between two calls of a program, on average
    together: bool  # programs call at the same instants, so that they meet
    links: bool  # files may have several names
    rates: dict[str, float]  # how often a second each kind of fault comes
    reorder_s: float  # answers to calls overtake each other by up to so much
    harm: str  # one kind of it, or none
    loss: bool  # in the end one node is lost for good
    skew_s: float
    grace_s: float  # of garbage collection
    horizon_s: float  # after which those who are away are not waited for before rows are forgotten
    repair_after_s: float
    seconds: float

    @property
    def loses_power(self) -> bool:
        """Whether a power cut may come."""
        return bool(self.rates["outages"]) or self.harm == "blackout"

    @property
    def settings(self) -> dict[str, Any]:
        """What its nodes are told."""
        return {
            "replicas": self.replicas,
            "gc_grace_s": self.grace_s,
            "horizon_s": self.horizon_s,
            "repair_after_s": self.repair_after_s,
            "scrub_period_s": SCRUB_S,
        }


def mix_of(dice: random.Random, seconds: float) -> Mix:
    """Draw a mix; every kind of fault is absent in some of them."""
    nodes = dice.randint(3, 5)
    stretch = dice.choice((1, 1, STRETCH))
    return Mix(
        nodes=nodes,
        mounts=dice.randint(2, nodes),
        replicas=dice.randint(2, 3),
        pause_s=dice.choice((0.15, 0.4, 1.0)) * math.sqrt(stretch),
        together=dice.random() < 0.5,
        links=dice.random() < 0.3,
        rates={
            name: dice.choice((0.0, 0.5, 1.0, 2.0)) / often_s / stretch
            for name, (often_s, _) in FAULTS.items()
        },
        reorder_s=dice.choice((0.0, 0.0, 0.05, 0.3)),
        harm=dice.choice(("", "", *HARM)),
        loss=dice.random() < 0.5,
        skew_s=dice.choice((0.0, 0.0, 5.0, 600.0)),
        grace_s=GC_GRACE_DEFAULT_S if stretch == 1 else SHORT_GRACE_S,
        horizon_s=SHORT_HORIZON_S if stretch == 1 and dice.random() < 0.5 else HORIZON_DEFAULT_S,
        repair_after_s=dice.choice((20.0, 60.0, 300.0)),
        seconds=seconds * stretch,
    )


async def random_life(sim: Simulation, *, seconds: float = 60.0) -> str:
    """Run both phases; returns the trace of the run.

    Raises:
        AssertionError: a promise was broken.
    """
    mix = mix_of(sim.dice, seconds)
    sim.reorder_s, sim.loses_power = mix.reorder_s, mix.loses_power
    nodes = await sim.start_nodes(mix.nodes, mounts=mix.mounts, skew_s=mix.skew_s, **mix.settings)
    end_s = trio.current_time() + mix.seconds
    async with trio.open_nursery() as nursery:

        def use(node: SimNode) -> None:
            dice = random.Random(f"{sim.seed}/program/{node.name}")
            nursery.start_soon(_Program(sim, node, dice, mix).run, end_s)

        alone = mix.grace_s == SHORT_GRACE_S
        trouble = Trouble(sim, alone=alone, newcomer=use, settings=mix.settings)
        for node in nodes[: mix.mounts]:
            use(node)
        for name, (_, fault) in FAULTS.items():
            if mix.rates[name]:
                dice = random.Random(f"{sim.seed}/{name}")
                nursery.start_soon(trouble.run, fault, mix.rates[name], dice, end_s)
        if mix.harm:
            dice = random.Random(f"{sim.seed}/{mix.harm}")
            nursery.start_soon(_harm, trouble, HARM[mix.harm], mix, dice)
    assert not sim.history.broken, f"seed {sim.seed}: {sim.history.broken[:5]}"
    await _recover(sim, mix)
    if mix.loss:
        faults.lose(sim, sim.dice.choice(sim.up()))
        await sim.converge(within_s=mix.repair_after_s + SETTLE_S, restored=True)
        await sim.check()
    return sim.trace


async def _harm(trouble: Trouble, harm: Fault, mix: Mix, dice: random.Random) -> None:
    await trio.sleep(dice.uniform(0.1, 0.7) * mix.seconds)
    await harm(trouble, dice)


async def _recover(sim: Simulation, mix: Mix) -> None:
    """Repair everything, and see that what must become true does."""
    sim.heal()
    for node in sim.nodes:
        sim.slow(node, 0)
        if not node.up and not node.gone:
            await sim.restart(node)
    await sim.converge(within_s=mix.repair_after_s + SETTLE_S, restored=True)
    await sim.check()
    slowest = checkers.slow_calls(sim.history, CALL_S_MAX)
    assert not slowest, f"seed {sim.seed}: {slowest[:5]}"
    for node in sim.up():
        found = await run_task(node, "scrub")
        assert not found["lost"], f"seed {sim.seed}: {node.name} has lost {found['lost']}"
    # Flipped bits may be left in what no file needs, and nobody has a good copy of.
    judged = await run_task(sim.dice.choice(sim.up()), "fsck", repair=mix.harm == "rotten")
    assert not judged["result"]["left"], f"seed {sim.seed}: fsck says {judged}"
    if mix.grace_s == SHORT_GRACE_S:
        # What nobody needs goes, and nothing else. Those lost for good are not waited for any more.
        one = sim.up()[0]
        present = {node.identity.node_id for node in sim.up()}
        for member in one.node.members.current():
            if member.node not in present:
                await run_task(one, "peers", name=member.node.hex())
        await trio.sleep(4 * mix.grace_s)
        left = await copies.garbage(sim.up(), sim.needs)
        assert not left, f"seed {sim.seed}: {left[:5]}"
        await sim.converge(restored=True)
        await sim.check()


class _Program:
    """Uses one mount as if it were alone; errors are part of its life.

    The tree is small, so that programs get in each other's way.
    """

    def __init__(self, sim: Simulation, node: SimNode, dice: random.Random, mix: Mix) -> None:
        self._sim = sim
        self._node = node
        self._dice = dice
        self._mix = mix
        self._written = 0
        self._verbs: list[tuple[int, Callable[[], Awaitable[object]]]] = [
            (6, lambda: node.write(self._file(), self._data())),
            (2, lambda: node.create(self._file(), self._data())),
            (1, lambda: node.append(self._file(), self._data(READ_BYTES - KIB))),
            (1, lambda: node.fsynced(self._file(), self._data())),
            (6, lambda: node.read(self._file())),
            (2, lambda: node.mkdir(self._directory())),
            (1, lambda: node.rmdir(self._directory())),
            (2, lambda: node.unlink(self._file())),
            (2 * mix.links, lambda: node.link(self._file(), self._file())),
            (2, lambda: node.rename(self._file(), self._file())),
            (1, lambda: node.rename(self._directory(), self._directory())),
        ]

    async def run(self, end_s: float) -> None:
        """Call after call until the time is over."""
        while trio.current_time() < end_s:
            await self._pause()
            (verb,) = self._dice.choices(
                [verb for _, verb in self._verbs], [weight for weight, _ in self._verbs]
            )
            try:
                await verb()
            except (DfsError, Crashed):
                continue

    async def _pause(self) -> None:
        pause_s = self._mix.pause_s
        if self._mix.together:
            now_s = trio.current_time()
            # Rounding must not make it now: time would stand still.
            await trio.sleep_until((math.floor(now_s / pause_s + 0.01) + 1) * pause_s)
        else:
            await trio.sleep(self._dice.expovariate(1 / pause_s))

    def _directory(self) -> str:
        return self._dice.choice(DIRECTORIES[1:])

    def _file(self) -> str:
        # Now and then something that is there, such as a conflict copy.
        directory = self._dice.choice(DIRECTORIES)
        if self._node.up and self._dice.random() < 0.25 and self._node.exists(directory or "/"):
            names = self._node.names(directory)
            if names:
                return f"{directory}/{self._dice.choice(names)}"
        return f"{directory}/{self._dice.randrange(FILES_PER_DIRECTORY)}"

    def _data(self, size_max: int = 300 * KIB) -> bytes:
        """Bytes nobody else writes: so a checker knows whose they are."""
        self._written += 1
        label = f"{self._node.name} {self._node.incarnation} {self._written}\n".encode()
        smallest = self._dice.choice(SIZES_MIN)
        size = math.floor(math.exp(self._dice.uniform(math.log(smallest), math.log(size_max))))
        return self._sim.history.unit(label, self._dice.randbytes(size))
