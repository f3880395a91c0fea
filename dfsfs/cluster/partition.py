"""How much of the network this node is connected with, and whether it may change anything then.

`continue` (the default): a mount goes on with what it can reach; merging is for later. `readonly`:
changes fail with EROFS while fewer than a majority of the known mounts are connected, this one
included; of two equal halves, the one with the smallest node id goes on. So at most one side of a
partition changes anything, and nothing has to be merged. A mount counts as known until it is
removed from the network (`dfs peers remove`), whether it was stopped in good order or not: nobody
else can tell.

Every change is one line in the log. Sync; told by `Leases` and the member table.
"""

import logging
from collections.abc import Callable
from typing import Any, Literal

from dfsfs.base.types import NodeId
from dfsfs.cluster.members import MemberTable

log = logging.getLogger(__name__)

Policy = Literal["continue", "readonly"]


class PartitionWatch:
    """Owned by the cluster; `connected` gives the mounts that are connected now, without us."""

    def __init__(
        self,
        members: MemberTable,
        connected: Callable[[], set[NodeId]],
        *,
        policy: Policy,
        mounts: bool,
    ) -> None:
        self._members = members
        self._connected = connected
        self._policy = policy
        self._mounts = mounts
        self._shown: tuple[frozenset[NodeId], frozenset[NodeId]] | None = None
        self.read_only = False
        self.changes = 0

    def update(self) -> None:
        """Somebody came or went."""
        reached, known = self._look()
        if (reached, known) == self._shown:
            return
        first = self._shown is None
        self._shown = reached, known
        was_read_only = self.read_only
        self.read_only = self._policy == "readonly" and not has_majority(reached, known)
        if not first:
            self.changes += 1
            missing = ", ".join(self._name(node) for node in sorted(known - reached))
            log.info(
                "connected with %s",
                f"{len(reached)} of {len(known)} mounts; not with {missing}"
                if missing
                else f"all {len(known)} mounts",
            )
        if self.read_only and not was_read_only:
            log.warning("read-only: fewer than a majority of the mounts are connected")
        elif was_read_only and not self.read_only:
            log.info("no longer read-only")

    def status(self) -> dict[str, Any]:
        """For `dfs status`."""
        reached, known = self._look()
        return {
            "policy": self._policy,
            "state": (
                "whole"
                if reached == known
                else "majority"
                if has_majority(reached, known)
                else "minority"
            ),
            "mounts_connected": len(reached),
            "mounts_known": len(known),
            "read_only": self.read_only,
            "changes": self.changes,
        }

    def _look(self) -> tuple[frozenset[NodeId], frozenset[NodeId]]:
        own = {self._members.own} if self._mounts else set()
        known = {member.node for member in self._members.current() if member.mounts} | own
        return frozenset((self._connected() & known) | own), frozenset(known)

    def _name(self, node: NodeId) -> str:
        member = self._members.get(node)
        return node.hex()[:12] if member is None else member.name


def has_majority(reached: frozenset[NodeId], known: frozenset[NodeId]) -> bool:
    """Whether these may go on when at most one side may; true of one side at most."""
    if 2 * len(reached) != len(known):
        return 2 * len(reached) > len(known)
    return not known or min(known) in reached
