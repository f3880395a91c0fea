"""Which leases a peer will ask for next, as read-ahead does it for blocks.

Who removes, moves or changes a tree that another mount has made needs the lease of each inode in
it. The holder sees the requests come one after the other, and gives what follows together with what
was asked for: a few at first, twice as many each time. A grant that nobody asked for is nothing new
(`lease`), so who gets them needs to know nothing of this.

What follows is a guess: an inode asked for again tells nothing (two mounts take turns there), and a
pause ends the run. Pure; bounded by `limits.LEASES_AHEAD_MAX`.
"""

from dataclasses import dataclass, field

from dfsfs.base.limits import LEASE_RUN_S, LEASES_AHEAD_MAX
from dfsfs.base.types import InodeId, NodeId


@dataclass(slots=True)
class _Run:
    """What one peer has been asking for."""

    last_s: float
    window: int = 1
    asked: set[InodeId] = field(default_factory=set)


class RunsOfRequests:
    """The runs of all peers. Owned by `Leases`."""

    def __init__(self) -> None:
        self._runs: dict[NodeId, _Run] = {}

    def requested(self, node: NodeId, inode: InodeId, now_s: float) -> int:
        """How many leases to give beyond this one, which a peer has just asked for."""
        run = self._runs.get(node)
        # Who was given more comes back later.
        if run is None or now_s - run.last_s > LEASE_RUN_S * (1 + run.window / 8):
            self._runs[node] = _Run(now_s, asked={inode})
            return 0
        run.last_s = now_s
        if inode in run.asked:
            return 0
        if len(run.asked) >= LEASES_AHEAD_MAX:
            run.asked.clear()
        run.asked.add(inode)
        run.window = min(2 * run.window, LEASES_AHEAD_MAX)
        return run.window

    def disconnected(self, node: NodeId) -> None:
        """The peer is gone."""
        self._runs.pop(node, None)
