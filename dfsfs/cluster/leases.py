"""Write leases in use: gives the table of `lease` time, tasks and the ordered channel of rows.

    if not leases.held(inodes):
        await leases.acquire(inodes)
    ...                              # validate and act, without an await

Grants travel on the channel on which this node's rows travel, so whoever gets one has applied, and
its kernel has forgotten, everything that was done under the lease before.

A lease is given away only in a step of its own, never in the step in which `acquire` returns: so
what its caller does before its next await is done under the lease, and nothing has to be released.
What a file's write buffer holds is under its lease as well: it is written back before that goes.

Waits are bounded by `limits.LEASE_TIMEOUT_S`. After that the node acts as one that is not connected
to who did not answer: merging is what is left then (coherence is never the only safety).
"""

import logging
import math
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import trio

from dfsfs.base.errors import DfsError, ReadOnly, RemoteProtocolError
from dfsfs.base.limits import JOINING_TIMEOUT_S, LEASE_TIMEOUT_S, LEASES_PER_MESSAGE_MAX
from dfsfs.base.types import InodeId, NodeId, Origin
from dfsfs.cluster.ahead import RunsOfRequests
from dfsfs.cluster.lease import Grant, HandOver, LeaseTable, Ready, Request
from dfsfs.runtime import Bounds, World

log = logging.getLogger(__name__)

Channel = Callable[[Request | Grant], None]
"""Sends to one peer, after every row committed so far, in order."""

INODE_MAX = (1 << 63) - 1


@dataclass(slots=True)
class LeaseStatistics:
    """Counts since the start."""

    waits: int = 0  # acquisitions that did not find everything here
    timeouts: int = 0
    requests: int = 0  # sent
    grants: int = 0  # sent
    given_ahead: int = 0  # of those: before they were asked for, or nobody needed to
    written_back: int = 0  # files written back for another node


