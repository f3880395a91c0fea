"""Group commit: many callers, one flush (Gawlick and Kinkade 1985).

A flush covers everything done before it *began*, so a caller that arrives while one is running
needs the next; that one serves all who gathered meanwhile.
"""

from collections.abc import Awaitable, Callable

import trio

from dfsfs.base.errors import DfsError


class GroupCommit:
    """Runs `flush` so that concurrent callers share runs. Cancelling a caller disturbs nobody."""

    def __init__(self, flush: Callable[[], Awaitable[None]]) -> None:
        self._flush = flush
        self._lock = trio.Lock()
        self._begun = 0
        self._ended = 0
        self._failed = 0  # number of the last run that failed
        self._error: DfsError | None = None
        self.calls = 0

    @property
    def flushes(self) -> int:
        """Runs so far."""
        return self._ended

    async def __call__(self) -> None:
        """Return when a flush that began after this call has ended.

        Raises:
            DfsError: that flush failed; every caller it served gets the error.
        """
        self.calls += 1
        wanted = self._begun + 1
        async with self._lock:  # fair, so whoever waits longest runs the next flush
            if self._ended < wanted:
                await self._run()
        if self._failed >= wanted:
            assert self._error is not None
            raise type(self._error)(str(self._error)) from self._error

    async def _run(self) -> None:
        self._begun += 1
        before = self._failed, self._error
        # Whatever else it raises goes to one caller; to the others it must be a failure as well.
        self._failed, self._error = self._begun, DfsError("a flush broke off")
        try:
            with trio.CancelScope(shield=True):  # others rely on it too
                await self._flush()
        except DfsError as error:
            self._error = error
        else:
            self._failed, self._error = before
        finally:
            self._ended = self._begun
