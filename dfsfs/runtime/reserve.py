"""What stays free on a node's disk, so that a full node can still do what frees space.

Everything on a disk grows: blocks, names, the logs of databases. Blocks stop when the free space
falls to the reserve, whatever else adds names or bytes when it falls to half of it. The other half
is for what must go on: removals (which are rows too), rows of peers, garbage collection, the fold
of logs. So ENOSPC comes early and to whoever adds, and removing always helps.

Sync: one statvfs(2).
"""

import os
from pathlib import Path

from dfsfs.base.limits import (
    STORE_RESERVE_BYTES_MAX,
    STORE_RESERVE_BYTES_MIN,
    STORE_RESERVE_DIVISOR,
)


class Reserve:
    """Of the disk of one directory."""

    def __init__(self, directory: Path, size_bytes: int | None) -> None:
        """`size_bytes`: what the operator wants; None: a part of the disk, within limits."""
        self._directory = directory
        self._size_bytes = size_bytes

    @property
    def is_touched(self) -> bool:
        """Whether less is free than should be: no more blocks, and logs are kept short."""
        free, whole = self._room()
        return free < reserve_bytes(whole, self._size_bytes)

    def has_room(self) -> bool:
        """Whether names and bytes may be added."""
        free, whole = self._room()
        return free >= reserve_bytes(whole, self._size_bytes) // 2

    def _room(self) -> tuple[int, int]:
        space = os.statvfs(self._directory)
        return space.f_bavail * space.f_frsize, space.f_blocks * space.f_frsize


def reserve_bytes(whole: int, wanted: int | None) -> int:
    """What to leave free on a disk of `whole` bytes."""
    if wanted is not None:
        return wanted
    least = min(STORE_RESERVE_BYTES_MIN, whole // 4)
    return max(least, min(whole // STORE_RESERVE_DIVISOR, STORE_RESERVE_BYTES_MAX))
