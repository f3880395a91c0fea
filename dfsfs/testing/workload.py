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

import trio

from dfsfs.base.errors import DfsError
from dfsfs.base.limits import CALL_TIMEOUT_S, FETCH_TIMEOUT_S, SESSION_LEASE_S
from dfsfs.base.units import KIB
from dfsfs.testing import checkers
from dfsfs.testing.simnode import Crashed, SimNode
from dfsfs.testing.simulator import Simulation

DIRECTORIES = ("", "/d", "/e", "/d/f")
FILES_PER_DIRECTORY = 3
SETTLE_S = 120.0
CALL_S_MAX = FETCH_TIMEOUT_S + CALL_TIMEOUT_S + 2 * SESSION_LEASE_S
"""Longest any call may take, whatever the peers do (promise 16): one fetch, one put that is not
answered, one lease."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """What a seed chose."""

    nodes: int
    mounts: int
    replicas: int
    pause_s: float  # between two calls of a program, on average
    together: bool  # programs call at the same instants, so that they meet
    loss: bool  # in the end one node is lost for good
    skew_s: float
    partitions: float  # how often a second
    crashes: float
    jumps: float
    slowness: float
    seconds: float


def mix_of(dice: random.Random, seconds: float) -> Mix:
    """Draw a mix; every kind of fault is absent in some of them."""

    def rate(often_s: float) -> float:
        return dice.choice((0.0, 0.5, 1.0, 2.0)) / often_s

    nodes = dice.randint(3, 5)
    return Mix(
        nodes=nodes,
        mounts=dice.randint(2, nodes),
        replicas=dice.randint(2, 3),
        pause_s=dice.choice((0.05, 0.2, 1.0)),
        together=dice.random() < 0.5,
        loss=dice.random() < 0.5,
        skew_s=dice.choice((0.0, 0.0, 5.0, 600.0)),
        partitions=rate(15),
        crashes=rate(20),
        jumps=rate(20),
        slowness=rate(30),
        seconds=seconds,
    )


async def random_life(sim: Simulation, *, seconds: float = 60.0) -> str:
    """Run both phases; returns the trace of the run.

    Raises:
        AssertionError: a promise was broken.
    """
    mix = mix_of(sim.dice, seconds)
    nodes = await sim.start_nodes(
        mix.nodes, mounts=mix.mounts, skew_s=mix.skew_s, replicas=mix.replicas
    )
    end_s = trio.current_time() + mix.seconds
    async with trio.open_nursery() as nursery:
        for node in nodes[: mix.mounts]:
            dice = random.Random(f"{sim.seed}/program/{node.name}")
            nursery.start_soon(_Program(node, dice, mix).run, end_s)
        for fault, rate in (
            (_partition, mix.partitions),
            (_crash, mix.crashes),
            (_jump, mix.jumps),
            (_slow, mix.slowness),
        ):
            if rate:
                dice = random.Random(f"{sim.seed}/{fault.__name__}")
                nursery.start_soon(_happen, sim, fault, rate, dice, end_s)
    assert not sim.history.broken, f"seed {sim.seed}: {sim.history.broken[:5]}"
    await _recover(sim)
    if mix.loss:
        sim.crash(sim.dice.choice(sim.nodes))
        await sim.converge(within_s=SETTLE_S)
        await sim.check()
    return sim.trace


async def _recover(sim: Simulation) -> None:
    sim.heal()
    for node in sim.nodes:
        sim.slow(node, 0)
        if not node.up:
            await sim.restart(node)
    await sim.converge(within_s=SETTLE_S)
    await sim.check()
    slowest = checkers.slow_calls(sim.history, CALL_S_MAX)
    assert not slowest, f"seed {sim.seed}: {slowest[:5]}"


class _Program:
    """Uses one mount as if it were alone; errors are part of its life.

    The tree is small, so that programs get in each other's way.
    """

    def __init__(self, node: SimNode, dice: random.Random, mix: Mix) -> None:
        self._node = node
        self._dice = dice
        self._mix = mix
        self._written = 0
        self._verbs: list[tuple[int, Callable[[], Awaitable[object]]]] = [
            (6, lambda: node.write(self._file(), self._data())),
            (2, lambda: node.create(self._file(), self._data())),
            (1, lambda: node.append(self._file(), self._data())),
            (1, lambda: node.fsynced(self._file(), self._data())),
            (6, lambda: node.read(self._file())),
            (2, lambda: node.mkdir(self._directory())),
            (1, lambda: node.rmdir(self._directory())),
            (2, lambda: node.unlink(self._file())),
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

    def _data(self) -> bytes:
        """Bytes nobody else writes: so a checker knows whose they are."""
        self._written += 1
        label = f"{self._node.name} {self._node.incarnation} {self._written}\n".encode()
        size = math.floor(math.exp(self._dice.uniform(0, math.log(300 * KIB))))
        return label + self._dice.randbytes(size)


# -- faults ---------------------------------------------------------------------------------------

Fault = Callable[[Simulation, random.Random], Awaitable[None]]


async def _happen(
    sim: Simulation, fault: Fault, rate: float, dice: random.Random, end_s: float
) -> None:
    """One kind of fault, again and again, one at a time."""
    while True:
        with trio.move_on_at(end_s) as scope:
            await trio.sleep(dice.expovariate(rate))
        if scope.cancelled_caught:
            return
        await fault(sim, dice)


async def _partition(sim: Simulation, dice: random.Random) -> None:
    nodes = list(sim.nodes)
    dice.shuffle(nodes)
    place = dice.randint(1, len(nodes) - 1)
    sim.partition(nodes[:place], nodes[place:])
    # Shorter than a lease: nobody notices but who waits. Longer: sessions end.
    await trio.sleep(dice.choice((0.5, 3.0, 15.0)) * dice.uniform(0.5, 1.5))
    sim.heal()


async def _crash(sim: Simulation, dice: random.Random) -> None:
    up = sim.up()
    if not up:
        return
    node = dice.choice(up)
    sim.crash(node)
    await trio.sleep(dice.choice((0.1, 3.0, 15.0)) * dice.uniform(0.5, 1.5))
    await sim.restart(node)


async def _jump(sim: Simulation, dice: random.Random) -> None:
    dice.choice(sim.nodes).world.jump(dice.choice((1.0, 60.0, 1200.0)) * dice.uniform(-1, 1))


async def _slow(sim: Simulation, dice: random.Random) -> None:
    node = dice.choice(sim.nodes)
    sim.slow(node, dice.choice((0.05, 0.3, 1.0)))
    await trio.sleep(dice.uniform(1, 15))
    sim.slow(node, 0)
