"""Moving everything off a node before it leaves, and saying when that is done.

A draining node announces weight 0, so placement gives its blocks to others; `repair` on every node
does the copying. This module only keeps the decision across restarts and judges when the node can
be switched off: when a look at all its blocks found each of them on as many others as the factor
asks, and another node has all its rows.
"""

from collections.abc import AsyncGenerator, Callable
from typing import Any

import trio

from dfsfs.cluster.members import MemberTable
from dfsfs.cluster.publication import Publication
from dfsfs.cluster.repair import Repairer
from dfsfs.namespace import Namespace

FACT = "draining"
POLL_S = 0.5


class Drain:
    """The decision to leave. Owned by the cluster."""

    def __init__(
        self,
        members: MemberTable,
        namespace: Namespace,
        publication: Publication,
        repairer: Repairer,
        *,
        copies: int,
        announce: Callable[[], object],
    ) -> None:
        """`announce` publishes this node's record anew."""
        self._copies = copies
        self._members = members
        self._namespace = namespace
        self._publication = publication
        self._repairer = repairer
        self._announce = announce

    def set(self, draining: bool) -> None:
        """Begin to leave, or stay after all."""
        self._members.set_fact(FACT, b"1" if draining else b"0")
        self._announce()

    async def run(self) -> AsyncGenerator[dict[str, Any], None]:
        """Leave: reports until the node can be switched off; the last one is `result`.

        Whoever stops listening does not stop the draining.
        """
        self.set(True)
        while True:
            looks = self._repairer.looks
            self._repairer.look_now()
            while self._repairer.looks == looks:
                yield self._report()
                await trio.sleep(POLL_S)
            yield self._report()
            if self.is_safe():
                if (count := len(self._others())) < self._copies:
                    few = f"only {count} other nodes store blocks now, of {self._copies} wanted"
                    yield {"finding": f"{few}: what they hold has too few copies", "mended": False}
                yield {"result": "drained"}
                return
            if not self._others():
                yield {"result": "nobody", "reason": "there is no other node to take the blocks"}
                return

    def is_safe(self) -> bool:
        """Whether, as of the last look, nothing is lost with this node."""
        shortage = self._repairer.shortage
        return not shortage.short_blocks and not shortage.single_blocks and self._rows_elsewhere()

    def _rows_elsewhere(self) -> bool:
        position = self._namespace.position
        return any(peer.acknowledged >= position for peer in self._publication.peers)

    def _others(self) -> list[str]:
        """Who stores, and is not replaced because it is away."""
        absent = self._members.absent | {self._members.own}
        return [m.name for m in self._members.current() if m.weight and m.node not in absent]

    def _report(self) -> dict[str, Any]:
        shortage = self._repairer.shortage
        return {
            "left_blocks": max(shortage.short_blocks, shortage.single_blocks),
            "missing_copies": shortage.missing_copies,
            "missing_bytes": shortage.missing_bytes,
            "remaining_s": self._repairer.remaining_s,
        }


def is_draining(members: MemberTable) -> bool:
    """Whether this node has decided to leave."""
    return members.fact(FACT) == b"1"
