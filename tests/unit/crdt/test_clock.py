"""The hybrid clock: ahead of everything it has seen, and refusing the far future."""

import pytest

from dfsfs.base.errors import Refused
from dfsfs.base.limits import CLOCK_AHEAD_MAX_S, CLOCK_LEAP_MAX_S
from dfsfs.crdt import HybridClock, SteadyWall


class Wall:
    def __init__(self, us: int) -> None:
        self.us = us

    def wall_ns(self) -> int:
        return self.us * 1000


class Machine(Wall):
    """A machine with a wall clock and one that counts from its start."""

    def __init__(self, us: int) -> None:
        super().__init__(us)
        self.elapsed_us = 5

    def elapsed_ns(self) -> int:
        return self.elapsed_us * 1000

    def pass_(self, us: int) -> None:
        self.us += us
        self.elapsed_us += us


def test_a_leap_ahead_is_not_believed_and_a_step_back_is() -> None:
    """Promise 14: or its stamps would be refused by everybody until that time comes."""
    year, leap = 365 * 86_400 * 1_000_000, int(CLOCK_LEAP_MAX_S * 1_000_000)
    machine = Machine(10 * year)
    wall = SteadyWall(machine)
    clock = HybridClock(wall, latest_ns=wall.latest_ns)
    machine.pass_(1000)
    assert clock.tick() == 10 * year + 1000
    machine.us += 10 * year
    assert clock.tick() == 10 * year + 1000 + leap
    machine.us -= 10 * year
    machine.pass_(3 * leap)
    assert clock.tick() == 10 * year + 1000 + 3 * leap
    machine.us -= 5 * year
    assert wall.wall_ns() == machine.wall_ns()
    clock.check(10 * year + 1000 + 3 * leap)  # what sane peers write then is not refused


def test_follows_the_wall_and_never_repeats() -> None:
    wall = Wall(1000)
    clock = HybridClock(wall)
    assert [clock.tick(), clock.tick()] == [1000, 1001]
    wall.us = 5000
    assert clock.tick() == 5000
    wall.us = 10  # set back
    assert clock.tick() == 5001


def test_goes_beyond_everything_observed() -> None:
    clock = HybridClock(Wall(1000), floor=2000)
    assert clock.tick() == 2001
    clock.observe(9000)
    clock.observe(3000)
    assert clock.last == 9000
    assert clock.tick() == 9001


def test_refuses_the_far_future_however_far_it_has_come_itself() -> None:
    clock = HybridClock(Wall(1000))
    ahead = int(CLOCK_AHEAD_MAX_S * 1_000_000)
    clock.check(1000 + ahead)
    clock.observe(1000 + ahead)
    with pytest.raises(Refused):
        clock.check(1001 + ahead)
