"""Have the kernel look up every name once more before it believes what it has cached of it.

FUSE_NOTIFY_INC_EPOCH (Linux 6.16) takes no lock, so it works even for a directory in which a
handler of ours waits and whose entries can therefore not be invalidated now. pyfuse3 does not know
it, but a notification is one write(2) of a header to the connection. Older kernels refuse it; then
entries of such directories are not cached at all for a while (`vfs.kernel`).
"""

import logging
import os
import struct
from pathlib import Path

log = logging.getLogger(__name__)

_HEADER = struct.Struct("<IiQ")  # struct fuse_out_header: length, code of the notification, unique
_INC_EPOCH = _HEADER.pack(_HEADER.size, 8, 0)


class Epoch:
    """Belongs to the one mount of this process; made when it is mounted. Loop only."""

    def __init__(self, *, wanted: bool = True) -> None:
        """`wanted`: False to do as older kernels make us do."""
        self._connection = _find_connection() if wanted else None
        self.advances = 0
        self.advance()

    @property
    def known(self) -> bool:
        """Whether the kernel can be told."""
        return self._connection is not None

    def advance(self) -> bool:
        """Every name is looked up again; False if this kernel cannot be told so."""
        if self._connection is None:
            return False
        try:
            os.write(self._connection, _INC_EPOCH)
        except OSError as error:
            log.info("the kernel has no epochs (before Linux 6.16): %s", error)
            self._connection = None
            return False
        self.advances += 1
        return True


def _find_connection() -> int | None:
    """The descriptor of /dev/fuse that pyfuse3 has opened."""
    for link in Path("/proc/self/fd").iterdir():
        try:
            if os.readlink(link) == "/dev/fuse":
                return int(link.name)
        except OSError:
            continue  # closed meanwhile
    return None
