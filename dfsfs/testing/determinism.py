"""Makes a trio run repeat itself: the same seed, the same order of tasks.

Trio shuffles the tasks that are ready at the same time, on purpose. For hypothesis it has a switch
(sort them by age, then shuffle with dice that can be seeded); the simulation turns the same switch.
The names are private to trio: tests/sim/test_simulator.py fails when they no longer work.

With a clock that jumps whenever every task waits, no threads and no sockets, nothing is left of the
machine in a run but the hash seed of Python, which the house keeps out of its behaviour by sorting
(STYLE.md).
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import trio
from trio._core import _run as scheduler

_SWITCH = "_ALLOW_DETERMINISTIC_SCHEDULING"


@contextmanager
def deterministic(seed: int | str) -> Iterator[None]:
    """Within the block trio schedules by `seed`; enter it before or inside `trio.run`."""
    before = getattr(scheduler, _SWITCH)
    state = scheduler._r.getstate()
    setattr(scheduler, _SWITCH, True)
    scheduler._r.seed(seed)
    try:
        yield
    finally:
        setattr(scheduler, _SWITCH, before)
        scheduler._r.setstate(state)


class JumpingClock(trio.abc.Clock):
    """Starts at zero, stands still while tasks run, jumps to the next deadline when all wait.

    As `trio.testing.MockClock` with autojump, but the jump is made where the scheduler asks how
    long to sleep: that saves it a round, and a third of the time of a simulation.
    """

    def __init__(self) -> None:
        self._now_s = 0.0

    def start_clock(self) -> None:
        """Nothing to start."""

    def current_time(self) -> float:
        """Simulated seconds."""
        return self._now_s

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """Asked when no task can run: it is that time now, unless somebody waits for just this."""
        idlers = scheduler.GLOBAL_RUN_CONTEXT.runner.waiting_for_idle
        if idlers or deadline == math.inf:  # `wait_all_tasks_blocked`, or nothing will happen
            return math.inf
        self._now_s = max(self._now_s, deadline)
        return 0.0
