"""Blocks that are not here: get them from whoever holds them.

Holders are asked in placement order, those with a session first; the next one is asked at once on
an error or bad bytes, and as well (hedged) when the first is slow, so a slow, dead or lying peer
costs one hedge delay (Dean and Barroso 2013, "The tail at scale"). Equal requests share one fetch.
What arrives is verified against its digest before anybody sees it, then kept in the store as cache.
"""

import logging
from collections.abc import Callable, Sequence

import trio

from dfsfs.base.errors import Corrupt, DfsError, NotFound, Unavailable
from dfsfs.base.limits import (
    BLOCK_SHIFT_DEFAULT,
    CALL_TIMEOUT_S,
    FETCH_BYTES_MAX,
    FETCHES_AWAITED_MAX,
    FETCHES_MAX,
    HEDGE_S,
    INLINE_HASH_BYTES_MAX,
)
from dfsfs.base.types import Buffer, Digest, digest_matches, digest_text
from dfsfs.blocks import BlockStore, ByteBudget
from dfsfs.cluster.members import MemberTable
from dfsfs.cluster.placement import ranked
from dfsfs.net import Endpoint, Session
from dfsfs.runtime import Bounds, World

log = logging.getLogger(__name__)

METHOD_GET = "blocks.get"
STOPPING = "this node is stopping"
RETRY_S = 0.5  # between rounds over all holders while waiting for one to come back; it doubles
RETRY_MAX_S = 4.0  # ... up to this: many may wait, and those who are there have other things to do


