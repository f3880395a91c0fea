"""Floor 2: names, inodes and their replication state. Sync only; no network, no bytes of files."""

from dfsfs.namespace.types import (
    AttributeChanges,
    Batch,
    Change,
    Conflict,
    Entry,
    Inode,
    Removed,
)

__all__ = ["AttributeChanges", "Batch", "Change", "Conflict", "Entry", "Inode", "Removed"]
