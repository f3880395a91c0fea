"""Floor 2: names, inodes and their replication state. Sync only; no network, no bytes of files."""

from dfsfs.namespace.check import check_snapshot
from dfsfs.namespace.conflicts import CONFLICT_MARK
from dfsfs.namespace.fallbacks import Fallback
from dfsfs.namespace.gaps import Refill
from dfsfs.namespace.namespace import Namespace
from dfsfs.namespace.purge import Judgement
from dfsfs.namespace.rejoin import Rejoin
from dfsfs.namespace.schema import SCHEMA, SCHEMA_VERSION
from dfsfs.namespace.types import (
    AttributeChanges,
    Batch,
    Change,
    Conflict,
    ContentsPage,
    Entry,
    Inode,
    Removed,
    SnapshotPage,
    Totals,
)

__all__ = [
    "CONFLICT_MARK",
    "SCHEMA",
    "SCHEMA_VERSION",
    "AttributeChanges",
    "Batch",
    "Change",
    "Conflict",
    "ContentsPage",
    "Entry",
    "Fallback",
    "Inode",
    "Judgement",
    "Namespace",
    "Refill",
    "Rejoin",
    "Removed",
    "SnapshotPage",
    "Totals",
    "check_snapshot",
]
