"""Makes a trio run repeat itself: the same seed, the same order of tasks.

Trio shuffles the tasks that are ready at the same time, on purpose. For hypothesis it has a switch
(sort them by age, then shuffle with dice that can be seeded); the simulation turns the same switch.
Both names are private to trio: tests/sim/test_simulator.py fails when they no longer work.

With a `MockClock` that jumps whenever every task waits, no threads and no sockets, nothing is left
of the machine in a run but the hash seed of Python, which the house keeps out of its behaviour by
sorting (STYLE.md).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import trio
import trio.testing
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


def jumping_clock() -> trio.testing.MockClock:
    """A clock that starts at zero and jumps to the next deadline when every task waits."""
    return trio.testing.MockClock(autojump_threshold=0)
