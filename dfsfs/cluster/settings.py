"""What the operator decided about this network and this node's part in it: one frozen value."""

from dataclasses import dataclass

from dfsfs.base.types import DigestKind
from dfsfs.cluster.partition import Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSettings:
    """What the operator decided about this network and this node's part in it."""

    bootstrap: tuple[str, ...]
    copies: int
    concern: int | None  # None: every holder in reach
    strict: bool
    on_partition: Policy
    waits_for_mounts: bool  # a call returns when other mounts have seen what it changed
    fetch_timeout_s: float
    cache_bytes_max: int
    kind: DigestKind
    repair_after_s: float
    repair_rate: float
    gc_grace_s: float
    scrub_period_s: float
    horizon_s: float
