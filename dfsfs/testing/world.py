"""The simulated twin of `runtime.RealWorld`: seeded dice, a wall clock that errs, no threads.

Time is trio's (a `MockClock` in a simulation), so nothing here looks at the machine. What would run
in a thread runs on the loop, at one instant of a seeded length of simulated time: blocking calls
take time, others overtake them, and still every run with the same seed is the same.
"""

import random
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import trio

from dfsfs.base.units import NS_PER_S
from dfsfs.runtime import Bounds

T = TypeVar("T")

EPOCH_NS = 1_700_000_000 * NS_PER_S  # the wall clock's start: some day in November 2023
BLOCKING_S_MAX = 0.004  # a call in a "thread" takes up to so long ...
STALL_S_MAX = 0.25  # ... and now and then, when the disk is busy, up to this
STALL_CHANCE = 1 / 64


class SimWorld:
    """Time, chance and blocking calls of one simulated node."""

    def __init__(self, seed: int | str, *, skew_s: float = 0.0) -> None:
        """`skew_s`: how far this node's wall clock is ahead of the true time."""
        self._random = random.Random(seed)
        self._skew_ns = round(skew_s * NS_PER_S)
        self.blocking_calls = 0
        self.disk_s = 0.0  # every blocking call takes up to so much longer: a slow disk
        self.machine = ""  # another name for each start of the simulated machine

    @property
    def random(self) -> random.Random:
        """This node's dice."""
        return self._random

    @property
    def skew_s(self) -> float:
        """How far the wall clock is ahead of the true time."""
        return self._skew_ns / NS_PER_S

    def jump(self, seconds: float) -> None:
        """Somebody sets the wall clock, forwards or back."""
        self._skew_ns += round(seconds * NS_PER_S)

    def wall_ns(self) -> int:
        """Nanoseconds since the epoch, as this node believes."""
        return EPOCH_NS + round(trio.current_time() * NS_PER_S) + self._skew_ns

    def now_s(self) -> float:
        """The simulation's clock."""
        return trio.current_time()

    def elapsed_ns(self) -> int:
        """The simulation's clock in nanoseconds."""
        return round(trio.current_time() * NS_PER_S)

    def place(self, path: Path) -> tuple[str, str]:
        """What a crash leaves is a copy; it counts as the file itself."""
        return path.name, self.machine

    def bounded(self) -> Bounds:
        """Nothing: it has no threads."""
        return {}

    async def run_blocking(self, function: Callable[..., T], *args: object) -> T:
        """Run `function(*args)` at an instant of a seeded delay. Not cancellable once begun."""
        await trio.lowlevel.checkpoint_if_cancelled()
        self.blocking_calls += 1
        longest_s = STALL_S_MAX if self._random.random() < STALL_CHANCE else BLOCKING_S_MAX
        longest_s += self.disk_s / 2
        await self._pass(longest_s)
        try:
            return function(*args)
        finally:
            await self._pass(longest_s)

    async def _pass(self, longest_s: float) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(self._random.uniform(0, longest_s))
