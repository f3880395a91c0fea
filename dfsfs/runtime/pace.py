"""A rate: bytes (or anything countable) a second, with a second's worth saved up.

Who spends more than is there waits until it has been earned, so a burst is paid for afterwards and
nothing needs to be cut into pieces. Loop only.
"""

import trio

from dfsfs.runtime.world import World


class Pace:
    """A token bucket that may go into debt."""

    def __init__(self, world: World, per_s: float) -> None:
        self.per_s = per_s
        self._world = world
        self._saved = per_s
        self._at_s = world.now_s()

    async def spend(self, amount: float) -> None:
        """Take `amount`, waiting until the debt of those before is paid; cancellable."""
        now_s = self._world.now_s()
        earned = (now_s - self._at_s) * self.per_s
        self._saved = min(self._saved + earned, self.per_s)
        self._at_s = now_s
        debt = -self._saved
        self._saved -= amount
        await trio.sleep(max(0.0, debt / self.per_s))
