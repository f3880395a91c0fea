"""Raise what the kernel allows a mount by default, where root may: read-ahead and requests.

With 128 KiB of read-ahead a file that has to be fetched arrives at a tenth of the speed it does
with 4 MiB, and at most 12 background requests at a time are on their way. All of it is best effort:
without root the mount is slower, not wrong.

Blocks (a thread calls it). The device number comes from /proc/self/mountinfo and not from stat(2),
which would be a request to this very mount.
"""

import logging
from pathlib import Path

log = logging.getLogger(__name__)

READ_AHEAD_KIB = 4096
BACKGROUND_REQUESTS = 64
_CONGESTED = BACKGROUND_REQUESTS * 3 // 4  # the proportion of the kernel's own defaults


def device_number(mountpoint: Path) -> str | None:
    """`major:minor` of what is mounted at a path, the newest if there are several."""
    found = None
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        fields = line.split()
        if fields[4].decode("unicode_escape", "surrogateescape") == str(mountpoint):
            found = fields[2].decode()
    return found


def tune(mountpoint: Path) -> None:
    """Raise the limits of a mount of this process."""
    device = device_number(mountpoint)
    if device is None:
        return
    connection = Path("/sys/fs/fuse/connections") / device.partition(":")[2]
    for path, value in (
        (Path("/sys/class/bdi") / device / "read_ahead_kb", READ_AHEAD_KIB),
        (connection / "max_background", BACKGROUND_REQUESTS),
        (connection / "congestion_threshold", _CONGESTED),
    ):
        try:
            path.write_text(str(value))
        except OSError as error:
            log.debug("%s: %s", path, error)
