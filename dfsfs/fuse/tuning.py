"""Raise what the kernel allows a mount by default, where root may: read-ahead and requests.

With 128 KiB of read-ahead a file that has to be fetched arrives at a tenth of the speed it does
with 4 MiB, and at most 12 background requests at a time are on their way. For speed 64 are enough;
but each reader of what no node in reach has keeps some for as long as it waits, and when all are
taken nobody else reads through the page cache either. All of it is best effort: without root the
mount is slower, and a dozen such readers hold up the others. Blocks: a thread calls it.
"""

import logging
from pathlib import Path

from dfsfs.base.limits import HANDLERS_MAX
from dfsfs.fuse.mounts import mounts_at

log = logging.getLogger(__name__)

READ_AHEAD_KIB = 4096
BACKGROUND_REQUESTS = 512
_CONGESTED = BACKGROUND_REQUESTS * 3 // 4  # the proportion of the kernel's own defaults
assert BACKGROUND_REQUESTS < HANDLERS_MAX  # so that calls find a handler, whatever is read ahead


def tune(mountpoint: Path, connection: Path | None) -> None:
    """Raise the limits of a mount of this process, whose control directory is `connection`."""
    mounts = mounts_at(mountpoint)
    if not mounts:
        return
    limits = {Path("/sys/class/bdi") / mounts[-1].device / "read_ahead_kb": READ_AHEAD_KIB}
    if connection is not None:
        limits[connection / "max_background"] = BACKGROUND_REQUESTS
        limits[connection / "congestion_threshold"] = _CONGESTED
    for path, value in limits.items():
        try:
            path.write_text(str(value))
        except OSError as error:
            log.debug("%s: %s", path, error)
