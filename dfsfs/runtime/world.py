"""Time, chance and blocking calls of one node, behind one small interface.

Everything that needs the clock, a random number or a thread asks its `World`, so that the
simulator can give each node its own skewed clock, seeded dice and inline "threads".
Waiting (`trio.sleep`, deadlines) uses trio's clock, which the simulator replaces as a whole.
"""

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

import trio

from dfsfs.base.limits import BLOCKING_THREADS_MAX
from dfsfs.runtime.figures import Bounds

T = TypeVar("T")

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # see random(4); another after every start


class World(Protocol):
    """What a node may know of the world outside."""

    @property
    def random(self) -> random.Random:
        """This node's dice."""
        ...

    def wall_ns(self) -> int:
        """Nanoseconds since the epoch, as the machine believes; may jump."""
        ...

    def now_s(self) -> float:
        """Monotonic seconds, the clock of deadlines."""
        ...

    def elapsed_ns(self) -> int:
        """Nanoseconds since some moment before the start, also while the machine sleeps."""
        ...

    def place(self, path: Path) -> tuple[str, str]:
        """Two names: of a file that nobody ever changes, and of the machine's last start.

        The first is another one for a copy of the file, whoever made it and however: a backup, say.
        After the second has changed, what was not flushed may be gone.
        """
        ...

    def bounded(self) -> Bounds:
        """What of it is bounded, and how full that is."""
        ...

    async def run_blocking(self, function: Callable[..., T], *args: object) -> T:
        """Run `function(*args)` off the loop. Not cancellable: it always runs to its end."""
        ...


class RealWorld:
    """The machine's own clock, chance and threads."""

    def __init__(self, *, threads_max: int = BLOCKING_THREADS_MAX) -> None:
        self._random = random.Random()  # jitter and sampling only, never secrets
        self._threads = trio.CapacityLimiter(threads_max)

    @property
    def random(self) -> random.Random:
        """This node's dice."""
        return self._random

    def wall_ns(self) -> int:
        """Nanoseconds since the epoch, as the machine believes; may jump."""
        return time.time_ns()

    def now_s(self) -> float:
        """Monotonic seconds, the clock of deadlines."""
        return trio.current_time()

    def elapsed_ns(self) -> int:
        """Nanoseconds since the machine was started, also while it sleeps."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    def place(self, path: Path) -> tuple[str, str]:
        """Change time of the file, which no call can set; boot id of the machine."""
        return str(path.stat().st_ctime_ns), _BOOT_ID.read_text().strip()

    def bounded(self) -> Bounds:
        """Threads at work."""
        return {"threads": [self._threads.borrowed_tokens, int(self._threads.total_tokens)]}

    async def run_blocking(self, function: Callable[..., T], *args: object) -> T:
        """Run `function(*args)` in a thread; waits for a free one of `threads_max`."""
        return await trio.to_thread.run_sync(function, *args, limiter=self._threads)