class Fetcher:
    """Fetches blocks from peers. Owned by the cluster storage; `run` drives its prefetches."""

    def __init__(
        self,
        world: World,
        store: BlockStore,
        endpoint: Endpoint,
        members: MemberTable,
        *,
        timeout_s: float,
        keeps: Callable[[Digest], bool] = lambda digest: True,
        kept: Callable[[Digest], None] = lambda digest: None,
    ) -> None:
        """`keeps` says whether a fetched block should stay in the store; `kept` that it does."""
        self._keeps = keeps
        self._world = world
        self._store = store
        self._endpoint = endpoint
        self._members = members
        self._timeout_s = timeout_s
        self._kept = kept
        self._flights: dict[Digest, _Flight] = {}
        self._slots = trio.Semaphore(FETCHES_MAX)
        self._budget = ByteBudget(FETCH_BYTES_MAX)  # of answers under way
        # How large a block is, is known when it is here: as large as those before it.
        self._expected_bytes = 1 << BLOCK_SHIFT_DEFAULT
        self._nursery: trio.Nursery | None = None
        self._somebody_came = trio.Event()
        endpoint.on_session(up=self._session_up)
        self.fetched_blocks = 0
        self.fetched_bytes = 0
        self.bad_blocks = 0

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Host the fetches; they outlive the readers that asked for them."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None  # who still reads while the node stops reads what is here

    async def fetch(self, digest: Digest) -> Buffer:
        """Get a block from the network.

        Raises:
            Unavailable: no holder answered within the fetch timeout.
            NotFound: every node of the network is connected and none has it.
            Corrupt: only bad copies were offered.
        """
        flight = self._start(digest)
        with trio.move_on_after(self._timeout_s):
            return await flight.wait()
        raise Unavailable(f"block {digest_text(digest)} did not arrive in {self._timeout_s:.0f} s")

    def bounded(self) -> Bounds:
        """What of it is bounded, and how full that is."""
        return {
            "fetches": [FETCHES_MAX - self._slots.value, FETCHES_MAX],
            "fetch_bytes": [self._budget.in_use, FETCH_BYTES_MAX],
        }

    def prefetch(self, digests: Sequence[Digest]) -> None:
        """Start fetching what is not here, as far as there is room now."""
        for digest in digests:
            crowded = (
                self._budget.in_use > FETCH_BYTES_MAX * 3 // 4
                or self._slots.value <= FETCHES_MAX // 4
                or len(self._flights) >= FETCHES_AWAITED_MAX
            )
            if crowded:
                return  # leave room for those who wait
            if not self._store.has(digest):
                self._start(digest)

    def _start(self, digest: Digest) -> "_Flight":
        flight = self._flights.get(digest)
        if flight is not None:
            return flight
        flight = _Flight()
        if self._nursery is None:
            flight.crash(Unavailable(STOPPING))
            return flight
        self._flights[digest] = flight
        self._nursery.start_soon(self._fly, digest, flight)
        return flight

    async def _fly(self, digest: Digest, flight: "_Flight") -> None:
        try:
            with trio.fail_after(self._timeout_s):
                flight.land(await self._from_peers(digest))
        except trio.TooSlowError:
            flight.crash(Unavailable(f"block {digest_text(digest)}: no holder answered in time"))
        except DfsError as error:
            flight.crash(error)
        finally:
            self._flights.pop(digest, None)
            if not flight.done.is_set():
                flight.crash(Unavailable(STOPPING))

    async def _from_peers(self, digest: Digest) -> Buffer:
        """Ask holders until one gives the right bytes; waits for peers to come back meanwhile.

        Who waits for that holds no slot: others read what can be had.
        """
        rest_s = RETRY_S
        while True:
            somebody_came = self._somebody_came
            async with self._slots:
                sessions = self._holders(digest)
                data, failure = await self._race(digest, sessions)
            if data is not None:
                return data
            everyone = {member.node for member in self._members.current()} - {self._members.own}
            if not everyone:
                raise NotFound(f"no block {digest_text(digest)}, and there is no other node")
            asked = {session.peer.node for session in sessions}
            if failure is not None and not isinstance(failure, Unavailable) and everyone <= asked:
                raise failure  # all were asked: waiting will not help
            with trio.move_on_after(rest_s):
                await somebody_came.wait()
            rest_s = min(2 * rest_s, RETRY_MAX_S)

    def _session_up(self, session: Session) -> None:
        came, self._somebody_came = self._somebody_came, trio.Event()
        came.set()

    def _holders(self, digest: Digest) -> list[Session]:
        """Connected peers, the likeliest holder first."""
        sessions = self._endpoint.sessions
        order = [n for n in ranked(digest, self._members.candidates) if n in sessions]
        # The rest may have it as cache, or from when the members were others.
        order += sorted(n for n in sessions if n not in set(order))
        return [sessions[node] for node in order if node != self._members.own]

    async def _race(
        self, digest: Digest, sessions: list[Session]
    ) -> tuple[Buffer | None, DfsError | None]:
        """Ask one after the other; the next starts on failure or after `HEDGE_S`."""
        won: list[Buffer] = []
        failures: list[DfsError] = []

        async with trio.open_nursery() as nursery:

            async def ask(session: Session, failed: trio.Event) -> None:
                try:
                    won.append(await self._ask(session, digest))
                    nursery.cancel_scope.cancel()
                except DfsError as error:
                    failures.append(error)
                    failed.set()

            for session in sessions:
                failed = trio.Event()
                nursery.start_soon(ask, session, failed)
                with trio.move_on_after(HEDGE_S):
                    await failed.wait()
        if won:
            return won[0], None
        for failure in failures:  # the most telling one
            if not isinstance(failure, NotFound):
                return None, failure
        return None, failures[0] if failures else Unavailable("no peer is connected")

    async def _ask(self, session: Session, digest: Digest) -> Buffer:
        async with self._budget.hold(self._expected_bytes):
            reply = await session.call(METHOD_GET, [digest], deadline_s=CALL_TIMEOUT_S)
            return await self._taken(session, digest, reply.payload)

    async def _taken(self, session: Session, digest: Digest, data: Buffer) -> Buffer:
        """Verify an answer, and keep it."""
        if len(data) > INLINE_HASH_BYTES_MAX:
            good = await self._world.run_blocking(digest_matches, digest, data)
        else:
            good = digest_matches(digest, data)
        if not good:
            self.bad_blocks += 1
            log.warning("peer %s sent bad bytes for %s", session.peer.name, digest_text(digest))
            raise Corrupt(f"block {digest_text(digest)} from {session.peer.name} is damaged")
        usual = 1 << BLOCK_SHIFT_DEFAULT
        self._expected_bytes = max(len(data), self._expected_bytes * 7 // 8, usual)
        self.fetched_blocks += 1
        self.fetched_bytes += len(data)
        if not self._keeps(digest):
            return data
        try:
            await self._store.put(digest, data)
            self._kept(digest)
        except DfsError as error:
            # A full or failing disk does not keep the reader from its bytes.
            log.info("fetched block %s is not kept: %s", digest_text(digest), error)
        return data


class _Flight:
    """One fetch under way and those who wait for it."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self._data: Buffer | None = None
        self._error: DfsError | None = None

    def land(self, data: Buffer) -> None:
        """It is here."""
        self._data = data
        self.done.set()

    def crash(self, error: DfsError) -> None:
        """It could not be had."""
        self._error = error
        self.done.set()

    async def wait(self) -> Buffer:
        """The bytes, or the error raised anew for each waiter."""
        await self.done.wait()
        if self._data is None:
            assert self._error is not None
            raise type(self._error)(str(self._error)) from self._error
        return self._data
