"""What is mounted at a place, by the kernel's own table; and the removal of a dead mount.

The table is read and not the filesystem asked, because a dead mount answers nothing.
Blocks: a thread calls it.
"""

import errno
import os
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

from dfsfs.base.errors import Misconfigured

KIND = "fuse.dfs"
_DEAD_MAX = 16  # mounts of dead processes over each other that one start clears


class Mount(NamedTuple):
    """A line of mountinfo."""

    device: str  # major:minor
    kind: str


def mounts_at(mountpoint: Path) -> list[Mount]:
    """Everything mounted at a resolved path, the newest last: that is what is seen there."""
    found = []
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        fields = line.split(b" ")
        # Space, tab, newline and backslash appear as octal escapes, all other bytes as they are.
        place = re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), fields[4])
        if os.fsdecode(place) == str(mountpoint):
            kind = fields[fields.index(b"-") + 1]
            found.append(Mount(fields[2].decode(), os.fsdecode(kind)))
    return found


def check_mountpoint(mountpoint: Path) -> Path:
    """See that something can be mounted there, and return the path as the kernel will name it.

    What a node that died left there is taken away, and nothing else is.

    Raises:
        Misconfigured: it cannot, and what to do about it.
    """
    resolved = mountpoint.resolve()
    for _ in range(_DEAD_MAX):
        try:
            os.statvfs(mountpoint)  # always asks; stat(2) may be answered from a dead mount's cache
            break
        except OSError as error:
            if error.errno != errno.ENOTCONN:
                raise Misconfigured(f"cannot mount at {mountpoint}: {error.strerror}") from error
        _remove_dead(resolved)
    if not resolved.is_dir():
        raise Misconfigured(f"cannot mount at {mountpoint}: not a directory")
    mounts = mounts_at(resolved)
    if mounts and mounts[-1].kind == KIND:
        raise Misconfigured(
            f"a dfs filesystem is mounted at {mountpoint} already; "
            f"unmount it with: fusermount3 -u {mountpoint}"
        )
    return resolved


def _remove_dead(mountpoint: Path) -> None:
    """Detach the mount seen there, if it is one of ours.

    Lazily: programs may still have it open, and get errors until they let go.
    """
    mounts = mounts_at(mountpoint)
    command = ["fusermount3", "-u", "-z", str(mountpoint)]
    advice = f"clear it with: {' '.join(command)}"
    if not mounts or mounts[-1].kind != KIND:
        kind = mounts[-1].kind if mounts else "mount"
        raise Misconfigured(f"{mountpoint} is in a {kind} whose process died; {advice}")
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise Misconfigured(f"{mountpoint} is a dead mount; {advice} ({error})") from error
    if done.returncode != 0:
        raise Misconfigured(f"{mountpoint} is a dead mount; {advice} ({done.stderr.strip()})")
