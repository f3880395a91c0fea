"""Group commit: calls that wait while one is at work are done together by one of them.

The first caller becomes the leader, takes everything that waits, does it, and hands the lead to the
first of those that came meanwhile. No task of its own, no timer: alone, a call costs nothing extra.
(Flat combining: Hendler, Incze, Shavit, Tzafrir 2010; the same idea as group commit in databases.)

Concurrency: loop only. A call that waits can be cancelled until its item was taken; from then on it
waits for the outcome, because the work uses the caller's data.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

import trio

from dfsfs.base.errors import DfsError

Item = TypeVar("Item")
Result = TypeVar("Result")


class _Ticket(Generic[Item, Result]):
    __slots__ = ("error", "event", "item", "leads", "result", "scope")

    def __init__(self, item: Item) -> None:
        self.item = item
        self.event: trio.Event | None = None
        self.scope: trio.CancelScope | None = None
        self.leads = False
        self.result: Result | None = None
        self.error: BaseException | None = None


class Batcher(Generic[Item, Result]):
    """Runs `work` on one batch of items at a time; every batch holds at least one item."""

    def __init__(
        self,
        work: Callable[[list[Item]], Awaitable[Sequence[Result | DfsError]]],
        *,
        count_max: int,
        weight: Callable[[Item], int] | None = None,
        weight_max: int = 0,
    ) -> None:
        """`work` gives one outcome for each item, or raises the outcome of all."""
        self._work = work
        self._count_max = count_max
        self._weight = weight
        self._weight_max = weight_max
        self._waiting: list[_Ticket[Item, Result]] = []
        self._busy = False

    async def submit(self, item: Item) -> Result:
        """Have `item` done in some batch; batches are formed in order of submission."""
        ticket: _Ticket[Item, Result] = _Ticket(item)
        self._waiting.append(ticket)
        if self._busy:
            await self._wait(ticket)
            if not ticket.leads:
                return _outcome(ticket)
        self._busy = True
        await self._lead()
        return _outcome(ticket)

    async def _wait(self, ticket: _Ticket[Item, Result]) -> None:
        """Return when the ticket is done, or has to lead."""
        ticket.event = trio.Event()
        with trio.CancelScope() as ticket.scope:
            try:
                await ticket.event.wait()
            except trio.Cancelled:
                if ticket in self._waiting:
                    self._waiting.remove(ticket)
                    if ticket.leads:  # appointed and cancelled in the same instant
                        self._appoint()
                else:  # taken and cancelled in the same instant
                    with trio.CancelScope(shield=True):
                        await ticket.event.wait()
                raise

    async def _lead(self) -> None:
        batch = self._take()
        try:
            with trio.CancelScope(shield=True):
                outcomes = await self._work([ticket.item for ticket in batch])
            for ticket, outcome in zip(batch, outcomes, strict=True):
                if isinstance(outcome, DfsError):
                    ticket.error = outcome
                else:
                    ticket.result = outcome
        except BaseException as error:
            for ticket in batch:
                ticket.error = error
            if not isinstance(error, DfsError):
                raise
        finally:
            for ticket in batch:
                if ticket.event is not None:
                    ticket.event.set()
            self._appoint()

    def _take(self) -> list[_Ticket[Item, Result]]:
        count, weight = 0, 0
        for ticket in self._waiting[: self._count_max]:
            if self._weight is not None:
                weight += self._weight(ticket.item)
                if count and weight > self._weight_max:
                    break
            count += 1
            if ticket.scope is not None:
                ticket.scope.shield = True
        batch, self._waiting = self._waiting[:count], self._waiting[count:]
        return batch

    def _appoint(self) -> None:
        """Hand the lead to the first that waits."""
        self._busy = bool(self._waiting)
        if self._busy:
            first = self._waiting[0]
            assert first.event is not None
            first.leads = True
            first.event.set()


def _outcome(ticket: _Ticket[Item, Result]) -> Result:
    if ticket.error is not None:
        raise ticket.error
    return ticket.result  # type: ignore[return-value]  # set when there is no error
