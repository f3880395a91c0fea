"""Below a peer's floor: a snapshot of all its rows, in calls, instead of its feed.

    rows.snapshot [cursor or nil]  ->  [sure, floor, version, next, have] + rows
                                                                            Unavailable: later

`have` and `floor` are those of the answering node, `sure` is up to where it lacks nothing for
certain; `version` changes when it forgets something, and then what was read is worth nothing. The
rows are a page of `Namespace.snapshot_for_peer`.

One snapshot at a time. Nothing is applied before the last page is here, so a peer that goes away
costs only what was read; what is applied needs no peer any more, and is gone on with after a crash.
Concurrency: loop only; applying leaves the loop to others between steps.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

import trio

from dfsfs.base.errors import DfsError, Refused, RemoteProtocolError, Unavailable
from dfsfs.base.limits import (
    CALL_TIMEOUT_S,
    REJOIN_RETRY_S,
    ROWS_SLICE_BYTES,
    SNAPSHOT_BYTES_MAX,
)
from dfsfs.base.types import Origin
from dfsfs.cluster.rows_messages import checked_positions, wire_positions
from dfsfs.crdt import dominates
from dfsfs.namespace import Change, Namespace, SnapshotPage
from dfsfs.net import Endpoint, Reply, Request, Session
from dfsfs.runtime import Bounds

log = logging.getLogger(__name__)

METHOD_SNAPSHOT = "rows.snapshot"
Applied = Callable[[Sequence[Change]], Awaitable[None]]


class Page(NamedTuple):
    """What is told with a page of a snapshot."""

    sure: dict[Origin, int]
    floor: dict[Origin, int]
    version: int
    next: bytes | None
    have: dict[Origin, int]


class Rejoining:
    """Gives snapshots, and takes them. Owned by the cluster."""

    def __init__(self, namespace: Namespace, endpoint: Endpoint, *, applied: Applied) -> None:
        """Answers on `endpoint`; `applied` is `Exchange`'s."""
        self._namespace = namespace
        self._applied = applied
        self._lock = trio.Lock()
        self._wake = trio.Event()
        self._ended = trio.lowlevel.ParkingLot()
        self._watchers: list[Callable[[], None]] = []
        self.count = 0
        endpoint.serve_calls(METHOD_SNAPSHOT, self._answer)

    async def _answer(self, session: Session, request: Request) -> Reply:
        cursor = request.body[0] if isinstance(request.body, list) and request.body else b""
        if cursor is not None and not isinstance(cursor, bytes):
            raise RemoteProtocolError("malformed request for a snapshot")
        space = self._namespace
        page = space.snapshot_for_peer(cursor, bytes_max=ROWS_SLICE_BYTES)
        body = [
            wire_positions(space.gaps.sure()),
            wire_positions(space.floor),
            space.version,
            page.next,
            wire_positions(space.have()),
        ]
        return Reply(body, page.rows)

    @property
    def under_way(self) -> bool:
        """Whether a snapshot is being taken."""
        return self._lock.locked() or self._namespace.rejoin.is_complete

    def bounded(self) -> Bounds:
        """What of it is bounded, and how full that is."""
        return {"snapshot_bytes": [self._namespace.rejoin.staged_bytes, SNAPSHOT_BYTES_MAX]}

    def watch(self, callback: Callable[[], None]) -> None:
        """Call back whenever a snapshot has been applied."""
        self._watchers.append(callback)

    async def run(self) -> None:
        """Apply snapshots until cancelled: first the one that a crash left."""
        rejoin = self._namespace.rejoin
        while True:
            if not rejoin.is_complete:
                await self._wake.wait()
                self._wake = trio.Event()
                continue
            try:
                await self._apply()
            except (RemoteProtocolError, Refused) as error:
                log.error("a snapshot makes no sense, another will be taken: %s", error)
                rejoin.clear()
            except DfsError as error:
                log.warning("a snapshot cannot be applied now: %s", error)
                await trio.sleep(REJOIN_RETRY_S)
                continue
            self._ended.unpark_all()

    async def rejoin(self, session: Session, floor: dict[Origin, int]) -> None:
        """Take a snapshot of the peer, unless that has become needless, and see it applied.

        Raises:
            DfsError: the peer went away, or says what makes no sense.
        """
        async with self._lock:
            await self._applied_all()
            if self._namespace.is_whole and dominates(self._namespace.have(), floor):
                return
            try:
                await self._take(session)
            except Unavailable as error:
                log.info("no snapshot of %s for now: %s", session.peer.name, error)
                await trio.sleep(REJOIN_RETRY_S)
            finally:
                if not self._namespace.rejoin.is_complete:
                    self._namespace.rejoin.clear()
            await self._applied_all()

    async def _applied_all(self) -> None:
        while self._namespace.rejoin.is_complete:
            self._wake.set()
            await self._ended.park()

    async def _take(self, session: Session) -> None:
        name = session.peer.name
        log.info("%s has forgotten what is still here: taking a snapshot of it", name)
        rejoin = self._namespace.rejoin
        version: int | None = None
        cursor: bytes | None = None
        while True:
            reply = await session.call(METHOD_SNAPSHOT, [cursor], deadline_s=CALL_TIMEOUT_S)
            sure, floor, new_version, cursor, have = checked_page(reply.body)
            if version is None:
                rejoin.begin(sure)
            elif new_version != version:
                raise Unavailable(f"{name} has forgotten more meanwhile")
            version = new_version
            rejoin.stage(SnapshotPage(bytes(reply.payload), cursor))
            if cursor is None:
                break
        rejoin.complete(floor, have)
        log.info("a snapshot of %s is here and will be applied", name)

    async def _apply(self) -> None:
        steps = self._namespace.finish_rejoin()
        while True:
            began_s = trio.current_time()
            changes = next(steps, None)
            worked_s = trio.current_time() - began_s
            if changes is None:
                break
            if changes:
                await self._applied(changes)
            await trio.sleep(worked_s)
        self.count += 1
        log.info("a snapshot has been applied")
        for callback in self._watchers:
            callback()


def checked_page(body: Any) -> Page:
    """The body of an answer.

    Raises:
        RemoteProtocolError: it is malformed.
    """
    if not isinstance(body, list) or len(body) < 4 or type(body[2]) is not int:
        raise RemoteProtocolError("malformed page of a snapshot")
    cursor = body[3]
    if cursor is not None and not isinstance(cursor, bytes):
        raise RemoteProtocolError("malformed page of a snapshot")
    sure = checked_positions(body[0])
    have = checked_positions(body[4]) if len(body) > 4 else sure
    return Page(sure, checked_positions(body[1]), body[2], cursor, have)