class Leases:
    """The leases of one node. Owned by the cluster; fed by `Exchange`, used by the vfs."""

    def __init__(
        self,
        world: World,
        own: NodeId,
        origin: Origin,
        *,
        mounts: bool,
        is_dirty: Callable[[InodeId], bool],
        write_back: Callable[[InodeId], Awaitable[None]],
        peers_changed: Callable[[], None] = lambda: None,
        following: Callable[[InodeId, int], Sequence[InodeId]] = lambda inode, limit: (),
    ) -> None:
        """`is_dirty` tells whether there is something to write back before an inode's lease goes.

        `write_back` returns when all of it is in rows of this node. `peers_changed` is called when
        a peer is connected or not any more. `following` tells what stands behind an inode in the
        tree: who has asked for that one asks for those next.
        """
        self._following = following
        self._runs = RunsOfRequests()
        self._peers_changed = peers_changed
        self.read_only = False  # nothing may be changed here now (`--on-partition readonly`)
        self._world = world
        self._table = LeaseTable(own, origin, mounts=mounts)
        self._is_dirty = is_dirty
        self._write_back = write_back
        self._channels: dict[NodeId, Channel] = {}
        self._active: set[NodeId] = set()
        self._met: set[NodeId] = set()  # sessions that are not level yet
        self._join_until_s = 0.0
        self._ready: dict[InodeId, trio.Event] = {}
        self._changed = trio.lowlevel.ParkingLot()  # peers came or went
        self._wake = trio.Event()
        self._timer_s: float | None = None  # when `run` looks again by itself
        self._nursery: trio.Nursery | None = None
        self.statistics = LeaseStatistics()

    def bounded(self) -> Bounds:
        """What of it is bounded, and how full that is."""
        return self._table.bounded()

    @property
    def count(self) -> int:
        """Inodes whose lease is not where it is by default, or on its way."""
        return len(self._table)

    # -- users --------------------------------------------------------------------------------

    def held(self, inodes: Iterable[InodeId]) -> bool:
        """Whether all of these may be changed now, in this step."""
        if self.read_only:
            return False
        if not self._channels:
            return not self._met or not self.joining
        return all(map(self._table.held, inodes))

    async def acquire(self, inodes: Iterable[InodeId]) -> None:
        """Return when all of these may be changed, until the caller's next await.

        Or after `limits.LEASE_TIMEOUT_S`, as if who did not answer were not connected.

        Raises:
            ReadOnly: too few mounts are connected, and the operator wants none changed then.
        """
        wanted = sorted(set(inodes))
        self.statistics.waits += 1
        with trio.move_on_after(LEASE_TIMEOUT_S) as scope:
            await self._joined()
            while not await self._enter_all(wanted, scope.deadline):
                pass  # somebody joined meanwhile
        if self.read_only:
            raise ReadOnly("too few mounts are connected")
        if scope.cancelled_caught:
            self.statistics.timeouts += 1
            log.info("no answer about inodes %s: going on without", wanted)

    async def _enter_all(self, wanted: Sequence[InodeId], deadline_s: float) -> bool:
        """Enter one after the other, and leave at once; whether all were here at the end."""
        entered: list[InodeId] = []
        try:
            for inode in wanted:
                await self._enter(inode, deadline_s)
                entered.append(inode)
            return all(map(self._table.complete, wanted))
        finally:
            now_s = self._world.now_s()
            for inode in entered:
                self._table.leave(inode, now_s)
            if self._table.actions:
                self._wake.set()
            self._set_timer()

    async def _enter(self, inode: InodeId, deadline_s: float) -> None:
        table = self._table
        if table.enter(inode, self._world.now_s()):
            return
        table.wait(inode, self._world.now_s())
        event = self._ready.setdefault(inode, trio.Event())
        self._act()
        try:
            await event.wait()
        except trio.Cancelled:
            if event.is_set():
                table.leave(inode, self._world.now_s())
            else:
                overdue = trio.current_time() >= deadline_s
                table.give_up(inode, self._world.now_s(), overdue=overdue)
            self._wake.set()
            raise

    # -- joining ------------------------------------------------------------------------------

    @property
    def joining(self) -> bool:
        """Whether there are sessions, and none is level: a node that starts or comes back."""
        return bool(self._met) and not self._active and self._world.now_s() < self._join_until_s

    async def _joined(self) -> None:
        while self.joining:
            with trio.move_on_after(self._join_until_s - self._world.now_s()):
                await self._changed.park()

    def met(self, node: NodeId) -> None:
        """A session began."""
        if not self._met and not self._active:
            self._join_until_s = self._world.now_s() + JOINING_TIMEOUT_S
        self._met.add(node)

    def join_later(self) -> None:
        """It is a long way until this node is level: changes do not wait for that."""
        self._join_until_s = -math.inf
        self._changed.unpark_all()

    # -- fed by exchange ----------------------------------------------------------------------

    def connected(
        self, node: NodeId, origin: Origin, *, mounts: bool, level: bool, channel: Channel
    ) -> None:
        """The peer was told that from now on it is counted; `level`: it has told us the same."""
        self._channels[node] = channel
        self._table.connect(node, origin, mounts=mounts, active=level, now_s=self._world.now_s())
        self._active.discard(node)
        self._met.add(node)
        if level:
            self._level(node)
        self._act()

    def level(self, node: NodeId) -> None:
        """What the peer had before it began to count us was applied here."""
        if node in self._channels:
            self._table.activate(node, self._world.now_s())
            self._level(node)
            self._act()

    def _level(self, node: NodeId) -> None:
        self._active.add(node)
        self._met.discard(node)
        self._changed.unpark_all()
        self._peers_changed()

    @property
    def connected_nodes(self) -> set[NodeId]:
        """The peers with whom it is agreed who may change what."""
        return set(self._active)

    def disconnected(self, node: NodeId) -> None:
        """The session is over, and the peer knows."""
        self._met.discard(node)
        self._active.discard(node)
        self._runs.disconnected(node)
        if self._channels.pop(node, None) is not None:
            self._table.disconnect(node, self._world.now_s())
        self._changed.unpark_all()
        self._act()
        self._peers_changed()

    def received(self, node: NodeId, body: Any) -> None:
        """What a peer's table sent, checked here.

        Raises:
            RemoteProtocolError: malformed, or not what it may say now.
        """
        if not isinstance(body, list) or len(body) > LEASES_PER_MESSAGE_MAX:
            raise RemoteProtocolError("malformed lease message")
        now_s = self._world.now_s()
        ahead: list[InodeId] = []
        for item in body:
            if not (
                isinstance(item, list)
                and len(item) in (1, 2)
                and all(type(value) is int for value in item)
                and 0 < item[0] <= INODE_MAX
            ):
                raise RemoteProtocolError("malformed lease message")
            if len(item) == 1:
                self._table.granted(node, InodeId(item[0]), now_s)
            else:
                inode = InodeId(item[0])
                self._table.requested(node, inode, item[1], now_s)
                if more := self._runs.requested(node, inode, now_s):
                    ahead += self._following(inode, more)
        self._act()
        if ahead:
            self._give_ahead(node, ahead, now_s)

    def _give_ahead(self, node: NodeId, inodes: Iterable[InodeId], now_s: float) -> None:
        """Give what nobody works on here, behind what was asked for."""
        for inode in inodes:
            if not self._is_dirty(inode):
                self._table.give(node, inode, now_s)
                self.statistics.given_ahead += 1
        self._act()

    # -- acting -------------------------------------------------------------------------------

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write back, and end what rests, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            while True:
                self._timer_s = self._table.rest_until_s()
                wait_s = math.inf
                if self._timer_s is not None:
                    wait_s = max(0.0, self._timer_s - self._world.now_s())
                with trio.move_on_after(wait_s):
                    await self._wake.wait()
                self._wake = trio.Event()
                self._table.tick(self._world.now_s())
                self._act()

    def _act(self) -> None:
        """Carry out what the table wants."""
        table = self._table
        while table.actions:
            actions, table.actions = table.actions, []
            for action in actions:
                if isinstance(action, Ready):
                    self._ready.pop(action.inode).set()
                elif isinstance(action, HandOver):
                    self._hand_over(action.inode)
                else:
                    self._send(action)
        self._set_timer()

    def _set_timer(self) -> None:
        """Have `run` look again when the next peace ends."""
        rest_until_s = self._table.rest_until_s()
        if rest_until_s is not None and (self._timer_s is None or rest_until_s < self._timer_s):
            self._wake.set()

    def _send(self, action: Request | Grant) -> None:
        if isinstance(action, Request):
            self.statistics.requests += 1
        else:
            self.statistics.grants += 1
        self._channels[action.peer](action)

    def _hand_over(self, inode: InodeId) -> None:
        if self._is_dirty(inode):
            assert self._nursery is not None, "leases are asked for before they run"
            self._nursery.start_soon(self._write_back_first, inode)
        else:
            self._table.handed_over(inode, self._world.now_s())

    async def _write_back_first(self, inode: InodeId) -> None:
        self.statistics.written_back += 1
        try:
            with trio.move_on_after(LEASE_TIMEOUT_S):
                await self._write_back(inode)
        except DfsError as error:
            # It stays dirty, and will be a version of its own beside what the other writes.
            log.warning("inode %d is not written back before its lease goes: %s", inode, error)
        self._table.handed_over(inode, self._world.now_s())
        self._act()
