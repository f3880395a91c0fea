"""Who may change an inode: one permission for each inode and pair of connected nodes.

The pure half of write leases; `leases` gives it time, tasks and a wire. For every inode and every
pair of connected nodes exactly one of the two has the pair's *permission* (the fork of Chandy and
Misra, "The drinking philosophers problem", 1984; kept until asked for, as Roucairol and Carvalho,
1983). A node *holds* the lease of an inode when it has the permission against every connected node.
Nothing is stored until a permission moves: until then it belongs to the node that made the inode
(`default_holder`).

Requests carry a Lamport stamp, and the earlier one wins (Ricart and Agrawala, 1981): who waits for
a lease with a later stamp gives up what it has of it. So one inode is always given to the earliest
request, and users of several inodes acquire them in ascending order: nobody waits in a circle.

    enter     use a lease that is here             leave    done with it
    wait      queue for one that is not            Ready    everybody who waited has entered
    HandOver  it must go: write back, then `handed_over`

A holder that waited for a lease is left in peace for `limits.LEASE_PEACE_S`, so that two busy nodes
take turns in batches and not call by call.

Invariants, given channels that keep order and a session's two ends that begin and end it together:
two connected nodes never have the same pair's permission; a node has at most one request on its way
for each peer and inode, so messages are bounded by twice the number of waits.
Sync; time comes as an argument; what is to be done comes out as `actions`, in order.
"""

from dataclasses import dataclass
from typing import NamedTuple

from dfsfs.base.errors import RemoteProtocolError
from dfsfs.base.limits import LEASE_ORIGINS_MAX, LEASE_PEACE_S, LEASES_GIVEN_MAX, LEASES_MAX
from dfsfs.base.types import ORIGIN_SHIFT, InodeId, NodeId, Origin
from dfsfs.runtime import Bounds

STAMP_MAX = 1 << 62


class Request(NamedTuple):
    """Ask `peer` for its permission."""

    peer: NodeId
    inode: InodeId
    stamp: int


class Grant(NamedTuple):
    """Tell `peer` that the permission is its own now; after all rows committed so far."""

    peer: NodeId
    inode: InodeId


class Ready(NamedTuple):
    """All who waited for this inode hold it now and have entered."""

    inode: InodeId


class HandOver(NamedTuple):
    """Write back what is dirty here of this inode, then call `handed_over`."""

    inode: InodeId


Action = Request | Grant | Ready | HandOver


@dataclass(slots=True)
class _Peer:
    """A node that changes must be agreed with."""

    origin: Origin
    mounts: bool
    active: bool  # we hold all it had before it began to count us: its permissions can be used
    given: int = 0  # permissions that are ours by default and have moved to it


class _Lease:
    """What is not as it is by default of one inode."""

    __slots__ = (
        "asked",
        "moved",
        "open",
        "overdue",
        "peace_until_s",
        "pending",
        "stamp",
        "users",
        "waiters",
        "yielding",
    )

    def __init__(self) -> None:
        self.moved: dict[NodeId, bool] = {}  # permissions not where they are by default; ours?
        self.asked: set[NodeId] = set()  # who has an unanswered request of ours
        self.pending: dict[NodeId, int] = {}  # unanswered requests of others, with their stamps
        self.overdue: set[NodeId] = set()  # whose answer nobody waits for any more
        self.stamp: int | None = None  # of our own request
        self.waiters = 0
        self.users = 0
        self.peace_until_s = 0.0
        self.yielding = False  # between HandOver and `handed_over`
        self.open = False  # whoever comes may enter


