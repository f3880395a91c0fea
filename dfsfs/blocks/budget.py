"""A number of bytes that tasks share: who wants more than is left waits, first come first served.

Loop only. A single request larger than the whole budget is let in alone, so nothing waits for ever.
"""

from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


class ByteBudget:
    """`in_use` exceeds `bytes_max` only for a request that is larger by itself."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.in_use = 0
        self._waiting: OrderedDict[trio.Event, int] = OrderedDict()

    async def acquire(self, size: int) -> None:
        """Take `size` bytes of the budget; cancellable while it waits."""
        if not self._waiting and self._fits(size):
            self.in_use += size
            return
        granted = trio.Event()
        self._waiting[granted] = size
        try:
            await granted.wait()
        except trio.Cancelled:
            if granted.is_set():  # granted and cancelled in the same instant
                self.release(size)
            else:
                del self._waiting[granted]
                self._grant()
            raise

    def release(self, size: int) -> None:
        """Give bytes back."""
        self.in_use -= size
        assert self.in_use >= 0
        self._grant()

    @asynccontextmanager
    async def hold(self, size: int) -> AsyncIterator[None]:
        """Have `size` bytes for the time of a block."""
        await self.acquire(size)
        try:
            yield
        finally:
            self.release(size)

    def _fits(self, size: int) -> bool:
        return self.in_use + size <= self.bytes_max or self.in_use == 0

    def _grant(self) -> None:
        while self._waiting:
            event, size = next(iter(self._waiting.items()))
            if not self._fits(size):
                return
            del self._waiting[event]
            self.in_use += size
            event.set()
