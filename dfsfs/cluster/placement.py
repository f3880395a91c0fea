"""Which nodes should hold a block: weighted rendezvous hashing. Pure.

Every node computes the same answer from the same members, without a table to agree on; when a
member joins or leaves only the blocks it wins or loses move (Thaler and Ravishankar 1998; the
logarithmic weights are from Mosharaf et al. 2015, "Weighted rendezvous hashing").
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from dfsfs.base.types import Digest, NodeId

_SCALE = float(1 << 64)


class Candidate(NamedTuple):
    """A node that may hold blocks; `weight` is proportional to the share it should get."""

    node: NodeId
    weight: float


def ranked(digest: Digest, candidates: Sequence[Candidate]) -> list[NodeId]:
    """All candidates of positive weight, best holder first; ties by node id."""
    if len(candidates) == 1:
        return [candidates[0].node] if candidates[0].weight > 0 else []
    scored = []
    for node, weight in candidates:
        if weight <= 0:
            continue
        drawn = hashlib.blake2b(digest, digest_size=8, key=node).digest()
        # In (0, 1): half a step away from 0 so that the logarithm is finite.
        uniform = (int.from_bytes(drawn, "big") + 0.5) / _SCALE
        scored.append((math.log(uniform) / weight, node))
    scored.sort(reverse=True)
    return [node for _, node in scored]


def replica_set(digest: Digest, candidates: Sequence[Candidate], copies: int) -> list[NodeId]:
    """The `copies` nodes that should hold the block, best first (fewer if there are fewer)."""
    return ranked(digest, candidates)[:copies]


def receivers(
    order: Sequence[NodeId], copies: int, takes_more: Callable[[NodeId], bool]
) -> list[NodeId]:
    """The first `copies` nodes of an order that take more blocks: where a new block goes.

    What a full node would get goes to the next one, and stays there until the full one has it.
    """
    return [node for node in order if takes_more(node)][:copies]


class Lack(NamedTuple):
    """What one block lacks, as one of its holders sees it."""

    elsewhere: int  # other nodes that have it
    away: int  # nodes that should have it and cannot be asked now
    targets: list[NodeId]  # nodes that should get it
    mine: bool  # whether it is this node's duty to copy it


def lack_of(
    order: Sequence[NodeId],
    copies: int,
    own: NodeId,
    *,
    has: Callable[[NodeId], bool | None],
    takes_more: Callable[[NodeId], bool],
) -> Lack:
    """Who should get a block that `own` holds and of which `order` ranks the nodes.

    `has` is None for who is away. Such a node is counted on: it will be back, or become absent and
    leave the order. The best-ranked holder copies, so that of several holders that look, one does.
    """
    elsewhere, away, counted = 0, 0, 0
    targets: list[NodeId] = []
    first: NodeId | None = None
    for node in order:
        if counted >= copies:
            break
        found = True if node == own else has(node)
        if found:
            first = first or node
            elsewhere += node != own
        elif found is None:
            away += 1
        elif takes_more(node):
            targets.append(node)
        else:
            continue  # it is full: the next one stands in for it
        counted += 1
    return Lack(elsewhere, away, targets, first in (None, own))
