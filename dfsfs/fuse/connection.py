"""The kernel's end of a mount: a directory of the FUSE control file system.

`/sys/fs/fuse/connections/N` has the limits of mount N, and `abort`, which ends it: every request
that waits is answered with an error at once, whatever its process does. Service managers mount the
control file system at boot; where nobody did, root does it here. Blocks: a thread calls it.
"""

import logging
import os
import subprocess
from pathlib import Path

from dfsfs.fuse.mounts import mounts_at

log = logging.getLogger(__name__)

CONTROL = Path("/sys/fs/fuse/connections")


def connection_of(mountpoint: Path) -> Path | None:
    """The control directory of what is mounted at a resolved path; None if it cannot be had.

    The number comes from /proc/self/mountinfo and not from stat(2), which would be a request to
    this very mount.
    """
    mounts = mounts_at(mountpoint)
    if not mounts:
        return None
    connection = CONTROL / mounts[-1].device.partition(":")[2]
    if not connection.exists() and os.geteuid() == 0:
        _mount_control()
    return connection if connection.exists() else None


def _mount_control() -> None:
    command = ["mount", "-t", "fusectl", "fusectl", str(CONTROL)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        log.debug("no control file system: %s", error)
        return
    if done.returncode != 0:
        log.debug("no control file system: %s", done.stderr.strip())