class LeaseTable:
    """All leases as one node sees them. Owned by `Leases`."""

    def __init__(self, own: NodeId, origin: Origin, *, mounts: bool) -> None:
        self._own = own
        self._origin = origin
        self._mounts = mounts
        self._peers: dict[NodeId, _Peer] = {}
        self._leases: dict[InodeId, _Lease] = {}
        self._taken: dict[InodeId, None] = {}  # permissions of others are here; oldest first
        self._resting: set[InodeId] = set()  # in peace although somebody asks
        self._defaults: dict[int, bool] = {}  # by origin of an inode: do we hold it?
        self._clock = 0
        self.actions: list[Action] = []

    def __len__(self) -> int:
        return len(self._leases)

    def bounded(self) -> Bounds:
        """What of it is bounded, and how full that is."""
        given = max((peer.given for peer in self._peers.values()), default=0)
        return {
            "leases_taken": [len(self._taken), LEASES_MAX],
            "leases_given": [given, LEASES_GIVEN_MAX],
            "lease_origins": [len(self._defaults), LEASE_ORIGINS_MAX],
        }

    # -- peers --------------------------------------------------------------------------------

    def connect(
        self, node: NodeId, origin: Origin, *, mounts: bool, active: bool, now_s: float
    ) -> None:
        """From now on nothing is changed that this peer has the permission for.

        Until it is `active` all are taken to be its own: it may still change what it likes, and
        what it changed has not arrived here.
        """
        if node in self._peers:
            self.disconnect(node, now_s)
        self._peers[node] = _Peer(origin, mounts, active)
        self._reconsider_all(now_s)

    def activate(self, node: NodeId, now_s: float) -> None:
        """All this peer had before it began to count us is here: permissions are as by default."""
        self._peers[node].active = True
        self._reconsider_all(now_s)

    def disconnect(self, node: NodeId, now_s: float) -> None:
        """The session is over, and the peer knows: its permissions are void on both sides."""
        if self._peers.pop(node, None) is None:
            return
        for inode, lease in self._leases.items():
            if lease.moved.pop(node, False) and not any(lease.moved.values()):
                self._taken.pop(inode, None)
            lease.asked.discard(node)
            lease.pending.pop(node, None)
            lease.overdue.discard(node)
        self._reconsider_all(now_s)

    def _reconsider_all(self, now_s: float) -> None:
        self._defaults.clear()
        for inode in list(self._leases):
            self._settle(inode, now_s)

    # -- users --------------------------------------------------------------------------------

    def held(self, inode: InodeId) -> bool:
        """Whether the lease is here, and whoever comes may use it at once."""
        lease = self._leases.get(inode)
        if lease is not None:
            return lease.open
        origin = inode >> ORIGIN_SHIFT
        held = self._defaults.get(origin)
        if held is None:
            if len(self._defaults) >= LEASE_ORIGINS_MAX:
                self._defaults.clear()
            held = self._defaults[origin] = all(
                peer.active and self._ours_by_default(origin, node)
                for node, peer in self._peers.items()
            )
        return held

    def complete(self, inode: InodeId) -> bool:
        """Whether nobody else may change it, so that a user of this node may act."""
        lease = self._leases.get(inode)
        if lease is None:
            return self.held(inode)
        return not self._missing(inode, lease)

    def enter(self, inode: InodeId, now_s: float) -> bool:
        """Use the lease from now until `leave`, if it is here."""
        if not self.held(inode):
            return False
        self._lease(inode, now_s).users += 1
        return True

    def leave(self, inode: InodeId, now_s: float) -> None:
        """A use is over."""
        lease = self._leases[inode]
        assert lease.users > 0
        lease.users -= 1
        self._settle(inode, now_s)

    def wait(self, inode: InodeId, now_s: float) -> None:
        """Ask for the lease; `Ready` tells when it is here."""
        lease = self._lease(inode, now_s)
        lease.waiters += 1
        if lease.stamp is None:
            self._clock += 1
            lease.stamp = self._clock
        self._settle(inode, now_s)

    def give_up(self, inode: InodeId, now_s: float, *, overdue: bool = False) -> None:
        """A wait is over before it came to anything.

        `overdue`: it took too long; until they answer, those who have not are not waited for again.
        """
        lease = self._leases[inode]
        assert lease.waiters > 0
        lease.waiters -= 1
        if overdue:
            lease.overdue |= lease.asked | {
                node for node, peer in self._peers.items() if not peer.active
            }
        self._settle(inode, now_s)

    def handed_over(self, inode: InodeId, now_s: float) -> None:
        """What was dirty is in rows: grant what was asked for, and ask again if needed."""
        lease = self._leases[inode]
        assert lease.yielding
        lease.yielding = False
        for stamp, node in sorted((stamp, node) for node, stamp in lease.pending.items()):
            if self._goes_first(lease, stamp, node):
                del lease.pending[node]
                self._move(inode, lease, node, ours=False)
                self.actions.append(Grant(node, inode))
        self._settle(inode, now_s)

    def tick(self, now_s: float) -> None:
        """Time has passed: end the peace of those who had it."""
        for inode in sorted(self._resting):
            self._settle(inode, now_s)

    def rest_until_s(self) -> float | None:
        """When `tick` is due next."""
        return min((self._leases[inode].peace_until_s for inode in self._resting), default=None)

    # -- messages -----------------------------------------------------------------------------

    def requested(self, node: NodeId, inode: InodeId, stamp: int, now_s: float) -> None:
        """A peer asks for its pair's permission."""
        if not 0 <= stamp < STAMP_MAX:
            raise RemoteProtocolError("a lease request from the end of time")
        self._clock = max(self._clock, stamp)
        peer = self._peers.get(node)
        if peer is None or not peer.active:
            raise RemoteProtocolError("a lease request before its session is level")
        lease = self._lease(inode, now_s)
        # Without the permission here: the request has crossed the grant that answers it.
        if self._has(inode, lease, node):
            if peer.given >= LEASES_GIVEN_MAX:
                raise RemoteProtocolError("a peer keeps more leases than it may")
            lease.pending[node] = stamp
        self._settle(inode, now_s)

    def give(self, node: NodeId, inode: InodeId, now_s: float) -> None:
        """Let a peer have a permission it is likely to ask for, if it is here and nobody's need."""
        peer = self._peers.get(node)
        if peer is None or not peer.active or 2 * peer.given > LEASES_GIVEN_MAX:
            return
        lease = self._lease(inode, now_s)
        in_use = lease.users or lease.waiters or lease.asked or lease.yielding or lease.pending
        if not in_use and now_s >= lease.peace_until_s and self._has(inode, lease, node):
            lease.pending[node] = 0  # as if it had asked
        self._settle(inode, now_s)

    def granted(self, node: NodeId, inode: InodeId, now_s: float) -> None:
        """A peer gives its pair's permission, asked for or not."""
        peer = self._peers.get(node)
        lease = self._leases.get(inode)
        if (
            peer is None
            or not peer.active
            or (lease is None and self._ours_by_default(inode >> ORIGIN_SHIFT, node))
            or (lease is not None and self._has(inode, lease, node))
        ):
            raise RemoteProtocolError("a lease was granted that is here already")
        lease = self._lease(inode, now_s)
        lease.asked.discard(node)
        lease.overdue.discard(node)
        self._move(inode, lease, node, ours=True)
        self._settle(inode, now_s)
        if len(self._taken) > LEASES_MAX:
            self._give_back(now_s)

    # -- arithmetic ---------------------------------------------------------------------------

    def _lease(self, inode: InodeId, now_s: float) -> _Lease:
        lease = self._leases.get(inode)
        if lease is None:
            held = self.held(inode)
            lease = self._leases[inode] = _Lease()
            lease.open = held
        return lease

    def _ours_by_default(self, origin: int, node: NodeId) -> bool:
        """Whether the pair's permission for inodes of `origin` is ours until it moves.

        A mount's rather than a node's that has none, since it will be asked for there; else its
        maker's; else that of the smaller node id. Both sides come to the same answer.
        """
        peer = self._peers[node]
        if peer.mounts != self._mounts:
            return self._mounts
        if (origin == self._origin) != (origin == peer.origin):
            return origin == self._origin
        return self._own < node

    def _has(self, inode: InodeId, lease: _Lease, node: NodeId) -> bool:
        """Whether the pair's permission is here."""
        moved = lease.moved.get(node)
        if moved is not None:
            return moved
        return self._peers[node].active and self._ours_by_default(inode >> ORIGIN_SHIFT, node)

    def _move(self, inode: InodeId, lease: _Lease, node: NodeId, *, ours: bool) -> None:
        peer = self._peers[node]
        by_default = self._ours_by_default(inode >> ORIGIN_SHIFT, node)
        if by_default:
            peer.given += -1 if ours else 1
        if ours == by_default:
            lease.moved.pop(node, None)
        else:
            lease.moved[node] = ours
        if any(lease.moved.values()):
            self._taken[inode] = None
        else:
            self._taken.pop(inode, None)

    def _goes_first(self, lease: _Lease, stamp: int, node: NodeId) -> bool:
        """Whether a peer's request comes before our own."""
        return lease.stamp is None or (stamp, node) < (lease.stamp, self._own)

    def _settle(self, inode: InodeId, now_s: float) -> None:
        """Bring one lease to rest: who may use it, who must be asked, who is to have it."""
        lease = self._leases[inode]
        if not lease.waiters and not lease.asked:
            lease.stamp = None  # not before: what others were told is what they compare with
        self._resting.discard(inode)
        if lease.yielding:
            lease.open = False
            return
        missing = self._missing(inode, lease)
        others_first = any(
            self._goes_first(lease, stamp, node) for node, stamp in lease.pending.items()
        )
        if lease.waiters and not missing and not others_first:
            lease.users += lease.waiters
            lease.waiters = 0
            lease.peace_until_s = now_s + LEASE_PEACE_S
            if not lease.asked:
                lease.stamp = None
            self.actions.append(Ready(inode))
            others_first = bool(lease.pending)
        rests = not missing and now_s < lease.peace_until_s
        if others_first and not lease.users and not rests:
            lease.yielding = True
            lease.open = False
            self.actions.append(HandOver(inode))
            return
        if others_first and rests:
            self._resting.add(inode)
        lease.open = not missing and (rests or not lease.pending)
        if lease.waiters:
            self._ask(inode, lease, missing)
        elif self._is_default(lease):
            del self._leases[inode]

    def _missing(self, inode: InodeId, lease: _Lease) -> list[NodeId]:
        """Whose permission would be waited for."""
        return [
            node
            for node in self._peers
            if node not in lease.overdue and not self._has(inode, lease, node)
        ]

    def _ask(self, inode: InodeId, lease: _Lease, missing: list[NodeId]) -> None:
        assert lease.stamp is not None
        for node in missing:
            if node not in lease.asked and self._peers[node].active:
                lease.asked.add(node)
                self.actions.append(Request(node, inode, lease.stamp))

    def _is_default(self, lease: _Lease) -> bool:
        return not (lease.users or lease.moved or lease.asked or lease.pending or lease.overdue)

    def _give_back(self, now_s: float) -> None:
        """Return what was taken longest ago and is not used, to bound memory here and there."""
        for inode in self._taken:
            lease = self._leases[inode]
            if not (lease.users or lease.waiters or lease.yielding or lease.pending):
                # As if those it is by default had asked.
                lease.pending = {node: 0 for node, ours in lease.moved.items() if ours}
                self._settle(inode, now_s)
                return
