"""The hybrid clock: ahead of everything it has seen, and refusing the far future."""

import pytest

from dfsfs.base.errors import Refused
from dfsfs.base.limits import CLOCK_AHEAD_MAX_S
from dfsfs.crdt import HybridClock


class Wall:
    def __init__(self, us: int) -> None:
        self.us = us

    def wall_ns(self) -> int:
        return self.us * 1000


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
