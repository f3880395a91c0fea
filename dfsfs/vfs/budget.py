"""The dirty bytes of a node: one number, one limit, and who has to give way.

Write buffers count what they hold here. A writer that finds the limit exceeded first has partial
blocks of the buffer that has been dirty longest written back, then waits until bytes have been
stored: back-pressure reaches write(2), and memory stays bounded whatever is written.

Concurrency: counting is sync; `relieve` is called by writers and waits.
"""

from collections.abc import Callable
from typing import Protocol

import trio

from dfsfs.base.errors import DfsError, Full
from dfsfs.runtime import Bounds


class Spillable(Protocol):
    """A write buffer that can move dirty bytes to the store."""

    error: DfsError | None

    @property
    def holds_bytes(self) -> bool:
        """Whether it has any that are counted."""
        ...

    async def spill(self) -> bool:
        """Begin to store every partial block; False if there was none."""
        ...


class WriteBudget:
    """Shared by all write buffers of a filesystem."""

    def __init__(self, bytes_max: int, has_room: Callable[[], bool] = lambda: True) -> None:
        """`has_room` tells whether this node's disk takes more names and bytes."""
        self._bytes_max = bytes_max
        self._has_room = has_room
        self._buffers: dict[Spillable, None] = {}  # in the order in which they became dirty
        self._released = trio.Event()
        self.used = 0

    @property
    def exceeded(self) -> bool:
        """Whether writers must wait, or be refused."""
        return self.used > self._bytes_max or not self._has_room()

    def check_room(self) -> None:
        """Whoever adds something asks first; who removes something does not.

        Raises:
            Full: what is left of the disk is kept for removals.
        """
        if not self._has_room():
            raise Full("the disk of this node is full")

    def bounded(self) -> Bounds:
        """What of it is bounded, and how full that is."""
        return {"write_buffer_bytes": [self.used, self._bytes_max]}

    def join(self, buffer: Spillable) -> None:
        """A buffer became dirty."""
        self._buffers[buffer] = None

    def leave(self, buffer: Spillable) -> None:
        """A buffer is clean, or given up."""
        self._buffers.pop(buffer, None)

    def add(self, size: int) -> None:
        """Count bytes (negative: they are gone)."""
        self.used += size
        if size < 0:
            self._released.set()

    def wake(self) -> None:
        """Let waiting writers look again: a buffer failed."""
        self._released.set()

    async def relieve(self) -> None:
        """Return when the node is within its limit.

        Raises:
            Full, or what the store said: dirty bytes cannot be stored, so none will be released.
        """
        self.check_room()
        tried_again = False
        while self.used > self._bytes_max:
            if self._released.is_set():
                self._released = trio.Event()
            released = self._released
            if not await self._spill_oldest() and not released.is_set():
                holding = [buffer for buffer in self._buffers if buffer.holds_bytes]
                failed = [buffer.error for buffer in holding if buffer.error is not None]
                if failed and len(failed) == len(holding):
                    if tried_again:
                        raise failed[0]
                    tried_again = True  # there may be room by now
                    for buffer in holding:
                        buffer.error = None
                    continue
            await released.wait()

    async def _spill_oldest(self) -> bool:
        for buffer in list(self._buffers):
            if buffer.error is None and await buffer.spill():
                return True
        return False
