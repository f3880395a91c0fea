"""Files that a mount has made and not closed yet: what is set of them need not be waited for.

A program that makes a file sets its mode, owner and times before it closes it. Each of these calls
would be a round trip, although hardly anybody looks at the file meanwhile. So the mount that made
it tells the other mounts, with the row that makes it, that it is a *draft*. What it sets of a draft
it commits and does not wait for; it waits once, when the file is closed. A mount that is to show a
draft made elsewhere asks its maker first, and shows it when the answer has come: that ends the
draft, and it follows all rows. So whoever looks sees all that was set before (promise 4).

Marks travel on the stream of rows: `+inode` not after the row that makes it, `-inode` after all
rows committed before the draft ended. Hence: a mount that has the row and no mark has everything
whose call returned without waiting for it.

Who watches a directory should not have to look for old drafts in it: they end after `DRAFT_S`, when
another begins.
A draft also ends when a mount connects, which has no marks of it, and when a mount knew the file
already, by another node's relay: it says so with its acknowledgement. When a session ends the
peer's drafts are as settled as they can be: it is not connected.
Bounded by `limits.DRAFTS_MAX`, what would be more is waited for; waits by `limits.LEASE_TIMEOUT_S`.
"""

import logging
from collections.abc import Collection, Iterable, Sequence
from typing import Protocol

import trio

from dfsfs.base.errors import RemoteProtocolError
from dfsfs.base.limits import DRAFT_S, DRAFTS_HEARD_MAX, DRAFTS_MAX, LEASE_TIMEOUT_S
from dfsfs.base.types import InodeId, NodeId
from dfsfs.runtime import Bounds

log = logging.getLogger(__name__)


class Channel(Protocol):
    """The way to one mount, in order with rows."""

    def mark(self, mark: int) -> None:
        """`inode`: it is a draft. `-inode`, after what was committed so far: not any more."""
        ...

    def ask(self, inode: InodeId) -> None:
        """Have the peer end a draft of its own."""
        ...

    def hurry(self) -> None:
        """Send without gathering more."""
        ...


class Drafts:
    """The drafts of this mount, and those of others. Implements `vfs.Drafts`. Loop only."""

    def __init__(self) -> None:
        self._own: dict[InodeId, float] = {}  # since when, oldest first
        self._channels: dict[NodeId, Channel] = {}  # to mounts that are counted: they get marks
        self._ways: dict[NodeId, Channel] = {}  # to all peers with a session
        self._elsewhere: dict[InodeId, NodeId] = {}
        self._asked: set[InodeId] = set()
        self._settled = trio.lowlevel.ParkingLot()
        self.questions = 0  # asked of other mounts

    def bounded(self) -> Bounds:
        """What of it is bounded, and how full that is."""
        return {
            "drafts": [len(self._own), DRAFTS_MAX],
            "drafts_elsewhere": [len(self._elsewhere), DRAFTS_HEARD_MAX],
        }

    # -- of this mount --------------------------------------------------------------------------

    def begin(self, inode: InodeId) -> None:
        """This mount has just made a file, in this step, and has it open."""
        now_s = trio.current_time()
        while self._own and now_s - next(iter(self._own.values())) > DRAFT_S:
            self.end(next(iter(self._own)))  # a log, perhaps, that stays open for days
        if len(self._own) < DRAFTS_MAX:
            self._own[inode] = now_s
            for channel in self._channels.values():
                channel.mark(inode)

    def end(self, inode: InodeId) -> bool:
        """From now on everybody waits for what is set of it; False if that was so already."""
        if inode not in self._own:
            return False
        del self._own[inode]
        for channel in self._channels.values():
            channel.mark(-inode)
        return True

    def is_own(self, inode: InodeId) -> bool:
        """Whether nobody needs to wait for what this mount sets of it."""
        return inode in self._own

    def asked(self, node: NodeId, inode: InodeId) -> None:
        """Another mount is about to show it."""
        way = self._ways.get(node)
        if way is None:
            return
        if not self.end(inode):
            way.mark(-inode)  # said already; if that was lost in a gap, here it is again
        way.hurry()

    # -- of others ------------------------------------------------------------------------------

    @property
    def elsewhere(self) -> Collection[InodeId]:
        """What other mounts are making, as far as is known here."""
        return self._elsewhere.keys()

    def is_elsewhere(self, inode: InodeId) -> bool:
        """Whether it has to be `settled` before it is shown here."""
        return inode in self._elsewhere

    async def settled(self, inodes: Sequence[InodeId]) -> None:
        """Return when all that their makers had set of these, when this was called, is here."""
        with trio.move_on_after(LEASE_TIMEOUT_S) as scope:
            while waiting := [inode for inode in inodes if inode in self._elsewhere]:
                for inode in waiting:
                    way = self._ways.get(self._elsewhere[inode])
                    if way is not None and inode not in self._asked:
                        self._asked.add(inode)
                        self.questions += 1
                        way.ask(inode)
                await self._settled.park()
        if scope.cancelled_caught:
            log.info("no answer about %d files being made elsewhere: going on without", len(inodes))
            self._forget(inodes)

    def begun(self, node: NodeId, inodes: Iterable[InodeId]) -> None:
        """A peer makes these; the rows that make them are not applied yet."""
        for inode in inodes:
            if len(self._elsewhere) >= DRAFTS_HEARD_MAX:
                raise RemoteProtocolError("peers make more files at a time than they may")
            self._elsewhere[inode] = node

    def ended(self, inodes: Iterable[InodeId]) -> None:
        """A peer has ended its drafts; all rows before that are applied."""
        self._forget(inodes)

    def _forget(self, inodes: Iterable[InodeId]) -> None:
        for inode in inodes:
            self._elsewhere.pop(inode, None)
            self._asked.discard(inode)
        self._settled.unpark_all()

    # -- peers ----------------------------------------------------------------------------------

    def met(self, node: NodeId, way: Channel) -> None:
        """A session began: this is the way to its peer."""
        self._ways[node] = way
        self._ask_again(node)

    def connected(self, node: NodeId) -> None:
        """A mount is counted from now on; it has all rows so far, and no marks."""
        for inode in sorted(self._own):
            self.end(inode)
        self._channels[node] = self._ways[node]

    def level(self, node: NodeId) -> None:
        """All rows are here that this peer had before its present session; its marks follow."""
        self._forget([inode for inode, maker in self._elsewhere.items() if maker == node])

    def disconnected(self, node: NodeId) -> None:
        """The session is over, and the peer knows."""
        self._channels.pop(node, None)
        self._ways.pop(node, None)
        self.level(node)

    def _ask_again(self, node: NodeId) -> None:
        self._asked -= {inode for inode, maker in self._elsewhere.items() if maker == node}
        self._settled.unpark_all()
