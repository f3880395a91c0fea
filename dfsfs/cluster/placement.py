"""Which nodes should hold a block: weighted rendezvous hashing. Pure.

Every node computes the same answer from the same members, without a table to agree on; when a
member joins or leaves only the blocks it wins or loses move (Thaler and Ravishankar 1998; the
logarithmic weights are from Mosharaf et al. 2015, "Weighted rendezvous hashing").
"""

import hashlib
import math
from collections.abc import Sequence
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
