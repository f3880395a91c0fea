"""Bytes held back so that a node can start on a full disk.

A node whose disk filled to the last byte and that was then killed must write to start: logs of its
A node whose disk filled to the last byte and that was then killed must write to start: the logs of
its databases are taken over, records indexed. It keeps a file of `BALLAST_BYTES` for that moment,
throws Sync; a few system calls.
"""

import logging
import os
from pathlib import Path

from dfsfs.base.limits import BALLAST_BYTES

log = logging.getLogger(__name__)


class Ballast:
    """One file in the state directory. Owned by the node."""

    def __init__(self, directory: Path, *, size_bytes: int = BALLAST_BYTES) -> None:
        self._path = directory / "ballast"
        self._size_bytes = size_bytes

    def throw_off_if_full(self) -> bool:
        """Free the bytes if the disk has less than them left; whether they were freed."""
        if self._free_bytes() >= self._size_bytes:
            return False
        try:
            self._path.unlink()
        except OSError:
            return False  # there is none, or the disk does not even let go: the start will tell
        log.warning("the disk of %s is full; starting with what was held back", self._path.parent)
        return True

    def take_on(self) -> bool:
        """Hold the bytes back if they are not and there is room for much more; whether they are."""
        try:
            if self._path.exists():
                return True
            if self._free_bytes() < 8 * self._size_bytes:
                return False
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, self._size_bytes)
            finally:
                os.close(descriptor)
        except OSError:
            self._path.unlink(missing_ok=True)
            return False
        return True

    def _free_bytes(self) -> int:
        space = os.statvfs(self._path.parent)
        return space.f_bavail * space.f_frsize
