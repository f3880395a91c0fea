"""What the vfs needs from above, in words: publication, facts about the network, a kernel's caches.

`cluster` and `fuse` implement these; the vfs knows neither. `vfs.local` has the implementations of
a node alone and of a filesystem without a mount.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from dfsfs.base.types import ContentRef, InodeId


class Publication(Protocol):
    """When may a call return? Positions are those of `Namespace.position`."""

    async def visible(self, position: int) -> None:
        """Return when every connected mount has applied our rows up to `position`.

        Its kernel has forgotten what they change by then, and as many nodes hold them as the write
        concern asks.

        Raises:
            Unavailable: the write concern is strict and cannot be met.
        """
        ...

    async def durable(self, position: int) -> None:
        """The same, and on stable storage: blocks and rows, here and on the write-concern nodes."""
        ...


class Leases(Protocol):
    """Who may change what, among nodes that can reach each other (promise 5).

    A change is made in the same step in which `held` was true or `acquire` returned, so nothing is
    ever released: an inode that somebody else wants goes when no such step is under way, and after
    what is dirty here of it was written back.
    """

    def held(self, inodes: Sequence[InodeId]) -> bool:
        """Whether this mount may change all of these now. Cheap, and true for a mount alone."""
        ...

    async def acquire(self, inodes: Sequence[InodeId]) -> None:
        """Return when this mount may change all of these, until its next await.

        Bounded: after `limits.LEASE_TIMEOUT_S` it returns as if it were alone.

        Raises:
            ReadOnly: this mount may change nothing now.
        """
        ...


class Drafts(Protocol):
    """Files that one mount has made and not closed yet.

    What that mount sets of them need not be waited for until then; a mount that is to show one
    made elsewhere asks first (promise 4).
    """

    def begin(self, inode: InodeId) -> None:
        """This mount has just made it, in this step."""
        ...

    def end(self, inode: InodeId) -> bool:
        """It is closed: what comes is waited for; whether it was a draft of this mount."""
        ...

    def is_own(self, inode: InodeId) -> bool:
        """Whether nobody needs to wait for what this mount sets of it."""
        ...

    @property
    def elsewhere(self) -> Collection[InodeId]:
        """Those being made elsewhere."""
        ...

    def is_elsewhere(self, inode: InodeId) -> bool:
        """Whether it is being made elsewhere: not to be shown before it is `settled`."""
        ...

    async def settled(self, inodes: Sequence[InodeId]) -> None:
        """Return when what was set of these elsewhere, before this was called, is here.

        Bounded by `limits.LEASE_TIMEOUT_S`; afterwards none of them `is_elsewhere`.
        """
        ...


@dataclass(frozen=True, slots=True)
class Space:
    """What df shows: of the whole network, at the current replication factor."""

    capacity_bytes: int
    free_bytes: int


class Statistics(NamedTuple):
    """statfs(2), in bytes and inodes."""

    capacity_bytes: int
    free_bytes: int
    files: int
    name_bytes_max: int


class FileFacts(Protocol):
    """Values of the virtual xattrs, and the space of the network."""

    async def key_of(self, content: ContentRef) -> str:
        """`user.dfs.key`: `<digest kind>:<hex>:<size>`.

        Of inline bytes the digest they would have as a block.
        """
        ...

    async def replicas(self, content: ContentRef) -> str:
        """`user.dfs.replicas`: the least number of nodes that hold any block of it."""
        ...

    def space(self) -> Space:
        """For statfs; cheap."""
        ...

    def has_room(self) -> bool:
        """Whether this node's disk takes more names and bytes; cheap."""
        ...


class Invalidator(Protocol):
    """Makes a kernel forget. Calls never wait and never fail; the work is done elsewhere."""

    def entry(self, directory: InodeId, name: bytes, *, busy: bool) -> None:
        """Forget what `name` in `directory` is, or that it is nothing."""
        ...

    def attributes(self, inode: InodeId) -> bool:
        """Forget the attributes of an inode; done when this returns.

        False: the kernel does not know the inode, but it may be about to: an answer of ours with
        its old attributes may not have been taken in yet.
        """
        ...

    def pages(self, inode: InodeId, *, busy: bool) -> bool:
        """Forget attributes and cached bytes of a file; False as for `attributes`.

        `busy` (here and for `entry`): a handler that holds the kernel's lock on that inode is
        running, so the kernel complies only after it has returned, and nobody may wait for that.
        """
        ...

    def busy(self, inode: InodeId) -> None:
        """A handler that holds the kernel's lock on this inode is about to wait.

        What was asked for of it before is busy from now on, too.
        """
        ...

    def pages_pending(self, inode: InodeId) -> bool:
        """Whether a call of `pages` for this inode has not reached the kernel yet."""
        ...

    @property
    def waiting(self) -> int:
        """Requests the kernel has not been told yet."""
        ...

    async def settled(self) -> None:
        """Return when everything asked for before now, and not busy then, has reached the kernel.

        Or after `limits.INVALIDATION_TIMEOUT_S`.
        """
        ...
