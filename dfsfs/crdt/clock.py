"""The hybrid logical clock that stamps transactions.

Times are microseconds: wall time where it moves on, one more than the greatest time seen where it
does not, so every new stamp is greater than everything this node has issued, received or stored.
The counter of the paper is folded into the low microseconds; a node would have to commit more than
a million transactions a second for the clock to run ahead of the wall on its own.

It only breaks ties: whatever can be decided by "had it seen the other?" is decided by vectors.
Stamps that are far ahead would be refused by peers, and what they are on could not spread. So a
wall clock is not believed when it leaps ahead (`SteadyWall`).

Nothing is stored here. The owner raises the clock to the greatest stamp in its database at start
(`observe`), so a restart, or a wall clock set back, never issues a stamp twice.

Kulkarni, Demirbas, Madappa, Avva, Leone: Logical Physical Clocks (2014).
"""

from collections.abc import Callable
from typing import Protocol

from dfsfs.base.errors import Refused
from dfsfs.base.limits import CLOCK_AHEAD_MAX_S, CLOCK_LEAP_MAX_S
from dfsfs.base.units import NS_PER_S, US_PER_S

_AHEAD_MAX_US = int(CLOCK_AHEAD_MAX_S * US_PER_S)
_LEAP_MAX_NS = int(CLOCK_LEAP_MAX_S * NS_PER_S)


class WallClock(Protocol):
    """The part of a world the clock needs."""

    def wall_ns(self) -> int:
        """Nanoseconds since the epoch, as the machine believes; may jump."""
        ...


class Clocks(WallClock, Protocol):
    """The part of a world that `SteadyWall` needs."""

    def elapsed_ns(self) -> int:
        """Nanoseconds since some moment before the start, also while the machine sleeps."""
        ...


class SteadyWall:
    """A wall clock as far as it can be believed. Somebody may set it, by hours or by years.

    It is followed back, because to be behind costs a tie and nothing else. It is not followed more
    than `limits.CLOCK_LEAP_MAX_S` ahead of what it said at the start and the time since.
    """

    def __init__(self, world: Clocks) -> None:
        self._world = world
        self._start_ns = world.wall_ns() - world.elapsed_ns()

    def wall_ns(self) -> int:
        """The time for stamps, in nanoseconds since the epoch."""
        return min(self._world.wall_ns(), self._since_start_ns() + _LEAP_MAX_NS)

    def latest_ns(self) -> int:
        """The latest time it may be: by this the stamps of peers are judged."""
        return max(self._world.wall_ns(), self._since_start_ns())

    def _since_start_ns(self) -> int:
        return self._start_ns + self._world.elapsed_ns()


class HybridClock:
    """One node's clock; `last` never goes back."""

    def __init__(
        self, world: WallClock, *, floor: int = 0, latest_ns: Callable[[], int] | None = None
    ) -> None:
        """`latest_ns`: by what the future is measured, if not by `world`."""
        self._world = world
        self._latest_ns = latest_ns or world.wall_ns
        self._last = floor

    @property
    def last(self) -> int:
        """The greatest time issued or observed."""
        return self._last

    def tick(self) -> int:
        """A time greater than every one issued or observed so far."""
        now = self._world.wall_ns() // 1000
        last = self._last
        self._last = now if now > last else last + 1
        return self._last

    def observe(self, time: int) -> None:
        """Take note of a time that exists, so that later ones are greater."""
        if time > self._last:
            self._last = time

    def check(self, time: int) -> None:
        """Refuse a foreign time that nobody with a sane clock could have issued yet.

        Compared with the wall, not with `last`: otherwise peers could walk the clock into the
        future step by step.

        Raises:
            Refused: `time` is more than `limits.CLOCK_AHEAD_MAX_S` ahead of the wall clock.
        """
        ahead = time - self._latest_ns() // 1000
        if ahead > _AHEAD_MAX_US:
            raise Refused(f"a stamp {ahead // US_PER_S} s ahead of this node's clock")
